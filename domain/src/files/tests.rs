//! Sections that can't be obeyed, differences between trees, and the judgement of local changes.

use super::*;
use crate::reason::ReasonCode;

fn entry(path: &str, text: &str) -> FileEntry {
    let digest = Digest::of(text.as_bytes());
    FileEntry { path: path.into(), digest, size: text.len() as u64, executable: false }
}

fn spec(paths: &[&str]) -> FilesSpec {
    let entries = paths.iter().map(|path| entry(path, path)).collect();
    FilesSpec { entries, on_local_change: OnLocalChange::Refuse, preserve: vec![] }
}

#[test]
fn a_section_is_sorted_and_has_no_caches() {
    let entries = ["b.py", "__pycache__/b.cpython-311.pyc", "a/c.py"].map(|path| entry(path, path));
    let built = FilesSpec::build(entries, OnLocalChange::Keep, vec!["local/**".into()]).unwrap();
    let paths: Vec<_> = built.entries.iter().map(|entry| entry.path.as_str()).collect();
    assert_eq!((paths, built.size()), (vec!["a/c.py", "b.py"], 10));
}

#[test]
fn sections_that_cannot_be_obeyed_are_refused() {
    let mut huge = spec(&["a"]);
    huge.entries[0].size = u64::MAX;
    let mut leaving = spec(&["a"]);
    leaving.preserve = vec!["../**".into()];
    let bad = [spec(&[]), spec(&["a", "a"]), spec(&["a", "a/b"]), spec(&["../a"]), spec(&["__pycache__/a"])];
    for spec in bad.into_iter().chain([huge, leaving]) {
        assert!(spec.check().is_err(), "{spec:?}");
    }
    assert_eq!(spec(&["a", "ab/c", "ab/d/e"]).check(), Ok(()));
}

fn tree(files: &[(&str, &str)]) -> Tree {
    let node = |text: &str| Node::File { digest: Digest::of(text.as_bytes()), executable: false };
    Tree(files.iter().map(|(path, text)| ((*path).to_owned(), node(text))).collect())
}

#[test]
fn what_differs_is_told_by_kind() {
    let installed = tree(&[("a", "1"), ("b", "1"), ("c", "1"), ("local/x", "1")]);
    let found = tree(&[("a", "1"), ("b", "2"), ("d", "1"), ("local/y", "1"), ("__pycache__/a", "1")]);
    let changes = Changes::between(&installed, &found, &["local/**".into()]);
    assert_eq!(changes.list(9), ["b (changed)", "c (missing)", "d (added)"]);
    assert!(Changes::between(&installed, &installed, &[]).is_empty());
    let reason = judge(OnLocalChange::Refuse, &changes).unwrap_err();
    assert_eq!((reason.code, reason.metadata["count"].as_str()), (ReasonCode::LocalChanges, "3"));
    assert_eq!(judge(OnLocalChange::Keep, &changes).unwrap(), ["b", "d"]);
    assert_eq!(judge(OnLocalChange::Overwrite, &changes).unwrap(), [""; 0]);
    assert_eq!(judge(OnLocalChange::Refuse, &Changes::default()).unwrap(), [""; 0]);
}

#[test]
fn a_trees_digest_is_of_what_counts() {
    let base = tree(&[("a", "1"), ("local/x", "1")]);
    let except = ["local/**".to_owned()];
    let same = tree(&[("a", "1"), ("local/x", "2"), ("__pycache__/z", "3")]);
    assert_eq!(base.digest(&except), same.digest(&except));
    assert_ne!(base.digest(&[]), same.digest(&[]));
    let mut executable = base.clone();
    executable.0.insert("a".into(), Node::File { digest: Digest::of(b"1"), executable: true });
    assert_ne!(base.digest(&[]), executable.digest(&[]));
}
