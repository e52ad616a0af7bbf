//! Many changes of one kind with a few statements: a fleet's orders, its acknowledgements and its reports. These are
//! also the only statements that write such rows; one row is a few.
//!
//! Each does exactly what the same changes do one after the other, in their order; a tenth of the statements is what
//! makes the difference when ten thousand agents speak at once.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{QueryBuilder, Sqlite};
use upfleet_domain::{
    id::{ComponentId, NodeId, RolloutId, UpgradeId},
    order::{DesiredState, Generation},
    report::UpgradeReport,
    rollout::NodeUpgrade,
    time::Time,
};

use super::{
    batch::{Batch, expect, stale},
    error::{count, damaged, from_doc, int, to_doc},
    fleet, history,
    read_rollout::upgrade_key,
};
use crate::store::{DesiredRecord, Expected, Notice, ReportOutcome, Result, StoreError, report};

/// Rows of one statement: far below SQLite's bound on parameters, and more would gain nothing.
const ROWS: usize = 128;

/// One acknowledgement.
pub(super) struct Ack {
    pub(super) node: NodeId,
    pub(super) component: ComponentId,
    pub(super) generation: Generation,
    pub(super) hold_generation: u64,
}

/// One change of an upgrade's row by the engine.
pub(super) struct Put {
    pub(super) rollout: RolloutId,
    pub(super) upgrade: Box<NodeUpgrade>,
    pub(super) expected: Expected,
    pub(super) time: Time,
}

/// One report.
pub(super) struct Told {
    pub(super) node: NodeId,
    pub(super) report: Box<UpgradeReport>,
    pub(super) time: Time,
}

/// A row of the history of a rollout's changes.
pub(super) struct Event {
    pub(super) rollout: RolloutId,
    pub(super) revision: u64,
    pub(super) time: Time,
    /// Whose upgrade changed; `None` where the rollout itself did.
    pub(super) node: Option<NodeId>,
    /// The upgrade's state before.
    pub(super) previous: Option<String>,
    pub(super) doc: String,
}

/// Upgrades to write, each with its document.
pub(super) type Upgrades = BTreeMap<(RolloutId, NodeId), (NodeUpgrade, String)>;

type Desired = BTreeMap<(NodeId, ComponentId), DesiredRecord>;

/// Orders of a batch.
pub(super) async fn put_desired(batch: &mut Batch<'_>, orders: Vec<(NodeId, DesiredState)>) -> Result<()> {
    let keys = orders.iter().map(|(node, desired)| (node.clone(), desired.component.clone())).collect();
    let mut rows = read_desired(batch, &keys).await?;
    for (node, desired) in orders {
        let component = desired.component.clone();
        let row = rows
            .entry((node.clone(), component.clone()))
            .or_insert_with(|| fleet::no_orders(&node, &component));
        if row.desired.is_some() && desired.generation <= row.generation() {
            return Err(stale("desired state of", &format!("{node}/{component}")).into());
        }
        row.desired = Some(desired);
        row.nack = None;
    }
    write_desired(batch, rows.values()).await?;
    keys.into_iter().for_each(|(node, _)| batch.tell(Notice::Desired { node }));
    Ok(())
}

/// What agents have made durable.
pub(super) async fn acknowledge(batch: &mut Batch<'_>, acks: Vec<Ack>) -> Result<()> {
    let keys = acks.iter().map(|ack| (ack.node.clone(), ack.component.clone())).collect();
    let mut rows = read_desired(batch, &keys).await?;
    let mut changed = BTreeSet::new();
    for ack in acks {
        let key = (ack.node, ack.component);
        let row = rows.entry(key.clone()).or_insert_with(|| fleet::no_orders(&key.0, &key.1));
        if ack.generation <= row.acked && ack.hold_generation <= row.hold_acked {
            continue;
        }
        row.acked = row.acked.max(ack.generation);
        row.hold_acked = row.hold_acked.max(ack.hold_generation);
        changed.insert(key);
    }
    write_desired(batch, changed.iter().filter_map(|key| rows.get(key))).await?;
    changed.into_iter().for_each(|(node, _)| batch.tell(Notice::Answered { node }));
    Ok(())
}

async fn read_desired(batch: &mut Batch<'_>, keys: &BTreeSet<(NodeId, ComponentId)>) -> Result<Desired> {
    let mut by_component: BTreeMap<&ComponentId, Vec<&NodeId>> = BTreeMap::new();
    for (node, component) in keys {
        by_component.entry(component).or_default().push(node);
    }
    let mut rows = Desired::new();
    for (component, nodes) in by_component {
        for nodes in nodes.chunks(ROWS) {
            let mut select = QueryBuilder::<Sqlite>::new("SELECT node, doc FROM desired WHERE component = ");
            select.push_bind(component.as_str()).push(" AND node IN (");
            let mut list = select.separated(", ");
            for node in nodes {
                list.push_bind(node.as_str());
            }
            select.push(")");
            let select = select.build_query_as::<(String, String)>().persistent(false);
            for (node, doc) in select.fetch_all(&mut *batch.conn).await? {
                let row: DesiredRecord = from_doc("desired state of", &node, &doc)?;
                rows.insert((row.node.clone(), row.component.clone()), row);
            }
        }
    }
    Ok(rows)
}

pub(super) async fn write_desired(
    batch: &mut Batch<'_>,
    rows: impl Iterator<Item = &DesiredRecord>,
) -> Result<()> {
    let rows: Vec<&DesiredRecord> = rows.collect();
    for rows in rows.chunks(ROWS) {
        let mut upsert =
            QueryBuilder::<Sqlite>::new("INSERT INTO desired (node, component, epoch, number, doc) ");
        upsert.push_values(rows, |mut values, row| {
            let generation = row.generation();
            values.push_bind(row.node.as_str()).push_bind(row.component.as_str());
            values.push_bind(int(generation.epoch)).push_bind(int(generation.number)).push_bind(to_doc(row));
        });
        upsert.push(
            " ON CONFLICT (node, component) DO UPDATE \
             SET epoch = excluded.epoch, number = excluded.number, doc = excluded.doc",
        );
        let written = upsert.build().persistent(false).execute(&mut *batch.conn).await;
        written.map_err(|error| fleet::no_node(error, &rows[0].node))?;
    }
    Ok(())
}

/// The engine's changes of upgrades.
pub(super) async fn put_upgrades(batch: &mut Batch<'_>, puts: Vec<Put>) -> Result<()> {
    let mut found: BTreeMap<(RolloutId, NodeId), (u64, String)> = BTreeMap::new();
    for chunk in puts.chunks(ROWS) {
        let rollouts: BTreeSet<&RolloutId> = chunk.iter().map(|put| &put.rollout).collect();
        for rollout in rollouts {
            let mut select = QueryBuilder::<Sqlite>::new(
                "SELECT node, revision, state FROM node_upgrade WHERE rollout = ",
            );
            select.push_bind(rollout.as_str()).push(" AND node IN (");
            let mut list = select.separated(", ");
            for put in chunk.iter().filter(|put| put.rollout == *rollout) {
                list.push_bind(put.upgrade.node.as_str());
            }
            select.push(")");
            let select = select.build_query_as::<(String, i64, String)>().persistent(false);
            for (node, revision, state) in select.fetch_all(&mut *batch.conn).await? {
                let node = NodeId::new(&*node).map_err(|source| damaged("node", &node, source))?;
                found.insert((rollout.clone(), node), (count(revision), state));
            }
        }
    }
    let (mut rows, mut events) = (Upgrades::new(), Vec::with_capacity(puts.len()));
    for Put { rollout, mut upgrade, expected, time } in puts {
        let key = (rollout, upgrade.node.clone());
        let (revision, previous) = found.get(&key).cloned().unzip();
        expect(expected, revision, "upgrade", &format!("{}/{}", key.0, key.1))?;
        upgrade.revision = batch.revise(&key.0).await?;
        let doc = to_doc(&*upgrade);
        found.insert(key.clone(), (upgrade.revision, upgrade.state.as_str().to_owned()));
        let (rollout, node) = key.clone();
        let (revision, node) = (upgrade.revision, Some(node));
        events.push(Event { rollout, revision, time, node, previous, doc: doc.clone() });
        history::upgrade_ended(batch, &key.0, &upgrade).await?;
        rows.insert(key, (*upgrade, doc));
    }
    write_upgrades(batch, &rows).await?;
    write_events(batch, &events).await
}

/// What agents reported. The outcomes are in the order of the reports.
pub(super) async fn record_reports(batch: &mut Batch<'_>, told: Vec<Told>) -> Result<()> {
    let ids: BTreeSet<UpgradeId> = told.iter().map(|told| told.report.upgrade.clone()).collect();
    let mut known = read_upgrades(batch, &ids).await?;
    let mut rows = BTreeMap::new();
    let mut events = Vec::with_capacity(told.len());
    for Told { node, report: said, time } in told {
        let outcome = match known.get_mut(&said.upgrade) {
            Some((_, row)) if row.node != node => ReportOutcome::Foreign,
            None => ReportOutcome::Unknown,
            Some((_, row)) if said.sequence <= row.sequence => ReportOutcome::Duplicate,
            Some((rollout, row)) => {
                let previous = Some(row.state.as_str().to_owned());
                report::apply(row, &said, time);
                row.revision = batch.revise(rollout).await?;
                let (doc, revision) = (to_doc(row), row.revision);
                history::upgrade_ended(batch, rollout, row).await?;
                fleet::upgrade_ended(batch, &node, &said).await?;
                rows.insert((rollout.clone(), node.clone()), (row.clone(), doc.clone()));
                let (rollout, node) = (rollout.clone(), Some(node));
                events.push(Event { rollout, revision, time, node, previous, doc });
                ReportOutcome::Recorded
            }
        };
        batch.committed.reports.push((said.upgrade, said.sequence, outcome));
    }
    write_upgrades(batch, &rows).await?;
    write_events(batch, &events).await
}

async fn read_upgrades(
    batch: &mut Batch<'_>,
    ids: &BTreeSet<UpgradeId>,
) -> Result<BTreeMap<UpgradeId, (RolloutId, NodeUpgrade)>> {
    let mut known = BTreeMap::new();
    for ids in ids.iter().collect::<Vec<_>>().chunks(ROWS) {
        let mut select =
            QueryBuilder::<Sqlite>::new("SELECT rollout, doc FROM node_upgrade WHERE upgrade_id IN (");
        let mut list = select.separated(", ");
        for id in ids {
            list.push_bind(id.as_str());
        }
        select.push(")");
        let select = select.build_query_as::<(String, String)>().persistent(false);
        for (rollout, doc) in select.fetch_all(&mut *batch.conn).await? {
            let row: NodeUpgrade = from_doc("upgrade of", &rollout, &doc)?;
            let rollout = RolloutId::new(&*rollout).map_err(|source| damaged("rollout", &rollout, source))?;
            known.extend(row.id.clone().map(|id| (id, (rollout, row))));
        }
    }
    Ok(known)
}

pub(super) async fn write_upgrades(batch: &mut Batch<'_>, rows: &Upgrades) -> Result<()> {
    for rows in rows.iter().collect::<Vec<_>>().chunks(ROWS) {
        let mut upsert = QueryBuilder::<Sqlite>::new(
            "INSERT INTO node_upgrade (rollout, node, upgrade_id, state, revision, sort_key, doc) ",
        );
        upsert.push_values(rows, |mut values, ((rollout, node), (upgrade, doc))| {
            values.push_bind(rollout.as_str()).push_bind(node.as_str());
            values.push_bind(upgrade.id.as_ref().map(|id| id.as_str())).push_bind(upgrade.state.as_str());
            values.push_bind(int(upgrade.revision)).push_bind(upgrade_key(upgrade)).push_bind(doc.as_str());
        });
        upsert.push(
            " ON CONFLICT (rollout, node) DO UPDATE SET upgrade_id = excluded.upgrade_id, \
             state = excluded.state, revision = excluded.revision, sort_key = excluded.sort_key, \
             doc = excluded.doc",
        );
        upsert.build().persistent(false).execute(&mut *batch.conn).await?;
    }
    Ok(())
}

pub(super) async fn write_events(batch: &mut Batch<'_>, events: &[Event]) -> Result<()> {
    for events in events.chunks(ROWS) {
        let mut insert =
            QueryBuilder::<Sqlite>::new("INSERT INTO event (rollout, revision, time, node, previous, doc) ");
        insert.push_values(events, |mut values, event| {
            values.push_bind(event.rollout.as_str()).push_bind(int(event.revision)).push_bind(event.time.0);
            values.push_bind(event.node.as_ref().map(|node| node.as_str()));
            values.push_bind(event.previous.as_deref());
            values.push_bind(event.doc.as_str());
        });
        insert.build().persistent(false).execute(&mut *batch.conn).await?;
    }
    Ok::<_, StoreError>(())
}
