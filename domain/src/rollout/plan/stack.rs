//! Stacks in a plan: what a change makes of each node's layers, or why it can't be made there.
//!
//! What a stack amounts to is decided by `patch::stack`; this only asks it, once for all nodes that run the same.

use std::collections::BTreeMap;

use super::{NodeFacts, ReleaseFacts};
use crate::{
    digest::Digest,
    id::Version,
    patch::{
        PatchSpec,
        stack::{self, Carry, Changed, Ground, Known, NewBase},
    },
    reason::{Reason, ReasonCode},
    release::Platform,
    rollout::StackChange,
    state::{Base, ComponentState, Layer, ReleaseRef},
};

/// A fix that would be lost, with the number of the patch that has it.
pub(super) type Lost = (String, String);

/// Why a node's stack can't be made.
pub(super) enum No {
    /// The node is left out.
    Out(Box<Reason>),
    /// The whole plan is refused: these fixes would be lost.
    Lost(Vec<Lost>),
}

impl From<Box<Reason>> for No {
    fn from(reason: Box<Reason>) -> Self {
        Self::Out(reason)
    }
}

impl From<Reason> for No {
    fn from(reason: Reason) -> Self {
        Self::Out(Box::new(reason))
    }
}

/// A base release that is to be installed, for one node.
pub(super) struct ToBase<'a> {
    /// The release as it concerns the node.
    pub(super) release: &'a ReleaseRef,
    /// Which patches stand on it: those named, or what is valid of the present ones.
    pub(super) named: Option<&'a [Version]>,
    /// Fixes that may be lost.
    pub(super) waived: &'a [String],
}

/// The patches of the component that are known, and what was decided with them.
pub(super) struct Stacks<'f> {
    patches: &'f [ReleaseFacts],
    base: Option<&'f ReleaseFacts>,
    known: Known,
    /// Many nodes run the same: what a change comes to, by what it starts from.
    decided: BTreeMap<String, Result<Changed, Reason>>,
}

impl<'f> Stacks<'f> {
    pub(super) fn new(patches: &'f [ReleaseFacts], base: Option<&'f ReleaseFacts>) -> Self {
        let spec = |facts: &ReleaseFacts| Some((facts.digest, facts.manifest.patch.clone()?));
        let known = patches.iter().filter_map(spec).collect();
        Self { patches, base, known, decided: BTreeMap::new() }
    }

    /// The facts of a patch release; the caller has checked that each named one is there.
    pub(super) fn named(&self, version: &Version) -> Option<&'f ReleaseFacts> {
        self.patches.iter().find(|facts| facts.manifest.version == *version)
    }

    /// The description of a layer's patch, where it is known.
    pub(super) fn spec(&self, layer: &Layer) -> Option<&PatchSpec> {
        self.known.get(&layer.release.manifest)
    }

    /// The layers that a change of the stack leads to.
    pub(super) fn change(
        &mut self,
        node: &NodeFacts,
        current: &ComponentState,
        change: &StackChange,
    ) -> Result<Changed, No> {
        if current.base == Base::Absent {
            let reason = Reason::new(ReasonCode::WrongBase).with("expected", "any release");
            return Err(reason.with("actual", current).into());
        }
        // Taking all off asks nothing of any patch.
        if change.none && change.apply.is_empty() {
            return Ok(Changed { layers: Vec::new(), notes: Vec::new() });
        }
        self.all_known(current)?;
        let key = key(node, current);
        if let Some(decided) = self.decided.get(&key) {
            return decided.clone().map_err(No::from);
        }
        let base = match &current.base {
            Base::Release(release) => Some(release),
            Base::Absent | Base::Unmanaged { .. } => None,
        };
        let wanted = stack::StackChange {
            apply: self.references(&change.apply, node.platform.as_ref())?,
            remove: change.remove.clone(),
            to_number: change.to_number,
            none: change.none,
            contained: change.contained,
        };
        let ground = Ground { base, java: node.java };
        let decided = stack::change(&current.layers, &wanted, &self.known, &ground);
        self.decided.insert(key, decided.clone());
        decided.map_err(No::from)
    }

    /// The layers that go with another base.
    pub(super) fn onto(
        &mut self,
        node: &NodeFacts,
        current: &ComponentState,
        to: &ToBase<'_>,
    ) -> Result<Changed, No> {
        if to.named.is_none() {
            let same =
                matches!(&current.base, Base::Release(release) if release.artifact == to.release.artifact);
            if same || current.layers.is_empty() {
                return Ok(Changed { layers: current.layers.clone(), notes: Vec::new() });
            }
        }
        self.all_known(current)?;
        let fixes = self.base.map_or(&[][..], |base| &base.manifest.fixes);
        let carry = match to.named {
            Some(named) => Carry::Named(self.references(named, node.platform.as_ref())?),
            None => Carry::Valid,
        };
        let key = key(node, current);
        let decided = match self.decided.get(&key) {
            Some(decided) => decided.clone(),
            None => {
                let base = NewBase { release: to.release, fixes, java: node.java };
                let decided = stack::for_new_base(&current.layers, &base, &carry, to.waived, &self.known);
                self.decided.insert(key, decided.clone());
                decided
            }
        };
        match decided {
            Err(reason) if reason.code == ReasonCode::FixLost => {
                let base = NewBase { release: to.release, fixes, java: node.java };
                Err(No::Lost(self.lost(&current.layers, &base, &carry, to.waived)))
            }
            decided => decided.map_err(No::from),
        }
    }

    /// All fixes that would be lost: a person decides once, not fix by fix.
    fn lost(&self, current: &[Layer], base: &NewBase<'_>, carry: &Carry, waived: &[String]) -> Vec<Lost> {
        let (mut waived, mut lost) = (waived.to_vec(), Vec::new());
        while let Err(reason) = stack::for_new_base(current, base, carry, &waived, &self.known) {
            let value = |key: &str| reason.metadata.get(key).cloned().unwrap_or_default();
            let fix = value("fix");
            if reason.code != ReasonCode::FixLost || waived.contains(&fix) {
                break;
            }
            lost.push((fix.clone(), value("number")));
            waived.push(fix);
        }
        lost
    }

    /// A patch that was put on by hand, from a file, may be of a release that was never published here.
    fn all_known(&self, current: &ComponentState) -> Result<(), No> {
        match current.layers.iter().find(|layer| self.spec(layer).is_none()) {
            None => Ok(()),
            Some(layer) => Err(Reason::new(ReasonCode::PatchUnknown)
                .with("number", layer.number)
                .with("release", &layer.release)
                .into()),
        }
    }

    fn references(&self, versions: &[Version], platform: Option<&Platform>) -> Result<Vec<ReleaseRef>, No> {
        let named = versions.iter().filter_map(|version| self.named(version));
        named.map(|facts| Ok(super::reference(facts, platform)?)).collect()
    }

    /// Whether every patch that comes into force or goes out of it can do so in a running JVM.
    pub(super) fn live(&self, from: &ComponentState, to: &ComponentState) -> Result<(), No> {
        let there =
            |state: &ComponentState, layer: &Layer| state.active().any(|other| other.number == layer.number);
        let added = to.active().filter(|layer| !there(from, layer));
        let gone = from.active().filter(|layer| !there(to, layer));
        for layer in added.chain(gone) {
            let Some(spec) = self.spec(layer) else { continue };
            spec.takes_live()?;
        }
        Ok(())
    }

    /// On how many nodes a digest rolled back, where that has quarantined it, and the release it is of.
    pub(super) fn quarantined(&self, digest: &Digest) -> Option<(&'f ReleaseFacts, usize)> {
        let mut all = self.base.into_iter().chain(self.patches);
        all.find_map(|facts| Some((facts, *facts.quarantined.get(digest)?)))
    }
}

fn key(node: &NodeFacts, current: &ComponentState) -> String {
    serde_json::to_string(&(current, &node.platform, node.java)).expect("a state is plain data")
}

/// The one refusal for all nodes on which fixes would be lost.
pub(super) fn refuse(lost: &[(crate::id::NodeId, Vec<Lost>)], release: impl std::fmt::Display) -> Reason {
    /// So many nodes are named.
    const NAMED: usize = 10;
    let each = |part: fn(&Lost) -> &String| {
        let mut all: Vec<&str> = Vec::new();
        for one in lost.iter().flat_map(|(_, lost)| lost) {
            if !all.contains(&part(one).as_str()) {
                all.push(part(one));
            }
        }
        all.join(", ")
    };
    let mut nodes: Vec<&str> = lost.iter().map(|(node, _)| node.as_str()).collect();
    nodes.sort_unstable();
    let more = nodes.len().saturating_sub(NAMED);
    nodes.truncate(NAMED);
    let mut names = nodes.join(", ");
    if more > 0 {
        names.push_str(&format!(" and {more} more"));
    }
    Reason::new(ReasonCode::FixLost)
        .with("fix", each(|lost| &lost.0))
        .with("number", each(|lost| &lost.1))
        .with("nodes", names)
        .with("release", release)
}
