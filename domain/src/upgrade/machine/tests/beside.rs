//! The handover against the simulated node, in sequences that a person can read.

use std::time::Duration;

use super::node::{Node, digest, install, offer, stack};
use crate::{
    order::Target,
    reason::ReasonCode,
    time::Time,
    upgrade::{
        Outcome,
        event::Event,
        interruption::Interruption,
        policy::{Policy, ProbePolicy},
        soak::Watch,
        step::{Probed, Process},
    },
};

fn handing_over() -> Policy {
    Policy { patchable: true, live: true, handover: true, ..Policy::default() }
}

fn settled() -> Node {
    let mut node = Node::settled_with(handing_over());
    node.done.clear();
    node
}

/// What the last upgrade says it cost, in its report and in the history.
fn cost(node: &Node, upgrade: &str) -> Option<Interruption> {
    let report = node.log[&upgrade.parse().unwrap()].last().unwrap();
    let entry = node.history.iter().find(|entry| entry.upgrade.as_ref() == Some(&report.upgrade)).unwrap();
    assert_eq!(report.interruption, entry.interruption);
    report.interruption.clone()
}

#[test]
fn the_new_process_is_judged_beside_the_old_one_which_is_then_drained() {
    let mut node = settled();
    assert_eq!(cost(&node, "u1"), None, "a first install interrupts nothing");
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    node.run_to("drain");
    assert_eq!((node.process.pid(), node.process.digest()), (Some(101), Some(digest(1))));
    assert_eq!(node.machine.reason().unwrap().code, ReasonCode::Draining);
    assert_eq!(node.run("u2"), Outcome::Succeeded);
    let steps: Vec<&str> = node.done.iter().copied().filter(|step| *step != "probe").collect();
    assert_eq!(steps.join(" "), "check fetch verify stage back up switch start beside drain inspect prune");
    assert_eq!((node.process.pid(), node.process.digest()), (Some(102), Some(digest(2))));
    assert_eq!(cost(&node, "u2"), Some(Interruption { handed_over: true, down_ms: 0, why: None }));
    // The soak counts from when it was alone.
    assert!(node.done.iter().rev().take_while(|step| **step != "drain").any(|step| *step == "probe"));
}

#[test]
fn a_bad_release_never_touches_the_old_process() {
    for crash in [false, true] {
        let mut node = settled();
        node.unhealthy.insert(digest(2));
        node.send(Event::Order(Box::new(install(2, "u2", 2))));
        if crash {
            node.run_to("probe");
            node.fall_beside();
        }
        assert_eq!(node.run("u2"), Outcome::RolledBack);
        assert_eq!((node.process.pid(), node.process.digest()), (Some(101), Some(digest(1))));
        assert_eq!((node.installed, node.beside.is_some()), (Some(digest(1)), false));
        assert!(
            node.done.contains(&"dismiss") && !node.done.contains(&"stop") && !node.done.contains(&"drain")
        );
        assert_eq!(cost(&node, "u2"), None, "nobody was interrupted");
        assert_eq!(node.machine.record().failed, [digest(2)]);
    }
}

#[test]
fn after_the_drain_a_rollback_is_a_handover_too() {
    let mut node = settled();
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    node.run_to("drain");
    node.answer_one();
    node.send(Event::Order(Box::new(offer(3, "u2", Target::Stay))));
    assert_eq!(node.run("u2"), Outcome::RolledBack);
    assert_eq!((node.process.pid(), node.process.digest()), (Some(103), Some(digest(1))));
    assert!(!node.done.contains(&"stop"), "{:?}", node.done);
    assert_eq!(cost(&node, "u2").unwrap().down_ms, 0);
    // An order to go back is one as well.
    node.send(Event::Order(Box::new(install(4, "u4", 4))));
    assert_eq!(node.run("u4"), Outcome::Succeeded);
    let to = node.machine.record().kept[0].clone();
    node.send(Event::Order(Box::new(offer(5, "u5", Target::Restore(to)))));
    assert_eq!(node.run("u5"), Outcome::Succeeded);
    assert!(!node.done.contains(&"stop"), "{:?}", node.done);
}

#[test]
fn what_can_t_stand_beside_is_stopped_and_started_and_the_result_says_why() {
    let mut node = settled();
    node.no_sockets = true;
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    node.run_to("start");
    node.now = Time(node.now.0 + 300);
    assert_eq!(node.run("u2"), Outcome::Succeeded);
    let cost = cost(&node, "u2").unwrap();
    assert_eq!((cost.handed_over, cost.down_ms), (false, 300));
    assert_eq!(cost.why.unwrap().code, ReasonCode::HandoverUnavailable);
}

#[test]
fn the_time_without_an_answer_is_measured_both_ways() {
    let probes = vec![ProbePolicy { interval: Duration::from_millis(500), successes: 2, failures: 2 }];
    let mut node = Node::settled_with(Policy { probes, ..Policy::default() });
    node.done.clear();
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    node.run_to("stop");
    node.now = Time(node.now.0 + 100);
    node.run_to("start");
    node.now = Time(node.now.0 + 20);
    // The agent dies in the middle: the time goes on.
    node.crash();
    assert_eq!(node.run("u2"), Outcome::Succeeded);
    assert_eq!(cost(&node, "u2"), Some(Interruption { handed_over: false, down_ms: 120, why: None }));
    node.unhealthy.insert(digest(3));
    node.send(Event::Order(Box::new(install(3, "u3", 3))));
    assert_eq!(node.run("u3"), Outcome::RolledBack);
    assert!(cost(&node, "u3").unwrap().down_ms >= 500, "until the old one answered");
}

/// Neither of two probes passes at once: what counts is the one that takes longer, from its first pass on.
#[test]
fn the_slowest_probe_ends_the_time_without_an_answer() {
    let probe =
        |interval| ProbePolicy { interval: Duration::from_millis(interval), successes: 3, failures: 9 };
    let policy = Policy { probes: vec![probe(100), probe(1000)], ..Policy::default() };
    let mut watch = Watch::new(&policy, Duration::ZERO, true, Some(7), Time(0));
    let probed = |ok: bool| Probed {
        result: if ok { Ok(()) } else { Err("no".to_owned()) },
        process: Process::Running { pid: 7, digest: digest(1), stack: None },
        evidence: None,
        draining: false,
    };
    let answers = [(0, true), (1, false), (0, true), (0, true), (1, true), (1, true), (1, true)];
    for (time, (index, ok)) in (1..).zip(answers) {
        assert_eq!(watch.answers_since(), None, "{time}");
        watch.note(&policy, index, &probed(ok), Time(time));
    }
    assert_eq!(watch.answers_since(), Some(Time(5)));
    let mut any =
        Watch::new(&Policy { any_probe: true, ..policy.clone() }, Duration::ZERO, true, Some(7), Time(0));
    for time in 1..4 {
        any.note(&Policy { any_probe: true, ..policy.clone() }, 1, &probed(true), Time(time));
    }
    assert_eq!(any.answers_since(), Some(Time(1)));
}

/// What has taken over and then ends is not "handed over, down 0".
#[test]
fn what_falls_after_it_took_over_was_down() {
    let mut node = settled();
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    node.run_to("drain");
    node.answer_one();
    node.process = Process::Down { exit: "exit status 1".to_owned() };
    node.answer_one();
    node.now = Time(node.now.0 + 700);
    assert_eq!(node.run("u2"), Outcome::RolledBack);
    let cost = cost(&node, "u2").unwrap();
    assert!(cost.handed_over && cost.down_ms >= 700, "{cost}");
}

/// While the old process takes its time, the new one is watched, and the way back is open.
#[test]
fn the_new_process_is_watched_while_the_old_one_finishes() {
    let mut node = settled();
    node.finishes = 1000;
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    node.run_to("drain");
    for _ in 0..20 {
        if !node.answer_one() {
            node.advance();
        }
    }
    assert_eq!(node.machine.reason().unwrap().code, ReasonCode::Draining);
    assert_eq!((node.outcome("u2"), node.machine.soaked_at()), (None, None));
    let left = node.finishing;
    node.unhealthy.insert(digest(2));
    node.run_to("start beside");
    assert!(left - node.finishing < 10, "the old process was waited for");
    (node.finishes, node.finishing) = (2, 2);
    assert_eq!(node.run("u2"), Outcome::RolledBack);
    assert_eq!(node.machine.record().failed, [digest(2)]);
}

/// What it was healthy for beside the old one, and while that finished, is not what the soak time is about.
#[test]
fn without_a_soak_time_it_is_asked_again_once_it_is_alone() {
    let mut node = settled();
    node.send(Event::Configured(Box::new(Policy { soak: Duration::ZERO, ..handing_over() })));
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    node.run_to("drain");
    node.answer_one();
    assert_eq!(node.finishing, 2);
    assert_eq!(node.run("u2"), Outcome::Succeeded);
    let after = node.done.iter().rev().take_while(|step| **step != "drain");
    let successes = handing_over().probes[0].successes as usize;
    // Two while the old one finished, one that found it gone, and then as often as at the beginning.
    assert_eq!(after.filter(|step| **step == "probe").count(), 2 + 1 + successes);
}

/// One that ends before the old one was asked to is at fault, as one that ends later.
#[test]
fn what_ends_before_it_takes_over_is_at_fault() {
    let mut node = settled();
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    node.run_to("drain");
    node.fall_beside();
    assert_eq!(node.run("u2"), Outcome::RolledBack);
    assert_eq!(node.process.pid(), Some(101));
    assert_eq!(node.machine.record().failed, [digest(2)]);
}

/// The file is back before the other process is asked to end, so that the one that stays can be started again.
#[test]
fn the_old_file_is_back_before_the_new_process_is_dismissed() {
    let mut node = settled();
    node.unhealthy.insert(digest(2));
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    node.run_to("dismiss");
    assert_eq!(node.installed, Some(digest(1)));
    node.faults.extend([("dismiss", ReasonCode::StopFailed); 3]);
    assert_eq!(node.run("u2"), Outcome::RollbackFailed);
    assert_eq!((node.installed, node.process.pid()), (Some(digest(1)), Some(101)));
}

/// An agent that comes back in the middle of putting back may not see at once what stands beside.
#[test]
fn what_a_restart_did_not_see_is_dismissed_before_the_way_back_ends() {
    let mut node = settled();
    node.unhealthy.insert(digest(2));
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    node.run_to("dismiss");
    let hidden = node.beside.take();
    node.crash();
    node.answer_one();
    node.beside = hidden;
    assert_eq!(node.run("u2"), Outcome::RolledBack);
    assert!(node.beside.is_none(), "it still stands there");
}

#[test]
fn patches_are_handed_over_as_well() {
    let mut node = settled();
    node.send(Event::Order(Box::new(stack(2, "u2", 1, &[1]))));
    assert_eq!(node.run("u2"), Outcome::Succeeded);
    assert!(node.done.contains(&"drain") && !node.done.contains(&"stop"), "{:?}", node.done);
    assert_eq!(node.process.pid(), Some(102));
}

/// What is healthy alone and not beside another one, and a fault of each new step on the way back.
#[test]
fn a_rollback_beside_that_fails_is_made_by_stop_and_start() {
    for fault in ["start beside", "drain"] {
        let mut node = settled();
        node.send(Event::Order(Box::new(install(2, "u2", 2))));
        node.run_to("drain");
        node.answer_one();
        node.faults.push((fault, ReasonCode::StartFailed));
        node.send(Event::Order(Box::new(offer(3, "u2", Target::Stay))));
        assert_eq!(node.run("u2"), Outcome::RolledBack, "{fault}");
        assert_eq!(node.process.digest(), Some(digest(1)));
        assert!(node.done.contains(&"stop") && node.beside.is_none());
    }
}

/// As `a_crash_at_any_step_ends_in_the_new_state_or_the_old`, with the old process ending meanwhile or not.
#[test]
fn a_crash_at_any_step_of_a_handover_ends_in_the_new_state_or_the_old() {
    for (bad, fall) in [(false, false), (true, false), (false, true), (true, true)] {
        for first in 0..26 {
            for second in 0..8 {
                let mut node = settled();
                if bad {
                    node.unhealthy.insert(digest(2));
                }
                node.send(Event::Order(Box::new(install(2, "u2", 2))));
                for count in [first, second] {
                    for _ in 0..count {
                        if node.outcome("u2").is_none() && !node.answer_one() {
                            node.advance();
                        }
                    }
                    if let Some((_, step)) = node.work.pop_front().filter(|_| count % 2 == 1) {
                        let _ = node.perform(&step.kind);
                    }
                    if fall {
                        node.fall();
                    }
                    node.crash();
                }
                let expected = if bad { Outcome::RolledBack } else { Outcome::Succeeded };
                assert_eq!(
                    node.run("u2"),
                    expected,
                    "bad {bad}, fall {fall}, crashes at {first} and {second}"
                );
                while node.answer_one() {}
                let runs = if bad { digest(1) } else { digest(2) };
                assert_eq!(node.process.digest(), Some(runs));
                assert_eq!(node.machine.record().current.artifact(), Some(runs));
                assert!(node.beside.is_none());
                let untouched = bad && !fall;
                assert!(!untouched || node.process.pid() == Some(101), "the old process was touched");
            }
        }
    }
}

/// A journal that was lost in the midst of a handover leaves a process that nobody knows.
#[test]
fn a_stray_process_is_dismissed() {
    let mut node = settled();
    let process = Process::Running { pid: 77, digest: digest(2), stack: None };
    node.beside = Some((process, vec![]));
    node.crash();
    while node.answer_one() {}
    assert!(node.beside.is_none());
    assert_eq!(node.process.pid(), Some(101));
}
