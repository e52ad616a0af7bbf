//! Made-up fleets: the same size gives the same fleet, with the variety that a planner meets.

use std::collections::BTreeMap;

use upfleet_domain::{
    digest::Digest,
    id::{ComponentId, NodeId, Version},
    order::Generation,
    release::{ArtifactRef, FORMAT, Kind, Manifest, Platform},
    report::ComponentInventory,
    rollout::{
        Change, Policy, Spec,
        plan::{Fleet, NodeFacts, ReleaseFacts},
    },
    state::{ComponentState, ReleaseRef},
};

/// The component that every node has.
pub const COMPONENT: &str = "payments";

/// `nodes` nodes in three environments; one in ten is offline, one in a hundred cordoned, one in fifty runs
/// the new release already.
#[must_use]
pub fn fleet(nodes: usize) -> Fleet {
    let release = release("2.0.0", 2);
    let old = state(&self::release("1.0.0", 1));
    let new = state(&release);
    Fleet {
        nodes: (0..nodes).map(|index| node(index, if index % 50 == 7 { &new } else { &old })).collect(),
        release: Some(release),
        ..Fleet::default()
    }
}

/// The install of 2.0.0 on every node of the first environment.
#[must_use]
pub fn spec(selector: &str) -> Spec {
    Spec {
        component: component(),
        selector: selector.to_owned(),
        change: Change::Install {
            version: version("2.0.0"),
            allow_downgrade: false,
            allow_failed_digest: false,
        },
        policy: Policy::default(),
        seed: 42,
    }
}

fn component() -> ComponentId {
    COMPONENT.parse().expect("the name is valid")
}

fn version(text: &str) -> Version {
    text.parse().expect("versions here are valid")
}

fn platform() -> Platform {
    Platform { os: "linux".to_owned(), arch: "amd64".to_owned() }
}

fn release(text: &str, sequence: u64) -> ReleaseFacts {
    let artifact = ArtifactRef {
        platform: platform(),
        sha256: Digest::of(text.as_bytes()),
        md5: None,
        size: 10 << 20,
        sources: Vec::new(),
        encodings: Vec::new(),
    };
    let manifest = Manifest {
        format: FORMAT,
        component: component(),
        version: version(text),
        sequence,
        kind: Kind::Binary,
        notes: String::new(),
        artifacts: vec![artifact],
        fixes: Vec::new(),
        patch: None,
        files: None,
    };
    let digest = Digest::of(&manifest.to_bytes());
    ReleaseFacts { manifest, digest, quarantined: BTreeMap::new() }
}

fn state(release: &ReleaseFacts) -> ComponentState {
    ComponentState::release(ReleaseRef {
        component: component(),
        version: release.manifest.version.clone(),
        sequence: release.manifest.sequence,
        manifest: release.digest,
        artifact: release.manifest.artifacts[0].sha256,
    })
}

fn node(index: usize, current: &ComponentState) -> NodeFacts {
    let environments = ["prod", "stage", "test"];
    let label = |key: &str, value: String| (key.to_owned(), value);
    NodeFacts {
        id: NodeId::new(format!("node-{index:06}")).expect("the name is valid"),
        labels: [
            label("env", environments[index % environments.len()].to_owned()),
            label("rack", format!("r{}", index / 40)),
        ]
        .into(),
        platform: Some(platform()),
        cordoned: index % 100 == 99,
        suspended: false,
        online: index % 10 != 3,
        component: Some(inventory(current)),
        other_rollout: None,
        java: None,
    }
}

fn inventory(current: &ComponentState) -> ComponentInventory {
    ComponentInventory {
        component: component(),
        current: current.clone(),
        previous: None,
        kept: Vec::new(),
        kept_digests: Vec::new(),
        running: current.artifact(),
        healthy: true,
        hold: None,
        drift: None,
        generation: Generation::default(),
        hold_generation: 0,
        upgrade: None,
        upgrade_state: None,
        run_mode: "supervised".to_owned(),
        pid: Some(4711),
        changed: None,
        changer: String::new(),
        failed: Vec::new(),
        proof: None,
        alarms: Vec::new(),
        patchable: false,
    }
}

#[cfg(test)]
mod tests {
    use upfleet_domain::rollout::plan::plan;

    use super::*;

    #[test]
    fn every_node_is_planned_or_left_out_with_a_reason() {
        let fleet = fleet(1000);
        let plan = plan(&spec("*"), &fleet).unwrap();
        assert_eq!(plan.upgrades.len() + plan.excluded.len(), 1000);
        // One in a hundred is cordoned, one in fifty current already.
        assert_eq!(plan.excluded.len(), 30);
    }

    #[test]
    fn a_selector_narrows() {
        let plan = plan(&spec("env=prod"), &fleet(999)).unwrap();
        assert_eq!(plan.upgrades.len() + plan.excluded.len(), 333);
    }

    #[test]
    fn the_same_fleet_gives_the_same_plan() {
        let digest = |nodes| plan(&spec("*"), &fleet(nodes)).unwrap().digest;
        assert_eq!(digest(500), digest(500));
        assert_ne!(digest(500), digest(501));
    }
}
