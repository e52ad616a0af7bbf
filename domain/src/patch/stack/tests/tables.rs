//! The cases of the acceptance list that are about stacks, and those around them.

use super::*;

fn go(current: &[Layer], what: &StackChange, known: &Known) -> Result<Changed, Reason> {
    change(current, what, known, &Ground::default())
}

fn refused(current: &[Layer], what: &StackChange, known: &Known) -> Reason {
    go(current, what, known).unwrap_err()
}

fn numbers(layers: &[Layer]) -> Vec<u32> {
    layers.iter().map(|layer| layer.number).collect()
}

fn in_force(layers: &[Layer], known: &Known) -> Vec<(String, u32)> {
    effective(layers, known).into_iter().map(|(name, one)| (name.to_owned(), one.number)).collect()
}

/// Two patches of which the second is built on the first.
fn chain() -> [PatchSpec; 2] {
    let first = patch(1, &[class("C", "c0", "c0", "c1"), class("D", "d0", "d0", "d1")]);
    let second = patch(2, &[class("C", "c0", "c1", "c2")]);
    [first, second]
}

#[test]
fn t01_the_class_in_force_is_that_of_the_newest_patch() {
    let specs = chain();
    let known = known(&specs);
    let one = go(&[], &apply(&[&specs[0]]), &known).unwrap().layers;
    let two = go(&one, &apply(&[&specs[1]]), &known).unwrap();
    assert_eq!(numbers(&two.layers), [2, 1]);
    assert_eq!(in_force(&two.layers, &known), [("C".to_owned(), 2), ("D".to_owned(), 1)]);
    assert_eq!(two.notes.len(), 1);
    assert_eq!(
        two.notes[0].message(),
        "C of patch 2 takes precedence over that of patch 1, which it was built from"
    );
    assert_eq!(stack(&specs), two.layers, "one after the other and both at once are the same");
}

#[test]
fn t02_taking_out_brings_back_what_was_there_before() {
    let specs = chain();
    let known = known(&specs);
    let two = stack(&specs);
    let one = go(&two, &remove(&[2]), &known).unwrap().layers;
    assert_eq!(in_force(&one, &known), [("C".to_owned(), 1), ("D".to_owned(), 1)]);
    let none = go(&one, &remove(&[1]), &known).unwrap().layers;
    assert!(none.is_empty() && in_force(&none, &known).is_empty());
    for (what, expected) in [
        (StackChange { to_number: Some(1), ..StackChange::default() }, vec![1]),
        (StackChange { to_number: Some(2), ..StackChange::default() }, vec![2, 1]),
        (StackChange { to_number: Some(0), ..StackChange::default() }, vec![]),
        (StackChange { none: true, ..StackChange::default() }, vec![]),
        (remove(&[1, 2]), vec![]),
    ] {
        assert_eq!(numbers(&go(&two, &what, &known).unwrap().layers), expected, "{what:?}");
    }
    let missing = StackChange { to_number: Some(7), ..StackChange::default() };
    for what in [missing, remove(&[7])] {
        let reason = refused(&two, &what, &known);
        assert_eq!(reason.message(), "patch 7 is not in the stack, which is 2, 1");
    }
}

#[test]
fn t03_ten_comes_before_nine() {
    let (nine, ten) =
        (patch(9, &[class("C", "c0", "c0", "c9")]), patch(10, &[class("C", "c0", "c9", "c10")]));
    for order in [[&nine, &ten], [&ten, &nine]] {
        let known = known(&[nine.clone(), ten.clone()]);
        let layers = order
            .iter()
            .fold(Vec::new(), |layers, spec| go(&layers, &apply(&[spec]), &known).unwrap().layers);
        assert_eq!(numbers(&layers), [10, 9]);
        assert_eq!(in_force(&layers, &known), [("C".to_owned(), 10)]);
    }
}

#[test]
fn t05_a_class_that_the_jvm_can_not_read_is_refused_before() {
    let mut newer = patch(1, &[class("C", "c0", "c0", "c1")]);
    newer.classes[0].major = 69;
    let known = known(&[newer.clone()]);
    let on = |java| change(&[], &apply(&[&newer]), &known, &Ground { base: None, java: Some(java) });
    let reason = on(17).unwrap_err();
    assert_eq!(reason.message(), "patch 1 needs Java 25 (C has major version 69), the node's JVM is Java 17");
    assert!(on(25).is_ok() && on(26).is_ok());
}

#[test]
fn t06_two_patches_for_different_bases_do_not_go_together() {
    let one = patch(1, &[class("C", "c0", "c0", "c1")]);
    let other = patch(2, &[class("C", "x0", "x0", "c2")]);
    let reason = refused(&[], &apply(&[&one, &other]), &known(&[one.clone(), other.clone()]));
    assert_eq!(reason.code, ReasonCode::BaseMismatch, "{reason}");
}

#[test]
fn t07_a_patch_that_would_undo_another_s_fix_is_refused() {
    let first = fixing(patch(1, &[class("C", "c0", "c0", "c1")]), &["ACME-1"]);
    let second = fixing(patch(2, &[class("C", "c0", "c0", "c2")]), &["ACME-2"]);
    let known = |second: &PatchSpec| known(&[first.clone(), second.clone()]);
    let one = stack(std::slice::from_ref(&first));
    let reason = refused(&one, &apply(&[&second]), &known(&second));
    assert_eq!(reason.code, ReasonCode::RevertsFix);
    assert_eq!(reason.message(), "patch 2 was not built from C of patch 1 and would undo its fix");
    // The other order is no better.
    let two = stack(std::slice::from_ref(&second));
    assert_eq!(refused(&two, &apply(&[&first]), &known(&second)).code, ReasonCode::RevertsFix);
    // Merged, it says that it fixes the other's issue as well.
    let merged = fixing(second.clone(), &["ACME-1", "ACME-2"]);
    assert!(go(&one, &apply(&[&merged]), &known(&merged)).is_ok());
    // Superseding is said by its publisher.
    let mut successor = second.clone();
    successor.supersedes = vec![1];
    assert!(go(&one, &apply(&[&successor]), &known(&successor)).is_ok());
    // Built over a third one, which is not in the stack.
    let third = patch(3, &[class("C", "c0", "c2", "c3")]);
    let built = patch(2, &[class("C", "c0", "c1", "c2")]);
    let all = super::known(&[first.clone(), built.clone(), third.clone()]);
    assert!(go(&one, &apply(&[&third]), &all).is_ok());
    let without = super::known(&[first.clone(), third.clone()]);
    assert_eq!(refused(&one, &apply(&[&third]), &without).code, ReasonCode::RevertsFix);
}

#[test]
fn t08_a_family_is_not_split_between_two_patches() {
    let whole = patch(1, &[class("a.H", "h0", "h0", "h1"), class("a.H$1", "i0", "i0", "i1")]);
    let part = patch(2, &[class("a.H", "h0", "h1", "h2")]);
    let known_ = known(&[whole.clone(), part.clone()]);
    let reason = refused(&stack(std::slice::from_ref(&whole)), &apply(&[&part]), &known_);
    assert_eq!(reason.code, ReasonCode::SplitFamily);
    assert_eq!(reason.message(), "patch 2 ships a.H without a.H$1, which then comes from patch 1");
    // A new build that no longer has the inner class says so.
    let mut gone = part.clone();
    gone.removed = vec!["a.H$1".into()];
    assert!(
        go(&stack(std::slice::from_ref(&whole)), &apply(&[&gone]), &known(&[whole, gone.clone()])).is_ok()
    );
}

#[test]
fn t09_a_superset_retires_the_smaller_one_and_a_subset_is_contained() {
    let small = fixing(patch(1, &[class("C", "c0", "c0", "c1")]), &["ACME-1"]);
    let large = fixing(
        patch(2, &[class("C", "c0", "c0", "c2"), class("D", "d0", "d0", "d2")]),
        &["ACME-1", "ACME-2"],
    );
    let known = known(&[small.clone(), large.clone()]);
    let two = go(&stack(std::slice::from_ref(&small)), &apply(&[&large]), &known).unwrap();
    assert!(two.layers[1].retired && !two.layers[0].retired);
    assert_eq!(two.notes[0].message(), "patch 1 retires: patch 2 supersedes it");
    // It comes back when the successor goes.
    let back = go(&two.layers, &remove(&[2]), &known).unwrap();
    assert!(!back.layers[0].retired);
    assert_eq!(back.notes[0].code, ReasonCode::PatchBack);
    // The other way round there is nothing to do.
    let reason = refused(&stack(std::slice::from_ref(&large)), &apply(&[&small]), &known);
    assert_eq!(reason.message(), "patch 1 is contained in patch 2, which is in the stack");
    // A superset that does not ship all that the smaller one ships: it is offered.
    let other = fixing(patch(3, &[class("D", "d0", "d0", "d3")]), &["ACME-1", "ACME-3"]);
    let known = super::known(&[small.clone(), other.clone()]);
    let offered = go(&stack(std::slice::from_ref(&small)), &apply(&[&other]), &known).unwrap();
    assert!(offered.layers.iter().all(|layer| !layer.retired));
    assert_eq!(offered.notes[0].code, ReasonCode::PatchSuperset);
}

#[test]
fn what_a_retired_patch_superseded_stays_retired_until_both_are_gone() {
    let one = patch(1, &[class("C", "c0", "c0", "c1")]);
    let mut two = patch(2, &[class("C", "c0", "c0", "c2")]);
    let mut three = patch(3, &[class("C", "c0", "c0", "c3")]);
    two.supersedes = vec![1];
    three.supersedes = vec![2];
    let specs = [one, two, three];
    let known = known(&specs);
    let all = stack(&specs);
    let retired =
        |layers: &[Layer]| -> Vec<u32> { layers.iter().filter(|l| l.retired).map(|l| l.number).collect() };
    assert_eq!(retired(&all), [2, 1]);
    let two = go(&all, &remove(&[3]), &known).unwrap().layers;
    assert_eq!(retired(&two), [1]);
    assert!(retired(&go(&two, &remove(&[2]), &known).unwrap().layers).is_empty());
}

#[test]
fn what_another_is_built_on_is_not_taken_out_unless_that_is_recorded() {
    let specs = chain();
    let known = known(&specs);
    let two = stack(&specs);
    let reason = refused(&two, &remove(&[1]), &known);
    assert_eq!(reason.code, ReasonCode::StackBuiltOn);
    let contained = go(&two, &StackChange { contained: true, ..remove(&[1]) }, &known).unwrap().layers;
    assert_eq!((numbers(&contained), &contained[0].contains), (vec![2], &vec![1]));
    assert_eq!(in_force(&contained, &known), [("C".to_owned(), 2)]);
    // It is still there, so it can't be applied beside.
    assert_eq!(refused(&contained, &apply(&[&specs[0]]), &known).code, ReasonCode::PatchContained);
    // Both at once is no question.
    assert!(go(&two, &remove(&[1, 2]), &known).unwrap().layers.is_empty());
    // A third, built on the second, takes over what that one contains.
    let third = patch(3, &[class("C", "c0", "c2", "c3")]);
    let known = super::known(&[specs[0].clone(), specs[1].clone(), third.clone()]);
    let three = go(&contained, &apply(&[&third]), &known).unwrap().layers;
    let last = go(&three, &StackChange { contained: true, ..remove(&[2]) }, &known).unwrap().layers;
    assert_eq!(last[0].contains, [2, 1]);
}

#[test]
fn the_middle_can_be_taken_out_where_nothing_is_built_on_it() {
    let specs = [1, 2, 3].map(|n| patch(n, &[class(&format!("C{n}"), "c", "c", &format!("c{n}"))]));
    let known = known(&specs);
    assert_eq!(numbers(&go(&stack(&specs), &remove(&[2]), &known).unwrap().layers), [3, 1]);
}

#[test]
fn requirements_hold_in_every_direction() {
    let one = patch(1, &[class("C", "c0", "c0", "c1")]);
    let mut two = patch(2, &[class("D", "d0", "d0", "d1")]);
    two.requires = vec![1];
    let mut three = patch(3, &[class("C", "c0", "c0", "c3")]);
    three.supersedes = vec![1];
    let specs = [one.clone(), two.clone(), three.clone()];
    let known = known(&specs);
    let reason = refused(&[], &apply(&[&two]), &known);
    assert_eq!(reason.message(), "patch 2 needs patch 1 in the stack");
    let both = go(&[], &apply(&[&two, &one]), &known).unwrap().layers;
    assert_eq!(refused(&both, &remove(&[1]), &known).code, ReasonCode::PatchRequires);
    // What supersedes the required one will do.
    let all = go(&both, &apply(&[&three]), &known).unwrap().layers;
    assert!(go(&all, &remove(&[1]), &known).is_ok());
}

#[test]
fn a_number_is_one_release() {
    let one = patch(1, &[class("C", "c0", "c0", "c1")]);
    let other = patch(1, &[class("D", "d0", "d0", "d1")]);
    let known = known(&[one.clone(), other.clone()]);
    let layers = stack(std::slice::from_ref(&one));
    let reason = refused(&layers, &apply(&[&other]), &known);
    assert_eq!(reason.message(), "patch 1 of `shop` is another release already: shop@p1");
    // The same once more changes nothing.
    assert_eq!(go(&layers, &apply(&[&one]), &known).unwrap().layers, layers);
}

#[test]
fn a_patch_for_other_bases_is_refused() {
    let mut spec = patch(1, &[class("C", "c0", "c0", "c1")]);
    spec.base.versions = vec!["1.0".parse().unwrap()];
    let known = known(&[spec.clone()]);
    let on =
        |base: &ReleaseRef| change(&[], &apply(&[&spec]), &known, &Ground { base: Some(base), java: None });
    assert!(on(&base("1.0", 1)).is_ok());
    let reason = on(&base("2.0", 2)).unwrap_err();
    assert_eq!(reason.code, ReasonCode::WrongBase);
    assert_eq!(reason.message(), "needs base 1.0, the node runs shop@2.0");
}

#[test]
fn a_new_base_keeps_what_is_for_it_and_loses_no_fix_silently() {
    let mut old = fixing(patch(1, &[class("C", "c0", "c0", "c1")]), &["ACME-1"]);
    old.base.versions = vec!["1.0".parse().unwrap()];
    let both = fixing(patch(2, &[class("D", "d0", "d0", "d1")]), &["ACME-2"]);
    let again = fixing(patch(3, &[class("C", "e0", "e0", "e1")]), &["ACME-1"]);
    let specs = [old.clone(), both.clone(), again.clone()];
    let known = known(&specs);
    let layers = stack(&[old, both.clone()]);
    let release_ = base("2.0", 2);
    let fixes = |ids: &[&str]| fixing(patch(9, &[]), ids).fixes;
    let carry = |fixed: &[&str], carry: &Carry, waived: &[&str]| {
        let fixed = fixes(fixed);
        let waived: Vec<String> = waived.iter().map(|id| (*id).to_owned()).collect();
        for_new_base(
            &layers,
            &NewBase { release: &release_, fixes: &fixed, java: None },
            carry,
            &waived,
            &known,
        )
    };
    let reason = carry(&[], &Carry::Valid, &[]).unwrap_err();
    assert_eq!((reason.code, reason.metadata["fix"].as_str()), (ReasonCode::FixLost, "ACME-1"));
    let kept = carry(&["ACME-1"], &Carry::Valid, &[]).unwrap();
    assert_eq!(numbers(&kept.layers), [2]);
    assert_eq!(kept.notes[0].message(), "patch 1 does not go along to shop@2.0");
    assert_eq!(numbers(&carry(&[], &Carry::Valid, &["ACME-1"]).unwrap().layers), [2]);
    let named = Carry::Named(vec![release(&both), release(&again)]);
    assert_eq!(numbers(&carry(&[], &named, &[]).unwrap().layers), [3, 2]);
    let nothing = Carry::Named(vec![]);
    assert_eq!(carry(&["ACME-1"], &nothing, &[]).unwrap_err().code, ReasonCode::FixLost);
    assert!(carry(&["ACME-1", "ACME-2"], &nothing, &[]).unwrap().layers.is_empty());
    // What the base contains already need not be carried.
    assert!(carry(&["ACME-1", "ACME-2"], &Carry::Valid, &[]).unwrap().layers.is_empty());
}

#[test]
fn a_patch_that_nobody_knows_is_no_patch() {
    let one = patch(1, &[class("C", "c0", "c0", "c1")]);
    assert_eq!(refused(&[], &apply(&[&one]), &Known::new()).code, ReasonCode::NotFound);
}

#[test]
fn a_layer_has_the_number_of_its_patch() {
    let specs = chain();
    let mut layers = stack(&specs[..1]);
    layers[0].number = 7;
    let reason = check(&layers, &known(&specs), &Ground::default()).unwrap_err();
    assert_eq!(reason.message(), "the patch is not well made: shop@p1 is patch 1, not patch 7");
}

#[test]
fn parents_in_a_circle_end() {
    let one = patch(1, &[class("C", "c0", "c2", "c1")]);
    let two = patch(2, &[class("C", "c0", "c3", "c2")]);
    let three = patch(3, &[class("C", "c0", "c2", "c3")]);
    let all = known(&[one.clone(), two.clone(), three.clone()]);
    assert_eq!(refused(&[], &apply(&[&one, &three]), &all).code, ReasonCode::RevertsFix);
}
