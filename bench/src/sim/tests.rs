//! Simulated agents against a real controller.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::Mark;
use crate::{
    rows::{
        Bench,
        bed::{Bed, answers_only, at_once},
    },
    skipped,
};

/// A bed of `nodes`, where `upfleet` was built.
fn bed(test: &str, nodes: usize) -> Option<Bed> {
    let bench = Bench::new(None).unwrap();
    if bench.program("upfleet").is_err() {
        skipped(test, "`upfleet` is not built");
        return None;
    }
    Some(Bed::new(&bench, nodes).unwrap())
}

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !so() {
        assert!(Instant::now() < deadline, "{what} took more than a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn fifty_agents_are_upgraded_and_return_after_a_kill() {
    let Some(mut bed) = bed("fifty_agents_are_upgraded_and_return_after_a_kill", 50) else { return };
    let fleet = bed.connect(50, at_once()).unwrap();
    let api = bed.api().unwrap();
    let name = bed.plan(&api, "2.0.0").unwrap();
    bed.runtime.block_on(api.start_rollout(&name)).unwrap();
    bed.succeeded(&api, &name).unwrap();
    until("recording all", || fleet.stats().counts().recorded == 8 * 50);
    bed.controller.kill();
    until("noticing the kill", || fleet.stats().counts().connected == 0);
    fleet.stats().note();
    bed.controller.restart().unwrap();
    until("returning", || fleet.stats().noted(Mark::Online) == 50);
    let counts = fleet.stats().counts();
    assert_eq!((counts.succeeded, counts.rolled_back, counts.refusals, counts.displaced), (50, 0, 0, 0));
}

/// Threads that leave the others little of the processor.
struct Starve(Arc<AtomicBool>, Vec<JoinHandle<()>>);

impl Starve {
    fn new() -> Self {
        let stop = Arc::<AtomicBool>::default();
        let spin = |stop: Arc<AtomicBool>| {
            std::thread::spawn(move || {
                while !stop.load(Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let threads = (0..4 * cores).map(|_| spin(stop.clone())).collect();
        Self(stop, threads)
    }
}

impl Drop for Starve {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
        self.1.drain(..).for_each(|thread| drop(thread.join()));
    }
}

#[test]
fn all_acknowledge_while_the_processor_is_starved() {
    let Some(bed) = bed("all_acknowledge_while_the_processor_is_starved", 100) else { return };
    let starved = Starve::new();
    let fleet = bed.connect(100, answers_only()).unwrap();
    let api = bed.api().unwrap();
    let name = bed.plan(&api, "2.0.0").unwrap();
    fleet.stats().note();
    bed.runtime.block_on(api.start_rollout(&name)).unwrap();
    until("acknowledging", || fleet.stats().noted(Mark::Recorded) == 100);
    drop(starved);
    assert_eq!(fleet.stats().counts().refusals, 0);
}
