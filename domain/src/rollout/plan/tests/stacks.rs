//! Patch stacks in a plan: what each node would have, and each reason not to touch it.

use super::*;
use crate::{
    id::Version,
    patch::{BaseRange, Fix, Live, PatchSpec, PatchedClass},
    state::Layer,
};

/// A patch of class `com.acme.Order`, built from `parent`'s bytes, unless the test says otherwise.
fn patch(number: u32, parent: &str, fixes: &[&str]) -> ReleaseFacts {
    let own = format!("p{number}");
    let class = PatchedClass {
        name: "com.acme.Order".into(),
        accepts: vec![Digest::of(b"base")],
        parent: Some(Digest::of(parent.as_bytes())),
        patched: Digest::of(own.as_bytes()),
        major: 52,
    };
    let spec = PatchSpec {
        number,
        base: BaseRange::default(),
        fixes: fixes.iter().map(|id| Fix { id: (*id).into(), text: String::new() }).collect(),
        classes: vec![class],
        removed: vec![],
        resources: vec![],
        requires: vec![],
        supersedes: vec![],
        module: None,
        live: Live { possible: true, problems: vec![] },
        needs_restart: false,
    };
    with_spec(&own, spec)
}

fn with_spec(version: &str, spec: PatchSpec) -> ReleaseFacts {
    let mut facts = release(version, u64::from(spec.number));
    facts.manifest.artifacts[0].platform.arch = "any".into();
    facts.manifest.kind = Kind::Patch;
    facts.manifest.patch = Some(spec);
    facts.digest = Digest::of(&facts.manifest.to_bytes());
    facts
}

fn edited(mut facts: ReleaseFacts, change: impl FnOnce(&mut PatchSpec)) -> ReleaseFacts {
    change(facts.manifest.patch.as_mut().unwrap());
    facts.digest = Digest::of(&facts.manifest.to_bytes());
    facts
}

fn layer(facts: &ReleaseFacts) -> Layer {
    let release = reference(facts, Some(&Platform { os: "linux".into(), arch: "amd64".into() })).unwrap();
    let number = facts.manifest.patch.as_ref().unwrap().number;
    Layer { number, release, retired: false, contains: vec![] }
}

fn on(base: ComponentState, layers: &[&ReleaseFacts]) -> ComponentState {
    ComponentState { layers: layers.iter().map(|facts| layer(facts)).collect(), ..base }
}

fn patched(name: &str, current: ComponentState) -> NodeFacts {
    let component = Some(ComponentInventory { patchable: true, ..inventory(current) });
    NodeFacts { component, ..node(name) }
}

fn versions(names: &[&str]) -> Vec<Version> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn apply(names: &[&str]) -> StackChange {
    StackChange { apply: versions(names), ..StackChange::default() }
}

fn fleet_of(nodes: Vec<NodeFacts>, patches: &[&ReleaseFacts]) -> Fleet {
    let patches = patches.iter().map(|facts| (*facts).clone()).collect();
    Fleet { patches, ..fleet(nodes) }
}

/// What one node on `current` would have; the reason where it is left out.
fn changed(
    current: ComponentState,
    patches: &[&ReleaseFacts],
    change: StackChange,
) -> Result<ComponentState, Reason> {
    let fleet = fleet_of(vec![patched("a", current)], patches);
    let plan = plan(&spec(Change::Stack(change)), &fleet).unwrap();
    match plan.upgrades.into_iter().next() {
        Some(upgrade) => Ok(upgrade.to),
        None => Err(plan.excluded[0].1.clone()),
    }
}

fn base() -> ComponentState {
    state("1.0.0", 1)
}

#[test]
fn t01_two_patches_are_put_on_with_the_newest_first() {
    let (one, two) = (patch(1, "base", &["A"]), patch(2, "p1", &["B"]));
    let to = changed(base(), &[&one, &two], apply(&["p1", "p2"])).unwrap();
    assert_eq!(to, on(base(), &[&two, &one]));
    assert_eq!(to.to_string(), "1.0.0+patch2,1");
}

#[test]
fn t02_patches_come_off_one_by_one_from_the_middle_down_to_a_number_and_all() {
    let (one, two) = (patch(1, "base", &["A"]), patch(2, "p1", &["B"]));
    let three = edited(patch(3, "base", &["C"]), |spec| spec.classes[0].name = "com.acme.Cart".into());
    let all = || on(base(), &[&three, &two, &one]);
    let known = [&one, &two, &three];
    let check = |change, to| assert_eq!(changed(all(), &known, change), Ok(to));
    check(StackChange { remove: vec![2], ..Default::default() }, on(base(), &[&three, &one]));
    check(StackChange { remove: vec![3, 2], ..Default::default() }, on(base(), &[&one]));
    check(StackChange { to_number: Some(1), ..Default::default() }, on(base(), &[&one]));
    check(StackChange { none: true, ..Default::default() }, base());
}

#[test]
fn t03_ten_comes_before_nine() {
    let (nine, ten) = (patch(9, "base", &["A"]), patch(10, "p9", &["B"]));
    let to = changed(base(), &[&nine, &ten], apply(&["p9", "p10"])).unwrap();
    assert_eq!(to.layers.iter().map(|layer| layer.number).collect::<Vec<_>>(), [10, 9]);
}

#[test]
fn t06_another_base_is_refused_by_name_and_by_class() {
    let out_of_range = edited(patch(1, "base", &["A"]), |spec| spec.base.versions = versions(&["0.9.0"]));
    let reason = changed(base(), &[&out_of_range], apply(&["p1"])).unwrap_err();
    assert_eq!(reason.code, ReasonCode::WrongBase);
    let other = edited(patch(2, "base2", &["B"]), |spec| {
        spec.classes[0].accepts = vec![Digest::of(b"base2")];
    });
    let one = patch(1, "base", &["A"]);
    let reason = changed(on(base(), &[&one]), &[&one, &other], apply(&["p2"])).unwrap_err();
    assert_eq!(reason.code, ReasonCode::BaseMismatch);
    assert!(reason.metadata.contains_key("expected") && reason.metadata.contains_key("actual"), "{reason}");
    let absent = changed(ComponentState::absent(), &[&one], apply(&["p1"])).unwrap_err();
    assert_eq!(absent.code, ReasonCode::WrongBase);
}

#[test]
fn t07_a_patch_that_would_undo_anothers_fix_is_refused() {
    let (one, two) = (patch(1, "base", &["A"]), patch(2, "base", &["B"]));
    let reason = changed(on(base(), &[&one]), &[&one, &two], apply(&["p2"])).unwrap_err();
    assert_eq!(reason.code, ReasonCode::RevertsFix);
    assert_eq!(reason.metadata["other"], "1");
}

#[test]
fn t08_half_a_family_is_refused() {
    let whole = edited(patch(1, "base", &["A"]), |spec| {
        let inner = PatchedClass { name: "com.acme.Order$1".into(), ..spec.classes[0].clone() };
        spec.classes.push(inner);
    });
    let half = patch(2, "p1", &["B"]);
    let reason = changed(on(base(), &[&whole]), &[&whole, &half], apply(&["p2"])).unwrap_err();
    assert_eq!(reason.code, ReasonCode::SplitFamily);
}

#[test]
fn t09_what_a_later_patch_supersedes_retires_and_comes_back() {
    let one = patch(1, "base", &["A"]);
    let two = patch(2, "p1", &["A", "B"]);
    let fleet = fleet_of(vec![patched("a", on(base(), &[&one]))], &[&one, &two]);
    let planned = plan(&spec(Change::Stack(apply(&["p2"]))), &fleet).unwrap();
    let to = &planned.upgrades[0].to;
    assert_eq!(to.layers.iter().map(|l| (l.number, l.retired)).collect::<Vec<_>>(), [(2, false), (1, true)]);
    assert!(planned.warnings.iter().any(|w| w.contains("patch 1 retires")), "{:?}", planned.warnings);
    let back = changed(
        to.clone(),
        &[&one, &two],
        StackChange { remove: vec![2], contained: true, ..Default::default() },
    );
    assert_eq!(back, Ok(on(base(), &[&one])));
    let contained = changed(on(base(), &[&two]), &[&one, &two], apply(&["p1"])).unwrap_err();
    assert_eq!(contained.code, ReasonCode::PatchContained);
}

#[test]
fn what_another_is_built_on_stays_unless_it_is_said_to_be_contained() {
    let (one, two) = (patch(1, "base", &["A"]), patch(2, "p1", &["B"]));
    let remove = |contained| StackChange { remove: vec![1], contained, ..StackChange::default() };
    let both = || on(base(), &[&two, &one]);
    let reason = changed(both(), &[&one, &two], remove(false)).unwrap_err();
    assert_eq!(reason.code, ReasonCode::StackBuiltOn);
    let to = changed(both(), &[&one, &two], remove(true)).unwrap();
    assert_eq!((to.layers.len(), &to.layers[0].contains), (1, &vec![1]));
}

#[test]
fn each_reason_to_leave_a_node_as_it_is() {
    use ReasonCode as R;
    let one = patch(1, "base", &["A"]);
    let check = |expected: R, change: StackChange, edit: &dyn Fn(&mut NodeFacts, &mut ReleaseFacts)| {
        let (mut node, mut facts) = (patched("a", base()), one.clone());
        edit(&mut node, &mut facts);
        let fleet = fleet_of(vec![node], &[&facts]);
        let plan = plan(&spec(Change::Stack(change)), &fleet).unwrap();
        let reason = &plan.excluded[0].1;
        assert_eq!(reason.code, expected, "{reason}");
        assert!(!reason.message().contains('?'), "{reason}");
    };
    let component = |node: &mut NodeFacts, edit: &dyn Fn(&mut ComponentInventory)| {
        edit(node.component.as_mut().unwrap());
    };
    let put = || apply(&["p1"]);
    let live = || StackChange { live: true, ..put() };
    check(R::NotPatchable, put(), &|node, _| component(node, &|i| i.patchable = false));
    check(R::AlreadyCurrent, put(), &|node, facts| component(node, &|i| i.current = on(base(), &[facts])));
    check(R::NotInStack, StackChange { remove: vec![7], ..Default::default() }, &|_, _| ());
    check(R::AlreadyCurrent, StackChange { none: true, ..Default::default() }, &|_, _| ());
    check(R::ClassVersion, put(), &|node, facts| {
        node.java = Some(8);
        *facts = edited(facts.clone(), |spec| spec.classes[0].major = 61);
    });
    check(R::LiveImpossible, live(), &|_, facts| {
        *facts = edited(facts.clone(), |spec| spec.live.possible = false);
    });
    check(R::LiveImpossible, live(), &|_, facts| {
        *facts = edited(facts.clone(), |spec| spec.needs_restart = true);
    });
    check(R::ReleaseQuarantined, put(), &|_, facts| {
        facts.quarantined.insert(Digest::of(b"p1"), 3);
    });
    check(R::FailedDigest, put(), &|node, _| component(node, &|i| i.failed.push(Digest::of(b"p1"))));
    check(R::FailedDigest, put(), &|node, facts| {
        let stack = on(base(), &[facts]).stack().unwrap();
        component(node, &|i| i.failed.push(stack));
    });
    check(R::PatchUnknown, put(), &|node, _| {
        component(node, &|i| i.current = on(base(), &[&patch(9, "base", &["Z"])]));
    });
    let held = Reason::new(R::LocalApply).with("message", "by hand");
    check(R::LocalApply, put(), &|node, _| component(node, &|i| i.hold = Some(held.clone())));
}

#[test]
fn a_stack_with_a_patch_that_is_not_known_can_still_be_emptied() {
    let strange = on(base(), &[&patch(9, "base", &["Z"])]);
    let none = StackChange { none: true, ..StackChange::default() };
    assert_eq!(changed(strange, &[], none), Ok(base()));
}

#[test]
fn a_release_of_the_wrong_kind_is_no_plan() {
    let one = patch(1, "base", &["A"]);
    let check = |change: Change, fleet: &Fleet, code| {
        assert_eq!(plan(&spec(change), fleet).unwrap_err().code, code);
    };
    let none = fleet_of(vec![], &[]);
    check(Change::Stack(apply(&["p1"])), &none, ReasonCode::NotFound);
    let binary = fleet_of(vec![], &[&release("p1", 1)]);
    check(Change::Stack(apply(&["p1"])), &binary, ReasonCode::InvalidArgument);
    let as_base = Fleet { release: Some(one), ..fleet(vec![]) };
    check(installing().change, &as_base, ReasonCode::InvalidArgument);
}

fn onto(apply: &[&str], waive: &[&str]) -> Change {
    Change::BaseWithStack {
        version: "2.0.0".parse().unwrap(),
        apply: versions(apply),
        waive_fixes: waive.iter().map(|fix| (*fix).to_owned()).collect(),
        allow_downgrade: false,
        allow_failed_digest: false,
    }
}

/// A fleet on 1.0.0 with one patch, and 2.0.0 with these fixes.
fn moving(patch: &ReleaseFacts, others: &[&ReleaseFacts], fixes: &[&str], nodes: &[&str]) -> Fleet {
    let nodes = nodes.iter().map(|name| patched(name, on(base(), &[patch]))).collect();
    let mut known = vec![patch];
    known.extend(others);
    let mut fleet = fleet_of(nodes, &known);
    let fixes = fixes.iter().map(|id| Fix { id: (*id).into(), text: String::new() });
    fleet.release.as_mut().unwrap().manifest.fixes = fixes.collect();
    fleet
}

fn bases_to(fleet: &Fleet, change: Change) -> ComponentState {
    plan(&spec(change), fleet).unwrap().upgrades.remove(0).to
}

#[test]
fn a_new_base_carries_what_is_valid_for_it_and_leaves_what_it_contains() {
    let open = patch(1, "base", &["A"]);
    let carried = bases_to(&moving(&open, &[], &[], &["a"]), installing().change);
    assert_eq!(carried.layers, vec![layer(&open)], "it is for any base");
    let contained = bases_to(&moving(&open, &[], &["A"], &["a"]), installing().change);
    assert!(contained.layers.is_empty(), "the base has its fix");
    assert_eq!(contained.to_string(), "2.0.0");
}

#[test]
fn a_fix_that_would_be_lost_refuses_the_whole_plan_unless_it_is_waived() {
    let bound = edited(patch(1, "base", &["A", "B"]), |spec| spec.base.versions = versions(&["1.0.0"]));
    let fleet = moving(&bound, &[], &[], &["b", "a"]);
    let reason = plan(&installing(), &fleet).unwrap_err();
    assert_eq!(reason.code, ReasonCode::FixLost);
    assert_eq!(reason.message(), "fix A, B of patch 1 on a, b is neither in web@2.0.0 nor in a patch for it");
    let half = plan(&spec(onto(&[], &["A"])), &fleet).unwrap_err();
    assert_eq!((half.code, half.metadata["fix"].as_str()), (ReasonCode::FixLost, "B"));
    let waived = plan(&spec(onto(&[], &["A", "B"])), &fleet).unwrap();
    assert!(waived.upgrades.iter().all(|upgrade| upgrade.to.layers.is_empty()));
    assert!(waived.warnings.iter().any(|w| w.contains("patch 1 does not go along")), "{:?}", waived.warnings);
    let mut one_held = fleet;
    for node in &mut one_held.nodes {
        node.cordoned = true;
    }
    assert!(
        plan(&installing(), &one_held).unwrap().upgrades.is_empty(),
        "nothing is lost where nothing changes"
    );
}

#[test]
fn a_base_with_a_stack_names_exactly_the_stack() {
    let bound = edited(patch(1, "base", &["A"]), |spec| spec.base.versions = versions(&["1.0.0"]));
    let anew = edited(patch(5, "base", &["A"]), |spec| spec.base.versions = versions(&["2.0.0"]));
    let fleet = moving(&bound, &[&anew], &[], &["a"]);
    let to = bases_to(&fleet, onto(&["p5"], &[]));
    assert_eq!(to, on(state_of(&fleet), &[&anew]));
    let wrong = plan(&spec(onto(&["p1"], &[])), &fleet).unwrap();
    assert_eq!(wrong.excluded[0].1.code, ReasonCode::WrongBase);
}

fn state_of(fleet: &Fleet) -> ComponentState {
    let platform = Platform { os: "linux".into(), arch: "amd64".into() };
    let release = fleet.release.as_ref().unwrap();
    ComponentState::release(reference(release, Some(&platform)).unwrap())
}

#[test]
fn going_back_takes_base_and_stack_together() {
    let one = patch(1, "base", &["A"]);
    let mut node = patched("a", state("2.0.0", 2));
    node.component.as_mut().unwrap().previous = Some(on(base(), &[&one]));
    let restore = spec(Change::Restore(Restore::Previous));
    let plan = plan(&restore, &fleet_of(vec![node], &[])).unwrap();
    assert_eq!(plan.upgrades[0].to, on(base(), &[&one]), "without any patch's being known");
}

#[test]
fn the_way_back_from_a_live_rollout_is_live() {
    let one = patch(1, "base", &["A"]);
    let mut node = patched("a", base());
    node.java = Some(21);
    let fleet = fleet_of(vec![node, patched("b", base())], &[&one]);
    let live = StackChange { live: true, ..apply(&["p1"]) };
    let planned = plan(&spec(Change::Stack(live)), &fleet).unwrap();
    assert!(planned.live);
    assert!(
        planned.warnings.iter().any(|w| w.starts_with("1 of 2 nodes run Java 21")),
        "{:?}",
        planned.warnings
    );
    let back = spec(Change::Restore(Restore::BeforeRollout("r-1".parse().unwrap())));
    let before = Before { now: on(base(), &[&one]), back: base() };
    let fleet = Fleet { before: [(fleet.nodes[0].id.clone(), before)].into(), before_live: true, ..fleet };
    assert!(plan(&back, &fleet).unwrap().live);
}

/// Going back to before a rollout would silently undo the fix of a later one.
#[test]
fn a_revert_does_not_take_off_what_came_later() {
    let (one, two) = (patch(1, "base", &["A"]), patch(2, "p1", &["B"]));
    let rollout = "r-1".parse().unwrap();
    let back = spec(Change::Restore(Restore::BeforeRollout(rollout)));
    let plan_of = |current: ComponentState| {
        let node = patched("a", current);
        let before = Before { now: on(base(), &[&one]), back: base() };
        let before = [(node.id.clone(), before)].into();
        plan(&back, &Fleet { before, ..fleet_of(vec![node], &[]) }).unwrap()
    };
    // Also where the inventory still tells of the state before.
    for current in [base(), on(base(), &[&one])] {
        assert_eq!(plan_of(current).upgrades.len(), 1);
    }
    let plan = plan_of(on(base(), &[&two, &one]));
    assert_eq!((plan.upgrades.len(), plan.excluded[0].1.code), (0, ReasonCode::PatchedSince));
}

#[test]
fn the_digest_tells_stacks_apart() {
    let (one, two) = (patch(1, "base", &["A"]), patch(2, "p1", &["B"]));
    let digest = |current: ComponentState| {
        let fleet = fleet_of(vec![patched("a", current)], &[&one, &two]);
        plan(&spec(Change::Stack(apply(&["p2"]))), &fleet).unwrap().digest
    };
    assert_eq!(digest(base()), digest(base()));
    assert_ne!(digest(base()), digest(on(base(), &[&one])));
}

#[test]
fn a_hundred_thousand_stacks_are_planned() {
    let patches: Vec<ReleaseFacts> = (1..=20).map(|n| patch(n, &format!("p{}", n - 1), &["A"])).collect();
    let first = edited(patches[0].clone(), |spec| spec.classes[0].parent = Some(Digest::of(b"base")));
    let mut known: Vec<&ReleaseFacts> = patches.iter().skip(1).collect();
    known.push(&first);
    let nodes = (0..100_000).map(|n| patched(&format!("n{n}"), on(base(), &[&first]))).collect();
    let plan = plan(&spec(Change::Stack(apply(&["p2"]))), &fleet_of(nodes, &known)).unwrap();
    assert_eq!(plan.upgrades.len(), 100_000);
}
