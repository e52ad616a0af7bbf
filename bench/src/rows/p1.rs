//! A download to disk by one agent.

use super::Bench;
use crate::{
    bytes::{self, Shop, file_system},
    report::{Goal, Measure, Report, interleaved},
};

/// How to measure it.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    bytes: bytes::Args,
    /// Also make the peer's file durable before it is done.
    #[arg(long)]
    peer_syncs: bool,
}

/// Measures it.
///
/// # Errors
/// Where a program is missing or fails.
pub fn run(bench: &Bench, args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("p1");
    let shop = Shop::open(bench, &args.bytes)?;
    // The controller hashes what it serves once; that is not part of a download.
    shop.agent(false, false)?;
    let mut peak = Vec::new();
    for (with_md5, what) in [(true, "SHA-256 and MD5"), (false, "SHA-256 alone")] {
        let (ours, theirs) = interleaved(
            args.bytes.runs,
            || shop.agent(true, with_md5),
            || shop.curl_and_sums(with_md5, args.peer_syncs),
        )?;
        peak.extend(ours.iter().map(|cost| cost.peak as f64 / 1_048_576.0));
        let [rate, cpu] = shop.measures(&format!("{what}; curl and sums"), &ours, &theirs);
        report.add(rate.goal(Goal::AtLeastTimesPeer(2.0)));
        report.add(cpu.goal(Goal::AtMostTimesPeer(0.7)));
    }
    report.add(Measure::new("agent's peak resident memory", "MiB").ours(peak).goal(Goal::AtMost(24.0)));
    report.note(format!(
        "{} MiB on {}; ours with fsync, the peer's {}. Ours: the agent's download alone, in a process of its own, \
         without staging and start.",
        args.bytes.mib,
        file_system(args.bytes.dir.as_deref()),
        if args.peer_syncs { "with `sync`" } else { "without" },
    ));
    Ok(report.end())
}
