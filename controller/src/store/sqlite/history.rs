//! Writes what became of a node's components: one row for each attempt that ended and each change on the node itself.
//!
//! A row is written together with what it tells of, and again where that is told better later.

use upfleet_domain::{
    id::{NodeId, RolloutId},
    reason::{Reason, ReasonCode},
    report::ComponentInventory,
    rollout::{NodeUpgrade, Rollout},
    state::ComponentState,
    time::Time,
    upgrade::{Outcome, UpgradeState},
};

use super::{
    batch::Batch,
    error::{from_doc, to_doc},
    read::newest_first,
};
use crate::store::{HistoryRecord, Result};

async fn put(batch: &mut Batch<'_>, node: &NodeId, id: &str, record: &HistoryRecord) -> Result<()> {
    let upsert = "INSERT INTO history (node, id, component, sort_key, doc) VALUES ($1, $2, $3, $4, $5) \
                  ON CONFLICT (node, id) DO UPDATE SET sort_key = excluded.sort_key, doc = excluded.doc";
    let upsert = sqlx::query(upsert).bind(node.as_str()).bind(id).bind(record.component.as_str());
    let upsert = upsert.bind(newest_first(record.time, id)).bind(to_doc(record));
    upsert.execute(&mut *batch.conn).await?;
    Ok(())
}

/// An attempt ended, or is known to have ended otherwise. One that the node was never told is no change of it.
pub(super) async fn upgrade_ended(
    batch: &mut Batch<'_>,
    rollout: &RolloutId,
    upgrade: &NodeUpgrade,
) -> Result<()> {
    let (Some(id), Some(time), UpgradeState::Ended(_)) = (&upgrade.id, upgrade.ended, upgrade.state) else {
        return Ok(());
    };
    let select = sqlx::query_scalar::<_, String>("SELECT doc FROM rollout WHERE id = $1");
    let Some(doc) = select.bind(rollout.as_str()).fetch_optional(&mut *batch.conn).await? else {
        return Ok(());
    };
    let owner: Rollout = from_doc("rollout", rollout.as_str(), &doc)?;
    let record = HistoryRecord {
        component: owner.spec.component,
        time,
        from: upgrade.from.clone(),
        to: upgrade.to.clone(),
        state: upgrade.state,
        reason: upgrade.drift.clone().unwrap_or_else(|| upgrade.reason.clone()),
        rollout: Some(rollout.clone()),
        actor: if owner.last_actor.is_empty() { owner.creator } else { owner.last_actor },
    };
    put(batch, &upgrade.node, id.as_str(), &record).await
}

/// A component runs something else than before, by a change on the node itself.
pub(super) async fn changed_locally(
    batch: &mut Batch<'_>,
    node: &NodeId,
    before: Option<&ComponentState>,
    inventory: &ComponentInventory,
) -> Result<()> {
    let Some(time) = inventory.changed.filter(|_| inventory.changer == "local") else { return Ok(()) };
    if before.is_some_and(|before| *before == inventory.current) {
        return Ok(());
    }
    let from = before.or(inventory.previous.as_ref()).cloned().unwrap_or_else(ComponentState::absent);
    let record = HistoryRecord {
        component: inventory.component.clone(),
        time,
        from,
        to: inventory.current.clone(),
        state: UpgradeState::Ended(Outcome::Succeeded),
        reason: inventory.hold.clone().unwrap_or_else(|| by_hand(time)),
        rollout: None,
        actor: "local".to_owned(),
    };
    put(batch, node, &format!("local {} {}", inventory.component, time.0), &record).await
}

fn by_hand(time: Time) -> Reason {
    Reason::new(ReasonCode::LocalApply).with("message", "not held any more").since(time)
}
