//! From the machine to the store: one batch with a step's outcome and all that it asks for.
//!
//! The batch holds only if the rollout is still as it was read; so a person's command and the engine never
//! overtake each other.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt as _;
use upfleet_domain::{
    digest::Digest,
    id::{NodeId, RolloutId},
    order::Generation,
    reason::{Reason, ReasonCode},
    rollout::{
        NodeUpgrade, State,
        event::{By, Effect, Event, Tell},
        machine::{Machine, Origin, Outcomes},
        plan,
    },
    time::Time,
};

use super::{fleet, load::Loaded};
use crate::{
    failure::internal,
    store::{
        AuditRecord, Change, DigestFailure, Expected, QuarantineRecord, RolloutRecord, Store, StoreError,
    },
};

/// A digest that rolled back on so many nodes is quarantined.
const QUARANTINE_AT: usize = 3;
/// From so many orders on, all desired states of the component are read at once.
const MANY: usize = 16;

/// Why a step was not stored.
pub(super) enum Failed {
    /// A person asked for what can't be done.
    Refused(Reason),
    /// The store said no; where that is stale, read again and decide anew.
    Store(StoreError),
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What a stored step leaves to be done in memory.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// Whether anything was written.
    pub(super) changed: bool,
    /// When to look again.
    pub(super) wake_at: Option<Time>,
}

/// Steps the machine and stores the outcome with `extra`.
///
/// `loaded` is consumed by value in effect: after a failure of the store it must be read again.
pub(super) async fn step(
    store: &dyn Store,
    loaded: &mut Loaded,
    events: Vec<Event>,
    extra: impl FnOnce(&Machine) -> Vec<Change>,
    now: Time,
) -> Result<Stored, Failed> {
    let before = loaded.machine.rollout.clone();
    // Taken out rather than copied: a rollout has as many upgrades as the fleet has nodes.
    let empty = Machine { rollout: before.clone(), upgrades: BTreeMap::new() };
    let (machine, result) = std::mem::replace(&mut loaded.machine, empty).step_all(events, now);
    let outcomes = match result {
        Ok(outcomes) => outcomes,
        Err(reason) => {
            loaded.machine = machine;
            return Err(Failed::Refused(reason));
        }
    };
    let mut batch = Batch { store, machine, changes: Vec::new(), touched: outcomes.upgrades.clone(), now };
    let wake_at = batch.effects(outcomes).await?;
    let Batch { machine, mut changes, touched, .. } = batch;
    let extra = extra(&machine);
    let changed = !touched.is_empty() || machine.rollout != before;
    if !changed && extra.is_empty() && changes.is_empty() {
        loaded.machine = machine;
        return Ok(Stored { changed: false, wake_at });
    }
    let id = machine.rollout.id.clone();
    for (node, revision) in touched {
        let Some(upgrade) = machine.upgrades.get(&node).cloned() else { continue };
        let expected = Expected::Revision(revision);
        changes.push(Change::PutUpgrade {
            rollout: id.clone(),
            upgrade: Box::new(upgrade),
            expected,
            time: now,
        });
    }
    // Also where only upgrades changed: the rollout's version is what makes the whole decision hold.
    let record = RolloutRecord { rollout: machine.rollout.clone(), ..loaded.record.clone() };
    let expected = Expected::Revision(loaded.record.version);
    changes.push(Change::PutRollout { rollout: Box::new(record), expected, time: now });
    changes.extend(audit_of_state(before.state, &machine, extra.is_empty(), now));
    changes.extend(extra);
    store.commit(changes).await?;
    loaded.machine = machine;
    Ok(Stored { changed: true, wake_at })
}

/// What the controller itself decided is recorded as well as what people did.
fn audit_of_state(before: State, machine: &Machine, own: bool, now: Time) -> Option<Change> {
    let rollout = &machine.rollout;
    (own && before != rollout.state).then(|| {
        Change::Audit(AuditRecord {
            sequence: 0,
            actor: "controller".to_owned(),
            request_id: String::new(),
            action: format!("rollout.{}", rollout.state.as_str().to_ascii_lowercase()),
            object: format!("rollouts/{}", rollout.id),
            before: serde_json::json!({ "state": before }),
            after: serde_json::json!({ "state": rollout.state, "reason": rollout.reason.message() }),
            time: now,
        })
    })
}

struct Batch<'s> {
    store: &'s dyn Store,
    machine: Machine,
    changes: Vec<Change>,
    /// The upgrades that changed, with the revision each had when it was read.
    touched: BTreeMap<NodeId, u64>,
    now: Time,
}

impl Batch<'_> {
    async fn effects(&mut self, outcomes: Outcomes) -> Result<Option<Time>, Failed> {
        let mut wake_at = None;
        let tells = outcomes.effects.iter().filter(|effect| matches!(effect, Effect::Tell { .. })).count();
        let mut generations = Generations::read(self.store, &self.machine, tells).await?;
        for effect in outcomes.effects {
            match effect {
                Effect::Tell { node, upgrade, tell } => {
                    let generation = generations.next(self.store, &self.machine, &node).await?;
                    self.tell(node, upgrade, &tell, generation);
                }
                Effect::RolledBack { node, digest } => self.rolled_back(node, digest).await?,
                Effect::StartRevert { nodes } => self.start_revert(nodes).await?,
                Effect::WakeAt(at) => wake_at = Some(at),
            }
        }
        Ok(wake_at)
    }

    fn tell(
        &mut self,
        node: NodeId,
        upgrade: Option<upfleet_domain::id::UpgradeId>,
        tell: &Tell,
        generation: Generation,
    ) {
        let Some(desired) = self.machine.desired(&node, upgrade, tell, generation, self.now) else { return };
        if let Some(row) = self.machine.upgrades.get_mut(&node) {
            row.generation = generation.number;
        }
        self.changes.push(Change::PutDesired { node, desired });
    }

    async fn rolled_back(&mut self, node: NodeId, digest: Digest) -> Result<(), Failed> {
        let (component, rollout) =
            (self.machine.rollout.spec.component.clone(), self.machine.rollout.id.clone());
        let failures = self.store.digest_failures(&digest).await?;
        let mut nodes: BTreeSet<NodeId> = failures.into_iter().map(|failure| failure.node).collect();
        nodes.insert(node.clone());
        // Several of one step are not in the store yet.
        nodes.extend(self.changes.iter().filter_map(|change| match change {
            Change::RecordDigestFailure(failure) if failure.digest == digest => Some(failure.node.clone()),
            _ => None,
        }));
        let failure = DigestFailure { digest, node, component: component.clone(), rollout, time: self.now };
        self.changes.push(Change::RecordDigestFailure(failure));
        if nodes.len() >= QUARANTINE_AT {
            let record = QuarantineRecord { digest, component, nodes, since: self.now, lifted: None };
            // Lifting forgets the failures, so these are new ones.
            self.changes.push(Change::Quarantine { record, renew: true });
        }
        Ok(())
    }

    /// Plans and stores the linked rollout, and tells the machine so. Its own driver starts it.
    async fn start_revert(&mut self, nodes: Vec<NodeId>) -> Result<(), Failed> {
        let rollout = &self.machine.rollout;
        let actor = match rollout.last_actor.as_str() {
            "" => "controller".to_owned(),
            actor => actor.to_owned(),
        };
        let by = By { actor, message: format!("puts back what {} changed", rollout.id) };
        let only = nodes.into_iter().collect();
        let event = match revert(self.store, &self.machine, by, Some(&only), self.now).await {
            Ok(linked) => {
                let event = Event::RevertStarted(linked.machine.rollout.id.clone());
                self.changes.push(linked.change());
                event
            }
            // A store that can't be read now says nothing about the nodes: the step is tried again.
            Err(reason) if reason.code == ReasonCode::StoreUnavailable => {
                let problem = reason.message();
                return Err(StoreError::Unavailable { operation: "read", problem }.into());
            }
            Err(reason) => Event::RevertImpossible(reason),
        };
        let machine = self.machine.clone();
        let (machine, result) = machine.step(event, self.now);
        self.machine = machine;
        if let Ok(outcomes) = result {
            for (node, revision) in outcomes.upgrades {
                self.touched.entry(node).or_insert(revision);
            }
        }
        Ok(())
    }
}

/// A rollout that was planned and not stored yet.
pub(super) struct Planned {
    pub(super) machine: Machine,
    pub(super) plan: upfleet_domain::rollout::Plan,
}

impl Planned {
    /// Stores it.
    pub(super) fn change(&self) -> Change {
        let upgrades: Vec<NodeUpgrade> = self.machine.upgrades.values().cloned().collect();
        let rollout = Box::new(RolloutRecord::new(self.machine.rollout.clone()));
        Change::CreateRollout { rollout, plan: Box::new(self.plan.clone()), upgrades }
    }
}

/// Plans the rollout that puts back what another one changed.
pub(super) async fn revert(
    store: &dyn Store,
    machine: &Machine,
    by: By,
    only: Option<&BTreeSet<NodeId>>,
    now: Time,
) -> Result<Planned, Reason> {
    let spec = machine.revert_spec();
    let original = machine.rollout.id.clone();
    let fleet = fleet::fleet(store, &spec, std::slice::from_ref(&original), only).await?;
    let plan = plan::plan(&spec, &fleet)?;
    if plan.upgrades.is_empty() {
        return Err(plan::empty(&spec, &plan));
    }
    let id = new_id(store).await?;
    let origin = Origin { id, by, reverts: Some(original) };
    Ok(Planned { machine: Machine::planned(spec, &plan, origin, now), plan })
}

/// An id that no rollout has.
pub(super) async fn new_id(store: &dyn Store) -> Result<RolloutId, Reason> {
    // Without letters and digits that look alike.
    const LETTERS: &[u8] = b"23456789abcdefghjkmnpqrstvwxyz";
    loop {
        let mut letter = || char::from(LETTERS[rand::rng().random_range(0..LETTERS.len())]);
        let text: String = std::iter::repeat_with(&mut letter).take(6).collect();
        let id = RolloutId::new(format!("r-{text}")).expect("letters and digits");
        if store.rollout(&id).await.map_err(internal)?.is_none() {
            return Ok(id);
        }
    }
}

/// The generations that come next.
struct Generations {
    epoch: u64,
    known: BTreeMap<NodeId, u64>,
}

impl Generations {
    async fn read(store: &dyn Store, machine: &Machine, tells: usize) -> Result<Self, StoreError> {
        let epoch = if tells > 0 { store.meta().await?.epoch } else { 0 };
        let mut known = BTreeMap::new();
        if tells >= MANY {
            for record in store.desired_named(&machine.rollout.spec.component).await? {
                let number = record.generation().number;
                known.insert(record.node, number);
            }
        }
        Ok(Self { epoch, known })
    }

    async fn next(
        &mut self,
        store: &dyn Store,
        machine: &Machine,
        node: &NodeId,
    ) -> Result<Generation, StoreError> {
        let stored = match self.known.get(node) {
            Some(number) => *number,
            None => {
                let records = store.desired(node).await?;
                let component = &machine.rollout.spec.component;
                let record = records.iter().find(|record| record.component == *component);
                record.map_or(0, |record| record.generation().number)
            }
        };
        let ordered = machine.upgrades.get(node).map_or(0, |upgrade| upgrade.generation);
        let number = stored.max(ordered) + 1;
        self.known.insert(node.clone(), number);
        Ok(Generation { epoch: self.epoch, number })
    }
}
