//! A stack as the world needs it: each layer with what its manifest says and where its jar lies. Data only.

use std::path::PathBuf;

use upfleet_domain::{
    digest::Digest,
    patch::PatchSpec,
    state::{Layer, ReleaseRef, stack_digest},
};

/// A patch of a stack.
#[derive(Clone, Debug)]
pub struct Patch {
    /// The layer as recorded.
    pub layer: Layer,
    /// What it ships.
    pub spec: PatchSpec,
    /// Its verified jar among the component's versions. Absolute; its name does not end in `.jar`.
    pub jar: PathBuf,
}

/// A stack, and what is leaving it.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Its layers, highest number first, retired ones as well.
    pub layers: Vec<Patch>,
    /// Layers that were in force until now and are not any more.
    pub gone: Vec<Patch>,
}

impl View {
    /// The layers as recorded.
    #[must_use]
    pub fn recorded(&self) -> Vec<Layer> {
        self.layers.iter().map(|patch| patch.layer.clone()).collect()
    }

    /// What names the stack; `None` where nothing is in force.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        stack_digest(&self.recorded())
    }
}

/// A stack that is asked about before it is put in force.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The stack.
    pub stack: View,
    /// The base it is for; `None` where that is no release.
    pub base: Option<ReleaseRef>,
    /// The base's file, where it is not in the component's place yet.
    pub file: Option<PathBuf>,
    /// Whether the running JVM is to be patched.
    pub live: bool,
}
