//! Finds a copied key: two agent processes that displace each other in turn. Pure.

use std::collections::{BTreeMap, VecDeque};

use upfleet_domain::{id::NodeId, time::Time};

/// So many displacements between the same two processes make a clone …
const LIMIT: usize = 3;
/// … when they happen within so many milliseconds.
const WINDOW_MILLIS: i64 = 60_000;
/// Displacements remembered per node; more can't lie in the window without having made a clone.
const MEMORY: usize = 16;

#[derive(Debug)]
struct Displacement {
    /// The two processes, in alphabetical order: who displaced whom does not matter.
    pair: (String, String),
    time: Time,
}

/// Recent displacements of all nodes.
#[derive(Debug, Default)]
pub struct Clones(BTreeMap<NodeId, VecDeque<Displacement>>);

impl Clones {
    /// A session of `newer` displaced one of `older`; whether that makes them a clone.
    ///
    /// The same process again is a reconnect and counts for nothing. A process that was started anew displaces
    /// its predecessor once, and never the other way.
    pub fn displaced(&mut self, node: &NodeId, older: &str, newer: &str, now: Time) -> bool {
        if older == newer {
            return false;
        }
        self.forget_before(Time(now.0.saturating_sub(WINDOW_MILLIS)));
        let (first, second) = if older < newer { (older, newer) } else { (newer, older) };
        let pair = (first.to_owned(), second.to_owned());
        let recent = self.0.entry(node.clone()).or_default();
        recent.push_back(Displacement { pair: pair.clone(), time: now });
        if recent.len() > MEMORY {
            recent.pop_front();
        }
        let clone = recent.iter().filter(|displacement| displacement.pair == pair).count() >= LIMIT;
        if clone {
            self.0.remove(node);
        }
        clone
    }

    fn forget_before(&mut self, oldest: Time) {
        self.0.retain(|_, recent| {
            recent.retain(|displacement| displacement.time >= oldest);
            !recent.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays displacements `(older, newer, seconds)`; which of them made a clone.
    fn play(events: &[(&str, &str, i64)]) -> Vec<bool> {
        let mut clones = Clones::default();
        let node = "web-01".parse().unwrap();
        let one =
            |(older, newer, at): &(&str, &str, i64)| clones.displaced(&node, older, newer, Time(at * 1000));
        events.iter().map(one).collect()
    }

    #[test]
    fn two_processes_in_turn_are_a_clone_at_the_third() {
        assert_eq!(play(&[("a", "b", 0), ("b", "a", 20), ("a", "b", 59)]), [false, false, true]);
    }

    #[test]
    fn slow_turns_are_no_clone() {
        assert_eq!(play(&[("a", "b", 0), ("b", "a", 30), ("a", "b", 61)]), [false, false, false]);
    }

    #[test]
    fn a_process_that_is_restarted_often_is_no_clone() {
        assert_eq!(play(&[("a", "b", 0), ("b", "c", 1), ("c", "d", 2), ("d", "e", 3)]), [false; 4]);
    }

    #[test]
    fn reconnects_count_for_nothing() {
        assert_eq!(play(&[("a", "a", 0), ("a", "a", 1), ("a", "a", 2), ("a", "b", 3)]), [false; 4]);
    }

    #[test]
    fn nothing_is_remembered_of_quiet_nodes() {
        let mut clones = Clones::default();
        for number in 0..1000 {
            let node = format!("n{number}").parse().unwrap();
            assert!(!clones.displaced(&node, "a", "b", Time(number * 1000)));
        }
        assert!(clones.0.len() <= 61, "{}", clones.0.len());
    }
}
