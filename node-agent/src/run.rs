//! The agent: starts the components, joins them with the controller and with people at the node, reads the
//! configuration again when asked, and ends without touching what runs. It decides nothing about upgrades.

use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use upfleet_domain::{
    id::ComponentId,
    reason::{Reason, ReasonCode},
    release::Kind,
};

use crate::{
    component::{self, Exclusives, Handles, Outgoing, Shared, world::Node},
    config::{ComponentConfig, Config, ConfigError},
    download::Fetcher,
    identity::{Identities, IdentityError},
    itself::{Itself, Own, keeper::Keeper, marker::Markers},
    local,
    notify::{self, Listener, Watched},
    platform::node_platform,
    transport::{self, Connector, Link, Purpose, Transport},
};

/// How long components may take to reach a point where they can be left, once the agent is asked to end.
const GRACE: Duration = Duration::from_secs(20);
/// How much components may have said that nobody has taken yet.
const OUTGOING: usize = 256;

/// Why the agent could not begin. An operator of the node can mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The configuration has mistakes.
    #[error("the configuration can't be used")]
    Config(#[from] ConfigError),
    /// The node's key or certificate can't be used.
    #[error("the node's identity can't be used")]
    Identity(#[from] IdentityError),
    /// Another agent has the state directory.
    #[error("another agent runs on `{path}`")]
    Running {
        /// The state directory.
        path: PathBuf,
    },
    /// The state directory can't be used.
    #[error("could not {operation} `{path}`")]
    State {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Why an agent has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Asked,
    /// It has handed over to another version, which lies in its place.
    HandsOver,
}

/// Runs the agent of the configuration in `dir` until `shutdown`, or until it is asked to end by SIGTERM or SIGINT.
/// SIGHUP has it read the configuration again. What it supervises goes on running.
///
/// # Errors
/// Where it can't begin.
pub async fn run(dir: &Path, shutdown: CancellationToken) -> Result<Ended, RunError> {
    let config = Config::load(dir)?;
    let _lock = lock(&config.state_dir)?;
    let (identities, damage) = identities(&config)?;
    let connector =
        config.controller.clone().zip(identities).map(|(controller, own)| Connector::new(controller, own));
    let (outgoing, said) = mpsc::channel(OUTGOING);
    let (link, seen) = link(&config, connector.as_ref(), damage.as_ref());
    let hand_over = CancellationToken::new();
    let own = Own {
        config_dir: std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned()),
        link: seen.clone(),
        hand_over: hand_over.clone(),
        keeper: Keeper::find(),
    };
    let mut agent = Agent {
        own,
        fetcher: Fetcher::new(&config.fetch, connector.clone()),
        connector: connector.clone(),
        shared: Shared {
            platform: node_platform(),
            outgoing,
            exclusives: Exclusives::default(),
            shutdown: CancellationToken::new(),
        },
        handles: Handles::default(),
        actors: BTreeMap::new(),
        config,
    };
    for component in agent.config.components.clone() {
        agent.start(&component);
    }
    let services = CancellationToken::new();
    let serving = agent.serve(connector, said, (link, seen.clone()), &services);
    let own_link = seen.clone();
    let (watched, asked) = Watched::new(agent.handles.clone(), seen);
    let notifying = watched.follow(services.clone());
    agent.release_guard(&own_link, &services);
    let ended = tokio::select! {
        () = agent.signals(dir, &shutdown, asked) => Ended::Asked,
        () = hand_over.cancelled() => Ended::HandsOver,
    };
    notify::stopping();
    services.cancel();
    notifying.abort();
    agent.end().await;
    let _ = tokio::time::timeout(GRACE, serving).await;
    Ok(ended)
}

/// How it stands with the controller: where that is told, and where it is seen, if there is anything to see.
fn link(
    config: &Config,
    connector: Option<&Connector>,
    damage: Option<&Reason>,
) -> (watch::Sender<Link>, Option<watch::Receiver<Link>>) {
    let configured = config.controller.as_ref().map_or("", |controller| &controller.address);
    let problem = damage.map(Reason::message);
    let enrolled = connector.is_some() || problem.is_some();
    let (link, seen) = watch::channel(Link { problem, ..Link::new(configured) });
    (link, enrolled.then_some(seen))
}

struct Agent {
    own: Own,
    config: Config,
    connector: Option<Connector>,
    fetcher: Fetcher,
    shared: Shared,
    handles: Handles,
    actors: BTreeMap<ComponentId, Actor>,
}

struct Actor {
    config: ComponentConfig,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Agent {
    /// Starts a component.
    fn start(&mut self, config: &ComponentConfig) {
        let (state_dir, fetcher) = (&self.config.state_dir, self.fetcher.clone());
        let shutdown = self.shared.shutdown.child_token();
        let shared = Shared { shutdown: shutdown.clone(), ..self.shared.clone() };
        let (handle, task) = if config.kind == Kind::Agent {
            let world = Itself::new(state_dir, config, fetcher, self.own.clone());
            component::start(state_dir, config, world, shared)
        } else {
            component::start(state_dir, config, Node::new(state_dir, config, fetcher), shared)
        };
        self.handles.insert(handle);
        self.actors.insert(config.name.clone(), Actor { config: config.clone(), shutdown, task });
    }

    /// Ends a component's actor, not its process.
    async fn stop(&mut self, component: &ComponentId) {
        if let Some(actor) = self.actors.remove(component) {
            actor.shutdown.cancel();
            // A task that panicked has ended too.
            let _ = actor.task.await;
        }
    }

    /// The session with the controller, where there is one, and the socket for people at the node.
    fn serve(
        &self,
        connector: Option<Connector>,
        mut said: mpsc::Receiver<Outgoing>,
        (link, seen): (watch::Sender<Link>, Option<watch::Receiver<Link>>),
        shutdown: &CancellationToken,
    ) -> JoinHandle<()> {
        let handles = self.handles.clone();
        let dirs = (self.config.run_dir.clone(), self.config.state_dir.clone());
        let token = shutdown.clone();
        let node = connector.as_ref().map(|connector| connector.identities().current().node().to_string());
        // A guard gives a new agent its time.
        let hurry = Markers::new(&self.config.state_dir).is_set();
        let controller = async move {
            match connector {
                Some(connector) => {
                    let transport = Transport { connector, purpose: Purpose::Serve, link, hurry };
                    transport::run(transport, handles, said, token).await;
                }
                // Reports stay in the journals until the node is enrolled and the agent started again.
                None => while said.recv().await.is_some() {},
            }
        };
        let (handles, token) = (self.handles.clone(), shutdown.clone());
        tokio::spawn(async move {
            tokio::select! {
                ((), ()) = async { tokio::join!(controller, serve_locally(&dirs, handles, node, seen)) } => {}
                () = token.cancelled() => {}
            }
        })
    }

    /// A guard of an agent that is no component any more, by its configuration, has nothing left to wait for once this
    /// one has reported.
    fn release_guard(&self, link: &Option<watch::Receiver<Link>>, shutdown: &CancellationToken) {
        let markers = Markers::new(&self.config.state_dir);
        let component = self.config.components.iter().any(|component| component.kind == Kind::Agent);
        let Some(mut link) = link.clone().filter(|_| !component && markers.is_set()) else { return };
        let token = shutdown.clone();
        tokio::spawn(async move {
            let reported = tokio::select! {
                link = link.wait_for(|link| link.connected && link.reported) => link.is_ok(),
                () = token.cancelled() => false,
            };
            if reported && let Err(error) = markers.clear() {
                tracing::error!(%error, "the marker of an upgrade of the agent can't be removed");
            }
        });
    }

    /// Waits for signals until the agent is to end, and answers whoever asks whether this loop lives.
    async fn signals(&mut self, dir: &Path, shutdown: &CancellationToken, mut asked: Listener) {
        let listen = |kind| signal(kind).expect("the runtime handles signals");
        let (mut term, mut int) = (listen(SignalKind::terminate()), listen(SignalKind::interrupt()));
        let mut hup = listen(SignalKind::hangup());
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = term.recv() => return,
                _ = int.recv() => return,
                _ = hup.recv() => {
                    asked.reloading();
                    self.reload(dir).await;
                    asked.reloaded();
                }
                () = asked.answer() => {}
            }
        }
    }

    /// Reads the configuration again: new and changed components are started anew, each from its journal; those
    /// that are gone are left running and no longer looked after. With mistakes in it nothing changes.
    async fn reload(&mut self, dir: &Path) {
        let config = match Config::load(dir) {
            Ok(config) => config,
            Err(error) => {
                tracing::error!(error = crate::error::chain(&error), "configuration not reloaded");
                return;
            }
        };
        let fixed =
            |config: &Config| (config.state_dir.clone(), config.run_dir.clone(), config.controller.clone());
        if fixed(&config) != fixed(&self.config) {
            tracing::warn!("state_dir, run_dir and controller take effect when the agent is started again");
        }
        let fetches_alike = config.fetch == self.config.fetch;
        if !fetches_alike {
            // A source that is no longer allowed must not be asked any more, also by a download under way.
            self.fetcher = Fetcher::new(&config.fetch, self.connector.clone());
            self.config.fetch = config.fetch.clone();
        }
        let gone: Vec<ComponentId> =
            self.actors.keys().filter(|name| config.component(name).is_none()).cloned().collect();
        for component in gone {
            tracing::info!(%component, "component left the configuration; what runs is left alone");
            self.handles.remove(&component);
            self.stop(&component).await;
        }
        for component in &config.components {
            let same = self.actors.get(&component.name).is_some_and(|actor| actor.config == *component);
            if !same || !fetches_alike {
                tracing::info!(component = %component.name, "component configured");
                self.stop(&component.name).await;
                self.start(component);
            }
        }
        self.config.components = config.components;
    }

    async fn end(&mut self) {
        self.shared.shutdown.cancel();
        for (component, actor) in std::mem::take(&mut self.actors) {
            if tokio::time::timeout(GRACE, actor.task).await.is_err() {
                tracing::warn!(%component, "left in the middle of a step; the journal knows");
            }
        }
    }
}

/// The socket for people at the node.
async fn serve_locally(
    (run_dir, state_dir): &(PathBuf, PathBuf),
    handles: Handles,
    node: Option<String>,
    link: Option<watch::Receiver<Link>>,
) {
    if let Err(error) = local::serve(run_dir, state_dir, handles, node, link).await {
        // Upgrades go on; only `status`, `rollback --local` and `apply` are missing.
        tracing::error!(error = crate::error::chain(&error), "no local socket");
    }
}

/// The node's identity, or what is wrong with it. A node that has run components before goes on without the controller:
/// they must also run after a reboot, and nobody is obeyed meanwhile.
fn identities(config: &Config) -> Result<(Option<Identities>, Option<Reason>), RunError> {
    match Identities::load(&config.state_dir) {
        Ok(identities) => Ok((Some(identities), None)),
        Err(_) if config.controller.is_none() => Ok((None, None)),
        Err(error) if crate::journal::dir(&config.state_dir).exists() => {
            let damage =
                Reason::new(ReasonCode::IdentityDamaged).with("problem", crate::error::chain(&error));
            tracing::error!(reason = %damage, "no session with the controller");
            Ok((None, Some(damage)))
        }
        Err(error) => Err(error.into()),
    }
}

/// One agent per state directory: two writers of a journal would be the end of it.
fn lock(state_dir: &Path) -> Result<File, RunError> {
    let at = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| RunError::State { operation, path, source }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(at("create", state_dir))?;
    let path = state_dir.join("lock");
    crate::damage::clear_directory(&path).map_err(at("move aside", &path))?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(at("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(RunError::Running { path: state_dir.to_owned() }),
        Err(error) => Err(at("lock", &path)(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that left the list of hosts is not asked any more, without a restart of the agent.
    #[tokio::test]
    async fn what_may_be_fetched_from_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let write = |host: &str| {
            let text = format!(
                "state_dir = {:?}\n[fetch]\nallowed_hosts = [\"{host}\"]\n[[component]]\nname = \"web\"\npath = {:?}\n",
                dir.path().join("state"),
                dir.path().join("app/web"),
            );
            std::fs::write(dir.path().join("agent.toml"), text).unwrap();
        };
        write("old.example.com");
        let config = Config::load(dir.path()).unwrap();
        let (outgoing, mut said) = mpsc::channel(OUTGOING);
        tokio::spawn(async move { while said.recv().await.is_some() {} });
        let own = Own {
            config_dir: dir.path().to_owned(),
            link: None,
            hand_over: CancellationToken::new(),
            keeper: None,
        };
        let mut agent = Agent {
            own,
            connector: None,
            fetcher: Fetcher::new(&config.fetch, None),
            shared: Shared {
                platform: node_platform(),
                outgoing,
                exclusives: Exclusives::default(),
                shutdown: CancellationToken::new(),
            },
            handles: Handles::default(),
            actors: BTreeMap::new(),
            config,
        };
        agent.reload(dir.path()).await;
        let first = agent.actors.values().map(|actor| actor.task.id()).next().unwrap();
        write("new.example.com");
        agent.reload(dir.path()).await;
        let policy = format!("{:?}", agent.fetcher);
        assert!(policy.contains("new.example.com") && !policy.contains("old.example.com"), "{policy}");
        let second = agent.actors.values().map(|actor| actor.task.id()).next().unwrap();
        assert_ne!(first, second, "the component has the new fetcher");
        agent.end().await;
    }
}
