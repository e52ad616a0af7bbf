//! Small records for the contracts.

use std::collections::{BTreeMap, BTreeSet};

use upfleet_domain::{
    digest::{Digest, Md5Digest},
    id::{NodeId, RolloutId, UpgradeId},
    order::{DesiredState, Generation, Target},
    reason::{Reason, ReasonCode},
    release::{ArtifactRef, Kind, Platform},
    report::{ComponentInventory, UpgradeReport},
    rollout::{Change as RolloutChange, NodeUpgrade, Plan, Policy, Restore, Rollout, Spec, State, Told},
    state::ComponentState,
    time::Time,
    upgrade::{Phase, UpgradeState},
};

use crate::store::*;

pub fn node_id(id: &str) -> NodeId {
    id.parse().unwrap()
}

pub fn node(id: &str) -> NodeRecord {
    NodeRecord {
        id: node_id(id),
        uid: format!("uid-{id}"),
        labels: BTreeMap::from([("env".to_owned(), "prod".to_owned())]),
        state: NodeState::Active,
        reason: None,
        platform: None,
        facts: BTreeMap::new(),
        created: Time(1),
        cert_expires: None,
        session: None,
        last_seen: None,
        revision: 0,
    }
}

pub fn put_node(id: &str) -> Change {
    Change::PutNode { node: node(id), expected: Expected::Absent }
}

pub fn audit(action: &str) -> Change {
    Change::Audit(AuditRecord {
        sequence: 0,
        actor: "users/anna".into(),
        request_id: "q".into(),
        action: action.into(),
        object: "nodes/a".into(),
        before: serde_json::json!(null),
        after: serde_json::json!({"labels": {}}),
        time: Time(7),
    })
}

pub fn request(id: &str, body: &[u8], response: &[u8]) -> Change {
    Change::Request(RequestRecord {
        principal: "users/anna".into(),
        id: id.into(),
        method: "CreateRollout".into(),
        body: Digest::of(body),
        response: response.to_vec(),
        time: Time(3),
    })
}

pub fn inventory(current: ComponentState) -> ComponentInventory {
    ComponentInventory {
        component: "web".parse().unwrap(),
        current,
        previous: None,
        kept: vec![],
        kept_digests: vec![],
        running: None,
        healthy: true,
        hold: None,
        drift: None,
        generation: Generation::default(),
        hold_generation: 0,
        upgrade: None,
        upgrade_state: None,
        run_mode: "supervised".into(),
        pid: None,
        changed: None,
        changer: "controller".into(),
        failed: vec![],
        proof: None,
        alarms: Vec::new(),
        patchable: false,
    }
}

pub fn desired(epoch: u64, number: u64, upgrade: Option<&str>) -> DesiredState {
    DesiredState {
        component: "web".parse().unwrap(),
        generation: Generation { epoch, number },
        rollout: None,
        upgrade: upgrade.map(|id| id.parse().unwrap()),
        target: Target::Stay,
        layers: vec![],
        live: false,
        hold_before: None,
        not_after: None,
        allow_downgrade: false,
        allow_failed_digest: false,
        soak: None,
        trace: String::new(),
        actor: String::new(),
    }
}

pub fn artifact(bytes: &[u8]) -> ArtifactRecord {
    let digest = Digest::of(bytes);
    let size = bytes.len() as u64;
    ArtifactRecord { digest, md5: Md5Digest([0; 16]), size, created: Time(5), creator: "users/ci".into() }
}

pub fn release(version: &str, sequence: u64) -> ReleaseRecord {
    let manifest = format!("manifest of {version}").into_bytes();
    ReleaseRecord {
        component: "web".parse().unwrap(),
        version: version.parse().unwrap(),
        sequence,
        digest: Digest::of(&manifest),
        manifest,
        signatures: vec![vec![1, 2]],
        kind: Kind::Binary,
        patch_number: None,
        fixes: vec![],
        notes: String::new(),
        artifacts: vec![ArtifactRef {
            platform: Platform { os: "linux".into(), arch: "amd64".into() },
            sha256: Digest::of(version.as_bytes()),
            md5: None,
            size: 1,
            sources: vec![],
            encodings: vec![],
        }],
        created: Time(5),
        creator: "users/ci".into(),
        yanked: None,
    }
}

pub fn quarantine(nodes: &[&str]) -> QuarantineRecord {
    QuarantineRecord {
        digest: Digest::of(b"bad"),
        component: "web".parse().unwrap(),
        nodes: nodes.iter().map(|id| node_id(id)).collect::<BTreeSet<_>>(),
        since: Time(5),
        lifted: None,
    }
}

pub fn certificate(serial: &str, subject: Subject) -> CertificateRecord {
    CertificateRecord {
        serial: serial.into(),
        subject,
        issued: Time(1),
        expires: Time(100),
        revoked: None,
        suspended: false,
        creator: "users/anna".into(),
    }
}

pub fn token(id: &str, node: Option<&str>) -> TokenRecord {
    TokenRecord {
        id: id.into(),
        secret_hash: Digest::of(b"secret"),
        node: node.map(node_id),
        labels: BTreeMap::new(),
        allow_replace: false,
        created: Time(1),
        expires: Time(100),
        creator: "users/anna".into(),
        used_by: None,
    }
}

pub fn use_token(id: &str, secret: &[u8], node: &str, time: i64) -> Change {
    Change::UseToken { id: id.into(), secret_hash: Digest::of(secret), node: node_id(node), time: Time(time) }
}

pub fn rollout_id(id: &str) -> RolloutId {
    id.parse().unwrap()
}

pub fn rollout(id: &str, created: i64) -> RolloutRecord {
    RolloutRecord::new(Rollout {
        id: rollout_id(id),
        spec: Spec {
            component: "web".parse().unwrap(),
            selector: "*".into(),
            change: RolloutChange::Restore(Restore::Previous),
            policy: Policy::default(),
            seed: 0,
        },
        plan_digest: Digest::of(b"plan"),
        release: None,
        max_unavailable: 1,
        state: State::Planned,
        reason: Reason::new(ReasonCode::RolloutPlanned),
        waves: vec![],
        pause: None,
        revert: None,
        deadline: None,
        revision: 0,
        state_revision: 0,
        created: Time(created),
        started: None,
        ended: None,
        creator: "users/anna".into(),
        message: String::new(),
        last_actor: String::new(),
        last_message: String::new(),
        reverts: None,
        reverted_by: None,
        live: false,
        restored: false,
    })
}

pub fn upgrade(node: &str, position: usize, id: Option<&str>) -> NodeUpgrade {
    NodeUpgrade {
        node: node_id(node),
        wave: 0,
        position,
        id: id.map(|id| id.parse::<UpgradeId>().unwrap()),
        attempt: 1,
        state: UpgradeState::Active(Phase::Pending),
        unreachable: false,
        reason: Reason::new(ReasonCode::WaitingForAgent),
        from: ComponentState::absent(),
        to: ComponentState::unmanaged(Digest::of(b"new")),
        current: None,
        generation: 1,
        sequence: 0,
        started: None,
        ended: None,
        evidence: None,
        revision: 0,
        told: Told::Nothing,
        offline_since: None,
        unhealthy: false,
        drift: None,
        excused: false,
        presumed: false,
        allow_failed_digest: false,
        proof: None,
        reload: None,
        interruption: None,
    }
}

pub fn create(id: &str, created: i64, upgrades: Vec<NodeUpgrade>) -> Change {
    let plan = Plan {
        upgrades: vec![],
        excluded: vec![],
        warnings: vec![format!("of {id}")],
        max_unavailable: 1,
        release: None,
        live: false,
        digest: Digest::of(b"plan"),
    };
    Change::CreateRollout { rollout: Box::new(rollout(id, created)), plan: Box::new(plan), upgrades }
}

pub fn report(node: &str, upgrade: &str, sequence: u64, state: UpgradeState) -> Change {
    let report = UpgradeReport {
        upgrade: upgrade.parse().unwrap(),
        component: "web".parse().unwrap(),
        sequence,
        generation: Generation { epoch: 1, number: 1 },
        state,
        reason: Reason::new(ReasonCode::Checking),
        time: Time(50),
        from: None,
        current: Some(ComponentState::absent()),
        running: None,
        evidence: None,
        proof: None,
        reload: None,
        interruption: None,
    };
    Change::RecordReport { node: node_id(node), report: Box::new(report), time: Time(60) }
}
