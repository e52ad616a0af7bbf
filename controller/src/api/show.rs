//! The controller's records as the wire shows them.

use upfleet_api::{convert, v1};

use crate::{
    auth::role_to_wire,
    ops::{FixView, JvmView, NodeView, PatchCount, ReleaseView, Standing},
    store::{
        ArtifactRecord, CertificateRecord, ComponentRecord, HistoryRecord, NodeState, Subject, TokenRecord,
    },
};

pub(super) fn node_state(state: NodeState) -> v1::node::State {
    match state {
        NodeState::Active => v1::node::State::Active,
        NodeState::Cordoned => v1::node::State::Cordoned,
        NodeState::Suspended => v1::node::State::Suspended,
        NodeState::Retired => v1::node::State::Retired,
    }
}

pub(super) fn node_state_from(state: v1::node::State) -> Option<NodeState> {
    match state {
        v1::node::State::Unspecified => None,
        v1::node::State::Active => Some(NodeState::Active),
        v1::node::State::Cordoned => Some(NodeState::Cordoned),
        v1::node::State::Suspended => Some(NodeState::Suspended),
        v1::node::State::Retired => Some(NodeState::Retired),
    }
}

pub(super) fn node(view: &NodeView) -> v1::Node {
    let node = &view.node;
    v1::Node {
        name: format!("nodes/{}", node.id),
        uid: node.uid.clone(),
        labels: node.labels.clone(),
        state: node_state(node.state).into(),
        online: node.online(),
        last_seen_time: node.last_seen.map(convert::timestamp),
        create_time: Some(convert::timestamp(node.created)),
        platform: node.platform.as_ref().map(Into::into),
        facts: node.facts.clone(),
        components: view.components.iter().map(node_component).collect(),
        reason: node.reason.as_ref().map(Into::into),
        etag: node.revision.to_string(),
        certificate_expire_time: node.cert_expires.map(convert::timestamp),
    }
}

fn node_component(record: &ComponentRecord) -> v1::NodeComponent {
    let inventory = &record.inventory;
    let state = inventory.upgrade_state.map_or(v1::UpgradeState::Unspecified, Into::into);
    v1::NodeComponent {
        component: inventory.component.to_string(),
        current: Some((&inventory.current).into()),
        previous: inventory.previous.as_ref().map(Into::into),
        kept: convert::all(&inventory.kept),
        running_digest: inventory.running.as_ref().map(Into::into),
        healthy: inventory.healthy,
        hold: inventory.hold.as_ref().map(Into::into),
        drift: inventory.drift.as_ref().map(Into::into),
        change_time: inventory.changed.map(convert::timestamp),
        changer: record.changed_by.clone(),
        rollout: record.rollout.as_ref().map(|rollout| format!("rollouts/{rollout}")).unwrap_or_default(),
        upgrade: inventory.upgrade.as_ref().map(ToString::to_string).unwrap_or_default(),
        upgrade_state: state.into(),
        run_mode: inventory.run_mode.clone(),
        pid: inventory.pid.unwrap_or(0),
        proof: inventory.proof.as_ref().map(Into::into),
        alarms: convert::all(&inventory.alarms),
        patchable: inventory.patchable,
    }
}

/// A release; without the manifest's bytes in lists.
pub(super) fn release(view: &ReleaseView, with_manifest: bool) -> v1::Release {
    let release = &view.release;
    let reference = v1::ReleaseRef {
        component: release.component.to_string(),
        version: release.version.to_string(),
        sequence: release.sequence,
        manifest_digest: Some((&release.digest).into()),
        artifact_digest: None,
    };
    let artifacts = release.artifacts.iter().map(|artifact| v1::ReleaseArtifact {
        platform: Some((&artifact.platform).into()),
        digest: Some((&artifact.sha256).into()),
        md5_digest: artifact.md5.as_ref().map(Into::into),
        size_bytes: artifact.size,
        sources: artifact.sources.clone(),
    });
    v1::Release {
        name: format!("releases/{}", release.name()),
        r#ref: Some(reference),
        manifest: if with_manifest { release.manifest.clone().into() } else { Default::default() },
        signatures: release.signatures.iter().map(|signature| signature.clone().into()).collect(),
        kind: release.kind.as_str().to_owned(),
        artifacts: artifacts.collect(),
        create_time: Some(convert::timestamp(release.created)),
        creator: release.creator.clone(),
        yank_time: release.yanked.as_ref().map(|yank| convert::timestamp(yank.time)),
        yank_message: release.yanked.as_ref().map(|yank| yank.message.clone()).unwrap_or_default(),
        quarantined_digests: convert::all(&view.quarantined),
        notes: release.notes.clone(),
        patch_number: release.patch_number.unwrap_or(0),
        fixes: convert::all(&release.fixes),
    }
}

pub(super) fn jvm(view: &JvmView) -> v1::NodeJvm {
    v1::NodeJvm { node: format!("nodes/{}", view.node), jvm: Some((&view.jvm).into()) }
}

pub(super) fn history(record: &HistoryRecord) -> v1::NodeHistoryEntry {
    v1::NodeHistoryEntry {
        component: record.component.to_string(),
        time: Some(convert::timestamp(record.time)),
        from: Some((&record.from).into()),
        to: Some((&record.to).into()),
        state: v1::UpgradeState::from(record.state).into(),
        reason: Some((&record.reason).into()),
        rollout: record.rollout.as_ref().map(|rollout| format!("rollouts/{rollout}")).unwrap_or_default(),
        actor: record.actor.clone(),
    }
}

pub(super) fn fix_state(view: &FixView) -> v1::FixState {
    use v1::fix_state::State;
    let state = match view.standing {
        Standing::Lacks => State::Lacks,
        Standing::Unproved => State::Unproved,
        Standing::Patched => State::Patched,
        Standing::InBase => State::InBase,
    };
    v1::FixState {
        node: format!("nodes/{}", view.node),
        component: view.component.to_string(),
        state: state.into(),
        number: view.number.unwrap_or(0),
        current: Some((&view.current).into()),
        reason: view.reason.as_ref().map(Into::into),
        online: view.online,
    }
}

pub(super) fn patch_count(count: &PatchCount) -> v1::PatchCount {
    v1::PatchCount {
        component: count.component.to_string(),
        release: format!("releases/{}", count.release),
        number: count.number,
        active: count.active,
        proved: count.proved,
        retired: count.retired,
        nodes: count.nodes,
    }
}

pub(super) fn artifact(record: &ArtifactRecord, releases: Vec<String>) -> v1::Artifact {
    v1::Artifact {
        name: format!("artifacts/{}", record.digest),
        digest: Some((&record.digest).into()),
        md5_digest: Some((&record.md5).into()),
        size_bytes: record.size,
        create_time: Some(convert::timestamp(record.created)),
        creator: record.creator.clone(),
        releases,
    }
}

pub(super) fn token(record: &TokenRecord) -> v1::EnrollmentToken {
    v1::EnrollmentToken {
        name: format!("enrollmentTokens/{}", record.id),
        node: record.node.as_ref().map(ToString::to_string).unwrap_or_default(),
        labels: record.labels.clone(),
        create_time: Some(convert::timestamp(record.created)),
        expire_time: Some(convert::timestamp(record.expires)),
        creator: record.creator.clone(),
    }
}

pub(super) fn user(record: &CertificateRecord) -> v1::User {
    let role = match &record.subject {
        Subject::User { role, .. } => role_to_wire(*role),
        Subject::Node(_) | Subject::Controller => v1::Role::Unspecified,
    };
    v1::User {
        name: format!("users/{}", record.subject.id()),
        role: role.into(),
        serial: record.serial.clone(),
        create_time: Some(convert::timestamp(record.issued)),
        expire_time: Some(convert::timestamp(record.expires)),
        revoke_time: record.revoked.map(convert::timestamp),
        creator: record.creator.clone(),
    }
}
