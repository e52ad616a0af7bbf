//! One node's upgrade: its phases and outcomes, and the machine that moves between them.

use std::fmt;

use serde::{Deserialize, Serialize};

pub mod admit;
pub mod event;
pub mod history;
pub mod interruption;
pub mod keep;
pub mod machine;
pub mod outbox;
pub mod policy;
pub mod preflight;
pub mod record;
pub mod recover;
pub mod soak;
pub mod step;
pub mod table;

macro_rules! named {
    ($(#[$meta:meta])* $type:ident { $($(#[$doc:meta])* $name:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $type { $($(#[$doc])* #[serde(rename = $text)] $name,)+ }

        impl $type {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// As people and the wire see it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

named! {
    /// Where an upgrade that is not finished stands.
    Phase {
        /// Ordered; nothing done.
        Pending = "PENDING",
        /// Disk, permission, platform and health are checked.
        Preflight = "PREFLIGHT",
        /// Bytes are on their way.
        Fetching = "FETCHING",
        /// The bytes are hashed as they lie on the disk.
        Verifying = "VERIFYING",
        /// Verified and in place beside the old version. The last safe point: nothing is switched yet.
        Staged = "STAGED",
        /// Backing up, switching, restarting.
        Activating = "ACTIVATING",
        /// The new version runs and is watched.
        Probing = "PROBING",
        /// Healthy; old states beyond `keep` are removed.
        Committing = "COMMITTING",
        /// The old state is being put back.
        RollingBack = "ROLLING_BACK",
    }
}

named! {
    /// How an upgrade ended.
    Outcome {
        /// Healthy for the soak time, and the digest of what really runs was reported.
        Succeeded = "SUCCEEDED",
        /// Nothing to do, shown by digest.
        AlreadyCurrent = "ALREADY_CURRENT",
        /// Stopped before anything was touched.
        FailedUnchanged = "FAILED_UNCHANGED",
        /// Touched, put back, and the old state is healthy again.
        RolledBack = "ROLLED_BACK",
        /// Needs a person.
        RollbackFailed = "ROLLBACK_FAILED",
        /// The agent's own policy said no.
        Refused = "REFUSED",
        /// Ended by a person before anything was touched.
        Cancelled = "CANCELLED",
        /// Ended by a newer order before anything was touched.
        Superseded = "SUPERSEDED",
        /// The deadline for offline nodes passed.
        Expired = "EXPIRED",
        /// A person chose to leave the node out. Set by the controller only.
        Skipped = "SKIPPED",
    }
}

/// Where an upgrade stands: under way, or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum UpgradeState {
    /// Under way.
    Active(Phase),
    /// Ended.
    Ended(Outcome),
}

impl UpgradeState {
    /// As people and the wire see it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active(phase) => phase.as_str(),
            Self::Ended(outcome) => outcome.as_str(),
        }
    }

    /// How it ended, if it did.
    #[must_use]
    pub fn outcome(self) -> Option<Outcome> {
        match self {
            Self::Active(_) => None,
            Self::Ended(outcome) => Some(outcome),
        }
    }
}

impl fmt::Display for UpgradeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a failed process left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// How it ended, e.g. `exit status 1` or `signal 11`.
    pub exit: String,
    /// Its last lines, at most 200.
    pub lines: Vec<String>,
    /// The last answers of the probe.
    pub probe_results: Vec<String>,
}
