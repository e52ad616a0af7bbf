//! From `rollout start` to the moment when every agent was told that its first report is stored, beside a NATS
//! publish-and-reply to as many subscribers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Bench,
    bed::{Bed, answers_only},
};
use crate::{
    peers::nats,
    report::{Goal, Measure, Report, percentile},
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
}

/// One run of either.
#[derive(Clone, Debug, Default)]
struct Found {
    ordered: Vec<f64>,
    recorded: Vec<f64>,
    cpu: f64,
}

/// Measures it.
///
/// # Errors
/// Where a program is missing or fails.
pub fn run(bench: &Bench, args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("p5");
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    let server = Arc::new(nats::Server::start()?);
    let bed = Bed::new(bench, args.agents)?;
    for run in 0..args.runs.max(1) {
        let first = run % 2 == 0;
        if first {
            ours.push(push(&bed, args.agents)?);
        }
        peer.push(publish(&server, args.agents)?);
        if !first {
            ours.push(push(&bed, args.agents)?);
        }
    }
    let of =
        |all: &[Found], pick: &dyn Fn(&Found) -> Option<f64>| all.iter().filter_map(pick).collect::<Vec<_>>();
    let recorded = |at: f64| move |found: &Found| percentile(&found.recorded, at);
    let both = |name: &str, at: f64| {
        Measure::new(name, "ms").ours(of(&ours, &recorded(at))).peer(of(&peer, &recorded(at)))
    };
    report.add(both("acknowledged, p50", 0.5));
    report.add(both("acknowledged, p99", 0.99).goal(Goal::AtMostTimesPeer(1.0)));
    report.add(both("acknowledged, last", 1.0));
    report.add(Measure::new("ordered, p99", "ms").ours(of(&ours, &|f| percentile(&f.ordered, 0.99))));
    let cpu = |found: &Found| Some(found.cpu);
    let cpu = Measure::new("CPU of the server", "ms").ours(of(&ours, &cpu)).peer(of(&peer, &cpu));
    report.add(cpu.goal(Goal::AtMostTimesPeer(0.6)));
    report.note(format!(
        "{} agents. Ours: StartRollout is sent at 0; an agent has acknowledged once the controller has told it that its \
         first report is stored. The peer stores nothing: a publisher counts the replies.",
        args.agents
    ));
    Ok(report.end())
}

fn push(bed: &Bed, agents: usize) -> anyhow::Result<Found> {
    let fleet = bed.connect(agents, answers_only())?;
    bed.settle()?;
    let api = bed.api()?;
    let name = bed.plan(&api, "2.0.0")?;
    bed.settle()?;
    let before = bed.controller.usage()?;
    fleet.stats().note();
    let began = Instant::now();
    bed.runtime.block_on(api.start_rollout(&name))?;
    while fleet.stats().noted(Mark::Recorded) < agents {
        std::thread::sleep(Duration::from_millis(10));
        anyhow::ensure!(
            began.elapsed() < Duration::from_secs(120),
            "{} of {agents} acknowledged: {:?}",
            fleet.stats().noted(Mark::Recorded),
            fleet.stats().counts()
        );
    }
    let after = bed.controller.usage()?;
    let found = Found {
        ordered: fleet.stats().millis(Mark::Ordered, began),
        recorded: fleet.stats().millis(Mark::Recorded, began),
        cpu: (after.cpu - before.cpu).as_secs_f64() * 1e3,
    };
    bed.runtime.block_on(async {
        let request = upfleet_api::v1::CancelRolloutRequest { name, ..Default::default() };
        api.rollouts().cancel_rollout(request).await
    })?;
    bed.settle()?;
    bed.runtime.block_on(fleet.stop());
    bed.settle()?;
    Ok(found)
}

fn publish(server: &Arc<nats::Server>, agents: usize) -> anyhow::Result<Found> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let _subscribers = server.subscribers(agents).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let before = server.usage()?;
        // As large as an order with its manifest.
        let recorded = server.publish(&[b'x'; 600], agents).await?;
        let cpu = (server.usage()?.cpu - before.cpu).as_secs_f64() * 1e3;
        Ok(Found { recorded, cpu, ..Found::default() })
    })
}
