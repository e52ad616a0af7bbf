//! The controller is killed and started again: all agents return at once (R20).

use std::time::{Duration, Instant};

use super::{
    Bench,
    bed::{Bed, answers_only},
};
use crate::{
    report::{Goal, Measure, Report, percentile},
    sim::Mark,
};

/// How to measure it.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// How many agents.
    #[arg(long, default_value_t = 5_000)]
    pub agents: usize,
    /// How often.
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// How long the controller stays away, in seconds. Agents' waits grow meanwhile.
    #[arg(long, default_value_t = 5)]
    pub away: u64,
}

/// Measures it.
///
/// # Errors
/// Where a program is missing or fails, or an agent does not return.
pub fn run(bench: &Bench, args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("herd");
    let mut bed = Bed::new(bench, args.agents)?;
    let fleet = bed.connect(args.agents, answers_only())?;
    bed.settle()?;
    let (mut last, mut half, mut calls, mut cpu) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.runs.max(1) {
        bed.controller.kill();
        std::thread::sleep(Duration::from_secs(args.away));
        fleet.stats().note();
        let began = Instant::now();
        bed.controller.restart()?;
        let api = bed.api()?;
        let all = i64::try_from(args.agents).unwrap_or(i64::MAX);
        let honest = bed.runtime.block_on(async {
            let mut honest = Vec::new();
            while fleet.stats().counts().connected < all {
                let asked = Instant::now();
                api.users().get_caller(upfleet_api::v1::GetCallerRequest {}).await?;
                honest.push(asked.elapsed().as_secs_f64() * 1e3);
                tokio::time::sleep(Duration::from_millis(20)).await;
                anyhow::ensure!(began.elapsed() < Duration::from_secs(180), "{:?}", fleet.stats().counts());
            }
            anyhow::Ok(honest)
        })?;
        last.push(began.elapsed().as_secs_f64());
        let online = fleet.stats().millis(Mark::Online, began);
        half.extend(percentile(&online, 0.5).map(|ms| ms / 1e3));
        calls.extend(percentile(&honest, 0.99));
        cpu.push(bed.controller.usage()?.cpu.as_secs_f64() * 1e6 / args.agents as f64);
        bed.settle()?;
    }
    let counts = fleet.stats().counts();
    report.add(Measure::new("all are back after", "s").ours(last).goal(Goal::AtMost(60.0)));
    report.add(Measure::new("half are back after", "s").ours(half));
    report.add(Measure::new("an admin's call meanwhile, p99", "ms").ours(calls).goal(Goal::AtMost(1000.0)));
    report.add(Measure::new("CPU of the controller per agent", "µs").ours(cpu));
    report.add(
        Measure::new("refused for good", "agents").ours([counts.refusals as f64]).goal(Goal::AtMost(0.0)),
    );
    report.note(format!("{counts:?}"));
    Ok(report.end())
}
