//! Artifacts, releases and quarantines.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use upfleet_domain::{
    digest::{Digest, Md5Digest},
    id::{ComponentId, NodeId, RolloutId, Version},
    patch::Fix,
    release::{ArtifactRef, Kind},
    time::Time,
};

/// Immutable bytes in the artifact store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRecord {
    /// SHA-256.
    pub digest: Digest,
    /// MD5, for people who compare with older tools.
    pub md5: Md5Digest,
    /// Length in bytes.
    pub size: u64,
    /// When it was committed.
    pub created: Time,
    /// Who committed it.
    pub creator: String,
}

/// A release taken out of use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Yank {
    /// When.
    pub time: Time,
    /// Who.
    pub actor: String,
    /// Why.
    pub message: String,
}

/// A published release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRecord {
    /// The component.
    pub component: ComponentId,
    /// The version as people see it.
    pub version: Version,
    /// Orders releases of the component.
    pub sequence: u64,
    /// SHA-256 of `manifest`.
    pub digest: Digest,
    /// The manifest's bytes, verbatim; empty where only the rest was asked for.
    #[serde(skip)]
    pub manifest: Vec<u8>,
    /// Detached signatures over `manifest`.
    pub signatures: Vec<Vec<u8>>,
    /// How it takes effect.
    pub kind: Kind,
    /// Of a patch: its number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch_number: Option<u32>,
    /// The issues that it fixes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fixes: Vec<Fix>,
    /// Release notes.
    pub notes: String,
    /// The artifact of each platform.
    pub artifacts: Vec<ArtifactRef>,
    /// When it was created.
    pub created: Time,
    /// Who created it.
    pub creator: String,
    /// Set once it is taken out of use.
    pub yanked: Option<Yank>,
}

impl ReleaseRecord {
    /// As people name it: `component@version`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}@{}", self.component, self.version)
    }
}

/// A digest that failed on several nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineRecord {
    /// The artifact.
    pub digest: Digest,
    /// The component it failed as.
    pub component: ComponentId,
    /// The nodes where it failed.
    pub nodes: BTreeSet<NodeId>,
    /// Since when.
    pub since: Time,
    /// Set once a person lifted it: when, who, why.
    pub lifted: Option<Yank>,
}

/// A digest that rolled back on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestFailure {
    /// The artifact.
    pub digest: Digest,
    /// The node.
    pub node: NodeId,
    /// The component.
    pub component: ComponentId,
    /// The rollout in which it failed last.
    pub rollout: RolloutId,
    /// When it failed last.
    pub time: Time,
}
