//! One node with a real agent and the example of a service, and what can become of its version.

use std::{
    cell::Cell,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::runtime::Runtime;
use upfleet_api::v1::{self, rollout::State};

use crate::{
    agents::{Agents, COMPONENT},
    api, child,
    controller::Controller,
    group,
    rows::Bench,
};

/// What the example calls itself; each release has another of the same length.
const NAME: &[u8] = b"shop 1.0.0";
/// How long a change may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks whether something is so.
const LOOK: Duration = Duration::from_millis(5);

/// How the service's version is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The shim owns the socket, and the new process starts beside the old one.
    Handover,
    /// The shim owns the socket, and the old process ends before the new one starts.
    SocketKept,
    /// The service opens its socket itself, as most do.
    StopThenStart,
}

/// The node.
pub(super) struct Site {
    runtime: Runtime,
    program: Vec<u8>,
    version: u64,
    address: SocketAddr,
    sick: PathBuf,
    agents: Agents,
    // Last but for what it needs: it holds the directory of all.
    controller: Controller,
}

impl Site {
    /// Starts it, with version 1 installed.
    pub(super) fn start(bench: &Bench, way: Way) -> anyhow::Result<Self> {
        let shop = bench.program("examples/shop").context(
            "the service is an example of the agent: `cargo build --release -p upfleet-agent --example shop`",
        )?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let controller = Controller::start(bench)?;
        let sick = controller.dir().join("sick");
        fs::write(&sick, "")?;
        let place = Cell::new(0);
        let agents = runtime.block_on(async {
            let api = controller.api().await?;
            let configure = |dir: &Path, port: u16| {
                place.set(port);
                configuration(dir, port, way, &sick)
            };
            Agents::configured(bench, &controller, &api, 1, configure).await
        })?;
        let address = ([127, 0, 0, 1], place.get()).into();
        let program = fs::read(shop)?;
        let mut site = Self { runtime, program, version: 0, address, sick, agents, controller };
        site.swap()?;
        Ok(site)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process that serves.
    pub(super) fn serving(&self) -> anyhow::Result<u32> {
        match self.processes()?[..] {
            [one] => Ok(one),
            ref others => anyhow::bail!("the shim has {} processes, not one", others.len()),
        }
    }

    /// Rolls the next version out; gives how long that took.
    pub(super) fn swap(&mut self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let name = self.roll_out(None)?;
        self.reach(&name, State::Succeeded)?;
        self.answers(self.version)?;
        Ok(began.elapsed())
    }

    /// Rolls a version out that falls ill once it alone serves, so that the agent puts the old one back.
    pub(super) fn roll_back(&mut self) -> anyhow::Result<Duration> {
        let (began, before, old) = (Instant::now(), self.serving()?, self.answered()?);
        let name = self.roll_out(None)?;
        let until = Instant::now() + PATIENCE;
        let new = loop {
            match self.processes()?[..] {
                [one] if one != before => break one,
                _ => anyhow::ensure!(Instant::now() < until, "the new version never came to serve alone"),
            }
            std::thread::sleep(LOOK);
        };
        fs::write(&self.sick, format!("{new}\n"))?;
        self.rolled_back(&name)?;
        let now = self.answered()?;
        anyhow::ensure!(now == old, "{now} answers, not {old}");
        anyhow::ensure!(self.serving()? != new, "the version that fell ill is still there");
        Ok(began.elapsed())
    }

    /// Rolls a version out that falls over at once; the old process must not notice.
    pub(super) fn refuse(&mut self) -> anyhow::Result<()> {
        let before = self.serving()?;
        let name = self.roll_out(Some(b"#!/bin/sh\nexit 3\n"))?;
        self.rolled_back(&name)?;
        anyhow::ensure!(self.serving()? == before, "the old version's process is another one now");
        Ok(())
    }

    /// Publishes the next version, or other bytes as that, and starts its rollout.
    fn roll_out(&mut self, bytes: Option<&[u8]>) -> anyhow::Result<String> {
        self.version += 1;
        let (number, version) = (self.version, format!("{}.0.0", self.version));
        let bytes = match bytes {
            Some(bytes) => [bytes, format!("# {number}\n").as_bytes()].concat(),
            None => renamed(&self.program, self.version)?,
        };
        self.runtime.block_on(async {
            // A connection that nobody has looked after for a while is closed by now.
            let api = self.controller.api().await?;
            api.publish(COMPONENT, &version, number, bytes.into()).await?;
            let name = api.create_rollout(api::all_at_once(COMPONENT, &version)).await?;
            api.start_rollout(&name).await?;
            Ok(name)
        })
    }

    fn reach(&self, name: &str, state: State) -> anyhow::Result<v1::Rollout> {
        self.runtime.block_on(async { self.controller.api().await?.reach(name, state, PATIENCE).await })
    }

    fn rolled_back(&self, name: &str) -> anyhow::Result<()> {
        self.reach(name, State::Halted)?;
        let upgrades = self.runtime.block_on(async {
            let api = self.controller.api().await?;
            let request = v1::ListUpgradesRequest { parent: name.to_owned(), ..Default::default() };
            anyhow::Ok(api.rollouts().list_upgrades(request).await?.into_inner().upgrades)
        })?;
        for upgrade in upgrades {
            let why = upgrade.reason.as_ref().map_or("", |reason| reason.message.as_str());
            let state = upgrade.state();
            anyhow::ensure!(state == v1::UpgradeState::RolledBack, "the upgrade is {state:?}: {why}");
        }
        let id = name.trim_start_matches("rollouts/");
        child::run(self.controller.cli().args(["rollout", "cancel", id, "--yes"])).map(drop)
    }

    fn answers(&self, version: u64) -> anyhow::Result<()> {
        let (wanted, found) = (String::from_utf8_lossy(&name(version)).into_owned(), self.answered()?);
        anyhow::ensure!(found == wanted, "{found} answers, not {wanted}");
        Ok(())
    }

    /// What `/version` says to a new connection.
    fn answered(&self) -> anyhow::Result<String> {
        let mut connection = TcpStream::connect(self.address)?;
        connection.write_all(b"GET /version HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        connection.read_to_string(&mut text)?;
        Ok(text.split_once("\r\n\r\n").context("an answer has a body")?.1.to_owned())
    }

    /// What the shim has running.
    fn processes(&self) -> anyhow::Result<Vec<u32>> {
        Ok(group::children(self.agents.shim()?))
    }
}

/// The name of a version.
fn name(version: u64) -> Vec<u8> {
    format!("shop {version:05}").into_bytes()
}

/// The program with another name in it.
fn renamed(program: &[u8], version: u64) -> anyhow::Result<Vec<u8>> {
    let places: Vec<usize> =
        program.windows(NAME.len()).enumerate().filter(|(_, part)| *part == NAME).map(|(at, _)| at).collect();
    anyhow::ensure!(!places.is_empty(), "the example does not name its version");
    let mut bytes = program.to_owned();
    for at in places {
        bytes[at..at + NAME.len()].copy_from_slice(&name(version));
    }
    Ok(bytes)
}

fn configuration(dir: &Path, port: u16, way: Way, sick: &Path) -> String {
    let (dir, sick) = (dir.display(), sick.display());
    let socket = format!("\n[[component.run.socket]]\nname = \"http\"\nlisten = \"127.0.0.1:{port}\"\n");
    let run = match way {
        Way::Handover => format!("activate = \"handover\"\ndrain_timeout = \"30s\"\n{socket}"),
        Way::SocketKept => format!("stop_timeout = \"30s\"\n{socket}"),
        Way::StopThenStart => {
            format!("stop_timeout = \"30s\"\nenv = {{ SHOP_LISTEN = \"127.0.0.1:{port}\" }}\n")
        }
    };
    // The second probe asks whether this very process was declared ill.
    format!(
        r#"state_dir = "{dir}/state"
run_dir = "{dir}/run"

[[component]]
name = "{COMPONENT}"
path = "{dir}/app/{COMPONENT}"

[component.run]
mode = "supervised"
{run}
[[component.probe]]
type = "notify"
interval = "50ms"
timeout = "5s"
successes = 1
failures = 2

[[component.probe]]
type = "exec"
command = ["/bin/sh", "-c", "! grep -qx \"$1\" \"$2\"", "sh", "{{pid}}", "{sick}"]
interval = "200ms"
timeout = "5s"
successes = 1
failures = 2

[component.health]
soak = "1s"
start_deadline = "60s"
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_has_a_name_of_its_own() {
        let renamed = renamed(b"..shop 1.0.0..shop 1.0.0", 12).unwrap();
        assert_eq!(renamed, b"..shop 00012..shop 00012");
        assert!(super::renamed(b"nothing", 1).is_err());
    }
}
