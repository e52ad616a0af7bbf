//! The controller's resident memory per connected agent, idle and after a push, beside a NATS server's with as many
//! subscribers.

use std::{sync::Arc, time::Duration};

use super::{
    Bench,
    bed::{Bed, answers_only, per_agent},
};
use crate::{
    peers::nats,
    report::{Goal, Measure, Report, interleaved},
    sim::Mark,
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
    /// How long all are left alone before memory is read, in seconds. The peer's language collects its garbage every two
    /// minutes.
    #[arg(long, default_value_t = 150)]
    pub idle: u64,
}

/// One run of either.
#[derive(Clone, Copy, Debug)]
struct Found {
    idle: f64,
    pushed: f64,
    total: f64,
    peak: f64,
    handshake: f64,
}

/// Measures it.
///
/// # Errors
/// Where a program is missing or fails.
pub fn run(bench: &Bench, args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("p3");
    let (ours, peer) = interleaved(args.runs, || ours(bench, args), || theirs(args))?;
    let of = |all: &[Found], pick: fn(&Found) -> f64| all.iter().map(pick).collect::<Vec<_>>();
    let both = |name: &str, unit, pick: fn(&Found) -> f64| {
        Measure::new(name, unit).ours(of(&ours, pick)).peer(of(&peer, pick))
    };
    report.add(both("resident per agent, idle", "KiB", |f| f.idle).goal(Goal::AtMostTimesPeer(1.0)));
    report
        .add(both("resident per agent, after a push", "KiB", |f| f.pushed).goal(Goal::AtMostTimesPeer(1.0)));
    report.add(
        Measure::new("the same, as it should be", "KiB")
            .ours(of(&ours, |f| f.pushed))
            .goal(Goal::AtMost(25.0)),
    );
    report.add(both("resident in all, after a push", "MiB", |f| f.total).goal(Goal::AtMost(1024.0)));
    report.add(both("the most that was resident", "MiB", |f| f.peak).goal(Goal::AtMost(1024.0)));
    report.add(both("CPU to take in one agent", "µs", |f| f.handshake));
    report.note(format!(
        "{} agents, mutual TLS 1.3, one stream each; per agent: above what the server used before anybody came.",
        args.agents
    ));
    Ok(report.end())
}

fn ours(bench: &Bench, args: &Args) -> anyhow::Result<Found> {
    let bed = Bed::new(bench, args.agents)?;
    let fleet = bed.connect(args.agents, answers_only())?;
    let taken_in = bed.controller.usage()?;
    bed.settle()?;
    std::thread::sleep(Duration::from_secs(args.idle));
    let idle = bed.controller.usage()?;
    let api = bed.api()?;
    let name = bed.plan(&api, "2.0.0")?;
    fleet.stats().note();
    bed.runtime.block_on(api.start_rollout(&name))?;
    while fleet.stats().noted(Mark::Recorded) < args.agents {
        std::thread::sleep(Duration::from_millis(100));
    }
    bed.settle()?;
    std::thread::sleep(Duration::from_secs(args.idle));
    let pushed = bed.controller.usage()?;
    Ok(found(bed.empty, taken_in, idle, pushed, args.agents))
}

fn theirs(args: &Args) -> anyhow::Result<Found> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let server = Arc::new(nats::Server::start()?);
    let empty = server.usage()?;
    runtime.block_on(async {
        let _subscribers = server.subscribers(args.agents).await?;
        let taken_in = server.usage()?;
        tokio::time::sleep(Duration::from_secs(args.idle)).await;
        let idle = server.usage()?;
        server.publish(&[b'x'; 600], args.agents).await?;
        tokio::time::sleep(Duration::from_secs(args.idle)).await;
        Ok(found(empty, taken_in, idle, server.usage()?, args.agents))
    })
}

fn found(
    empty: crate::usage::Usage,
    taken_in: crate::usage::Usage,
    idle: crate::usage::Usage,
    pushed: crate::usage::Usage,
    agents: usize,
) -> Found {
    let mib = |bytes: u64| bytes as f64 / 1024.0 / 1024.0;
    Found {
        idle: per_agent(idle, empty, agents),
        pushed: per_agent(pushed, empty, agents),
        total: mib(pushed.resident),
        peak: mib(pushed.peak),
        handshake: (taken_in.cpu - empty.cpu).as_secs_f64() * 1e6 / agents as f64,
    }
}
