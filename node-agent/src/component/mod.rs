//! Components: one actor each, the only writer of its component's journal, and the handle to talk to it.
//!
//! This file is the face that the rest of the agent sees. It decides nothing and touches nothing.

mod actor;
mod exclusive;
pub mod history;
mod manifests;
mod offers;
mod patching;
pub mod policy;
mod refused;
pub mod stack;
#[cfg(test)]
mod tests;
mod work;
pub mod world;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub use exclusive::Exclusives;
pub use manifests::known_releases;
use offers::Brought;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use upfleet_domain::{
    digest::Digest,
    id::{ComponentId, UpgradeId},
    order::{DesiredState, Generation, HoldOrder},
    reason::{Reason, ReasonCode},
    release::Platform,
    report::{ComponentInventory, UpgradeReport},
    state::ComponentState,
    time::Time,
    upgrade::{Phase, machine::Machine, record::Record},
};

use crate::{
    config::ComponentConfig,
    exec::{self, Executor, Place},
    journal::{Journal, Opened},
};

/// A manifest as it came over the wire: verbatim bytes and detached signatures over them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestBytes {
    /// The manifest, byte for byte.
    pub bytes: Vec<u8>,
    /// Signatures over `bytes`; not looked at yet.
    pub signatures: Vec<Vec<u8>>,
}

/// What actors have to say to the controller.
#[derive(Clone, Debug, PartialEq)]
pub enum Outgoing {
    /// A transition. It is sent again after each reconnect until it is acknowledged.
    Report(Box<UpgradeReport>),
    /// What a component is and runs has changed.
    Inventory(Box<ComponentInventory>),
    /// Bytes fetched so far. Lost when nobody listens.
    Progress {
        /// The upgrade.
        upgrade: UpgradeId,
        /// Bytes fetched.
        fetched: u64,
        /// Bytes to fetch.
        total: u64,
    },
}

/// An order was accepted, and is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acked {
    /// The generation accepted.
    pub generation: Generation,
}

/// An order was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nacked {
    /// The generation refused.
    pub generation: Generation,
    /// Why.
    pub reason: Reason,
    /// The generation that stays in force.
    pub kept: Generation,
    /// The upgrade refused.
    pub upgrade: Option<UpgradeId>,
}

/// What is sent to an actor.
pub(crate) enum Message {
    Order {
        desired: Box<DesiredState>,
        brought: Brought,
        hold: Option<HoldOrder>,
        answer: oneshot::Sender<Result<Acked, Nacked>>,
    },
    Apply {
        desired: Box<DesiredState>,
        brought: Brought,
        message: String,
        answer: oneshot::Sender<Result<(), Reason>>,
    },
    LocalRollback {
        to: Option<ComponentState>,
        message: String,
        answer: oneshot::Sender<Result<(), Reason>>,
    },
    ReportAcked {
        upgrade: UpgradeId,
        sequence: u64,
    },
    Snapshot {
        answer: oneshot::Sender<Snapshot>,
    },
    Tail {
        lines: usize,
        answer: oneshot::Sender<Result<Vec<String>, Reason>>,
    },
    Pulse {
        answer: oneshot::Sender<Pulse>,
    },
}

/// How a component stands, in a few words: the answer to whoever asks whether its actor lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulse {
    /// Whether its probe passes, as far as is known.
    pub healthy: bool,
    /// The upgrade under way.
    pub doing: Option<Doing>,
}

/// An upgrade under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doing {
    /// Where it stands.
    pub phase: Phase,
    /// The state that it leads to, or back to.
    pub to: ComponentState,
    /// Since when it stands there.
    pub since: Time,
    /// How long it still has to stay healthy, once it is.
    pub soaking: Option<Duration>,
}

/// What an actor knows at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What the component is and runs.
    pub inventory: ComponentInventory,
    /// What an upgrade under way waits for, or how the last one ended.
    pub reason: Option<Reason>,
    /// Reports that are not acknowledged, oldest first.
    pub reports: Vec<UpgradeReport>,
}

/// What an actor has in common with its handles: who brings bytes holds the lock, and waits for a disk are counted.
type Shares = (Arc<tokio::sync::RwLock<()>>, Arc<AtomicU64>);

/// Talks to one component's actor. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    component: ComponentId,
    place: Place,
    offering: Arc<tokio::sync::RwLock<()>>,
    waits: Arc<AtomicU64>,
    sender: mpsc::Sender<Message>,
}

impl Handle {
    pub(crate) fn new(component: ComponentId, place: Place, sender: mpsc::Sender<Message>) -> Self {
        Self { component, place, offering: Arc::default(), waits: Arc::default(), sender }
    }

    /// The component.
    #[must_use]
    pub fn component(&self) -> &ComponentId {
        &self.component
    }

    /// Offers a desired state, with the manifest's bytes where it installs, those of its layers in their order, and a
    /// hold order if one came along.
    ///
    /// # Errors
    /// [`Nacked`] where the agent's policy says no, or the agent is ending.
    pub async fn order(
        &self,
        desired: DesiredState,
        manifest: Option<ManifestBytes>,
        layers: Vec<ManifestBytes>,
        hold: Option<HoldOrder>,
    ) -> Result<Acked, Nacked> {
        let (generation, upgrade) = (desired.generation, desired.upgrade.clone());
        let desired = Box::new(desired);
        let brought = Brought { manifest, layers };
        self.ask(|answer| Message::Order { desired, brought, hold, answer })
            .await
            .unwrap_or_else(|reason| Err(Nacked { generation, reason, kept: Generation::default(), upgrade }))
    }

    /// Puts a kept state back by will of a person at the node, and holds the component. `None` means the
    /// newest kept one. Returns once the rollback is recorded, not when it is done.
    ///
    /// # Errors
    /// Where there is no such state.
    pub async fn roll_back(&self, to: Option<ComponentState>, message: String) -> Result<(), Reason> {
        self.ask(|answer| Message::LocalRollback { to, message, answer }).await?
    }

    /// Applies what a file holds by will of a person at the node, and holds the component: like an order without
    /// rollout and upgrade, whose generation says nothing. `artifacts` are files with the bytes of what it names;
    /// they are copied, and verified like anything fetched. Returns once it is recorded, not when it is done.
    ///
    /// # Errors
    /// [`ReasonCode::LocalApplyForbidden`], or why it is refused, or where the bytes can't be copied.
    pub async fn apply(
        &self,
        desired: DesiredState,
        manifest: Option<ManifestBytes>,
        layers: Vec<ManifestBytes>,
        artifacts: Vec<(Digest, PathBuf)>,
        message: String,
    ) -> Result<(), Reason> {
        let place = self.place.clone();
        let _kept_until_recorded = self.offering.read().await;
        let copied = tokio::task::spawn_blocking(move || {
            artifacts.iter().try_for_each(|(digest, path)| exec::offer(&place, digest, path))
        });
        copied.await.map_err(|_| Reason::new(ReasonCode::AgentEnding))??;
        let (desired, brought) = (Box::new(desired), Brought { manifest, layers });
        self.ask(|answer| Message::Apply { desired, brought, message, answer }).await?
    }

    /// The controller has recorded all reports of `upgrade` up to `sequence`.
    pub async fn report_acked(&self, upgrade: UpgradeId, sequence: u64) {
        // A closed channel means that the agent is ending; the report is sent again after its next start.
        let _ = self.sender.send(Message::ReportAcked { upgrade, sequence }).await;
    }

    /// What the component is, runs and has to report.
    ///
    /// # Errors
    /// Where the agent is ending.
    pub async fn snapshot(&self) -> Result<Snapshot, Reason> {
        self.ask(|answer| Message::Snapshot { answer }).await
    }

    /// The last `lines` lines of the component's output.
    ///
    /// # Errors
    /// Where it is not supervised, or the agent is ending.
    pub async fn tail(&self, lines: usize) -> Result<Vec<String>, Reason> {
        self.ask(|answer| Message::Tail { lines, answer }).await?
    }

    /// How the component stands.
    ///
    /// # Errors
    /// Where its actor has ended.
    pub async fn pulse(&self) -> Result<Pulse, Reason> {
        self.ask(|answer| Message::Pulse { answer }).await
    }

    /// Grows for as long as the actor, which then answers nothing, waits for a disk that it can't write its journal to.
    #[must_use]
    pub fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, Reason> {
        let (sender, receiver) = oneshot::channel();
        let ending = || Reason::new(ReasonCode::AgentEnding);
        self.sender.send(message(sender)).await.map_err(|_| ending())?;
        receiver.await.map_err(|_| ending())
    }
}

/// The handles of all components; changes when the configuration is read again. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Handles(Arc<RwLock<BTreeMap<ComponentId, Handle>>>);

impl Handles {
    /// The handle of a component.
    ///
    /// # Errors
    /// [`ReasonCode::UnknownComponent`] where the configuration has no such component.
    pub fn get(&self, component: &ComponentId) -> Result<Handle, Reason> {
        let handles = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let unknown = || Reason::new(ReasonCode::UnknownComponent).with("component", component);
        handles.get(component).cloned().ok_or_else(unknown)
    }

    /// All of them, by component.
    #[must_use]
    pub fn all(&self) -> Vec<Handle> {
        let handles = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        handles.values().cloned().collect()
    }

    /// Adds or replaces a handle.
    pub(crate) fn insert(&self, handle: Handle) {
        let mut handles = self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        handles.insert(handle.component().clone(), handle);
    }

    /// Removes the handle of a component that left the configuration.
    pub(crate) fn remove(&self, component: &ComponentId) {
        let mut handles = self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        handles.remove(component);
    }
}

/// What all actors of an agent share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// What the node's programs are built for.
    pub platform: Platform,
    /// What they have to say goes there.
    pub outgoing: mpsc::Sender<Outgoing>,
    /// Who may be upgraded now.
    pub exclusives: Exclusives,
    /// Ends them.
    pub shutdown: CancellationToken,
}

/// Starts a component's actor: reads its journal, looks at the node, and goes on where it stood. Returns the handle
/// and the task, which ends with `shared.shutdown`. While the journal can't be used the component runs on, takes no
/// orders and says why.
pub fn start<W: world::World>(
    state_dir: &Path,
    config: &ComponentConfig,
    world: W,
    shared: Shared,
) -> (Handle, JoinHandle<()>) {
    let policy = policy::policy(config, &shared.platform);
    let place = Place::new(&config.name, &config.path);
    let tools = work::Tools {
        state_dir: state_dir.to_owned(),
        executor: Executor::of(config),
        manifests: manifests::Manifests::new(state_dir, &config.name),
        history: history::History::new(state_dir, &config.name),
        world: Arc::new(world),
        policy,
        outgoing: shared.outgoing.clone(),
        gate: Arc::default(),
    };
    // Room for a burst of orders and acknowledgements; whoever sends more waits.
    let (sender, inbox) = mpsc::channel(64);
    let handle = Handle::new(config.name.clone(), place, sender);
    let shares = (Arc::clone(&handle.offering), Arc::clone(&handle.waits));
    let journals = state_dir.join("journals");
    let task = match Journal::open(&journals, &config.name) {
        Ok(opened) => tokio::spawn(actor(config, opened, tools, shared, shares).run(inbox)),
        Err(error) => {
            let refused = refused::Refused::new(config, journals, error, tools, shared);
            tokio::spawn(refused.run(inbox, shares))
        }
    };
    (handle, task)
}

/// The actor of a component whose journal is open.
fn actor<W: world::World>(
    config: &ComponentConfig,
    opened: Opened,
    tools: work::Tools<W>,
    shared: Shared,
    shares: Shares,
) -> actor::Actor<W> {
    let mut record = opened.record.unwrap_or_else(|| Record::new(config.name.clone()));
    if let Some(damage) = opened.damage {
        tracing::error!(component = %config.name, reason = %damage, "journal moved aside");
        record.drift = Some(damage);
    }
    let machine = Machine::new(tools.policy.clone(), record);
    actor::Actor::new(machine, opened.journal, tools, shared.exclusives, shares, shared.shutdown)
}
