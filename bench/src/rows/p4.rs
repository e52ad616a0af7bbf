//! All agents come back after the controller was started anew, as fast as it takes them, beside as many bare handshakes.
//!
//! How they come back by themselves, spread over time, is measured by `herd`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Bench,
    bed::{Bed, answers_only},
};
use crate::{
    peers::raw,
    report::{Goal, Measure, Report},
};

/// How to measure it.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// How many agents.
    #[arg(long, default_value_t = 10_000)]
    pub agents: usize,
    /// How often, ours and the peer in turn.
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
}

/// One run of either.
#[derive(Clone, Copy, Debug)]
struct Found {
    wall: Duration,
    /// Of the server.
    cpu: Duration,
    refused: u64,
}

/// Measures it.
///
/// # Errors
/// Where a program is missing or fails, or an agent does not come back.
pub fn run(bench: &Bench, args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("p4");
    let mut bed = Bed::new(bench, args.agents)?;
    // Known to the controller from an earlier session, as agents that return are.
    drop(bed.connect(args.agents, answers_only())?);
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for run in 0..args.runs.max(1) {
        let first = run % 2 == 0;
        if first {
            ours.push(come_back(&mut bed, args.agents)?);
        }
        peer.push(handshakes(args.agents)?);
        if !first {
            ours.push(come_back(&mut bed, args.agents)?);
        }
    }
    let seconds = |all: &[Found]| all.iter().map(|found| found.wall.as_secs_f64()).collect::<Vec<_>>();
    let micros = |all: &[Found]| {
        all.iter().map(|found| found.cpu.as_secs_f64() * 1e6 / args.agents as f64).collect::<Vec<_>>()
    };
    report.add(
        Measure::new("all are back after", "s")
            .ours(seconds(&ours))
            .peer(seconds(&peer))
            .goal(Goal::AtMostTimesPeer(1.5)),
    );
    report.add(Measure::new("CPU of the server per agent", "µs").ours(micros(&ours)).peer(micros(&peer)));
    let refused = ours.iter().map(|found| found.refused as f64);
    report.add(Measure::new("refused for good", "agents").ours(refused).goal(Goal::AtMost(0.0)));
    report.note(format!(
        "{} agents, at most 128 on their way at once; ours: handshake, session, inventory, welcome, in the simulator's \
         process; the peer: rustls on both ends, a handshake and one byte.",
        args.agents
    ));
    Ok(report.end())
}

fn come_back(bed: &mut Bed, agents: usize) -> anyhow::Result<Found> {
    bed.controller.kill();
    bed.controller.restart()?;
    bed.settle()?;
    let (before, began) = (bed.controller.usage()?, Instant::now());
    let fleet = bed.connect(agents, answers_only())?;
    let (wall, after) = (began.elapsed(), bed.controller.usage()?);
    let refused = fleet.stats().counts().refusals;
    bed.runtime.block_on(fleet.stop());
    Ok(Found { wall, cpu: after.cpu - before.cpu, refused })
}

fn handshakes(agents: usize) -> anyhow::Result<Found> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let server = Arc::new(raw::Server::start()?);
    let (before, began) = (server.usage()?, Instant::now());
    let clients = runtime.block_on(server.connect_all(agents))?;
    let (wall, after) = (began.elapsed(), server.usage()?);
    drop(clients);
    Ok(Found { wall, cpu: after.cpu - before.cpu, refused: 0 })
}
