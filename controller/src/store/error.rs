//! Why the store said no.

use upfleet_domain::{
    id::{ComponentId, Version},
    reason::{Reason, ReasonCode},
};

/// A precondition that did not hold. The whole batch was left undone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// It is there already.
    #[error("{what} `{name}` exists already")]
    Exists {
        /// The kind of thing.
        what: &'static str,
        /// Which.
        name: String,
    },
    /// It is not there.
    #[error("{what} `{name}` does not exist")]
    Missing {
        /// The kind of thing.
        what: &'static str,
        /// Which.
        name: String,
    },
    /// It has changed since it was read. Read again and decide anew.
    #[error("{what} `{name}` has changed")]
    Stale {
        /// The kind of thing.
        what: &'static str,
        /// Which.
        name: String,
    },
    /// Releases still name the artifact.
    #[error("artifact `{name}` is in use")]
    InUse {
        /// The artifact.
        name: String,
        /// The releases, as `component@version`.
        by: Vec<String>,
    },
    /// Another release of the component has the sequence.
    #[error("`{component}` already has sequence {sequence}")]
    SequenceTaken {
        /// The component.
        component: ComponentId,
        /// The sequence.
        sequence: u64,
        /// Who has it.
        version: Version,
    },
    /// Another patch release of the component has the number.
    #[error("`{component}` already has patch {number}")]
    NumberTaken {
        /// The component.
        component: ComponentId,
        /// The number.
        number: u32,
        /// Who has it.
        version: Version,
    },
    /// The same request id came with another method or body.
    #[error("request id `{request_id}` was used for another request")]
    RequestReused {
        /// The id.
        request_id: String,
    },
    /// The token is unknown, used up, expired, or for another node.
    #[error("token `{id}` is not good")]
    Token {
        /// The token's public id.
        id: String,
    },
}

/// A failed read or write.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A precondition did not hold: the caller's to solve.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The disk is full or the store locked; nothing was written and the call can be repeated. The
    /// operator's to solve.
    #[error("could not {operation} the store: {problem}")]
    Unavailable {
        /// What was attempted.
        operation: &'static str,
        /// What the store said.
        problem: String,
    },
    /// A newer version wrote the store. The operator's to solve.
    #[error(
        "`{path}` has format {found}, this version reads up to {known}: start the newer version again, or go back to a \
         backup from before it with `upfleet restore`"
    )]
    TooNew {
        /// The file.
        path: String,
        /// Its format.
        found: u32,
        /// The newest known one.
        known: u32,
    },
    /// The database itself is damaged. The operator's to solve: a backup has to be put back.
    #[error("could not use the store: {problem}; put a backup back with `upfleet restore`")]
    Broken {
        /// What the database said.
        problem: String,
    },
    /// A row can't be read. Ours to solve, or damage.
    #[error("could not read {what} `{name}` in the store")]
    Damaged {
        /// The kind of thing.
        what: &'static str,
        /// Which.
        name: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Anything else. Ours to solve.
    #[error("could not {operation} the store")]
    Internal {
        /// What was attempted.
        operation: &'static str,
        /// What the store said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// The reason to show; `None` for what is ours and belongs into the log.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        let of = Reason::new;
        Some(match self {
            Self::Conflict(conflict) => conflict.reason(),
            Self::Unavailable { problem, .. } => of(ReasonCode::StoreUnavailable).with("problem", problem),
            Self::Broken { problem } => of(ReasonCode::StoreDamaged).with("problem", problem),
            Self::TooNew { path, found, known } => {
                of(ReasonCode::StateTooNew).with("path", path).with("found", found).with("known", known)
            }
            Self::Damaged { .. } | Self::Internal { .. } => return None,
        })
    }

    /// Whether the thing has changed since it was read: read again and decide anew.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        matches!(self, Self::Conflict(Conflict::Stale { .. }))
    }
}

impl Conflict {
    /// The reason to show.
    #[must_use]
    pub fn reason(&self) -> Reason {
        let named = |code, what: &str, name: &str| Reason::new(code).with("what", what).with("name", name);
        match self {
            Self::Exists { what, name } => named(ReasonCode::AlreadyExists, what, name),
            Self::Missing { what, name } => named(ReasonCode::NotFound, what, name),
            Self::Stale { what, name } => named(ReasonCode::EtagMismatch, what, name),
            Self::InUse { name, by } => {
                Reason::new(ReasonCode::ArtifactInUse).with("digest", name).with("releases", by.join(", "))
            }
            Self::SequenceTaken { component, sequence, version } => Reason::new(ReasonCode::SequenceTaken)
                .with("component", component)
                .with("sequence", sequence)
                .with("version", version),
            Self::NumberTaken { component, number, version } => Reason::new(ReasonCode::NumberTaken)
                .with("component", component)
                .with("number", number)
                .with("release", format!("{component}@{version}")),
            Self::RequestReused { request_id } => {
                Reason::new(ReasonCode::RequestIdReused).with("request_id", request_id)
            }
            Self::Token { .. } => Reason::new(ReasonCode::TokenInvalid),
        }
    }
}
