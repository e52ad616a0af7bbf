//! A file and a restart on 50 nodes: real agents with the real controller, beside parallel ssh and ansible on as many
//! pseudo-hosts of this machine.
//!
//! Ours verifies the bytes as they lie on the disk, makes them durable, keeps the old version, restarts the service
//! through its shim, probes it over HTTP, watches it for the soak time and reports each step into the controller's
//! store. The peers copy the file, check its SHA-256 and restart the service; they neither sync, nor keep, nor probe.

mod hosts;
mod peers;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use upfleet_api::v1;

use self::hosts::Hosts;
use super::Bench;
use crate::{
    agents::{Agents, COMPONENT, Health, padded},
    api,
    controller::Controller,
    group,
    report::{Goal, Measure, Report},
};

/// How to measure it.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// How many nodes.
    #[arg(long, default_value_t = 50)]
    hosts: usize,
    /// The file's size in bytes.
    #[arg(long, default_value_t = 20_000_000)]
    size: u64,
    /// How often each is measured.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// How often ansible is, which takes long; 0 leaves it out.
    #[arg(long, default_value_t = 1)]
    ansible_runs: usize,
    /// How many hosts the peers treat at once.
    #[arg(long, default_value_t = 10)]
    forks: usize,
    /// How long a new version is watched after its first good probe, in milliseconds.
    #[arg(long, default_value_t = 0)]
    soak_ms: u64,
    /// Leaves the peers out: to look at ours alone.
    #[arg(long)]
    ours_only: bool,
}

/// One run.
#[derive(Clone, Copy, Debug)]
struct Cost {
    wall: Duration,
    cpu: Duration,
}

impl Cost {
    /// Of `work`, with the CPU time of all processes of the run's directory.
    fn of(dir: &Path, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Self> {
        let (began, before) = (Instant::now(), group::cpu(dir));
        work()?;
        let wall = began.elapsed();
        Ok(Self { wall, cpu: group::cpu(dir).saturating_sub(before) })
    }
}

/// Measures it.
///
/// # Errors
/// Where a program is missing or fails.
pub fn run(bench: &Bench, args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("p6");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let controller = Controller::start(bench)?;
    let api = runtime.block_on(controller.api())?;
    let health = Health { interval: Duration::from_millis(100), soak: Duration::from_millis(args.soak_ms) };
    let agents = runtime.block_on(Agents::start(bench, &controller, &api, args.hosts, health))?;
    let mut ours = Ours { bench, controller: &controller, args, version: 0 };
    runtime.block_on(ours.roll_out())?;

    let mut upfleet = Vec::new();
    let mut measure_ours = || runtime.block_on(ours.roll_out()).map(|cost| upfleet.push(cost));
    let (mut ssh, mut ansible) = (Vec::new(), Vec::new());
    if args.ours_only {
        (0..args.runs).try_for_each(|_| measure_ours())?;
    } else {
        let mut hosts = Hosts::start(bench, args.hosts, args.size)?;
        peers::parallel_ssh(&mut hosts, args.forks)?;
        for _ in 0..args.runs {
            measure_ours()?;
            ssh.push(peers::parallel_ssh(&mut hosts, args.forks)?);
        }
        for _ in 0..args.ansible_runs {
            ansible.push(peers::ansible(&mut hosts, args.forks)?);
        }
    }
    drop(agents);
    compare(&mut report, args.hosts, &upfleet, &ssh, &ansible);
    report.note(format!(
        "{} nodes, {} bytes; soak {} ms, probe every {} ms, one good probe; all nodes of ours at once, {} hosts of the peers'.",
        args.hosts,
        args.size,
        args.soak_ms,
        health.interval.as_millis(),
        args.forks
    ));
    report.note(
        "CPU is that of all processes of either side: servers, clients, agents, shims and the service.",
    );
    if !bench.is_release() {
        report.note("These are not the programs of target/release.");
    }
    Ok(report.end())
}

/// A part of what a run cost.
type Part = fn(&Cost) -> Duration;

fn compare(report: &mut Report, hosts: usize, ours: &[Cost], ssh: &[Cost], ansible: &[Cost]) {
    let wall = |cost: &Cost| cost.wall;
    let cpu = |cost: &Cost| cost.cpu;
    let rows: [(&str, Part, &[Cost], Option<f64>); 4] = [
        ("wall per node (parallel ssh)", wall, ssh, Some(1.0 / 3.0)),
        ("wall per node (ansible)", wall, ansible, Some(1.0 / 15.0)),
        ("CPU per node (parallel ssh)", cpu, ssh, Some(0.35)),
        ("CPU per node (ansible)", cpu, ansible, None),
    ];
    let per_host = |costs: &[Cost], of: Part| {
        costs.iter().map(|cost| of(cost).as_secs_f64() * 1e3 / hosts as f64).collect::<Vec<_>>()
    };
    for (name, of, peer, goal) in rows {
        let mut measure = Measure::new(name, "ms").ours(per_host(ours, of)).peer(per_host(peer, of));
        measure.goal = goal.map(|limit| Goal::AtMostTimesPeer((limit * 1000.0_f64).round() / 1000.0));
        report.add(measure);
    }
}

/// Our side: each run is a release of its own.
struct Ours<'a> {
    bench: &'a Bench,
    controller: &'a Controller,
    args: &'a Args,
    version: u64,
}

impl Ours<'_> {
    /// Publishes the next version and rolls it out to all at once; what the publishing costs is not counted, as the
    /// peers have their file too.
    async fn roll_out(&mut self) -> anyhow::Result<Cost> {
        self.version += 1;
        let version = format!("{}.0.0", self.version);
        let file = self.controller.dir().join("release");
        padded(self.bench, &file, self.args.size, self.version)?;
        // A manifest without MD5, which the peers have not either.
        // A connection that nobody has looked after for a while, as while the peers are measured, is closed by now.
        let api = self.controller.api().await?;
        api.publish(COMPONENT, &version, self.version, fs::read(&file)?.into()).await?;
        let (began, before) = (Instant::now(), group::cpu(self.controller.dir()));
        let name = api.create_rollout(api::all_at_once(COMPONENT, &version)).await?;
        api.start_rollout(&name).await?;
        let patience = Duration::from_secs(300);
        let done = api.reach(&name, v1::rollout::State::Succeeded, patience).await?;
        let wall = began.elapsed();
        let cpu = group::cpu(self.controller.dir()).saturating_sub(before);
        anyhow::ensure!(done.end_time.is_some(), "{name} has not ended");
        Ok(Cost { wall, cpu })
    }
}
