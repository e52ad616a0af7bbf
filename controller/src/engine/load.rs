//! From the store to the machine: a rollout with its upgrades, and what is known of its nodes.

use std::time::Duration;

use upfleet_domain::{
    id::{NodeId, RolloutId},
    reason::{Reason, ReasonCode},
    report::{ComponentInventory, UpgradeReport},
    rollout::{
        NodeUpgrade,
        event::{Event, Presence},
        machine::Machine,
    },
    state::Base,
    time::Time,
    upgrade::{Outcome, UpgradeState},
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
    // Where another machine has the name since, the one that was told never comes back.
    let told = upgrade.started.filter(|_| upgrade.id.is_some());
    let gone =
        |node: &NodeRecord| node.state == NodeState::Retired || told.is_some_and(|told| node.created > told);
    let Some(node) = node.filter(|node| !gone(node)) else {
        let counts = matches!(upgrade.state, UpgradeState::Active(_)) || upgrade.presumed;
        return counts.then(|| Event::Retired(upgrade.node.clone()));
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

/// How long an agent has after connecting to say again what was not acknowledged.
const RESEND: Duration = Duration::from_secs(30);

/// An end that only the inventory tells: its report was acknowledged to a store that a restore has replaced.
fn told_by_inventory(
    upgrade: &NodeUpgrade,
    node: &NodeRecord,
    component: &ComponentRecord,
    now: Time,
) -> Option<Event> {
    let inventory = &component.inventory;
    let outcome = inventory.upgrade_state?.outcome()?;
    let settled = node.session.as_ref().is_some_and(|session| session.since.after(RESEND) <= now);
    let ours = upgrade.in_flight() && inventory.upgrade == upgrade.id && settled;
    let digest = inventory.current.artifact().map_or_else(|| "nothing".to_owned(), |digest| digest.short());
    let reason = match outcome {
        Outcome::Succeeded => Reason::new(ReasonCode::Healthy).with("digest", digest),
        Outcome::AlreadyCurrent => Reason::new(ReasonCode::AlreadyCurrent).with("digest", digest),
        Outcome::RolledBack => Reason::new(ReasonCode::RolledBack)
            .with("from", &inventory.current)
            .with("why", "the report of it was lost with the store"),
        other => Reason::new(ReasonCode::Other)
            .with("code", other)
            .with("message", "known from the inventory; the report of it was lost with the store"),
    };
    let report = UpgradeReport {
        upgrade: upgrade.id.clone()?,
        component: inventory.component.clone(),
        // The agent chose it.
        sequence: upgrade.sequence.saturating_add(1),
        generation: inventory.generation,
        state: UpgradeState::Ended(outcome),
        reason,
        time: now,
        from: None,
        current: Some(inventory.current.clone()),
        running: inventory.running,
        evidence: None,
        proof: inventory.proof.clone(),
        reload: None,
        interruption: None,
    };
    ours.then(|| Event::Report { node: upgrade.node.clone(), report: Box::new(report) })
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
    now: Time,
) -> Result<Vec<Event>> {
    let component = &machine.rollout.spec.component;
    let mut events = Vec::new();
    if let Some(nodes) = nodes {
        for upgrade in nodes.iter().filter_map(|node| machine.upgrades.get(node)) {
            let node = store.node(&upgrade.node).await?;
            let components = store.components(&upgrade.node).await?;
            let component = components.iter().find(|record| record.component() == component);
            events.extend(presence(upgrade, node.as_ref(), component, began));
            events.extend(
                node.as_ref().zip(component).and_then(|(n, c)| told_by_inventory(upgrade, n, c, now)),
            );
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
        let component = component.ok().map(|at| &components[at]);
        events.extend(presence(upgrade, node, component, began));
        events.extend(node.zip(component).and_then(|(n, c)| told_by_inventory(upgrade, n, c, now)));
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{SessionRecord, fixtures};

    fn told() -> NodeUpgrade {
        let mut upgrade = fixtures::upgrade("a", 0, Some("u-1"));
        upgrade.state = UpgradeState::Active(upfleet_domain::upgrade::Phase::Fetching);
        upgrade.started = Some(Time(50));
        upgrade
    }

    #[test]
    fn a_node_enrolled_anew_is_not_waited_for() {
        let check = |created, upgrade: &NodeUpgrade| {
            let node = NodeRecord { created: Time(created), ..fixtures::node("a") };
            presence(upgrade, Some(&node), None, Time(0))
        };
        assert_eq!(check(51, &told()), Some(Event::Retired(fixtures::node_id("a"))));
        assert!(!matches!(check(49, &told()), Some(Event::Retired(_))));
        let waits = NodeUpgrade { id: None, ..told() };
        assert!(!matches!(check(51, &waits), Some(Event::Retired(_))), "the new machine can be told");
    }

    #[test]
    fn no_number_of_an_agent_is_too_high() {
        let upgrade = NodeUpgrade { sequence: u64::MAX, ..told() };
        let session = SessionRecord { instance_id: "i".into(), boot_id: "b".into(), since: Time(0) };
        let node = NodeRecord { session: Some(session), ..fixtures::node("a") };
        let mut inventory = fixtures::inventory(upgrade.to.clone());
        inventory.upgrade.clone_from(&upgrade.id);
        inventory.upgrade_state = Some(UpgradeState::Ended(Outcome::Succeeded));
        let component = ComponentRecord {
            node: node.id.clone(),
            inventory,
            changed_by: String::new(),
            rollout: None,
            revision: 1,
        };
        assert!(told_by_inventory(&upgrade, &node, &component, Time(1_000_000)).is_some());
    }
}
