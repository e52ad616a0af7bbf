//! Plans for 100,000 nodes, and transitions stored per second beside what 32 clients reach on PostgreSQL one by one.

use std::time::{Duration, Instant};

use super::{
    Bench,
    bed::{Bed, at_once},
};
use crate::{
    fleet::{fleet, spec},
    peers::postgres,
    report::{Goal, Measure, Report},
    timing::time,
};
use upfleet_domain::rollout::plan::plan;

/// How to measure it.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// How many nodes the plan is for.
    #[arg(long, default_value_t = 100_000)]
    pub nodes: usize,
    /// How many agents report.
    #[arg(long, default_value_t = 5_000)]
    pub agents: usize,
    /// How often.
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
}

/// What every upgrade that goes well reports, PREFLIGHT to SUCCEEDED.
const TRANSITIONS: usize = 8;

/// Measures it.
///
/// # Errors
/// Where a program is missing or fails.
pub fn run(bench: &Bench, args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("p10");
    let (facts, wanted) = (fleet(args.nodes), spec("*"));
    let timing = time(args.runs, || plan(&wanted, &facts).expect("the spec is valid"));
    let planned = Measure::new(&format!("plan for {} nodes", args.nodes), "s");
    report.add(planned.ours([timing.median.as_secs_f64()]).goal(Goal::AtMost(1.0)));
    let mut stored = Measure::new("transitions stored by a rollout (one row by each of 32 clients)", "1/s");
    let mut per_transition = Measure::new("CPU of the controller per transition", "µs");
    let server = postgres::Server::start()?;
    for _ in 0..args.runs.max(1) {
        let (rate, cpu) = transitions(bench, args.agents)?;
        stored = stored.ours([rate]).peer([server.rows_per_second(32, 5)?]);
        per_transition = per_transition.ours([cpu]);
    }
    report.add(stored.goal(Goal::AtLeastTimesPeer(5.0)));
    report.add(per_transition);
    report.note(format!(
        "{} agents over TLS whose upgrades take no time; ours from StartRollout to the last end stored, the engine's own \
         steps, orders and acknowledgements included. The peer: one row updated per transaction, no network, no TLS.",
        args.agents
    ));
    Ok(report.end())
}

/// Reports stored per second, and CPU per report in microseconds.
fn transitions(bench: &Bench, agents: usize) -> anyhow::Result<(f64, f64)> {
    let bed = Bed::new(bench, agents)?;
    let fleet = bed.connect(agents, at_once())?;
    bed.settle()?;
    let api = bed.api()?;
    let name = bed.plan(&api, "2.0.0")?;
    bed.settle()?;
    let before = bed.controller.usage()?;
    let began = Instant::now();
    bed.runtime.block_on(api.start_rollout(&name))?;
    let wanted = (agents * TRANSITIONS) as u64;
    while fleet.stats().counts().recorded < wanted {
        std::thread::sleep(Duration::from_millis(10));
        anyhow::ensure!(began.elapsed() < Duration::from_secs(300), "stuck: {:?}", fleet.stats().counts());
    }
    let took = began.elapsed();
    let cpu = bed.controller.usage()?.cpu - before.cpu;
    bed.succeeded(&api, &name)?;
    Ok((wanted as f64 / took.as_secs_f64(), cpu.as_secs_f64() * 1e6 / wanted as f64))
}
