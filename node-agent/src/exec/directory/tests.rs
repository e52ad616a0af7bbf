//! The executor of directories on real files: both ways of switching, local changes, hostile archives, readers.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use upfleet_domain::{
    files::{FileEntry, OnLocalChange},
    release::{ArtifactRef, FORMAT, Platform},
};

use super::*;
use crate::exec::{
    Executor,
    archive::samples::{gz, hostile, tar, tar_entry},
};

/// A release's artifact and manifest.
struct Made {
    bytes: Vec<u8>,
    digest: Digest,
    manifest: Manifest,
}

fn make(files: &[(&str, &str)], rule: OnLocalChange, preserve: &[&str]) -> Made {
    let mode = |path: &str| if path.starts_with("bin/") { 0o755 } else { 0o644 };
    let entries = files
        .iter()
        .map(|(path, text)| tar_entry(path.as_bytes(), b'0', mode(path), text.as_bytes(), ""))
        .collect::<Vec<_>>();
    made(gz(&tar(&entries)), files, rule, preserve)
}

fn made(bytes: Vec<u8>, files: &[(&str, &str)], rule: OnLocalChange, preserve: &[&str]) -> Made {
    let entries = files.iter().map(|(path, text)| FileEntry {
        path: (*path).to_owned(),
        digest: Digest::of(text.as_bytes()),
        size: text.len() as u64,
        executable: path.starts_with("bin/"),
    });
    let preserve = preserve.iter().map(|text| (*text).to_owned()).collect();
    let digest = Digest::of(&bytes);
    let artifact = ArtifactRef {
        platform: Platform { os: "linux".into(), arch: "any".into() },
        sha256: digest,
        md5: None,
        size: bytes.len() as u64,
        sources: vec![],
        encodings: vec![],
    };
    let manifest = Manifest {
        format: FORMAT,
        component: "site".parse().unwrap(),
        version: "1".parse().unwrap(),
        sequence: 1,
        kind: upfleet_domain::release::Kind::Files,
        notes: String::new(),
        artifacts: vec![artifact],
        fixes: vec![],
        patch: None,
        files: Some(FilesSpec { entries: entries.collect(), on_local_change: rule, preserve }),
    };
    Made { bytes, digest, manifest }
}

struct Site {
    dir: tempfile::TempDir,
    executor: Executor,
}

const MODES: [SwapMode; 2] = [SwapMode::Link, SwapMode::Exchange];

impl Site {
    fn new(swap: SwapMode) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(&"site".parse().unwrap(), &dir.path().join("site"));
        let first = FirstInstall { mode: 0o755, owner: None, group: None };
        let executor = Executor::of_directory(place, DirectoryRules { swap, first, executes: true });
        Self { dir, executor }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join("site").join(file)
    }

    fn text(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.path(file)).ok()
    }

    /// Each step can be done twice.
    fn step(&self, step: &StepKind, release: &Made) -> Result<(), Reason> {
        self.executor.perform(step, Some(&release.manifest))?;
        self.executor.perform(step, Some(&release.manifest)).map(drop)
    }

    fn stage(&self, release: &Made) -> Result<(), Reason> {
        let (manifest, digest) = (release.digest, release.digest);
        self.executor.prepare()?;
        if !self.executor.has(&digest) {
            fs::write(self.executor.place().part(&digest), &release.bytes).unwrap();
        }
        self.step(&StepKind::Verify { manifest, digest }, release)?;
        self.step(&StepKind::Stage { manifest, digest }, release)
    }

    /// As the machine does it.
    fn upgrade(&self, release: &Made) -> Result<(), Reason> {
        let looked = self.executor.look(&[release.digest], true).unwrap();
        assert_eq!(looked.forbidden, None);
        self.stage(release)?;
        if let Some(digest) = looked.installed {
            self.step(&StepKind::Backup { digest }, release)?;
        }
        self.step(&StepKind::Swap { digest: release.digest }, release)
    }

    fn back(&self, digest: Digest) {
        self.executor.perform(&StepKind::VerifyKept { digest }, None).unwrap();
        self.executor.perform(&StepKind::SwapBack { digest }, None).unwrap();
        self.executor.perform(&StepKind::SwapBack { digest }, None).unwrap();
        assert_eq!(self.installed(), Some(digest));
    }

    fn installed(&self) -> Option<Digest> {
        self.executor.inspect().unwrap().installed
    }
}

const REFUSE: OnLocalChange = OnLocalChange::Refuse;

fn one() -> Made {
    make(&[("index.php", "one"), ("bin/run", "#!/bin/sh\n"), ("lib/a.php", "a")], REFUSE, &["local/**"])
}

fn two() -> Made {
    make(&[("index.php", "two"), ("lib/deep/b.php", "b")], REFUSE, &["local/**"])
}

#[test]
fn an_upgrade_of_a_directory_that_was_there_and_the_ways_back() {
    for swap in MODES {
        let site = Site::new(swap);
        fs::create_dir_all(site.path("local")).unwrap();
        fs::write(site.path("index.php"), "by hand").unwrap();
        fs::write(site.path("local/secret"), "node's own").unwrap();
        let unmanaged = site.installed().unwrap();
        site.upgrade(&one()).unwrap();
        assert_eq!(site.installed(), Some(one().digest));
        assert_eq!(site.text("index.php").as_deref(), Some("one"));
        assert_eq!(site.text("local/secret").as_deref(), Some("node's own"), "preserved");
        let mode = |file: &str| fs::metadata(site.path(file)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("index.php"), mode("bin/run"), mode("lib")), (0o644, 0o755, 0o755));
        assert!(site.path("").is_dir());
        let link = fs::symlink_metadata(site.dir.path().join("site")).unwrap().is_symlink();
        assert_eq!(link, swap == SwapMode::Link);
        fs::write(site.path("local/secret"), "changed").unwrap();
        site.upgrade(&two()).unwrap();
        assert_eq!((site.text("lib/a.php"), site.text("index.php").as_deref()), (None, Some("two")));
        assert_eq!(site.text("local/secret").as_deref(), Some("changed"));
        site.back(one().digest);
        assert_eq!((site.text("lib/a.php").as_deref(), site.text("lib/deep/b.php")), (Some("a"), None));
        assert_eq!(site.text("local/secret").as_deref(), Some("changed"), "also on the way back");
        site.back(unmanaged);
        assert_eq!(site.text("index.php").as_deref(), Some("by hand"));
        let mut kept = site.executor.inspect().unwrap().kept;
        let mut expected = vec![unmanaged, one().digest, two().digest];
        kept.sort();
        expected.sort();
        assert_eq!(kept, expected);
        site.back(two().digest);
        site.executor.perform(&StepKind::Prune { keep: vec![two().digest], stacks: vec![] }, None).unwrap();
        assert_eq!(site.executor.inspect().unwrap().kept, [two().digest]);
        let foreign =
            site.executor.perform(&StepKind::Remove { digest: Some(one().digest) }, None).unwrap_err();
        assert_eq!(foreign.code, ReasonCode::Drifted);
        site.executor.perform(&StepKind::Remove { digest: Some(two().digest) }, None).unwrap();
        site.executor.perform(&StepKind::Remove { digest: Some(two().digest) }, None).unwrap();
        assert_eq!(site.installed(), None);
        site.back(two().digest);
    }
}

#[test]
fn local_changes_are_refused_kept_or_overwritten_as_the_release_says() {
    for swap in MODES {
        let site = Site::new(swap);
        site.upgrade(&one()).unwrap();
        fs::write(site.path("index.php"), "edited").unwrap();
        fs::write(site.path("added.php"), "mine").unwrap();
        fs::remove_file(site.path("lib/a.php")).unwrap();
        let lying = site.executor.inspect().unwrap();
        assert_ne!(lying.installed, Some(one().digest));
        assert!(!lying.kept.contains(&one().digest), "it is not what it was");
        assert_eq!(
            lying.changes.list(9),
            ["index.php (changed)", "lib/a.php (missing)", "added.php (added)"]
        );
        let changed = lying.installed.unwrap();
        let reason = site.upgrade(&two()).unwrap_err();
        assert_eq!((reason.code, reason.metadata["count"].as_str()), (ReasonCode::LocalChanges, "3"));
        assert_eq!(site.text("index.php").as_deref(), Some("edited"), "nothing was touched");
        assert_eq!(site.installed(), Some(changed));

        let keep = make(&[("index.php", "two"), ("lib/a.php", "a2")], OnLocalChange::Keep, &[]);
        site.upgrade(&keep).unwrap();
        assert_eq!(site.installed(), Some(keep.digest), "with what was kept it is that version");
        assert_eq!(site.text("index.php").as_deref(), Some("edited"));
        assert_eq!(site.text("added.php").as_deref(), Some("mine"));
        assert_eq!(site.text("lib/a.php").as_deref(), Some("a2"), "what was missing comes back");
        assert!(site.executor.inspect().unwrap().changes.is_empty(), "what was kept is no drift");
        assert_eq!(site.upgrade(&two()).unwrap_err().code, ReasonCode::LocalChanges, "but still a change");

        let overwrite = make(&[("index.php", "three")], OnLocalChange::Overwrite, &[]);
        site.upgrade(&overwrite).unwrap();
        assert_eq!((site.text("index.php").as_deref(), site.text("added.php")), (Some("three"), None));
        site.back(keep.digest);
        assert_eq!(site.text("index.php").as_deref(), Some("edited"), "the kept version has the change");
        site.back(changed);
        assert_eq!((site.text("added.php").as_deref(), site.text("lib/a.php")), (Some("mine"), None));
    }
}

#[test]
fn a_version_that_was_changed_in_place_is_installed_anew() {
    for swap in MODES {
        let site = Site::new(swap);
        let release = make(&[("index.php", "one")], OnLocalChange::Overwrite, &["local/**"]);
        site.upgrade(&release).unwrap();
        fs::create_dir(site.path("local")).unwrap();
        fs::write(site.path("local/x"), "own").unwrap();
        fs::write(site.path("index.php"), "edited").unwrap();
        let changed = site.installed().unwrap();
        assert!(!site.executor.has(&release.digest), "so it is fetched");
        site.upgrade(&release).unwrap();
        assert_eq!(
            (site.installed(), site.text("index.php").as_deref()),
            (Some(release.digest), Some("one"))
        );
        assert_eq!(site.text("local/x").as_deref(), Some("own"));
        site.back(changed);
        assert_eq!(site.text("index.php").as_deref(), Some("edited"));
        site.back(release.digest);
    }
}

#[test]
fn caches_of_byte_code_are_never_carried_and_every_version_has_its_own_time() {
    let site = Site::new(SwapMode::Exchange);
    let release = |text: &str| make(&[("app/m.py", text)], OnLocalChange::Keep, &["app/**"]);
    let time = || fs::metadata(site.path("app/m.py")).unwrap().modified().unwrap();
    let old = make(&[("app/m.py", "V = 1\n")], REFUSE, &[]);
    site.upgrade(&old).unwrap();
    let before = time();
    fs::create_dir(site.path("app/__pycache__")).unwrap();
    fs::write(site.path("app/__pycache__/m.cpython-311.pyc"), "old").unwrap();
    assert_eq!(site.installed(), Some(old.digest), "a cache is no change");
    site.upgrade(&make(&[("app/m.py", "V = 2\n")], REFUSE, &[])).unwrap();
    assert!(!site.path("app/__pycache__").exists());
    assert!(
        time() >= before + std::time::Duration::from_secs(1),
        "a cache elsewhere tells them apart by seconds"
    );
    site.upgrade(&release("V = 3\n")).unwrap();
    assert!(!site.path("app/__pycache__").exists(), "not even where all is preserved");
}

/// All that lies below a directory, with what it is.
fn listing(dir: &Path, except: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            let kind = entry.file_type().unwrap();
            let content = if kind.is_file() { fs::read(entry.path()).unwrap() } else { vec![] };
            all.push(format!("{} {kind:?} {content:?}", entry.path().display()));
            if kind.is_dir() && entry.file_name() != *except {
                open.push(entry.path());
            }
        }
    }
    all.sort();
    all
}

#[test]
fn hostile_archives_write_nothing_outside_and_change_nothing() {
    let site = Site::new(SwapMode::Link);
    site.upgrade(&one()).unwrap();
    fs::write(site.dir.path().join("outside"), "outside").unwrap();
    let before = listing(site.dir.path(), "incoming");
    for (name, bytes, _) in hostile() {
        // The manifest goes as far along with the archive as it can.
        let files = [("a", "x"), ("b", "x"), ("d/escaped", "x"), ("short", "x"), ("bomb", "x"), ("f0", "x")];
        let release = made(bytes, &files, OnLocalChange::Overwrite, &[]);
        let (manifest, digest) = (release.digest, release.digest);
        let part = site.executor.place().part(&digest);
        fs::write(&part, &release.bytes).unwrap();
        let reason = site.executor.perform(&StepKind::Verify { manifest, digest }, Some(&release.manifest));
        assert_eq!(reason.unwrap_err().code, ReasonCode::ArchiveHostile, "{name}");
        // Even if it came as far as being unpacked.
        let step = StepKind::Stage { manifest, digest };
        let reason = site.executor.perform(&step, Some(&release.manifest)).unwrap_err();
        assert_eq!(reason.code, ReasonCode::ArchiveHostile, "{name}");
        site.executor.perform(&StepKind::Prune { keep: vec![one().digest], stacks: vec![] }, None).unwrap();
        assert_eq!(listing(site.dir.path(), "incoming"), before, "{name}");
        assert!(!Path::new("/tmp/upfleet-escaped").exists(), "{name}");
    }
}

#[test]
fn an_archive_has_what_the_manifest_names_and_nothing_else() {
    let site = Site::new(SwapMode::Link);
    let bytes = || one().bytes;
    let files = [("index.php", "one"), ("bin/run", "#!/bin/sh\n"), ("lib/a.php", "a")];
    let mut more = files.to_vec();
    more.push(("missing", ""));
    let mut other = files;
    other[0].1 = "eno";
    let mut longer = files;
    longer[0].1 = "one more";
    for (files, code) in [
        (&files[..2], ReasonCode::ArchiveHostile),
        (&more[..], ReasonCode::ArchiveHostile),
        (&other[..], ReasonCode::DigestMismatch),
        (&longer[..], ReasonCode::ArchiveHostile),
    ] {
        let release = made(bytes(), files, REFUSE, &[]);
        assert_eq!(site.stage(&release).unwrap_err().code, code, "{files:?}");
    }
}

#[test]
fn a_damaged_way_back_is_found_before_use() {
    let site = Site::new(SwapMode::Link);
    site.upgrade(&one()).unwrap();
    site.upgrade(&two()).unwrap();
    let kept = site.dir.path().join(".upfleet/site/versions").join(one().digest.to_string());
    fs::write(kept.join("lib/a.php"), "b").unwrap();
    let digest = one().digest;
    for step in [StepKind::VerifyKept { digest }, StepKind::SwapBack { digest }] {
        let reason = site.executor.perform(&step, None).unwrap_err();
        assert_eq!(reason.code, ReasonCode::RollbackTargetDamaged);
    }
    assert_eq!(site.text("index.php").as_deref(), Some("two"));
    // It is fetched and staged anew.
    site.upgrade(&one()).unwrap();
    assert_eq!(site.text("lib/a.php").as_deref(), Some("a"));
}

#[test]
fn links_of_others_and_files_in_the_place_are_refused() {
    let site = Site::new(SwapMode::Link);
    let path = site.dir.path().join("site");
    fs::create_dir(site.dir.path().join("elsewhere")).unwrap();
    symlink("elsewhere", &path).unwrap();
    let forbidden = site.executor.look(&[], true).unwrap().forbidden.unwrap();
    assert_eq!(forbidden.code, ReasonCode::NotPermitted);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "a file").unwrap();
    let forbidden = site.executor.look(&[], true).unwrap().forbidden.unwrap();
    assert_eq!(forbidden.code, ReasonCode::NotPermitted);
}

/// Whoever owns the tree puts a link where a directory was: what is carried over is not led elsewhere.
#[test]
fn a_link_planted_in_a_version_leads_nowhere() {
    let site = Site::new(SwapMode::Link);
    fs::create_dir(site.dir.path().join("outside")).unwrap();
    site.upgrade(&one()).unwrap();
    site.upgrade(&two()).unwrap();
    fs::create_dir(site.path("local")).unwrap();
    fs::write(site.path("local/x"), "own").unwrap();
    let kept = site.dir.path().join(".upfleet/site/versions").join(one().digest.to_string());
    symlink(site.dir.path().join("outside"), kept.join("local")).unwrap();
    let digest = one().digest;
    let back = site.executor.perform(&StepKind::SwapBack { digest }, None);
    assert!(!site.dir.path().join("outside/x").exists());
    assert!(back.is_err(), "a link in the way is not written through");
    assert_eq!(site.text("index.php").as_deref(), Some("two"));
}

/// T50: 10 000 switches; whoever reads meanwhile always finds one version or the other.
#[test]
fn a_reader_never_finds_nothing_while_it_is_switched() {
    for swap in MODES {
        let site = Site::new(swap);
        site.upgrade(&one()).unwrap();
        site.upgrade(&two()).unwrap();
        let (stop, reads, misses) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let file = site.path("index.php");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    match fs::read_to_string(&file) {
                        Ok(text) if text == "one" || text == "two" => reads.fetch_add(1, Ordering::Relaxed),
                        _ => misses.fetch_add(1, Ordering::Relaxed),
                    };
                }
            });
            flip(&site, swap);
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(misses.load(Ordering::Relaxed), 0, "{swap:?}");
        assert!(reads.load(Ordering::Relaxed) > 100, "{swap:?}");
    }
}

/// The very calls that switch, without the hashing and syncing around them, and some whole steps.
fn flip(site: &Site, swap: SwapMode) {
    let Executor { sort: crate::exec::Sort::Directory(directory), .. } = &site.executor else {
        unreachable!()
    };
    for round in 0..10_000 {
        let digest = if round % 2 == 0 { one().digest } else { two().digest };
        if round % 1000 < 2 {
            site.executor.perform(&StepKind::Swap { digest }, None).unwrap();
            continue;
        }
        let store = directory.load().unwrap();
        let dir = store.locate(store.record(&digest).unwrap()).unwrap().to_owned();
        match swap {
            SwapMode::Link => directory.link(&dir).unwrap(),
            SwapMode::Exchange => super::switch::exchange(&dir, &directory.place.path).unwrap(),
        }
    }
}
