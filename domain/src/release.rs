//! Releases: the manifest's format, and the only way to get from bytes to something an agent obeys.

use serde::{Deserialize, Serialize};

use crate::{
    digest::{Digest, Md5Digest},
    files::FilesSpec,
    id::{ComponentId, Version},
    patch::{Fix, PatchSpec, check_fixes, check_spec},
    reason::{Reason, ReasonCode},
    state::ReleaseRef,
};

/// The newest manifest format this code writes and reads.
pub const FORMAT: u32 = 1;
/// The largest manifest, in bytes, that is read at all. A directory of a few thousand files fits.
pub const MAX_MANIFEST_BYTES: usize = 1024 * 1024;
/// The largest artifact, in bytes: 64 GiB.
pub const MAX_ARTIFACT_BYTES: u64 = 64 * 1024 * 1024 * 1024;

/// How a release takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// Replaces one file, an executable or a jar.
    Binary,
    /// Swaps a directory.
    Files,
    /// Adds a numbered patch to a component's stack.
    Patch,
    /// Replaces the agent itself.
    Agent,
}

impl Kind {
    /// As in the manifest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Files => "files",
            Self::Patch => "patch",
            Self::Agent => "agent",
        }
    }
}

/// What a program is built for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, or `any` for files that run everywhere.
    pub arch: String,
}

impl Platform {
    /// Whether something built for `self` runs on `node`.
    #[must_use]
    pub fn runs_on(&self, node: &Self) -> bool {
        self.os == node.os && (self.arch == "any" || self.arch == node.arch)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.arch)
    }
}

/// Another way to the same bytes, e.g. a delta. None is defined yet; unknown ones are passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encoding {
    /// The codec's name.
    pub codec: String,
    /// The digest of the bytes it builds on.
    pub base: Option<Digest>,
    /// The digest of the encoded bytes.
    pub digest: Digest,
    /// Their length in bytes.
    pub size: u64,
}

/// The bytes for one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRef {
    /// What they are built for.
    pub platform: Platform,
    /// SHA-256: decides.
    pub sha256: Digest,
    /// MD5: checked where given; it can only add a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub md5: Option<Md5Digest>,
    /// Length in bytes.
    pub size: u64,
    /// HTTPS sources, tried in order before the controller's own store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
    /// Other ways to the same bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub encodings: Vec<Encoding>,
}

/// An immutable description of one version of one component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format's number.
    pub format: u32,
    /// The component.
    pub component: ComponentId,
    /// The version as people see it.
    pub version: Version,
    /// Orders releases of the component.
    pub sequence: u64,
    /// How it takes effect.
    pub kind: Kind,
    /// What changed, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub notes: String,
    /// The bytes per platform.
    pub artifacts: Vec<ArtifactRef>,
    /// Of a base release: the issues that it fixes, so that a patch for them may retire.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fixes: Vec<Fix>,
    /// Of kind [`Kind::Patch`]: what it patches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch: Option<PatchSpec>,
    /// Of kind [`Kind::Files`]: what is in the archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<FilesSpec>,
}

impl Manifest {
    /// The bytes to publish. They are stored, named and served verbatim from here on.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes =
            serde_json::to_vec_pretty(self).expect("a manifest has string keys and finite numbers");
        bytes.push(b'\n');
        bytes
    }

    /// The artifact for a node, if the release has one.
    #[must_use]
    pub fn artifact_for(&self, node: &Platform) -> Option<&ArtifactRef> {
        let exact = self.artifacts.iter().find(|artifact| artifact.platform == *node);
        exact.or_else(|| self.artifacts.iter().find(|artifact| artifact.platform.runs_on(node)))
    }
}

/// A manifest that was read from bytes of the expected digest. An agent obeys nothing else.
///
/// Its fields can't be changed, and it can't be made but by [`VerifiedRelease::parse`]; signature checks
/// will go there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedRelease {
    manifest: Manifest,
    digest: Digest,
}

impl VerifiedRelease {
    /// Reads a manifest.
    ///
    /// # Errors
    /// [`ReasonCode::UntrustedManifest`] where the bytes have another digest than `expected`,
    /// [`ReasonCode::ManifestInvalid`] where they are no valid manifest of a format this code knows.
    pub fn parse(bytes: &[u8], expected: Digest, signatures: &[Vec<u8>]) -> Result<Self, Reason> {
        // Signatures are carried from the first version on; they decide once keys can be configured.
        let _ = signatures;
        let digest = Digest::of(bytes);
        if digest != expected {
            let problem = format!("its SHA-256 is {digest}, the order says {expected}");
            return Err(Reason::new(ReasonCode::UntrustedManifest).with("problem", problem));
        }
        Ok(Self { manifest: parse_manifest(bytes)?, digest })
    }

    /// What it says.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// SHA-256 of its bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The release as it concerns a node of `platform`.
    ///
    /// # Errors
    /// [`ReasonCode::PlatformMismatch`] where it has nothing for that platform.
    pub fn reference(&self, platform: &Platform) -> Result<ReleaseRef, Reason> {
        let artifact = self.manifest.artifact_for(platform).ok_or_else(|| {
            let has: Vec<String> = self.manifest.artifacts.iter().map(|a| a.platform.to_string()).collect();
            Reason::new(ReasonCode::PlatformMismatch)
                .with("platform", platform)
                .with("problem", format!("it has {}", has.join(", ")))
        })?;
        Ok(ReleaseRef {
            component: self.manifest.component.clone(),
            version: self.manifest.version.clone(),
            sequence: self.manifest.sequence,
            manifest: self.digest,
            artifact: artifact.sha256,
        })
    }
}

/// Reads and checks a manifest's bytes, whatever their digest: for publishers.
///
/// # Errors
/// [`ReasonCode::ManifestInvalid`] with the problem.
pub fn parse_manifest(bytes: &[u8]) -> Result<Manifest, Reason> {
    let invalid = |problem: String| Reason::new(ReasonCode::ManifestInvalid).with("problem", problem);
    if bytes.len() > MAX_MANIFEST_BYTES {
        return Err(invalid(format!("{} bytes, at most {MAX_MANIFEST_BYTES} are read", bytes.len())));
    }
    // The format comes first, so that a newer manifest is refused for its format and not for a new field.
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let format: Format = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
    if format.format != FORMAT {
        return Err(invalid(format!("format {}, this version knows {FORMAT}", format.format)));
    }
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
    check(&manifest).map_err(invalid)?;
    Ok(manifest)
}

fn check(manifest: &Manifest) -> Result<(), String> {
    let sections = (manifest.patch.is_some(), manifest.files.is_some());
    let expected = (manifest.kind == Kind::Patch, manifest.kind == Kind::Files);
    if sections != expected {
        return Err(format!(
            "its kind is {}, so it needs {} section and no other",
            manifest.kind.as_str(),
            match manifest.kind {
                Kind::Binary | Kind::Agent => "no",
                Kind::Files => "a `files`",
                Kind::Patch => "a `patch`",
            }
        ));
    }
    if let Some(files) = &manifest.files {
        files.check()?;
    }
    check_fixes(&manifest.fixes)?;
    if let Some(patch) = &manifest.patch {
        check_spec(patch)?;
    }
    if manifest.artifacts.is_empty() {
        return Err("it names no artifact".to_owned());
    }
    let mut seen = std::collections::BTreeSet::new();
    for artifact in &manifest.artifacts {
        if !seen.insert(&artifact.platform) {
            return Err(format!("two artifacts for {}", artifact.platform));
        }
        if artifact.size == 0 || artifact.size > MAX_ARTIFACT_BYTES {
            return Err(format!(
                "size {} of the artifact for {} is not between 1 and {MAX_ARTIFACT_BYTES}",
                artifact.size, artifact.platform
            ));
        }
        if let Some(source) = artifact.sources.iter().find(|source| !source.starts_with("https://")) {
            return Err(format!("source `{source}` is not https"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            format: FORMAT,
            component: "web".parse().unwrap(),
            version: "1.0.0".parse().unwrap(),
            sequence: 1,
            kind: Kind::Binary,
            notes: String::new(),
            artifacts: vec![ArtifactRef {
                platform: Platform { os: "linux".into(), arch: "amd64".into() },
                sha256: Digest::of(b"x"),
                md5: None,
                size: 1,
                sources: vec![],
                encodings: vec![],
            }],
            fixes: vec![],
            patch: None,
            files: None,
        }
    }

    #[test]
    fn only_the_named_bytes_are_obeyed() {
        let bytes = manifest().to_bytes();
        let digest = Digest::of(&bytes);
        assert_eq!(VerifiedRelease::parse(&bytes, digest, &[]).unwrap().manifest(), &manifest());
        let mut other = bytes.clone();
        other.push(b' ');
        let reason = VerifiedRelease::parse(&other, digest, &[]).unwrap_err();
        assert_eq!(reason.code, ReasonCode::UntrustedManifest);
    }

    #[test]
    fn a_newer_format_is_refused_for_its_format() {
        let reason = parse_manifest(br#"{"format":2,"novel":true}"#).unwrap_err();
        assert!(reason.message().contains("format 2"), "{reason}");
    }

    #[test]
    fn bad_manifests_are_refused() {
        let mut twice = manifest();
        twice.artifacts.push(twice.artifacts[0].clone());
        let mut empty = manifest();
        empty.artifacts.clear();
        let mut huge = manifest();
        huge.artifacts[0].size = u64::MAX;
        let mut plain = manifest();
        plain.artifacts[0].sources.push("http://mirror/x".into());
        for bad in [twice, empty, huge, plain] {
            assert_eq!(parse_manifest(&bad.to_bytes()).unwrap_err().code, ReasonCode::ManifestInvalid);
        }
    }

    #[test]
    fn any_runs_everywhere_but_an_exact_match_wins() {
        let node = Platform { os: "linux".into(), arch: "amd64".into() };
        let mut both = manifest();
        let mut any = both.artifacts[0].clone();
        any.platform.arch = "any".into();
        any.sha256 = Digest::of(b"any");
        both.artifacts.insert(0, any.clone());
        assert_eq!(both.artifact_for(&node).unwrap().sha256, Digest::of(b"x"));
        both.artifacts.pop();
        assert_eq!(both.artifact_for(&node), Some(&any));
    }
}
