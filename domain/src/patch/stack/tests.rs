//! Stacks: what tests of them are made of. The cases stand in the files below.

use super::*;
use crate::patch::{Fix, Live, PatchedClass};

mod model;
mod tables;

/// A class of a patch: what it accepts (`|` between several, nothing for a new class), its parent, its bytes.
pub(crate) fn class(name: &str, accepts: &str, parent: &str, patched: &str) -> PatchedClass {
    let digest = |text: &str| Digest::of(text.as_bytes());
    let mut accepts: Vec<Digest> = accepts.split('|').filter(|text| !text.is_empty()).map(digest).collect();
    accepts.sort_unstable();
    PatchedClass {
        name: name.into(),
        accepts,
        parent: (!parent.is_empty()).then(|| digest(parent)),
        patched: digest(patched),
        major: 52,
    }
}

pub(crate) fn patch(number: u32, classes: &[PatchedClass]) -> PatchSpec {
    PatchSpec {
        number,
        base: crate::patch::BaseRange::default(),
        fixes: vec![],
        classes: classes.to_vec(),
        removed: vec![],
        resources: vec![],
        requires: vec![],
        supersedes: vec![],
        module: None,
        live: Live { possible: false, problems: vec!["it is not known".into()] },
        needs_restart: false,
    }
}

pub(crate) fn fixing(mut spec: PatchSpec, fixes: &[&str]) -> PatchSpec {
    spec.fixes = fixes.iter().map(|id| Fix { id: (*id).into(), text: String::new() }).collect();
    spec
}

/// The release of a patch: its manifest is named by the description itself.
pub(crate) fn release(spec: &PatchSpec) -> ReleaseRef {
    let bytes = serde_json::to_vec(spec).unwrap();
    ReleaseRef {
        component: "shop".parse().unwrap(),
        version: format!("p{}", spec.number).parse().unwrap(),
        sequence: spec.number.into(),
        manifest: Digest::of(&bytes),
        artifact: Digest::of(&[&bytes[..], b"jar"].concat()),
    }
}

pub(crate) fn base(version: &str, sequence: u64) -> ReleaseRef {
    ReleaseRef {
        component: "shop".parse().unwrap(),
        version: version.parse().unwrap(),
        sequence,
        manifest: Digest::of(version.as_bytes()),
        artifact: Digest::of(format!("{version} jar").as_bytes()),
    }
}

pub(crate) fn known(specs: &[PatchSpec]) -> Known {
    specs.iter().map(|spec| (release(spec).manifest, spec.clone())).collect()
}

pub(crate) fn apply(specs: &[&PatchSpec]) -> StackChange {
    StackChange { apply: specs.iter().map(|spec| release(spec)).collect(), ..StackChange::default() }
}

pub(crate) fn remove(numbers: &[u32]) -> StackChange {
    StackChange { remove: numbers.to_vec(), ..StackChange::default() }
}

/// A stack that applying these at once gives.
pub(crate) fn stack(specs: &[PatchSpec]) -> Vec<Layer> {
    let all: Vec<&PatchSpec> = specs.iter().collect();
    change(&[], &apply(&all), &known(specs), &Ground::default()).unwrap().layers
}
