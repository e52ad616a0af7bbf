//! Writes nodes, their sessions and components, and what they should run.

use std::collections::BTreeMap;

use upfleet_domain::{
    id::{ComponentId, NodeId, RolloutId},
    jvm::{Jvm, Standing},
    order::{Generation, HoldOrder},
    release::Platform,
    report::{ComponentInventory, UpgradeReport},
    time::Time,
    upgrade::UpgradeState,
};

use super::{
    batch::{Batch, expect, missing, stale},
    bulk,
    error::{count, from_doc, int, to_doc},
    history,
};
use crate::store::{
    ComponentRecord, DesiredRecord, Expected, NodeRecord, Notice, Result, SessionRecord, StoreError,
};

pub(super) async fn put_node(batch: &mut Batch<'_>, node: NodeRecord, expected: Expected) -> Result<()> {
    let select = "SELECT revision FROM node WHERE id = $1";
    let found = sqlx::query_scalar::<_, i64>(select).bind(node.id.as_str());
    let found = found.fetch_optional(&mut *batch.conn).await?.map(count);
    let revision = expect(expected, found, "node", &node.id)?;
    let upsert = "INSERT INTO node (id, revision, doc) VALUES ($1, $2, $3) \
                  ON CONFLICT (id) DO UPDATE SET revision = excluded.revision, doc = excluded.doc";
    let upsert = sqlx::query(upsert).bind(node.id.as_str()).bind(int(revision)).bind(to_doc(&node));
    upsert.execute(&mut *batch.conn).await?;
    batch.tell_node(node.id);
    Ok(())
}

pub(super) async fn open_session(
    batch: &mut Batch<'_>,
    id: NodeId,
    session: SessionRecord,
    platform: Option<Platform>,
    facts: BTreeMap<String, String>,
) -> Result<()> {
    let select = sqlx::query_scalar::<_, String>("SELECT doc FROM node WHERE id = $1").bind(id.as_str());
    let doc = select.fetch_optional(&mut *batch.conn).await?.ok_or_else(|| missing("node", &id))?;
    let mut node: NodeRecord = from_doc("node", id.as_str(), &doc)?;
    node.platform = platform.or(node.platform);
    node.facts = facts;
    let update = "UPDATE node SET session = $2, last_seen = $3, doc = $4 WHERE id = $1";
    let update = sqlx::query(update).bind(id.as_str()).bind(to_doc(&session)).bind(session.since.0);
    update.bind(to_doc(&node)).execute(&mut *batch.conn).await?;
    batch.tell_node(id);
    Ok(())
}

pub(super) async fn close_session(
    batch: &mut Batch<'_>,
    id: NodeId,
    instance_id: &str,
    time: Time,
) -> Result<()> {
    let select = sqlx::query_scalar::<_, Option<String>>("SELECT session FROM node WHERE id = $1");
    let Some(Some(doc)) = select.bind(id.as_str()).fetch_optional(&mut *batch.conn).await? else {
        return Ok(());
    };
    let session: SessionRecord = from_doc("session of node", id.as_str(), &doc)?;
    if session.instance_id != instance_id {
        return Ok(());
    }
    let update = "UPDATE node SET session = NULL, last_seen = $2 WHERE id = $1";
    sqlx::query(update).bind(id.as_str()).bind(time.0).execute(&mut *batch.conn).await?;
    batch.tell_node(id);
    Ok(())
}

pub(super) async fn close_all_sessions(batch: &mut Batch<'_>) -> Result<()> {
    let update = "UPDATE node SET session = NULL WHERE session IS NOT NULL RETURNING id";
    for id in sqlx::query_scalar::<_, String>(update).fetch_all(&mut *batch.conn).await? {
        batch.tell_node(parse_node(&id)?);
    }
    Ok(())
}

pub(super) async fn see_nodes(batch: &mut Batch<'_>, seen: Vec<(NodeId, Time)>) -> Result<()> {
    let update = "UPDATE node SET last_seen = $2 WHERE id = $1 AND (last_seen IS NULL OR last_seen < $2)";
    for (id, time) in seen {
        sqlx::query(update).bind(id.as_str()).bind(time.0).execute(&mut *batch.conn).await?;
    }
    Ok(())
}

pub(super) async fn put_component(
    batch: &mut Batch<'_>,
    node: NodeId,
    inventory: ComponentInventory,
    changed: Option<(String, Option<RolloutId>)>,
) -> Result<()> {
    let component = inventory.component.clone();
    let select = "SELECT revision, doc FROM component WHERE node = $1 AND component = $2";
    let row = sqlx::query_as::<_, (i64, String)>(select).bind(node.as_str()).bind(component.as_str());
    let row = row.fetch_optional(&mut *batch.conn).await?;
    let mut revision = 1;
    let mut record = ComponentRecord {
        node: node.clone(),
        inventory: inventory.clone(),
        changed_by: inventory.changer.clone(),
        rollout: None,
        revision,
    };
    let mut before = None;
    if let Some((found, doc)) = row {
        let stored: ComponentRecord = from_doc("component", component.as_str(), &doc)?;
        if stored.inventory == inventory && changed.is_none() {
            return Ok(());
        }
        revision = count(found) + 1;
        // Who changed it stays known for as long as the same content is in force.
        if stored.inventory.current.same_content(&inventory.current) {
            record.changed_by = stored.changed_by;
            record.rollout = stored.rollout;
        }
        before = Some(stored.inventory.current);
    }
    if let Some((actor, rollout)) = changed {
        record.changed_by = actor;
        record.rollout = rollout;
    }
    write_component(batch, &record, revision).await?;
    history::changed_locally(batch, &node, before.as_ref(), &inventory).await?;
    batch.tell_node(node);
    Ok(())
}

/// The end of an upgrade says what the component runs now. The inventory says it as well, but later: a stack planned in
/// between from what was there before would take off what has just been put on.
pub(super) async fn upgrade_ended(batch: &mut Batch<'_>, node: &NodeId, told: &UpgradeReport) -> Result<()> {
    let (UpgradeState::Ended(_), Some(current)) = (told.state, &told.current) else { return Ok(()) };
    let select = "SELECT revision, doc FROM component WHERE node = $1 AND component = $2";
    let select = sqlx::query_as::<_, (i64, String)>(select).bind(node.as_str()).bind(told.component.as_str());
    let Some((revision, doc)) = select.fetch_optional(&mut *batch.conn).await? else { return Ok(()) };
    let mut record: ComponentRecord = from_doc("component", told.component.as_str(), &doc)?;
    let known = &mut record.inventory;
    // A report may be delivered long after the inventory that tells of later changes.
    let later = known.generation > told.generation || known.changed.is_some_and(|at| at > told.time);
    if later || known.current == *current {
        return Ok(());
    }
    known.current.clone_from(current);
    write_component(batch, &record, count(revision) + 1).await
}

async fn write_component(batch: &mut Batch<'_>, record: &ComponentRecord, revision: u64) -> Result<()> {
    let upsert = "INSERT INTO component (node, component, revision, doc, drifted, alarmed, old_classes) \
                  VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (node, component) DO UPDATE SET \
                  revision = excluded.revision, doc = excluded.doc, drifted = excluded.drifted, \
                  alarmed = excluded.alarmed, old_classes = excluded.old_classes";
    let inventory = &record.inventory;
    let old = inventory.proof.as_ref().map_or(0, |proof| proof.count(Standing::Old));
    let alarmed = !inventory.alarms.is_empty()
        || inventory.proof.as_ref().is_some_and(|proof| !proof.alarms.is_empty());
    let upsert = sqlx::query(upsert)
        .bind(record.node.as_str())
        .bind(inventory.component.as_str())
        .bind(int(revision))
        .bind(to_doc(record))
        .bind(inventory.drift.is_some())
        .bind(alarmed)
        .bind(int(old as u64));
    upsert.execute(&mut *batch.conn).await.map_err(|error| no_node(error, &record.node))?;
    Ok(())
}

pub(super) async fn put_jvms(batch: &mut Batch<'_>, node: NodeId, jvms: Vec<Jvm>) -> Result<()> {
    let upsert = "INSERT INTO jvm (node, doc) VALUES ($1, $2) \
                  ON CONFLICT (node) DO UPDATE SET doc = excluded.doc";
    let upsert = sqlx::query(upsert).bind(node.as_str()).bind(to_doc(&jvms));
    upsert.execute(&mut *batch.conn).await.map_err(|error| no_node(error, &node))?;
    Ok(())
}

pub(super) async fn keep_components(
    batch: &mut Batch<'_>,
    node: NodeId,
    components: &[ComponentId],
) -> Result<()> {
    let select = sqlx::query_scalar::<_, String>("SELECT component FROM component WHERE node = $1");
    let stored = select.bind(node.as_str()).fetch_all(&mut *batch.conn).await?;
    for name in stored.iter().filter(|name| components.iter().all(|kept| kept.as_str() != *name)) {
        let delete = sqlx::query("DELETE FROM component WHERE node = $1 AND component = $2");
        delete.bind(node.as_str()).bind(name).execute(&mut *batch.conn).await?;
        batch.tell_node(node.clone());
    }
    Ok(())
}

pub(super) async fn put_hold(
    batch: &mut Batch<'_>,
    node: NodeId,
    component: ComponentId,
    hold: HoldOrder,
) -> Result<()> {
    let mut record = read_desired(batch, &node, &component).await?;
    if record.hold.as_ref().is_some_and(|stored| hold.generation <= stored.generation) {
        return Err(stale("hold of", &format!("{node}/{component}")).into());
    }
    record.hold = Some(hold);
    write_desired(batch, &record).await
}

pub(super) async fn forget_orders(batch: &mut Batch<'_>) -> Result<()> {
    let docs = sqlx::query_scalar::<_, String>("SELECT doc FROM desired").fetch_all(&mut *batch.conn).await?;
    for doc in docs {
        let mut record: DesiredRecord = from_doc("desired state in", "a row", &doc)?;
        if record.desired.take().is_some() {
            record.nack = None;
            write_desired(batch, &record).await?;
        }
    }
    Ok(())
}

/// The stored row, or an empty one.
pub(super) async fn read_desired(
    batch: &mut Batch<'_>,
    node: &NodeId,
    component: &ComponentId,
) -> Result<DesiredRecord> {
    let select = "SELECT doc FROM desired WHERE node = $1 AND component = $2";
    let row = sqlx::query_scalar::<_, String>(select).bind(node.as_str()).bind(component.as_str());
    match row.fetch_optional(&mut *batch.conn).await? {
        Some(doc) => from_doc("desired state of", node.as_str(), &doc),
        None => Ok(no_orders(node, component)),
    }
}

/// What is known of a component that nobody has given an order.
pub(super) fn no_orders(node: &NodeId, component: &ComponentId) -> DesiredRecord {
    DesiredRecord {
        node: node.clone(),
        component: component.clone(),
        desired: None,
        hold: None,
        acked: Generation::default(),
        hold_acked: 0,
        nack: None,
    }
}

/// Writes one row, and tells of it.
pub(super) async fn write_desired(batch: &mut Batch<'_>, record: &DesiredRecord) -> Result<()> {
    bulk::write_desired(batch, std::iter::once(record)).await?;
    batch.tell(Notice::Desired { node: record.node.clone() });
    Ok(())
}

/// A row whose node is not there.
pub(super) fn no_node(error: sqlx::Error, node: &NodeId) -> StoreError {
    let foreign = error.as_database_error().is_some_and(|error| error.is_foreign_key_violation());
    if foreign { missing("node", node).into() } else { error.into() }
}

fn parse_node(id: &str) -> Result<NodeId> {
    NodeId::new(id).map_err(|source| super::error::damaged("node", id, source))
}
