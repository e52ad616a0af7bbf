//! The machine against a simulated node, in sequences that a person can read.

mod beside;
mod itself;
mod node;
mod random;
mod stacks;

use std::collections::BTreeSet;

use node::{Node, digest, install, offer};

use crate::{
    order::{HoldOrder, Target},
    reason::ReasonCode,
    state::ComponentState,
    time::Time,
    upgrade::{Outcome, Phase, event::Event, step::Process},
};

#[test]
fn a_first_install_and_an_upgrade_succeed() {
    let mut node = Node::settled();
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    assert_eq!(node.run("u2"), Outcome::Succeeded);
    let steps = "check fetch verify stage back up switch stop start";
    assert!(node.done.join(" ").starts_with(steps), "{:?}", node.done);
    assert_eq!(node.process.digest(), Some(digest(2)));
    assert_eq!(node.machine.record().kept[0].artifact(), Some(digest(1)));
    assert_eq!(node.versions, BTreeSet::from([digest(1), digest(2)]));
}

#[test]
fn an_unhealthy_version_is_put_back_and_not_tried_again() {
    let mut node = Node::settled();
    node.unhealthy.insert(digest(2));
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    assert_eq!(node.run("u2"), Outcome::RolledBack);
    assert_eq!((node.installed, node.process.digest()), (Some(digest(1)), Some(digest(1))));
    assert_eq!(node.versions, BTreeSet::from([digest(1)]));
    node.send(Event::Order(Box::new(install(3, "u3", 2))));
    assert_eq!(node.answers.last().unwrap().as_ref().unwrap_err().code, ReasonCode::FailedDigest);
    let mut again = install(3, "u3", 2);
    again.desired.allow_failed_digest = true;
    node.unhealthy.clear();
    node.send(Event::Order(Box::new(again)));
    assert_eq!(node.run("u3"), Outcome::Succeeded);
    assert!(node.machine.record().failed.is_empty());
}

#[test]
fn a_first_install_that_fails_is_removed_again() {
    let mut node = Node::new(None);
    node.unhealthy.insert(digest(1));
    node.send(Event::Order(Box::new(install(1, "u1", 1))));
    assert_eq!(node.run("u1"), Outcome::RolledBack);
    assert_eq!((node.installed, node.process.digest()), (None, None));
}

#[test]
fn what_was_there_is_adopted_and_can_be_restored() {
    let mut node = Node::new(Some(digest(9)));
    node.send(Event::Order(Box::new(install(1, "u1", 1))));
    assert_eq!(node.run("u1"), Outcome::Succeeded);
    let old = ComponentState::unmanaged(digest(9));
    assert_eq!(node.machine.record().kept, vec![old.clone()]);
    node.send(Event::Order(Box::new(offer(2, "u2", Target::Restore(old.clone())))));
    assert_eq!(node.run("u2"), Outcome::Succeeded);
    assert_eq!(node.machine.record().current, old);
}

#[test]
fn what_the_agent_did_not_run_is_put_back_and_not_started() {
    let mut node = Node::new(Some(digest(9)));
    node.unhealthy.insert(digest(1));
    node.send(Event::Order(Box::new(install(1, "u1", 1))));
    assert_eq!(node.run("u1"), Outcome::RolledBack);
    assert_eq!((node.installed, node.process.digest()), (Some(digest(9)), None));
    node.crash();
    while node.answer_one() {}
    assert_eq!(node.process.digest(), None);
}

#[test]
fn the_same_digest_is_current_already_unless_something_else_runs() {
    let mut node = Node::settled();
    node.send(Event::Order(Box::new(install(2, "u2", 1))));
    assert_eq!(node.run("u2"), Outcome::AlreadyCurrent);
    node.process = Process::Running { pid: 1, digest: digest(7), stack: None };
    node.send(Event::Order(Box::new(install(3, "u3", 1))));
    assert_eq!(node.run("u3"), Outcome::Succeeded);
    assert_eq!(node.process.digest(), Some(digest(1)));
}

#[test]
fn cancel_before_the_switch_and_after_it() {
    for (step, outcome) in [
        ("check", Outcome::Cancelled),
        ("fetch", Outcome::Cancelled),
        ("stage", Outcome::Cancelled),
        ("switch", Outcome::RolledBack),
        ("start", Outcome::RolledBack),
        ("probe", Outcome::RolledBack),
        ("inspect", Outcome::RolledBack),
        ("prune", Outcome::Succeeded),
    ] {
        let mut node = Node::settled();
        node.send(Event::Order(Box::new(install(2, "u2", 2))));
        node.run_to(step);
        node.send(Event::Order(Box::new(offer(3, "u2", Target::Stay))));
        assert_eq!(node.run("u2"), outcome, "cancelled before {step}");
        if outcome == Outcome::RolledBack {
            assert_eq!(node.reason("u2"), ReasonCode::CancelledAfterSwitch);
            assert_eq!(node.process.digest(), Some(digest(1)));
            assert!(node.machine.record().failed.is_empty());
        }
    }
}

#[test]
fn a_cancel_for_an_upgrade_that_never_came_is_answered() {
    let mut node = Node::settled();
    node.send(Event::Order(Box::new(offer(2, "u2", Target::Stay))));
    assert_eq!(node.outcome("u2"), Some(Outcome::Cancelled));
    node.send(Event::Order(Box::new(offer(3, "u2", Target::Stay))));
    assert_eq!(node.log[&"u2".parse().unwrap()].len(), 1);
}

#[test]
fn an_upgrade_that_ended_while_it_waited_does_not_begin_later() {
    let mut node = Node::settled();
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    node.send(Event::Order(Box::new(install(3, "u3", 3))));
    node.send(Event::Order(Box::new(offer(4, "u3", Target::Stay))));
    assert_eq!(node.run("u2"), Outcome::Superseded);
    node.send(Event::Order(Box::new(install(5, "u3", 3))));
    assert_eq!(node.outcome("u3"), Some(Outcome::Cancelled));
    assert!(node.machine.record().passage.is_none());
}

#[test]
fn a_newer_order_supersedes_before_the_switch_and_waits_after_it() {
    let mut node = Node::settled();
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    node.run_to("fetch");
    node.send(Event::Order(Box::new(install(3, "u3", 3))));
    assert_eq!(node.run("u2"), Outcome::Superseded);
    node.run_to("start");
    node.send(Event::Order(Box::new(install(4, "u4", 4))));
    node.send(Event::Order(Box::new(install(5, "u5", 5))));
    assert_eq!(node.run("u3"), Outcome::Succeeded);
    assert_eq!(node.outcome("u4"), Some(Outcome::Superseded));
    assert_eq!(node.run("u5"), Outcome::Succeeded);
}

#[test]
fn it_waits_in_staged_until_the_order_goes_on() {
    let mut node = Node::settled();
    let mut order = install(2, "u2", 2);
    order.desired.hold_before = Some(Phase::Activating);
    node.send(Event::Order(Box::new(order)));
    while node.answer_one() {}
    let passage = node.machine.record().passage.as_ref().unwrap();
    assert_eq!((passage.phase, passage.reason.code), (Phase::Staged, ReasonCode::HeldBefore));
    node.crash();
    while node.answer_one() {}
    assert_eq!(node.installed, Some(digest(1)));
    node.send(Event::Order(Box::new(install(3, "u2", 2))));
    assert_eq!(node.run("u2"), Outcome::Succeeded);
}

#[test]
fn refusals() {
    let mut node = Node::settled();
    let code = |node: &Node| node.answers.last().unwrap().as_ref().unwrap_err().code;
    node.send(Event::Order(Box::new(install(0, "u0", 2))));
    assert_eq!(code(&node), ReasonCode::StaleGeneration);
    node.send(Event::Order(Box::new(install(2, "u2", 0))));
    assert_eq!(code(&node), ReasonCode::DowngradeRefused);
    node.send(Event::Order(Box::new(offer(2, "u2", Target::Restore(ComponentState::unmanaged(digest(77)))))));
    assert_eq!(code(&node), ReasonCode::StateNotKept);
    let hold = HoldOrder { hold: true, generation: 1, message: "audit".into(), actor: "anna".into() };
    node.send(Event::Hold(hold.clone()));
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    assert_eq!(code(&node), ReasonCode::ComponentHeld);
    node.send(Event::Hold(HoldOrder { hold: false, generation: 2, ..hold }));
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    assert_eq!(node.run("u2"), Outcome::Succeeded);
}

#[test]
fn an_order_too_late_expires() {
    let mut node = Node::settled();
    let mut order = install(2, "u2", 2);
    order.desired.not_after = Some(Time(5));
    node.send(Event::Order(Box::new(order)));
    assert_eq!(node.outcome("u2"), Some(Outcome::Expired));
}

#[test]
fn faults_before_the_switch_leave_the_node_as_it_was() {
    for step in ["check", "fetch", "verify", "stage", "back up"] {
        let mut node = Node::settled();
        node.faults.push((step, ReasonCode::StageFailed));
        node.send(Event::Order(Box::new(install(2, "u2", 2))));
        assert_eq!(node.run("u2"), Outcome::FailedUnchanged, "{step}");
        assert_eq!((node.installed, node.process.pid()), (Some(digest(1)), Some(101)));
        assert_eq!(node.versions.len(), 1, "{step}");
    }
}

#[test]
fn a_failed_switch_costs_no_restart() {
    let mut node = Node::settled();
    node.faults.push(("switch", ReasonCode::SwapFailed));
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    assert_eq!(node.run("u2"), Outcome::RolledBack);
    assert_eq!(node.process.pid(), Some(101));
}

#[test]
fn a_damaged_way_back_leads_to_the_one_before_or_to_a_person() {
    let mut node = Node::settled();
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    node.run("u2");
    node.unhealthy.insert(digest(3));
    node.damaged.insert(digest(2));
    node.send(Event::Order(Box::new(install(3, "u3", 3))));
    assert_eq!(node.run("u3"), Outcome::RolledBack);
    assert_eq!(node.reason("u3"), ReasonCode::RolledBackFurther);
    assert_eq!(node.machine.record().current.artifact(), Some(digest(1)));
    node.damaged.insert(digest(1));
    node.unhealthy.insert(digest(4));
    node.send(Event::Order(Box::new(install(4, "u4", 4))));
    assert_eq!(node.run("u4"), Outcome::RollbackFailed);
    assert_eq!(node.machine.record().current.artifact(), Some(digest(4)), "the record says what is there");
    // What is broken there is mended by a further release, and by nothing else.
    node.broken_baseline = true;
    node.send(Event::Order(Box::new(install(5, "u5", 5))));
    assert_eq!(node.run("u5"), Outcome::Succeeded);
    node.send(Event::Order(Box::new(install(6, "u6", 6))));
    assert_eq!(node.run("u6"), Outcome::FailedUnchanged);
    assert_eq!(node.reason("u6"), ReasonCode::BaselineUnhealthy);
}

#[test]
fn a_local_rollback_holds_the_component() {
    let mut node = Node::settled();
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    node.run("u2");
    node.send(Event::LocalRollback { to: None, message: "slow".into() });
    while node.answer_one() || (node.machine.record().passage.is_some() && node.advance()) {}
    assert_eq!(node.machine.inventory().current.artifact(), Some(digest(1)));
    assert_eq!(node.machine.inventory().changer, "local");
    node.send(Event::Order(Box::new(install(3, "u3", 2))));
    assert_eq!(node.answers.last().unwrap().as_ref().unwrap_err().code, ReasonCode::ComponentHeld);
}

#[test]
fn a_local_rollback_goes_to_the_state_that_was_named_or_nowhere() {
    let mut node = Node::settled();
    for number in [2, 3] {
        node.send(Event::Order(Box::new(install(number.into(), &format!("u{number}"), number))));
        node.run(&format!("u{number}"));
    }
    node.send(Event::LocalRollback { to: Some(ComponentState::unmanaged(digest(66))), message: "?".into() });
    assert_eq!(node.answers.last().unwrap().as_ref().unwrap_err().code, ReasonCode::StateNotKept);
    assert_eq!(node.machine.inventory().hold, None, "a refused rollback holds nothing");
    let kept = &node.machine.record().kept;
    let first = kept.iter().find(|state| state.artifact() == Some(digest(1))).cloned();
    node.send(Event::Order(Box::new(install(4, "u4", 4))));
    node.send(Event::LocalRollback { to: first, message: "back".into() });
    while node.answer_one() || (node.machine.record().passage.is_some() && node.advance()) {}
    assert_eq!(node.machine.inventory().current.artifact(), Some(digest(1)));
}

#[test]
fn drift_is_shown_and_never_mended() {
    let mut node = Node::settled();
    node.installed = Some(digest(66));
    node.send(Event::Look);
    while node.answer_one() {}
    assert_eq!(node.machine.inventory().drift.unwrap().code, ReasonCode::Drifted);
    assert_eq!(node.installed, Some(digest(66)));
    node.installed = Some(digest(1));
    node.send(Event::Look);
    while node.answer_one() {}
    assert_eq!(node.machine.inventory().drift, None);
}

#[test]
fn a_reboot_starts_what_ran() {
    let mut node = Node::settled();
    node.process = Process::NotRun;
    node.crash();
    while node.answer_one() {}
    assert_eq!(node.process.digest(), Some(digest(1)));
}

/// Crashes once before and once after every step of a good and of a bad upgrade, and again in the recovery.
#[test]
fn a_crash_at_any_step_ends_in_the_new_state_or_the_old() {
    for bad in [false, true] {
        for first in 0..26 {
            for second in 0..8 {
                let mut node = Node::settled();
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
                    // The step is done but not recorded.
                    if let Some((_, step)) = node.work.pop_front().filter(|_| count % 2 == 1) {
                        let _ = node.perform(&step.kind);
                    }
                    node.crash();
                }
                let expected = if bad { Outcome::RolledBack } else { Outcome::Succeeded };
                assert_eq!(node.run("u2"), expected, "bad {bad}, crashes at {first} and {second}");
                while node.answer_one() {}
                let runs = if bad { digest(1) } else { digest(2) };
                assert_eq!(node.process.digest(), Some(runs));
                assert_eq!(node.machine.record().current.artifact(), Some(runs));
            }
        }
    }
}

#[test]
fn the_controller_does_not_take_back_a_local_rollback_that_waits() {
    let mut node = Node::settled();
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    assert_eq!(node.run("u2"), Outcome::Succeeded);
    node.send(Event::Order(Box::new(install(3, "u3", 3))));
    node.run_to("stage");
    let to = node.machine.record().kept.first().cloned();
    node.send(Event::LocalRollback { to, message: "back".into() });
    node.send(Event::Order(Box::new(offer(4, "u3", Target::Stay))));
    while node.answer_one() || (node.machine.record().passage.is_some() && node.advance()) {}
    assert_eq!((node.installed, node.process.digest()), (Some(digest(1)), Some(digest(1))));
}

/// Version and sequence of what is put back are the node's own, whatever the order calls it: else an order
/// without a manifest could lower the sequence by which downgrades are told.
#[test]
fn an_order_to_restore_does_not_rename_what_is_kept() {
    let mut node = Node::settled();
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    assert_eq!(node.run("u2"), Outcome::Succeeded);
    for (number, upgrade, n) in [(3, "u3", 2), (4, "u4", 1)] {
        let renamed = crate::state::ReleaseRef { sequence: 0, ..node::release(n) };
        let target = Target::Restore(ComponentState::release(renamed));
        node.send(Event::Order(Box::new(offer(number, upgrade, target))));
        node.run(upgrade);
        assert_eq!(node.machine.record().current, ComponentState::release(node::release(n)));
    }
}

#[test]
fn what_came_into_an_empty_place_meanwhile_is_not_written_over() {
    let mut node = Node::new(None);
    node.send(Event::Order(Box::new(install(1, "u1", 1))));
    node.run_to("stage");
    node.installed = Some(digest(9));
    assert_eq!(node.run("u1"), Outcome::FailedUnchanged);
    assert_eq!((node.reason("u1"), node.installed), (ReasonCode::Drifted, Some(digest(9))));
}

/// While an ended upgrade is tidied up, its order's own limit wakes nobody: that would spin.
#[test]
fn a_limit_that_passes_after_the_end_wakes_nobody() {
    let mut node = Node::settled();
    let mut order = install(2, "u2", 2);
    order.desired.hold_before = Some(Phase::Pending);
    order.desired.not_after = Some(Time(node.now.0 + 10));
    node.send(Event::Order(Box::new(order)));
    node.send(Event::Order(Box::new(offer(3, "u2", Target::Stay))));
    node.now = Time(node.now.0 + 20);
    assert!(node.machine.record().passage.is_some());
    assert!(node.machine.wake_at().is_some_and(|at| at > node.now));
}

#[test]
fn a_lost_journal_does_not_cost_the_ways_back() {
    let mut node = Node::settled();
    node.send(Event::Order(Box::new(install(2, "u2", 2))));
    assert_eq!(node.run("u2"), Outcome::Succeeded);
    let blank = crate::upgrade::record::Record::new("web".parse().unwrap());
    node.machine = crate::upgrade::machine::Machine::new(node.machine.policy().clone(), blank);
    node.send(Event::Started);
    node.send(Event::Order(Box::new(install(3, "u3", 3))));
    assert_eq!(node.run("u3"), Outcome::Succeeded);
    assert_eq!(node.versions, BTreeSet::from([digest(1), digest(2), digest(3)]));
    let target = Target::Restore(ComponentState::unmanaged(digest(1)));
    node.send(Event::Order(Box::new(offer(4, "u4", target))));
    assert_eq!(node.run("u4"), Outcome::Succeeded);
}
