//! Jars and directories of classes as files: read with their nested jars, and written so that equal contents make equal
//! bytes. What is in them is judged by the domain.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Cursor, Read, Seek, Write as _},
    path::Path,
};

use upfleet_domain::patch::JarContents;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter, write::SimpleFileOptions};

use super::failure::{Failure, Result};

/// So many bytes of one jar, unpacked and with its nested jars, are read before it is taken for a bomb.
const MAX_BYTES: u64 = 4 << 30;
/// So many files of a jar or directory.
const MAX_FILES: usize = 500_000;

/// The parts of a class path, separated by `:`; each a jar with the jars in it, or a directory.
pub(super) fn class_path(text: &Path) -> Result<Vec<JarContents>> {
    let mut all = Vec::new();
    for part in std::env::split_paths(text) {
        all.extend(read(&part)?);
    }
    if all.is_empty() {
        return Err(Failure::usage("an empty class path names no classes"));
    }
    Ok(all)
}

/// A jar with the jars nested in it, or a directory.
pub(super) fn read(path: &Path) -> Result<Vec<JarContents>> {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let mut budget = MAX_BYTES;
    if path.is_dir() {
        let mut entries = BTreeMap::new();
        directory(path, "", &mut entries, &mut budget)?;
        return Ok(vec![JarContents { name, entries }]);
    }
    let file = File::open(path).map_err(|error| Failure::io("read", path, &error))?;
    let mut jars = Vec::new();
    unpack(file, name, &mut jars, &mut budget).map_err(|problem| {
        let mut failure = Failure::usage(format!("could not read `{}` as a jar", path.display()));
        failure.causes.push(problem);
        failure
    })?;
    Ok(jars)
}

/// Puts a jar and those nested in it into `jars`, the outer one first.
fn unpack(
    source: impl Read + Seek,
    name: String,
    jars: &mut Vec<JarContents>,
    budget: &mut u64,
) -> Result<(), String> {
    let mut archive = ZipArchive::new(source).map_err(|error| error.to_string())?;
    if archive.len() > MAX_FILES {
        return Err(format!("{} files", archive.len()));
    }
    let mut entries = BTreeMap::new();
    let mut nested = Vec::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|error| error.to_string())?;
        if entry.is_dir() {
            continue;
        }
        let path = entry.name().map_err(|error| error.to_string())?.into_owned();
        let mut bytes = Vec::new();
        let read = (&mut entry).take(*budget + 1).read_to_end(&mut bytes);
        let count = read.map_err(|error| format!("{path}: {error}"))? as u64;
        *budget = budget.checked_sub(count).ok_or_else(|| format!("more than {MAX_BYTES} bytes unpacked"))?;
        // Only one level: what a jar inside a jar inside a jar holds, no JVM finds.
        if path.ends_with(".jar") && !name.contains("!/") {
            nested.push((format!("{name}!/{path}"), bytes));
        } else if entries.insert(path.clone(), bytes).is_some() {
            return Err(format!("it has `{path}` twice"));
        }
    }
    jars.push(JarContents { name, entries });
    for (name, bytes) in nested {
        unpack(Cursor::new(bytes), name.clone(), jars, budget)
            .map_err(|problem| format!("{name}: {problem}"))?;
    }
    Ok(())
}

fn directory(
    path: &Path,
    prefix: &str,
    entries: &mut BTreeMap<String, Vec<u8>>,
    budget: &mut u64,
) -> Result<()> {
    let failed = |error: &std::io::Error| Failure::io("read", path, error);
    for entry in fs::read_dir(path).map_err(|error| failed(&error))? {
        let entry = entry.map_err(|error| failed(&error))?;
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| {
            Failure::usage(format!("`{}` has a name that is not UTF-8", entry.path().display()))
        })?;
        let below = format!("{prefix}{name}");
        if entry.path().is_dir() {
            directory(&entry.path(), &format!("{below}/"), entries, budget)?;
            continue;
        }
        let bytes = fs::read(entry.path()).map_err(|error| Failure::io("read", &entry.path(), &error))?;
        *budget = budget.checked_sub(bytes.len() as u64).unwrap_or(0);
        if *budget == 0 || entries.len() >= MAX_FILES {
            return Err(Failure::usage(format!(
                "`{}` is too large for a directory of classes",
                path.display()
            )));
        }
        entries.insert(below, bytes);
    }
    Ok(())
}

/// A jar of these files: its manifest first, then by path, all with the same old time.
pub(super) fn write(entries: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>> {
    const MANIFEST: &str = "META-INF/MANIFEST.MF";
    let failed = |error: &dyn std::fmt::Display| {
        let mut failure = Failure::new(crate::exit::Exit::Internal, "could not make the jar");
        failure.causes.push(error.to_string());
        failure
    };
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644);
    let mut jar = ZipWriter::new(Cursor::new(Vec::new()));
    let plain = b"Manifest-Version: 1.0\r\nCreated-By: upfleet\r\n\r\n".to_vec();
    let manifest = entries.get(MANIFEST).unwrap_or(&plain);
    let rest = entries.iter().filter(|(path, _)| *path != MANIFEST);
    for (path, bytes) in std::iter::once((&MANIFEST.to_owned(), manifest)).chain(rest) {
        jar.start_file(path.as_str(), options).map_err(|error| failed(&error))?;
        jar.write_all(bytes).map_err(|error| failed(&error))?;
    }
    Ok(jar.finish().map_err(|error| failed(&error))?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> BTreeMap<String, Vec<u8>> {
        names.iter().map(|name| ((*name).to_owned(), name.as_bytes().to_vec())).collect()
    }

    #[test]
    fn equal_contents_make_equal_bytes() {
        let entries = files(&["com/acme/B.class", "com/acme/A.class", "x.txt"]);
        let jar = write(&entries).unwrap();
        assert_eq!(jar, write(&entries).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.jar");
        fs::write(&path, &jar).unwrap();
        let [read] = &read(&path).unwrap()[..] else { panic!("one jar") };
        assert_eq!(read.name, "p.jar");
        let mut with_manifest = entries;
        with_manifest.insert("META-INF/MANIFEST.MF".into(), read.entries["META-INF/MANIFEST.MF"].clone());
        assert_eq!(read.entries, with_manifest);
    }

    #[test]
    fn nested_jars_are_jars_of_their_own() {
        let mut outer = files(&["BOOT-INF/classes/com/acme/A.class"]);
        outer.insert("BOOT-INF/lib/core.jar".into(), write(&files(&["org/lib/L.class"])).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.jar");
        fs::write(&path, write(&outer).unwrap()).unwrap();
        let names: Vec<String> = read(&path).unwrap().into_iter().map(|jar| jar.name).collect();
        assert_eq!(names, ["app.jar", "app.jar!/BOOT-INF/lib/core.jar"]);
    }

    #[test]
    fn directories_and_class_paths_are_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let classes = dir.path().join("classes/com/acme");
        fs::create_dir_all(&classes).unwrap();
        fs::write(classes.join("A.class"), b"a").unwrap();
        let jar = dir.path().join("lib.jar");
        fs::write(&jar, write(&files(&["L.class"])).unwrap()).unwrap();
        let both = std::env::join_paths([dir.path().join("classes"), jar]).unwrap();
        let found = class_path(Path::new(&both)).unwrap();
        assert_eq!(found[0].entries.keys().collect::<Vec<_>>(), ["com/acme/A.class"]);
        assert_eq!(found[1].name, "lib.jar");
        assert!(class_path(Path::new("")).is_err());
        assert!(read(&dir.path().join("none.jar")).is_err());
        fs::write(dir.path().join("bad.jar"), b"PK no").unwrap();
        assert!(read(&dir.path().join("bad.jar")).is_err());
    }
}
