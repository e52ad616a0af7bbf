//! From the store to the machine: a rollout with its upgrades, and what is known of its nodes.

use upfleet_domain::{
    id::{NodeId, RolloutId},
    report::ComponentInventory,
    rollout::{
        NodeUpgrade,
        event::{Event, Presence},
        machine::Machine,
    },
    state::Base,
    time::Time,
    upgrade::UpgradeState,
};

use crate::store::{ComponentRecord, NodeRecord, NodeState, Page, Result, RolloutRecord, Store};

/// A rollout as it was read.
pub(super) struct Loaded {
    pub(super) record: RolloutRecord,
    pub(super) machine: Machine,
}

/// Reads a rollout with its upgrades; `None` where there is none.
pub(super) async fn load(store: &dyn Store, id: &RolloutId) -> Result<Option<Loaded>> {
    let Some(record) = store.rollout(id).await? else { return Ok(None) };
    let rows = store.upgrades(id, &[], &Page::ALL).await?.rows;
    let upgrades = rows.into_iter().map(|row| (row.node.clone(), row)).collect();
    let machine = Machine { rollout: record.rollout.clone(), upgrades };
    Ok(Some(Loaded { record, machine }))
}

impl Loaded {
    /// Reads what changed since it was read.
    pub(super) async fn refresh(&mut self, store: &dyn Store) -> Result<()> {
        let seen = self.record.rollout.revision;
        let id = self.record.rollout.id.clone();
        // The rollout first: a row that changes in between is then read again next time, never missed.
        if let Some(record) = store.rollout(&id).await? {
            self.record = record;
        }
        for row in store.upgrades_changed_since(&id, seen).await? {
            self.machine.upgrades.insert(row.node.clone(), row);
        }
        self.machine.rollout = self.record.rollout.clone();
        Ok(())
    }
}

/// What a node's record and its component say about an upgrade; `None` where nothing is new.
pub(super) fn presence(
    upgrade: &NodeUpgrade,
    node: Option<&NodeRecord>,
    component: Option<&ComponentRecord>,
    began: Time,
) -> Option<Event> {
    let Some(node) = node.filter(|node| node.state != NodeState::Retired) else {
        let gone = matches!(upgrade.state, UpgradeState::Active(_)) || upgrade.presumed;
        return gone.then(|| Event::Retired(upgrade.node.clone()));
    };
    let offline_since = if node.online() {
        None
    } else {
        // While no controller listened nobody could be heard; that is no silence of theirs.
        let heard = node.last_seen.unwrap_or(node.created).max(began);
        Some(upgrade.offline_since.filter(|since| *since >= began).unwrap_or(heard))
    };
    let inventory = component.map(|component| &component.inventory);
    // An inventory from before the upgrade's end says nothing about what it led to.
    let current = inventory.filter(|inventory| !is_stale(upgrade, inventory));
    let unhealthy = match current {
        Some(inventory) => !inventory.healthy && inventory.current.base != Base::Absent,
        None => upgrade.unhealthy,
    };
    let ended_here =
        current.filter(|inventory| inventory.upgrade.is_some() && inventory.upgrade == upgrade.id);
    let drift = ended_here.and_then(|inventory| inventory.drift.clone()).filter(|_| upgrade.succeeded());
    let new = offline_since != upgrade.offline_since || unhealthy != upgrade.unhealthy || drift.is_some();
    let presence = Presence { offline_since, unhealthy, drift };
    new.then(|| Event::Presence { node: upgrade.node.clone(), presence })
}

fn is_stale(upgrade: &NodeUpgrade, inventory: &ComponentInventory) -> bool {
    let ended = upgrade.state.outcome().is_some() && upgrade.attempt > 0;
    let same = inventory.upgrade.is_some() && inventory.upgrade == upgrade.id;
    let under_way = matches!(inventory.upgrade_state, Some(UpgradeState::Active(_)));
    ended && (!same || under_way)
}

/// Reads what is known of some nodes, or of all of the rollout's.
pub(super) async fn presences(
    store: &dyn Store,
    machine: &Machine,
    nodes: Option<&[NodeId]>,
    began: Time,
) -> Result<Vec<Event>> {
    let component = &machine.rollout.spec.component;
    let mut events = Vec::new();
    if let Some(nodes) = nodes {
        for upgrade in nodes.iter().filter_map(|node| machine.upgrades.get(node)) {
            let node = store.node(&upgrade.node).await?;
            let components = store.components(&upgrade.node).await?;
            let component = components.iter().find(|record| record.component() == component);
            events.extend(presence(upgrade, node.as_ref(), component, began));
        }
        return Ok(events);
    }
    let planned = |node: &NodeRecord| machine.upgrades.contains_key(&node.id);
    let records = store.nodes(&planned, &Page::ALL).await?.rows;
    let components = store.components_named(component).await?;
    for upgrade in machine.upgrades.values() {
        let node =
            records.binary_search_by(|record| record.id.cmp(&upgrade.node)).ok().map(|at| &records[at]);
        let component = components.binary_search_by(|record| record.node.cmp(&upgrade.node));
        events.extend(presence(upgrade, node, component.ok().map(|at| &components[at]), began));
    }
    Ok(events)
}
