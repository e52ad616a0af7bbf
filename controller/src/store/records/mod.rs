//! What the store keeps, in domain types. Plain data: nothing here decides or does I/O.

mod content;
mod fleet;
mod identity;
mod rollout;

pub use content::{ArtifactRecord, DigestFailure, QuarantineRecord, ReleaseRecord, Yank};
pub use fleet::{
    ComponentCount, ComponentRecord, DesiredRecord, HistoryRecord, JvmsRecord, NodeRecord, NodeState,
    Refusal, SessionRecord,
};
pub use identity::{AuditRecord, CertificateRecord, RequestRecord, Role, Subject, TokenRecord};
pub use rollout::{EventKind, EventRecord, RolloutRecord};

/// What is known about the store itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Raised when a backup is restored; part of every generation.
    pub epoch: u64,
    /// Random, made when the store was created; a restored copy keeps it.
    pub cluster_id: String,
    /// The number of the newest migration that was applied.
    pub format: u32,
}
