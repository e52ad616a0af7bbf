//! What passes between a controller and its agents: orders, reports and inventories.
//!
//! Ids in these messages are bare (`web-01`, `r-7f3k2m`), as the session is about one node.

use upfleet_domain::{
    order::{DesiredState, Generation, HoldOrder, Target},
    reason::Reason,
    report::{ComponentInventory, UpgradeReport},
    state::{ComponentState, Layer},
    upgrade::{Phase, UpgradeState},
};

use super::{
    Result, all, duration, each, field, invalid, optional, parse, parse_optional, required, span, time,
    timestamp, upgrade_state,
};
use crate::v1;

/// A manifest as it was published: verbatim bytes and detached signatures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestBytes {
    /// The bytes that the release's manifest digest names.
    pub bytes: Vec<u8>,
    /// Signatures over them.
    pub signatures: Vec<Vec<u8>>,
}

/// All that one `DesiredState` message carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// What should run.
    pub desired: DesiredState,
    /// The manifest, where a release is to be installed.
    pub manifest: Option<ManifestBytes>,
    /// The manifests of the layers, in their order.
    pub layers: Vec<ManifestBytes>,
    /// A hold or release by a person.
    pub hold: Option<HoldOrder>,
}

impl From<&HoldOrder> for v1::HoldOrder {
    fn from(order: &HoldOrder) -> Self {
        Self {
            hold: order.hold,
            generation: order.generation,
            message: order.message.clone(),
            actor: order.actor.clone(),
        }
    }
}

impl From<v1::HoldOrder> for HoldOrder {
    fn from(wire: v1::HoldOrder) -> Self {
        Self { hold: wire.hold, generation: wire.generation, message: wire.message, actor: wire.actor }
    }
}

impl From<&Order> for v1::DesiredState {
    fn from(order: &Order) -> Self {
        use v1::desired_state::Target as Wire;
        let desired = &order.desired;
        let target = match &desired.target {
            Target::Install(release) => {
                let manifest = order.manifest.clone().unwrap_or_default();
                Wire::Install(v1::InstallTarget {
                    release: Some(release.into()),
                    manifest: manifest.bytes.into(),
                    signatures: manifest.signatures.into_iter().map(Into::into).collect(),
                })
            }
            Target::Stack(base) => {
                let state = ComponentState { base: base.clone(), layers: Vec::new() };
                Wire::Stack(v1::StackTarget { base: Some((&state).into()) })
            }
            Target::Restore(state) => Wire::Restore(v1::RestoreTarget { state: Some(state.into()) }),
            Target::Stay => Wire::Stay(v1::StayTarget {}),
        };
        let hold_before = desired.hold_before.map(|phase| UpgradeState::Active(phase).into());
        Self {
            component: desired.component.to_string(),
            epoch: desired.generation.epoch,
            generation: desired.generation.number,
            rollout: desired.rollout.as_ref().map(ToString::to_string).unwrap_or_default(),
            upgrade: desired.upgrade.as_ref().map(ToString::to_string).unwrap_or_default(),
            layers: layers(&desired.layers, &order.layers),
            live: desired.live,
            hold_before: hold_before.unwrap_or(v1::UpgradeState::Unspecified).into(),
            not_after: desired.not_after.map(timestamp),
            allow_downgrade: desired.allow_downgrade,
            allow_failed_digest: desired.allow_failed_digest,
            soak: desired.soak.map(duration),
            trace: desired.trace.clone(),
            actor: desired.actor.clone(),
            hold_order: order.hold.as_ref().map(Into::into),
            target: Some(target),
        }
    }
}

impl TryFrom<v1::DesiredState> for Order {
    type Error = Reason;

    fn try_from(wire: v1::DesiredState) -> Result<Self> {
        let (target, manifest) = target(wire.target)?;
        let (ordered, layers) = offered(wire.layers)?;
        let desired = DesiredState {
            component: parse(&wire.component, "component")?,
            generation: Generation { epoch: wire.epoch, number: wire.generation },
            rollout: parse_optional(&wire.rollout, "rollout")?,
            upgrade: parse_optional(&wire.upgrade, "upgrade")?,
            target,
            layers: ordered,
            live: wire.live,
            hold_before: hold_before(wire.hold_before)?,
            not_after: wire.not_after.as_ref().map(time),
            allow_downgrade: wire.allow_downgrade,
            allow_failed_digest: wire.allow_failed_digest,
            soak: wire.soak.as_ref().map(|soak| span(soak, "soak")).transpose()?,
            trace: wire.trace,
            actor: wire.actor,
        };
        Ok(Self { desired, manifest, layers, hold: wire.hold_order.map(Into::into) })
    }
}

/// Layers beside their manifests; a missing manifest is an empty one, which its digest then refuses.
fn layers(layers: &[Layer], manifests: &[ManifestBytes]) -> Vec<v1::LayerOffer> {
    let offer = |(index, layer): (usize, &Layer)| {
        let manifest = manifests.get(index).cloned().unwrap_or_default();
        v1::LayerOffer {
            layer: Some(layer.into()),
            manifest: manifest.bytes.into(),
            signatures: manifest.signatures.into_iter().map(Into::into).collect(),
        }
    };
    layers.iter().enumerate().map(offer).collect()
}

fn offered(wire: Vec<v1::LayerOffer>) -> Result<(Vec<Layer>, Vec<ManifestBytes>)> {
    let mut layers = Vec::new();
    let mut manifests = Vec::new();
    for offer in wire {
        layers.push(field(offer.layer, "layers.layer")?);
        manifests.push(ManifestBytes {
            bytes: offer.manifest.into(),
            signatures: offer.signatures.into_iter().map(Into::into).collect(),
        });
    }
    Ok((layers, manifests))
}

fn target(wire: Option<v1::desired_state::Target>) -> Result<(Target, Option<ManifestBytes>)> {
    use v1::desired_state::Target as Wire;
    Ok(match required(wire, "target")? {
        Wire::Install(install) => {
            let manifest = ManifestBytes {
                bytes: install.manifest.into(),
                signatures: install.signatures.into_iter().map(Into::into).collect(),
            };
            (Target::Install(field(install.release, "install.release")?), Some(manifest))
        }
        Wire::Stack(stack) => {
            let state: ComponentState = field(stack.base, "stack.base")?;
            (Target::Stack(state.base), None)
        }
        Wire::Restore(restore) => (Target::Restore(field(restore.state, "restore.state")?), None),
        Wire::Stay(_) => (Target::Stay, None),
    })
}

fn hold_before(wire: i32) -> Result<Option<Phase>> {
    if wire == i32::from(v1::UpgradeState::Unspecified) {
        return Ok(None);
    }
    match upgrade_state(wire, "hold_before")? {
        UpgradeState::Active(phase) => Ok(Some(phase)),
        UpgradeState::Ended(_) => Err(invalid("hold_before", "no upgrade waits before a terminal state")),
    }
}

impl From<&UpgradeReport> for v1::UpgradeReport {
    fn from(report: &UpgradeReport) -> Self {
        Self {
            upgrade: report.upgrade.to_string(),
            component: report.component.to_string(),
            sequence: report.sequence,
            state: v1::UpgradeState::from(report.state).into(),
            reason: Some((&report.reason).into()),
            event_time: Some(timestamp(report.time)),
            from: report.from.as_ref().map(Into::into),
            current: report.current.as_ref().map(Into::into),
            evidence: report.evidence.as_ref().map(Into::into),
            running_digest: report.running.as_ref().map(Into::into),
            generation: report.generation.number,
            epoch: report.generation.epoch,
            proof: report.proof.as_ref().map(Into::into),
            reload: report.reload.clone().unwrap_or_default(),
            interruption: report.interruption.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<v1::UpgradeReport> for UpgradeReport {
    type Error = Reason;

    fn try_from(wire: v1::UpgradeReport) -> Result<Self> {
        if wire.sequence == 0 {
            return Err(invalid("sequence", "it begins at 1"));
        }
        Ok(Self {
            upgrade: parse(&wire.upgrade, "upgrade")?,
            component: parse(&wire.component, "component")?,
            sequence: wire.sequence,
            generation: Generation { epoch: wire.epoch, number: wire.generation },
            state: upgrade_state(wire.state, "state")?,
            reason: field(wire.reason, "reason")?,
            time: time(&required(wire.event_time, "event_time")?),
            from: optional(wire.from, "from")?,
            current: optional(wire.current, "current")?,
            running: optional(wire.running_digest, "running_digest")?,
            evidence: wire.evidence.map(Into::into),
            proof: optional(wire.proof, "proof")?,
            reload: (!wire.reload.is_empty()).then_some(wire.reload),
            interruption: optional(wire.interruption, "interruption")?,
        })
    }
}

impl From<&ComponentInventory> for v1::ComponentInventory {
    fn from(inventory: &ComponentInventory) -> Self {
        let state = inventory.upgrade_state.map(v1::UpgradeState::from);
        Self {
            component: inventory.component.to_string(),
            current: Some((&inventory.current).into()),
            previous: inventory.previous.as_ref().map(Into::into),
            kept: all(&inventory.kept),
            kept_digests: all(&inventory.kept_digests),
            running_digest: inventory.running.as_ref().map(Into::into),
            healthy: inventory.healthy,
            hold: inventory.hold.as_ref().map(Into::into),
            drift: inventory.drift.as_ref().map(Into::into),
            epoch: inventory.generation.epoch,
            generation: inventory.generation.number,
            upgrade: inventory.upgrade.as_ref().map(ToString::to_string).unwrap_or_default(),
            upgrade_state: state.unwrap_or(v1::UpgradeState::Unspecified).into(),
            run_mode: inventory.run_mode.clone(),
            pid: inventory.pid.unwrap_or(0),
            hold_generation: inventory.hold_generation,
            change_time: inventory.changed.map(timestamp),
            changer: inventory.changer.clone(),
            failed_digests: all(&inventory.failed),
            proof: inventory.proof.as_ref().map(Into::into),
            alarms: all(&inventory.alarms),
            patchable: inventory.patchable,
        }
    }
}

impl TryFrom<v1::ComponentInventory> for ComponentInventory {
    type Error = Reason;

    fn try_from(wire: v1::ComponentInventory) -> Result<Self> {
        let state = match wire.upgrade_state {
            0 => None,
            state => Some(upgrade_state(state, "upgrade_state")?),
        };
        Ok(Self {
            component: parse(&wire.component, "component")?,
            current: field(wire.current, "current")?,
            previous: optional(wire.previous, "previous")?,
            kept: each(wire.kept, "kept")?,
            kept_digests: each(wire.kept_digests, "kept_digests")?,
            running: optional(wire.running_digest, "running_digest")?,
            healthy: wire.healthy,
            hold: optional(wire.hold, "hold")?,
            drift: optional(wire.drift, "drift")?,
            generation: Generation { epoch: wire.epoch, number: wire.generation },
            hold_generation: wire.hold_generation,
            upgrade: parse_optional(&wire.upgrade, "upgrade")?,
            upgrade_state: state,
            run_mode: wire.run_mode,
            pid: (wire.pid != 0).then_some(wire.pid),
            changed: wire.change_time.as_ref().map(time),
            changer: wire.changer,
            failed: each(wire.failed_digests, "failed_digests")?,
            proof: optional(wire.proof, "proof")?,
            alarms: each(wire.alarms, "alarms")?,
            patchable: wire.patchable,
        })
    }
}
