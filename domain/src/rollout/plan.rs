//! The planner: what a rollout would do to a fleet, node by node, before anything is done.
//!
//! Pure: the same spec, fleet and seed give the same plan and the same digest, whichever controller plans and
//! whichever nodes happen to be connected. It orders nothing and stores nothing.

use std::collections::BTreeMap;

use super::{Change, Plan, PlannedUpgrade, Restore, Spec, StackChange};
use crate::{
    digest::Digest,
    id::{NodeId, RolloutId},
    labels::{Labels, Selector},
    reason::{Reason, ReasonCode},
    release::{Kind, Manifest, Platform},
    report::ComponentInventory,
    state::{Base, ComponentState, Layer, ReleaseRef},
};

mod canonical;
mod difference;
mod seen;
mod stack;
mod waves;

pub use difference::difference;

use seen::Seen;
use stack::{No, Stacks, ToBase};

/// From this Java version on, a JVM warns on its output of agents that are loaded while it runs.
const WARNS_OF_AGENTS: u16 = 21;

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
    /// The Java version of the JVM that runs the component: 8, 11, 17 …; `None` where it is not known.
    pub java: Option<u16>,
}

/// A release that a rollout installs, or a patch that is known.
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
    /// For an install, also with a stack: the base release.
    pub release: Option<ReleaseFacts>,
    /// The patch releases of the component that are known: those named, and those that nodes may have.
    pub patches: Vec<ReleaseFacts>,
    /// For a restore to before a rollout: the nodes that it changed.
    pub before: BTreeMap<NodeId, Before>,
    /// Whether that rollout patched running JVMs, so that going back does as well.
    pub before_live: bool,
}

/// Plans.
///
/// The plan may be empty; whether that is an error is the caller's to say, with [`empty`].
///
/// # Errors
/// `INVALID_ARGUMENT` where the selector is none or a release is of a kind that the change can't use, `NOT_FOUND`
/// where a release was not given, `FIX_LOST` where a new base would lose a fix that nodes have.
pub fn plan(spec: &Spec, fleet: &Fleet) -> Result<Plan, Reason> {
    let selector: Selector = spec.selector.parse().map_err(|error| {
        Reason::new(ReasonCode::InvalidArgument).with("field", "spec.selector").with("problem", error)
    })?;
    named(spec, fleet)?;
    let mut planner = Planner {
        spec,
        fleet,
        stacks: Stacks::new(&fleet.patches, fleet.release.as_ref()),
        seen: Seen::default(),
    };
    let mut upgrades = Vec::new();
    let mut excluded = Vec::new();
    let mut lost = Vec::new();
    for node in fleet.nodes.iter().filter(|node| selector.matches(&node.id, &node.labels)) {
        match planner.decide(node) {
            Ok((from, to)) => {
                planner.seen.note(node, &from);
                upgrades.push(PlannedUpgrade {
                    node: node.id.clone(),
                    from,
                    to,
                    wave: 0,
                    online: node.online,
                });
            }
            Err(No::Out(reason)) => excluded.push((node.id.clone(), *reason)),
            Err(No::Lost(fixes)) => lost.push((node.id.clone(), fixes)),
        }
    }
    if let (false, Some(version)) = (lost.is_empty(), spec.change.base()) {
        return Err(stack::refuse(&lost, format!("{}@{version}", spec.component)));
    }
    waves::order(&mut upgrades, spec.seed);
    let mut warnings = waves::assign(&mut upgrades, &spec.policy.waves);
    let max_unavailable = spec.policy.max_unavailable.of(upgrades.len()).max(1);
    let live = planner.live();
    planner.seen.warn(spec, upgrades.len(), max_unavailable, live, &mut warnings);
    excluded.sort_by(|a, b| a.0.cmp(&b.0));
    let release = upgrades.first().and_then(|first| common_release(spec, &first.to));
    let digest = canonical::digest(spec, &upgrades, max_unavailable);
    Ok(Plan { upgrades, excluded, warnings, max_unavailable, release, live, digest })
}

/// Each release that the change names must be there and of a kind that it can use.
fn named(spec: &Spec, fleet: &Fleet) -> Result<(), Reason> {
    let missing = |version: &dyn std::fmt::Display| {
        let name = format!("{}@{version}", spec.component);
        Reason::new(ReasonCode::NotFound).with("what", "release").with("name", name)
    };
    let wrong = |release: &ReleaseFacts, problem: &str| {
        let name = format!("{}@{}", release.manifest.component, release.manifest.version);
        let problem = format!("{name} is of kind {}: {problem}", release.manifest.kind.as_str());
        Reason::new(ReasonCode::InvalidArgument).with("field", "spec.change").with("problem", problem)
    };
    if let Some(version) = spec.change.base() {
        let release = fleet.release.as_ref().ok_or_else(|| missing(version))?;
        if release.manifest.kind == Kind::Patch {
            return Err(wrong(release, "a patch goes onto a stack, it is not installed"));
        }
    }
    for version in spec.change.patches() {
        let found = fleet.patches.iter().find(|release| release.manifest.version == *version);
        let found = found.ok_or_else(|| missing(version))?;
        if found.manifest.patch.is_none() {
            return Err(wrong(found, "only patches go onto a stack"));
        }
    }
    Ok(())
}

/// Why a plan without a node is refused.
#[must_use]
pub fn empty(spec: &Spec, plan: &Plan) -> Reason {
    let first =
        plan.excluded.first().map(|(node, reason)| format!("; the first, {node}: {}", reason.message()));
    Reason::new(ReasonCode::EmptyPlan)
        .with("matched", plan.upgrades.len() + plan.excluded.len())
        .with("selector", &spec.selector)
        .with("excluded", plan.excluded.len())
        .with("first", first.unwrap_or_default())
}

fn common_release(spec: &Spec, to: &ComponentState) -> Option<ReleaseRef> {
    match &to.base {
        Base::Release(release) if spec.change.base().is_some() => Some(release.clone()),
        _ => None,
    }
}

/// From where to where a node goes.
type Way = (ComponentState, ComponentState);

/// A plan in the making.
struct Planner<'f> {
    spec: &'f Spec,
    fleet: &'f Fleet,
    stacks: Stacks<'f>,
    seen: Seen,
}

impl Planner<'_> {
    /// Whether running JVMs are patched instead of restarted.
    fn live(&self) -> bool {
        match &self.spec.change {
            Change::Stack(change) => change.live,
            Change::Restore(Restore::BeforeRollout(_)) => self.fleet.before_live,
            Change::Install { .. } | Change::BaseWithStack { .. } | Change::Restore(_) => false,
        }
    }

    /// From where to where one node goes, or why it stays.
    fn decide(&mut self, node: &NodeFacts) -> Result<Way, No> {
        let out = |code| No::from(Reason::new(code));
        if node.cordoned {
            return Err(out(ReasonCode::NodeCordoned));
        }
        if node.suspended {
            return Err(out(ReasonCode::NodeSuspended));
        }
        let Some(inventory) = &node.component else {
            let component = &self.spec.component;
            return Err(Reason::new(ReasonCode::ComponentNotOnNode).with("component", component).into());
        };
        if let Some(rollout) = &node.other_rollout {
            return Err(Reason::new(ReasonCode::OtherRollout).with("rollout", rollout).into());
        }
        if let Some(hold) = &inventory.hold {
            return Err(hold.clone().into());
        }
        match &self.spec.change {
            Change::Install { .. } => self.install(node, inventory, None, &[]),
            Change::BaseWithStack { apply, waive_fixes, .. } => {
                self.install(node, inventory, Some(apply), waive_fixes)
            }
            Change::Stack(change) => self.stack(node, inventory, change),
            Change::Restore(Restore::BeforeRollout(rollout)) => {
                // The inventory may lag behind a rollout that has just ended; the agent says what is current already.
                let before = self.fleet.before.get(&node.id).ok_or_else(|| {
                    No::from(Reason::new(ReasonCode::NotChangedByRollout).with("rollout", rollout))
                })?;
                if let Some(layer) = put_on_since(&inventory.current, before) {
                    let reason = Reason::new(ReasonCode::PatchedSince).with("number", layer.number);
                    return Err(reason.with("rollout", rollout).into());
                }
                Ok((before.now.clone(), before.back.clone()))
            }
            Change::Restore(Restore::Previous) => {
                let kept = inventory.previous.as_ref().or(inventory.kept.first());
                let to = kept.ok_or_else(|| out(ReasonCode::NothingToRestore))?;
                Ok((inventory.current.clone(), differs(inventory, to)?))
            }
            Change::Restore(Restore::Release(version)) => {
                let is = |state: &&ComponentState| matches!(&state.base, Base::Release(r) if r.version == *version);
                let current = Some(&inventory.current).filter(is);
                let to = current.or_else(|| inventory.kept.iter().find(is));
                let to = to.ok_or_else(|| out(ReasonCode::NothingToRestore))?;
                Ok((inventory.current.clone(), differs(inventory, to)?))
            }
        }
    }

    /// To another base with the stack that goes with it.
    fn install(
        &mut self,
        node: &NodeFacts,
        inventory: &ComponentInventory,
        named: Option<&[crate::id::Version]>,
        waived: &[String],
    ) -> Result<Way, No> {
        let change = &self.spec.change;
        let facts = self.fleet.release.as_ref().ok_or_else(|| No::from(Reason::new(ReasonCode::NotFound)))?;
        let release = reference(facts, node.platform.as_ref())?;
        let current = &inventory.current;
        let to = ToBase { release: &release, named, waived };
        let changed = self.stacks.onto(node, current, &to)?;
        let to = ComponentState { base: Base::Release(release.clone()), layers: changed.layers };
        let to = differs(inventory, &to)?;
        self.permitted(inventory, &to)?;
        let kept = inventory.kept.iter().any(|state| state.same_content(&to));
        if let Some(sequence) = current.sequence()
            && release.sequence < sequence
            && !kept
            && !change.allows_downgrade()
        {
            let reason = Reason::new(ReasonCode::DowngradeRefused).with("offered", release.sequence);
            return Err(reason.with("current", sequence).into());
        }
        self.seen.notes(&changed.notes);
        Ok((current.clone(), to))
    }

    /// To another stack on the base that is there.
    fn stack(
        &mut self,
        node: &NodeFacts,
        inventory: &ComponentInventory,
        change: &StackChange,
    ) -> Result<Way, No> {
        let current = &inventory.current;
        let changed = self.stacks.change(node, current, change)?;
        let to = ComponentState { base: current.base.clone(), layers: changed.layers };
        let to = differs(inventory, &to)?;
        if change.live {
            self.stacks.live(current, &to)?;
            self.seen.warns_of_agents += usize::from(node.java.is_some_and(|java| java >= WARNS_OF_AGENTS));
        }
        self.permitted(inventory, &to)?;
        self.seen.notes(&changed.notes);
        Ok((current.clone(), to))
    }

    /// Whether the node takes patches, and what the change brings may be tried on it.
    fn permitted(&self, inventory: &ComponentInventory, to: &ComponentState) -> Result<(), No> {
        if !to.layers.is_empty() && !inventory.patchable {
            return Err(Reason::new(ReasonCode::NotPatchable)
                .with("component", &inventory.component)
                .with("problem", "its configuration on the node does not say how its JVM is started")
                .into());
        }
        if self.spec.change.allows_failed() {
            return Ok(());
        }
        let brought = to.beyond(&inventory.current);
        for digest in &brought {
            if let Some((facts, count)) = self.stacks.quarantined(digest) {
                let name = format!("{}@{}", facts.manifest.component, facts.manifest.version);
                return Err(Reason::new(ReasonCode::ReleaseQuarantined)
                    .with("digest", digest.short())
                    .with("release", name)
                    .with("count", count)
                    .into());
            }
        }
        let stack = to.stack().filter(|stack| inventory.current.stack() != Some(*stack));
        match brought.into_iter().chain(stack).find(|digest| inventory.failed.contains(digest)) {
            None => Ok(()),
            Some(digest) => Err(Reason::new(ReasonCode::FailedDigest).with("digest", digest.short()).into()),
        }
    }
}

/// A patch that came after a rollout. It has none in an inventory that lags behind.
fn put_on_since<'a>(current: &'a ComponentState, before: &Before) -> Option<&'a Layer> {
    let known = |layer: &Layer| {
        let is = |other: &Layer| other.release.manifest == layer.release.manifest;
        before.now.layers.iter().chain(&before.back.layers).any(is)
    };
    current.layers.iter().find(|layer| !known(layer))
}

/// A release as it concerns a node.
fn reference(release: &ReleaseFacts, platform: Option<&Platform>) -> Result<ReleaseRef, Reason> {
    let manifest = &release.manifest;
    let Some(artifact) = platform.and_then(|platform| manifest.artifact_for(platform)) else {
        let platform = platform.map_or_else(|| "a node not yet heard".into(), ToString::to_string);
        let has: Vec<String> = manifest.artifacts.iter().map(|a| a.platform.to_string()).collect();
        let problem = format!("it has {}", has.join(", "));
        return Err(Reason::new(ReasonCode::PlatformMismatch)
            .with("platform", platform)
            .with("problem", problem));
    };
    Ok(ReleaseRef {
        component: manifest.component.clone(),
        version: manifest.version.clone(),
        sequence: manifest.sequence,
        manifest: release.digest,
        artifact: artifact.sha256,
    })
}

/// `to`, unless the node has it under that name already and it runs. The same bytes under another name, or not
/// running, are ordered: the agent proves by digest that they are current, or starts them.
fn differs(inventory: &ComponentInventory, to: &ComponentState) -> Result<ComponentState, Box<Reason>> {
    let runs = !inventory.has_process() || inventory.running == to.artifact();
    if inventory.drift.is_none() && inventory.current == *to && runs {
        let digest = to.artifact().map_or_else(|| "nothing".to_owned(), |digest| digest.short());
        return Err(Box::new(Reason::new(ReasonCode::AlreadyCurrent).with("digest", digest)));
    }
    Ok(to.clone())
}

#[cfg(test)]
mod tests;
