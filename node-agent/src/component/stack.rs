//! A stack as the world needs it: each layer with what its manifest says and where its jar lies. Data only.

use std::path::PathBuf;

use upfleet_domain::{digest::Digest, patch::PatchSpec, state::Layer, state::stack_digest};

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
