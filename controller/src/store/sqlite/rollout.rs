//! Writes rollouts, their upgrades and events, and what agents report.

use upfleet_domain::{
    id::{ComponentId, NodeId, RolloutId},
    order::Generation,
    reason::{Reason, ReasonCode},
    rollout::{NodeUpgrade, Plan, Rollout},
    time::Time,
    upgrade::{Outcome, Phase, UpgradeState},
};

use super::{
    batch::{Batch, exists, expect, missing},
    bulk::{self, Event, Upgrades},
    error::{count, from_doc, int, to_doc},
    fleet::{read_desired, write_desired},
    history,
    read::newest_first,
};
use crate::store::{Expected, Result, RolloutRecord};

/// The epoch in force, as SQL.
macro_rules! epoch {
    () => {
        "(SELECT CAST(value AS BIGINT) FROM meta WHERE key = 'epoch')"
    };
}

pub(super) async fn create(
    batch: &mut Batch<'_>,
    mut record: RolloutRecord,
    plan: &Plan,
    upgrades: Vec<NodeUpgrade>,
) -> Result<()> {
    let rollout = &mut record.rollout;
    (rollout.revision, rollout.state_revision, record.version) = (1, 1, 1);
    let insert = concat!(
        "INSERT INTO rollout (id, component, state, terminal, revision, version, epoch, lease_holder, \
         sort_key, plan, doc) VALUES ($1, $2, $3, $4, 1, 1, ",
        epoch!(),
        ", $5, $6, $7, $8) ON CONFLICT (id) DO NOTHING"
    );
    let insert = sqlx::query(insert)
        .bind(rollout.id.as_str())
        .bind(rollout.spec.component.as_str())
        .bind(rollout.state.as_str())
        .bind(rollout.state.is_terminal())
        .bind(&record.lease_holder)
        .bind(newest_first(rollout.created, rollout.id.as_str()))
        .bind(to_doc(plan))
        .bind(to_doc(&*rollout));
    if insert.execute(&mut *batch.conn).await?.rows_affected() == 0 {
        return Err(exists("rollout", &rollout.id).into());
    }
    let row = |mut upgrade: NodeUpgrade| {
        upgrade.revision = 1;
        let doc = to_doc(&upgrade);
        ((rollout.id.clone(), upgrade.node.clone()), (upgrade, doc))
    };
    let rows: Upgrades = upgrades.into_iter().map(row).collect();
    bulk::write_upgrades(batch, &rows).await?;
    append(batch, rollout, rollout.created, to_doc(&*rollout)).await?;
    batch.created(rollout.id.clone());
    Ok(())
}

pub(super) async fn put(
    batch: &mut Batch<'_>,
    mut record: RolloutRecord,
    expected: Expected,
    time: Time,
) -> Result<()> {
    let rollout = &mut record.rollout;
    let select = "SELECT version, doc FROM rollout WHERE id = $1";
    let found = sqlx::query_as::<_, (i64, String)>(select).bind(rollout.id.as_str());
    let Some((found, doc)) = found.fetch_optional(&mut *batch.conn).await? else {
        return Err(missing("rollout", &rollout.id).into());
    };
    record.version = expect(expected, Some(count(found)), "rollout", &rollout.id)?;
    let stored: Rollout = from_doc("rollout", rollout.id.as_str(), &doc)?;
    rollout.revision = batch.revise(&rollout.id).await?;
    rollout.state_revision =
        if same_states(&stored, rollout) { stored.state_revision } else { rollout.revision };
    let update = concat!(
        "UPDATE rollout SET state = $2, terminal = $3, version = $4, lease_holder = $5, doc = $6, epoch = ",
        epoch!(),
        " WHERE id = $1"
    );
    let doc = to_doc(&*rollout);
    let update = sqlx::query(update)
        .bind(rollout.id.as_str())
        .bind(rollout.state.as_str())
        .bind(rollout.state.is_terminal())
        .bind(int(record.version))
        .bind(&record.lease_holder)
        .bind(&doc);
    update.execute(&mut *batch.conn).await?;
    append(batch, rollout, time, doc).await
}

/// The event of a change of the rollout itself.
async fn append(batch: &mut Batch<'_>, rollout: &Rollout, time: Time, doc: String) -> Result<()> {
    let (rollout, revision) = (rollout.id.clone(), rollout.revision);
    bulk::write_events(batch, &[Event { rollout, revision, time, node: None, previous: None, doc }]).await
}

fn same_states(one: &Rollout, other: &Rollout) -> bool {
    let waves = |rollout: &Rollout| rollout.waves.iter().map(|wave| wave.state).collect::<Vec<_>>();
    one.state == other.state && waves(one) == waves(other)
}

/// Writes a row with the rollout's next revision, and its event.
async fn save(
    batch: &mut Batch<'_>,
    rollout: &RolloutId,
    mut upgrade: NodeUpgrade,
    previous: Option<String>,
    time: Time,
) -> Result<()> {
    upgrade.revision = batch.revise(rollout).await?;
    history::upgrade_ended(batch, rollout, &upgrade).await?;
    let (key, doc) = ((rollout.clone(), upgrade.node.clone()), to_doc(&upgrade));
    let (rollout, node) = key.clone();
    let event =
        Event { rollout, revision: upgrade.revision, time, node: Some(node), previous, doc: doc.clone() };
    bulk::write_upgrades(batch, &Upgrades::from([(key, (upgrade, doc))])).await?;
    bulk::write_events(batch, &[event]).await
}

/// The row whose present attempt has this id.
async fn find(batch: &mut Batch<'_>, upgrade: &str) -> Result<Option<(RolloutId, NodeUpgrade)>> {
    let select = "SELECT rollout, doc FROM node_upgrade WHERE upgrade_id = $1";
    let row = sqlx::query_as::<_, (String, String)>(select).bind(upgrade);
    let Some((rollout, doc)) = row.fetch_optional(&mut *batch.conn).await? else { return Ok(None) };
    let id =
        RolloutId::new(&*rollout).map_err(|source| super::error::damaged("rollout", &rollout, source))?;
    Ok(Some((id, from_doc("upgrade", upgrade, &doc)?)))
}

pub(super) async fn refuse(
    batch: &mut Batch<'_>,
    node: NodeId,
    component: ComponentId,
    generation: Generation,
    reason: Reason,
    time: Time,
) -> Result<()> {
    let mut record = read_desired(batch, &node, &component).await?;
    if record.desired.is_none() || record.generation() != generation {
        return Ok(());
    }
    let upgrade = record.desired.as_ref().and_then(|desired| desired.upgrade.clone());
    record.nack = Some(crate::store::Refusal { generation, reason: reason.clone() });
    write_desired(batch, &record).await?;
    if reason.code == ReasonCode::StaleGeneration {
        return Ok(());
    }
    let Some(upgrade) = upgrade else { return Ok(()) };
    // An upgrade that has begun isn't ended by the refusal of an order that was to steer it.
    if let Some((rollout, mut row)) = find(batch, upgrade.as_str()).await?
        && row.state == UpgradeState::Active(Phase::Pending)
        && row.node == node
    {
        let previous = row.state.as_str().to_owned();
        row.state = UpgradeState::Ended(Outcome::Refused);
        row.reason = reason;
        row.ended = Some(time);
        save(batch, &rollout, row, Some(previous), time).await?;
    }
    Ok(())
}
