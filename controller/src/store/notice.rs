//! Notices: what changed, told after it is durable.
//!
//! A notice carries no data: whoever hears one reads the store. A receiver that lagged reads everything
//! again, so a lost notice costs time and nothing else.

use upfleet_domain::id::{NodeId, RolloutId};

/// Something changed and can be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Notice {
    /// A rollout, one of its upgrades, or its events.
    Rollout {
        /// Which.
        id: RolloutId,
    },
    /// A node, its session or one of its components.
    Node {
        /// Which.
        id: NodeId,
    },
    /// What a node should run or hold.
    Desired {
        /// The node.
        node: NodeId,
    },
    /// What a node's agent said to its orders.
    Answered {
        /// The node.
        node: NodeId,
    },
    /// A certificate was issued, revoked or suspended.
    Certificates,
    /// A release, an artifact or a quarantine.
    Content,
}
