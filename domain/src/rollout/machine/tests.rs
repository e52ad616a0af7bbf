//! The machine among simulated nodes: promises over many seeds, and single cases one by one.
//!
//! `sim` is the world (nodes that can fail, go silent and lose messages); here are the questions put to it.

use proptest::prelude::*;

use super::*;
use crate::rollout::{
    Budget, Cause, FailedNodes, NodeCount, OnFailure, PauseStrength, check::check, machine::tests::sim::*,
};

mod cases;
pub(crate) mod sim;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(260))]

    /// In 260 worlds of 400 events, 104,000 in all, in which messages are lost, repeated and late: never more than max unavailable, generations only grow, cancel wins, a crash between any two steps
    /// changes nothing, and in the end the rollout is terminal. The world asserts all of it as it goes.
    #[test]
    fn promises_hold_whatever_happens(seed: u64) {
        let mut world = World::random(seed);
        for _ in 0..400 {
            world.happen();
        }
        world.finish();
        prop_assert!(world.machine.rollout.state.is_terminal(), "{}", world.machine.rollout.reason);
    }
}

#[test]
fn a_crash_between_any_two_steps_changes_nothing() {
    for seed in 0..50 {
        let run = |reload: bool| {
            let mut world = World::random(seed);
            world.reload = reload;
            for _ in 0..200 {
                world.happen();
            }
            world.finish();
            (world.machine, world.told)
        };
        assert_eq!(run(false), run(true), "seed {seed}");
    }
}
