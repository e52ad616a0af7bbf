//! The machine of the component that is the agent itself: its process ends in the middle, and another one goes on.

use super::node::{Node, digest, install};
use crate::{
    reason::{Reason, ReasonCode},
    release::Kind,
    upgrade::{
        Outcome,
        event::{Event, Offer},
        policy::Policy,
        recover::Reverted,
        step::Process,
    },
};

fn order(number: u64, upgrade: &str, n: u8) -> Event {
    let mut offer: Offer = install(number, upgrade, n);
    if let Some(Ok(offered)) = &mut offer.release {
        offered.kind = Kind::Agent;
    }
    Event::Order(Box::new(offer))
}

/// A node whose agent is version 1.
fn node() -> Node {
    let mut node = Node::with(Policy { kind: Kind::Agent, ..Policy::default() }, Some(digest(1)));
    node.process = Process::Running { pid: 7, digest: digest(1), stack: None };
    node.crash();
    while node.answer_one() {}
    node.done.clear();
    node
}

/// The agent ends, and whoever keeps it starts what lies in its place.
fn restart(node: &mut Node) {
    let digest = node.installed.expect("an agent lies there");
    node.pids += 1;
    node.process = Process::Running { pid: node.pids, digest, stack: None };
    node.crash();
}

#[test]
fn it_is_tried_out_and_guarded_before_the_switch_and_goes_on_as_the_new_one() {
    let mut node = node();
    node.send(order(2, "u2", 2));
    node.run_to("switch");
    assert_eq!(node.done.join(" "), "check fetch verify stage back up try out set the guard");
    node.run_to("start");
    restart(&mut node);
    assert_eq!(node.run("u2"), Outcome::Succeeded);
    assert_eq!(node.process.digest(), Some(digest(2)));
}

/// A soak time that the guard was not set for would have it put away an agent that is well.
#[test]
fn no_order_lengthens_the_soak_time_that_the_guard_counts_with() {
    for (step, guarded) in [("stage", false), ("start", true)] {
        let mut node = node();
        node.send(order(2, "u2", 2));
        node.run_to(step);
        let mut later = install(3, "u2", 2);
        later.desired.soak = Some(std::time::Duration::from_secs(3600));
        if let Some(Ok(offered)) = &mut later.release {
            offered.kind = Kind::Agent;
        }
        node.send(Event::Order(Box::new(later)));
        let soak = node.machine.record().passage.as_ref().unwrap().order.soak;
        assert_eq!(soak.is_none(), guarded, "{step}");
    }
}

#[test]
fn what_fails_before_the_switch_leaves_it_as_it_is() {
    for (step, code) in
        [("try out", ReasonCode::AgentTrialFailed), ("set the guard", ReasonCode::GuardNotSet)]
    {
        let mut node = node();
        node.faults.push((step, code));
        node.send(order(2, "u2", 2));
        assert_eq!((node.run("u2"), node.reason("u2")), (Outcome::FailedUnchanged, code));
        assert_eq!((node.installed, node.process.digest()), (Some(digest(1)), Some(digest(1))));
    }
}

/// Killed before and after each step, it is started again as what lies in its place.
#[test]
fn it_ends_as_one_of_the_two_whenever_it_is_killed() {
    for step in ["back up", "try out", "set the guard", "switch", "stop", "start"] {
        let mut node = node();
        node.send(order(2, "u2", 2));
        node.run_to(step);
        restart(&mut node);
        if node.process.digest() == Some(digest(1)) {
            node.run_to("start");
            restart(&mut node);
        }
        assert_eq!(node.run("u2"), Outcome::Succeeded, "killed before {step}");
    }
}

#[test]
fn what_its_guard_has_put_back_says_why_and_is_not_tried_again() {
    for step in ["switch", "stop", "start", "probe", "inspect", "prune"] {
        let mut node = node();
        node.send(order(2, "u2", 2));
        node.run_to("start");
        if !["switch", "stop", "start"].contains(&step) {
            restart(&mut node);
            node.run_to(step);
        }
        let reason = Reason::new(ReasonCode::AgentPutBack).with("problem", "it ended");
        node.reverted = Some(Reverted { digest: digest(2), reason });
        node.installed = Some(digest(1));
        restart(&mut node);
        assert_eq!(node.run("u2"), Outcome::RolledBack, "put back at {step}");
        let last = node.machine.record().last.clone().expect("it has ended");
        assert_eq!(last.reason.metadata["cause"], "AGENT_PUT_BACK", "put back at {step}");
        assert_eq!(node.machine.record().current.artifact(), Some(digest(1)));
        assert_eq!(node.machine.record().failed, [digest(2)]);
        // What was put back once says nothing of another version.
        node.send(order(3, "u3", 3));
        node.run_to("start");
        restart(&mut node);
        assert_eq!(node.run("u3"), Outcome::Succeeded);
    }
}
