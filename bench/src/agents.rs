//! Real agents: `upfleet-agent run` as processes of their own, each with its directory, its certificate and one
//! supervised component. They, their shims and what these run end with what holds them, also when that is killed.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;

use crate::{
    api::Api,
    child::{self, Program},
    controller::{Controller, Lifeline},
    group,
    rows::Bench,
};

/// The component that each of them looks after.
pub const COMPONENT: &str = "service";
/// How long all of them may take to come up.
const READY: Duration = Duration::from_secs(120);

/// How the component is probed and watched.
#[derive(Clone, Copy, Debug)]
pub struct Health {
    /// Between two probes.
    pub interval: Duration,
    /// How long a new version is watched.
    pub soak: Duration,
}

/// Agents that run.
pub struct Agents {
    programs: Vec<Program>,
    root: PathBuf,
    _lifeline: Lifeline,
}

impl Agents {
    /// Enrolls and starts `count` agents of `controller` below its directory, and waits until all are connected.
    ///
    /// # Errors
    /// Where `upfleet-agent` is missing, or one of them does not come up.
    pub async fn start(
        bench: &Bench,
        controller: &Controller,
        api: &Api,
        count: usize,
        health: Health,
    ) -> anyhow::Result<Self> {
        Self::configured(bench, controller, api, count, |dir, port| configuration(dir, port, health)).await
    }

    /// The same with a configuration of one's own: of a directory, and a port that is free.
    ///
    /// # Errors
    /// As [`Agents::start`].
    pub async fn configured(
        bench: &Bench,
        controller: &Controller,
        api: &Api,
        count: usize,
        configuration: impl Fn(&Path, u16) -> String,
    ) -> anyhow::Result<Self> {
        let agent = bench.program("upfleet-agent")?;
        let root = controller.dir().join("agents");
        let ports = free_ports(count)?;
        let mut agents = Self { programs: Vec::new(), root: root.clone(), _lifeline: Lifeline::new()? };
        for (index, port) in ports.into_iter().enumerate() {
            let name = format!("node-{}", index + 1);
            let dir = root.join(&name);
            fs::create_dir_all(dir.join("app"))?;
            fs::write(dir.join("agent.toml"), configuration(&dir, port))?;
            fs::write(dir.join("token"), api.token(&[]).await?)?;
            let mut enroll = command(&agent, &dir, "enroll");
            enroll.arg("--token-file").arg(dir.join("token")).args(["--node", &name]);
            child::run(&mut enroll)?;
            let mut run = command(&agent, &dir, "run");
            agents._lifeline.follow(&mut run);
            agents.programs.push(Program::start(&mut run, &dir.join("agent.log"))?);
        }
        agents.connected(api, count).await?;
        Ok(agents)
    }

    /// The directory of all of them, which stands in the command line of each process they start.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The process of the first.
    ///
    /// # Errors
    /// Where there is none.
    pub fn first(&self) -> anyhow::Result<u32> {
        self.programs.first().map(Program::pid).context("there is no agent")
    }

    /// The shim of the first, once it runs something.
    ///
    /// # Errors
    /// Where there is none.
    pub fn shim(&self) -> anyhow::Result<u32> {
        let is_shim = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(b"shim")
        };
        group::members(&self.root).into_iter().find(is_shim).context("there is no shim")
    }

    async fn connected(&self, api: &Api, count: usize) -> anyhow::Result<()> {
        let until = std::time::Instant::now() + READY;
        loop {
            let request = upfleet_api::v1::ListNodesRequest { page_size: 1000, ..Default::default() };
            let nodes = api.nodes().list_nodes(request).await?.into_inner().nodes;
            let ready = nodes.iter().filter(|node| node.online && !node.components.is_empty()).count();
            if ready == count {
                return Ok(());
            }
            let tails = || self.programs.first().map(Program::tail).unwrap_or_default();
            anyhow::ensure!(std::time::Instant::now() < until, "{ready} of {count} came up:\n{}", tails());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn command(agent: &Path, dir: &Path, verb: &str) -> Command {
    let mut command = Command::new(agent);
    command.arg(verb).arg("--config").arg(dir).env_remove("UPFLEET_AGENT_CONFIG").env("UPFLEET_LOG", "warn");
    command
}

/// An agent's configuration, as `upfleet dev` writes it but for the times.
fn configuration(dir: &Path, port: u16, health: Health) -> String {
    let dir = dir.display();
    let (interval, soak) = (health.interval.as_millis(), health.soak.as_millis());
    format!(
        r#"state_dir = "{dir}/state"
run_dir = "{dir}/run"

[[component]]
name = "{COMPONENT}"
path = "{dir}/app/{COMPONENT}"
kind = "binary"

[component.run]
mode = "supervised"
command = ["{{path}}", "--port", "{port}"]
stop_timeout = "2s"

[[component.probe]]
type = "http"
url = "http://127.0.0.1:{port}/healthz"
interval = "{interval}ms"
timeout = "2s"
successes = 1
failures = 3

[component.health]
soak = "{soak}ms"
start_deadline = "60s"
"#
    )
}

/// Ports that nobody listens on; all are held until the last is found, so that none comes twice.
///
/// # Errors
/// Where there are no more.
pub fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let held = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    Ok(held.iter().map(|listener| listener.local_addr().map(|at| at.port())).collect::<Result<_, _>>()?)
}

/// A file of `size` bytes that is the small program `upfleet-demo` with zeros and `seed` behind it, so that each seed
/// has a digest of its own and every one runs.
///
/// # Errors
/// Where it can't be written, or the program is larger than that.
pub fn padded(bench: &Bench, path: &Path, size: u64, seed: u64) -> anyhow::Result<()> {
    use std::{
        io::{Seek as _, SeekFrom, Write as _},
        os::unix::fs::PermissionsExt as _,
    };
    fs::copy(bench.program("upfleet-demo")?, path)?;
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    let length = file.metadata()?.len();
    anyhow::ensure!(length + 8 <= size, "`upfleet-demo` has {length} bytes already");
    file.set_len(size)?;
    file.seek(SeekFrom::Start(size - 8))?;
    file.write_all(&seed.to_le_bytes())?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_agent_has_ports_and_places_of_its_own() {
        let ports = free_ports(50).unwrap();
        let mut unique = ports.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), 50);
        let health = Health { interval: Duration::from_millis(100), soak: Duration::ZERO };
        let text = configuration(Path::new("/d/node-1"), 4711, health);
        assert!(
            text.contains("path = \"/d/node-1/app/service\"") && text.contains("soak = \"0ms\""),
            "{text}"
        );
        assert!(text.contains(r#"command = ["{path}", "--port", "4711"]"#), "{text}");
    }
}
