//! What people do to rollouts: plan, create, command, roll back.
//!
//! Plain functions of a principal and a request in domain types. A command goes the way of the engine's own
//! steps: load, step the pure machine, commit in one batch with the record of who did it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use upfleet_domain::{
    digest::Digest,
    id::RolloutId,
    reason::{Reason, ReasonCode},
    rollout::{
        Plan, Rollout, Spec, State,
        event::{By, Event},
        machine::{Machine, Origin},
        plan,
    },
    time::Time,
};

use super::{
    commit::{self, Failed, Planned},
    fleet,
    load::{self, Loaded},
    lock,
};
use crate::{
    auth::Principal,
    clock::Clock,
    failure::internal,
    ops::{Once, answer, audit},
    store::{Change, Committed, Expected, Store},
};

/// How many plans are remembered, to say what has changed since one was shown.
const PLANS: usize = 64;
/// How often a command is tried anew when the rollout changes under it. Each try sees a later state.
const TRIES: usize = 20;
/// After so many tries in vain agents' words wait until the command is through: a large fleet never falls silent by
/// itself, and a rollout must be stopped all the more when thousands of nodes are in it.
const PATIENT_TRIES: usize = 2;

/// A rollout that is wished for.
#[derive(Clone, Debug)]
pub struct Wish {
    /// What it is to do.
    pub spec: Spec,
    /// What it is for.
    pub message: String,
    /// The plan that was looked at.
    pub expected: Option<Digest>,
}

/// A command of a person to one rollout.
#[derive(Clone, Copy, Debug)]
pub struct Command<'c> {
    /// The rollout.
    pub id: &'c RolloutId,
    /// Must be the rollout's where not empty.
    pub etag: &'c str,
    /// For the record of changes, e.g. `pause`.
    pub action: &'c str,
    /// Why.
    pub message: &'c str,
}

/// A rollout and its plan.
#[derive(Clone, Debug)]
pub struct Created {
    /// The rollout; `None` where only the plan was asked for.
    pub rollout: Option<Rollout>,
    /// The plan.
    pub plan: Plan,
}

/// What can be done to rollouts. Clones share everything.
#[derive(Clone)]
pub struct Rollouts {
    store: Arc<dyn Store>,
    clock: Clock,
    began: Time,
    /// Whether nodes are free is looked at and acted on by one caller at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Plans that people looked at lately. A convenience: without it a refusal only says less.
    plans: Arc<Mutex<VecDeque<Plan>>>,
    /// Whoever records what agents say holds it for reading.
    gate: Arc<tokio::sync::RwLock<()>>,
}

impl Rollouts {
    /// Operations on the rollouts of `store`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: Clock) -> Self {
        let began = clock.now();
        Self { store, clock, began, turn: Arc::default(), plans: Arc::default(), gate: Arc::default() }
    }

    /// With the gate through which agents' words pass.
    #[must_use]
    pub fn gated(self, gate: Arc<tokio::sync::RwLock<()>>) -> Self {
        Self { gate, ..self }
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Plans, and changes nothing.
    ///
    /// # Errors
    /// Those of the planner; `PLAN_CHANGED` where another plan is expected.
    pub async fn plan(&self, wish: &Wish) -> Result<Plan, Reason> {
        let fleet = fleet::fleet(&*self.store, &wish.spec, &[], None).await?;
        let plan = plan::plan(&wish.spec, &fleet)?;
        let mut plans = lock(&self.plans);
        if let Some(expected) = wish.expected.filter(|expected| *expected != plan.digest) {
            let known = plans.iter().find(|known| known.digest == expected);
            let difference = known.map_or_else(
                || format!("the plan is {} now", plan.digest.short()),
                |known| plan::difference(known, &plan),
            );
            return Err(Reason::new(ReasonCode::PlanChanged).with("difference", difference));
        }
        plans.retain(|known| known.digest != plan.digest);
        plans.push_back(plan.clone());
        if plans.len() > PLANS {
            plans.pop_front();
        }
        Ok(plan)
    }

    /// Plans and stores a rollout.
    ///
    /// # Errors
    /// Those of [`Self::plan`]; `EMPTY_PLAN` where no node is left.
    pub async fn create(
        &self,
        caller: &Principal,
        wish: Wish,
        once: Option<&Once>,
    ) -> Result<Created, Reason> {
        if let Some(created) = self.replay(caller, once).await? {
            return Ok(created);
        }
        let plan = self.plan(&wish).await?;
        if plan.upgrades.is_empty() {
            return Err(plan::empty(&wish.spec, &plan));
        }
        let by = By { actor: caller.to_string(), message: wish.message };
        let origin = Origin { id: commit::new_id(&*self.store).await?, by, reverts: None };
        let machine = Machine::planned(wish.spec, &plan, origin, self.clock.now());
        self.store_new(caller, Planned { machine, plan }, Vec::new(), once).await
    }

    /// Stores a planned rollout, exactly once where the request has an id.
    async fn store_new(
        &self,
        caller: &Principal,
        planned: Planned,
        mut changes: Vec<Change>,
        once: Option<&Once>,
    ) -> Result<Created, Reason> {
        let rollout = planned.machine.rollout.clone();
        let now = self.clock.now();
        let object = format!("rollouts/{}", rollout.id);
        let after = serde_json::json!({
            "state": rollout.state, "spec": rollout.spec, "plan": rollout.plan_digest, "message": rollout.message,
        });
        let record = audit(&caller.to_string(), "rollout.create", &object, now).after(after).request(once);
        changes.insert(0, planned.change());
        changes.push(record.change());
        if let Some(once) = once {
            changes.push(once.change(caller, &rollout, now)?);
        }
        let committed = self.store.commit(changes).await.map_err(internal)?;
        if let Committed { replayed: Some(bytes), .. } = committed {
            return self.first_answer(answer(&bytes)?).await;
        }
        Ok(Created { rollout: Some(rollout), plan: planned.plan })
    }

    async fn replay(&self, caller: &Principal, once: Option<&Once>) -> Result<Option<Created>, Reason> {
        let Some(once) = once else { return Ok(None) };
        match once.replay::<Rollout>(&*self.store, caller).await? {
            Some(rollout) => self.first_answer(rollout).await.map(Some),
            None => Ok(None),
        }
    }

    async fn first_answer(&self, rollout: Rollout) -> Result<Created, Reason> {
        let plan = self.store.plan(&rollout.id).await.map_err(internal)?;
        let plan = plan.ok_or_else(|| unknown(&rollout.id))?;
        Ok(Created { rollout: Some(rollout), plan })
    }

    /// One rollout.
    ///
    /// # Errors
    /// `NOT_FOUND` where there is none.
    pub async fn rollout(&self, id: &RolloutId) -> Result<Rollout, Reason> {
        let record = self.store.rollout(id).await.map_err(internal)?;
        Ok(record.ok_or_else(|| unknown(id))?.rollout)
    }

    /// Does what a person asks for: `event` makes it an event.
    ///
    /// # Errors
    /// Those of the machine; `ETAG_MISMATCH`; `CONCURRENT_ROLLOUT` where another rollout has some of the nodes.
    pub async fn command(
        &self,
        caller: &Principal,
        command: Command<'_>,
        event: impl Fn(By) -> Event + Send + Sync,
    ) -> Result<Rollout, Reason> {
        self.command_once(caller, command, event, None).await
    }

    async fn command_once(
        &self,
        caller: &Principal,
        command: Command<'_>,
        event: impl Fn(By) -> Event + Send + Sync,
        once: Option<&Once>,
    ) -> Result<Rollout, Reason> {
        let _turn = self.turn.lock().await;
        let (store, id) = (&*self.store, command.id);
        // Held until the command is through: the engine acts on words that passed between two tries, and each of its
        // steps makes a try vain. Nothing below passes the gate itself.
        let mut silence = None;
        for tries in 0..TRIES {
            if tries >= PATIENT_TRIES && silence.is_none() {
                silence = Some(self.gate.write().await);
            }
            let loaded = load::load(store, id).await.map_err(internal)?;
            let mut loaded = loaded.ok_or_else(|| unknown(id))?;
            if !command.etag.is_empty() && loaded.machine.rollout.etag() != command.etag {
                return Err(stale(id));
            }
            let by = By { actor: caller.to_string(), message: command.message.to_owned() };
            let event = event(by.clone());
            self.check_free(&loaded, &event).await?;
            let now = self.clock.now();
            let look = load::presences(store, &loaded.machine, None, self.began, now);
            let mut events = look.await.map_err(internal)?;
            events.push(event);
            let before = serde_json::json!({ "state": loaded.machine.rollout.state });
            let record = |machine: &Machine| {
                let after = serde_json::json!({ "state": machine.rollout.state, "message": by.message });
                let action = format!("rollout.{}", command.action);
                let record = audit(&by.actor, &action, &format!("rollouts/{id}"), now);
                let record = record.before(before).after(after).request(once);
                let answer = once.and_then(|once| once.change(caller, &machine.rollout, now).ok());
                std::iter::once(record.change()).chain(answer).collect()
            };
            match commit::step(store, &mut loaded, events, record, now).await {
                Ok(_) => return self.rollout(id).await,
                Err(Failed::Refused(reason)) => return Err(reason),
                Err(Failed::Store(error)) if error.is_stale() => {}
                Err(Failed::Store(error)) => return Err(internal(error)),
            }
        }
        Err(stale(id))
    }

    /// Before a rollout takes hold of nodes: no other one may have them, and its release must still be good.
    async fn check_free(&self, loaded: &Loaded, event: &Event) -> Result<(), Reason> {
        let rollout = &loaded.machine.rollout;
        let takes = matches!(rollout.state, State::Planned | State::SucceededWithFailures);
        if !takes || !matches!(event, Event::Start(_) | Event::Retry { .. }) {
            return Ok(());
        }
        fleet::still_good(&*self.store, &rollout.spec).await?;
        let besides: Vec<RolloutId> =
            [Some(&rollout.id), rollout.reverts.as_ref()].into_iter().flatten().cloned().collect();
        let busy = fleet::busy(&*self.store, &rollout.spec.component, &besides).await?;
        let taken: Vec<&RolloutId> =
            loaded.machine.upgrades.keys().filter_map(|node| busy.get(node)).collect();
        match taken.first() {
            None => Ok(()),
            Some(other) => Err(Reason::new(ReasonCode::ConcurrentRollout)
                .with("rollout", other)
                .with("component", &rollout.spec.component)
                .with("count", taken.len())),
        }
    }

    /// Puts every node that a rollout changed back: an open one turns to REVERTING, and of a terminal one the
    /// linked rollout is created and started.
    ///
    /// # Errors
    /// `EMPTY_PLAN` where it changed nothing that can be put back; `ILLEGAL_TRANSITION`.
    pub async fn roll_back(
        &self,
        caller: &Principal,
        id: &RolloutId,
        message: &str,
        dry: bool,
        once: Option<&Once>,
    ) -> Result<Created, Reason> {
        if let Some(first) = self.replay(caller, once).await? {
            // Where it was open then, it was the answer itself; by now there may be more to say.
            let same = first.rollout.as_ref().is_some_and(|rollout| rollout.id == *id);
            return if same { self.linked(id).await } else { Ok(first) };
        }
        let loaded = load::load(&*self.store, id).await.map_err(internal)?.ok_or_else(|| unknown(id))?;
        let message = if message.is_empty() { format!("rolls back {id}") } else { message.to_owned() };
        if loaded.machine.rollout.is_open() && !dry {
            let command = Command { id, etag: "", action: "rollback", message: &message };
            self.command_once(caller, command, Event::RollBack, once).await?;
            return self.linked(id).await;
        }
        let by = By { actor: caller.to_string(), message };
        let planned = commit::revert(&*self.store, &loaded.machine, by, None, self.clock.now()).await?;
        if dry {
            return Ok(Created { rollout: None, plan: planned.plan });
        }
        self.roll_back_terminal(caller, loaded, planned, once).await
    }

    /// The original says by which rollout it was rolled back, and stays terminal.
    async fn roll_back_terminal(
        &self,
        caller: &Principal,
        loaded: Loaded,
        planned: Planned,
        once: Option<&Once>,
    ) -> Result<Created, Reason> {
        let linked = planned.machine.rollout.id.clone();
        let message = planned.machine.rollout.message.clone();
        let expected = Expected::Revision(loaded.record.version);
        let mut original = loaded.record;
        original.rollout.reverted_by = Some(linked.clone());
        let time = self.clock.now();
        let note = Change::PutRollout { rollout: Box::new(original), expected, time };
        let created = self.store_new(caller, planned, vec![note], once).await?;
        let command = Command { id: &linked, etag: "", action: "start", message: &message };
        match self.command(caller, command, Event::Start).await {
            Ok(rollout) => Ok(Created { rollout: Some(rollout), ..created }),
            // The engine starts reverts by itself, and may have been faster.
            Err(reason) if reason.code == ReasonCode::IllegalTransition => {
                Ok(Created { rollout: Some(self.rollout(&linked).await?), ..created })
            }
            Err(reason) => Err(reason),
        }
    }

    /// The linked rollout of one that is put back. It may take until nodes under way have ended; until then
    /// the original is what can be shown.
    async fn linked(&self, id: &RolloutId) -> Result<Created, Reason> {
        let original = self.rollout(id).await?;
        let shown = match &original.reverted_by {
            Some(linked) => self.rollout(linked).await?,
            None => original,
        };
        self.first_answer(shown).await
    }
}

fn unknown(id: &RolloutId) -> Reason {
    Reason::new(ReasonCode::NotFound).with("what", "rollout").with("name", id)
}

fn stale(id: &RolloutId) -> Reason {
    Reason::new(ReasonCode::EtagMismatch).with("what", "rollout").with("name", id)
}
