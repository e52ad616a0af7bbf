//! Certificates, tokens, and who did what.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use upfleet_domain::{
    digest::Digest,
    id::{NodeId, UserId},
    time::Time,
};

/// What a user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Reads, drives rollouts, holds and cordons.
    Operator,
    /// Reads, uploads artifacts, publishes and yanks releases.
    Publisher,
    /// Everything, including users, tokens and retiring nodes.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Viewer, Self::Operator, Self::Publisher, Self::Admin];

    /// As people see it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Publisher => "publisher",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.iter().copied().find(|role| role.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is no role: use viewer, operator, publisher or admin"))
    }
}

/// Whom a certificate names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A node.
    Node(NodeId),
    /// A person or a CI job.
    User {
        /// The name.
        id: UserId,
        /// What it may do.
        role: Role,
    },
    /// The controller itself.
    Controller,
}

impl Subject {
    /// `node`, `user` or `controller`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Node(_) => "node",
            Self::User { .. } => "user",
            Self::Controller => "controller",
        }
    }

    /// The bare name; empty for the controller.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Node(id) => id.as_str(),
            Self::User { id, .. } => id.as_str(),
            Self::Controller => "",
        }
    }
}

/// A certificate that this fleet's CA issued. The serial decides who a caller is and what it may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRecord {
    /// The serial number in lower-case hex.
    pub serial: String,
    /// Whom it names.
    pub subject: Subject,
    /// When it was issued.
    pub issued: Time,
    /// When it expires.
    pub expires: Time,
    /// Set for good once revoked.
    pub revoked: Option<Time>,
    /// Refused for as long as it is set.
    pub suspended: bool,
    /// Who had it issued.
    pub creator: String,
}

/// A single-use right to enroll. Only a hash of its secret is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Its public name.
    pub id: String,
    /// SHA-256 of the secret.
    pub secret_hash: Digest,
    /// The only node it is good for.
    pub node: Option<NodeId>,
    /// Labels the node gets.
    pub labels: BTreeMap<String, String>,
    /// Whether it may replace a node that is enrolled already.
    pub allow_replace: bool,
    /// When it was created.
    pub created: Time,
    /// When it expires.
    pub expires: Time,
    /// Who created it.
    pub creator: String,
    /// The node that used it up.
    pub used_by: Option<NodeId>,
}

/// The stored answer to a creation, so that the same `request_id` again creates nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRecord {
    /// Who asked, e.g. `users/anna`.
    pub principal: String,
    /// The `request_id`.
    pub id: String,
    /// The method, e.g. `CreateRollout`.
    pub method: String,
    /// SHA-256 of the request's body.
    pub body: Digest,
    /// The answer's bytes, in whatever encoding the caller chose.
    pub response: Vec<u8>,
    /// When it was answered.
    pub time: Time,
}

/// Who changed what: one entry for each mutation by a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// Its place, 1 for the first. Set by the store.
    pub sequence: u64,
    /// Who, e.g. `users/anna`.
    pub actor: String,
    /// The request's id, empty where it had none.
    pub request_id: String,
    /// What was done, e.g. `rollout.pause`.
    pub action: String,
    /// To what, e.g. `rollouts/r-7f3k2m`.
    pub object: String,
    /// What it was before; `null` for a creation.
    pub before: serde_json::Value,
    /// What it is now; `null` for a deletion.
    pub after: serde_json::Value,
    /// When.
    pub time: Time,
}
