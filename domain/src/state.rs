//! What a component runs: a base and the ordered layers on it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    id::{ComponentId, Version},
};

/// One release, named so that nothing about it is left open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRef {
    /// The component the release moves.
    pub component: ComponentId,
    /// The version as people see it.
    pub version: Version,
    /// Orders releases of a component; a lower one is a downgrade.
    pub sequence: u64,
    /// SHA-256 of the manifest's bytes: the release's identity.
    pub manifest: Digest,
    /// SHA-256 of the artifact for the node's platform.
    pub artifact: Digest,
}

impl fmt::Display for ReleaseRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.component, self.version)
    }
}

/// The ground a component stands on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// Nothing is installed. Rolling a first install back leads here.
    Absent,
    /// A release is installed.
    Release(ReleaseRef),
    /// A file from before Upfleet, adopted by its digest.
    Unmanaged {
        /// SHA-256 of the file.
        digest: Digest,
    },
}

/// A patch on the base. Components of kind `binary` have none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The patch number; higher numbers take precedence.
    pub number: u32,
    /// The patch release.
    pub release: ReleaseRef,
    /// Another patch of the stack supersedes it: it is not in force, and comes back when that one is removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retired: bool,
    /// Numbers of patches that were removed although this one is built on them, so that their fixes stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contains: Vec<u32>,
}

/// What a component runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentState {
    /// The base.
    pub base: Base,
    /// Patches over it, highest number first.
    #[serde(default)]
    pub layers: Vec<Layer>,
}

impl ComponentState {
    /// Nothing is installed.
    #[must_use]
    pub fn absent() -> Self {
        Self { base: Base::Absent, layers: Vec::new() }
    }

    /// A release without layers.
    #[must_use]
    pub fn release(release: ReleaseRef) -> Self {
        Self { base: Base::Release(release), layers: Vec::new() }
    }

    /// An adopted file.
    #[must_use]
    pub fn unmanaged(digest: Digest) -> Self {
        Self { base: Base::Unmanaged { digest }, layers: Vec::new() }
    }

    /// SHA-256 of the base's artifact; `None` where nothing is installed.
    #[must_use]
    pub fn artifact(&self) -> Option<Digest> {
        match &self.base {
            Base::Absent => None,
            Base::Release(release) => Some(release.artifact),
            Base::Unmanaged { digest } => Some(*digest),
        }
    }

    /// SHA-256 that names the layers in force; `None` where there are none.
    #[must_use]
    pub fn stack(&self) -> Option<Digest> {
        stack_digest(&self.layers)
    }

    /// The layers in force, highest number first.
    pub fn active(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().filter(|layer| !layer.retired)
    }

    /// The sequence that downgrades are told by; `None` for what is no release.
    #[must_use]
    pub fn sequence(&self) -> Option<u64> {
        match &self.base {
            Base::Release(release) => Some(release.sequence),
            Base::Absent | Base::Unmanaged { .. } => None,
        }
    }

    /// The artifacts in force that `other` has not even among its retired patches: what is new to somebody who goes
    /// there from `other`.
    #[must_use]
    pub fn beyond(&self, other: &Self) -> Vec<Digest> {
        let has = |digest: &Digest| {
            let layer = |layer: &Layer| layer.release.artifact == *digest;
            other.artifact() == Some(*digest) || other.layers.iter().any(layer)
        };
        let layers = self.active().map(|layer| layer.release.artifact);
        self.artifact().into_iter().chain(layers).filter(|digest| !has(digest)).collect()
    }

    /// Whether both have the same bytes in force: the same artifact and the same layers, whatever their names.
    #[must_use]
    pub fn same_content(&self, other: &Self) -> bool {
        let layers =
            |state: &Self| -> Vec<Digest> { state.active().map(|layer| layer.release.artifact).collect() };
        self.artifact() == other.artifact() && layers(self) == layers(other)
    }
}

/// SHA-256 that names a stack by what is in force of it: numbers and artifacts, highest number first. `None` where
/// nothing is.
#[must_use]
pub fn stack_digest(layers: &[Layer]) -> Option<Digest> {
    use fmt::Write as _;
    let mut text = String::from("upfleet stack 1\n");
    let head = text.len();
    for layer in layers.iter().filter(|layer| !layer.retired) {
        let _ = writeln!(text, "{} {}", layer.number, layer.release.artifact);
    }
    (text.len() > head).then(|| Digest::of(text.as_bytes()))
}

impl fmt::Display for ComponentState {
    /// As people see it: `1.4.2`, `1.4.2+patch10,9`, `absent` or `unmanaged@9f2c3a…`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.base {
            Base::Absent => write!(f, "absent")?,
            Base::Release(release) => write!(f, "{}", release.version)?,
            Base::Unmanaged { digest } => write!(f, "unmanaged@{}", digest.short())?,
        }
        for (index, layer) in self.active().enumerate() {
            write!(f, "{}{}", if index == 0 { "+patch" } else { "," }, layer.number)?;
        }
        Ok(())
    }
}
