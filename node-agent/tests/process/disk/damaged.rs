//! R9: what should be put back is not what it was. A hash tells, before it is used; the next older state takes its
//! place, and where there is none a person is called.

use std::path::{Path, PathBuf};

use upfleet_domain::{digest::Digest, upgrade::Outcome};

use super::{
    lab::{self, DO, Deed, Ended, Ending, ON, Sort, Waiting, at_rest, command, done, flip, of_state, record},
    syscalls::each,
};
use crate::releases::BAD;

/// A file of the version `n` as it is kept.
fn kept(dir: &Path, sort: Sort, n: u64) -> PathBuf {
    let digest: Digest =
        lab::goal(sort, &Deed::Install(n, vec![]), &upfleet_domain::state::ComponentState::absent())
            .artifact()
            .unwrap();
    if sort == Sort::Program {
        return dir.join(".upfleet/app/versions").join(digest.to_string());
    }
    if sort == Sort::Link {
        dir.join(".upfleet/site/versions").join(digest.to_string())
    } else {
        dir.join("site")
    }
    .join("a")
}

fn begin(dir: &Path, sort: Sort, newest: u64) {
    for n in 1..=newest {
        done(dir, sort, n, &Deed::Install(n, vec![]));
    }
}

/// A failing release finds the version before it damaged, which happened while it was tried.
fn failing(sort: Sort, newest: u64, at: usize) -> (Outcome, String) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let _ending = Ending(dir.to_owned(), sort);
    begin(dir, sort, newest);
    let mut file = kept(dir, sort, newest);
    if sort == Sort::Exchange {
        // It will have been exchanged for the new one.
        let digest = record(dir, sort).unwrap().current.artifact().unwrap();
        file = dir.join(".upfleet/site/versions").join(digest.to_string()).join("a");
    }
    let mut child = command(dir, sort, 20, &Deed::Install(BAD, vec![]));
    child.env(ON, "started,unhealthy").env(DO, format!("flip {} {at}", file.display()));
    let Ended::Said(said) = Waiting::spawn(child).finish() else { panic!("killed") };
    let record = record(dir, sort).unwrap();
    let last = record.last.clone().unwrap_or_else(|| panic!("{said}"));
    if last.outcome == Outcome::RolledBack {
        let record = at_rest(dir, sort).unwrap_or_else(|problem| panic!("{sort:?}: {problem}: {said}"));
        let older = lab::goal(sort, &Deed::Install(newest - 1, vec![]), &record.current);
        assert_eq!(of_state(&record.current), of_state(&older), "{sort:?}: {said}");
    }
    let problem = last.reason.to_string();
    done(dir, sort, 50, &Deed::Install(BAD + 1, vec![]));
    at_rest(dir, sort).unwrap_or_else(|problem| panic!("{sort:?}, then: {problem}"));
    (last.outcome, problem)
}

/// A person asks for a state that is damaged.
fn asked_for(sort: Sort, at: usize) -> (Outcome, String) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let _ending = Ending(dir.to_owned(), sort);
    begin(dir, sort, 2);
    let digest = record(dir, sort).unwrap().kept[0].artifact().unwrap();
    let (name, inner) = if sort == Sort::Program { ("app", "") } else { ("site", "a") };
    let version = dir.join(".upfleet").join(name).join("versions").join(digest.to_string());
    flip(&if inner.is_empty() { version } else { version.join(inner) }, at);
    let before = of_state(&record(dir, sort).unwrap().current);
    done(dir, sort, 20, &Deed::RollBack);
    let rests = at_rest(dir, sort).unwrap_or_else(|problem| panic!("{sort:?}: {problem}"));
    assert_eq!(of_state(&rests.current), before);
    let last = rests.last.unwrap();
    (last.outcome, last.reason.to_string())
}

#[test]
fn a_damaged_way_back_is_never_taken() {
    let sorts = [Sort::Program, Sort::Link, Sort::Exchange];
    let places = [0, 17, 1_000, 9_999];
    let older = sorts.into_iter().flat_map(|sort| places.map(|at| (sort, at)));
    let results = each(older.collect(), |(sort, at)| {
        let (outcome, reason) = failing(sort, 2, at);
        assert_eq!(outcome, Outcome::RolledBack, "{sort:?} at {at}: {reason}");
        assert!(reason.contains("damaged"), "{sort:?} at {at}: {reason}");
    });
    println!(
        "\nfigure: r9_older_state_in_place_of_a_damaged_one {} of {}",
        results.len(),
        sorts.len() * places.len()
    );
    let alone = each(sorts.to_vec(), |sort| {
        let (outcome, reason) = failing(sort, 1, 40);
        assert_eq!(outcome, Outcome::RollbackFailed, "{sort:?}: {reason}");
        assert!(reason.contains("SHA-256"), "{sort:?}: {reason}");
        let (outcome, reason) = asked_for(sort, 40);
        assert_eq!(outcome, Outcome::FailedUnchanged, "{sort:?}: {reason}");
        assert!(reason.contains("SHA-256"), "{sort:?}: {reason}");
    });
    println!("\nfigure: r9_no_other_way_back {} stopped with an alarm", 2 * alone.len());
}
