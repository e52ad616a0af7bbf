//! A service changes its version under a steady load: by a real agent's handover, by stop-then-start, and nginx by its
//! own upgrade as the peer. What counts is how many requests fail.
//!
//! The service has one core, with agent, shim and controller beside it; the load has another. The rate is the highest
//! that the service gives on its core, found first. Requests take 200 ms in the service.

mod nginx;
mod ours;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use self::{
    nginx::Nginx,
    ours::{Site, Way},
};
use super::Bench;
use crate::{
    load::{self, Counts, Load, Shape},
    report::{Goal, Measure, Report},
};

/// How long a load runs before and after the changes.
const AROUND: Duration = Duration::from_secs(3);
/// How long it runs to say what is usual.
const CALM: Duration = Duration::from_secs(14);
/// One kept connection in so many is idle for up to a second between its requests.
const IDLE_ONE_IN: usize = 10;
/// Clients that are tried for the highest rate, until more of them don't bring more answers.
const RAMP: [usize; 8] = [500, 1000, 2000, 3000, 4000, 5500, 7000, 8500];

/// How to measure it.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// How often the version changes.
    #[arg(long, default_value_t = 20)]
    swaps: usize,
    /// How often a version falls ill after it took over, and is rolled back.
    #[arg(long, default_value_t = 20)]
    rollbacks: usize,
    /// How often a version falls over before it takes over.
    #[arg(long, default_value_t = 5)]
    refusals: usize,
    /// How many clients make the load; as many as give the highest rate where unset.
    #[arg(long)]
    clients: Option<usize>,
    /// How many of 100 clients keep their connection; the others make a new one for each request.
    #[arg(long, default_value_t = 50)]
    kept_percent: usize,
    /// Leaves the peer out.
    #[arg(long)]
    ours_only: bool,
    /// Leaves stop-then-start out.
    #[arg(long)]
    handover_only: bool,
}

impl Args {
    fn shape(&self, address: SocketAddr, clients: usize) -> Shape {
        let kept = clients * self.kept_percent.min(100) / 100;
        Shape { address, kept, fresh: clients - kept, idle_one_in: IDLE_ONE_IN }
    }
}

/// What one way of changing a version came to.
struct Found {
    counts: Counts,
    changes: usize,
    /// Seconds that each change took.
    spans: Vec<f64>,
}

/// Measures it.
///
/// # Errors
/// Where a program is missing or fails.
pub fn run(bench: &Bench, args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("handover");
    let cores = load::cores()?;
    let own = (cores.len() > 1).then(|| cores[1]);
    // What this thread starts from here on, which is all but the load, stays on the first core.
    load::pin(cores[0])?;
    let mut site = Site::start(bench, Way::Handover)?;
    let clients = match args.clients {
        Some(clients) => clients,
        None => highest(&mut report, args, site.address(), own)?,
    };
    let shape = args.shape(site.address(), clients);
    let calm = under_load(shape, own, 1, || {
        std::thread::sleep(CALM);
        Ok(CALM)
    })?;
    let handover = under_load(shape, own, args.swaps, || site.swap())?;
    let rollback = under_load(shape, own, args.rollbacks, || site.roll_back())?;
    let refusal = under_load(shape, own, args.refusals, || timed(|| site.refuse()))?;
    drop(site);
    let peer = match args.ours_only {
        true => None,
        false => {
            let nginx = Nginx::start()?;
            let shape = args.shape(nginx.address(), clients);
            Some(under_load(shape, own, args.swaps, || timed(|| nginx.upgrade()))?)
        }
    };
    let slower = Measure::new("p99 while the version changes (undisturbed)", "ms");
    let slower = slower.ours([handover.counts.millis(0.99)]).peer([calm.counts.millis(0.99)]);
    report.add(slower.goal(Goal::AtMostTimesPeer(1.5)));
    report.add(Measure::new("p50 undisturbed", "ms").ours([calm.counts.millis(0.5)]));
    report.add(Measure::new("slowest undisturbed", "ms").ours([calm.counts.millis(1.0)]));
    add(&mut report, "handover", &handover, peer.as_ref(), true);
    add(&mut report, "rollback after the takeover", &rollback, None, true);
    add(&mut report, "rollback before it", &refusal, None, true);
    if !args.handover_only {
        for (way, name) in
            [(Way::SocketKept, "stop-then-start, socket kept"), (Way::StopThenStart, "stop-then-start")]
        {
            let mut site = Site::start(bench, way)?;
            let shape = args.shape(site.address(), clients);
            let found = under_load(shape, own, args.swaps, || site.swap())?;
            add(&mut report, name, &found, None, false);
        }
    }
    report.note(format!(
        "{clients} clients with one request at a time, {} % of them on kept connections, one in {IDLE_ONE_IN} of those idle for \
         up to 1 s in between; the others connect anew each time. No request is tried twice. The peer of the handover: nginx's \
         USR2, WINCH, QUIT, its answers delayed by auth_delay.",
        args.kept_percent,
    ));
    if own.is_none() {
        report.note("There is one core only: the load shares it.");
    }
    if !bench.is_release() {
        report.note("These are not the programs of target/release.");
    }
    Ok(report.end())
}

/// How many clients bring the most answers per second.
fn highest(
    report: &mut Report,
    args: &Args,
    address: SocketAddr,
    core: Option<usize>,
) -> anyhow::Result<usize> {
    let (mut best, mut most) = (0, 0.0);
    let mut seen = Vec::new();
    for clients in RAMP {
        let found = under_load(args.shape(address, clients), core, 0, || Ok(Duration::ZERO))?;
        let rate = found.counts.rate();
        seen.push(format!(
            "{clients}: {rate:.0}/s, p99 {:.0} ms, the load's core {:.0} % busy",
            found.counts.millis(0.99),
            100.0 * found.counts.cpu.as_secs_f64() / found.counts.took.as_secs_f64(),
        ));
        // Five in a hundred is what two runs differ by.
        if rate < most * 1.05 {
            break;
        }
        (best, most) = (clients, rate);
    }
    report.note(format!("Answers without a change, by clients: {}.", seen.join("; ")));
    report.add(Measure::new("highest rate of one core", "1/s").ours([most]));
    Ok(best)
}

/// Runs the load over a number of changes, one after the other.
fn under_load(
    shape: Shape,
    core: Option<usize>,
    changes: usize,
    mut change: impl FnMut() -> anyhow::Result<Duration>,
) -> anyhow::Result<Found> {
    let load = Load::start(shape, core);
    std::thread::sleep(AROUND);
    let mut spans = Vec::new();
    let mut done = Ok(());
    for _ in 0..changes {
        match change() {
            Ok(span) => spans.push(span.as_secs_f64()),
            Err(error) => {
                done = Err(error);
                break;
            }
        }
    }
    std::thread::sleep(AROUND);
    // Ended before the failure is told, so that its thread does not go on.
    let counts = load.end()?;
    done?;
    Ok(Found { counts, changes, spans })
}

fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed())
}

/// A figure of what was found.
type Figure = fn(&Found) -> f64;

fn add(report: &mut Report, way: &str, found: &Found, peer: Option<&Found>, promised: bool) {
    let figures: [(&str, &'static str, Figure, bool); 9] = [
        ("changes", "", |found| found.changes as f64, false),
        ("requests", "", |found| found.counts.requests() as f64, false),
        ("failed", "", |found| found.counts.failed() as f64, true),
        ("refused", "", |found| found.counts.refused as f64, true),
        ("answers per second", "1/s", |found| found.counts.rate(), false),
        ("p50", "ms", |found| found.counts.millis(0.5), false),
        ("p99", "ms", |found| found.counts.millis(0.99), false),
        ("slowest", "ms", |found| found.counts.millis(1.0), false),
        ("one change", "s", |found| crate::report::median(&found.spans).unwrap_or(0.0), false),
    ];
    for (name, unit, of, is_promise) in figures {
        let mut measure = Measure::new(&format!("{way}: {name}"), unit).ours([of(found)]);
        if let Some(peer) = peer {
            measure = measure.peer([of(peer)]);
        }
        report.add(if promised && is_promise { measure.goal(Goal::AtMost(0.0)) } else { measure });
    }
    for (who, found) in [(way, Some(found)), ("the peer", peer)] {
        if let Some(counts) = found.map(|found| &found.counts).filter(|counts| !counts.last.is_empty()) {
            report.note(format!(
                "{who}: {} ended without a whole answer, {} came late, {} with another code; the last: {}",
                counts.broken, counts.late, counts.wrong, counts.last
            ));
        }
    }
}
