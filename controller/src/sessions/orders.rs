//! What a session has to tell its agent: the store's orders that this connection has not carried yet.

use std::collections::BTreeMap;

use upfleet_api::convert::Order;
use upfleet_domain::{
    id::{ComponentId, NodeId},
    order::{DesiredState, Generation, Target},
    reason::{Reason, ReasonCode},
    report::ComponentInventory,
};

use super::manifests::Manifests;
use crate::{
    failure::internal,
    store::{DesiredRecord, NodeRecord, Store},
};

/// The most components one node may have.
pub(super) const MAX_COMPONENTS: usize = 256;

/// Keeps what went out over one connection.
pub struct Orders {
    node: NodeId,
    epoch: u64,
    /// What the agent had made durable, as it said.
    kept: BTreeMap<ComponentId, Generation>,
    /// What went out: the generation, and that of the hold.
    sent: BTreeMap<ComponentId, (Generation, u64)>,
    /// Set once the agent is found ahead of the store: nothing is ordered then.
    behind: Option<Reason>,
    /// The alarm was raised in an earlier session and is on the node's record.
    told: bool,
}

impl Orders {
    /// For a connection on which nothing went out yet.
    #[must_use]
    pub fn new(node: &NodeId, record: &NodeRecord, epoch: u64, inventory: &[ComponentInventory]) -> Self {
        let kept: BTreeMap<_, _> =
            inventory.iter().map(|component| (component.component.clone(), component.generation)).collect();
        // An alarm holds until a restore raises the epoch: orders given meanwhile must not end it by overtaking.
        let old = record.reason.as_ref().filter(|reason| {
            reason.code == ReasonCode::ControllerBehind
                && reason.metadata.get("epoch").is_some_and(|at| *at == epoch.to_string())
        });
        let mut orders = Self {
            node: node.clone(),
            epoch,
            kept,
            sent: BTreeMap::new(),
            behind: old.cloned(),
            told: old.is_some(),
        };
        if orders.behind.is_none() {
            let highest = orders.kept.values().max().copied().unwrap_or_default();
            if highest.epoch > epoch {
                orders.behind = Some(orders.alarm_for(highest, Generation { epoch, number: 0 }));
            }
        }
        orders
    }

    fn alarm_for(&self, seen: Generation, own: Generation) -> Reason {
        let text = |generation: Generation| format!("{}/{}", generation.epoch, generation.number);
        Reason::new(ReasonCode::ControllerBehind)
            .with("node", &self.node)
            .with("seen", text(seen))
            .with("own", text(own))
            .with("epoch", self.epoch)
    }

    /// The alarm to raise, once.
    pub fn alarm(&mut self) -> Option<Reason> {
        if self.told {
            return None;
        }
        self.told = self.behind.is_some();
        self.behind.clone()
    }

    /// Whether the agent is ahead of the store, so that nothing is ordered to it.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.behind.is_some()
    }

    /// The hold generation that went out with an order.
    #[must_use]
    pub fn hold_sent(&self, component: &ComponentId) -> u64 {
        self.sent.get(component).map_or(0, |(_, hold)| *hold)
    }

    /// An agent said which order it keeps.
    ///
    /// # Errors
    /// `LIMIT_EXCEEDED` where it would be one component too many: each costs rows in the store.
    pub fn keeps(&mut self, component: &ComponentId, generation: Generation) -> Result<(), Reason> {
        if !self.kept.contains_key(component) && self.kept.len() >= MAX_COMPONENTS {
            return Err(Reason::new(ReasonCode::LimitExceeded)
                .with("what", "the number of components")
                .with("limit", MAX_COMPONENTS));
        }
        self.kept.insert(component.clone(), generation);
        Ok(())
    }

    /// Remembers that `order` went out.
    pub fn sent(&mut self, order: &Order) {
        let hold = order.hold.as_ref().map_or(0, |hold| hold.generation);
        self.sent.insert(order.desired.component.clone(), (order.desired.generation, hold));
    }

    /// The orders that have to go out: all on a new connection, then what is newer.
    ///
    /// # Errors
    /// What the store says.
    pub async fn due(&mut self, store: &dyn Store, manifests: &Manifests) -> Result<Vec<Order>, Reason> {
        let records = store.desired(&self.node).await.map_err(internal)?;
        self.check(&records);
        if self.behind.is_some() {
            return Ok(Vec::new());
        }
        let mut due = Vec::new();
        for record in records.iter().filter(|record| self.is_news(record)) {
            due.push(self.order(store, manifests, record).await?);
        }
        Ok(due)
    }

    /// Compares what the agent keeps with the store; [`Orders::alarm`] has what comes of it.
    ///
    /// # Errors
    /// What the store says.
    pub async fn compare(&mut self, store: &dyn Store) -> Result<(), Reason> {
        let records = store.desired(&self.node).await.map_err(internal)?;
        self.check(&records);
        Ok(())
    }

    /// Finds out whether the agent has seen orders of this epoch that the store does not know.
    fn check(&mut self, records: &[DesiredRecord]) {
        if self.behind.is_some() {
            return;
        }
        for (component, kept) in self.kept.iter().filter(|(_, kept)| kept.epoch == self.epoch) {
            let record = records.iter().find(|record| record.component == *component);
            let own = record.map(DesiredRecord::generation).unwrap_or_default();
            if own < *kept {
                self.behind = Some(self.alarm_for(*kept, own));
                return;
            }
        }
    }

    fn is_news(&self, record: &DesiredRecord) -> bool {
        let hold = record.hold.as_ref().map_or(0, |hold| hold.generation);
        let kept = self.kept.get(&record.component).copied().unwrap_or_default();
        if record.desired.is_some() && record.generation() < kept {
            // Left over from before a restore; the agent would refuse it, and rightly.
            return false;
        }
        match self.sent.get(&record.component) {
            None => record.desired.is_some() || hold > 0,
            Some((generation, held)) => record.generation() > *generation || hold > *held,
        }
    }

    async fn order(
        &self,
        store: &dyn Store,
        manifests: &Manifests,
        record: &DesiredRecord,
    ) -> Result<Order, Reason> {
        let desired = match &record.desired {
            Some(desired) => desired.clone(),
            // Only a hold was ordered: it travels with what the agent keeps anyway.
            None => self.nothing_new(&record.component),
        };
        let manifest = match &desired.target {
            Target::Install(release) => {
                let found = manifests.get(store, &release.manifest).await?;
                let missing =
                    || Reason::new(ReasonCode::NotFound).with("what", "release").with("name", release);
                Some(found.ok_or_else(missing)?)
            }
            Target::Stack(_) | Target::Restore(_) | Target::Stay => None,
        };
        let mut layers = Vec::with_capacity(desired.layers.len());
        for layer in &desired.layers {
            // One that was put on from a file was perhaps never published here; its node has the manifest.
            layers.push(manifests.get(store, &layer.release.manifest).await?.unwrap_or_default());
        }
        Ok(Order { desired, manifest, layers, hold: record.hold.clone() })
    }

    fn nothing_new(&self, component: &ComponentId) -> DesiredState {
        DesiredState {
            component: component.clone(),
            generation: self.kept.get(component).copied().unwrap_or_default(),
            rollout: None,
            upgrade: None,
            target: Target::Stay,
            layers: Vec::new(),
            live: false,
            hold_before: None,
            not_after: None,
            allow_downgrade: false,
            allow_failed_digest: false,
            soak: None,
            trace: String::new(),
            actor: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fixtures;

    #[test]
    fn an_agent_has_no_more_components_than_a_node_may() {
        let node = fixtures::node("a");
        let mut orders = Orders::new(&node.id, &node, 1, &[]);
        let name = |n: usize| format!("c-{n}").parse().unwrap();
        for n in 0..MAX_COMPONENTS {
            orders.keeps(&name(n), Generation::default()).unwrap();
        }
        orders.keeps(&name(0), Generation::default()).unwrap();
        let reason = orders.keeps(&name(MAX_COMPONENTS), Generation::default()).unwrap_err();
        assert_eq!(reason.code, ReasonCode::LimitExceeded);
    }
}
