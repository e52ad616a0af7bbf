//! Stands in for a component's actor while its journal can't be used: what runs is left alone, orders are refused with
//! the reason, and the journal is tried again. Nothing is decided without it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::mpsc;
use upfleet_domain::{
    reason::Reason,
    report::ComponentInventory,
    upgrade::{machine::Machine, record::Record, recover, step::Process},
};

use super::{Message, Nacked, Outgoing, Pulse, Shared, Shares, Snapshot, actor, work::Tools, world::World};
use crate::{
    config::ComponentConfig,
    journal::{Journal, JournalError, Opened},
};

/// How often the journal is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Refused<W> {
    config: ComponentConfig,
    journals: PathBuf,
    reason: Reason,
    tools: Tools<W>,
    shared: Shared,
    process: Process,
    /// What lies there: what is recorded can't be read.
    record: Record,
}

impl<W: World> Refused<W> {
    pub(super) fn new(
        config: &ComponentConfig,
        journals: PathBuf,
        error: JournalError,
        tools: Tools<W>,
        shared: Shared,
    ) -> Self {
        tracing::error!(component = %config.name, error = crate::error::chain(&error), "takes no orders");
        let (config, record) = (config.clone(), Record::new(config.name.clone()));
        Self { reason: error.reason(), config, journals, tools, shared, process: Process::NotRun, record }
    }

    /// Until the journal can be used; then the component's actor goes on.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Message>, shares: Shares) {
        // What can take long, as a shim's start does, must not keep anybody from an answer.
        let world = Arc::clone(&self.tools.world);
        tokio::spawn(async move { world.revive().await });
        let shutdown = self.shared.shutdown.clone();
        let mut retry = tokio::time::interval(RETRY);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                _ = retry.tick() => {
                    if let Some(opened) = self.try_again().await {
                        let Self { config, tools, shared, .. } = self;
                        return actor(&config, opened, tools, shared, shares).run(inbox).await;
                    }
                }
                message = inbox.recv() => match message {
                    Some(message) => self.receive(message),
                    None => return,
                },
            }
        }
    }

    async fn try_again(&mut self) -> Option<Opened> {
        let (journals, component) = (self.journals.clone(), self.config.name.clone());
        let opened = tokio::task::spawn_blocking(move || Journal::open(&journals, &component)).await;
        match opened {
            Ok(Ok(opened)) => return Some(opened),
            Ok(Err(error)) => self.reason = error.reason(),
            Err(_) => {}
        }
        let before = self.inventory();
        self.look().await;
        if before != self.inventory() {
            // Nobody listens any more when the agent ends.
            let _ = self.shared.outgoing.send(Outgoing::Inventory(Box::new(self.inventory()))).await;
        }
        None
    }

    async fn look(&mut self) {
        let executor = self.tools.executor.clone();
        if let Ok(Ok(lying)) = tokio::task::spawn_blocking(move || executor.inspect()).await {
            let found = recover::Found {
                installed: lying.installed,
                layers: Vec::new(),
                damage: None,
                kept: lying.kept,
                changes: Vec::new(),
                patches: Vec::new(),
                process: self.process.clone(),
                beside: None,
                health: None,
                watched: false,
                reverted: None,
            };
            self.record.current = recover::adopt(&found);
        }
        self.process = self.tools.world.process().await;
    }

    fn inventory(&self) -> ComponentInventory {
        let machine = Machine::new(self.tools.policy.clone(), self.record.clone());
        let (running, pid) = (self.process.digest(), self.process.pid());
        let alarms = vec![self.reason.clone()];
        ComponentInventory { running, pid, alarms, healthy: pid.is_some(), ..machine.inventory() }
    }

    fn receive(&self, message: Message) {
        let reason = self.reason.clone();
        // Whoever asked may have gone away; that is no concern of the component's.
        match message {
            Message::Order { desired, answer, .. } => {
                let (generation, upgrade) = (desired.generation, desired.upgrade.clone());
                drop(answer.send(Err(Nacked { generation, reason, kept: self.record.generation, upgrade })));
            }
            Message::Apply { answer, .. } | Message::LocalRollback { answer, .. } => {
                drop(answer.send(Err(reason)));
            }
            Message::ReportAcked { .. } => {}
            Message::Snapshot { answer } => {
                let snapshot =
                    Snapshot { inventory: self.inventory(), reason: Some(reason), reports: Vec::new() };
                drop(answer.send(snapshot));
            }
            // Whatever runs there: a component that takes no orders is not well.
            Message::Pulse { answer } => drop(answer.send(Pulse { healthy: false, doing: None })),
            Message::Tail { lines, answer } => {
                let world = Arc::clone(&self.tools.world);
                tokio::spawn(async move { answer.send(Ok(world.tail(lines).await)) });
            }
        }
    }
}
