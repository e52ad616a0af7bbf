//! The `upfleet-bench` executable: one command per row of docs/performance.md, and the fleet simulator.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use upfleet_bench::{
    report::{Format, Report},
    rows::{self, Bench},
};

/// Measures Upfleet beside its peers, and simulates fleets.
#[derive(Parser, Debug)]
#[command(name = "upfleet-bench", version)]
struct Cli {
    /// Where `upfleet` and `upfleet-agent` lie; beside this program where unset.
    #[arg(long, global = true, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// How to print the figures.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    /// Fail where a goal is missed.
    #[arg(long, global = true)]
    strict: bool,
    #[command(subcommand)]
    row: Row,
}

#[derive(Subcommand, Debug)]
enum Row {
    /// A download to disk by one agent, beside curl from nginx with sha256sum and md5sum.
    P1(rows::p1::Args),
    /// The transport alone, beside nginx and curl.
    P2(rows::p2::Args),
    /// The controller's memory per connected agent, beside a NATS server.
    P3(rows::p3::Args),
    /// All agents come back after the controller was started anew, beside bare handshakes.
    P4(rows::p4::Args),
    /// From `rollout start` to the last acknowledgement, beside a NATS publish-and-reply to all.
    P5(rows::p5::Args),
    /// A file and a restart on 50 nodes, beside parallel ssh and ansible.
    P6(rows::p6::Args),
    /// The agent's memory, idle CPU and size.
    P8(rows::p8::Args),
    /// Plans for 100,000 nodes, and transitions stored per second beside PostgreSQL.
    P10(rows::p10::Args),
    /// From the first bad node's report to no more nodes started.
    P11(rows::p11::Args),
    /// Cost against fleet size.
    P12(rows::p12::Args),
    /// A service changes version under load, beside stop-then-start and nginx's own upgrade.
    #[command(alias = "p9")]
    Handover(rows::handover::Args),
    /// Every agent returns at once after the controller was killed.
    Herd(rows::herd::Args),
    /// One download by the agent's own code; p1 and p2 start it.
    #[command(hide = true)]
    Fetch(upfleet_bench::bytes::fetch::Args),
    /// A server that takes handshakes only; p4 starts it.
    #[command(hide = true)]
    RawTls(upfleet_bench::peers::raw::Args),
    /// Simulates a fleet against any controller, for planning capacity.
    Simulate(rows::simulate::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(report)) => {
            print!("{}", report.print(cli.output));
            if cli.strict && !report.is_good() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Gives a report, or nothing where one of our own processes was to do its part.
fn run(cli: &Cli) -> anyhow::Result<Option<Report>> {
    let bench = Bench::new(cli.bin_dir.clone())?;
    let report = match &cli.row {
        Row::Fetch(args) => return upfleet_bench::bytes::fetch::run(args).map(|()| None),
        Row::RawTls(args) => return upfleet_bench::peers::raw::serve(args).map(|()| None),
        Row::P1(args) => rows::p1::run(&bench, args),
        Row::P2(args) => rows::p2::run(&bench, args),
        Row::P3(args) => rows::p3::run(&bench, args),
        Row::P4(args) => rows::p4::run(&bench, args),
        Row::P5(args) => rows::p5::run(&bench, args),
        Row::P6(args) => rows::p6::run(&bench, args),
        Row::P8(args) => rows::p8::run(&bench, args),
        Row::P10(args) => rows::p10::run(&bench, args),
        Row::P11(args) => rows::p11::run(&bench, args),
        Row::P12(args) => rows::p12::run(&bench, args),
        Row::Handover(args) => rows::handover::run(&bench, args),
        Row::Herd(args) => rows::herd::run(&bench, args),
        Row::Simulate(args) => rows::simulate::run(args),
    }?;
    Ok(Some(report))
}
