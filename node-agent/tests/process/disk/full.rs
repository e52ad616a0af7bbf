//! R5: a full disk. Twenty sizes of it, one that fills up in the middle of an upgrade, and rollbacks with nothing free.

use std::{path::Path, process::Command};

use upfleet_domain::upgrade::Outcome;

use super::{
    lab::{
        self, DO, Deed, Ended, Ending, ON, Sort, Waiting, at_rest, command, done, fill_disk, of_state, record,
    },
    mounts::{self, Mounted, again, isolated, memory, space},
    syscalls::endures,
};
use crate::{
    releases::{BAD, SIZE},
    world::TALKATIVE,
};

/// The length of an artifact that has to find its room.
const ARTIFACT: u64 = 1 << 20;

fn said(mut command: Command, about: &str) -> String {
    command.env(TALKATIVE, "1");
    match Waiting::spawn(command).finish() {
        Ended::Said(said) if said.starts_with("ENDED") => said,
        ended => panic!("{about}: {ended:?}"),
    }
}

/// How a deed ended, with its reason.
fn ended(dir: &Path, sort: Sort) -> (Outcome, String) {
    let last = record(dir, sort).and_then(|record| record.last).expect("something ended");
    (last.outcome, last.reason.to_string())
}

/// One deed in a file system with so many artifacts' room.
fn one_size(sort: Sort, before: &[Deed], deed: &Deed, room: f64) -> Outcome {
    let about = format!("{sort:?} {deed:?} with room for {room:.2}");
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    memory(dir, 64 << 20);
    memory(&dir.join("state"), 64 << 20);
    let ending = Ending(dir.to_owned(), sort);
    for (number, deed) in (1..).zip(before) {
        done(dir, sort, number, deed);
    }
    let old = record(dir, sort).map_or((None, None), |record| of_state(&record.current));
    let (used, _) = space(dir);
    again(dir, &format!("size={}", used + (room * ARTIFACT as f64) as u64));
    let said = said(command(dir, sort, 20, deed), &about);
    let rests = at_rest(dir, sort).unwrap_or_else(|problem| panic!("{about}: {problem}: {said}"));
    let (outcome, reason) = ended(dir, sort);
    match outcome {
        Outcome::Succeeded => assert_ne!(of_state(&rests.current), old, "{about}"),
        Outcome::FailedUnchanged => {
            assert_eq!(of_state(&rests.current), old, "{about}");
            assert!(reason.contains("bytes free") && reason.contains("needed"), "{about}: {reason}");
        }
        outcome => panic!("{about}: {outcome:?}: {reason}"),
    }
    again(dir, "size=64m");
    done(dir, sort, 50, &Deed::Install(3, vec![]));
    at_rest(dir, sort).unwrap_or_else(|problem| panic!("{about}, then with room: {problem}"));
    drop(ending);
    mounts::run("umount", &["-l", dir.join("state").to_str().unwrap()]);
    mounts::run("umount", &["-l", dir.to_str().unwrap()]);
    outcome
}

/// Twenty sizes from 0.1 to 2.2 of what an artifact takes.
#[test]
fn a_disk_of_any_size_takes_an_upgrade_or_stays_as_it_was() {
    let size = ARTIFACT.to_string();
    let own = [(SIZE, size.as_str())];
    if !isolated("disk::full::a_disk_of_any_size_takes_an_upgrade_or_stays_as_it_was", &["mount"], &own) {
        return;
    }
    let sizes = (0..20).map(|step| 0.1 + 2.1 * f64::from(step) / 19.0);
    let sizes: Vec<f64> = if endures() { sizes.collect() } else { sizes.skip(3).step_by(4).collect() };
    let install = |n| Deed::Install(n, vec![]);
    let cases = [
        ("install", Sort::Program, vec![], install(1)),
        ("upgrade", Sort::Program, vec![install(1)], install(2)),
        ("patch", Sort::Program, vec![install(1), Deed::Patch(1, vec![1])], Deed::Patch(1, vec![2, 1])),
        ("directory", Sort::Link, vec![install(1)], install(2)),
        ("first_directory", Sort::Exchange, vec![], install(1)),
    ];
    for (name, sort, before, deed) in cases {
        let outcomes: Vec<Outcome> = sizes.iter().map(|room| one_size(sort, &before, &deed, *room)).collect();
        let fits = outcomes.iter().filter(|outcome| **outcome == Outcome::Succeeded).count();
        assert!(0 < fits && fits < outcomes.len(), "{sort:?} {deed:?}: {outcomes:?}");
        println!(
            "\nfigure: r5_sizes_{name} {} of {} as documented, {fits} had room",
            outcomes.len(),
            sizes.len()
        );
    }
}

/// What is undone, by what: a failing release, or a person at the node. Nothing is free from then on.
fn undone() -> Vec<(Sort, Vec<Deed>, Deed)> {
    let install = |n| Deed::Install(n, vec![]);
    let patched = || vec![install(1), Deed::Patch(1, vec![1])];
    let mut all = vec![
        (Sort::Program, patched(), Deed::Patch(1, vec![9, 1])),
        (Sort::Program, patched(), Deed::Install(2, vec![9])),
        (Sort::Program, patched(), Deed::RollBack),
        (Sort::Program, vec![install(1), Deed::Patch(1, vec![1]), Deed::Patch(1, vec![])], Deed::RollBack),
    ];
    for sort in [Sort::Program, Sort::Link, Sort::Exchange] {
        all.push((sort, vec![install(1)], install(BAD)));
        all.push((sort, vec![install(1), install(2)], Deed::RollBack));
    }
    all
}

fn roll_back_without_room(dir: &Path, kind: &str) {
    for (sort, before, deed) in undone() {
        let about = format!("{kind}: {sort:?} {before:?} {deed:?}");
        let ending = Ending(dir.to_owned(), sort);
        for (number, deed) in (1..).zip(&before) {
            done(dir, sort, number, deed);
        }
        let mut child = command(dir, sort, 20, &deed);
        if deed == Deed::RollBack {
            fill_disk(dir);
        } else {
            child.env(ON, "started,unhealthy").env(DO, "fill");
        }
        let said = said(child, &about);
        let (outcome, reason) = ended(dir, sort);
        let (_, free) = space(dir);
        // No more than what failed has left when it was removed.
        assert!(free < 160 * 1024, "{about}: {free} bytes were free");
        let expected = if deed == Deed::RollBack { Outcome::Succeeded } else { Outcome::RolledBack };
        assert_eq!(outcome, expected, "{about}: {reason}; {said}");
        at_rest(dir, sort).unwrap_or_else(|problem| panic!("{about}: {problem}: {said}"));
        std::fs::remove_file(dir.join("ballast")).unwrap();
        done(dir, sort, 50, &Deed::Install(3, vec![]));
        at_rest(dir, sort).unwrap_or_else(|problem| panic!("{about}, then with room: {problem}"));
        drop(ending);
        for entry in
            std::fs::read_dir(dir).unwrap().flatten().filter(|entry| entry.file_name() != "lost+found")
        {
            let removed = if entry.path().is_dir() && !entry.path().is_symlink() {
                std::fs::remove_dir_all(entry.path())
            } else {
                std::fs::remove_file(entry.path())
            };
            removed.unwrap();
        }
    }
}

/// With not one byte free, on each file system: what failed is undone, and a person at the node can undo.
#[test]
fn a_rollback_needs_no_room() {
    if !isolated("disk::full::a_rollback_needs_no_room", &["mount", "mkfs.ext4", "mkfs.xfs"], &[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    memory(dir.path(), 24 << 20);
    roll_back_without_room(dir.path(), "tmpfs");
    mounts::run("umount", &["-l", dir.path().to_str().unwrap()]);
    // Not btrfs: where that is full, it refuses a second name for a link, too.
    let kinds: &[&str] = if endures() { &["ext4", "xfs"] } else { &["ext4"] };
    for kind in kinds {
        let image = tempfile::NamedTempFile::new().unwrap();
        mounts::make(kind, image.path());
        let mounted = Mounted::at(kind, image.path(), dir.path());
        roll_back_without_room(dir.path(), kind);
        drop(mounted);
    }
    println!("\nfigure: r5_rollbacks_with_nothing_free {} on each of tmpfs {kinds:?}", undone().len());
}

/// A disk that fills up once the bytes are there: nothing later needs more, or nothing is changed.
#[test]
fn a_disk_that_fills_up_meanwhile_breaks_nothing() {
    if !isolated("disk::full::a_disk_that_fills_up_meanwhile_breaks_nothing", &["mount", "mkfs.ext4"], &[]) {
        return;
    }
    let install = |n| Deed::Install(n, vec![]);
    let patched = vec![install(1), Deed::Patch(1, vec![1])];
    let cases = [
        (Sort::Program, vec![install(1)], install(2)),
        (Sort::Program, vec![install(1)], install(BAD)),
        (Sort::Program, patched, Deed::Patch(1, vec![2, 1])),
        (Sort::Link, vec![install(1)], install(2)),
        (Sort::Exchange, vec![install(1)], install(BAD)),
    ];
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (sort, before, deed) in cases {
        let about = format!("{sort:?} {deed:?}");
        let image = tempfile::NamedTempFile::new().unwrap();
        mounts::make("ext4", image.path());
        let mounted = Mounted::at("ext4", image.path(), dir);
        let ending = Ending(dir.to_owned(), sort);
        for (number, deed) in (1..).zip(&before) {
            done(dir, sort, number, deed);
        }
        let old = of_state(&record(dir, sort).unwrap().current);
        let mut child = command(dir, sort, 20, &deed);
        child.env(ON, "fetched").env(DO, "fill");
        let said = said(child, &about);
        let rests = at_rest(dir, sort).unwrap_or_else(|problem| panic!("{about}: {problem}: {said}"));
        let (outcome, reason) = ended(dir, sort);
        println!("{about}: {outcome:?}: {reason}");
        match outcome {
            Outcome::Succeeded => assert_eq!(outcome, lab::outcome(&deed), "{about}: {reason}"),
            Outcome::RolledBack if lab::outcome(&deed) == outcome => {}
            Outcome::RolledBack | Outcome::FailedUnchanged => {
                assert!(reason.contains("bytes free"), "{about}: {reason}")
            }
            outcome => panic!("{about}: {outcome:?}: {reason}"),
        }
        assert_eq!(of_state(&rests.current) == old, outcome != Outcome::Succeeded, "{about}");
        std::fs::remove_file(dir.join("ballast")).unwrap();
        done(dir, sort, 50, &install(3));
        at_rest(dir, sort).unwrap_or_else(|problem| panic!("{about}, then with room: {problem}"));
        drop(ending);
        drop(mounted);
    }
}
