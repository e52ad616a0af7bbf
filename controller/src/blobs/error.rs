//! Why the artifact store said no.

use std::path::{Path, PathBuf};

use upfleet_domain::{
    digest::Digest,
    reason::{Reason, ReasonCode},
};

/// A failed operation on artifact bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlobError {
    /// It is not there. The caller's to solve.
    #[error("artifact {0} does not exist")]
    Missing(Digest),
    /// What lies on the disk has changed. The operator's to solve.
    #[error("artifact {0} is damaged")]
    Damaged(Digest),
    /// The uploaded bytes are others than announced; they were thrown away. The publisher's to solve.
    #[error("the upload has SHA-256 {actual}, not {expected}")]
    WrongDigest {
        /// As announced.
        expected: Digest,
        /// As uploaded.
        actual: Digest,
    },
    /// The upload's length is not the announced one. The publisher's to solve.
    #[error("the upload has {actual} bytes, not {expected}")]
    WrongSize {
        /// As announced.
        expected: u64,
        /// As uploaded.
        actual: u64,
    },
    /// A stream began elsewhere than where the upload stands. Ask again and resume there.
    #[error("the upload stands at {expected}, not {actual}")]
    WrongOffset {
        /// Where it stands.
        expected: u64,
        /// Where the stream began.
        actual: u64,
    },
    /// Another stream uploads, or deletes, the same digest.
    #[error("artifact {0} is being written")]
    Busy(Digest),
    /// A limit is reached.
    #[error("{what} exceeds its limit of {limit}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// How far.
        limit: u64,
    },
    /// A range begins after the end.
    #[error("byte {offset} lies after the end of {size} bytes")]
    Range {
        /// Where it begins.
        offset: u64,
        /// The artifact's length.
        size: u64,
    },
    /// The disk refused. The operator's to solve.
    #[error("could not {operation} `{}`", path.display())]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl BlobError {
    /// The reason to show.
    #[must_use]
    pub fn reason(&self) -> Reason {
        let of = Reason::new;
        match self {
            Self::Missing(digest) => {
                of(ReasonCode::NotFound).with("what", "artifact").with("name", format!("artifacts/{digest}"))
            }
            Self::Damaged(digest) => of(ReasonCode::ArtifactDamaged).with("digest", digest),
            Self::WrongDigest { expected, actual } => {
                of(ReasonCode::ArtifactDigestMismatch).with("expected", expected).with("actual", actual)
            }
            Self::WrongSize { expected, actual } => {
                of(ReasonCode::ArtifactSizeMismatch).with("expected", expected).with("actual", actual)
            }
            Self::WrongOffset { expected, actual } => {
                of(ReasonCode::UploadOffsetMismatch).with("expected", expected).with("actual", actual)
            }
            Self::Busy(digest) => of(ReasonCode::UploadBusy).with("digest", digest),
            Self::Limit { what, limit } => {
                of(ReasonCode::LimitExceeded).with("what", what).with("limit", limit)
            }
            Self::Range { .. } => {
                of(ReasonCode::InvalidArgument).with("field", "offset").with("problem", self)
            }
            Self::Io { source, .. } => {
                of(ReasonCode::StoreUnavailable).with("problem", format!("{self}: {source}"))
            }
        }
    }
}

/// Says on what an operation failed.
pub(super) fn io(operation: &'static str, path: &Path) -> impl Fn(std::io::Error) -> BlobError {
    move |source| BlobError::Io { operation, path: path.to_owned(), source }
}
