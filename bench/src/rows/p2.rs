//! The transport alone.

use super::Bench;
use crate::{
    bytes::{self, Shop},
    report::{Goal, Report, interleaved},
};

/// How to measure it.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    bytes: bytes::Args,
}

/// Measures it.
///
/// # Errors
/// Where a program is missing or fails.
pub fn run(bench: &Bench, args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("p2");
    let shop = Shop::open(bench, &args.bytes)?;
    // The controller hashes what it serves once; that is not part of a download.
    shop.agent(false, false)?;
    let (ours, theirs) = interleaved(args.bytes.runs, || shop.agent(false, false), || shop.curl())?;
    let [rate, cpu] = shop.measures("nginx and curl", &ours, &theirs);
    report.add(rate.goal(Goal::AtLeastTimesPeer(1.3)));
    report.add(cpu.goal(Goal::AtMostTimesPeer(0.8)));
    report.note(format!(
        "{} MiB from files in the page cache over TLS 1.3, whole processes with start and handshake. Ours with a client \
         certificate, the gate and HTTP/2; nginx with HTTP/1.1 and neither.",
        args.bytes.mib
    ));
    Ok(report.end())
}
