//! Carrying a stack over to another base release.

use std::collections::BTreeSet;

use super::{Changed, Ground, Known, add, settle, spec};
use crate::{
    patch::Fix,
    reason::{Reason, ReasonCode},
    state::{Layer, ReleaseRef},
};

/// The base release that is to be installed.
#[derive(Clone, Copy, Debug)]
pub struct NewBase<'a> {
    /// The release.
    pub release: &'a ReleaseRef,
    /// The issues that it fixes, by its manifest.
    pub fixes: &'a [Fix],
    /// The Java version of the JVM that runs the component; `None` where it is not known.
    pub java: Option<u16>,
}

/// Which patches stand on the new base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carry {
    /// Those of the present stack that are for it and that it does not contain already.
    Valid,
    /// Exactly these, whatever stood on the old base.
    Named(Vec<ReleaseRef>),
}

/// The stack that goes with a new base. What is not valid for it leaves the stack, and comes back with the old base
/// when that is rolled back to.
///
/// # Errors
/// [`ReasonCode::FixLost`] where a fix of the present stack is neither among the base's nor in a patch that is carried
/// and is not among `waived`; otherwise as [`super::check`].
pub fn for_new_base(
    current: &[Layer],
    base: &NewBase<'_>,
    carry: &Carry,
    waived: &[String],
    known: &Known,
) -> Result<Changed, Reason> {
    let mut layers = Vec::new();
    match carry {
        Carry::Named(releases) => {
            for release in releases {
                add(&mut layers, release, known)?;
            }
            // What an earlier removal recorded stays recorded.
            for layer in &mut layers {
                let before = current.iter().find(|old| old.release.manifest == layer.release.manifest);
                layer.contains = before.map_or_else(Vec::new, |old| old.contains.clone());
            }
        }
        Carry::Valid => {
            for layer in current {
                let own = spec(known, &layer.release)?;
                let valid = own.base.contains(&base.release.version, base.release.sequence);
                if valid && !fixed_in(&own.fixes, base.fixes) {
                    layers.push(layer.clone());
                }
            }
        }
    }
    let ground = Ground { base: Some(base.release), java: base.java };
    let mut notes = Vec::new();
    for layer in current.iter().filter(|old| !layers.iter().any(|new| new.number == old.number)) {
        notes.push(
            Reason::new(ReasonCode::PatchLeft).with("number", layer.number).with("release", base.release),
        );
    }
    notes.extend(settle(current, &mut layers, known, &ground)?);
    lost(current, &layers, base, waived, known)?;
    Ok(Changed { layers, notes })
}

/// Whether a base contains all of a patch's fixes, of which there are some.
fn fixed_in(fixes: &[Fix], base: &[Fix]) -> bool {
    !fixes.is_empty() && fixes.iter().all(|fix| base.iter().any(|other| other.id == fix.id))
}

fn lost(
    current: &[Layer],
    layers: &[Layer],
    base: &NewBase<'_>,
    waived: &[String],
    known: &Known,
) -> Result<(), Reason> {
    let mut kept: BTreeSet<&str> = base.fixes.iter().map(|fix| fix.id.as_str()).collect();
    kept.extend(waived.iter().map(String::as_str));
    for layer in layers {
        kept.extend(spec(known, &layer.release)?.fixes.iter().map(|fix| fix.id.as_str()));
    }
    let contained = |number: &u32| known.values().find(|spec| spec.number == *number);
    let held = current.iter().map(|layer| spec(known, &layer.release)).collect::<Result<Vec<_>, _>>()?;
    let noted = current.iter().flat_map(|layer| &layer.contains).filter_map(contained);
    for own in held.into_iter().chain(noted) {
        if let Some(fix) = own.fixes.iter().find(|fix| !kept.contains(fix.id.as_str())) {
            return Err(Reason::new(ReasonCode::FixLost)
                .with("fix", &fix.id)
                .with("number", own.number)
                .with("nodes", "this node")
                .with("release", base.release));
        }
    }
    Ok(())
}
