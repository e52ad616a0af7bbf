//! Identities from certificates, and principals: an identity together with what the store says it may do.

use std::fmt;

use upfleet_api::v1;
use upfleet_domain::id::{NodeId, UserId};

pub use crate::store::Role;

/// Who a certificate is for: the SPIFFE URI in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A node's agent.
    Node(NodeId),
    /// A person or a CI job.
    User(UserId),
    /// A controller.
    Controller,
}

const NODE: &str = "spiffe://upfleet/node/";
const USER: &str = "spiffe://upfleet/user/";
const CONTROLLER: &str = "spiffe://upfleet/controller";

impl Identity {
    /// The URI that certificates carry.
    #[must_use]
    pub fn uri(&self) -> String {
        match self {
            Self::Node(node) => format!("{NODE}{node}"),
            Self::User(user) => format!("{USER}{user}"),
            Self::Controller => CONTROLLER.to_owned(),
        }
    }

    /// Reads the URI; `None` for anything else.
    #[must_use]
    pub fn from_uri(uri: &str) -> Option<Self> {
        if let Some(node) = uri.strip_prefix(NODE) {
            return node.parse().ok().map(Self::Node);
        }
        if let Some(user) = uri.strip_prefix(USER) {
            return user.parse().ok().map(Self::User);
        }
        (uri == CONTROLLER).then_some(Self::Controller)
    }
}

impl fmt::Display for Identity {
    /// The resource name: `nodes/web-01`, `users/anna`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "nodes/{node}"),
            Self::User(user) => write!(f, "users/{user}"),
            Self::Controller => f.write_str("controller"),
        }
    }
}

/// The role on the wire.
#[must_use]
pub fn role_to_wire(role: Role) -> v1::Role {
    match role {
        Role::Viewer => v1::Role::Viewer,
        Role::Operator => v1::Role::Operator,
        Role::Publisher => v1::Role::Publisher,
        Role::Admin => v1::Role::Admin,
    }
}

/// The role from the wire; `None` where it is unset or unknown.
#[must_use]
pub fn role_from_wire(role: i32) -> Option<Role> {
    match v1::Role::try_from(role).ok()? {
        v1::Role::Unspecified => None,
        v1::Role::Viewer => Some(Role::Viewer),
        v1::Role::Operator => Some(Role::Operator),
        v1::Role::Publisher => Some(Role::Publisher),
        v1::Role::Admin => Some(Role::Admin),
    }
}

/// A caller whose certificate the store knows and has nothing against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// A node's agent: speaks for this node and no other.
    Node(NodeId),
    /// A person or a CI job.
    User {
        /// Who.
        user: UserId,
        /// What they may do.
        role: Role,
    },
}

impl Principal {
    /// The role; `None` for a node.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        match self {
            Self::Node(_) => None,
            Self::User { role, .. } => Some(*role),
        }
    }
}

impl fmt::Display for Principal {
    /// The resource name, as records of changes carry it: `nodes/web-01`, `users/anna`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "nodes/{node}"),
            Self::User { user, .. } => write!(f, "users/{user}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_back_from_their_uri() {
        for identity in [
            Identity::Node("web-01".parse().unwrap()),
            Identity::User("ci@build".parse().unwrap()),
            Identity::Controller,
        ] {
            assert_eq!(Identity::from_uri(&identity.uri()), Some(identity));
        }
    }

    #[test]
    fn other_uris_are_nobody() {
        for uri in [
            "spiffe://other/node/web-01",
            "spiffe://upfleet/node/",
            "spiffe://upfleet/node/a/b",
            "spiffe://upfleet/node/../user/root",
            "spiffe://upfleet/controller/x",
            "https://upfleet/node/web-01",
        ] {
            assert_eq!(Identity::from_uri(uri), None, "{uri}");
        }
    }

    #[test]
    fn roles_parse_back() {
        for role in Role::ALL.iter().copied() {
            assert_eq!(role.as_str().parse(), Ok(role));
            assert_eq!(role_from_wire(role_to_wire(role) as i32), Some(role));
        }
        assert_eq!(role_from_wire(0), None);
        assert_eq!(role_from_wire(99), None);
    }
}
