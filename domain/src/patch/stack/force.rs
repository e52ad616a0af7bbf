//! What of a stack is in force: which patches retire, and which patch's class runs.

use std::collections::{BTreeMap, BTreeSet};

use super::{Known, chain, spec};
use crate::{
    patch::{PatchSpec, PatchedClass},
    reason::{Reason, ReasonCode},
    state::Layer,
};

/// The class that runs in place of the application's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effective<'a> {
    /// The patch that it comes from.
    pub number: u32,
    /// What the patch says of it.
    pub class: &'a PatchedClass,
}

/// For each patched class the one in force: that of the highest number that is not retired. Layers whose patch is not
/// known are passed over.
#[must_use]
pub fn effective<'a>(layers: &[Layer], known: &'a Known) -> BTreeMap<&'a str, Effective<'a>> {
    let mut map = BTreeMap::new();
    let mut active: Vec<&Layer> = layers.iter().filter(|layer| !layer.retired).collect();
    active.sort_by_key(|layer| layer.number);
    for layer in active {
        for class in known.get(&layer.release.manifest).map_or(&[][..], |spec| &spec.classes) {
            map.insert(class.name.as_str(), Effective { number: layer.number, class });
        }
    }
    map
}

/// Sets `retired` for each layer, and notes what that changes.
///
/// A patch retires when one above it in the stack supersedes it: says so, or fixes all that it fixes and ships all
/// that it ships. That holds over a third: what a superseded patch had superseded stays retired.
pub(super) fn retire(before: &[Layer], layers: &mut [Layer], known: &Known) -> Result<Vec<Reason>, Reason> {
    let specs: Vec<PatchSpec> =
        layers.iter().map(|layer| spec(known, &layer.release).cloned()).collect::<Result<_, _>>()?;
    let mut notes = Vec::new();
    for (layer, own) in layers.iter_mut().zip(&specs) {
        let old = before.iter().find(|old| old.number == layer.number);
        let was_retired = old.is_some_and(|old| old.retired);
        let successor = specs.iter().find(|other| supersedes(other, own));
        layer.retired = successor.is_some();
        if let (Some(other), false) = (successor, was_retired) {
            let note = Reason::new(ReasonCode::PatchRetired);
            notes.push(note.with("number", layer.number).with("other", other.number));
        } else if was_retired && successor.is_none() {
            notes.push(Reason::new(ReasonCode::PatchBack).with("number", layer.number));
        }
        let superset = specs.iter().find(|other| other.number > own.number && fixes_all(other, own));
        if let (None, Some(other)) = (successor, superset) {
            let note = Reason::new(ReasonCode::PatchSuperset);
            notes.push(note.with("number", layer.number).with("other", other.number));
        }
    }
    Ok(notes)
}

/// Whether `upper` makes `lower` superfluous.
pub(super) fn supersedes(upper: &PatchSpec, lower: &PatchSpec) -> bool {
    upper.number > lower.number
        && (upper.supersedes.contains(&lower.number) || (fixes_all(upper, lower) && ships_all(upper, lower)))
}

/// Whether `upper` lists every fix of `lower`, which has some.
pub(super) fn fixes_all(upper: &PatchSpec, lower: &PatchSpec) -> bool {
    let fixes: BTreeSet<&str> = upper.fixes.iter().map(|fix| fix.id.as_str()).collect();
    !lower.fixes.is_empty() && lower.fixes.iter().all(|fix| fixes.contains(fix.id.as_str()))
}

fn ships_all(upper: &PatchSpec, lower: &PatchSpec) -> bool {
    let has = |name: &String| upper.resources.iter().any(|resource| resource.name == *name);
    let ships = |name: &str| upper.class(name).is_some() || upper.removed.iter().any(|gone| gone == name);
    lower.classes.iter().all(|class| ships(&class.name)) && lower.resources.iter().all(|r| has(&r.name))
}

/// Refuses newcomers that would change nothing: contained in another patch of the stack.
///
/// # Errors
/// [`ReasonCode::PatchContained`].
pub(super) fn refuse_contained(layers: &[Layer], newcomers: &[u32], known: &Known) -> Result<(), Reason> {
    for number in newcomers {
        let Some(own) = layers.iter().find(|layer| layer.number == *number) else { continue };
        let own = spec(known, &own.release)?;
        // Several that are applied together may well supersede each other.
        for layer in layers.iter().filter(|layer| !newcomers.contains(&layer.number)) {
            let other = spec(known, &layer.release)?;
            if layer.contains.contains(number) || contains(other, own, known) {
                return Err(Reason::new(ReasonCode::PatchContained)
                    .with("number", number)
                    .with("other", layer.number));
            }
        }
    }
    Ok(())
}

/// Whether `other` makes the newcomer `own` superfluous. One that is built on the other is more than that, and so is a
/// later one for just the same issues.
fn contains(other: &PatchSpec, own: &PatchSpec, known: &Known) -> bool {
    if other.number > own.number {
        return fixes_all(other, own) || other.supersedes.contains(&own.number);
    }
    fixes_all(other, own)
        && !fixes_all(own, other)
        && !own.supersedes.contains(&other.number)
        && !chain::built_on(own, other, known)
}
