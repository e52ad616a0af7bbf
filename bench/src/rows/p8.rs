//! The agent by itself: a real one with one supervised component and a real controller. Its memory and CPU while nothing
//! happens, its peak while it upgrades a file of 1 GiB, and the size of its executable. There is no peer.

use std::{collections::BTreeMap, ffi::OsString, fs, path::Path, process::Command, time::Duration};

use upfleet_api::v1;

use super::Bench;
use crate::{
    agents::{Agents, COMPONENT, Health, padded},
    api, child,
    controller::Controller,
    report::{Goal, Measure, Report},
    usage,
};

/// The small release that is there while nothing happens.
const SMALL: u64 = 20_000_000;
/// How long after an upgrade an agent is idle: the threads that worked on files end 10 s later.
const SETTLE: Duration = Duration::from_secs(20);
const MIB: f64 = (1 << 20) as f64;

/// How to measure it.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// How often: each run has an agent of its own.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// How long nothing happens, in seconds.
    #[arg(long, default_value_t = 60)]
    idle_s: u64,
    /// The large release, in bytes.
    #[arg(long, default_value_t = 1 << 30)]
    large: u64,
}

/// What one agent needed.
#[derive(Clone, Copy, Debug, Default)]
struct Needs {
    fresh: f64,
    idle: f64,
    own: f64,
    peak: f64,
    cpu_percent: f64,
    shim: f64,
    shim_cpu_percent: f64,
    threads: f64,
}

/// Measures it.
///
/// # Errors
/// Where a program is missing or fails.
pub fn run(bench: &Bench, args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("p8");
    let runs = (0..args.runs.max(1)).map(|_| measure(bench, args)).collect::<anyhow::Result<Vec<_>>>()?;
    let all = |of: fn(&Needs) -> f64| runs.iter().map(of).collect::<Vec<_>>();
    report.add(Measure::new("resident, started", "MiB").ours(all(|needs| needs.fresh)));
    report.add(
        Measure::new("resident, idle after an upgrade", "MiB")
            .ours(all(|needs| needs.idle))
            .goal(Goal::AtMost(10.0)),
    );
    report.add(Measure::new("of it no page of a file, idle", "MiB").ours(all(|needs| needs.own)));
    let peak = format!("resident, peak while upgrading {} MiB", args.large >> 20);
    report.add(Measure::new(&peak, "MiB").ours(all(|needs| needs.peak)).goal(Goal::AtMost(24.0)));
    report.add(
        Measure::new("CPU while idle", "% of a core")
            .ours(all(|needs| needs.cpu_percent))
            .goal(Goal::AtMost(0.05)),
    );
    report.add(
        Measure::new("executable, stripped", "MB").ours([stripped(bench)? / 1e6]).goal(Goal::AtMost(12.0)),
    );
    report.add(Measure::new("threads while idle", "").ours(all(|needs| needs.threads)));
    report.add(Measure::new("its shim: resident", "MiB").ours(all(|needs| needs.shim)));
    report.add(
        Measure::new("its shim: CPU while idle", "% of a core").ours(all(|needs| needs.shim_cpu_percent)),
    );
    report.note(format!(
        "Idle is {} s with a supervised service, an HTTP probe every second and a session; resident memory counts \
         the pages of the executable that the kernel has mapped, which its shims share.",
        args.idle_s
    ));
    Ok(report.end())
}

fn measure(bench: &Bench, args: &Args) -> anyhow::Result<Needs> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let controller = Controller::start(bench)?;
    let api = runtime.block_on(controller.api())?;
    let health = Health { interval: Duration::from_secs(1), soak: Duration::from_secs(1) };
    let agents = runtime.block_on(Agents::start(bench, &controller, &api, 1, health))?;
    let agent = agents.first()?;
    let fresh = usage::of(agent)?.resident as f64 / MIB;
    let upgrade = |version: &str, size: u64| -> anyhow::Result<()> {
        let file = controller.dir().join("release");
        padded(bench, &file, size, size)?;
        let mut create = controller.cli();
        child::run(
            create.args(["release", "create", &format!("{COMPONENT}@{version}"), "--file"]).arg(&file),
        )?;
        fs::remove_file(&file)?;
        runtime.block_on(async {
            // A connection that nobody has looked after for a while is closed by now.
            let api = controller.api().await?;
            let name = api.create_rollout(api::all_at_once(COMPONENT, version)).await?;
            api.start_rollout(&name).await?;
            api.reach(&name, v1::rollout::State::Succeeded, Duration::from_secs(600)).await.map(drop)
        })
    };
    upgrade("1.0.0", SMALL)?;
    // What is done after an upgrade is no part of being idle.
    std::thread::sleep(SETTLE);
    let shim = agents.shim()?;
    let before = (busy(agent)?, busy(shim)?);
    std::thread::sleep(Duration::from_secs(args.idle_s));
    let percent = |pid, before: &Threads| -> anyhow::Result<f64> {
        Ok(since(before, &busy(pid)?).as_secs_f64() * 100.0 / args.idle_s as f64)
    };
    let mut needs = Needs {
        fresh,
        cpu_percent: percent(agent, &before.0)?,
        shim_cpu_percent: percent(shim, &before.1)?,
        idle: usage::of(agent)?.resident as f64 / MIB,
        own: usage::of(agent)?.own as f64 / MIB,
        shim: usage::of(shim)?.resident as f64 / MIB,
        threads: fs::read_dir(format!("/proc/{agent}/task"))?.count() as f64,
        peak: 0.0,
    };
    upgrade("2.0.0", args.large)?;
    needs.peak = usage::of(agent)?.peak as f64 / MIB;
    Ok(needs)
}

/// Nanoseconds of CPU time by thread: ticks are too coarse for a process that sleeps.
type Threads = BTreeMap<OsString, u64>;

fn busy(pid: u32) -> anyhow::Result<Threads> {
    let mut threads = Threads::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        // A thread may end between the two.
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let nanos = text.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0);
        threads.insert(task.file_name(), nanos);
    }
    Ok(threads)
}

/// What all threads did since: one that ended takes nothing of the others' away.
fn since(before: &Threads, after: &Threads) -> Duration {
    let did = |(thread, nanos): (&OsString, &u64)| nanos - before.get(thread).unwrap_or(&0).min(nanos);
    Duration::from_nanos(after.iter().map(did).sum())
}

/// The size of the agent's executable without symbols.
fn stripped(bench: &Bench) -> anyhow::Result<f64> {
    let dir = tempfile::tempdir()?;
    let copy = dir.path().join("upfleet-agent");
    fs::copy(bench.program("upfleet-agent")?, &copy)?;
    // Without the tool it is measured as it is.
    if super::peer("strip").is_ok() {
        child::run(Command::new("strip").arg(&copy))?;
    }
    size(&copy)
}

fn size(path: &Path) -> anyhow::Result<f64> {
    Ok(fs::metadata(path)?.len() as f64)
}
