//! Bundles: releases in one file, for sites without a connection. Manifests verbatim, signatures, artifacts.
//!
//! A bundle is a tar archive of plain files in an order that its first file, the index, says: the manifests in the order
//! of the releases, then the artifacts. A reader expects exactly the next name and length and takes nothing else, so
//! that no name of a hostile file is ever used as a path. Every byte is checked against the index by SHA-256, manifests
//! and artifacts against each other. Bytes come from and go to whatever the caller gives; no path is known here.

mod header;
mod read;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeSet;

pub use read::{BundleError, Reader};
use serde::{Deserialize, Serialize};
pub use write::{end, entry, file, index};

use crate::{
    digest::Digest,
    id::{ComponentId, Version},
    reason::{Reason, ReasonCode},
    release::{MAX_ARTIFACT_BYTES, MAX_MANIFEST_BYTES, Manifest},
};

/// The newest format that this code writes and reads.
pub const FORMAT: u32 = 1;
/// The name of the index, the first file of every bundle.
pub const INDEX: &str = "upfleet-bundle.json";
/// The longest index, in bytes.
pub const MAX_INDEX_BYTES: u64 = 4 * 1024 * 1024;
/// The most releases in a bundle.
pub const MAX_RELEASES: usize = 1_000;
/// The most signatures over a manifest, and the longest in bytes.
const MAX_SIGNATURES: (usize, usize) = (16, 16 * 1024);

/// A file of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// A release of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundled {
    /// The component.
    pub component: ComponentId,
    /// The version.
    pub version: Version,
    /// Its manifest.
    pub manifest: Piece,
    /// Detached signatures over the manifest, in hex.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<String>,
}

/// The index of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// The format's number.
    pub format: u32,
    /// The releases, in the order in which they are to be stored: bases before their patches.
    pub releases: Vec<Bundled>,
    /// The artifacts, each once.
    pub artifacts: Vec<Piece>,
}

/// A release as a bundle brings it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Brought {
    /// What the manifest says.
    pub manifest: Manifest,
    /// The manifest, byte for byte.
    pub bytes: Vec<u8>,
    /// Detached signatures over it.
    pub signatures: Vec<Vec<u8>>,
}

pub(crate) fn refused(entry: impl ToString, problem: impl ToString) -> Reason {
    Reason::new(ReasonCode::ArchiveHostile)
        .with("entry", entry.to_string())
        .with("problem", problem.to_string())
}

impl Bundle {
    /// The name of a manifest's file.
    #[must_use]
    pub fn manifest_name(digest: &Digest) -> String {
        format!("manifests/{digest}.json")
    }

    /// The name of an artifact's file.
    #[must_use]
    pub fn artifact_name(digest: &Digest) -> String {
        format!("artifacts/{digest}")
    }

    /// Reads an index.
    ///
    /// # Errors
    /// [`ReasonCode::ArchiveHostile`] with the problem.
    pub fn parse(bytes: &[u8]) -> Result<Self, Reason> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let invalid = |error: serde_json::Error| refused(INDEX, error);
        let format: Format = serde_json::from_slice(bytes).map_err(invalid)?;
        if format.format != FORMAT {
            return Err(refused(INDEX, format!("format {}, this version knows {FORMAT}", format.format)));
        }
        let bundle: Self = serde_json::from_slice(bytes).map_err(invalid)?;
        bundle.check().map_err(|problem| refused(INDEX, problem))?;
        Ok(bundle)
    }

    fn check(&self) -> Result<(), String> {
        if self.releases.is_empty() || self.releases.len() > MAX_RELEASES {
            return Err(format!("{} releases; 1 to {MAX_RELEASES} are taken", self.releases.len()));
        }
        let mut seen = BTreeSet::new();
        for release in &self.releases {
            if release.manifest.size > MAX_MANIFEST_BYTES as u64 {
                return Err(format!("a manifest of {} bytes", release.manifest.size));
            }
            if !seen.insert(release.manifest.sha256) {
                return Err(format!("release {}@{} twice", release.component, release.version));
            }
            let (most, longest) = MAX_SIGNATURES;
            let long = release.signatures.iter().any(|signature| signature.len() > 2 * longest);
            if release.signatures.len() > most || long {
                return Err(format!("signatures over {}@{}", release.component, release.version));
            }
            for signature in &release.signatures {
                unhex(signature).ok_or("a signature that is not in hex")?;
            }
        }
        let mut seen = BTreeSet::new();
        for artifact in &self.artifacts {
            if artifact.size == 0 || artifact.size > MAX_ARTIFACT_BYTES {
                return Err(format!("an artifact of {} bytes", artifact.size));
            }
            if !seen.insert(artifact.sha256) {
                return Err(format!("artifact {} twice", artifact.sha256));
            }
        }
        Ok(())
    }
}

/// Bytes as hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    text.as_bytes()
        .chunks(2)
        .map(|pair| Some(u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).unwrap_or(0)))
        .collect()
}
