//! From the store to the planner: the fleet as a plan sees it.

use std::collections::{BTreeMap, BTreeSet};

use upfleet_domain::{
    id::{ComponentId, NodeId, RolloutId, Version},
    reason::{Reason, ReasonCode},
    release::parse_manifest,
    rollout::{
        Change, Restore, Spec,
        plan::{Before, Fleet, NodeFacts, ReleaseFacts},
    },
    upgrade::{Outcome, UpgradeState},
};

use crate::{
    failure::internal,
    store::{NodeRecord, NodeState, Page, Store},
};

/// Reads all that planning `spec` needs. `besides` are rollouts that hold no node back; only the nodes in
/// `only` are looked at, where given.
pub(super) async fn fleet(
    store: &dyn Store,
    spec: &Spec,
    besides: &[RolloutId],
    only: Option<&BTreeSet<NodeId>>,
) -> Result<Fleet, Reason> {
    let mut fleet = Fleet::default();
    match &spec.change {
        Change::Install { version, .. } => {
            fleet.release = Some(release(store, &spec.component, version).await?);
        }
        Change::Restore(Restore::BeforeRollout(rollout)) => fleet.before = before(store, rollout).await?,
        Change::Restore(_) => {}
    }
    let busy = busy(store, &spec.component, besides).await?;
    let wanted = |node: &NodeRecord| {
        node.state != NodeState::Retired && only.is_none_or(|only| only.contains(&node.id))
    };
    let nodes = store.nodes(&wanted, &Page::ALL).await.map_err(internal)?.rows;
    let components = store.components_named(&spec.component).await.map_err(internal)?;
    let mut components: BTreeMap<NodeId, _> =
        components.into_iter().map(|record| (record.node, record.inventory)).collect();
    let facts = |node: NodeRecord| NodeFacts {
        component: components.remove(&node.id),
        other_rollout: busy.get(&node.id).cloned(),
        cordoned: node.state == NodeState::Cordoned,
        suspended: node.state == NodeState::Suspended,
        online: node.online(),
        labels: node.labels,
        platform: node.platform,
        id: node.id,
    };
    fleet.nodes = nodes.into_iter().map(facts).collect();
    Ok(fleet)
}

async fn release(
    store: &dyn Store,
    component: &ComponentId,
    version: &Version,
) -> Result<ReleaseFacts, Reason> {
    let name = format!("{component}@{version}");
    let found = store.release(component, version).await.map_err(internal)?;
    let record =
        found.ok_or_else(|| Reason::new(ReasonCode::NotFound).with("what", "release").with("name", &name))?;
    if let Some(yank) = &record.yanked {
        return Err(Reason::new(ReasonCode::ReleaseYanked)
            .with("release", name)
            .with("message", &yank.message));
    }
    let mut quarantined = BTreeMap::new();
    for artifact in &record.artifacts {
        let quarantine = store.quarantine(&artifact.sha256).await.map_err(internal)?;
        if let Some(quarantine) = quarantine.filter(|quarantine| quarantine.lifted.is_none()) {
            quarantined.insert(artifact.sha256, quarantine.nodes.len());
        }
    }
    Ok(ReleaseFacts { manifest: parse_manifest(&record.manifest)?, digest: record.digest, quarantined })
}

/// Whether a rollout that was planned some time ago may still be started.
///
/// # Errors
/// `RELEASE_YANKED` or `RELEASE_QUARANTINED`.
pub(super) async fn still_good(store: &dyn Store, spec: &Spec) -> Result<(), Reason> {
    let Change::Install { version, allow_failed_digest, .. } = &spec.change else { return Ok(()) };
    let release = release(store, &spec.component, version).await?;
    let name = format!("{}@{version}", spec.component);
    match release.quarantined.iter().next() {
        Some((digest, count)) if !allow_failed_digest => Err(Reason::new(ReasonCode::ReleaseQuarantined)
            .with("digest", digest.short())
            .with("release", name)
            .with("count", count)),
        _ => Ok(()),
    }
}

/// The nodes that a rollout changed, with the states they proved before it.
async fn before(store: &dyn Store, rollout: &RolloutId) -> Result<BTreeMap<NodeId, Before>, Reason> {
    if store.rollout(rollout).await.map_err(internal)?.is_none() {
        return Err(Reason::new(ReasonCode::NotFound).with("what", "rollout").with("name", rollout));
    }
    let succeeded = [UpgradeState::Ended(Outcome::Succeeded)];
    let rows = store.upgrades(rollout, &succeeded, &Page::ALL).await.map_err(internal)?.rows;
    let before = |row: upfleet_domain::rollout::NodeUpgrade| {
        (row.node, Before { now: row.current.unwrap_or(row.to), back: row.from })
    };
    Ok(rows.into_iter().map(before).collect())
}

/// The nodes that open rollouts of a component have.
pub(super) async fn busy(
    store: &dyn Store,
    component: &ComponentId,
    besides: &[RolloutId],
) -> Result<BTreeMap<NodeId, RolloutId>, Reason> {
    let mut busy = BTreeMap::new();
    for record in store.open_rollouts().await.map_err(internal)? {
        let rollout = record.rollout;
        // A planned revert starts by itself, at any moment.
        let takes = rollout.is_open() || rollout.reverts.is_some();
        if rollout.spec.component != *component || !takes || besides.contains(&rollout.id) {
            continue;
        }
        let rows = store.upgrades(&rollout.id, &[], &Page::ALL).await.map_err(internal)?.rows;
        busy.extend(rows.into_iter().map(|row| (row.node, rollout.id.clone())));
    }
    Ok(busy)
}
