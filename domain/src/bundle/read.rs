//! Reads bundles: one pass, nothing believed before its digest fits.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
};

use sha2::{Digest as _, Sha256};

use super::{Brought, Bundle, INDEX, MAX_INDEX_BYTES, Piece, header, refused, unhex};
use crate::{digest::Digest, reason::Reason, release::parse_manifest};

/// So many bytes are read at a time.
const CHUNK: usize = 128 * 1024;
/// What may follow the end: tar programs fill up with zeros.
const MAX_TAIL: u64 = 64 * 1024;

/// Why a bundle can't be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The source or the sink failed; the operator of the machine can mend it.
    #[error("the bundle could not be read or copied")]
    Io(#[from] io::Error),
    /// It is not what a bundle has to be; whoever made it can mend it.
    #[error("{0}")]
    Refused(Reason),
}

impl From<Reason> for BundleError {
    fn from(reason: Reason) -> Self {
        Self::Refused(reason)
    }
}

/// A bundle that is being read: the index is known, the artifacts are still to come.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    bundle: Bundle,
    releases: Vec<Brought>,
    next: usize,
}

impl<R: Read> Reader<R> {
    /// Reads the index and the manifests.
    ///
    /// # Errors
    /// [`BundleError`]; also where a manifest is not the release that the index says, or an artifact is of no release.
    pub fn open(mut source: R) -> Result<Self, BundleError> {
        let (name, size) = entry(&mut source, INDEX)?;
        if name != INDEX || size > MAX_INDEX_BYTES {
            return Err(refused(name, format!("a bundle begins with `{INDEX}`")).into());
        }
        let mut bytes = Vec::new();
        content(&mut source, INDEX, size, &mut bytes)?;
        let bundle = Bundle::parse(&bytes)?;
        let mut releases = Vec::new();
        for release in &bundle.releases {
            let name = Bundle::manifest_name(&release.manifest.sha256);
            let mut bytes = Vec::new();
            piece(&mut source, &name, &release.manifest, &mut bytes)?;
            let manifest = parse_manifest(&bytes)?;
            if (&manifest.component, &manifest.version) != (&release.component, &release.version) {
                let is = format!("it is {}@{}", manifest.component, manifest.version);
                return Err(refused(
                    name,
                    format!("{is}, the index says {}@{}", release.component, release.version),
                )
                .into());
            }
            let signatures = release.signatures.iter().filter_map(|signature| unhex(signature)).collect();
            releases.push(Brought { manifest, bytes, signatures });
        }
        let named: BTreeSet<(Digest, u64)> = releases
            .iter()
            .flat_map(|release| {
                release.manifest.artifacts.iter().map(|artifact| (artifact.sha256, artifact.size))
            })
            .collect();
        for artifact in &bundle.artifacts {
            if !named.contains(&(artifact.sha256, artifact.size)) {
                let name = Bundle::artifact_name(&artifact.sha256);
                return Err(refused(name, "no release of the bundle names it").into());
            }
        }
        Ok(Self { source, bundle, releases, next: 0 })
    }

    /// The index.
    #[must_use]
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The releases, in the index's order.
    #[must_use]
    pub fn releases(&self) -> &[Brought] {
        &self.releases
    }

    /// The artifact that comes next; `None` after the last one.
    #[must_use]
    pub fn upcoming(&self) -> Option<Piece> {
        self.bundle.artifacts.get(self.next).copied()
    }

    /// Copies the next artifact; where it fails, what `to` was given is worth nothing. After the last one it checks
    /// the end of the bundle and says `None`.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn artifact(&mut self, to: &mut dyn Write) -> Result<Option<Piece>, BundleError> {
        let Some(artifact) = self.upcoming() else {
            self.end()?;
            return Ok(None);
        };
        piece(&mut self.source, &Bundle::artifact_name(&artifact.sha256), &artifact, to)?;
        self.next += 1;
        Ok(Some(artifact))
    }

    fn end(&mut self) -> Result<(), BundleError> {
        let mut tail = Vec::new();
        (&mut self.source).take(MAX_TAIL + 1).read_to_end(&mut tail)?;
        let whole = tail.len() >= 2 * header::BLOCK && tail.len() as u64 <= MAX_TAIL;
        if !whole || tail.iter().any(|byte| *byte != 0) {
            return Err(refused("its end", "more follows than the index says, or less").into());
        }
        Ok(())
    }
}

/// The header of the next file, which should be `expected`.
fn entry(source: &mut impl Read, expected: &str) -> Result<(String, u64), BundleError> {
    let mut block = [0; header::BLOCK];
    match source.read_exact(&mut block) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(refused(expected, "the file ends before it").into());
        }
        read => read?,
    }
    header::read(&block).map_err(|problem| refused(expected, problem).into())
}

/// One file of the index: the name, the length and the digest have to be exactly those.
fn piece(
    source: &mut impl Read,
    expected: &str,
    piece: &Piece,
    to: &mut dyn Write,
) -> Result<(), BundleError> {
    let (name, size) = entry(source, expected)?;
    if name != expected || size != piece.size {
        let problem = format!("`{}` of {size} bytes is in its place", name.escape_debug());
        return Err(refused(expected, problem).into());
    }
    let found = content(source, expected, size, to)?;
    if found != piece.sha256 {
        return Err(refused(expected, format!("its SHA-256 is {found}")).into());
    }
    Ok(())
}

fn content(source: &mut impl Read, name: &str, size: u64, to: &mut dyn Write) -> Result<Digest, BundleError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut left = size;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
        let count = match source.read(&mut buffer[..most]) {
            Ok(0) => return Err(refused(name, "the file ends in its middle").into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        hash.update(&buffer[..count]);
        to.write_all(&buffer[..count])?;
        left -= count as u64;
    }
    let mut rest = [0; header::BLOCK];
    let padding = &mut rest[..header::padding(size)];
    source.read_exact(padding).map_err(|_| refused(name, "the file ends in its middle"))?;
    Ok(Digest(hash.finalize().into()))
}
