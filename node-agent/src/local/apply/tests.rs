//! What a bundle makes of what runs on a node, and what is refused before a component is asked.

use upfleet_domain::{
    bundle::{self, Bundle, Bundled, FORMAT, Piece},
    patch::{Fix, Live, PatchedClass},
    release::{ArtifactRef, Manifest},
};

use super::*;
use crate::platform::node_platform;

fn manifest(component: &str, version: &str, sequence: u64, patch: Option<PatchSpec>) -> Manifest {
    let bytes = format!("{component}@{version}");
    Manifest {
        format: upfleet_domain::release::FORMAT,
        component: component.parse().unwrap(),
        version: version.parse().unwrap(),
        sequence,
        kind: if patch.is_some() { Kind::Patch } else { Kind::Binary },
        notes: String::new(),
        artifacts: vec![ArtifactRef {
            platform: Platform { os: "linux".into(), arch: "any".into() },
            sha256: Digest::of(bytes.as_bytes()),
            md5: None,
            size: bytes.len() as u64,
            sources: vec![],
            encodings: vec![],
        }],
        fixes: vec![],
        patch,
        files: None,
    }
}

fn patch(number: u32, class: &str, supersedes: &[u32]) -> PatchSpec {
    let digest = |text: &str| Digest::of(text.as_bytes());
    PatchSpec {
        number,
        base: Default::default(),
        fixes: vec![Fix { id: format!("ACME-{number}"), text: String::new() }],
        classes: vec![PatchedClass {
            name: class.into(),
            accepts: vec![digest("base")],
            parent: Some(digest("base")),
            patched: digest(&format!("{class} {number}")),
            major: 52,
        }],
        removed: vec![],
        resources: vec![],
        requires: vec![],
        supersedes: supersedes.to_vec(),
        module: None,
        live: Live { possible: true, problems: vec![] },
        needs_restart: false,
    }
}

fn release(manifest: &Manifest) -> Release {
    let bytes = manifest.to_bytes();
    let verified = VerifiedRelease::parse(&bytes, Digest::of(&bytes), &[]).unwrap();
    let reference = verified.reference(&node_platform()).unwrap();
    Release { verified, reference, manifest: ManifestBytes { bytes, signatures: vec![] } }
}

fn base(version: &str, sequence: u64) -> Release {
    release(&manifest("app", version, sequence, None))
}

fn patched(number: u32, class: &str, supersedes: &[u32]) -> Release {
    let version = format!("p{number}");
    release(&manifest("app", &version, 1_000 + u64::from(number), Some(patch(number, class, supersedes))))
}

/// A bundle as a file.
fn written(manifests: &[Manifest]) -> tempfile::NamedTempFile {
    let piece = |bytes: &[u8]| Piece { sha256: Digest::of(bytes), size: bytes.len() as u64 };
    let contents: Vec<String> = manifests.iter().map(|m| format!("{}@{}", m.component, m.version)).collect();
    let index = Bundle {
        format: FORMAT,
        releases: manifests
            .iter()
            .map(|manifest| Bundled {
                component: manifest.component.clone(),
                version: manifest.version.clone(),
                manifest: piece(&manifest.to_bytes()),
                signatures: vec![],
            })
            .collect(),
        artifacts: contents.iter().map(|bytes| piece(bytes.as_bytes())).collect(),
    };
    let mut file = tempfile::NamedTempFile::new().unwrap();
    bundle::index(&mut file, &index).unwrap();
    for manifest in manifests {
        let bytes = manifest.to_bytes();
        let name = Bundle::manifest_name(&Digest::of(&bytes));
        bundle::file(&mut file, &name, bytes.len() as u64, &mut &bytes[..]).unwrap();
    }
    for bytes in &contents {
        let name = Bundle::artifact_name(&Digest::of(bytes.as_bytes()));
        bundle::file(&mut file, &name, bytes.len() as u64, &mut bytes.as_bytes()).unwrap();
    }
    bundle::end(&mut file).unwrap();
    file
}

fn unpacked(file: &Path, wanted: Option<&str>, aside: &Path) -> Result<Unpacked, Reason> {
    unpack(file, wanted.map(|name| name.parse().unwrap()).as_ref(), &aside.join("x"), &node_platform())
}

#[test]
fn a_bundle_is_laid_aside_for_one_component() {
    let dir = tempfile::tempdir().unwrap();
    let both = written(&[manifest("app", "1.0", 1, None), manifest("web", "2.0", 1, None)]);
    let reason = unpacked(both.path(), None, dir.path()).err().unwrap();
    assert!(reason.message().contains("app, web"), "{reason}");
    assert!(unpacked(both.path(), Some("db"), dir.path()).is_err());
    let web = unpacked(both.path(), Some("web"), dir.path()).unwrap();
    assert_eq!((web.component.as_str(), web.releases.len()), ("web", 1));
    let [(digest, path)] = &web.artifacts[..] else { panic!("one artifact") };
    assert_eq!(std::fs::read(path).unwrap(), b"web@2.0");
    assert_eq!(*digest, Digest::of(b"web@2.0"));
    // No directory, no pipe.
    assert!(unpacked(dir.path(), None, dir.path()).is_err());
    assert!(unpacked(Path::new("/dev/null"), None, dir.path()).is_err());
}

#[test]
fn patches_go_on_what_is_there_and_a_base_brings_its_own() {
    let (old, nine, ten) = (base("1.0", 1), patched(9, "A", &[]), patched(10, "B", &[9]));
    let known = [nine.verified.clone()];
    let layer = Layer { number: 9, release: nine.reference.clone(), retired: false, contains: vec![] };
    let runs = ComponentState { base: Base::Release(old.reference.clone()), layers: vec![layer] };
    let numbers = |plan: &Plan| -> Vec<(u32, bool)> {
        plan.layers.iter().map(|layer| (layer.number, layer.retired)).collect()
    };

    // A patch alone goes on the stack; what it supersedes retires.
    let on_top = plan(&runs, &[patched(10, "B", &[9])], &known, &[]).unwrap();
    assert!(matches!(on_top.target, Target::Stack(Base::Release(_))));
    assert_eq!(numbers(&on_top), [(10, false), (9, true)]);
    // With the base that runs already it is the same.
    let same = plan(&runs, &[base("1.0", 1), patched(10, "B", &[9])], &known, &[]).unwrap();
    assert!(matches!(same.target, Target::Stack(_)));
    assert_eq!(numbers(&same), [(10, false), (9, true)]);
    // A new base brings the stack that is named with it, and loses no fix by accident.
    let lost = plan(&runs, &[base("2.0", 2), ten], &known, &[]).err().unwrap();
    assert_eq!(lost.code, ReasonCode::FixLost);
    let waived = ["ACME-9".to_owned()];
    let new = plan(&runs, &[base("2.0", 2), patched(10, "B", &[])], &known, &waived).unwrap();
    assert!(matches!(new.target, Target::Install(_)));
    assert_eq!(numbers(&new), [(10, false)]);
    // A new base alone keeps the patches that are for it.
    assert_eq!(numbers(&plan(&runs, &[base("2.0", 2)], &known, &[]).unwrap()), [(9, false)]);
    // Two bases are no state.
    assert!(plan(&runs, &[base("2.0", 2), base("3.0", 3)], &known, &[]).is_err());
}
