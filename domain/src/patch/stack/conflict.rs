//! Conflicts by class across the whole stack, before anything is touched.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Known,
    chain::{self, Descent},
    force, spec,
};
use crate::{
    patch::{PatchSpec, family, java_of},
    reason::{Reason, ReasonCode},
    state::{Layer, ReleaseRef},
};

/// What a stack is to stand on, as far as it is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ground<'a> {
    /// The base release; `None` where it is none, or is not known.
    pub base: Option<&'a ReleaseRef>,
    /// The Java version of the JVM that runs the component: 8, 11, 17 …; `None` where it is not known.
    pub java: Option<u16>,
}

/// A layer in force, with its description.
#[derive(Clone, Copy)]
struct Active<'a> {
    layer: &'a Layer,
    spec: &'a PatchSpec,
}

/// Judges a stack: requirements, base, class versions, and how its patches go together.
///
/// The answer is what people should know although it is no fault.
///
/// # Errors
/// [`ReasonCode::NotFound`], [`ReasonCode::NumberTaken`], [`ReasonCode::PatchInvalid`] where a layer has another number
/// than its patch, [`ReasonCode::PatchRequires`], [`ReasonCode::WrongBase`],
/// [`ReasonCode::ClassVersion`], [`ReasonCode::SplitFamily`], [`ReasonCode::RevertsFix`],
/// [`ReasonCode::BaseMismatch`]; the first that holds.
pub fn check(layers: &[Layer], known: &Known, ground: &Ground<'_>) -> Result<Vec<Reason>, Reason> {
    numbers(layers)?;
    let mut active = Vec::new();
    for layer in layers {
        let spec = spec(known, &layer.release)?;
        if spec.number != layer.number {
            let problem = format!("{} is patch {}, not patch {}", layer.release, spec.number, layer.number);
            return Err(Reason::new(ReasonCode::PatchInvalid).with("problem", problem));
        }
        if !layer.retired {
            active.push(Active { layer, spec });
        }
    }
    active.sort_by_key(|one| std::cmp::Reverse(one.spec.number));
    requirements(layers, &active, known)?;
    for one in &active {
        on_base(one, ground)?;
        java(one, ground)?;
    }
    let mut notes = Vec::new();
    for (index, upper) in active.iter().enumerate() {
        for lower in &active[index + 1..] {
            families(upper, lower)?;
            let overlap = classes(upper, lower, known)?;
            notes.extend(overlap_note(upper, lower, &overlap));
        }
    }
    Ok(notes)
}

/// One layer a number.
fn numbers(layers: &[Layer]) -> Result<(), Reason> {
    let mut seen = BTreeMap::new();
    for layer in layers {
        if let Some(other) = seen.insert(layer.number, &layer.release) {
            return Err(Reason::new(ReasonCode::NumberTaken)
                .with("number", layer.number)
                .with("component", &layer.release.component)
                .with("release", other));
        }
    }
    Ok(())
}

/// What a patch in force requires is there, is contained in a layer, or is superseded by one.
fn requirements(layers: &[Layer], active: &[Active<'_>], known: &Known) -> Result<(), Reason> {
    let mut there: BTreeSet<u32> = BTreeSet::new();
    for layer in layers {
        there.insert(layer.number);
        there.extend(&layer.contains);
        there.extend(&spec(known, &layer.release)?.supersedes);
    }
    for one in active {
        if let Some(missing) = one.spec.requires.iter().find(|number| !there.contains(number)) {
            return Err(Reason::new(ReasonCode::PatchRequires)
                .with("number", one.spec.number)
                .with("missing", missing));
        }
    }
    Ok(())
}

fn on_base(one: &Active<'_>, ground: &Ground<'_>) -> Result<(), Reason> {
    let Some(base) = ground.base else { return Ok(()) };
    if one.spec.base.contains(&base.version, base.sequence) {
        return Ok(());
    }
    Err(Reason::new(ReasonCode::WrongBase)
        .with("number", one.spec.number)
        .with("expected", one.spec.base.describe())
        .with("actual", base))
}

fn java(one: &Active<'_>, ground: &Ground<'_>) -> Result<(), Reason> {
    let Some(actual) = ground.java else { return Ok(()) };
    match one.spec.classes.iter().find(|class| java_of(class.major) > actual) {
        None => Ok(()),
        Some(class) => Err(Reason::new(ReasonCode::ClassVersion)
            .with("number", one.spec.number)
            .with("needed", java_of(class.major))
            .with("class", &class.name)
            .with("major", class.major)
            .with("actual", actual)),
    }
}

/// A family of which the upper patch ships a part must not be completed by a lower one: the two were not compiled
/// together, so a private accessor or a synthetic constructor may be missing when it is called.
fn families(upper: &Active<'_>, lower: &Active<'_>) -> Result<(), Reason> {
    let mut shipped: BTreeMap<&str, &str> = BTreeMap::new();
    for class in &upper.spec.classes {
        shipped.entry(family(&class.name)).or_insert(&class.name);
    }
    for class in &lower.spec.classes {
        let Some(relative) = shipped.get(family(&class.name)) else { continue };
        let covered = upper.spec.class(&class.name).is_some() || upper.spec.removed.contains(&class.name);
        if !covered {
            return Err(Reason::new(ReasonCode::SplitFamily)
                .with("number", upper.spec.number)
                .with("class", relative)
                .with("missing", &class.name)
                .with("other", format!("patch {}", lower.spec.number)));
        }
    }
    Ok(())
}

/// The classes that both ship, where the upper one's were built from the lower one's.
fn classes<'a>(upper: &Active<'a>, lower: &Active<'_>, known: &Known) -> Result<Vec<&'a str>, Reason> {
    let mut overlap = Vec::new();
    for class in &upper.spec.classes {
        let Some(other) = lower.spec.class(&class.name) else { continue };
        if !class.accepts.is_empty()
            && !other.accepts.is_empty()
            && !class.accepts.iter().any(|digest| other.accepts.contains(digest))
        {
            return Err(Reason::new(ReasonCode::BaseMismatch)
                .with("number", upper.spec.number)
                .with("class", &class.name)
                .with("expected", class.accepts[0])
                .with("actual", format!("{}, says patch {}", other.accepts[0], lower.spec.number)));
        }
        match chain::descent(upper.spec, lower.spec, &class.name, known) {
            Descent::From => overlap.push(class.name.as_str()),
            // The planner knew the patch in between when it took that out and recorded it.
            Descent::Unknown if !upper.layer.contains.is_empty() => overlap.push(class.name.as_str()),
            _ if force::fixes_all(upper.spec, lower.spec) => {}
            _ => {
                return Err(Reason::new(ReasonCode::RevertsFix)
                    .with("number", upper.spec.number)
                    .with("class", &class.name)
                    .with("other", lower.spec.number));
            }
        }
    }
    Ok(overlap)
}

fn overlap_note(upper: &Active<'_>, lower: &Active<'_>, classes: &[&str]) -> Option<Reason> {
    let (first, others) = classes.split_first()?;
    let class = match others.len() {
        0 => (*first).to_owned(),
        1 => format!("{first} and one more class"),
        count => format!("{first} and {count} more classes"),
    };
    Some(
        Reason::new(ReasonCode::Overlap)
            .with("class", class)
            .with("number", upper.spec.number)
            .with("other", lower.spec.number),
    )
}
