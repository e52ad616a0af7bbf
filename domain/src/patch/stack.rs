//! The algebra of stacks: what a change makes of a component's layers, or why it can't be made.
//!
//! One entry point, [`change`], for the controller's planner and for an agent that works without one; [`check`]
//! judges a stack as a whole, [`for_new_base`] carries one over to another base. Nothing here knows what a node's
//! files hold: that is [`super::judge`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::PatchSpec;
use crate::{
    digest::Digest,
    reason::{Reason, ReasonCode},
    state::{Layer, ReleaseRef},
};

mod base;
mod chain;
mod conflict;
mod force;
mod remove;

pub use base::{Carry, NewBase, for_new_base};
pub use conflict::{Ground, check};
pub use force::{Effective, effective};

/// The patches that are known, by the SHA-256 of their manifests: at least those of the stack and of the change. The
/// more are known, the longer the chains of parents that can be followed.
pub type Known = BTreeMap<Digest, PatchSpec>;

/// A change of a stack. Removals come first, then what is applied; the order within `apply` does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackChange {
    /// Patch releases to add.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub apply: Vec<ReleaseRef>,
    /// Numbers to take out, from wherever they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<u32>,
    /// Go back to this number: everything above it is taken out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_number: Option<u32>,
    /// Take everything out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub none: bool,
    /// A patch that another is built on may be taken out; it is then recorded as still contained.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub contained: bool,
}

/// What a change comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The whole stack afterwards, highest number first.
    pub layers: Vec<Layer>,
    /// What else is to be known: information only.
    pub notes: Vec<Reason>,
}

/// Makes a change of a stack, and checks the stack that comes of it.
///
/// # Errors
/// [`ReasonCode::NotInStack`], [`ReasonCode::StackBuiltOn`], [`ReasonCode::PatchRequires`],
/// [`ReasonCode::NumberTaken`], [`ReasonCode::PatchContained`], [`ReasonCode::NotFound`] where a patch of the stack
/// or the change is not among `known`, and what [`check`] finds.
pub fn change(
    current: &[Layer],
    change: &StackChange,
    known: &Known,
    ground: &Ground<'_>,
) -> Result<Changed, Reason> {
    let mut layers = remove::remove(current, change, known)?;
    for release in &change.apply {
        add(&mut layers, release, known)?;
    }
    let newcomers: Vec<u32> =
        change.apply.iter().filter_map(|r| Some(known.get(&r.manifest)?.number)).collect();
    force::refuse_contained(&layers, &newcomers, known)?;
    let notes = settle(current, &mut layers, known, ground)?;
    Ok(Changed { layers, notes })
}

/// Puts layers into order, retires what others supersede, and judges the whole.
fn settle(
    before: &[Layer],
    layers: &mut [Layer],
    known: &Known,
    ground: &Ground<'_>,
) -> Result<Vec<Reason>, Reason> {
    layers.sort_by_key(|layer| std::cmp::Reverse(layer.number));
    let mut notes = force::retire(before, layers, known)?;
    notes.extend(check(layers, known, ground)?);
    Ok(notes)
}

/// Puts one patch in. One that is there already stays as it is.
fn add(layers: &mut Vec<Layer>, release: &ReleaseRef, known: &Known) -> Result<(), Reason> {
    let number = spec(known, release)?.number;
    match layers.iter().find(|layer| layer.number == number) {
        Some(layer) if layer.release.manifest == release.manifest => Ok(()),
        Some(layer) => Err(Reason::new(ReasonCode::NumberTaken)
            .with("number", number)
            .with("component", &release.component)
            .with("release", &layer.release)),
        None => {
            layers.push(Layer { number, release: release.clone(), retired: false, contains: Vec::new() });
            Ok(())
        }
    }
}

/// The description of a patch release.
fn spec<'a>(known: &'a Known, release: &ReleaseRef) -> Result<&'a PatchSpec, Reason> {
    known
        .get(&release.manifest)
        .ok_or_else(|| Reason::new(ReasonCode::NotFound).with("what", "patch").with("name", release))
}

/// A stack for people: `10, 9 (retired), 7`, or `empty`.
#[must_use]
pub fn describe(layers: &[Layer]) -> String {
    if layers.is_empty() {
        return "empty".to_owned();
    }
    let name = |layer: &Layer| match layer.retired {
        true => format!("{} (retired)", layer.number),
        false => layer.number.to_string(),
    };
    layers.iter().map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
pub(crate) mod tests;
