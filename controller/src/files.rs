//! Small files that must be whole or absent: keys, certificates, endpoints. Artifacts are `blobs`' business.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt},
    path::{Path, PathBuf},
};

/// For keys: only the owner reads.
pub const PRIVATE: u32 = 0o600;
/// For certificates and the like: everybody may read.
pub const PUBLIC: u32 = 0o644;

/// A file that could not be read or written; the operator can mend it.
#[derive(Debug, thiserror::Error)]
#[error("could not {operation} `{}`", path.display())]
pub struct FileError {
    /// What was tried.
    pub operation: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { operation, path, source }
}

/// Makes a directory, with its parents, that only the owner may enter.
///
/// # Errors
/// Where the file system refuses.
pub fn private_dir(path: &Path) -> Result<(), FileError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(failed("create directory", path))?;
    // An existing directory keeps its mode above; what lies in it is as secret as in a new one.
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o700)).map_err(failed("set the mode of", path))
}

/// Writes a file so that it is whole or absent after a crash: temporary file, fsync, rename, fsync of the directory.
///
/// # Errors
/// Where the file system refuses.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = (|| {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    })();
    if written.is_err() {
        // The first error is the one to tell; a leftover is overwritten by the next try.
        let _ = std::fs::remove_file(&temporary);
    }
    written.map_err(failed("write", path))
}

/// Reads a whole text file.
///
/// # Errors
/// Where it can't be read.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    std::fs::read_to_string(path).map_err(failed("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_for_the_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("ca");
        private_dir(&inner).unwrap();
        let key = inner.join("ca.key");
        write(&key, b"secret", PRIVATE).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&inner), mode(&key)), (0o700, 0o600));
        assert_eq!(std::fs::read_dir(&inner).unwrap().count(), 1, "nothing temporary is left");
    }

    #[test]
    fn an_error_names_the_operation_and_the_file() {
        let error = read_text(Path::new("/nonexistent/x")).unwrap_err();
        assert_eq!(error.to_string(), "could not read `/nonexistent/x`");
    }
}
