//! Whether the agent takes an order: its own policy, which no controller can overrule.

use super::{
    event::{Offer, Offered},
    policy::Policy,
    record::{Accepted, Goal, Record},
};
use crate::{
    digest::Digest,
    order::{self, DesiredState, Target},
    reason::{Reason, ReasonCode},
    state::{ComponentState, ReleaseRef},
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
    if !desired.layers.is_empty() {
        return Err(Reason::new(ReasonCode::KindUnsupported).with("kind", "patch"));
    }
    let accepted = accepted(desired, goal(record, policy, offer)?);
    permit(record, policy, &accepted)?;
    Ok(Admission::Begin(Box::new(accepted)))
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
    match &accepted.goal {
        Goal::Restore { state } if !is_kept(record, state) && !record.current.same_content(state) => {
            Err(Reason::new(ReasonCode::StateNotKept).with("state", state))
        }
        Goal::Restore { .. } => Ok(()),
        // Unfit for the platform is found by preflight, which says so as a failure and not as a refusal.
        Goal::Install { unfit: Some(_), .. } => Ok(()),
        Goal::Install { state, .. } => install(record, policy, accepted, state),
    }
}

fn install(
    record: &Record,
    policy: &Policy,
    accepted: &Accepted,
    state: &ComponentState,
) -> Result<(), Reason> {
    let failed = |digest: &Digest| record.failed.contains(digest);
    if let Some(digest) = state.artifact().filter(failed)
        && !accepted.allow_failed_digest
        && record.current.artifact() != Some(digest)
    {
        return Err(Reason::new(ReasonCode::FailedDigest).with("digest", digest));
    }
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
        Target::Stack(_) => Err(Reason::new(ReasonCode::KindUnsupported).with("kind", "patch")),
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
            let state = ComponentState::release(offered.release);
            Ok(Goal::Install { state, size: offered.size, md5: offered.md5, unfit: offered.unfit })
        }
    }
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
        hold_before: desired.hold_before,
        not_after: desired.not_after,
        soak: desired.soak,
        allow_downgrade: desired.allow_downgrade,
        allow_failed_digest: desired.allow_failed_digest,
        trace: desired.trace.clone(),
        actor: desired.actor.clone(),
    }
}
