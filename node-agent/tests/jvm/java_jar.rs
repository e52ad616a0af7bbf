//! The embedded Java agent is what its sources say: built again by the compiler it was built with, byte by byte.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use upfleet_agent::jvm::java;

use crate::support::{jdks, skip};

/// The feature version of the javac that built the committed jar. Others write the same classes in other bytes.
const JAVAC: u32 = 17;
const MANIFEST: &str = "Manifest-Version: 1.0\r\nPremain-Class: upfleet.Bootstrap\r\nAgent-Class: upfleet.Bootstrap\r\n\
                        Can-Redefine-Classes: true\r\nCan-Retransform-Classes: true\r\n\r\n";

fn files(dir: &Path, prefix: &str, ends: &str, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), &format!("{name}/"), ends, found);
        } else if name.ends_with(ends) {
            found.insert(name, fs::read(entry.path()).unwrap());
        }
    }
}

/// A zip archive that only stores, with fixed times and an order that is given: the same bytes for ever.
fn stored(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let offset = u32::try_from(archive.len()).unwrap();
        let length = u32::try_from(bytes.len()).unwrap().to_le_bytes();
        let mut head = vec![10, 0, 0, 0, 0, 0, 0, 0, 0x21, 0x58]; // version 1.0, stored, 2024-01-01
        head.extend(crc32fast::hash(bytes).to_le_bytes());
        head.extend([length, length].concat());
        head.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
        head.extend([0, 0]);
        archive.extend([b"PK\x03\x04".as_slice(), &head, name.as_bytes(), bytes].concat());
        directory.extend(
            [b"PK\x01\x02\x0a\x00".as_slice(), &head, &[0; 10], &offset.to_le_bytes(), name.as_bytes()]
                .concat(),
        );
    }
    let (size, offset) = (directory.len(), archive.len());
    archive.extend(directory);
    let count = u16::try_from(entries.len()).unwrap().to_le_bytes();
    archive.extend([b"PK\x05\x06\0\0\0\0".as_slice(), &count, &count].concat());
    archive.extend(u32::try_from(size).unwrap().to_le_bytes());
    archive.extend(u32::try_from(offset).unwrap().to_le_bytes());
    archive.extend([0, 0]);
    archive
}

fn build(javac: &Path) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("java");
    let mut sources = BTreeMap::new();
    files(&root, "", ".java", &mut sources);
    let classes = tempfile::tempdir().unwrap();
    let options = ["-J-Xmx128m", "--release", "8", "-g:none", "-Xlint:all,-options", "-Werror", "-d"];
    let mut command = Command::new(javac);
    command.current_dir(root).args(options).arg(classes.path()).args(sources.keys());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut built = BTreeMap::new();
    files(classes.path(), "", ".class", &mut built);
    let mut entries = vec![("META-INF/MANIFEST.MF", MANIFEST.as_bytes())];
    entries.extend(built.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
    stored(&entries)
}

/// With `UPFLEET_BLESS=1` the jar is written instead.
#[test]
fn the_embedded_jar_is_what_its_sources_say() {
    let Some(jdk) = jdks().iter().find(|jdk| jdk.feature == JAVAC) else {
        return skip("java_jar", &format!("no JDK {JAVAC} is installed, which built the committed jar"));
    };
    let built = build(&jdk.program("javac"));
    if std::env::var_os("UPFLEET_BLESS").is_some() {
        fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("java").join(java::JAR_NAME), &built).unwrap();
        return;
    }
    assert!(built == java::JAR, "node-agent/java was changed: run this test with UPFLEET_BLESS=1");
}
