//! Reads rollouts, their upgrades and events.

use std::collections::BTreeMap;

use upfleet_domain::{
    id::{ComponentId, NodeId, RolloutId, UpgradeId},
    rollout::{NodeUpgrade, Rollout, State},
    time::Time,
    upgrade::UpgradeState,
};

use super::{
    SqliteStore,
    error::{count, damaged, from_doc, int},
    read::{cut, fetch_limit, parse_rows},
};
use crate::store::{EventKind, EventRecord, Page, Result, RolloutRecord, Rows};

/// Upgrades are listed by wave and place within it.
pub(super) fn upgrade_key(upgrade: &NodeUpgrade) -> String {
    format!("{:06} {:010} {}", upgrade.wave, upgrade.position, upgrade.node)
}

type RolloutRow = (String, i64, i64, i64, Option<String>, String);

fn rollout((key, revision, version, epoch, lease_holder, doc): RolloutRow) -> Result<RolloutRecord> {
    let mut rollout: Rollout = from_doc("rollout", &key, &doc)?;
    rollout.revision = count(revision);
    Ok(RolloutRecord { rollout, epoch: count(epoch), lease_holder, version: count(version) })
}

/// States as a JSON list, so that one statement serves any number of them; `None` where all are wanted.
fn list<T: Copy>(states: &[T], name: impl Fn(T) -> &'static str) -> Option<String> {
    let names: Vec<String> = states.iter().map(|state| format!(",{},", name(*state))).collect();
    if names.is_empty() { None } else { Some(names.concat()) }
}

fn upgrade_state(text: &str) -> Result<UpgradeState> {
    serde_json::from_value(serde_json::Value::from(text)).map_err(|source| damaged("state", text, source))
}

impl SqliteStore {
    pub(super) async fn read_rollout(&self, id: &RolloutId) -> Result<Option<RolloutRecord>> {
        let select =
            "SELECT sort_key, revision, version, epoch, lease_holder, doc FROM rollout WHERE id = $1";
        let row = sqlx::query_as::<_, RolloutRow>(select).bind(id.as_str());
        row.fetch_optional(&self.readers).await?.map(rollout).transpose()
    }

    pub(super) async fn read_rollouts(
        &self,
        component: Option<&ComponentId>,
        states: &[State],
        page: &Page,
    ) -> Result<Rows<RolloutRecord>> {
        let select = "SELECT sort_key, revision, version, epoch, lease_holder, doc FROM rollout \
                      WHERE ($1 IS NULL OR component = $1) \
                      AND ($2 IS NULL OR $2 LIKE '%,' || state || ',%') \
                      AND sort_key > $3 ORDER BY sort_key LIMIT $4";
        let rows = sqlx::query_as::<_, RolloutRow>(select)
            .bind(component.map(|component| component.as_str()))
            .bind(list(states, State::as_str))
            .bind(page.after.as_deref().unwrap_or_default())
            .bind(fetch_limit(page));
        let keyed = |row: RolloutRow| Ok((row.0.clone(), rollout(row)?));
        let rows = rows.fetch_all(&self.readers).await?;
        Ok(cut(rows.into_iter().map(keyed).collect::<Result<_>>()?, page))
    }

    pub(super) async fn read_open_rollouts(&self) -> Result<Vec<RolloutRecord>> {
        let select = "SELECT sort_key, revision, version, epoch, lease_holder, doc FROM rollout \
                      WHERE NOT terminal ORDER BY sort_key DESC";
        let rows = sqlx::query_as::<_, RolloutRow>(select).fetch_all(&self.readers).await?;
        rows.into_iter().map(rollout).collect()
    }

    pub(super) async fn read_upgrades(
        &self,
        rollout: &RolloutId,
        states: &[UpgradeState],
        page: &Page,
    ) -> Result<Rows<NodeUpgrade>> {
        let select = "SELECT sort_key, doc FROM node_upgrade WHERE rollout = $1 \
                      AND ($2 IS NULL OR $2 LIKE '%,' || state || ',%') \
                      AND sort_key > $3 ORDER BY sort_key LIMIT $4";
        let rows = sqlx::query_as(select)
            .bind(rollout.as_str())
            .bind(list(states, UpgradeState::as_str))
            .bind(page.after.as_deref().unwrap_or_default())
            .bind(fetch_limit(page));
        Ok(cut(parse_rows("upgrade", rows.fetch_all(&self.readers).await?)?, page))
    }

    pub(super) async fn read_upgrade(
        &self,
        rollout: &RolloutId,
        node: &NodeId,
    ) -> Result<Option<NodeUpgrade>> {
        let select = "SELECT doc FROM node_upgrade WHERE rollout = $1 AND node = $2";
        let doc = sqlx::query_scalar::<_, String>(select).bind(rollout.as_str()).bind(node.as_str());
        let doc = doc.fetch_optional(&self.readers).await?;
        doc.map(|doc| from_doc("upgrade of", node.as_str(), &doc)).transpose()
    }

    pub(super) async fn read_upgrade_by_id(
        &self,
        id: &UpgradeId,
    ) -> Result<Option<(RolloutId, NodeUpgrade)>> {
        let select = "SELECT rollout, doc FROM node_upgrade WHERE upgrade_id = $1";
        let row = sqlx::query_as::<_, (String, String)>(select).bind(id.as_str());
        let Some((rollout, doc)) = row.fetch_optional(&self.readers).await? else { return Ok(None) };
        let upgrade = from_doc("upgrade", id.as_str(), &doc)?;
        let rollout = RolloutId::new(&*rollout).map_err(|source| damaged("rollout", &rollout, source))?;
        Ok(Some((rollout, upgrade)))
    }

    pub(super) async fn read_upgrades_since(
        &self,
        rollout: &RolloutId,
        revision: u64,
    ) -> Result<Vec<NodeUpgrade>> {
        let select =
            "SELECT doc FROM node_upgrade WHERE rollout = $1 AND revision > $2 ORDER BY revision, sort_key";
        let docs = sqlx::query_scalar::<_, String>(select).bind(rollout.as_str()).bind(int(revision));
        let docs = docs.fetch_all(&self.readers).await?;
        docs.iter().map(|doc| from_doc("upgrade of", rollout.as_str(), doc)).collect()
    }

    pub(super) async fn read_counts(&self, rollout: &RolloutId) -> Result<BTreeMap<UpgradeState, u32>> {
        let select = "SELECT state, COUNT(*) FROM node_upgrade WHERE rollout = $1 GROUP BY state";
        let rows = sqlx::query_as::<_, (String, i64)>(select).bind(rollout.as_str());
        let rows = rows.fetch_all(&self.readers).await?;
        let count = |count: i64| u32::try_from(count).unwrap_or(u32::MAX);
        rows.into_iter().map(|(state, n)| Ok((upgrade_state(&state)?, count(n)))).collect()
    }

    pub(super) async fn read_events(
        &self,
        rollout: &RolloutId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<EventRecord>> {
        let select = "SELECT revision, time, node, previous, doc FROM event \
                      WHERE rollout = $1 AND revision > $2 ORDER BY revision LIMIT $3";
        type Row = (i64, i64, Option<String>, Option<String>, String);
        let rows = sqlx::query_as::<_, Row>(select).bind(rollout.as_str()).bind(int(after));
        let rows = rows.bind(i64::from(limit)).fetch_all(&self.readers).await?;
        let event = |(revision, time, node, previous, doc): Row| {
            let snapshot = from_doc("event of", rollout.as_str(), &doc)?;
            let kind = match node {
                None => EventKind::Rollout,
                Some(node) => EventKind::Upgrade {
                    node: NodeId::new(&*node).map_err(|source| damaged("node", &node, source))?,
                    previous: previous.as_deref().map(upgrade_state).transpose()?,
                },
            };
            let (revision, time) = (count(revision), Time(time));
            Ok(EventRecord { rollout: rollout.clone(), revision, time, kind, snapshot })
        };
        rows.into_iter().map(event).collect()
    }
}
