//! How nodes stand with a fix.

use upfleet_domain::{
    jvm::{ClassProof, Mechanism},
    patch::{Fix, Live, PatchedClass},
    release::{ArtifactRef, FORMAT, Kind, Manifest, Platform},
    state::ReleaseRef,
    time::Time,
};

use super::*;
use crate::store::fixtures;

fn manifest(version: &str, fixes: &[&str], number: Option<u32>) -> Manifest {
    let fixes: Vec<Fix> = fixes.iter().map(|id| Fix { id: (*id).into(), text: String::new() }).collect();
    let class = |name: &str| PatchedClass {
        name: name.into(),
        accepts: vec![Digest::of(b"base")],
        parent: Some(Digest::of(b"base")),
        patched: Digest::of(version.as_bytes()),
        major: 52,
    };
    let patch = number.map(|number| PatchSpec {
        number,
        base: BaseRange { versions: vec!["1".parse().unwrap()], ..BaseRange::default() },
        fixes: fixes.clone(),
        classes: vec![class("com.acme.Cart"), class("com.acme.Order")],
        removed: vec![],
        resources: vec![],
        requires: vec![],
        supersedes: vec![],
        module: None,
        live: Live { possible: true, problems: vec![] },
        needs_restart: false,
    });
    let artifact = ArtifactRef {
        platform: Platform { os: "linux".into(), arch: "any".into() },
        sha256: Digest::of(version.as_bytes()),
        md5: None,
        size: 1,
        sources: vec![],
        encodings: vec![],
    };
    Manifest {
        format: FORMAT,
        component: "web".parse().unwrap(),
        version: version.parse().unwrap(),
        sequence: u64::from(number.unwrap_or(1)),
        kind: if patch.is_some() { Kind::Patch } else { Kind::Binary },
        notes: String::new(),
        artifacts: vec![artifact],
        fixes: if patch.is_some() { vec![] } else { fixes },
        patch,
        files: None,
    }
}

fn record(version: &str, fixes: &[&str], number: Option<u32>) -> ReleaseRecord {
    let manifest = manifest(version, fixes, number);
    let bytes = manifest.to_bytes();
    ReleaseRecord {
        version: manifest.version,
        digest: Digest::of(&bytes),
        manifest: bytes,
        kind: manifest.kind,
        patch_number: number,
        artifacts: manifest.artifacts,
        ..fixtures::release(version, 1)
    }
}

fn reference(record: &ReleaseRecord) -> ReleaseRef {
    ReleaseRef {
        component: record.component.clone(),
        version: record.version.clone(),
        sequence: 1,
        manifest: record.digest,
        artifact: record.artifacts[0].sha256,
    }
}

fn layer(record: &ReleaseRecord) -> Layer {
    let number = record.patch_number.unwrap();
    Layer { number, release: reference(record), retired: false, contains: vec![] }
}

/// Old base 1, fixed base 2, patch 3 with the fix for base 1, patch 4 without.
fn shelf() -> (Shelf, [ReleaseRecord; 4]) {
    let records = [
        record("1", &[], None),
        record("2", &["CVE-1"], None),
        record("p3", &["CVE-1"], Some(3)),
        record("p4", &["CVE-4"], Some(4)),
    ];
    let mut shelf = Shelf::new("CVE-1");
    for (index, record) in records.iter().enumerate() {
        let has = [1, 2].contains(&index);
        shelf.add(record, has);
    }
    (shelf, records)
}

fn proof(classes: &[(&str, u32, ClassStanding)]) -> Proof {
    let class = |(name, number, standing): &(&str, u32, ClassStanding)| ClassProof {
        class: (*name).into(),
        number: *number,
        standing: *standing,
        loader: "app".into(),
        source: None,
        original: None,
        expected: Digest::of(b"p3"),
        mechanism: Mechanism::JavaAgent,
        problem: "loaded before".into(),
    };
    let classes = classes.iter().map(class).collect();
    Proof { pid: 1, mechanism: Mechanism::JavaAgent, classes, alarms: vec![], time: Time(1) }
}

fn inventory(base: &ReleaseRecord, layers: Vec<Layer>, proof: Option<Proof>) -> ComponentInventory {
    let current = ComponentState { base: Base::Release(reference(base)), layers };
    ComponentInventory { proof, pid: Some(1), ..fixtures::inventory(current) }
}

#[test]
fn each_way_to_stand_with_a_fix() {
    use ClassStanding::{Armed, Old, Proved};
    let (shelf, [old, fixed, patch, other]) = shelf();
    let check = |inventory: &ComponentInventory, standing, number, code| {
        let (found, by, reason) = shelf.stands(inventory);
        assert_eq!((found, by), (standing, number), "{reason:?}");
        assert_eq!(reason.map(|reason| reason.code), code);
    };
    check(&inventory(&fixed, vec![], None), Standing::InBase, None, None);
    check(&inventory(&old, vec![], None), Standing::Lacks, None, Some(ReasonCode::FixLacking));
    check(&inventory(&old, vec![layer(&other)], None), Standing::Lacks, None, Some(ReasonCode::FixLacking));
    let on = |proof| inventory(&old, vec![layer(&other), layer(&patch)], proof);
    check(&on(None), Standing::Unproved, Some(3), Some(ReasonCode::ProofMissing));
    let both = [("com.acme.Order", 3, Proved), ("com.acme.Cart", 4, Armed)];
    check(&on(Some(proof(&both))), Standing::Patched, Some(3), None);
    check(&on(Some(proof(&both[..1]))), Standing::Unproved, Some(3), Some(ReasonCode::ProofMissing));
    let stale = [("com.acme.Order", 3, Old), ("com.acme.Cart", 3, Armed)];
    check(&on(Some(proof(&stale))), Standing::Unproved, Some(3), Some(ReasonCode::ClassOld));
    let drifted =
        ComponentInventory { drift: Some(Reason::new(ReasonCode::Drifted)), ..on(Some(proof(&both))) };
    check(&drifted, Standing::Unproved, Some(3), Some(ReasonCode::Drifted));

    // Contained in one that was built on it, or retired by a later one: that one has it now.
    let above = Layer { contains: vec![3], ..layer(&other) };
    check(&inventory(&old, vec![above], Some(proof(&both))), Standing::Patched, Some(4), None);
    let retired = Layer { retired: true, ..layer(&patch) };
    let layers = vec![layer(&other), retired];
    check(&inventory(&old, layers, Some(proof(&both))), Standing::Patched, Some(4), None);
}

/// What is recorded of a patch that is gone says nothing of the classes that no other patch ships.
#[test]
fn a_fix_of_which_a_part_is_gone_is_not_proved() {
    use ClassStanding::{Armed, Proved};
    let (shelf, [old, _, patch, other]) = shelf();
    let part = [("com.acme.Order", 4, Proved), ("com.acme.Cart", 0, Armed)];
    let contains = Layer { contains: vec![3], ..layer(&other) };
    let retired = Layer { retired: true, ..layer(&patch) };
    for layers in [vec![contains], vec![layer(&other), retired]] {
        let (standing, number, reason) = shelf.stands(&inventory(&old, layers, Some(proof(&part))));
        assert_eq!((standing, number), (Standing::Unproved, Some(4)));
        assert!(reason.unwrap().message().contains("com.acme.Cart"));
    }
}

#[test]
fn the_successor_of_a_retired_patch_is_the_one_that_says_so() {
    let (mut shelf, [old, _, patch, other]) = shelf();
    let mut manifest = manifest("p5", &[], Some(5));
    manifest.patch.as_mut().unwrap().supersedes = vec![3];
    let bytes = manifest.to_bytes();
    let above = ReleaseRecord { digest: Digest::of(&bytes), manifest: bytes, ..record("p5", &[], Some(5)) };
    shelf.add(&above, false);
    let retired = Layer { retired: true, ..layer(&patch) };
    let layers = vec![layer(&above), layer(&other), retired];
    assert_eq!(shelf.stands(&inventory(&old, layers, None)).1, Some(5));
}

/// The agent keeps what the last JVM said: that counts while this JVM runs and can be asked.
#[test]
fn what_an_ended_or_silent_jvm_once_said_proves_nothing() {
    use ClassStanding::Proved;
    let (shelf, [old, _, patch, _]) = shelf();
    let both = [("com.acme.Order", 3, Proved), ("com.acme.Cart", 3, Proved)];
    let fine = inventory(&old, vec![layer(&patch)], Some(proof(&both)));
    assert_eq!(shelf.stands(&fine).0, Standing::Patched);
    let ended = ComponentInventory { run_mode: "supervised".into(), pid: None, ..fine.clone() };
    let silent = Reason::new(ReasonCode::ProofMissing).with("problem", "it does not answer");
    let silent = ComponentInventory { alarms: vec![silent], ..fine.clone() };
    for inventory in [ended, silent] {
        let (standing, _, reason) = shelf.stands(&inventory);
        assert_eq!((standing, reason.unwrap().code), (Standing::Unproved, ReasonCode::ProofMissing));
        assert!(!is_proved(&inventory, 3));
    }
    assert!(is_proved(&fine, 3));
}

#[test]
fn what_would_bring_the_fix_is_said() {
    let (shelf, [old, ..]) = shelf();
    let said = |inventory| shelf.stands(&inventory).2.unwrap().message();
    let message = said(inventory(&old, vec![], None));
    assert_eq!(message, "1 does not have CVE-1: web@2 or patch 3 (web@p3) would bring it");
    let strange = record("9", &[], None);
    let message = said(inventory(&strange, vec![layer(&record("p8", &[], Some(8)))], None));
    assert!(message.contains("what its base fixes is not known here"), "{message}");
    assert!(message.contains("patch 8 was never published here"), "{message}");
    assert!(message.ends_with("web@2 would bring it"), "{message}");
    let unmanaged = ComponentInventory {
        current: ComponentState::unmanaged(Digest::of(b"x")),
        ..inventory(&old, vec![], None)
    };
    assert!(said(unmanaged).contains("not known here"));
}

#[test]
fn a_patch_counts_as_proved_by_its_own_classes() {
    use ClassStanding::{Old, Proved};
    let (_, [old, _, patch, _]) = shelf();
    let check = |classes: &[(&str, u32, ClassStanding)], fits| {
        let inventory = inventory(&old, vec![layer(&patch)], Some(proof(classes)));
        assert_eq!(is_proved(&inventory, 3), fits, "{classes:?}");
    };
    check(&[("com.acme.Order", 3, Proved), ("com.acme.Cart", 4, Old)], true);
    check(&[("com.acme.Order", 3, Old)], false);
    check(&[("com.acme.Order", 4, Proved)], true);
    check(&[("com.acme.Order", 4, Old)], false);
}
