//! Whether the agent takes an order: its own policy, which no controller can overrule.

use super::{
    event::{Offer, Offered},
    policy::Policy,
    preflight,
    record::{Accepted, Goal, Record},
};
use crate::{
    digest::Digest,
    order::{self, DesiredState, Target},
    reason::{Reason, ReasonCode},
    release::Kind,
    state::{Base, ComponentState, Layer, ReleaseRef},
};

/// What an order that is taken amounts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It was taken before.
    Known,
    /// It asks for nothing that is not so: only its generation is kept.
    NoChange,
    /// What is under way ends.
    Stay,
    /// It steers the upgrade under way, or the one that waits.
    Continue,
    /// It begins an upgrade.
    Begin(Box<Accepted>),
}

/// Takes or refuses an order.
///
/// # Errors
/// The reason for refusing it. Nothing about the component changes then.
pub fn admit(record: &Record, policy: &Policy, offer: &Offer) -> Result<Admission, Reason> {
    let desired = &offer.desired;
    order::accept(record.generation, desired.generation)?;
    if desired.generation == record.generation {
        return Ok(Admission::Known);
    }
    if desired.target == Target::Stay {
        return Ok(Admission::Stay);
    }
    let Some(upgrade) = &desired.upgrade else { return Ok(Admission::NoChange) };
    let under_way = record.passage.as_ref().map(|passage| &passage.order).or(record.next.as_ref());
    let waiting = record.next.as_ref();
    if [under_way, waiting].into_iter().flatten().any(|order| order.upgrade.as_ref() == Some(upgrade)) {
        return Ok(Admission::Continue);
    }
    if record.ended.contains(upgrade) {
        return Ok(Admission::NoChange);
    }
    let accepted = accepted(desired, goal(record, policy, offer)?);
    permit(record, policy, &accepted)?;
    Ok(Admission::Begin(Box::new(accepted)))
}

/// Takes or refuses what a person at the node wants applied. A hold does not stand in the way of whoever set it.
///
/// # Errors
/// The reason for refusing it.
pub fn admit_local(record: &Record, policy: &Policy, offer: &Offer) -> Result<Accepted, Reason> {
    if !policy.allow_local_apply {
        return Err(Reason::new(ReasonCode::LocalApplyForbidden).with("component", &record.component));
    }
    let mut accepted = accepted(&offer.desired, goal(record, policy, offer)?);
    accepted.generation = record.generation;
    (accepted.upgrade, accepted.rollout) = (None, None);
    permit_goal(record, policy, &accepted)?;
    Ok(accepted)
}

/// Whether an accepted order may begin now. Asked again when it had to wait, since much can have happened.
///
/// # Errors
/// The reason for refusing it.
pub fn permit(record: &Record, policy: &Policy, accepted: &Accepted) -> Result<(), Reason> {
    if let Some(hold) = &record.hold {
        let value = |key: &str| hold.metadata.get(key).cloned().unwrap_or_default();
        let component = &record.component;
        return Err(Reason::new(ReasonCode::ComponentHeld)
            .with("component", component)
            .with("actor", value("actor"))
            .with("message", value("message")));
    }
    permit_goal(record, policy, accepted)
}

fn permit_goal(record: &Record, policy: &Policy, accepted: &Accepted) -> Result<(), Reason> {
    let goal = &accepted.goal;
    if accepted.live && !policy.live {
        let problem = "`live` of [component.jvm] is off";
        return Err(Reason::new(ReasonCode::LiveForbidden).with("problem", problem));
    }
    if goal.state().active().next().is_some() && !policy.patchable {
        return Err(not_patchable(record));
    }
    // What is under way may be just what brings the base; then it is asked when that has ended.
    let coming = record.passage.as_ref().map(|passage| passage.order.goal.state().artifact());
    if coming != Some(goal.state().artifact()) || coming == Some(None) {
        preflight::base(goal, accepted.live, record.current.artifact())?;
    }
    match goal {
        Goal::Restore { state } if !is_kept(record, state) && !record.current.same_content(state) => {
            return Err(Reason::new(ReasonCode::StateNotKept).with("state", state));
        }
        Goal::Restore { .. } => {}
        // Unfit for the platform is found by preflight, which says so as a failure and not as a refusal.
        Goal::Install { unfit: Some(_), .. } | Goal::Stack { unfit: Some(_), .. } => return Ok(()),
        Goal::Install { state, .. } | Goal::Stack { state, .. } => {
            failed_before(record, accepted, state)?;
            downgrade(record, policy, accepted, state)?;
        }
    }
    Ok(())
}

fn not_patchable(record: &Record) -> Reason {
    let problem = "its configuration does not say how its JVM is started";
    Reason::new(ReasonCode::NotPatchable).with("component", &record.component).with("problem", problem)
}

/// What rolled back here is not tried again, unless it is in force anyway.
fn failed_before(record: &Record, accepted: &Accepted, state: &ComponentState) -> Result<(), Reason> {
    let current: Vec<Digest> = content(&record.current).collect();
    let failed = |digest: &Digest| record.failed.contains(digest) && !current.contains(digest);
    match content(state).find(failed) {
        Some(digest) if !accepted.allow_failed_digest => {
            Err(Reason::new(ReasonCode::FailedDigest).with("digest", digest))
        }
        _ => Ok(()),
    }
}

/// The artifacts in force in a state: its base, then its patches.
pub(super) fn content(state: &ComponentState) -> impl Iterator<Item = Digest> {
    state.artifact().into_iter().chain(state.active().map(|layer| layer.release.artifact))
}

/// Only the base counts: a patch that is removed is no downgrade, nor is a state that the node has kept.
fn downgrade(
    record: &Record,
    policy: &Policy,
    accepted: &Accepted,
    state: &ComponentState,
) -> Result<(), Reason> {
    let lower = match (state.sequence(), record.current.sequence()) {
        (Some(offered), Some(current)) if offered < current => Some((offered, current)),
        _ => None,
    };
    let permitted = accepted.allow_downgrade && policy.allow_downgrade;
    match lower {
        Some((offered, current)) if !permitted && !is_kept(record, state) => {
            Err(Reason::new(ReasonCode::DowngradeRefused).with("offered", offered).with("current", current))
        }
        _ => Ok(()),
    }
}

/// Whether the node has kept a state of the same content: going there is never a downgrade.
#[must_use]
pub fn is_kept(record: &Record, state: &ComponentState) -> bool {
    record.kept.iter().any(|kept| kept.same_content(state))
}

/// The node's own word for what an order wants back. An order names content; version and sequence, by which
/// downgrades are told, come from verified manifests only.
fn own(record: &Record, state: &ComponentState) -> ComponentState {
    let mut known = std::iter::once(&record.current).chain(&record.kept);
    known.find(|own| own.same_content(state)).unwrap_or(state).clone()
}

fn goal(record: &Record, policy: &Policy, offer: &Offer) -> Result<Goal, Reason> {
    let untrusted = |problem: &str| Reason::new(ReasonCode::UntrustedManifest).with("problem", problem);
    match &offer.desired.target {
        Target::Restore(state) => Ok(Goal::Restore { state: own(record, state) }),
        Target::Stack(base) => {
            let stack = stack(record, policy, offer)?;
            let base = own_base(record, base);
            let state = ComponentState { base, layers: stack.layers };
            Ok(Goal::Stack { state, size: stack.size, unfit: stack.unfit })
        }
        // `admit` answers it before it comes here; it changes nothing either way.
        Target::Stay => Err(untrusted("an order to stay has no goal")),
        Target::Install(ordered) => {
            let offered = offer.release.clone().ok_or_else(|| untrusted("none came with the order"))??;
            if offered.release.component != offer.desired.component {
                return Err(untrusted("it is for another component"));
            }
            if !same_name(ordered, &offered) {
                return Err(untrusted("it is another release than the order names"));
            }
            if offered.kind != policy.kind {
                return Err(Reason::new(ReasonCode::KindUnsupported).with("kind", offered.kind.as_str()));
            }
            let stack = stack(record, policy, offer)?;
            let state = ComponentState { base: Base::Release(offered.release), layers: stack.layers };
            let size = offered.size.saturating_add(stack.size);
            Ok(Goal::Install { state, size, unfit: offered.unfit.or(stack.unfit) })
        }
    }
}

/// The node's own word for the base that an order builds on, as [`own`].
fn own_base(record: &Record, base: &Base) -> Base {
    let ordered = ComponentState { base: base.clone(), layers: Vec::new() };
    let coming = record.passage.as_ref().map(|passage| passage.order.goal.state());
    let mut known = std::iter::once(&record.current).chain(coming);
    let same = known.find(|state| state.artifact() == ordered.artifact());
    same.map_or_else(|| base.clone(), |state| state.base.clone())
}

/// The stack that an order names, by what the manifests of its patches say.
struct Stack {
    layers: Vec<Layer>,
    size: u64,
    unfit: Option<Reason>,
}

fn stack(record: &Record, policy: &Policy, offer: &Offer) -> Result<Stack, Reason> {
    let untrusted = |problem: String| Reason::new(ReasonCode::UntrustedManifest).with("problem", problem);
    let desired = &offer.desired;
    let mut stack = Stack { layers: Vec::new(), size: 0, unfit: None };
    if desired.layers.is_empty() {
        return Ok(stack);
    }
    if !policy.patchable {
        return Err(not_patchable(record));
    }
    let offered = offer.layers.clone()?;
    if offered.len() != desired.layers.len() {
        return Err(untrusted("not each layer has one".to_owned()));
    }
    for (ordered, offered) in desired.layers.iter().zip(offered) {
        let number = ordered.number;
        if offered.offered.release.component != desired.component {
            return Err(untrusted(format!("patch {number} is for another component")));
        }
        if !same_name(&ordered.release, &offered.offered) || offered.patch.number != number {
            return Err(untrusted(format!("it is another release than the order names as patch {number}")));
        }
        if offered.offered.kind != Kind::Patch {
            let kind = offered.offered.kind.as_str();
            return Err(Reason::new(ReasonCode::KindUnsupported).with("kind", kind));
        }
        if stack.layers.last().is_some_and(|above| above.number <= number) {
            let problem = format!("patch {number} is not below the one before it");
            return Err(Reason::new(ReasonCode::InvalidArgument)
                .with("field", "layers")
                .with("problem", problem));
        }
        let fresh =
            record.current.active().all(|layer| layer.release.artifact != offered.offered.release.artifact);
        if desired.live && fresh && !ordered.retired {
            offered.patch.takes_live()?;
        }
        if !ordered.retired {
            stack.size = stack.size.saturating_add(offered.offered.size);
            stack.unfit = stack.unfit.or(offered.offered.unfit);
        }
        stack.layers.push(Layer { release: offered.offered.release, ..ordered.clone() });
    }
    Ok(stack)
}

fn same_name(ordered: &ReleaseRef, offered: &Offered) -> bool {
    let release = &offered.release;
    ordered.manifest == release.manifest
        && ordered.version == release.version
        && ordered.sequence == release.sequence
}

fn accepted(desired: &DesiredState, goal: Goal) -> Accepted {
    Accepted {
        generation: desired.generation,
        rollout: desired.rollout.clone(),
        upgrade: desired.upgrade.clone(),
        goal,
        live: desired.live,
        hold_before: desired.hold_before,
        not_after: desired.not_after,
        soak: desired.soak,
        allow_downgrade: desired.allow_downgrade,
        allow_failed_digest: desired.allow_failed_digest,
        trace: desired.trace.clone(),
        actor: desired.actor.clone(),
    }
}
