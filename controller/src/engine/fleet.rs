//! From the store to the planner: the fleet as a plan sees it.

use std::collections::{BTreeMap, BTreeSet};

use upfleet_domain::{
    id::{ComponentId, NodeId, RolloutId, Version},
    jvm::Jvm,
    reason::{Reason, ReasonCode},
    release::{Kind, parse_manifest},
    rollout::{
        Change, Restore, Spec,
        plan::{Before, Fleet, NodeFacts, ReleaseFacts},
    },
    upgrade::{Outcome, UpgradeState},
};

use crate::{
    failure::internal,
    store::{JvmsRecord, NodeRecord, NodeState, Page, ReleaseRecord, Store},
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
    if let Some(version) = spec.change.base() {
        fleet.release = Some(release(store, &spec.component, version).await?);
    }
    for version in spec.change.patches() {
        fleet.patches.push(release(store, &spec.component, version).await?);
    }
    if !matches!(spec.change, Change::Restore(_)) {
        stacked(store, &spec.component, &mut fleet.patches).await?;
    }
    if let Change::Restore(Restore::BeforeRollout(rollout)) = &spec.change {
        (fleet.before, fleet.before_live) = before(store, rollout).await?;
    }
    let mut java = java(store, spec).await?;
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
        java: java.remove(&node.id),
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
    facts(store, &record).await
}

async fn facts(store: &dyn Store, record: &ReleaseRecord) -> Result<ReleaseFacts, Reason> {
    let mut quarantined = BTreeMap::new();
    for artifact in &record.artifacts {
        let quarantine = store.quarantine(&artifact.sha256).await.map_err(internal)?;
        if let Some(quarantine) = quarantine.filter(|quarantine| quarantine.lifted.is_none()) {
            quarantined.insert(artifact.sha256, quarantine.nodes.len());
        }
    }
    Ok(ReleaseFacts { manifest: parse_manifest(&record.manifest)?, digest: record.digest, quarantined })
}

/// Adds the other patches of a component: nodes may have them, whether they are yanked by now or not.
async fn stacked(
    store: &dyn Store,
    component: &ComponentId,
    patches: &mut Vec<ReleaseFacts>,
) -> Result<(), Reason> {
    let known = store.releases(Some(component), Some(Kind::Patch), &Page::ALL).await.map_err(internal)?;
    for record in known.rows {
        if patches.iter().all(|facts| facts.digest != record.digest) {
            patches.push(facts(store, &record).await?);
        }
    }
    Ok(())
}

/// The Java version of each node's JVM of the component, where a stack makes that matter.
async fn java(store: &dyn Store, spec: &Spec) -> Result<BTreeMap<NodeId, u16>, Reason> {
    let mut java = BTreeMap::new();
    if spec.change.patches().is_empty() && !matches!(spec.change, Change::Stack(_)) {
        return Ok(java);
    }
    let mut visit = |record: JvmsRecord| {
        let ours = |jvm: &&Jvm| jvm.component.as_deref() == Some(spec.component.as_str());
        if let Some(found) = record.jvms.iter().find(ours).and_then(|jvm| feature(&jvm.java_version)) {
            java.insert(record.node, found);
        }
        true
    };
    store.each_jvms(None, &mut visit).await.map_err(internal)?;
    Ok(java)
}

/// The Java version that class files are compiled for: 8 of `1.8.0_392`, 17 of `17.0.15`.
fn feature(version: &str) -> Option<u16> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u16>);
    match (parts.next()?.ok()?, parts.next()) {
        (1, Some(Ok(minor))) => Some(minor),
        (major, _) => Some(major),
    }
}

/// Whether a rollout that was planned some time ago may still be started.
///
/// # Errors
/// `RELEASE_YANKED` or `RELEASE_QUARANTINED`.
pub(super) async fn still_good(store: &dyn Store, spec: &Spec) -> Result<(), Reason> {
    for version in spec.change.base().into_iter().chain(spec.change.patches()) {
        let release = release(store, &spec.component, version).await?;
        let name = format!("{}@{version}", spec.component);
        if let Some((digest, count)) = release.quarantined.iter().next()
            && !spec.change.allows_failed()
        {
            return Err(Reason::new(ReasonCode::ReleaseQuarantined)
                .with("digest", digest.short())
                .with("release", name)
                .with("count", count));
        }
    }
    Ok(())
}

/// The nodes that a rollout changed, with the states they proved before it; and whether it patched running JVMs.
async fn before(store: &dyn Store, rollout: &RolloutId) -> Result<(BTreeMap<NodeId, Before>, bool), Reason> {
    let found = store.rollout(rollout).await.map_err(internal)?;
    let record = found
        .ok_or_else(|| Reason::new(ReasonCode::NotFound).with("what", "rollout").with("name", rollout))?;
    let succeeded = [UpgradeState::Ended(Outcome::Succeeded)];
    let rows = store.upgrades(rollout, &succeeded, &Page::ALL).await.map_err(internal)?.rows;
    let before = |row: upfleet_domain::rollout::NodeUpgrade| {
        (row.node, Before { now: row.current.unwrap_or(row.to), back: row.from })
    };
    Ok((rows.into_iter().map(before).collect(), record.rollout.live))
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
