//! The executors on real files.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::*;

fn place(dir: &Path) -> Executor {
    let place = Place::new(&"web".parse().unwrap(), &dir.join("app"));
    Executor::new(place, FirstInstall { mode: 0o755, owner: None, group: None })
}

fn fetch(executor: &Executor, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    executor.prepare().unwrap();
    std::fs::write(executor.place().part(&digest), bytes).unwrap();
    digest
}

fn install(executor: &Executor, bytes: &[u8]) -> Digest {
    let digest = fetch(executor, bytes);
    for step in [
        StepKind::Verify { manifest: digest, digest },
        StepKind::Stage { manifest: digest, digest },
        StepKind::Swap { digest },
    ] {
        executor.perform(&step, None).unwrap();
        executor.perform(&step, None).expect("each step can be done twice");
    }
    digest
}

#[test]
fn an_upgrade_and_the_way_back() {
    let dir = tempfile::tempdir().unwrap();
    let executor = place(dir.path());
    let old = install(&executor, b"old");
    let path = executor.place().path().to_owned();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o755);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o710)).unwrap();
    executor.perform(&StepKind::Backup { digest: old }, None).unwrap();
    let new = install(&executor, b"new");
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o710, "the mode is kept");
    assert_eq!(executor.inspect().unwrap().installed, Some(new));
    executor.perform(&StepKind::VerifyKept { digest: old }, None).unwrap();
    executor.perform(&StepKind::SwapBack { digest: old }, None).unwrap();
    executor.perform(&StepKind::Prune { keep: vec![old], stacks: vec![] }, None).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    let lying = executor.inspect().unwrap();
    assert_eq!((lying.installed, lying.kept), (Some(old), vec![old]));
    let foreign = executor.perform(&StepKind::Remove { digest: Some(new) }, None).unwrap_err();
    assert_eq!(foreign.code, ReasonCode::Drifted, "what was not installed here stays");
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    executor.perform(&StepKind::Remove { digest: Some(old) }, None).unwrap();
    executor.perform(&StepKind::Remove { digest: Some(old) }, None).unwrap();
    assert_eq!(executor.inspect().unwrap().installed, None);
}

#[test]
fn extended_attributes_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let executor = place(dir.path());
    install(&executor, b"old");
    let file = std::fs::File::open(executor.place().path()).unwrap();
    let set = rustix::fs::fsetxattr(&file, "user.origin", b"hand", rustix::fs::XattrFlags::empty());
    if set.is_err() {
        eprintln!("skipped: the file system has no extended attributes");
        return;
    }
    install(&executor, b"new");
    let file = std::fs::File::open(executor.place().path()).unwrap();
    let mut value = [0; 16];
    let length = rustix::fs::fgetxattr(&file, "user.origin", &mut value).unwrap();
    assert_eq!(&value[..length], b"hand");
}

#[test]
fn wrong_bytes_are_not_staged() {
    let dir = tempfile::tempdir().unwrap();
    let executor = place(dir.path());
    let digest = fetch(&executor, b"new");
    std::fs::write(executor.place().part(&digest), b"other").unwrap();
    for step in [StepKind::Stage { manifest: digest, digest }, StepKind::Verify { manifest: digest, digest }]
    {
        assert_eq!(executor.perform(&step, None).unwrap_err().code, ReasonCode::DigestMismatch);
    }
    assert!(!executor.place().part(&digest).exists(), "wrong bytes are not resumed from");
}

#[test]
fn the_rest_of_an_aborted_download_does_not_hide_what_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let executor = place(dir.path());
    let digest = install(&executor, b"old");
    assert!(executor.has(&digest), "so it is not fetched");
    std::fs::write(executor.place().part(&digest), b"ol").unwrap();
    executor.perform(&StepKind::Verify { manifest: digest, digest }, None).unwrap();
    executor.perform(&StepKind::Stage { manifest: digest, digest }, None).unwrap();
    assert!(!executor.place().part(&digest).exists());
}

/// Ten bytes of a kept version flipped, one at a time: each is found before use.
#[test]
fn a_damaged_way_back_is_found_before_use() {
    let dir = tempfile::tempdir().unwrap();
    let executor = place(dir.path());
    let bytes: Vec<u8> = (0..100).collect();
    let old = install(&executor, &bytes);
    executor.perform(&StepKind::Backup { digest: old }, None).unwrap();
    install(&executor, b"new");
    for at in (0..100).step_by(10) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        std::fs::write(executor.place().version(&old), damaged).unwrap();
        for step in [StepKind::VerifyKept { digest: old }, StepKind::SwapBack { digest: old }] {
            assert_eq!(executor.perform(&step, None).unwrap_err().code, ReasonCode::RollbackTargetDamaged);
        }
        assert_eq!(std::fs::read(executor.place().path()).unwrap(), b"new");
    }
}

#[test]
fn a_link_in_the_components_place_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let executor = place(dir.path());
    std::fs::write(dir.path().join("elsewhere"), b"x").unwrap();
    symlink(dir.path().join("elsewhere"), executor.place().path()).unwrap();
    let forbidden = executor.look(&[], true).unwrap().forbidden.unwrap();
    assert_eq!(forbidden.code, ReasonCode::NotPermitted);
}

#[test]
fn what_was_not_recorded_is_not_backed_up_as_if_it_were() {
    let dir = tempfile::tempdir().unwrap();
    let executor = place(dir.path());
    install(&executor, b"old");
    let step = StepKind::Backup { digest: Digest::of(b"another") };
    assert_eq!(executor.perform(&step, None).unwrap_err().code, ReasonCode::Drifted);
}

#[test]
fn a_look_leaves_no_trace_beside_the_component() {
    let dir = tempfile::tempdir().unwrap();
    let executor = place(dir.path());
    let digest = install(&executor, b"old");
    let looked = executor.look(&[digest], false).unwrap();
    assert_eq!((looked.installed, looked.fetched, looked.links), (Some(digest), 3, true));
    assert_eq!(looked.forbidden, None);
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

/// A patch's jar is read by whoever reads the application, and never more than that: no bits to execute, also where the
/// component is a directory behind a link.
#[test]
fn a_patch_is_staged_beside_a_directory_and_beside_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = place(dir.path());
    install(&file, b"application");
    std::fs::set_permissions(file.place().path(), std::fs::Permissions::from_mode(0o4750)).unwrap();
    std::fs::create_dir(dir.path().join("tree")).unwrap();
    symlink(dir.path().join("tree"), dir.path().join("link")).unwrap();
    let first = FirstInstall { mode: 0o755, owner: None, group: None };
    let rules = DirectoryRules { swap: crate::config::SwapMode::Link, first, executes: false };
    let link = Place::new(&"shop".parse().unwrap(), &dir.path().join("link"));
    let directory = Executor::of_directory(link, rules);
    for (executor, mode) in [(file, 0o640), (directory, 0o644)] {
        let digest = fetch(&executor, b"jar");
        let release = patch_release(digest);
        executor.perform(&StepKind::Stage { manifest: digest, digest }, Some(&release)).unwrap();
        let staged = std::fs::metadata(executor.place().version(&digest)).unwrap();
        assert_eq!(staged.mode() & 0o7777, mode);
        executor.perform(&StepKind::VerifyKept { digest }, None).unwrap();
    }
}

fn patch_release(digest: Digest) -> Manifest {
    let text = format!(
        r#"{{"format":1,"component":"web","version":"p1","sequence":1,"kind":"patch","artifacts":[],
            "patch":{{"number":1,"classes":[],"live":{{"possible":true}}}},"notes":"{digest}"}}"#
    );
    serde_json::from_str(&text).unwrap()
}
