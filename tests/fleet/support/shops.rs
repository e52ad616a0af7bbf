//! A fleet whose component is the Java application of `java.rs`: changing its stack, asking the running JVMs.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::sync::{Semaphore, SemaphorePermit};
use upfleet_api::v1::{self, rollout::State, rollout_spec::Change};

use super::{
    fleet::{Fleet, TestFleet, count},
    java,
    program::{BASE, COMPONENT},
    wait::eventually,
};

/// JVMs are big: so many of these fleets at a time.
static ROOM: Semaphore = Semaphore::const_new(2);

/// A running fleet of shops, each with the base 1.0.0: price `old`, tax `old`.
pub struct Shops {
    pub fleet: TestFleet,
    pub jdk: &'static Path,
    /// The classes of the base.
    pub base: PathBuf,
    _room: SemaphorePermit<'static>,
}

impl Shops {
    /// Starts it with these keys of `[component.jvm]`; `None` where no JDK is installed.
    pub async fn start(test: &str, nodes: usize, keys: &str) -> Option<Self> {
        let shops = Self::empty(test, nodes, "binary", keys).await?;
        let jar = java::jar(shops.jdk, &shops.base);
        shops.fleet.api.publish(BASE, 1, &fs::read(jar).unwrap()).await;
        shops.run(shops.install(BASE)).await;
        Some(shops)
    }

    /// The same for a component of this kind, with nothing published and nothing installed.
    pub async fn empty(test: &str, nodes: usize, kind: &str, keys: &str) -> Option<Self> {
        let jdk = java::jdk(test)?;
        let room = ROOM.acquire().await.expect("nobody closes it");
        let base = java::build(jdk, "old", "old");
        let mut fleet = Fleet { nodes: 0, base: None, releases: vec![], ..Fleet::default() }.start().await;
        for number in 1..=nodes {
            let name = format!("n{number}");
            fleet.add_node(&name, None).await;
            configure(&fleet, &name, jdk, kind, keys);
            fleet.node_mut(&name).start();
            fleet.api.reach_online(&name, true).await;
        }
        Some(Self { fleet, jdk, base, _room: room })
    }

    /// Builds and publishes a patch that turns the base's classes into these; returns where it was built.
    pub fn patch(&self, number: u32, classes: &Path, more: &[&str]) -> PathBuf {
        self.patch_of(number, &self.base, classes, more)
    }

    /// The same for another base.
    pub fn patch_of(&self, number: u32, base: &Path, classes: &Path, more: &[&str]) -> PathBuf {
        let out = self.fleet.dir().join(format!("p{number}"));
        let text = number.to_string();
        let mut arguments = vec!["patch", "build", "--component", COMPONENT, "--number", &text];
        arguments.extend(["--from", base.to_str().unwrap(), "--to", classes.to_str().unwrap()]);
        arguments.extend(["--out", out.to_str().unwrap()]);
        arguments.extend(more);
        self.fleet.cli(&arguments).success();
        self.fleet.cli(&["patch", "publish", out.to_str().unwrap()]).success();
        out
    }

    /// A patch with this price and this tax.
    pub fn patch_to(&self, number: u32, price: &str, tax: &str, more: &[&str]) -> PathBuf {
        self.patch(number, &java::build(self.jdk, price, tax), more)
    }

    pub fn install(&self, version: &str) -> Change {
        super::api::change(version)
    }

    /// Everything at once.
    pub fn spec(&self, change: Change) -> v1::RolloutSpec {
        let mut spec = self.fleet.spec(BASE);
        spec.change = Some(change);
        spec.policy.as_mut().expect("the spec has a policy").waves =
            vec![v1::WaveSpec { size: Some(count(1000)), ..Default::default() }];
        spec
    }

    /// Starts a rollout of this change.
    pub async fn begin(&self, change: Change) -> String {
        self.fleet.api.start(self.spec(change)).await
    }

    /// Carries a change out; it must succeed.
    pub async fn run(&self, change: Change) -> String {
        let name = self.begin(change).await;
        self.fleet.api.reach(&name, State::Succeeded).await;
        name
    }

    /// What the application of `node` answers; `None` while it does not.
    pub fn ask(&self, node: &str, line: &str) -> Option<String> {
        let (port, _) = self.told(node)?;
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
        stream.write_all(format!("{line}\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer).filter(|answer| !answer.is_empty())
    }

    /// Its price and its tax, as soon as it answers.
    pub fn says(&self, node: &str) -> (String, String) {
        eventually("the application to answer", || Some((self.ask(node, "price")?, self.ask(node, "tax")?)))
    }

    /// The process that answers.
    pub fn pid(&self, node: &str) -> u32 {
        eventually("the application to run", || self.ask(node, "price").and_then(|_| self.told(node))).1
    }

    /// The numbers of the stack in force, `-` before retired ones, as the controller knows it.
    pub async fn stack(&self, node: &str) -> Vec<String> {
        let state = self.fleet.api.component(node).await.and_then(|component| component.current);
        let layers = state.map(|state| state.layers).unwrap_or_default();
        layers
            .iter()
            .map(|layer| format!("{}{}", if layer.retired { "-" } else { "" }, layer.number))
            .collect()
    }

    /// The node's history, oldest first.
    pub async fn history(&self, node: &str) -> Vec<v1::NodeHistoryEntry> {
        let request = v1::ListNodeHistoryRequest { name: format!("nodes/{node}"), ..Default::default() };
        let mut answer = self.fleet.api.client.nodes().list_node_history(request).await.unwrap().into_inner();
        answer.entries.reverse();
        answer.entries
    }

    fn told(&self, node: &str) -> Option<(u16, u32)> {
        let text = fs::read_to_string(self.fleet.node(node).app("port")).ok()?;
        let (port, pid) = text.split_once(' ')?;
        Some((port.parse().ok()?, pid.parse().ok()?))
    }
}

/// Patches to put on.
pub fn apply(patches: &[&str]) -> v1::StackChange {
    v1::StackChange {
        apply: patches.iter().map(|patch| format!("releases/{COMPONENT}@{patch}")).collect(),
        ..Default::default()
    }
}

/// Writes the agent's configuration for the application.
fn configure(fleet: &TestFleet, node: &str, jdk: &Path, kind: &str, keys: &str) {
    let dir = fleet.dir().join(node);
    let (java, at) = (jdk.join("bin/java"), dir.display());
    let java = java.display();
    let text = format!(
        r#"
state_dir = "{at}/state"
run_dir = "{at}/run"

[fetch]
allow_loopback = true

[[component]]
name = "{COMPONENT}"
path = "{at}/app/{COMPONENT}.jar"
kind = "{kind}"
allow_local_apply = true

[component.jvm]
{keys}

[component.run]
mode = "supervised"
cwd = "{at}/app"
command = ["{java}", "-Xmx32m", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", "{{path}}", "shop.Shop", "{at}/app"]
stop_timeout = "5s"
restart_delay = "50ms"

[[component.probe]]
type = "process"
interval = "50ms"
successes = 1
failures = 2

[[component.probe]]
type = "exec"
command = ["/bin/sh", "-c", "read -r port pid <{at}/app/port; test -d /proc/$pid"]
interval = "50ms"
successes = 1
failures = 2

[component.health]
soak = "200ms"
start_deadline = "50s"
"#
    );
    fs::write(dir.join("etc/agent.toml"), text).unwrap();
}
