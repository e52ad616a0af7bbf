//! What is read of sound archives, and that each hostile one is refused by the rule it breaks.

use super::*;
use crate::exec::archive::samples::{file, gz, hostile, tar, tar_entry, zip, zipped};

const LIMITS: Limits = Limits { files: 8, bytes: 4096 };

fn listed(bytes: &[u8]) -> Result<Vec<(String, Digest, bool)>, Reason> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("archive");
    std::fs::write(&path, bytes).unwrap();
    let found = list(&path, LIMITS)?;
    Ok(found.into_values().map(|(member, digest)| (member.path, digest, member.executable)).collect())
}

#[test]
fn sound_archives_are_read() {
    let expected = vec![
        ("a.txt".to_owned(), Digest::of(b"one"), false),
        ("bin/run".to_owned(), Digest::of(b"two"), true),
    ];
    let run = tar_entry(b"bin/run", b'0', 0o4755, b"two", "");
    let dir = tar_entry(b"bin/", b'5', 0o755, b"", "");
    let tar = tar(&[dir, run, file("./a.txt", "one")]);
    assert_eq!(listed(&tar).unwrap(), expected);
    assert_eq!(listed(&gz(&tar)).unwrap(), expected);
    let expected =
        vec![("A.class".to_owned(), Digest::of(b"one"), false), ("b".to_owned(), Digest::of(b""), false)];
    assert_eq!(listed(&zip(&[zipped("A.class", "one"), zipped("b", "")])).unwrap(), expected);
    assert_eq!(listed(&zip(&[zipped("A.class", "one").streamed(), zipped("b", "")])).unwrap(), expected);
    assert_eq!(listed(&zip(&[])).unwrap(), []);
}

#[test]
fn archives_of_usual_programs_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
import sys, tarfile, zipfile, os
os.chdir(sys.argv[1])
os.makedirs("src/deep")
open("src/a.txt", "w").write("one")
open("src/deep/" + "n" * 120, "w").write("two")
for name, form in ("pax", tarfile.PAX_FORMAT), ("gnu", tarfile.GNU_FORMAT):
    with tarfile.open(name, "w:gz", format=form) as tar:
        tar.add("src", ".")
with zipfile.ZipFile("zip", "w", zipfile.ZIP_DEFLATED) as z:
    z.write("src/a.txt", "a.txt")
    z.write("src/deep/" + "n" * 120, "deep/" + "n" * 120)
"#;
    let made = std::process::Command::new("python3").args(["-c", script]).arg(dir.path()).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped: archives_of_usual_programs_are_read: there is no python3");
        return;
    }
    for name in ["pax", "gnu", "zip"] {
        let found = list(&dir.path().join(name), LIMITS).unwrap_or_else(|reason| panic!("{name}: {reason}"));
        let digests: Vec<_> = found.into_values().map(|(_, digest)| digest).collect();
        assert_eq!(digests, [Digest::of(b"one"), Digest::of(b"two")], "{name}");
    }
}

#[test]
fn hostile_archives_are_refused_by_the_rule_they_break() {
    let all = hostile();
    assert!(all.len() >= 40, "{}", all.len());
    let mut faults = Vec::new();
    for (name, bytes, said) in all {
        match listed(&bytes) {
            Err(reason) if reason.code == ReasonCode::ArchiveHostile && reason.message().contains(said) => {}
            other => faults.push(format!("{name}: {other:?}")),
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Jars as the JDK's own tool writes them: a marked first entry, sizes behind the content.
#[test]
fn jars_of_the_jdk_are_read() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("com/acme")).unwrap();
    std::fs::write(dir.path().join("com/acme/A.class"), "one").unwrap();
    let made =
        std::process::Command::new("jar").args(["cf", "a.jar", "com"]).current_dir(dir.path()).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped: jars_of_the_jdk_are_read: there is no jar tool");
        return;
    }
    let found = list(&dir.path().join("a.jar"), LIMITS).unwrap();
    let names: Vec<_> = found.keys().map(String::as_str).collect();
    assert_eq!(names, ["META-INF/MANIFEST.MF", "com/acme/A.class"]);
    assert_eq!(found["com/acme/A.class"].1, Digest::of(b"one"));
}
