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
    error::{count, from_doc, int, to_doc},
    fleet::{read_desired, write_desired},
    history,
    read::newest_first,
    read_rollout::upgrade_key,
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
    for mut upgrade in upgrades {
        upgrade.revision = 1;
        write_upgrade(batch, &rollout.id, &upgrade).await?;
    }
    let event =
        Event { rollout: &rollout.id, revision: 1, time: rollout.created, node: None, previous: None };
    append(batch, event, to_doc(&*rollout)).await?;
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
    let (rollout, revision) = (&rollout.id, rollout.revision);
    append(batch, Event { rollout, revision, time, node: None, previous: None }, doc).await
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
    let doc = write_upgrade(batch, rollout, &upgrade).await?;
    history::upgrade_ended(batch, rollout, &upgrade).await?;
    let node = Some(upgrade.node.as_str());
    let event = Event { rollout, revision: upgrade.revision, time, node, previous };
    append(batch, event, doc).await
}

async fn write_upgrade(batch: &mut Batch<'_>, rollout: &RolloutId, upgrade: &NodeUpgrade) -> Result<String> {
    let upsert = "INSERT INTO node_upgrade (rollout, node, upgrade_id, state, revision, sort_key, doc) \
                  VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (rollout, node) DO UPDATE SET \
                  upgrade_id = excluded.upgrade_id, state = excluded.state, revision = excluded.revision, \
                  sort_key = excluded.sort_key, doc = excluded.doc";
    let doc = to_doc(upgrade);
    let upsert = sqlx::query(upsert)
        .bind(rollout.as_str())
        .bind(upgrade.node.as_str())
        .bind(upgrade.id.as_ref().map(|id| id.as_str()))
        .bind(upgrade.state.as_str())
        .bind(int(upgrade.revision))
        .bind(upgrade_key(upgrade))
        .bind(&doc);
    upsert.execute(&mut *batch.conn).await?;
    Ok(doc)
}

struct Event<'e> {
    rollout: &'e RolloutId,
    revision: u64,
    time: Time,
    node: Option<&'e str>,
    previous: Option<String>,
}

async fn append(batch: &mut Batch<'_>, event: Event<'_>, doc: String) -> Result<()> {
    let insert = "INSERT INTO event (rollout, revision, time, node, previous, doc) \
                  VALUES ($1, $2, $3, $4, $5, $6)";
    let insert = sqlx::query(insert).bind(event.rollout.as_str()).bind(int(event.revision));
    let insert = insert.bind(event.time.0).bind(event.node).bind(event.previous).bind(doc);
    insert.execute(&mut *batch.conn).await?;
    Ok(())
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
