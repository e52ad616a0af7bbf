//! Patches, restarts with them, patches in the running JVM, bases with their stacks, and reloads.

use std::collections::BTreeSet;

use super::node::{Node, digest, install, live, offer, patch, spec, stack, state, with_patches};
use crate::{
    order::Target,
    reason::{Reason, ReasonCode},
    release::Kind,
    state::{Base, stack_digest},
    upgrade::{
        Outcome,
        event::{Event, Offer},
        policy::Policy,
        step::Process,
    },
};

fn order(node: &mut Node, offer: Offer) -> Option<ReasonCode> {
    node.send(Event::Order(Box::new(offer)));
    node.answers.last().unwrap().as_ref().err().map(|reason| reason.code)
}

fn carried_out(node: &mut Node, offer: Offer) -> Outcome {
    let upgrade = offer.desired.upgrade.clone().unwrap();
    assert_eq!(order(node, offer), None);
    node.run(upgrade.as_str())
}

fn settle(node: &mut Node) {
    while node.answer_one() || (node.machine.record().passage.is_some() && node.advance()) {}
}

/// T02: one patch, another, and both away again, one by one.
#[test]
fn patches_come_and_go_and_the_history_keeps_it() {
    let mut node = Node::settled();
    node.history.clear();
    let stacks: [&[u8]; 4] = [&[1], &[2, 1], &[1], &[]];
    for (index, patches) in stacks.into_iter().enumerate() {
        let number = index as u64 + 2;
        assert_eq!(
            carried_out(&mut node, stack(number, &format!("u{number}"), 1, patches)),
            Outcome::Succeeded
        );
        assert_eq!(node.machine.record().current, state(1, patches));
        assert_eq!(node.process.stack(), state(1, patches).stack());
        assert_eq!(node.in_force, state(1, patches).stack());
    }
    let history: Vec<(String, Outcome)> =
        node.history.iter().map(|entry| (entry.current.to_string(), entry.outcome)).collect();
    let expected = ["1.0.1+patch1", "1.0.1+patch2,1", "1.0.1+patch1", "1.0.1"];
    assert_eq!(history, expected.map(|text| (text.to_owned(), Outcome::Succeeded)));
    assert!(node.machine.record().kept.iter().any(|kept| *kept == state(1, &[2, 1])));
}

#[test]
fn the_steps_of_a_patch_and_of_a_base_with_its_stack() {
    let mut node = Node::settled();
    assert_eq!(carried_out(&mut node, stack(2, "u2", 1, &[1])), Outcome::Succeeded);
    let steps = "check fetch verify stage switch the stack stop start";
    assert!(node.done.join(" ").starts_with(steps), "{:?}", node.done);
    assert!(node.done.join(" ").ends_with("inspect prove prune"), "{:?}", node.done);
    let report = node.log[&"u2".parse().unwrap()].last().unwrap().clone();
    assert_eq!((report.reason.code, report.proof.unwrap().classes.len()), (ReasonCode::PatchProved, 1));
    node.done.clear();
    assert_eq!(carried_out(&mut node, with_patches(install(3, "u3", 2), &[3, 1])), Outcome::Succeeded);
    let steps = "check fetch fetch fetch verify stage verify stage verify stage check back up switch switch the stack \
                 stop start";
    assert!(node.done.join(" ").starts_with(steps), "{:?}", node.done);
    assert_eq!(node.machine.record().current, state(2, &[3, 1]));
    assert_eq!(
        node.versions,
        BTreeSet::from([digest(1), digest(2), digest(51), digest(53)]),
        "what kept states need stays"
    );
    // Removing a patch is no downgrade, nor is a kept state.
    node.done.clear();
    assert_eq!(carried_out(&mut node, offer(4, "u4", Target::Restore(state(1, &[1])))), Outcome::Succeeded);
    assert_eq!(node.machine.record().current, state(1, &[1]));
    let steps = "check verify kept verify kept check back up switch switch the stack stop start";
    assert!(node.done.join(" ").starts_with(steps), "{:?}", node.done);
}

#[test]
fn an_unhealthy_patch_is_put_back_and_alone_to_blame() {
    let mut node = Node::settled();
    assert_eq!(carried_out(&mut node, stack(2, "u2", 1, &[1])), Outcome::Succeeded);
    node.unhealthy.insert(patch(2).release.artifact);
    assert_eq!(carried_out(&mut node, stack(3, "u3", 1, &[2, 1])), Outcome::RolledBack);
    assert_eq!((node.layers.clone(), node.process.stack()), (state(1, &[1]).layers, state(1, &[1]).stack()));
    assert_eq!(node.machine.record().failed, [patch(2).release.artifact]);
    assert_eq!(order(&mut node, stack(4, "u4", 1, &[2])), Some(ReasonCode::FailedDigest));
    assert_eq!(carried_out(&mut node, stack(5, "u5", 1, &[3, 1])), Outcome::Succeeded);
    node.unhealthy.clear();
    let mut again = stack(6, "u6", 1, &[2, 1]);
    again.desired.allow_failed_digest = true;
    assert_eq!(carried_out(&mut node, again), Outcome::Succeeded);
    assert!(node.machine.record().failed.is_empty());
}

#[test]
fn a_base_that_fails_takes_its_stack_back_with_it() {
    let mut node = Node::settled();
    assert_eq!(carried_out(&mut node, stack(2, "u2", 1, &[2, 1])), Outcome::Succeeded);
    node.unhealthy.insert(digest(2));
    assert_eq!(carried_out(&mut node, with_patches(install(3, "u3", 2), &[1])), Outcome::RolledBack);
    assert_eq!((node.installed, node.layers.clone()), (Some(digest(1)), state(1, &[2, 1]).layers));
    assert_eq!(node.machine.record().current, state(1, &[2, 1]));
    assert_eq!(node.machine.record().failed, [digest(2)], "the patch was in force before");
}

/// Success is what the JVM says. What it does not say, or says otherwise, is put back.
#[test]
fn old_classes_and_silence_are_no_success() {
    for (silent, code) in [(false, ReasonCode::ClassOld), (true, ReasonCode::ProofMissing)] {
        let mut node = Node::settled();
        (node.old_class, node.silent) = (!silent, silent);
        assert_eq!(carried_out(&mut node, stack(2, "u2", 1, &[1])), Outcome::RolledBack);
        let reason = node.log[&"u2".parse().unwrap()].last().unwrap().reason.clone();
        assert_eq!(reason.metadata.get("cause").map(String::as_str), Some(code.as_str()));
        assert_eq!((node.process.stack(), node.layers.len()), (None, 0));
        assert!(node.machine.record().failed.is_empty());
    }
}

#[test]
fn a_live_patch_restarts_nothing_on_either_way() {
    let mut node = Node::settled();
    let pid = node.process.pid();
    assert_eq!(carried_out(&mut node, live(2, "u2", 1, &[1])), Outcome::Succeeded);
    assert_eq!((node.process.pid(), node.process.stack()), (pid, state(1, &[1]).stack()));
    assert_eq!(node.launch.clone().unwrap().1, state(1, &[1]).layers, "a restart keeps it");
    assert_eq!(carried_out(&mut node, live(3, "u3", 1, &[])), Outcome::Succeeded);
    assert_eq!((node.process.pid(), node.in_force, node.layers.len()), (pid, None, 0));
    node.unhealthy.insert(patch(2).release.artifact);
    assert_eq!(carried_out(&mut node, live(4, "u4", 1, &[2])), Outcome::RolledBack);
    assert_eq!((node.process.pid(), node.in_force, node.layers.len()), (pid, None, 0));
    let steps = node.done.join(" ");
    assert!(!steps.contains("stop") && !steps.contains(" start"), "{steps}");
}

#[test]
fn a_live_patch_that_is_refused_is_put_back() {
    let mut node = Node::settled();
    let pid = node.process.pid();
    node.faults.push(("patch live", ReasonCode::RedefinitionRefused));
    assert_eq!(carried_out(&mut node, live(2, "u2", 1, &[1])), Outcome::RolledBack);
    assert_eq!((node.process.pid(), node.in_force, node.layers.len()), (pid, None, 0));
    assert_eq!(carried_out(&mut node, stack(3, "u3", 1, &[1])), Outcome::Succeeded, "a restart may do");
    // Where even the way back is refused, a restart brings the old classes.
    node.faults.push(("patch live", ReasonCode::AttachFailed));
    node.faults.push(("patch live", ReasonCode::AttachFailed));
    assert_eq!(carried_out(&mut node, live(4, "u4", 1, &[2, 1])), Outcome::RolledBack);
    assert_ne!(node.process.pid(), pid);
    assert_eq!(node.in_force, state(1, &[1]).stack());
}

#[test]
fn refusals_of_patches() {
    let mut node = Node::settled();
    assert_eq!(order(&mut node, stack(2, "u2", 2, &[1])), Some(ReasonCode::WrongBase));
    let base = Target::Stack(Base::Absent);
    assert_eq!(order(&mut node, with_patches(offer(2, "u2", base), &[1])), Some(ReasonCode::WrongBase));
    let mut both = with_patches(install(2, "u2", 2), &[1]);
    both.desired.live = true;
    assert_eq!(order(&mut node, both), Some(ReasonCode::LiveImpossible));
    assert_eq!(order(&mut node, stack(2, "u2", 1, &[1, 2])), Some(ReasonCode::InvalidArgument));
    assert_eq!(order(&mut node, stack(2, "u2", 1, &[2, 2])), Some(ReasonCode::InvalidArgument));
    let with = |change: fn(&mut crate::upgrade::event::OfferedLayer)| {
        let mut offer = live(2, "u2", 1, &[2, 1]);
        offer.layers.as_mut().unwrap().iter_mut().for_each(change);
        offer
    };
    let cases = [
        (
            with(|layer| layer.offered.release.component = "other".parse().unwrap()),
            ReasonCode::UntrustedManifest,
        ),
        (with(|layer| layer.offered.release.manifest = digest(9)), ReasonCode::UntrustedManifest),
        (with(|layer| layer.patch = spec(7)), ReasonCode::UntrustedManifest),
        (with(|layer| layer.offered.kind = Kind::Binary), ReasonCode::KindUnsupported),
        (with(|layer| layer.patch.live.possible = false), ReasonCode::LiveImpossible),
        (with(|layer| layer.patch.needs_restart = true), ReasonCode::LiveImpossible),
    ];
    for (offer, code) in cases {
        assert_eq!(order(&mut node, offer), Some(code));
    }
    let mut none = stack(2, "u2", 1, &[1]);
    none.layers = Err(Reason::new(ReasonCode::UntrustedManifest));
    assert_eq!(order(&mut node, none), Some(ReasonCode::UntrustedManifest));
    let policy = Policy { live: false, ..node.machine.policy().clone() };
    node.send(Event::Configured(Box::new(policy)));
    assert_eq!(order(&mut node, live(2, "u2", 1, &[1])), Some(ReasonCode::LiveForbidden));
    let policy = Policy { patchable: false, ..node.machine.policy().clone() };
    node.send(Event::Configured(Box::new(policy)));
    assert_eq!(order(&mut node, stack(2, "u2", 1, &[1])), Some(ReasonCode::NotPatchable));
    assert_eq!(carried_out(&mut node, install(3, "u3", 2)), Outcome::Succeeded);
}

#[test]
fn a_stack_for_a_base_that_is_just_coming_waits_for_it() {
    let mut node = Node::settled();
    assert_eq!(order(&mut node, install(2, "u2", 2)), None);
    node.run_to("start");
    assert_eq!(order(&mut node, stack(3, "u3", 2, &[1])), None);
    assert_eq!(node.run("u2"), Outcome::Succeeded);
    assert_eq!(node.run("u3"), Outcome::Succeeded);
    assert_eq!(order(&mut node, install(4, "u4", 3)), None);
    node.run_to("start");
    assert_eq!(order(&mut node, stack(5, "u5", 3, &[2])), None);
    node.unhealthy.insert(digest(3));
    assert_eq!(node.run("u4"), Outcome::RolledBack);
    assert_eq!((node.run("u5"), node.reason("u5")), (Outcome::Refused, ReasonCode::WrongBase));
}

#[test]
fn a_damaged_patch_leads_further_back() {
    let mut node = Node::settled();
    assert_eq!(carried_out(&mut node, stack(2, "u2", 1, &[1])), Outcome::Succeeded);
    node.unhealthy.insert(patch(2).release.artifact);
    node.damaged.insert(patch(1).release.artifact);
    assert_eq!(order(&mut node, stack(3, "u3", 1, &[2])), None);
    assert_eq!((node.run("u3"), node.reason("u3")), (Outcome::RolledBack, ReasonCode::RolledBackFurther));
    assert_eq!(node.machine.record().current, state(1, &[]));
    assert_eq!((node.layers.len(), node.process.stack()), (0, None));
}

#[test]
fn the_same_stack_is_current_already_unless_something_else_is_in_force() {
    let mut node = Node::settled();
    assert_eq!(carried_out(&mut node, stack(2, "u2", 1, &[1])), Outcome::Succeeded);
    assert_eq!(carried_out(&mut node, stack(3, "u3", 1, &[1])), Outcome::AlreadyCurrent);
    // Somebody started the process without its patches.
    node.process = Process::Running { pid: 1, digest: digest(1), stack: None };
    node.in_force = None;
    assert_eq!(carried_out(&mut node, stack(4, "u4", 1, &[1])), Outcome::Succeeded);
    assert_eq!(node.in_force, state(1, &[1]).stack());
    // The files of the stack were changed: the same order puts them right.
    node.damage = Some(Reason::new(ReasonCode::StackDamaged));
    assert_eq!(carried_out(&mut node, stack(5, "u5", 1, &[1])), Outcome::Succeeded);
    assert_eq!(node.damage, None);
}

#[test]
fn what_loads_old_later_is_drift_with_class_and_loader() {
    let mut node = Node::settled();
    assert_eq!(carried_out(&mut node, stack(2, "u2", 1, &[1])), Outcome::Succeeded);
    node.done.clear();
    let look = |node: &mut Node| {
        node.send(Event::Look);
        settle(node);
    };
    look(&mut node);
    assert!(!node.done.contains(&"prove"), "asked a moment ago");
    node.old_class = true;
    node.now = node.now.after(node.machine.policy().prove_every);
    look(&mut node);
    let drift = node.machine.inventory().drift.unwrap();
    assert_eq!(drift.code, ReasonCode::ClassOld);
    assert_eq!(
        (drift.metadata["class"].as_str(), drift.metadata["loader"].as_str()),
        ("com.acme.Greeter", "app")
    );
    look(&mut node);
    assert_eq!(node.machine.inventory().drift.unwrap().code, ReasonCode::ClassOld, "it stays");
    assert_eq!(node.machine.inventory().current, state(1, &[1]), "the record stands");
    node.crash();
    settle(&mut node);
    assert_eq!(node.machine.inventory().drift.unwrap().code, ReasonCode::ClassOld);
    node.old_class = false;
    assert_eq!(carried_out(&mut node, stack(3, "u3", 1, &[1])), Outcome::Succeeded, "not current already");
    assert_eq!(node.machine.inventory().drift, None);
    // Another process is asked at once.
    node.done.clear();
    node.fall();
    look(&mut node);
    assert!(node.done.contains(&"prove"));
}

#[test]
fn a_stack_that_somebody_switched_is_drift() {
    let mut node = Node::settled();
    assert_eq!(carried_out(&mut node, stack(2, "u2", 1, &[1])), Outcome::Succeeded);
    node.layers = vec![];
    node.send(Event::Look);
    settle(&mut node);
    assert_eq!(node.machine.inventory().drift.unwrap().code, ReasonCode::Drifted);
    node.layers = state(1, &[1]).layers;
    node.damage = Some(Reason::new(ReasonCode::StackDamaged));
    node.send(Event::Look);
    settle(&mut node);
    assert_eq!(node.machine.inventory().drift.unwrap().code, ReasonCode::StackDamaged);
}

#[test]
fn a_reboot_starts_what_ran_with_its_stack() {
    let mut node = Node::settled();
    assert_eq!(carried_out(&mut node, stack(2, "u2", 1, &[2, 1])), Outcome::Succeeded);
    (node.process, node.launch, node.in_force) = (Process::NotRun, None, None);
    node.crash();
    settle(&mut node);
    assert_eq!((node.process.digest(), node.process.stack()), (Some(digest(1)), state(1, &[2, 1]).stack()));
}

#[test]
fn a_lost_journal_takes_no_patch_for_a_base() {
    let mut node = Node::settled();
    assert_eq!(carried_out(&mut node, stack(2, "u2", 1, &[1])), Outcome::Succeeded);
    assert_eq!(carried_out(&mut node, with_patches(install(3, "u3", 2), &[2])), Outcome::Succeeded);
    let blank = crate::upgrade::record::Record::new("web".parse().unwrap());
    node.machine = crate::upgrade::machine::Machine::new(node.machine.policy().clone(), blank);
    node.send(Event::Started);
    settle(&mut node);
    let record = node.machine.record();
    assert_eq!(
        (record.current.artifact(), record.current.stack()),
        (Some(digest(2)), state(2, &[2]).stack())
    );
    assert_eq!(record.kept, [crate::state::ComponentState::unmanaged(digest(1))]);
}

/// Run mode none: whoever uses the files is told; a JVM that nobody restarts takes no restart patch.
#[test]
fn files_are_reloaded_and_the_answer_is_part_of_the_result() {
    let policy = Policy { supervised: false, reload: true, ..Node::new(None).machine.policy().clone() };
    let mut node = Node::settled_with(policy.clone());
    assert_eq!(carried_out(&mut node, install(2, "u2", 2)), Outcome::Succeeded);
    assert!(node.done.join(" ").contains("switch reload probe"), "{:?}", node.done);
    let report = node.log[&"u2".parse().unwrap()].last().unwrap().clone();
    assert_eq!((report.reason.code, report.reload.as_deref()), (ReasonCode::Reloaded, Some("told")));
    node.done.clear();
    node.faults.push(("reload", ReasonCode::ReloadFailed));
    assert_eq!(carried_out(&mut node, install(3, "u3", 3)), Outcome::RolledBack);
    assert_eq!(node.installed, Some(digest(2)));
    assert_eq!(node.done.iter().filter(|step| **step == "reload").count(), 2, "told of the way back as well");
    assert_eq!(carried_out(&mut node, stack(4, "u4", 2, &[1])), Outcome::Succeeded, "the reload restarts it");
    let policy = Policy { reload: false, ..policy };
    node.send(Event::Configured(Box::new(policy)));
    assert_eq!(order(&mut node, stack(5, "u5", 2, &[])), None);
    assert_eq!((node.run("u5"), node.reason("u5")), (Outcome::FailedUnchanged, ReasonCode::RestartNeeded));
    assert_eq!(carried_out(&mut node, live(6, "u6", 2, &[])), Outcome::Succeeded);
}

#[test]
fn a_local_apply_needs_permission_and_holds_the_component() {
    let mut node = Node::settled();
    let apply = |node: &mut Node, offer: Offer| {
        node.send(Event::LocalApply { offer: Box::new(offer), message: "no network".into() });
        node.answers.last().unwrap().as_ref().err().map(|reason| reason.code)
    };
    assert_eq!(apply(&mut node, stack(0, "", 1, &[1])), Some(ReasonCode::LocalApplyForbidden));
    assert_eq!(node.machine.inventory().hold, None);
    let policy = Policy { allow_local_apply: true, ..node.machine.policy().clone() };
    node.send(Event::Configured(Box::new(policy)));
    assert_eq!(apply(&mut node, stack(0, "", 2, &[1])), Some(ReasonCode::WrongBase));
    assert_eq!(order(&mut node, install(2, "u2", 2)), None);
    node.run_to("start");
    assert_eq!(apply(&mut node, stack(0, "", 1, &[1])), None);
    assert_eq!(node.run("u2"), Outcome::RolledBack);
    settle(&mut node);
    assert_eq!(node.machine.record().current, state(1, &[1]));
    let inventory = node.machine.inventory();
    assert_eq!((inventory.changer.as_str(), inventory.hold.unwrap().code), ("local", ReasonCode::LocalApply));
    assert_eq!(order(&mut node, install(3, "u3", 2)), Some(ReasonCode::ComponentHeld));
    assert_eq!(apply(&mut node, install(0, "", 3)), None, "who holds it may go on");
    settle(&mut node);
    assert_eq!(node.machine.record().current, state(3, &[]));
    assert_eq!(node.history.last().unwrap().upgrade, None);
}

/// What is cancelled in time never succeeds, with patches as without.
#[test]
fn cancel_of_a_live_patch_before_and_after_the_switch() {
    for (step, outcome) in [
        ("fetch", Outcome::Cancelled),
        ("switch the stack", Outcome::RolledBack),
        ("patch live", Outcome::RolledBack),
        ("prove", Outcome::RolledBack),
        ("prune", Outcome::Succeeded),
    ] {
        let mut node = Node::settled();
        let pid = node.process.pid();
        assert_eq!(order(&mut node, live(2, "u2", 1, &[1])), None);
        node.run_to(step);
        assert_eq!(order(&mut node, offer(3, "u2", Target::Stay)), None);
        assert_eq!(node.run("u2"), outcome, "cancelled before {step}");
        assert_eq!(node.process.pid(), pid);
        if outcome != Outcome::Succeeded {
            assert_eq!((node.layers.len(), node.in_force), (0, None), "{step}");
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Apply,
    Remove,
    Back,
    Base,
    Live,
    LiveRemove,
    Reload,
}

impl Change {
    const ALL: [Self; 7] =
        [Self::Apply, Self::Remove, Self::Back, Self::Base, Self::Live, Self::LiveRemove, Self::Reload];

    fn offer(self) -> Offer {
        match self {
            Self::Apply => stack(9, "u9", 1, &[2, 1]),
            Self::Remove => stack(9, "u9", 1, &[]),
            Self::Back => offer(9, "u9", Target::Restore(state(1, &[]))),
            Self::Base | Self::Reload => with_patches(install(9, "u9", 2), &[2]),
            Self::Live => live(9, "u9", 1, &[2, 1]),
            Self::LiveRemove => live(9, "u9", 1, &[]),
        }
    }

    /// A node on release 1 with patch 1.
    fn node(self) -> Node {
        let mut policy = Node::new(None).machine.policy().clone();
        if matches!(self, Self::Reload) {
            policy = Policy { supervised: false, reload: true, ..policy };
        }
        let mut node = Node::settled_with(policy);
        assert_eq!(carried_out(&mut node, stack(2, "u2", 1, &[1])), Outcome::Succeeded);
        node
    }
}

/// Crashes before and after every step of every kind of change, good and bad, and again in the recovery; in between
/// the process may end and be started by its shim. At each moment a start would use the old state or the new one,
/// wholly, and the end is the old state or the new one.
#[test]
fn a_crash_at_any_step_leaves_an_old_or_a_new_stack() {
    for change in Change::ALL {
        for bad in [false, true] {
            for first in 0..26 {
                for second in [0, 1, 2, 3, 6] {
                    crashed_twice(change, bad, first, second);
                }
            }
        }
    }
}

fn crashed_twice(change: Change, bad: bool, first: usize, second: usize) {
    let mut node = change.node();
    let (old, offer) = (state(1, &[1]), change.offer());
    let layers = |layers: &[crate::state::Layer]| stack_digest(layers);
    let new = match &offer.desired.target {
        Target::Restore(state) => state.clone(),
        Target::Install(_) => state(2, &[2]),
        _ => crate::state::ComponentState { layers: offer.desired.layers.clone(), ..state(1, &[]) },
    };
    if bad {
        node.unloadable = new.stack();
        node.faults.push(("prove", ReasonCode::ProofMissing));
    }
    assert_eq!(order(&mut node, offer), None);
    let about = format!("{change:?}, bad {bad}, crashes at {first} and {second}");
    for count in [first, second] {
        for _ in 0..count {
            if node.outcome("u9").is_none() && !node.answer_one() {
                node.advance();
            }
            whole(&node, &old, &new, &about);
        }
        // The step is done but not recorded.
        if let Some((_, step)) = node.work.pop_front().filter(|_| count % 2 == 1) {
            let _ = node.perform(&step.kind);
        }
        whole(&node, &old, &new, &about);
        if count % 3 == 2 {
            node.fall();
        }
        node.crash();
    }
    let outcome = node.run("u9");
    let expected = match (bad, outcome) {
        (false, Outcome::Succeeded) => &new,
        // A crash may have eaten the fault, or the process may have ended while it was watched.
        (_, Outcome::RolledBack) => &old,
        (true, Outcome::Succeeded) if new.stack().is_none() => &new,
        _ => panic!("{about}: {outcome}, {:?}", node.reason("u9")),
    };
    assert!(node.machine.record().current.same_content(expected), "{about}");
    assert_eq!((node.installed, layers(&node.layers)), (expected.artifact(), expected.stack()), "{about}");
    assert_eq!(node.in_force, expected.stack(), "{about}");
    if node.machine.policy().supervised {
        assert_eq!((node.process.digest(), node.process.stack()), (expected.artifact(), expected.stack()));
    }
}

/// What a restart would use, by the shim and by a script that follows the link.
fn whole(node: &Node, old: &crate::state::ComponentState, new: &crate::state::ComponentState, about: &str) {
    if let Some((digest, layers)) = &node.launch {
        let of = |state: &crate::state::ComponentState| {
            state.artifact() == Some(*digest) && state.stack() == stack_digest(layers)
        };
        assert!(of(old) || of(new), "{about}: the shim would start a mixture");
    }
    let stack = stack_digest(&node.layers);
    assert!(stack == old.stack() || stack == new.stack(), "{about}: the link leads to another stack");
}
