//! R6: where an upgrade can't be put: read-only, not executable, not permitted, busy, or another file system. Each is
//! said, nothing is changed, and the next order succeeds once it is mended.

use std::{os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use upfleet_domain::upgrade::Outcome;

use super::{
    lab::{DO, Deed, Ended, Ending, ON, Sort, Waiting, at_rest, command, done, of_state, record},
    mounts::{again, isolated, memory, run},
};

/// One place that can't take an upgrade.
struct Place {
    name: &'static str,
    /// Makes it so.
    harm: fn(&Path),
    /// Mends it.
    mend: fn(&Path),
    /// What is said.
    says: &'static str,
    outcome: Outcome,
}

fn text(path: &Path, name: &str) -> String {
    path.join(name).to_str().unwrap().to_owned()
}

fn mode(dir: &Path, mode: u32) {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn places() -> Vec<Place> {
    let unchanged = Outcome::FailedUnchanged;
    let place = |name, harm, mend, says, outcome| Place { name, harm, mend, says, outcome };
    vec![
        place("read-only", |dir| again(dir, "ro"), |dir| again(dir, "rw"), "mounted read-only", unchanged),
        place("noexec", |dir| again(dir, "noexec"), |dir| again(dir, "exec"), "mounted noexec", unchanged),
        place("permissions", |dir| mode(dir, 0o555), |dir| mode(dir, 0o755), "Permission denied", unchanged),
        place("busy", |_| {}, |_| {}, "Text file busy", Outcome::RolledBack),
        place(
            "a mount in its place",
            |dir| run("mount", &["--bind", &text(dir, "app"), &text(dir, "app")]),
            |dir| run("umount", &["-l", &text(dir, "app")]),
            "another file system",
            unchanged,
        ),
        place(
            "a store elsewhere",
            |dir| memory(&dir.join(".upfleet"), 16 << 20),
            |dir| run("umount", &["-l", &text(dir, ".upfleet")]),
            "another file system",
            unchanged,
        ),
        place(
            "a store that is a mount",
            |dir| run("mount", &["--bind", &text(dir, ".upfleet"), &text(dir, ".upfleet")]),
            |dir| run("umount", &["-l", &text(dir, ".upfleet")]),
            "another file system",
            unchanged,
        ),
    ]
}

/// Takes from root what would let it write anywhere.
fn without_privileges(child: &Command) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-dac_override,-dac_read_search,-fowner", "--"]).arg(child.get_program());
    command.args(child.get_args());
    for (name, value) in child.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command
}

fn one(dir: &Path, place: &Place) {
    let (sort, about) = (Sort::Program, place.name);
    memory(dir, 64 << 20);
    memory(&dir.join("state"), 64 << 20);
    let ending = Ending(dir.to_owned(), sort);
    done(dir, sort, 1, &Deed::Install(1, vec![]));
    let old = of_state(&record(dir, sort).unwrap().current);
    (place.harm)(dir);
    let mut child = without_privileges(&command(dir, sort, 20, &Deed::Install(2, vec![])));
    if about == "busy" {
        child.env(ON, "fetched").env(DO, "hold");
    }
    let ended = Waiting::spawn(child).finish();
    let rests = at_rest(dir, sort).unwrap_or_else(|problem| panic!("{about}: {problem}: {ended:?}"));
    let last = rests.last.expect("it ended");
    let (reason, hint) = (last.reason.to_string(), last.reason.code.hint().unwrap_or_default());
    println!("{about}: {:?}: {reason} ({hint})", last.outcome);
    assert_eq!(last.outcome, place.outcome, "{about}: {ended:?}");
    assert!(reason.contains(place.says), "{about}: {reason}");
    assert_eq!(of_state(&rests.current), old, "{about}");
    assert!(matches!(ended, Ended::Said(said) if said.contains(&reason)));
    (place.mend)(dir);
    done(dir, sort, 50, &Deed::Install(3, vec![]));
    let rests = at_rest(dir, sort).unwrap_or_else(|problem| panic!("{about}, mended: {problem}"));
    assert_eq!(rests.last.map(|last| last.outcome), Some(Outcome::Succeeded), "{about}, mended");
    drop(ending);
    run("umount", &["-l", &text(dir, "state")]);
    run("umount", &["-l", dir.to_str().unwrap()]);
}

#[test]
fn a_place_that_takes_no_upgrade_is_told_and_left_alone() {
    let test = "disk::places::a_place_that_takes_no_upgrade_is_told_and_left_alone";
    if !isolated(test, &["mount", "setpriv"], &[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let places = places();
    places.iter().for_each(|place| one(dir.path(), place));
    println!("\nfigure: r6_places_that_take_no_upgrade {} of {}", places.len(), places.len());
}
