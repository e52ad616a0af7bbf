//! One rollout's driver: reads what changed, steps the machine, stores the outcome, sleeps.
//!
//! It holds nothing that is not in the store. Where a write fails or comes too late it reads again.

use std::{sync::Arc, time::Duration};

use upfleet_domain::{
    id::{NodeId, RolloutId},
    rollout::{
        State,
        event::{By, Event},
    },
    time::Time,
};

use super::{
    Shared, Wake,
    commit::{self, Failed, Stored},
    load::{self, Loaded},
    lock,
};
use crate::store::{Result, RolloutRecord, StoreError};

/// The first wait after the store failed; doubled with each further failure.
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// The longest wait after the store failed.
const LAST_RETRY: Duration = Duration::from_secs(10);
/// The longest sleep: clocks are set, and a lost wake-up must cost a minute at most.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Whether the engine drives a rollout: it is open, or a revert that nobody need start; and nobody else has it.
pub(super) fn is_driven(record: &RolloutRecord, holder: &Option<String>) -> bool {
    let rollout = &record.rollout;
    let ours = record.lease_holder.is_none() || record.lease_holder == *holder;
    let starts_itself = rollout.state == State::Planned && rollout.reverts.is_some();
    ours && (rollout.is_open() || starts_itself)
}

pub(super) struct Driver {
    shared: Arc<Shared>,
    id: RolloutId,
    wake: Arc<Wake>,
    loaded: Option<Loaded>,
}

impl Driver {
    pub(super) fn new(shared: Arc<Shared>, id: RolloutId, wake: Arc<Wake>) -> Self {
        Self { shared, id, wake, loaded: None }
    }

    /// Drives until the rollout is terminal, is somebody else's, or the engine stops.
    pub(super) async fn run(mut self) {
        let mut retry = FIRST_RETRY;
        loop {
            let sleep = match self.turn().await {
                Ok(None) => return,
                Ok(Some(sleep)) => {
                    retry = FIRST_RETRY;
                    sleep
                }
                Err(error) => {
                    // What was read may be what failed; and nothing of it was lost, as nothing was acted on.
                    self.loaded = None;
                    lock(&self.wake.nodes).all = true;
                    if error.is_stale() {
                        Duration::ZERO
                    } else {
                        tracing::warn!(rollout = %self.id, %error, "the store failed; the rollout waits");
                        let wait = retry;
                        retry = (retry * 2).min(LAST_RETRY);
                        wait
                    }
                }
            };
            tokio::select! {
                () = self.shared.stop.cancelled() => return,
                () = self.wake.notify.notified() => {}
                // Whoever slept long looks at all nodes again: what only time makes sure gives no notice.
                () = tokio::time::sleep(sleep) => lock(&self.wake.nodes).all |= sleep >= LONGEST_SLEEP,
            }
        }
    }

    /// One look at the store and one step; says how long to sleep, `None` where there is nothing left to do.
    async fn turn(&mut self) -> Result<Option<Duration>> {
        let shared = self.shared.clone();
        let store = &*shared.store;
        let nodes = std::mem::take(&mut *lock(&self.wake.nodes));
        let mut loaded = match self.loaded.take() {
            Some(mut loaded) => {
                loaded.refresh(store).await?;
                loaded
            }
            None => match load::load(store, &self.id).await? {
                Some(loaded) => loaded,
                None => return Ok(None),
            },
        };
        if !is_driven(&loaded.record, &shared.holder) {
            return Ok(None);
        }
        let some: Vec<NodeId> = nodes.some.into_iter().collect();
        let look = if nodes.all { None } else { Some(&some[..]) };
        let now = shared.clock.now();
        let mut events = load::presences(store, &loaded.machine, look, shared.began, now).await?;
        events.extend(self.linked(&loaded).await?);
        if loaded.machine.rollout.state == State::Planned {
            let actor = loaded.machine.rollout.creator.clone();
            events.push(Event::Start(By { actor, message: String::new() }));
        }
        events.push(Event::Tick);
        let stored = match commit::step(store, &mut loaded, events, |_| Vec::new(), now).await {
            Ok(stored) => stored,
            Err(Failed::Store(error)) => return Err(error),
            Err(Failed::Refused(reason)) => {
                // The engine asks for nothing that could be refused, but for a start that somebody else made.
                tracing::warn!(rollout = %self.id, %reason, "a step was refused");
                Stored::default()
            }
        };
        let again = stored.changed;
        self.loaded = Some(loaded);
        Ok(Some(if again { Duration::ZERO } else { sleep(stored.wake_at, now) }))
    }

    /// How the linked rollout ended, if this one waits for one that did.
    async fn linked(&self, loaded: &Loaded) -> Result<Option<Event>, StoreError> {
        let rollout = &loaded.machine.rollout;
        let linked = rollout.reverted_by.clone().filter(|_| rollout.state == State::Reverting);
        lock(&self.wake.linked).clone_from(&linked);
        let Some(id) = linked else { return Ok(None) };
        let record = self.shared.store.rollout(&id).await?;
        let state = record.map(|record| record.rollout.state).filter(|state| state.is_terminal());
        if state != Some(State::Succeeded) {
            return Ok(state.map(Event::RevertEnded));
        }
        // Whom its plan left out, e.g. a node cordoned or held meanwhile, it has not put back either.
        let plan = self.shared.store.plan(&id).await?;
        let whole = plan.is_none_or(|plan| plan.excluded.is_empty());
        Ok(Some(Event::RevertEnded(if whole { State::Succeeded } else { State::SucceededWithFailures })))
    }
}

fn sleep(wake_at: Option<Time>, now: Time) -> Duration {
    wake_at.map_or(LONGEST_SLEEP, |at| at.since(now).min(LONGEST_SLEEP))
}
