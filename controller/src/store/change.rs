//! What can be written: a closed list of changes, each with its precondition inside.
//!
//! A batch of changes is written whole or not at all. Whatever a person changes carries a
//! [`Change::Audit`] in the same batch.

use std::collections::BTreeMap;

use upfleet_domain::{
    digest::Digest,
    id::{ComponentId, NodeId, RolloutId, UpgradeId, Version},
    jvm::Jvm,
    order::{DesiredState, Generation, HoldOrder},
    reason::Reason,
    release::Platform,
    report::{ComponentInventory, UpgradeReport},
    rollout::{NodeUpgrade, Plan},
    time::Time,
};

use super::records::{
    ArtifactRecord, AuditRecord, CertificateRecord, DigestFailure, NodeRecord, QuarantineRecord,
    ReleaseRecord, RequestRecord, RolloutRecord, SessionRecord, TokenRecord, Yank,
};

/// What must be there for a row to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nothing: it is created.
    Absent,
    /// Exactly this revision (of a rollout: this version).
    Revision(u64),
    /// Whatever.
    Any,
}

/// One change.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "batches are short and live for one commit; the boxed ones are the largest"
)]
pub enum Change {
    /// Creates or replaces a node, but for its session and `last_seen`.
    PutNode {
        /// The node; its `revision` is ignored.
        node: NodeRecord,
        /// The precondition.
        expected: Expected,
    },
    /// A node's agent opened a session; it displaces an earlier one. The node must exist.
    OpenSession {
        /// The node.
        node: NodeId,
        /// The session.
        session: SessionRecord,
        /// What the agent's programs are built for.
        platform: Option<Platform>,
        /// Facts about the machine.
        facts: BTreeMap<String, String>,
    },
    /// A session ended. Does nothing where another instance has displaced it.
    CloseSession {
        /// The node.
        node: NodeId,
        /// The session's instance.
        instance_id: String,
        /// When the agent was last heard.
        time: Time,
    },
    /// All sessions ended: a controller starts, so none can be open.
    CloseAllSessions,
    /// Nodes were heard. Gives no notice.
    SeeNodes(Vec<(NodeId, Time)>),
    /// Replaces what one component of a node runs. Where it was changed on the node itself, that is a row of history.
    PutComponent {
        /// The node; it must exist.
        node: NodeId,
        /// What the agent said.
        inventory: ComponentInventory,
        /// Set where the present state was ordered by somebody now known; else what is stored stays.
        changed: Option<(String, Option<RolloutId>)>,
    },
    /// Removes the components of a node that are not in the list.
    KeepComponents {
        /// The node.
        node: NodeId,
        /// The components its configuration has.
        components: Vec<ComponentId>,
    },
    /// Replaces what is known of a node's JVMs. Gives no notice.
    PutJvms {
        /// The node; it must exist.
        node: NodeId,
        /// All of them.
        jvms: Vec<Jvm>,
    },
    /// Sets what a component should run. Its generation must be higher than the stored one.
    PutDesired {
        /// The node; it must exist.
        node: NodeId,
        /// The order.
        desired: DesiredState,
    },
    /// Holds or releases a component. Its generation must be higher than the stored one.
    PutHold {
        /// The node; it must exist.
        node: NodeId,
        /// The component.
        component: ComponentId,
        /// The order.
        hold: HoldOrder,
    },
    /// An agent has made orders durable. Lower numbers than the stored ones change nothing.
    Acknowledge {
        /// The node.
        node: NodeId,
        /// The component.
        component: ComponentId,
        /// The generation kept.
        generation: Generation,
        /// The hold generation kept.
        hold_generation: u64,
    },
    /// An agent refused a desired state. Where the refused generation is the present one and belongs to an
    /// upgrade under way, that upgrade ends `REFUSED` (but not for `STALE_GENERATION`).
    Refuse {
        /// The node.
        node: NodeId,
        /// The component.
        component: ComponentId,
        /// The generation refused.
        generation: Generation,
        /// Why.
        reason: Reason,
        /// When.
        time: Time,
    },

    /// Stores an artifact's record. Does nothing where it is there.
    PutArtifact(ArtifactRecord),
    /// Removes an artifact's record; no release may name it.
    DeleteArtifact(Digest),
    /// Writes nothing: an artifact's record must be there.
    NeedArtifact(Digest),
    /// Publishes a release: neither its version nor its sequence, nor its number as a patch, may be taken. Patches
    /// have sequences of their own.
    CreateRelease(ReleaseRecord),
    /// Takes a release out of use. Does nothing where it is already.
    YankRelease {
        /// The component.
        component: ComponentId,
        /// The version.
        version: Version,
        /// When, who, why.
        yank: Yank,
    },
    /// A digest rolled back on a node.
    RecordDigestFailure(DigestFailure),
    /// Quarantines a digest, or adds nodes to its quarantine; a lifted one stays lifted unless `renew`.
    Quarantine {
        /// The record.
        record: QuarantineRecord,
        /// Replace a lifted one.
        renew: bool,
    },
    /// Lifts a digest's quarantine and forgets its failures. Does nothing where there is none.
    LiftQuarantine {
        /// The digest.
        digest: Digest,
        /// When, who, why.
        lift: Yank,
    },

    /// Records a certificate; its serial must be new.
    CreateCertificate(CertificateRecord),
    /// Revokes certificates for good. Unknown serials are passed over.
    RevokeCertificates {
        /// The serials.
        serials: Vec<String>,
        /// When.
        time: Time,
    },
    /// Revokes all certificates of a node for good, whoever issued one just now.
    RevokeNodeCertificates {
        /// The node.
        node: NodeId,
        /// When.
        time: Time,
    },
    /// Suspends or restores all certificates of a node.
    SuspendNodeCertificates {
        /// The node.
        node: NodeId,
        /// Which of the two.
        suspended: bool,
    },
    /// Records a token; its id must be new.
    CreateToken(TokenRecord),
    /// Uses a token up: it must be there, unused, unexpired, of that secret, and good for that node.
    UseToken {
        /// Its id.
        id: String,
        /// SHA-256 of the secret presented.
        secret_hash: Digest,
        /// The node that enrolls.
        node: NodeId,
        /// Now.
        time: Time,
    },
    /// Removes a token; it must be there.
    RevokeToken {
        /// Its id.
        id: String,
    },

    /// Stores a rollout with its plan and its upgrades; its id must be new. Its revision is 1, and its one
    /// event is the rollout.
    CreateRollout {
        /// The rollout.
        rollout: Box<RolloutRecord>,
        /// The plan, immutable.
        plan: Box<Plan>,
        /// One row for each planned node.
        upgrades: Vec<NodeUpgrade>,
    },
    /// Replaces a rollout, raises its revision and version, and appends the event.
    PutRollout {
        /// The rollout; its `revision` and `version` are ignored.
        rollout: Box<RolloutRecord>,
        /// The precondition, on its `version`.
        expected: Expected,
        /// When.
        time: Time,
    },
    /// Replaces an upgrade's row, raises the rollout's revision, and appends the event.
    PutUpgrade {
        /// The rollout.
        rollout: RolloutId,
        /// The row; its `revision` is ignored.
        upgrade: Box<NodeUpgrade>,
        /// The precondition, on the row's revision.
        expected: Expected,
        /// When.
        time: Time,
    },
    /// An agent's report. Recorded once by `(upgrade, sequence)`: a sequence not above the stored one, an
    /// unknown upgrade, or another node's, changes nothing. See [`ReportOutcome`].
    RecordReport {
        /// The node that reported.
        node: NodeId,
        /// What it said.
        report: Box<UpgradeReport>,
        /// When it arrived.
        time: Time,
    },

    /// Forgets what every component should run: after a restore, orders from before mean nothing. Holds stay.
    ForgetOrders,
    /// Raises the epoch to exactly one more than `from`.
    RaiseEpoch {
        /// The present one.
        from: u64,
    },
    /// Says who, what, before, after; `sequence` is ignored.
    Audit(AuditRecord),
    /// Makes the batch exactly-once: where the same request was answered before, nothing is written and
    /// [`Committed::replayed`] has the first answer.
    Request(RequestRecord),
    /// Forgets answers to requests from before a time.
    PruneRequests {
        /// That time.
        before: Time,
    },
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportOutcome {
    /// It was recorded.
    Recorded,
    /// It, or a later one, was recorded before. Acknowledge it.
    Duplicate,
    /// No such upgrade, e.g. after a restore or for an earlier attempt. Acknowledge it, so that the agent can
    /// forget it.
    Unknown,
    /// The upgrade is another node's. Acknowledge it, so that it does not come again, and tell the agent.
    Foreign,
}

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// The first answer, where the batch carried a request that was answered before. Nothing was written.
    pub replayed: Option<Vec<u8>>,
    /// The new revision of each rollout touched.
    pub revisions: BTreeMap<RolloutId, u64>,
    /// What became of each report, in order.
    pub reports: Vec<(UpgradeId, u64, ReportOutcome)>,
}
