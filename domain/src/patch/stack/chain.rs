//! What a patch's classes are built from: chains of parents.

use super::Known;
use crate::patch::PatchSpec;

/// How one patch's class relates to an earlier patch's class of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Descent {
    /// It has the same bytes or was built from them, directly or over patches in between.
    From,
    /// Its parents end, at a base or at the beginning, without leading there.
    Other,
    /// Its parents lead to bytes that no known patch ships and no base is known to have.
    Unknown,
}

/// Follows `upper`'s class `name` back, and tells whether `lower`'s is among its ancestors.
pub(super) fn descent(upper: &PatchSpec, lower: &PatchSpec, name: &str, known: &Known) -> Descent {
    let (Some(class), Some(ancestor)) = (upper.class(name), lower.class(name)) else { return Descent::Other };
    if class.patched == ancestor.patched {
        return Descent::From;
    }
    let mut parent = class.parent;
    let mut accepts = &class.accepts;
    // Each patch is passed at most once, so that a forged circle of parents ends.
    for _ in 0..=known.len() {
        let Some(digest) = parent else { return Descent::Other };
        if digest == ancestor.patched {
            return Descent::From;
        }
        if accepts.contains(&digest) {
            return Descent::Other;
        }
        let shipped = |spec: &&PatchSpec| spec.class(name).is_some_and(|class| class.patched == digest);
        let Some(next) = known.values().find(shipped).and_then(|spec| spec.class(name)) else {
            return Descent::Unknown;
        };
        parent = next.parent;
        accepts = &next.accepts;
    }
    Descent::Other
}

/// Whether any class of `upper` is built from one of `lower`.
pub(super) fn built_on(upper: &PatchSpec, lower: &PatchSpec, known: &Known) -> bool {
    upper.number > lower.number
        && upper.classes.iter().any(|class| {
            // Equal bytes alone do not tie two patches together: either stands without the other.
            lower.class(&class.name).is_some_and(|other| other.patched != class.patched)
                && descent(upper, lower, &class.name, known) == Descent::From
        })
}
