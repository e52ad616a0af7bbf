//! The fleet simulator as a command: a fleet of any size against any controller, for planning capacity.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use upfleet_domain::{id::ComponentId, state::ComponentState};

use crate::{
    api::Api,
    report::{Measure, Report},
    sim::{Behaviour, Counts, Fleet, Pace, Roster},
    tls,
};

/// What to simulate.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Where the controller's API listens, `host:port`. Its certificate must carry the name `localhost`, or see --name.
    #[arg(long, value_name = "HOST:PORT")]
    pub controller: String,
    /// How many agents.
    #[arg(long, default_value_t = 100)]
    pub agents: usize,
    /// The directory with an operator's `ca.crt`, `user.crt` and `user.key`, who may make tokens: that of a context.
    #[arg(long, value_name = "DIR")]
    pub context_dir: Option<PathBuf>,
    /// Where the nodes' certificates and keys are kept; with those of an earlier run nobody enrolls again.
    #[arg(long, value_name = "FILE", default_value = "simulated-nodes.json")]
    pub identities: PathBuf,
    /// How the nodes' names begin.
    #[arg(long, default_value = "sim-")]
    pub prefix: String,
    /// A label of each node, KEY=VALUE; may be given several times.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// A component of each node; may be given several times.
    #[arg(long = "component", value_name = "NAME", default_values_t = ["app".to_owned()])]
    pub components: Vec<String>,
    /// How many processes share the agents: each has at most as many connections as file descriptors.
    #[arg(long, default_value_t = 1)]
    pub processes: usize,
    /// Fetch artifacts really, over a connection of their own.
    #[arg(long)]
    pub download: bool,
    /// How long a fetch takes where nothing is fetched, in milliseconds, on average as the next two.
    #[arg(long, default_value_t = 1000)]
    pub fetch_ms: u64,
    /// How long switching and restarting takes.
    #[arg(long, default_value_t = 1000)]
    pub activate_ms: u64,
    /// How long a new version is watched.
    #[arg(long, default_value_t = 3000)]
    pub probe_ms: u64,
    /// On so many percent of the nodes a new version is unhealthy.
    #[arg(long, default_value_t = 0.0, value_name = "PERCENT")]
    pub failures: f64,
    /// End after so many seconds; without it when the program is interrupted.
    #[arg(long, value_name = "SECONDS")]
    pub seconds: Option<u64>,
    /// Simulates a part of the fleet for another process of this program.
    #[arg(long, hide = true)]
    pub part: Option<usize>,
}

/// Runs it.
///
/// # Errors
/// Where the nodes can't be enrolled or the controller can't be reached.
pub fn run(args: &Args) -> anyhow::Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if let Some(part) = args.part {
        runtime.block_on(simulate(args, part, &mut |counts| {
            println!("{}", serde_json::to_string(&counts).unwrap_or_default());
        }))?;
        return Ok(Report::new("part"));
    }
    runtime.block_on(enroll(args))?;
    let counts =
        if args.processes > 1 { parts(args)? } else { runtime.block_on(simulate(args, 0, &mut show))? };
    let mut report = Report::new("simulate");
    let whole = |name: &str, value: u64| Measure::new(name, "").ours([value as f64]);
    report.add(whole("connected at the end", counts.connected.unsigned_abs()));
    report.add(whole("sessions opened", counts.connects));
    report.add(whole("connections lost or not come about", counts.failures));
    report.add(whole("sessions refused", counts.refusals));
    report.add(whole("orders", counts.orders));
    report.add(whole("reports stored", counts.recorded));
    report.add(whole("upgrades succeeded", counts.succeeded));
    report.add(whole("upgrades rolled back", counts.rolled_back));
    report.add(whole("bytes fetched", counts.downloaded));
    Ok(report.end())
}

/// Makes sure that there are identities for all.
async fn enroll(args: &Args) -> anyhow::Result<()> {
    let mut known = if args.identities.exists() { Some(Roster::load(&args.identities)?) } else { None };
    let have = known.as_ref().map_or(0, |roster| roster.nodes.len());
    if have >= args.agents {
        return Ok(());
    }
    let directory = args.context_dir.as_deref().context(
        "there are not enough identities yet: name an operator's directory with --context-dir, e.g. \
         ~/.config/upfleet/contexts/default",
    )?;
    let ca = std::fs::read_to_string(directory.join("ca.crt"))?;
    let api = Api::connect(&args.controller, tls::of_context(directory)?).await?;
    let began = Instant::now();
    let names = (have..args.agents).map(|number| format!("{}{number:06}", args.prefix));
    let labels = args.labels.iter().map(|label| {
        let (key, value) = label.split_once('=').with_context(|| format!("`{label}` is not KEY=VALUE"))?;
        Ok((key.to_owned(), value.to_owned()))
    });
    let new = Roster::enroll(&api, &ca, names, &labels.collect::<anyhow::Result<Vec<_>>>()?).await?;
    eprintln!("enrolled {} nodes in {:.1} s", new.nodes.len(), began.elapsed().as_secs_f64());
    let mut roster = known.take().unwrap_or(Roster { ca, nodes: Vec::new() });
    roster.nodes.extend(new.nodes);
    roster.save(&args.identities)
}

fn show(counts: Counts) {
    let _ = writeln!(
        std::io::stderr(),
        "{} connected, {} lost, {} refused; {} orders, {} reports stored, {} succeeded, {} rolled back",
        counts.connected,
        counts.failures,
        counts.refusals,
        counts.orders,
        counts.recorded,
        counts.succeeded,
        counts.rolled_back
    );
}

/// Simulates one part of the fleet, and says every second what happened.
async fn simulate(args: &Args, part: usize, said: &mut dyn FnMut(Counts)) -> anyhow::Result<Counts> {
    let mut roster = Roster::load(&args.identities)?;
    roster.nodes.truncate(args.agents);
    let share = roster.nodes.len().div_ceil(args.processes.max(1));
    roster.nodes = roster.nodes.into_iter().skip(part * share).take(share).collect();
    let component = |name: &String| Ok((name.parse::<ComponentId>()?, ComponentState::absent()));
    let behaviour = Behaviour {
        controller: args.controller.clone(),
        components: args.components.iter().map(component).collect::<anyhow::Result<Vec<_>>>()?,
        pace: Pace {
            preflight: Duration::ZERO,
            fetch: Duration::from_millis(args.fetch_ms),
            activate: Duration::from_millis(args.activate_ms),
            probe: Duration::from_millis(args.probe_ms),
            failures: args.failures / 100.0,
        },
        download: args.download,
    };
    let fleet = Fleet::start(&roster, behaviour).await?;
    let until = args.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = tick.tick() => said(fleet.stats().counts()),
            _ = tokio::signal::ctrl_c() => break,
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
    }
    let counts = fleet.stats().counts();
    said(counts);
    fleet.stop().await;
    Ok(counts)
}

/// A process that simulates a part; it ends with this one.
struct Part(Child);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets several processes of this program simulate a part each, and adds up what they say.
fn parts(args: &Args) -> anyhow::Result<Counts> {
    let own = std::env::current_exe()?;
    let (said, heard) = std::sync::mpsc::channel();
    let mut processes = Vec::new();
    for part in 0..args.processes {
        let mut child = command(&own, args, part).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("its output is piped")?;
        processes.push(Part(child));
        let said = said.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Ok(counts) = serde_json::from_str::<Counts>(&line) {
                    let _ = said.send((part, counts));
                }
            }
        });
    }
    drop(said);
    let mut latest = vec![Counts::default(); args.processes];
    let mut shown = Instant::now();
    let sum = |latest: &[Counts]| {
        let mut sum = Counts::default();
        latest.iter().for_each(|counts| sum += *counts);
        sum
    };
    while let Ok((part, counts)) = heard.recv() {
        latest[part] = counts;
        if shown.elapsed() > Duration::from_secs(1) {
            show(sum(&latest));
            shown = Instant::now();
        }
    }
    Ok(sum(&latest))
}

fn command(own: &Path, args: &Args, part: usize) -> Command {
    let mut command = Command::new(own);
    command.args(["simulate", "--controller", &args.controller, "--part", &part.to_string()]);
    command.args(["--agents", &args.agents.to_string(), "--processes", &args.processes.to_string()]);
    command.arg("--identities").arg(&args.identities);
    for component in &args.components {
        command.args(["--component", component]);
    }
    for (name, value) in [
        ("--fetch-ms", args.fetch_ms.to_string()),
        ("--activate-ms", args.activate_ms.to_string()),
        ("--probe-ms", args.probe_ms.to_string()),
        ("--failures", args.failures.to_string()),
    ] {
        command.args([name, &value]);
    }
    if args.download {
        command.arg("--download");
    }
    if let Some(seconds) = args.seconds {
        command.args(["--seconds", &seconds.to_string()]);
    }
    command
}
