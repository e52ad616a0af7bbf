//! The planner: what a rollout would do to a fleet, node by node, before anything is done.
//!
//! Pure: the same spec, fleet and seed give the same plan and the same digest, whichever controller plans and
//! whichever nodes happen to be connected. It orders nothing and stores nothing.

use std::collections::BTreeMap;

use super::{Change, Plan, PlannedUpgrade, Restore, Spec};
use crate::{
    digest::Digest,
    id::{NodeId, RolloutId},
    labels::{Labels, Selector},
    reason::{Reason, ReasonCode},
    release::{Manifest, Platform},
    report::ComponentInventory,
    state::{Base, ComponentState, ReleaseRef},
};

mod canonical;
mod difference;
mod waves;

pub use difference::difference;

/// What the planner must know of one node. Retired nodes are no part of a fleet.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// The node.
    pub id: NodeId,
    /// Its labels.
    pub labels: Labels,
    /// What its programs are built for; `None` until its agent said so.
    pub platform: Option<Platform>,
    /// Whether a person keeps it out of plans.
    pub cordoned: bool,
    /// Whether two agents used its key.
    pub suspended: bool,
    /// Whether its agent is connected. It changes no plan, only what a person is told about it.
    pub online: bool,
    /// What the component runs there; `None` where the node has no such component.
    pub component: Option<ComponentInventory>,
    /// Another open rollout of the component that the node is in.
    pub other_rollout: Option<RolloutId>,
}

/// The release that a rollout installs.
#[derive(Clone, Debug)]
pub struct ReleaseFacts {
    /// What it says.
    pub manifest: Manifest,
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its artifacts that are quarantined, with the number of nodes that they rolled back on.
    pub quarantined: BTreeMap<Digest, usize>,
}

/// What a rollout made of a node, and what it was before.
#[derive(Clone, Debug)]
pub struct Before {
    /// What the node runs since that rollout.
    pub now: ComponentState,
    /// The state it proved before.
    pub back: ComponentState,
}

/// What a plan is made from, besides the spec.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// The nodes.
    pub nodes: Vec<NodeFacts>,
    /// For an install: the release.
    pub release: Option<ReleaseFacts>,
    /// For a restore to before a rollout: the nodes that it changed.
    pub before: BTreeMap<NodeId, Before>,
}

/// Plans.
///
/// The plan may be empty; whether that is an error is the caller's to say, with [`empty`].
///
/// # Errors
/// `INVALID_ARGUMENT` where the selector is none, `NOT_FOUND` where an install's release was not given.
pub fn plan(spec: &Spec, fleet: &Fleet) -> Result<Plan, Reason> {
    let selector: Selector = spec.selector.parse().map_err(|error| {
        Reason::new(ReasonCode::InvalidArgument).with("field", "spec.selector").with("problem", error)
    })?;
    if let (Change::Install { version, .. }, None) = (&spec.change, &fleet.release) {
        let name = format!("{}@{version}", spec.component);
        return Err(Reason::new(ReasonCode::NotFound).with("what", "release").with("name", name));
    }
    let mut upgrades = Vec::new();
    let mut excluded = Vec::new();
    let mut seen = Seen::default();
    for node in fleet.nodes.iter().filter(|node| selector.matches(&node.id, &node.labels)) {
        match decide(spec, fleet, node) {
            Ok((from, to)) => {
                seen.note(node, &from);
                upgrades.push(PlannedUpgrade {
                    node: node.id.clone(),
                    from,
                    to,
                    wave: 0,
                    online: node.online,
                });
            }
            Err(reason) => excluded.push((node.id.clone(), *reason)),
        }
    }
    waves::order(&mut upgrades, spec.seed);
    let mut warnings = waves::assign(&mut upgrades, &spec.policy.waves);
    let max_unavailable = spec.policy.max_unavailable.of(upgrades.len()).max(1);
    seen.warn(spec, upgrades.len(), max_unavailable, &mut warnings);
    excluded.sort_by(|a, b| a.0.cmp(&b.0));
    let release = upgrades.first().and_then(|first| common_release(spec, &first.to));
    let digest = canonical::digest(spec, &upgrades, max_unavailable);
    Ok(Plan { upgrades, excluded, warnings, max_unavailable, release, digest })
}

/// Why a plan without a node is refused.
#[must_use]
pub fn empty(spec: &Spec, plan: &Plan) -> Reason {
    Reason::new(ReasonCode::EmptyPlan)
        .with("matched", plan.upgrades.len() + plan.excluded.len())
        .with("selector", &spec.selector)
        .with("excluded", plan.excluded.len())
}

fn common_release(spec: &Spec, to: &ComponentState) -> Option<ReleaseRef> {
    match (&spec.change, &to.base) {
        (Change::Install { .. }, Base::Release(release)) => Some(release.clone()),
        _ => None,
    }
}

/// From where to where one node goes, or why it stays. The reason is boxed, as it is large and rare.
fn decide(
    spec: &Spec,
    fleet: &Fleet,
    node: &NodeFacts,
) -> Result<(ComponentState, ComponentState), Box<Reason>> {
    let out = |code| Box::new(Reason::new(code));
    if node.cordoned {
        return Err(out(ReasonCode::NodeCordoned));
    }
    if node.suspended {
        return Err(out(ReasonCode::NodeSuspended));
    }
    let Some(inventory) = &node.component else {
        let reason = Reason::new(ReasonCode::ComponentNotOnNode).with("component", &spec.component);
        return Err(Box::new(reason));
    };
    if let Some(rollout) = &node.other_rollout {
        return Err(Box::new(Reason::new(ReasonCode::OtherRollout).with("rollout", rollout)));
    }
    if let Some(hold) = &inventory.hold {
        return Err(Box::new(hold.clone()));
    }
    match &spec.change {
        Change::Install { allow_downgrade, allow_failed_digest, .. } => {
            let release = fleet.release.as_ref().ok_or_else(|| out(ReasonCode::NotFound))?;
            let to = install(release, node, inventory, *allow_downgrade, *allow_failed_digest)?;
            Ok((inventory.current.clone(), to))
        }
        Change::Restore(Restore::BeforeRollout(rollout)) => {
            // The inventory may lag behind a rollout that has just ended; the agent says what is current already.
            let before = fleet.before.get(&node.id).ok_or_else(|| {
                Box::new(Reason::new(ReasonCode::NotChangedByRollout).with("rollout", rollout))
            })?;
            Ok((before.now.clone(), before.back.clone()))
        }
        Change::Restore(Restore::Previous) => {
            let kept = inventory.previous.as_ref().or(inventory.kept.first());
            let to = kept.ok_or_else(|| out(ReasonCode::NothingToRestore))?;
            Ok((inventory.current.clone(), differs(inventory, to)?))
        }
        Change::Restore(Restore::Release(version)) => {
            let is =
                |state: &&ComponentState| matches!(&state.base, Base::Release(r) if r.version == *version);
            let current = Some(&inventory.current).filter(is);
            let to = current.or_else(|| inventory.kept.iter().find(is));
            let to = to.ok_or_else(|| out(ReasonCode::NothingToRestore))?;
            Ok((inventory.current.clone(), differs(inventory, to)?))
        }
    }
}

/// `to`, unless the node has it under that name already and it runs. The same bytes under another name, or not
/// running, are ordered: the agent proves by digest that they are current, or starts them.
fn differs(inventory: &ComponentInventory, to: &ComponentState) -> Result<ComponentState, Box<Reason>> {
    let runs = inventory.run_mode != "supervised" || inventory.running == to.artifact();
    if inventory.drift.is_none() && inventory.current == *to && runs {
        let digest = to.artifact().map_or_else(|| "nothing".to_owned(), |digest| digest.short());
        return Err(Box::new(Reason::new(ReasonCode::AlreadyCurrent).with("digest", digest)));
    }
    Ok(to.clone())
}

fn install(
    release: &ReleaseFacts,
    node: &NodeFacts,
    inventory: &ComponentInventory,
    allow_downgrade: bool,
    allow_failed: bool,
) -> Result<ComponentState, Box<Reason>> {
    let artifact = node.platform.as_ref().and_then(|platform| release.manifest.artifact_for(platform));
    let Some(artifact) = artifact else {
        let platform =
            node.platform.as_ref().map_or_else(|| "a node not yet heard".into(), ToString::to_string);
        let has: Vec<String> = release.manifest.artifacts.iter().map(|a| a.platform.to_string()).collect();
        let problem = format!("it has {}", has.join(", "));
        let reason = Reason::new(ReasonCode::PlatformMismatch).with("platform", platform);
        return Err(Box::new(reason.with("problem", problem)));
    };
    let manifest = &release.manifest;
    let to = differs(
        inventory,
        &ComponentState::release(ReleaseRef {
            component: manifest.component.clone(),
            version: manifest.version.clone(),
            sequence: manifest.sequence,
            manifest: release.digest,
            artifact: artifact.sha256,
        }),
    )?;
    let name = || format!("{}@{}", manifest.component, manifest.version);
    if !allow_failed && let Some(count) = release.quarantined.get(&artifact.sha256) {
        let reason = Reason::new(ReasonCode::ReleaseQuarantined).with("digest", artifact.sha256.short());
        return Err(Box::new(reason.with("release", name()).with("count", count)));
    }
    if !allow_failed && inventory.failed.contains(&artifact.sha256) {
        return Err(Box::new(Reason::new(ReasonCode::FailedDigest).with("digest", artifact.sha256.short())));
    }
    let kept = inventory.kept.iter().any(|state| state.same_content(&to));
    if let Some(current) = inventory.current.sequence()
        && manifest.sequence < current
        && !kept
        && !allow_downgrade
    {
        let reason = Reason::new(ReasonCode::DowngradeRefused).with("offered", manifest.sequence);
        return Err(Box::new(reason.with("current", current)));
    }
    Ok(to)
}

/// Counts what deserves a second look.
#[derive(Default)]
struct Seen {
    offline: usize,
    unhealthy: usize,
    drifted: usize,
    unmanaged: usize,
}

impl Seen {
    fn note(&mut self, node: &NodeFacts, from: &ComponentState) {
        self.offline += usize::from(!node.online);
        self.unmanaged += usize::from(matches!(from.base, Base::Unmanaged { .. }));
        if let Some(inventory) = &node.component {
            self.unhealthy += usize::from(!inventory.healthy && inventory.current.base != Base::Absent);
            self.drifted += usize::from(inventory.drift.is_some());
        }
    }

    fn warn(&self, spec: &Spec, total: usize, max_unavailable: usize, warnings: &mut Vec<String>) {
        let borne = spec.policy.silence_budget.of(total);
        if self.offline > 0 {
            warnings.push(format!(
                "{} of {total} nodes are not connected; they get the order when they return, and {borne} may stay silent without holding a wave",
                self.offline
            ));
        }
        let mut count = |count: usize, what: &str| {
            if count > 0 {
                warnings.push(format!("{count} of {total} nodes {what}"));
            }
        };
        count(self.unhealthy, "are unhealthy now; a change on top would hide what is broken");
        count(self.drifted, "run something else than was recorded");
        count(self.unmanaged, "run a file that was there before Upfleet; it is kept, and a way back to it");
        if total > 1 && max_unavailable >= total {
            warnings.push(format!("all {total} nodes may be unavailable at once"));
        }
        if total > 1 && spec.policy.waves.len() < 2 && matches!(spec.change, Change::Install { .. }) {
            warnings.push("there is only one wave, so no canary".to_owned());
        }
    }
}

#[cfg(test)]
mod tests;
