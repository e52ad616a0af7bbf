//! The dev fleet itself: controller, agents, releases, and the context that leads to it.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinSet, time::sleep};
use upfleet_api::v1;

use super::{
    agent::{AGENT, AGENT_FILE, Components},
    app::{COMPONENT, FIRST, OTHERS, Version, beside},
    child::{Child, Household, Program, last_lines},
    context::{CONTEXT, DevContext},
    lifeline::Lifeline,
    place::Place,
};
use crate::{
    cli::{
        app::App,
        client::Client,
        config::{self, Config, NewContext},
        failure::{Failure, Result},
        release::{self, CreateArgs},
        render,
    },
    exit::Exit,
};

const HOST: &str = "localhost";
/// Something that takes longer than this does not come any more.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);
/// The demo service's first port, where it is free.
const FIRST_APP_PORT: u16 = 9001;

/// What to bring up.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// How many agents.
    pub agents: u16,
    /// Where to keep everything.
    pub keep: Option<PathBuf>,
    /// For a person: the usual ports where they are free, and a context in the person's own configuration.
    pub for_a_person: bool,
    /// What the agents look after.
    pub components: Components,
}

/// One node of the fleet.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Its name, e.g. `demo-1`.
    pub name: String,
    /// Where its demo service listens.
    pub port: u16,
}

/// Where the controller listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub api: u16,
    enroll: u16,
    pub metrics: u16,
}

/// A running dev fleet.
#[derive(Debug)]
pub(super) struct Fleet {
    household: Arc<Household>,
    children: Mutex<Vec<Child>>,
    pub nodes: Vec<Node>,
    pub ports: Ports,
    agent: PathBuf,
    demo: PathBuf,
    pub components: Components,
    context: DevContext,
}

impl Fleet {
    /// Looks for what is needed and makes the place; starts nothing yet but the janitor.
    pub(super) fn begin(wanted: &Wanted) -> Result<Self> {
        let (agent, demo) = (beside("upfleet-agent")?, beside("upfleet-demo")?);
        let place = Place::new(wanted.keep.as_deref())?;
        let internal =
            |error: std::io::Error| Failure::new(Exit::Internal, "could not begin").because(&error);
        let lifeline = Lifeline::new().map_err(internal)?;
        // Orphans of killed agents become ours, so that the end can be waited for.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|error| internal(error.into()))?;
        let config = if wanted.for_a_person {
            config::default_path()?
        } else {
            place.root().join("config/config.toml")
        };
        let selected_before = Config::load_from(config.clone())?.current().map(str::to_owned);
        let context = DevContext { config, selected_before };
        let household = Arc::new(Household { lifeline, place, ending: watch::Sender::new(false) });
        if !household.place.is_kept() {
            context.note(household.place.root())?;
            start_janitor(&household)?;
        }
        let first = if wanted.for_a_person { FIRST_APP_PORT } else { 0 };
        let mut ports = Picker::default();
        let nodes = (0..wanted.agents)
            .map(|n| {
                let port = ports.pick(if first == 0 { 0 } else { first + n })?;
                Ok(Node { name: format!("demo-{}", n + 1), port })
            })
            .collect::<Result<Vec<Node>>>()?;
        let usual = |port| if wanted.for_a_person { port } else { 0 };
        let ports = Ports {
            api: ports.pick(usual(7443))?,
            enroll: ports.pick(usual(7444))?,
            metrics: ports.pick(usual(7480))?,
        };
        let components = wanted.components.clone();
        Ok(Self { household, children: Mutex::default(), nodes, ports, agent, demo, components, context })
    }

    /// Starts the controller and the agents, publishes the releases, and waits until every node runs the first.
    pub(super) async fn bring_up(&self, app: &App) -> Result<()> {
        self.start_controller().await?;
        if matches!(self.components, Components::Own(_)) {
            let client = self.connect().await?;
            self.start_agents(&client).await?;
            return self.wait_for_nodes(&client, |node| node.online && !node.components.is_empty()).await;
        }
        let program = fs::read(&self.demo).map_err(|error| Failure::io("read", &self.demo, &error))?;
        for version in std::iter::once(&FIRST).chain(&OTHERS) {
            version.write(&program, &self.release_file(version.version))?;
        }
        let client = self.connect().await?;
        let publish = async {
            for version in std::iter::once(&FIRST).chain(&OTHERS) {
                self.publish(app, &client, version).await?;
            }
            Ok(())
        };
        tokio::try_join!(publish, self.start_agents(&client))?;
        self.adopt_first(&client).await
    }

    /// Ends everything and waits for it.
    pub(super) async fn end(self, app: &App) {
        self.household.ending.send_replace(true);
        let children = self.children.into_inner().unwrap_or_default();
        for child in children {
            child.ended().await;
        }
        if !self.household.place.is_kept() {
            self.context.forget(self.household.place.root());
        }
        self.household.place.remove();
        let place = self.household.place.root().to_owned();
        let kept = self.household.place.is_kept();
        // Dropping the lifeline ends shims and services; the janitor makes sure that the directory goes.
        drop(self.household);
        let left = wait_for_orphans().await;
        if !kept {
            let _ = fs::remove_dir_all(&place);
        }
        if left {
            app.note("Some processes have not ended yet; they will, their lifeline is cut.");
        } else if kept {
            app.note(format!("Ended. Everything is kept in {}.", place.display()));
        } else {
            app.note("Ended; nothing is left behind.");
        }
    }

    /// Connects to the controller, which may be starting.
    pub(super) async fn connect(&self) -> Result<Client> {
        let (name, context) = Config::load_from(self.context.config.clone())?.resolve(Some(CONTEXT))?;
        let begun = Instant::now();
        loop {
            match Client::connect(&name, &context).await {
                Err(failure) if failure.is_transient() && begun.elapsed() < PATIENCE => sleep(POLL).await,
                Err(mut failure) => {
                    failure.causes.extend(last_lines(&self.log("controller")));
                    return Err(failure);
                }
                Ok(client) => return Ok(client),
            }
        }
    }

    /// The fleet's directory.
    pub(super) fn root(&self) -> &std::path::Path {
        self.household.place.root()
    }

    /// Whether the directory stays after the end.
    pub(super) fn is_kept(&self) -> bool {
        self.household.place.is_kept()
    }

    /// Where a process writes.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.household.place.root().join("logs").join(format!("{name}.log"))
    }

    /// The file of contexts that leads to this fleet.
    pub(super) fn config(&self) -> &std::path::Path {
        &self.context.config
    }

    /// The executable of a version of the demo service.
    pub(super) fn release_file(&self, version: &str) -> PathBuf {
        self.household.place.root().join("releases").join(version)
    }

    async fn start_controller(&self) -> Result<()> {
        let data = self.household.place.root().join("controller");
        let made = crate::cli::server::make(&[HOST.to_owned(), "127.0.0.1".to_owned()], &data).await?;
        let new = NewContext {
            address: format!("127.0.0.1:{}", self.ports.api),
            server_name: HOST.to_owned(),
            ca_pem: &made.ca_pem,
            cert_pem: &made.admin_certificate_pem,
            key_pem: &made.admin_key_pem,
            protected: false,
        };
        Config::load_from(self.context.config.clone())?.put(CONTEXT, &new, true)?;
        let listen = |port: u16| format!("127.0.0.1:{port}");
        let arguments = [
            "serve",
            "--data",
            &data.display().to_string(),
            "--listen",
            &listen(self.ports.api),
            "--listen-enroll",
            &listen(self.ports.enroll),
            "--listen-metrics",
            &listen(self.ports.metrics),
        ];
        let executable = std::env::current_exe().map_err(|error| {
            Failure::new(Exit::Internal, "could not find this executable").because(&error)
        })?;
        self.keep("controller", executable, &arguments)
    }

    fn keep(&self, name: &str, executable: PathBuf, arguments: &[&str]) -> Result<()> {
        let program = Program {
            name: name.to_owned(),
            executable,
            arguments: arguments.iter().map(ToString::to_string).collect(),
            log: self.log(name),
        };
        let child = program.keep(self.household.clone())?;
        self.children.lock().expect("no holder of the lock panics").push(child);
        Ok(())
    }

    async fn publish(&self, app: &App, client: &Client, version: &Version) -> Result<()> {
        let args = CreateArgs {
            release: version.release(),
            file: vec![self.release_file(version.version)],
            notes: version.notes.to_owned(),
            ..CreateArgs::default()
        };
        release::create(&app.again(), client, &args).await.map(drop)
    }

    /// Enrolls and starts all agents at once.
    async fn start_agents(&self, client: &Client) -> Result<()> {
        let mut enrolling = JoinSet::new();
        for node in &self.nodes {
            let request = v1::CreateEnrollmentTokenRequest {
                node: node.name.clone(),
                labels: [("env".to_owned(), "dev".to_owned())].into(),
                ..Default::default()
            };
            let secret = client.nodes().create_enrollment_token(request).await?.into_inner().secret;
            let config = self.write_agent(node, &secret)?;
            let token = config.join("token").display().to_string();
            let config = config.display().to_string();
            let enroll = Program {
                name: format!("{}-enroll", node.name),
                executable: self.agent.clone(),
                arguments: ["enroll", "--config", &config, "--token-file", &token, "--node", &node.name]
                    .map(str::to_owned)
                    .to_vec(),
                log: self.log(&node.name),
            };
            let household = self.household.clone();
            let name = node.name.clone();
            enrolling.spawn(async move { enroll.run(&household).await.map(|()| (name, config)) });
        }
        while let Some(enrolled) = enrolling.join_next().await {
            let (name, config) = enrolled
                .map_err(|error| Failure::new(Exit::Internal, "could not enroll").because(&error))??;
            // The parent is of the build; what it starts is the node's own file, which may be replaced.
            self.keep(&name, self.agent.clone(), &["run", "--supervised", "--config", &config])?;
        }
        Ok(())
    }

    /// Writes an agent's directory: its configuration, its token, and the demo service as it was before Upfleet.
    /// A person's own components begin with nothing installed.
    fn write_agent(&self, node: &Node, secret: &str) -> Result<PathBuf> {
        let place = &self.household.place;
        let short = node.name.trim_start_matches("demo-");
        let root = place.directory(&format!("a{short}"))?;
        for sub in ["app", "bin"] {
            place.directory(&format!("a{short}/{sub}"))?;
        }
        self.place_agent(&root.join(AGENT_FILE))?;
        if matches!(self.components, Components::Demo) {
            let app = root.join("app").join(COMPONENT);
            let first = self.release_file(FIRST.version);
            fs::copy(&first, &app).map_err(|error| Failure::io("copy", &first, &error))?;
        }
        let text = self.components.config(&root.display().to_string(), &node.name, node.port);
        for (file, text) in [("agent.toml", text.as_str()), ("token", secret)] {
            config::write_private(&root.join(file), text.as_bytes())?;
        }
        Ok(root)
    }

    /// Gives a node an agent of its own, which can be replaced: another name of one file, since builds are large.
    fn place_agent(&self, path: &Path) -> Result<()> {
        let shared = self.household.place.root().join(AGENT);
        let placed = || -> io::Result<()> {
            if !shared.exists() && fs::hard_link(&self.agent, &shared).is_err() {
                fs::copy(&self.agent, &shared)?;
            }
            fs::hard_link(&shared, path)
        };
        placed().map_err(|error| Failure::io("write", path, &error))
    }

    /// Waits until every agent has said what it has, then rolls the first release out to all at once: its bytes
    /// are in place already, so that nothing is fetched and the service is only started and watched.
    async fn adopt_first(&self, client: &Client) -> Result<()> {
        self.wait_for_nodes(client, |node| {
            node.online && demo(node).is_some_and(|component| component.current.is_some())
        })
        .await?;
        let all = v1::NodeCount { value: Some(v1::node_count::Value::Percent(100)) };
        let install =
            v1::InstallChange { release: format!("releases/{}", FIRST.release()), ..Default::default() };
        let policy = v1::RolloutPolicy {
            waves: vec![v1::WaveSpec { size: Some(all), ..Default::default() }],
            max_unavailable: Some(all),
            ..Default::default()
        };
        let spec = v1::RolloutSpec {
            component: COMPONENT.to_owned(),
            selector: "*".to_owned(),
            change: Some(v1::rollout_spec::Change::Install(install)),
            policy: Some(policy),
            seed: 0,
        };
        let request = v1::CreateRolloutRequest {
            spec: Some(spec),
            message: "what the nodes began with".to_owned(),
            ..Default::default()
        };
        let created = client.rollouts().create_rollout(request).await?.into_inner();
        let name = created.rollout.unwrap_or_default().name;
        let start = v1::StartRolloutRequest { name: name.clone(), etag: String::new() };
        client.rollouts().start_rollout(start).await?;
        self.wait_for_nodes(client, |node| {
            let Some(component) = demo(node) else { return false };
            component.pid != 0 && render::component_state(component.current.as_ref()) == FIRST.version
        })
        .await?;
        self.wait_for_the_end(client, name).await
    }

    /// Nodes say what they run before the rollout that brought it has ended, and are in no other until then.
    async fn wait_for_the_end(&self, client: &Client, name: String) -> Result<()> {
        let begun = Instant::now();
        loop {
            let request = v1::GetRolloutRequest { name: name.clone() };
            let rollout =
                client.rollouts().get_rollout(request).await?.into_inner().rollout.unwrap_or_default();
            if rollout.end_time.is_some() {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(Failure::new(Exit::Internal, "the first release was not rolled out in time"));
            }
            sleep(POLL).await;
        }
    }

    async fn wait_for_nodes(&self, client: &Client, ready: impl Fn(&v1::Node) -> bool) -> Result<()> {
        let begun = Instant::now();
        loop {
            let request = v1::ListNodesRequest { page_size: 1000, ..Default::default() };
            let nodes = client.nodes().list_nodes(request).await?.into_inner().nodes;
            let waiting: Vec<&str> = self
                .nodes
                .iter()
                .map(|node| node.name.as_str())
                .filter(|name| !nodes.iter().any(|node| render::id(&node.name) == *name && ready(node)))
                .collect();
            let Some(first) = waiting.first() else { return Ok(()) };
            if begun.elapsed() > PATIENCE {
                let mut failure = Failure::new(
                    Exit::Internal,
                    format!("these agents did not get ready: {}", waiting.join(", ")),
                );
                failure.causes.extend(last_lines(&self.log(first)));
                return Err(failure);
            }
            sleep(POLL).await;
        }
    }
}

/// Finds free ports, each once.
#[derive(Default)]
struct Picker {
    /// Kept open until all are picked, so that none is picked twice.
    open: Vec<TcpListener>,
}

impl Picker {
    /// `usual` where it is free, else any.
    fn pick(&mut self, usual: u16) -> Result<u16> {
        let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let listener = bind(usual).or_else(|_| bind(0));
        let listener =
            listener.map_err(|error| Failure::new(Exit::Internal, "no port is free").because(&error))?;
        let port = listener.local_addr().map(|address| address.port());
        let port = port.map_err(|error| Failure::new(Exit::Internal, "no port is free").because(&error))?;
        self.open.push(listener);
        Ok(port)
    }
}

fn start_janitor(household: &Household) -> Result<()> {
    let executable = std::env::current_exe()
        .map_err(|error| Failure::new(Exit::Internal, "could not find this executable").because(&error))?;
    let root = household.place.root();
    let janitor = Program {
        name: "janitor".to_owned(),
        executable: executable.clone(),
        arguments: vec!["dev".to_owned(), "--janitor".to_owned(), root.display().to_string()],
        log: PathBuf::from("/dev/null"),
    };
    let spawned = janitor.command(household)?.spawn();
    spawned.map(drop).map_err(|error| Failure::io("start", &executable, &error))
}

/// Reaps what became ours until there is nothing left; says whether something did not end in time.
async fn wait_for_orphans() -> bool {
    use rustix::process::{WaitOptions, wait};
    let begun = Instant::now();
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Err(rustix::io::Errno::INTR) => {}
            Ok(None) if begun.elapsed() > Duration::from_secs(10) => return true,
            Ok(None) => sleep(POLL).await,
            // No child is left.
            Err(_) => return false,
        }
    }
}

/// What a node says of the demo service.
pub(super) fn demo(node: &v1::Node) -> Option<&v1::NodeComponent> {
    node.components.iter().find(|component| component.component == COMPONENT)
}
