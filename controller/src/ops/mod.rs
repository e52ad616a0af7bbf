//! What can be done to the fleet: plain functions of a principal and a request in domain types.
//!
//! They know no gRPC, so that other doors can be put beside it. Whoever calls them has been authorised for the
//! method (`auth::METHODS`); what they change is recorded with actor, before and after in the same batch.

mod artifact;
mod attempts;
mod audit;
mod enroll;
mod fixes;
mod jvms;
mod node;
mod once;
mod release;
mod token;
mod user;

use std::sync::{Arc, atomic::AtomicU64};

use crate::{blobs::Blobs, ca::Ca, clock::Clock, sessions::Sessions, store::Store};

pub use artifact::{ArtifactView, Piece, Wanted};
pub use attempts::Attempts;
pub use audit::{Audit, audit};
pub use enroll::{EnrollWish, Enrolled, renew_node};
pub use fixes::{FixAnswer, FixQuestion, FixView, PatchCount, Standing};
pub use jvms::{JvmQuestion, JvmView};
pub use node::{NodeView, WatchItem};
pub use once::{Once, answer};
pub use release::ReleaseView;
pub use token::{MintedToken, TokenWish};
pub use user::{IssuedUser, UserWish};

/// Where agents and people reach this controller, as tokens and answers tell them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doors {
    /// `host:port` of the main listener.
    pub api: String,
    /// `host:port` of the enrollment listener.
    pub enroll: String,
}

/// All operations of one controller. Clones share everything.
#[derive(Clone)]
pub struct Operations {
    /// The truth.
    pub store: Arc<dyn Store>,
    /// Artifacts' bytes.
    pub blobs: Blobs,
    /// Signs.
    pub ca: Arc<Ca>,
    /// The time.
    pub clock: Clock,
    /// Who is connected.
    pub sessions: Sessions,
    /// Where this controller is reached.
    pub doors: Doors,
    /// Failed attempts to enroll.
    pub attempts: Arc<Attempts>,
    /// Artifact bytes sent, for the metrics.
    pub downloaded: Arc<AtomicU64>,
}
