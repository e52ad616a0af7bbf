//! What happens to a component, and what the machine wants done about it.

use super::{
    history::Entry,
    policy::Policy,
    step::{Answer, Failure, Step},
};
use crate::{
    id::{ComponentId, UpgradeId},
    order::{DesiredState, Generation, HoldOrder},
    patch::PatchSpec,
    reason::Reason,
    release::Kind,
    state::{ComponentState, Layer, ReleaseRef},
};

/// What a verified manifest offers this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    /// The release as it concerns this node's platform.
    pub release: ReleaseRef,
    /// Its kind.
    pub kind: Kind,
    /// The artifact's length in bytes.
    pub size: u64,
    /// Why it is not for this node's platform, if so; then `release.artifact` means nothing.
    pub unfit: Option<Reason>,
}

/// A desired state with what was read from its manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The desired state.
    pub desired: DesiredState,
    /// For [`crate::order::Target::Install`]: what the manifest offers, or why it can't be trusted.
    pub release: Option<Result<Offered, Reason>>,
    /// For each of the order's layers: what its manifest offers, or why one can't be trusted.
    pub layers: Result<Vec<OfferedLayer>, Reason>,
}

/// What a patch's verified manifest offers this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedLayer {
    /// The layer as ordered.
    pub layer: Layer,
    /// The release as it concerns this node's platform.
    pub offered: Offered,
    /// What it patches.
    pub patch: PatchSpec,
}

/// What happens to a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The agent has started and read the journal.
    Started,
    /// The controller sent a desired state. Answered by [`Effect::Answer`].
    Order(Box<Offer>),
    /// A person holds or releases the component.
    Hold(HoldOrder),
    /// A person at the node applies a release or a stack from a file. Answered by [`Effect::Answer`]; the component is
    /// held then, as by a local rollback.
    LocalApply {
        /// What the file offers, as an order without rollout and upgrade.
        offer: Box<Offer>,
        /// Why.
        message: String,
    },
    /// A person at the node wants a kept state back. Answered by [`Effect::Answer`].
    LocalRollback {
        /// Which; the newest kept one where `None`.
        to: Option<ComponentState>,
        /// Why.
        message: String,
    },
    /// A step was answered.
    Done {
        /// Of which [`Effect::Perform`].
        ticket: u64,
        /// What it found, or why it failed.
        answer: Box<Result<Answer, Failure>>,
    },
    /// A step under way has something to say, e.g. that an attempt to fetch failed.
    Note {
        /// Of which [`Effect::Perform`].
        ticket: u64,
        /// What.
        reason: Reason,
    },
    /// [`Effect::Claim`] was answered: granted, or which component stands in the way.
    Claim(Result<(), ComponentId>),
    /// Time has passed.
    Tick,
    /// It is time to look whether all is as recorded.
    Look,
    /// The controller has recorded all reports of an upgrade up to this one.
    ReportAcked {
        /// The upgrade.
        upgrade: UpgradeId,
        /// The report's number.
        sequence: u64,
    },
    /// The configuration was read again.
    Configured(Box<Policy>),
}

/// What the machine wants done, in this order, after the record is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Answer the order in hand.
    Answer(Result<Generation, Reason>),
    /// Perform a step and send [`Event::Done`] with the ticket.
    Perform {
        /// Names this attempt.
        ticket: u64,
        /// What to do.
        step: Step,
    },
    /// Leave the step of this ticket; its answer is of no interest any more.
    Abort {
        /// Which.
        ticket: u64,
    },
    /// Ask for the right to upgrade while the components of `exclusive_with` do not.
    Claim {
        /// After a crash the right is taken, since the upgrade is under way already.
        take: bool,
    },
    /// Give that right back.
    Release,
    /// The outbox has something new to send.
    Report,
    /// The inventory has changed.
    Inventory,
    /// An upgrade ended, and this is for the component's history.
    History(Box<Entry>),
    /// An upgrade ended: a good moment to compact the journal.
    Compact,
}
