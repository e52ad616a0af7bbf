//! R1, R2 and R4: the agent is killed at each system call that changes something, and again in the recovery from that;
//! and each of these calls fails. `UPFLEET_ENDURE=1` walks all of them, else a seeded selection is walked.

use std::{path::Path, sync::Mutex};

use upfleet_domain::upgrade::Outcome;

use super::{
    lab::{
        self, Deed, Ended, Ending, Path2, Sort, Waiting, at_rest, command, done, of_state, record, start_path,
    },
    trace::{self, Fault, Log, Site},
};
use crate::releases::BAD;

/// The number of the order that is disturbed.
const NUMBER: u64 = 20;

/// One deed and what comes before it.
#[derive(Clone, Debug)]
pub struct Case {
    /// For people.
    pub name: &'static str,
    /// What the component is.
    pub sort: Sort,
    /// What was done before.
    pub before: Vec<Deed>,
    /// What is disturbed.
    pub deed: Deed,
}

/// Everything that is disturbed.
pub fn cases() -> Vec<Case> {
    let one = || vec![Deed::Install(1, vec![])];
    let patched = || vec![Deed::Install(1, vec![]), Deed::Patch(1, vec![1])];
    let two = || vec![Deed::Install(1, vec![]), Deed::Install(2, vec![])];
    let case = |name, sort, before, deed| Case { name, sort, before, deed };
    let (program, link, exchange) = (Sort::Program, Sort::Link, Sort::Exchange);
    vec![
        case("install", program, vec![], Deed::Install(1, vec![])),
        case("upgrade", program, one(), Deed::Install(2, vec![])),
        case("failing upgrade", program, one(), Deed::Install(BAD, vec![])),
        case("rollback", program, two(), Deed::RollBack),
        case("patch", program, patched(), Deed::Patch(1, vec![2, 1])),
        case("failing patch", program, patched(), Deed::Patch(1, vec![9, 1])),
        case("patches off", program, patched(), Deed::Patch(1, vec![])),
        case("base with patches", program, patched(), Deed::Install(2, vec![3])),
        case("directory", link, one(), Deed::Install(2, vec![])),
        case("failing directory", link, one(), Deed::Install(BAD, vec![])),
        case("directory by exchange", exchange, one(), Deed::Install(2, vec![])),
        case("rollback of a directory", exchange, two(), Deed::RollBack),
    ]
}

/// A component brought to where a case begins.
pub struct Begun {
    /// The old start path and the new one.
    pub ways: [Path2; 2],
    _ending: Ending,
}

impl Case {
    /// Brings the component in `dir` to where it begins.
    pub fn begin(&self, dir: &Path) -> Begun {
        let ending = Ending(dir.to_owned(), self.sort);
        for (index, deed) in self.before.iter().enumerate() {
            let said = done(dir, self.sort, 1 + index as u64, deed);
            assert!(said.contains("healthy; "), "{}: {said}", self.name);
        }
        let record = record(dir, self.sort);
        let old = record.as_ref().map_or((None, None), |record| of_state(&record.current));
        let kept = record.as_ref().and_then(|record| record.kept.first().cloned());
        let kept = kept.unwrap_or_else(upfleet_domain::state::ComponentState::absent);
        let new = of_state(&lab::goal(self.sort, &self.deed, &kept));
        Begun { ways: [old, new], _ending: ending }
    }

    /// A child that does the deed.
    pub fn child(&self, dir: &Path) -> Waiting {
        Waiting::spawn(command(dir, self.sort, NUMBER, &self.deed))
    }

    /// At any moment the start path is the old one or the new one.
    pub fn either(&self, dir: &Path, begun: &Begun) -> Result<(), String> {
        let found = start_path(dir, self.sort)?;
        // Between base and stack lies one that runs nothing: the process is stopped before and started after it.
        let between = self.sort == Sort::Program && [begun.ways[0].0, begun.ways[1].0].contains(&found.0);
        if begun.ways.contains(&found) || between {
            Ok(())
        } else {
            Err(format!("{found:?} is neither old nor new"))
        }
    }

    /// After a deed that went on undisturbed at last.
    pub fn ended(&self, dir: &Path, begun: &Begun) -> Result<(), String> {
        let record = at_rest(dir, self.sort)?;
        let (expected, last) = (lab::outcome(&self.deed), record.last.as_ref());
        if last.map(|last| last.outcome) != Some(expected) {
            return Err(format!("it should end as {expected:?}: {last:?}"));
        }
        let way = if expected == Outcome::Succeeded { begun.ways[1] } else { begun.ways[0] };
        if of_state(&record.current) != way {
            return Err(format!("it ended with {:?}", record.current));
        }
        self.further(dir)
    }

    /// A further order succeeds.
    pub fn further(&self, dir: &Path) -> Result<(), String> {
        let deed = Deed::Install(3, vec![]);
        let said = match Waiting::spawn(command(dir, self.sort, 50, &deed)).finish() {
            Ended::Said(said) => said,
            Ended::Killed => "killed".to_owned(),
        };
        let record =
            at_rest(dir, self.sort).map_err(|problem| format!("after a further order: {problem}: {said}"))?;
        let outcome = record.last.as_ref().map(|last| last.outcome);
        if outcome == Some(Outcome::Succeeded) { Ok(()) } else { Err(format!("a further order: {said}")) }
    }

    /// All calls of the deed when nothing disturbs it.
    pub fn survey(&self) -> Vec<Site> {
        let dir = tempfile::tempdir().unwrap();
        let _begun = self.begin(dir.path());
        let (ended, log) = trace::run(self.child(dir.path()), dir.path(), None);
        assert!(matches!(&ended, Ended::Said(said) if said.starts_with("ENDED")), "{}: {ended:?}", self.name);
        log.sites
    }
}

/// Kills at one call after the other, lets it end, and looks at everything. Returns how often it died, and the calls of
/// the last run.
fn killed(case: &Case, at: &[Site]) -> Result<(usize, Log), String> {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let begun = case.begin(dir);
    let mut deaths = 0;
    for site in at {
        let (ended, _) = trace::run(case.child(dir), dir, Some((site, Fault::Kill)));
        match ended {
            Ended::Killed => deaths += 1,
            Ended::Said(said) if said.starts_with("ENDED") => {}
            Ended::Said(said) => return Err(said),
        }
        case.either(dir, &begun)?;
    }
    let (ended, log) = trace::run(case.child(dir), dir, None);
    if !matches!(&ended, Ended::Said(said) if said.starts_with("ENDED")) {
        return Err(format!("the recovery: {ended:?}"));
    }
    case.ended(dir, &begun).map_err(|problem| format!("{problem}; the recovery {ended:?}"))?;
    Ok((deaths, log))
}

/// Lets one call fail and looks at everything. `false` where the call was not reached.
fn failing(case: &Case, site: &Site, error: &'static str) -> Result<bool, String> {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let begun = case.begin(dir);
    let (ended, log) = trace::run(case.child(dir), dir, Some((site, Fault::Error(error))));
    let Ended::Said(said) = ended else { return Err("killed".to_owned()) };
    let about = |problem: String| format!("{problem}; {said}; {:?}", log.injected);
    case.either(dir, &begun).map_err(about)?;
    if log.injected.is_empty() {
        // The threads ran in another order than in the survey: what failed was no call on a file. A lost wake-up of
        // theirs, which only a test can make, leaves them asleep.
        return Ok(false);
    }
    if said.starts_with("ENDED") {
        // What could not be removed is removed after the next upgrade.
        let removal = site.call.starts_with("unlink") || site.call == "rmdir";
        let record = match at_rest(dir, case.sort) {
            Err(problem) if removal && problem.starts_with("left behind") => record(dir, case.sort).unwrap(),
            rests => rests.map_err(about)?,
        };
        let last = record.last.as_ref().map(|last| last.outcome);
        let well = [Outcome::Succeeded, Outcome::RolledBack, Outcome::FailedUnchanged];
        if !last.is_some_and(|last| well.contains(&last)) {
            return Err(about(format!("it ended as {last:?}")));
        }
        let new = last == Some(Outcome::Succeeded);
        if of_state(&record.current) != begun.ways[usize::from(new)] {
            return Err(about(format!("{last:?} with {:?}", record.current)));
        }
    } else if !said.starts_with("REFUSED") && !said.starts_with("NOT STARTED") {
        return Err(about("it did not end".to_owned()));
    }
    case.further(dir).map_err(about)?;
    Ok(!log.injected.is_empty())
}

/// Does `work` with each of `all`, three at a time; collects what went wrong.
pub fn each<T: Send, R: Send>(all: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let (queue, results) = (Mutex::new(all.into_iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some(next) = next else { return };
                    let result = work(next);
                    results.lock().unwrap().push(result);
                }
            });
        }
    });
    results.into_inner().unwrap()
}

/// Whether the whole matrix is to be walked.
pub fn endures() -> bool {
    std::env::var_os("UPFLEET_ENDURE").is_some()
}

/// Every `all.len() / count`th, beginning at a place that the seed gives.
pub fn selection<T>(all: Vec<T>, count: usize, seed: usize) -> Vec<T> {
    let step = (all.len() / count.max(1)).max(1);
    all.into_iter().skip(seed % step).step_by(step).collect()
}

/// The cases whose names a person wants, all of them else.
fn wanted() -> Vec<Case> {
    let only = std::env::var("UPFLEET_ONLY").unwrap_or_default();
    cases()
        .into_iter()
        .filter(|case| only.is_empty() || only.split(',').any(|name| name == case.name))
        .collect()
}

/// How many of the matrix are walked; a person may say.
pub fn count(endured: usize, sampled: usize) -> usize {
    let said = std::env::var("UPFLEET_COUNT").ok().and_then(|count| count.parse().ok());
    said.unwrap_or(if endures() { endured } else { sampled })
}

fn sites() -> Vec<(Case, Site)> {
    let surveyed = each(wanted(), |case| {
        let sites = case.survey();
        println!("{}: {} calls", case.name, sites.len());
        sites.into_iter().map(move |site| (case.clone(), site)).collect::<Vec<_>>()
    });
    let mut all: Vec<(Case, Site)> = surveyed.into_iter().flatten().collect();
    all.sort_by(|(a, x), (b, y)| (a.name, x).cmp(&(b.name, y)));
    all
}

/// Says what went wrong and fails, if anything did.
pub fn fail_on(problems: &[String]) {
    for problem in problems {
        println!("FAILED {problem}");
    }
    assert!(problems.is_empty(), "{} failed, the first: {}", problems.len(), problems[0]);
}

/// R1.
#[test]
fn killed_at_a_system_call_it_ends_old_or_new() {
    if !trace::possible("killed_at_a_system_call") {
        return;
    }
    let cuts = selection(sites(), count(usize::MAX, 24), 3);
    let results = each(cuts, |(case, site)| {
        killed(&case, std::slice::from_ref(&site))
            .map_err(|problem| format!("{} {site:?}: {problem}", case.name))
    });
    let problems: Vec<String> = results.iter().filter_map(|result| result.as_ref().err().cloned()).collect();
    let died =
        results.iter().filter_map(|result| result.as_ref().ok()).map(|(deaths, _)| deaths).sum::<usize>();
    println!("\nfigure: r1_kills_at_system_calls {died} of {}, {} failed", results.len(), problems.len());
    fail_on(&problems);
}

/// R2.
#[test]
fn killed_again_at_a_system_call_of_the_recovery_it_ends_old_or_new() {
    if !trace::possible("killed_again_at_a_system_call") {
        return;
    }
    let runs = count(2_100, 8);
    let firsts = sites();
    let each_of = if runs > 1_000 { 4 } else { 1 };
    let firsts = selection(firsts, runs / each_of, 5);
    let results = each(firsts, |(case, first)| {
        let about = |problem: String| format!("{} {first:?}: {problem}", case.name);
        let Ok((_, log)) = killed(&case, std::slice::from_ref(&first)) else { return (0, vec![]) };
        let (mut twice, mut problems) = (0, vec![]);
        for second in selection(log.sites, each_of, first.n) {
            match killed(&case, &[first.clone(), second.clone()]) {
                Ok((deaths, _)) => twice += usize::from(deaths == 2),
                Err(problem) => problems.push(about(format!("{second:?}: {problem}"))),
            }
        }
        (twice, problems)
    });
    let twice: usize = results.iter().map(|(twice, _)| twice).sum();
    let problems: Vec<String> = results.into_iter().flat_map(|(_, problems)| problems).collect();
    println!("\nfigure: r2_kills_in_the_recovery {twice} of two deaths, {} failed", problems.len());
    fail_on(&problems);
}

/// R4.
#[test]
fn a_failing_system_call_leaves_old_or_new() {
    if !trace::possible("a_failing_system_call") {
        return;
    }
    let both = |(case, site): (Case, Site)| [(case.clone(), site.clone(), "EIO"), (case, site, "ENOSPC")];
    let all = sites().into_iter().flat_map(both).collect();
    let results = each(selection(all, count(usize::MAX, 24), 7), |(case, site, error)| {
        failing(&case, &site, error).map_err(|problem| format!("{} {site:?} {error}: {problem}", case.name))
    });
    let problems: Vec<String> = results.iter().filter_map(|result| result.as_ref().err().cloned()).collect();
    let reached = results.iter().filter(|result| **result == Ok(true)).count();
    println!("\nfigure: r4_failing_system_calls {reached} of {}, {} failed", results.len(), problems.len());
    fail_on(&problems);
}
