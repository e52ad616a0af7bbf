//! Jars that are what the release says, and many that are not.

use std::io::{Cursor, Write as _};

use upfleet_domain::patch::{PatchedClass, PatchedResource};
use zip::{ZipWriter, write::SimpleFileOptions};

use super::*;
use crate::exec::jar;

fn class(marker: u8) -> Vec<u8> {
    vec![0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, 52, marker]
}

fn spec() -> PatchSpec {
    let class = |name: &str, marker| PatchedClass {
        name: name.to_owned(),
        accepts: vec![],
        parent: None,
        patched: Digest::of(&class(marker)),
        major: 52,
    };
    let resource = PatchedResource { name: "a/text".into(), digest: Digest::of(b"text") };
    PatchSpec {
        number: 9,
        classes: vec![class("a.B", 1), class("a.B$C", 2)],
        resources: vec![resource],
        ..serde_json::from_str(r#"{"number":9,"live":{"possible":true}}"#).unwrap()
    }
}

fn good() -> Vec<(String, Vec<u8>)> {
    vec![
        ("a/B.class".into(), class(1)),
        ("a/B$C.class".into(), class(2)),
        ("a/text".into(), b"text".to_vec()),
    ]
}

fn verified(bytes: &[u8]) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.jar");
    std::fs::write(&path, bytes).unwrap();
    verify(&path, &spec()).map_err(|reason| {
        assert!(matches!(reason.code, ReasonCode::PatchInvalid | ReasonCode::ArchiveHostile), "{reason}");
        reason.message()
    })
}

fn with(change: impl FnOnce(&mut Vec<(String, Vec<u8>)>)) -> Result<(), String> {
    let mut entries = good();
    change(&mut entries);
    verified(&jar::write("Manifest-Version: 1.0\r\n\r\n", &entries).unwrap())
}

#[test]
fn a_jar_of_just_what_is_named_passes() {
    assert_eq!(with(|_| {}), Ok(()));
    assert_eq!(with(|entries| entries.push(("META-INF/SIGNER.SF".into(), vec![]))), Ok(()));
    assert_eq!(with(|entries| entries.insert(0, ("a/".into(), vec![]))), Ok(()));
}

#[test]
fn anything_else_is_refused() {
    let add = |name: &str| with(|entries| entries.push((name.to_owned(), class(3))));
    for (name, words) in [
        ("a/D.class", "does not name"),
        ("META-INF/services/a.B", "does not name"),
        ("META-INF/versions/11/a/B.class", "does not name"),
        ("META-INF/INDEX.LIST", "does not name"),
        ("../a/B.class", "leaves the directory"),
        ("a/./B.class", "holds `.`"),
        ("/a/B.class", "is absolute"),
        ("a\\B.class", "backslash"),
        ("C:a.class", "holds a `:`"),
        ("a\u{1b}[2J.class", "control character"),
        (&"x".repeat(3000), "longer than"),
    ] {
        assert!(add(name).unwrap_err().contains(words), "{name:?}: {:?}", add(name));
    }
    assert!(with(|entries| entries[0].1 = class(9)).unwrap_err().contains("a/B.class"));
    assert!(with(|entries| drop(entries.remove(1))).unwrap_err().contains("lacks `a/B$C.class`"));
    assert!(with(|entries| drop(entries.remove(2))).unwrap_err().contains("lacks `a/text`"));
}

/// T04, before anything is installed.
#[test]
fn damaged_jars_are_refused() {
    let bytes = jar::write("Manifest-Version: 1.0\r\n\r\n", &good()).unwrap();
    for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
        assert!(verified(&bytes[..length]).is_err(), "{length} bytes");
    }
    let mut flipped = bytes.clone();
    let at = flipped.windows(4).position(|window| window == [0xca, 0xfe, 0xba, 0xbe]).unwrap();
    flipped[at + 8] ^= 1;
    assert!(verified(&flipped).is_err());
}

/// Two entries of one name: which of them counts depends on who reads.
#[test]
fn an_entry_behind_another_is_refused() {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in good().iter().chain([("a/Z.class".to_owned(), class(7))].iter()) {
        writer.start_file(name.as_str(), SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    let mut bytes = writer.finish().unwrap().into_inner();
    // `a/Z.class` becomes a second `a/B.class`, in both places of the name.
    while let Some(at) = bytes.windows(9).position(|window| window == b"a/Z.class") {
        bytes[at + 2] = b'B';
    }
    assert!(verified(&bytes).is_err());
}

#[test]
fn a_class_of_another_version_is_refused() {
    let mut spec = spec();
    spec.classes[0].major = 61;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.jar");
    std::fs::write(&path, jar::write("\r\n", &good()).unwrap()).unwrap();
    assert!(verify(&path, &spec).unwrap_err().message().contains("major version 61"));
}

/// The rules of all archives hold for jars too: none of the hostile ones passes.
#[test]
fn hostile_archives_are_no_patches() {
    for (name, bytes, _) in crate::exec::archive::samples::hostile() {
        assert!(verified(&bytes).is_err(), "{name}");
    }
}
