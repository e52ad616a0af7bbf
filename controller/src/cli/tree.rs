//! Directories that become releases: read, listed by digest, packed so that equal directories make equal bytes.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use clap::ValueEnum;
use flate2::{Compression, GzBuilder};
use upfleet_domain::{
    bundle,
    files::{FileEntry, FilesSpec, OnLocalChange, is_byte_code_cache},
};

use super::{
    failure::{Failure, Result},
    file,
};
use crate::exit::Exit;

/// What nodes do about files that somebody changed there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LocalChange {
    /// The upgrade stops before anything is touched.
    #[default]
    Refuse,
    /// The changed file is carried over into the new version.
    Keep,
    /// The release's file takes its place.
    Overwrite,
}

impl From<LocalChange> for OnLocalChange {
    fn from(change: LocalChange) -> Self {
        match change {
            LocalChange::Refuse => Self::Refuse,
            LocalChange::Keep => Self::Keep,
            LocalChange::Overwrite => Self::Overwrite,
        }
    }
}

/// Reads a directory: every file with its digest. Links and other things that are no files are refused.
pub(super) fn spec(dir: &Path, on_local_change: LocalChange, preserve: Vec<String>) -> Result<FilesSpec> {
    let mut entries = Vec::new();
    collect(dir, "", &mut entries)?;
    FilesSpec::build(entries, on_local_change.into(), preserve)
        .map_err(|problem| Failure::usage(format!("`{}` can't be released: {problem}", dir.display())))
}

fn collect(dir: &Path, prefix: &str, entries: &mut Vec<FileEntry>) -> Result<()> {
    let failed = |error: io::Error| Failure::io("read", dir, &error);
    let mut names = fs::read_dir(dir).map_err(failed)?.collect::<io::Result<Vec<_>>>().map_err(failed)?;
    names.sort_by_key(fs::DirEntry::file_name);
    for entry in names {
        let path = entry.path();
        let name = entry.file_name();
        let name = name
            .to_str()
            .ok_or_else(|| Failure::usage(format!("`{}` has a name that is not UTF-8", path.display())))?;
        let below = format!("{prefix}{name}");
        let metadata = fs::symlink_metadata(&path).map_err(|error| Failure::io("read", &path, &error))?;
        if metadata.is_dir() {
            collect(&path, &format!("{below}/"), entries)?;
        } else if !metadata.is_file() {
            return Err(Failure::usage(format!("`{}` is neither a file nor a directory", path.display()))
                .hint("a release holds plain files; copy what a link leads to"));
        } else if !is_byte_code_cache(&below) {
            let (digest, size) = file::digest(&path)?;
            let executable = metadata.permissions().mode() & 0o100 != 0;
            entries.push(FileEntry { path: below, digest, size, executable });
        }
    }
    Ok(())
}

/// Packs the files of a spec, in its order.
pub(super) fn pack(dir: &Path, spec: &FilesSpec, to: &Path) -> Result<()> {
    let write = |error: io::Error| Failure::io("write", to, &error);
    let out = File::create(to).map_err(write)?;
    // Neither a name nor a time: they would make equal directories differ.
    let mut gzip = GzBuilder::new().mtime(0).write(out, Compression::default());
    for entry in &spec.entries {
        let path = dir.join(&entry.path);
        let mut file = File::open(&path).map_err(|error| Failure::io("read", &path, &error))?;
        let length = file.metadata().map_err(|error| Failure::io("read", &path, &error))?.len();
        if length != entry.size {
            let changed = format!("`{}` was changed while it was read", path.display());
            return Err(Failure::new(Exit::Usage, changed));
        }
        bundle::entry(&mut gzip, &entry.path, entry.executable, entry.size, &mut file).map_err(write)?;
    }
    bundle::end(&mut gzip).map_err(write)?;
    gzip.finish().map_err(write)?.flush().map_err(write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_directories_make_equal_bytes_without_byte_code() {
        let home = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let dir = home.path().join(name);
            fs::create_dir_all(dir.join("sub/__pycache__")).unwrap();
            fs::write(dir.join("sub/app.lua"), "return 1").unwrap();
            fs::write(dir.join("run.sh"), "#!/bin/sh\n").unwrap();
            fs::write(dir.join("sub/__pycache__/a.cpython-311.pyc"), "x").unwrap();
            fs::set_permissions(dir.join("run.sh"), fs::Permissions::from_mode(0o700)).unwrap();
            let spec = spec(&dir, LocalChange::Keep, vec!["local/**".into()]).unwrap();
            let archive = home.path().join(format!("{name}.tar.gz"));
            pack(&dir, &spec, &archive).unwrap();
            (spec, fs::read(archive).unwrap())
        };
        let (first, second) = (make("a"), make("b"));
        assert_eq!(first, second);
        let names: Vec<(&str, bool)> =
            first.0.entries.iter().map(|entry| (entry.path.as_str(), entry.executable)).collect();
        assert_eq!(names, [("run.sh", true), ("sub/app.lua", false)]);
        assert_eq!(first.0.on_local_change, OnLocalChange::Keep);
    }

    #[test]
    fn links_and_empty_directories_are_refused() {
        let home = tempfile::tempdir().unwrap();
        assert!(spec(home.path(), LocalChange::Refuse, vec![]).is_err());
        std::os::unix::fs::symlink("/etc/passwd", home.path().join("x")).unwrap();
        let failure = spec(home.path(), LocalChange::Refuse, vec![]).unwrap_err();
        assert!(failure.message.contains("neither a file nor a directory"), "{}", failure.message);
    }
}
