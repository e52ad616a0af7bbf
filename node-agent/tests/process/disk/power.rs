//! R3: the power is cut at a system call. The disk is then what its image holds at that moment: the image is copied
//! while it is mounted and the agent lies dead, and the copy is what the next start finds.

use std::{fs::File, io::Read as _, os::unix::fs::FileExt as _, path::Path};

use upfleet_domain::upgrade::Outcome;

use super::{
    lab::{Ended, Ending, of_state, record},
    mounts::{FILE_SYSTEMS, Mounted, isolated, make},
    syscalls::{Case, cases, count, fail_on, selection},
    trace::{self, Fault, Site},
};

/// The calls of a case on a file system, when nothing disturbs it.
fn survey(case: &Case, kind: &str, work: &Path) -> Vec<Site> {
    let (image, at) = (work.join("image"), work.join("disk"));
    make(kind, &image);
    let _mounted = Mounted::at(kind, &image, &at);
    let _begun = case.begin(&at);
    let (ended, log) = trace::run(case.child(&at), &at, None);
    assert!(matches!(&ended, Ended::Said(said) if said.starts_with("ENDED")), "{}: {ended:?}", case.name);
    log.sites
}

/// Copies an image block by block, without asking its file system where data might be: that knows of what was written
/// to it, but not yet of what another file system wrote to the device above it.
fn copy_of(image: &Path, copy: &Path) {
    let (mut from, to) = (File::open(image).unwrap(), File::create(copy).unwrap());
    to.set_len(from.metadata().unwrap().len()).unwrap();
    let (mut block, mut at) = (vec![0; 64 << 10], 0);
    loop {
        let read = from.read(&mut block).unwrap();
        if read == 0 {
            return;
        }
        if block[..read].iter().any(|byte| *byte != 0) {
            to.write_all_at(&block[..read], at).unwrap();
        }
        at += read as u64;
    }
}

/// Cuts the power at a call. `false` where the call was not reached.
fn cut(case: &Case, kind: &str, site: &Site, work: &Path) -> Result<bool, String> {
    let (image, copy, at) = (work.join("image"), work.join("copy"), work.join("disk"));
    make(kind, &image);
    let mounted = Mounted::at(kind, &image, &at);
    let begun = case.begin(&at);
    let before = record(&at, case.sort);
    let (ended, _) = trace::run(case.child(&at), &at, Some((site, Fault::Kill)));
    // What was in memory only is in no copy.
    copy_of(&image, &copy);
    drop(Ending(at.clone(), case.sort));
    drop(mounted);
    let ways = begun.ways;
    let _mounted = Mounted::at(kind, &copy, &at);
    // What runs ends before its file system goes.
    let begun = begun;
    case.either(&at, &begun)?;
    let found = record(&at, case.sort);
    if let Some(before) = before {
        let found = found.as_ref().ok_or("the journal is lost")?;
        if !before.ended.iter().all(|upgrade| found.ended.contains(upgrade)) {
            return Err("the journal has forgotten what had ended".to_owned());
        }
    }
    // Done, but old.
    if let Some(record) = found.filter(|record| record.passage.is_none()) {
        let new = of_state(&record.current) == ways[1] && ways[0] != ways[1];
        let there = super::lab::start_path(&at, case.sort)?;
        if new && there != ways[1] {
            return Err(format!("recorded as done, and {there:?} lies there"));
        }
    }
    let (again, _) = trace::run(case.child(&at), &at, None);
    case.ended(&at, &begun).map_err(|problem| format!("{problem}; the recovery {again:?}"))?;
    Ok(ended == Ended::Killed)
}

/// At each call of each case in turn, on each file system.
#[test]
fn a_power_cut_leaves_old_or_new() {
    let tools = ["strace", "mount", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"];
    if !isolated("disk::power::a_power_cut_leaves_old_or_new", &tools, &[]) {
        return;
    }
    if !trace::possible("a_power_cut_leaves_old_or_new") {
        return;
    }
    let cases: Vec<Case> =
        cases().into_iter().filter(|case| super::lab::outcome(&case.deed) == Outcome::Succeeded).collect();
    let mut problems = Vec::new();
    for (index, kind) in FILE_SYSTEMS.into_iter().enumerate() {
        let work = tempfile::tempdir().unwrap();
        std::fs::create_dir(work.path().join("disk")).unwrap();
        // In `.ci/run`, one case on each file system.
        let wanted = count(112, 3);
        let some: Vec<&Case> =
            if wanted > cases.len() { cases.iter().collect() } else { vec![&cases[index % 3]] };
        let (mut cuts, each) = (0, wanted.div_ceil(some.len()));
        let mut runs = 0;
        for case in some {
            for site in selection(survey(case, kind, work.path()), each, 11 + index).into_iter().take(each) {
                runs += 1;
                match cut(case, kind, &site, work.path()) {
                    Ok(died) => cuts += usize::from(died),
                    Err(problem) => problems.push(format!("{kind}, {} {site:?}: {problem}", case.name)),
                }
            }
        }
        println!("\nfigure: r3_power_cuts_{kind} {cuts} of {runs}, {} failed on all so far", problems.len());
    }
    fail_on(&problems);
}
