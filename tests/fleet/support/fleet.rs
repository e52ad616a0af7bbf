//! A fleet: one controller and some nodes as real processes in a temporary directory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;
use upfleet_api::v1::{self, rollout_spec::Change};
use upfleet_controller::cli::config::{Config, Context};

use super::{
    api::{Api, change},
    lifeline::Lifeline,
    next::wanted_controller,
    node::Node,
    process::{Output, Program, binary, run},
    program::{BASE, Behaviour, COMPONENT, script},
    wait::{eventually, eventually_async},
};

const LOOPBACK: &str = "127.0.0.1";

/// What a test fleet looks like.
pub struct Fleet {
    /// How many nodes: `n1`, `n2`, …
    pub nodes: usize,
    /// How 1.0.0 behaves, which every node runs at the start; `None` leaves the nodes without it.
    pub base: Option<Behaviour>,
    /// What lies at the component's path before Upfleet.
    pub initial: Option<Vec<u8>>,
    /// Releases published at the start; their sequences are 2, 3, …
    pub releases: Vec<(&'static str, Behaviour)>,
    /// Further keys for the agents' `[fetch]`.
    pub fetch: &'static str,
    /// Where the controller listens.
    pub address: &'static str,
    /// The controller's program, where the test needs a certain one.
    pub program: Option<PathBuf>,
}

impl Default for Fleet {
    /// One node that runs 1.0.0, and a good release 1.1.0.
    fn default() -> Self {
        Self {
            nodes: 1,
            base: Some(Behaviour::Good),
            initial: None,
            releases: vec![("1.1.0", Behaviour::Good)],
            fetch: "",
            address: LOOPBACK,
            program: None,
        }
    }
}

/// A running fleet. Dropping it ends everything it started.
pub struct TestFleet {
    pub api: Api,
    pub nodes: Vec<Node>,
    controller: Option<Program>,
    context: Context,
    endpoints: Endpoints,
    lifeline: Lifeline,
    fetch: &'static str,
    /// The controller's program, from its next start on.
    pub program: PathBuf,
    /// Further environment of the controller.
    environment: Vec<(&'static str, String)>,
    // Last, so that it is removed when nothing uses it any more.
    dir: TempDir,
}

/// Where the controller listens.
#[derive(Clone, Debug, serde::Deserialize)]
struct Endpoints {
    api: String,
    enroll: String,
    metrics: String,
}

impl Fleet {
    /// Starts it: CA, controller, enrollment, agents, releases. Returns once every node is connected.
    pub async fn start(self) -> TestFleet {
        let dir = tempfile::Builder::new().prefix("uf").tempdir().unwrap();
        let lifeline = Lifeline::new();
        let program = self.program.unwrap_or_else(wanted_controller);
        let (controller, endpoints) =
            launch_controller(dir.path(), &program, Err(self.address), &lifeline, &[])
                .unwrap_or_else(|problem| panic!("{problem}"));
        let context = context(dir.path(), &endpoints);
        let api = Api::connect(&context).await;
        let mut fleet = TestFleet {
            api,
            nodes: Vec::new(),
            controller: Some(controller),
            context,
            endpoints,
            lifeline,
            fetch: self.fetch,
            program,
            environment: Vec::new(),
            dir,
        };
        for number in 1..=self.nodes {
            let index = fleet.add_node(&format!("n{number}"), self.initial.as_deref()).await;
            fleet.nodes[index].start();
        }
        // With neither, the test publishes programs of its own.
        if self.base.is_some() || !self.releases.is_empty() {
            let base = script(BASE, self.base.unwrap_or(Behaviour::Good));
            fleet.api.publish(BASE, 1, &base).await;
        }
        for (sequence, (version, behaviour)) in (2..).zip(self.releases) {
            fleet.api.publish(version, sequence, &script(version, behaviour)).await;
        }
        for node in &fleet.nodes {
            fleet.api.reach_online(&node.name, true).await;
        }
        if self.base.is_some() && self.nodes > 0 {
            fleet.install_base("*").await;
        }
        fleet
    }
}

impl TestFleet {
    /// Prepares and enrolls a node without starting its agent; returns its index.
    pub async fn add_node(&mut self, name: &str, initial: Option<&[u8]>) -> usize {
        let node = self.enrolled(name, initial).await;
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// A node that the test keeps itself, prepared and enrolled.
    pub async fn enrolled(&self, name: &str, initial: Option<&[u8]>) -> Node {
        let node = Node::prepare(&self.dir.path().join(name), name, &self.lifeline, self.fetch, initial);
        node.enroll(&self.token().await).success();
        node
    }

    /// A node like that whose agent will run in a network namespace.
    pub async fn enrolled_in(&self, name: &str, space: PathBuf) -> Node {
        let mut node = self.prepare(name, name);
        node.space = Some(space);
        node.enroll(&self.token().await).success();
        node
    }

    /// A fresh enrollment token.
    pub async fn token(&self) -> String {
        let request = v1::CreateEnrollmentTokenRequest {
            request_id: uuid::Uuid::new_v4().to_string(),
            labels: [("env".to_owned(), "test".to_owned())].into(),
            ..Default::default()
        };
        self.api.client.nodes().create_enrollment_token(request).await.unwrap().into_inner().secret
    }

    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).expect("the fleet has that node")
    }

    pub fn node_mut(&mut self, name: &str) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.name == name).expect("the fleet has that node")
    }

    /// The default rollout of `version`: everything in waves of one canary and the rest, no bake.
    pub fn spec(&self, version: &str) -> v1::RolloutSpec {
        v1::RolloutSpec {
            component: COMPONENT.to_owned(),
            selector: "*".to_owned(),
            change: Some(change(version)),
            policy: Some(v1::RolloutPolicy { max_unavailable: Some(count(100)), ..Default::default() }),
            ..Default::default()
        }
    }

    /// The default rollout of another component's version.
    pub fn spec_of(&self, component: &str, version: &str) -> v1::RolloutSpec {
        let release = format!("releases/{component}@{version}");
        let change = Change::Install(v1::InstallChange { release, ..Default::default() });
        v1::RolloutSpec { component: component.to_owned(), change: Some(change), ..self.spec(version) }
    }

    /// Rolls 1.0.0 out to the nodes that `selector` names, all at once.
    pub async fn install_base(&self, selector: &str) {
        let mut spec = self.spec(BASE);
        spec.selector = selector.to_owned();
        spec.policy.as_mut().expect("the spec has a policy").waves =
            vec![v1::WaveSpec { size: Some(count(1000)), ..Default::default() }];
        let name = self.api.start(spec).await;
        self.api.reach(&name, v1::rollout::State::Succeeded).await;
    }

    /// Rolls `version` out to its end, which must be `SUCCEEDED`.
    pub async fn install(&self, version: &str) -> String {
        let name = self.api.start(self.spec(version)).await;
        self.api.reach(&name, v1::rollout::State::Succeeded).await;
        name
    }

    /// Runs `upfleet` with this fleet's admin context.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        run(&mut self.cli_command(arguments))
    }

    /// `upfleet` with this fleet's admin context.
    pub fn cli_command(&self, arguments: &[&str]) -> Command {
        // What touches the data directory is done with the controller's own program.
        let own = matches!(arguments.first(), Some(&("backup" | "restore")));
        let program = if own { self.program.clone() } else { binary("upfleet") };
        let mut command = upfleet(self.dir.path(), &program);
        command.args(arguments);
        command
    }

    /// The controller's data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A node that a test enrolls and keeps itself.
    pub fn prepare(&self, dir: &str, name: &str) -> Node {
        Node::prepare(&self.dir.path().join(dir), name, &self.lifeline, self.fetch, None)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The admin's files and where the API listens.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// `http://…` of the second listener.
    pub fn metrics(&self) -> String {
        format!("http://{}", self.endpoints.metrics)
    }

    /// `kill -9` to the controller.
    pub fn kill_controller(&mut self) {
        if let Some(mut controller) = self.controller.take() {
            controller.kill();
        }
    }

    /// SIGTERM to the controller, which ends in order: also with those who are connected to it, this test for one.
    pub async fn stop_controller(&mut self) {
        let Some(mut controller) = self.controller.take() else { return };
        controller.ask_to_end();
        eventually_async("the controller to end", || {
            let ended = controller.ended().ok_or_else(|| "it runs".to_owned());
            async move { ended }
        })
        .await;
    }

    /// Starts the controller again, where it listened before, and connects to it.
    pub async fn start_controller(&mut self) {
        assert!(self.controller.is_none(), "the controller runs");
        let (controller, endpoints) = self.launch().unwrap_or_else(|problem| panic!("{problem}"));
        self.controller = Some(controller);
        self.endpoints = endpoints;
        self.api = Api::connect(&self.context).await;
    }

    /// Further environment of the controller, from its next start on.
    pub fn set_environment(&mut self, environment: Vec<(&'static str, String)>) {
        self.environment = environment;
    }

    fn launch(&self) -> Result<(Program, Endpoints), String> {
        let at = Ok(&self.endpoints);
        launch_controller(self.dir.path(), &self.program, at, &self.lifeline, &self.environment)
    }

    /// The same where it may refuse: then its words.
    pub async fn try_start_controller(&mut self) -> Result<(), String> {
        assert!(self.controller.is_none(), "the controller runs");
        let log = self.dir.path().join("controller.log");
        let said = fs::read_to_string(&log).unwrap_or_default().len();
        match self.launch() {
            Ok((controller, endpoints)) => {
                self.controller = Some(controller);
                self.endpoints = endpoints;
                Ok(())
            }
            Err(_) => Err(fs::read_to_string(&log).unwrap_or_default().split_off(said)),
        }
    }

    /// Takes a backup beside the running controller.
    pub fn backup(&self, target: &Path) {
        run(self.cli_command(&["backup"]).arg("--data").arg(self.data()).arg(target)).success();
    }

    /// Puts a backup in the place of the data of a controller that was killed. The artifacts are copied back, as the
    /// manual says.
    pub fn restore(&self, source: &Path) {
        let before = self.dir.path().join("data-before");
        let _ = fs::remove_dir_all(&before);
        fs::rename(self.data(), &before).unwrap();
        run(self.cli_command(&["restore"]).arg("--data").arg(self.data()).arg(source)).success();
        let _ = fs::remove_dir_all(self.data().join("artifacts"));
        fs::rename(before.join("artifacts"), self.data().join("artifacts")).unwrap();
    }

    /// What the controller and the agents wrote, for a failing test.
    pub fn logs(&self) -> String {
        let controller = fs::read_to_string(self.dir.path().join("controller.log")).unwrap_or_default();
        let agents: String =
            self.nodes.iter().map(|node| format!("--- {}\n{}", node.name, node.log())).collect();
        format!("--- controller\n{controller}{agents}")
    }
}

impl Drop for TestFleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for node in &mut self.nodes {
            node.kill();
        }
        self.kill_controller();
    }
}

/// A number of nodes.
pub fn count(count: u32) -> v1::NodeCount {
    v1::NodeCount { value: Some(v1::node_count::Value::Count(count)) }
}

fn upfleet(dir: &Path, program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env("UPFLEET_CONFIG", dir.join("config/config.toml"))
        .env_remove("UPFLEET_CONTEXT")
        .env("HOME", dir);
    command
}

/// Starts it where it was before, or anywhere on an address.
fn launch_controller(
    dir: &Path,
    program: &Path,
    at: Result<&Endpoints, &str>,
    lifeline: &Lifeline,
    environment: &[(&'static str, String)],
) -> Result<(Program, Endpoints), String> {
    let data = dir.join("data");
    if !data.exists() {
        let mut init = upfleet(dir, program);
        init.arg("init").arg("--data").arg(&data);
        // The first name is the one that agents are told.
        if let Err(address) = at
            && address != LOOPBACK
        {
            init.args(["--name", address]);
        }
        run(init.args(["--name", "localhost", "--name", LOOPBACK])).success();
    }
    let file = data.join("run/endpoints.json");
    let _ = fs::remove_file(&file);
    let listen = |pick: fn(&Endpoints) -> &String| match at {
        Ok(endpoints) => pick(endpoints).clone(),
        Err(address) => format!("{address}:0"),
    };
    let mut command = upfleet(dir, program);
    command.arg("serve").arg("--data").arg(&data);
    command.args(["--listen", &listen(|endpoints| &endpoints.api)]);
    command.args(["--listen-enroll", &listen(|endpoints| &endpoints.enroll)]);
    command.args(["--listen-metrics", &listen(|endpoints| &endpoints.metrics)]);
    let (name, value) = lifeline.variable();
    command.env(name, value).env("RUST_LOG", "info");
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    let mut controller = Program::start(&mut command, &dir.join("controller.log"));
    let endpoints = eventually("the controller to listen", || {
        if let Some(status) = controller.ended() {
            return Some(Err(format!("the controller ended with {status}: {}", controller.log())));
        }
        serde_json::from_slice(&fs::read(&file).ok()?).ok().map(Ok)
    });
    endpoints.map(|endpoints| (controller, endpoints))
}

/// The context that `init` wrote, leading to where the controller really listens.
fn context(dir: &Path, endpoints: &Endpoints) -> Context {
    let path = dir.join("config/config.toml");
    let config = Config::load_from(path.clone()).unwrap_or_else(|error| panic!("{error}"));
    let (_, context) = config.resolve(None).unwrap_or_else(|error| panic!("{error}"));
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(&context.address, &endpoints.api)).unwrap();
    Context { address: endpoints.api.clone(), ..context }
}
