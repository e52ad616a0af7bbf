//! What a fleet costs the controller, against its size.

use std::time::{Duration, Instant};

use super::{
    Bench,
    bed::{Bed, answers_only, per_agent},
};
use crate::{
    report::{Goal, Measure, Report},
    sim::Mark,
};

/// How to measure it.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The sizes, smallest first. A process can't have more connections than file descriptors.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 19_000])]
    pub agents: Vec<usize>,
    /// How long the idle fleet is watched, in seconds.
    #[arg(long, default_value_t = 60)]
    pub idle: u64,
}

/// What one size cost per agent.
struct Found {
    agents: usize,
    connect: f64,
    memory: f64,
    idle: f64,
    push: f64,
    took: f64,
    enrolled: f64,
}

/// Measures it.
///
/// # Errors
/// Where a program is missing or fails.
pub fn run(bench: &Bench, args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("p12");
    let mut all = Vec::new();
    for agents in &args.agents {
        all.push(one(bench, *agents, args.idle)?);
    }
    let first = &all[0];
    for found in &all {
        let name = |what: &str| format!("{} agents: {what}", found.agents);
        // The smallest fleet is the peer of the others: per agent, none may cost more, but for what a run differs by.
        let goal = |measure: Measure, reference: f64| match found.agents == first.agents {
            true => measure,
            false => measure.peer([reference]).goal(Goal::AtMostTimesPeer(1.1)),
        };
        let connect = Measure::new(&name("CPU per agent to connect"), "µs").ours([found.connect]);
        report.add(goal(connect, first.connect));
        let memory = Measure::new(&name("resident per agent"), "KiB").ours([found.memory]);
        report.add(goal(memory, first.memory));
        report.add(Measure::new(&name("CPU per agent and minute, idle"), "ms").ours([found.idle]));
        let push = Measure::new(&name("CPU per agent of a push"), "µs").ours([found.push]);
        report.add(goal(push, first.push));
        report.add(Measure::new(&name("push, last acknowledged"), "ms").ours([found.took]));
        report.add(Measure::new(&name("enrolled per second"), "1/s").ours([found.enrolled]));
    }
    report.note("The peer of a size is the smallest size: at most as much per agent means linear or better.");
    Ok(report.end())
}

fn one(bench: &Bench, agents: usize, idle: u64) -> anyhow::Result<Found> {
    let bed = Bed::new(bench, agents)?;
    let fleet = bed.connect(agents, answers_only())?;
    bed.settle()?;
    let connected = bed.controller.usage()?;
    std::thread::sleep(Duration::from_secs(idle));
    let rested = bed.controller.usage()?;
    let api = bed.api()?;
    let name = bed.plan(&api, "2.0.0")?;
    bed.settle()?;
    let before = bed.controller.usage()?;
    fleet.stats().note();
    let began = Instant::now();
    bed.runtime.block_on(api.start_rollout(&name))?;
    while fleet.stats().noted(Mark::Recorded) < agents {
        std::thread::sleep(Duration::from_millis(10));
        anyhow::ensure!(began.elapsed() < Duration::from_secs(300), "stuck: {:?}", fleet.stats().counts());
    }
    let took = began.elapsed();
    let pushed = bed.controller.usage()?;
    let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / agents as f64;
    Ok(Found {
        agents,
        connect: each(connected.cpu - bed.empty.cpu),
        memory: per_agent(rested, bed.empty, agents),
        idle: each(rested.cpu - connected.cpu) / 1e3 * 60.0 / idle.max(1) as f64,
        push: each(pushed.cpu - before.cpu),
        took: took.as_secs_f64() * 1e3,
        enrolled: agents as f64 / bed.enrolled.as_secs_f64(),
    })
}
