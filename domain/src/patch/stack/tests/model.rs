//! Random sequences of changes against a model that knows nothing of how stacks are worked out: it keeps a set of
//! numbers, and for each class asks them from the top.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// Eight patches over six classes: two chains, a family, a successor, one that requires, one that stands alone.
fn patches() -> Vec<PatchSpec> {
    let mut all = vec![
        patch(1, &[class("A", "a0", "a0", "a1"), class("B", "b0", "b0", "b1")]),
        patch(2, &[class("A", "a0", "a1", "a2")]),
        patch(3, &[class("B", "b0", "b1", "b3"), class("C", "c0", "c0", "c3")]),
        patch(4, &[class("F", "f0", "f0", "f4"), class("F$1", "g0", "g0", "g4")]),
        patch(
            5,
            &[class("F", "f0", "f4", "f5"), class("F$1", "g0", "g4", "g5"), class("C", "c0", "c3", "c5")],
        ),
        patch(6, &[class("A", "a0", "a0", "a6"), class("B", "b0", "b0", "b6")]),
        patch(7, &[class("D", "d0", "d0", "d7")]),
        patch(10, &[class("A", "a0", "a2", "a10"), class("D", "d0", "d7", "d10")]),
    ];
    all[5].supersedes = vec![1, 2, 3];
    all[6].requires = vec![4];
    all
}

/// Which patch each one's classes were built from, written down by hand.
const BUILT_ON: [(u32, &[u32]); 4] = [(2, &[1]), (3, &[1]), (5, &[4, 3]), (10, &[2, 1, 7])];

fn superseded(numbers: &BTreeSet<u32>, number: u32) -> bool {
    numbers.contains(&6) && [1, 2, 3].contains(&number)
}

/// Who ships each class, from the top.
fn expected(numbers: &BTreeSet<u32>) -> BTreeMap<String, u32> {
    let mut map = BTreeMap::new();
    for spec in patches() {
        if numbers.contains(&spec.number) && !superseded(numbers, spec.number) {
            map.extend(spec.classes.iter().map(|class| (class.name.clone(), spec.number)));
        }
    }
    map
}

/// Whether the model lets these numbers stand together.
fn together(numbers: &BTreeSet<u32>) -> bool {
    let force: Vec<u32> = numbers.iter().copied().filter(|n| !superseded(numbers, *n)).collect();
    let built = |upper: u32| BUILT_ON.iter().find(|(n, _)| *n == upper).map_or(&[][..], |(_, on)| *on);
    let all = patches();
    let ships =
        |n: u32| all.iter().find(|spec| spec.number == n).unwrap().classes.iter().map(|c| c.name.clone());
    let overlap =
        |a: u32, b: u32| ships(a).collect::<BTreeSet<_>>().intersection(&ships(b).collect()).count() > 0;
    let pairs = force.iter().flat_map(|upper| force.iter().map(move |lower| (*upper, *lower)));
    pairs.filter(|(upper, lower)| upper > lower).all(|(u, l)| !overlap(u, l) || built(u).contains(&l))
        && (!numbers.contains(&7) || numbers.contains(&4))
}

/// What the model makes of taking one out.
fn may_go(numbers: &BTreeSet<u32>, number: u32) -> bool {
    !numbers.iter().any(|upper| BUILT_ON.iter().any(|(n, on)| n == upper && on.contains(&number)))
}

#[derive(Clone, Debug)]
enum Act {
    Apply(Vec<usize>),
    Remove(usize),
    To(usize),
    None,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => proptest::collection::vec(0..8usize, 1..4).prop_map(Act::Apply),
        4 => (0..8usize).prop_map(Act::Remove),
        1 => (0..8usize).prop_map(Act::To),
        1 => Just(Act::None),
    ]
}

/// The model's answer: the numbers afterwards, or that it is refused.
fn model(numbers: &BTreeSet<u32>, act: &Act) -> Option<BTreeSet<u32>> {
    let all: Vec<u32> = patches().iter().map(|spec| spec.number).collect();
    let mut after = numbers.clone();
    match act {
        Act::Apply(indices) => {
            let new: BTreeSet<u32> = indices.iter().map(|index| all[*index]).collect();
            let contained = |n: &u32| [1, 2, 3].contains(n) && numbers.contains(&6) && !new.contains(&6);
            if new.iter().any(contained) {
                return None;
            }
            after.extend(new);
        }
        Act::Remove(index) => {
            let number = all[*index];
            if !after.remove(&number) || !may_go(&after, number) {
                return None;
            }
        }
        Act::To(index) => {
            if !after.contains(&all[*index]) {
                return None;
            }
            after.retain(|number| *number <= all[*index]);
        }
        Act::None => after.clear(),
    }
    together(&after).then_some(after)
}

fn wanted(act: &Act) -> StackChange {
    let all = patches();
    match act {
        Act::Apply(indices) => apply(&indices.iter().map(|index| &all[*index]).collect::<Vec<_>>()),
        Act::Remove(index) => remove(&[all[*index].number]),
        Act::To(index) => StackChange { to_number: Some(all[*index].number), ..StackChange::default() },
        Act::None => StackChange { none: true, ..StackChange::default() },
    }
}

proptest! {
    // The seed is fixed, so that the 200 sequences are the same on every machine.
    #![proptest_config(ProptestConfig {
        cases: 200,
        rng_seed: proptest::test_runner::RngSeed::Fixed(0x0075_7066_6c65_6574),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn each_class_comes_from_where_the_model_says(acts in proptest::collection::vec(act(), 1..24)) {
        let known = known(&patches());
        let mut numbers = BTreeSet::new();
        let mut layers: Vec<Layer> = Vec::new();
        for act in &acts {
            let answer = change(&layers, &wanted(act), &known, &Ground::default());
            match model(&numbers, act) {
                None => prop_assert!(answer.is_err(), "{act:?} on {} was not refused", describe(&layers)),
                Some(after) => {
                    let changed = answer.map_err(|reason| TestCaseError::fail(format!("{act:?}: {reason}")))?;
                    (numbers, layers) = (after, changed.layers);
                }
            }
            let map: BTreeMap<String, u32> =
                effective(&layers, &known).into_iter().map(|(name, one)| (name.to_owned(), one.number)).collect();
            prop_assert_eq!(&map, &expected(&numbers));
            prop_assert!(layers.windows(2).all(|two| two[0].number > two[1].number));
        }
    }
}
