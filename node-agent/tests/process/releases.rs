//! Releases of the component `app` for tests: programs as bases, and patches that a program takes no notice of.

use std::path::Path;

use upfleet_agent::{
    component::ManifestBytes,
    exec::{Place, jar},
    platform::node_platform,
};
use upfleet_domain::{
    digest::Digest,
    patch::{BaseRange, Live, PatchSpec, PatchedClass},
    release::{ArtifactRef, FORMAT, Kind, Manifest, Platform},
    state::{Base, ComponentState, Layer, ReleaseRef},
};

/// Where the component lies.
pub fn place(dir: &Path) -> Place {
    Place::new(&"app".parse().unwrap(), &dir.join("app"))
}

/// The number of the base whose program ends at once.
pub const BAD: u64 = 9;
/// Names how long the artifacts of a test are at least, in bytes.
pub const SIZE: &str = "UPFLEET_ARTIFACT_SIZE";

/// The bytes of base `n`: a program, and what tells it from others. What follows an executable's own bytes is of no
/// concern to the kernel.
pub fn base_bytes(n: u64) -> Vec<u8> {
    let program = if n == BAD { "/bin/false" } else { "/bin/sleep" };
    padded([std::fs::read(program).unwrap(), format!("base {n}").into_bytes()].concat(), n)
}

/// Bytes that don't compress, up to the length that the test wants.
fn padded(mut bytes: Vec<u8>, seed: u64) -> Vec<u8> {
    let size = std::env::var(SIZE).ok().and_then(|size| size.parse().ok()).unwrap_or(0);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes
}

fn class(number: u32) -> Vec<u8> {
    let bytes = [&[0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, 52], format!("class of {number}").as_bytes()].concat();
    padded(bytes, number.into())
}

/// The jar of a patch.
pub fn patch_bytes(number: u32) -> Vec<u8> {
    jar::write("Manifest-Version: 1.0\r\n\r\n", &[("com/acme/Greeter.class".to_owned(), class(number))])
        .unwrap()
}

fn published(manifest: Manifest, bytes: &[u8]) -> (ReleaseRef, ManifestBytes) {
    let artifacts = vec![ArtifactRef {
        platform: Platform { arch: "any".to_owned(), ..node_platform() },
        sha256: Digest::of(bytes),
        md5: None,
        size: bytes.len() as u64,
        sources: vec![],
        encodings: vec![],
    }];
    let manifest = Manifest { artifacts, ..manifest };
    let text = manifest.to_bytes();
    let release = ReleaseRef {
        component: manifest.component,
        version: manifest.version,
        sequence: manifest.sequence,
        manifest: Digest::of(&text),
        artifact: Digest::of(bytes),
    };
    (release, ManifestBytes { bytes: text, signatures: vec![] })
}

fn manifest(kind: Kind, version: &str, sequence: u64, patch: Option<PatchSpec>) -> Manifest {
    Manifest {
        format: FORMAT,
        component: "app".parse().unwrap(),
        version: version.parse().unwrap(),
        sequence,
        kind,
        notes: String::new(),
        artifacts: vec![],
        fixes: vec![],
        patch,
        files: None,
    }
}

/// A base, as it is published.
pub fn base(n: u64) -> (ReleaseRef, ManifestBytes) {
    published(manifest(Kind::Binary, &format!("1.0.{n}"), n, None), &base_bytes(n))
}

/// A patch, as it is published.
pub fn patch(number: u32) -> (Layer, ManifestBytes) {
    let class = PatchedClass {
        name: "com.acme.Greeter".to_owned(),
        accepts: vec![Digest::of(b"the application's")],
        parent: Some(Digest::of(b"the application's")),
        patched: Digest::of(&class(number)),
        major: 52,
    };
    let spec = PatchSpec {
        number,
        base: BaseRange::default(),
        fixes: vec![],
        classes: vec![class],
        resources: vec![],
        removed: vec![],
        requires: vec![],
        supersedes: vec![],
        module: None,
        live: Live { possible: true, problems: vec![] },
        needs_restart: false,
    };
    let manifest = manifest(Kind::Patch, &format!("p{number}"), number.into(), Some(spec));
    let (release, manifest) = published(manifest, &patch_bytes(number));
    (Layer { number, release, retired: false, contains: vec![] }, manifest)
}

/// A base with patches, highest number first.
pub fn state(n: u64, patches: &[u32]) -> ComponentState {
    ComponentState {
        base: Base::Release(base(n).0),
        layers: patches.iter().map(|number| patch(*number).0).collect(),
    }
}

/// The bytes of everything here by digest.
pub fn artifact(digest: &Digest) -> Option<Vec<u8>> {
    let mut all = (1..=BAD + 1).map(base_bytes).chain((1..=9).map(patch_bytes));
    all.find(|bytes| Digest::of(bytes) == *digest)
}
