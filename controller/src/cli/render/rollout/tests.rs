//! Counts, endings and the summary of rollouts.

use super::*;

pub(crate) fn upgrade(node: &str, wave: u32, state: U) -> v1::Upgrade {
    v1::Upgrade {
        name: format!("rollouts/r-1/upgrades/{node}"),
        node: format!("nodes/{node}"),
        wave,
        state: state.into(),
        ..Default::default()
    }
}

pub(crate) fn model(state: S, upgrades: Vec<v1::Upgrade>) -> Model {
    let install = v1::InstallChange { release: "releases/hello@1.1.0".into(), ..Default::default() };
    let spec = v1::RolloutSpec {
        component: "hello".into(),
        selector: "*".into(),
        change: Some(v1::rollout_spec::Change::Install(install)),
        ..Default::default()
    };
    let rollout = v1::Rollout {
        name: "rollouts/r-1".into(),
        state: state.into(),
        spec: Some(spec),
        ..Default::default()
    };
    let upgrades = upgrades.into_iter().map(|u| (id(&u.node).to_owned(), u)).collect();
    Model { rollout, upgrades, revert: None }
}

#[test]
fn a_silent_node_is_counted_once_as_unreachable() {
    let mut silent = upgrade("c", 1, U::Fetching);
    silent.unreachable = true;
    let m = model(S::Running, vec![upgrade("a", 1, U::Succeeded), upgrade("b", 1, U::Pending), silent]);
    assert_eq!(m.counts(), Counts { ok: 1, wait: 1, unreachable: 1, ..Default::default() });
}

#[test]
fn each_ending_has_its_exit() {
    let check =
        |state, upgrades, exit: Option<Exit>| assert_eq!(model(state, upgrades).exit(), exit, "{state:?}");
    check(S::Succeeded, vec![upgrade("a", 1, U::Succeeded)], Some(Exit::Success));
    check(S::Halted, vec![upgrade("a", 1, U::RolledBack)], Some(Exit::RolledBack));
    check(
        S::Halted,
        vec![upgrade("a", 1, U::Refused), upgrade("b", 1, U::FailedUnchanged)],
        Some(Exit::RolledBack),
    );
    check(S::Halted, vec![upgrade("a", 1, U::RollbackFailed)], Some(Exit::NeedsPerson));
    check(S::Succeeded, vec![upgrade("a", 1, U::RollbackFailed)], Some(Exit::NeedsPerson));
    check(S::Running, vec![upgrade("a", 1, U::Fetching)], None);
    check(S::Cancelled, vec![], Some(Exit::Cancelled));
}

#[test]
fn a_halted_rollout_is_waited_for_until_its_nodes_rest() {
    let m = model(S::Halted, vec![upgrade("a", 1, U::RolledBack), upgrade("b", 1, U::RollingBack)]);
    assert_eq!(m.exit(), None);
    let mut drifted = upgrade("a", 1, U::Succeeded);
    drifted.reason = Some(v1::Reason { code: "DRIFTED".into(), ..Default::default() });
    assert_eq!(model(S::Halted, vec![drifted]).exit(), Some(Exit::NeedsPerson));
}

#[test]
fn a_wave_that_waits_for_a_person_ends_the_waiting() {
    let mut m = model(S::Running, vec![upgrade("a", 1, U::Succeeded), upgrade("b", 2, U::Pending)]);
    m.rollout.waves = vec![v1::Wave { number: 2, state: W::AwaitingApproval.into(), ..Default::default() }];
    assert_eq!(m.exit(), Some(Exit::Waiting));
}

#[test]
fn the_summary_says_what_happened_and_what_to_do() {
    let mut bad = upgrade("demo-2", 1, U::RolledBack);
    bad.reason = Some(v1::Reason {
        code: "ROLLED_BACK".into(),
        message: "1.0.0 runs again".into(),
        ..Default::default()
    });
    bad.evidence =
        Some(v1::Evidence { exit: "exit status 1".into(), lines: vec!["boom".into()], ..Default::default() });
    let mut m = model(S::Halted, vec![bad]);
    m.rollout.reason = Some(v1::Reason { message: "1 of 1 nodes failed".into(), ..Default::default() });
    let text = summary(&m, Exit::RolledBack, 0, Paint::PLAIN);
    assert_eq!(
        text,
        "✖ r-1 halted: 1 of 1 nodes failed\n  demo-2 rolled back: 1.0.0 runs again\n    demo-2 ended with exit status 1\n    \
         | boom\n    runs -\n  next: upfleet rollout upgrades r-1 -o wide\n  next: upfleet rollout resume r-1 --failed \
         retry|skip|revert\n  next: upfleet rollout cancel r-1\n  [exit 3: the rollout failed and the fleet is safe on its old version]\n"
    );
}
