//! The actor of one component: event, step of the machine, journal, effects; nothing else, and nothing else writes
//! that journal.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::{RwLock, mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use upfleet_domain::{
    order::{DesiredState, Generation, HoldOrder},
    reason::{Reason, ReasonCode},
    report::ComponentInventory,
    time::Time,
    upgrade::{
        event::{Effect, Event, Offer},
        machine::Machine,
        record::Record,
        step::Step,
    },
};

use super::{
    Acked, Doing, Message, Nacked, Outgoing, Pulse, Shares, Snapshot,
    exclusive::Exclusives,
    history::History,
    offers::{self, Brought},
    work::{Listener, Tools},
    world::World,
};
use crate::{damage, journal::Journal};

/// How often an idle component is looked at: whether it is healthy, and whether all is as recorded.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long to wait before a journal that could not be written is tried again.
const JOURNAL_RETRY: Duration = Duration::from_secs(1);

/// The present as the agent counts it: the clock's at its start, and what has passed since. A clock that is set
/// while the agent runs makes no deadline pass.
#[derive(Clone, Copy, Debug)]
struct Clock {
    base: Time,
    begun: Instant,
}

impl Clock {
    fn start() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { base: Time(i64::try_from(since.as_millis()).unwrap_or(i64::MAX)), begun: Instant::now() }
    }

    fn now(&self) -> Time {
        self.base.after(self.begun.elapsed())
    }

    fn instant(&self, time: Time) -> Instant {
        // One millisecond more, since times are cut to milliseconds and waking too early would spin.
        self.begun + time.since(self.base) + Duration::from_millis(1)
    }
}

/// Who waits for the answer to the event in hand.
enum Waiting {
    Order(oneshot::Sender<Result<Acked, Nacked>>, Nacked),
    Local(oneshot::Sender<Result<(), Reason>>),
}

/// See the module.
pub(super) struct Actor<W> {
    machine: Machine,
    journal: Option<Journal>,
    tools: Arc<Tools<W>>,
    exclusives: Exclusives,
    /// Read-locked while somebody brings bytes.
    offering: Arc<RwLock<()>>,
    /// Counts the waits for a disk, so that who waits is not taken for dead.
    waits: Arc<AtomicU64>,
    clock: Clock,
    internal: (mpsc::UnboundedSender<Event>, mpsc::UnboundedReceiver<Event>),
    task: Option<(u64, bool, JoinHandle<()>)>,
    claim: Option<JoinHandle<()>>,
    waiting: Option<Waiting>,
    /// What was moved aside because it was damaged.
    alarms: Vec<Reason>,
    shutdown: CancellationToken,
}

impl<W: World> Actor<W> {
    pub(super) fn new(
        machine: Machine,
        journal: Journal,
        tools: Tools<W>,
        exclusives: Exclusives,
        (offering, waits): Shares,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            machine,
            journal: Some(journal),
            tools: Arc::new(tools),
            exclusives,
            offering,
            waits,
            clock: Clock::start(),
            internal: mpsc::unbounded_channel(),
            task: None,
            claim: None,
            waiting: None,
            alarms: Vec::new(),
            shutdown,
        }
    }

    /// Runs until the agent ends. What is under way is left as it is; the next start goes on from the journal.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        let shutdown = self.shutdown.clone();
        if let Some(entry) = self.machine.record().last.as_ref().and_then(|last| last.entry.clone()) {
            self.remember(move |history| history.catch_up(&entry)).await;
        }
        self.happen(Event::Started).await;
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wake = self.machine.wake_at().map(|time| self.clock.instant(time));
            let sleep = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now));
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(event) = self.internal.1.recv() => self.happen(event).await,
                message = inbox.recv() => match message {
                    Some(message) => self.receive(message).await,
                    None => break,
                },
                () = sleep, if wake.is_some() => self.happen(Event::Tick).await,
                _ = look.tick() => {
                    self.look_for_damage().await;
                    self.happen(Event::Look).await;
                }
            }
        }
        self.leave().await;
    }

    /// Waits for a step on files to reach its end, so that a successor does not meet it half done.
    async fn leave(mut self) {
        if let Some(claim) = self.claim.take() {
            claim.abort();
        }
        if let Some((_, _, task)) = self.task.take() {
            task.abort();
        }
        drop(self.tools.gate.lock().await);
        self.exclusives.release(&self.machine.record().component);
    }

    async fn receive(&mut self, message: Message) {
        match message {
            Message::Order { desired, brought, hold, answer } => {
                self.ordered(*desired, brought, hold, answer).await;
            }
            Message::Apply { desired, brought, message, answer } => {
                self.waiting = Some(Waiting::Local(answer));
                self.apply(*desired, brought, message).await;
            }
            Message::LocalRollback { to, message, answer } => {
                self.waiting = Some(Waiting::Local(answer));
                self.happen(Event::LocalRollback { to, message }).await;
            }
            Message::ReportAcked { upgrade, sequence } => {
                self.happen(Event::ReportAcked { upgrade, sequence }).await;
            }
            // Whoever asked may have gone away; that is no concern of the component's.
            Message::Snapshot { answer } => drop(answer.send(self.snapshot())),
            Message::Pulse { answer } => drop(answer.send(self.pulse())),
            Message::Tail { lines, answer } => {
                let tools = Arc::clone(&self.tools);
                tokio::spawn(async move { answer.send(Ok(tools.world.tail(lines).await)) });
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        let reports = self.machine.record().outbox.reports().cloned().collect();
        Snapshot { inventory: self.inventory(), reason: self.machine.reason(), reports }
    }

    fn inventory(&self) -> ComponentInventory {
        let mut inventory = self.machine.inventory();
        inventory.alarms.extend(self.alarms.iter().cloned());
        inventory
    }

    /// Tells of what was moved aside, and of its removal.
    async fn look_for_damage(&mut self) {
        let (state_dir, component) = (self.tools.state_dir.clone(), self.machine.record().component.clone());
        let looked = tokio::task::spawn_blocking(move || damage::alarms(&state_dir, &component)).await;
        if let Ok(alarms) = looked
            && alarms != self.alarms
        {
            self.alarms = alarms;
            self.say(Outgoing::Inventory(Box::new(self.inventory()))).await;
        }
    }

    fn pulse(&self) -> Pulse {
        let soaking = self.machine.soaked_at().map(|end| end.since(self.clock.now()));
        let doing = self.machine.record().passage.as_ref().map(|passage| Doing {
            phase: passage.phase,
            to: passage.back.as_ref().map_or_else(|| passage.order.goal.state(), |back| &back.to).clone(),
            since: passage.since,
            soaking,
        });
        Pulse { healthy: self.machine.inventory().healthy, doing }
    }

    async fn ordered(
        &mut self,
        desired: DesiredState,
        brought: Brought,
        hold: Option<HoldOrder>,
        answer: oneshot::Sender<Result<Acked, Nacked>>,
    ) {
        if let Some(hold) = hold {
            self.happen(Event::Hold(hold)).await;
        }
        let nacked = Nacked {
            generation: desired.generation,
            reason: Reason::new(ReasonCode::AgentEnding),
            kept: Generation::default(),
            upgrade: desired.upgrade.clone(),
        };
        let any = brought.any();
        let offer = self.read(desired, brought);
        self.waiting = Some(Waiting::Order(answer, nacked));
        self.happen(Event::Order(Box::new(offer))).await;
        if any {
            // Of an order that was refused, nothing stays.
            self.tools.manifests.prune(self.machine.record());
        }
    }

    /// A person at the node applies what a file holds: its manifests are read as an order's are.
    async fn apply(&mut self, desired: DesiredState, brought: Brought, message: String) {
        let offer = self.read(desired, brought);
        self.happen(Event::LocalApply { offer: Box::new(offer), message }).await;
        // Of what was refused, nothing stays.
        self.tools.manifests.prune(self.machine.record());
        self.forget_offered();
    }

    /// Removes what was brought and is not going to be used.
    fn forget_offered(&self) {
        let record = self.machine.record();
        if record.passage.is_none()
            && record.next.is_none()
            && let Ok(_none_brings) = self.offering.try_write()
        {
            self.tools.executor.forget_offered();
        }
    }

    fn read(&self, desired: DesiredState, brought: Brought) -> Offer {
        offers::read(&self.tools.manifests, &self.tools.policy.platform, desired, brought)
    }

    // ---- the loop's body -----------------------------------------------------------------------------------

    async fn happen(&mut self, event: Event) {
        let (machine, effects) = self.machine.clone().step(event, self.clock.now());
        let before = std::mem::replace(&mut self.machine, machine);
        if before.record() != self.machine.record() && !self.write_down().await {
            return;
        }
        let inventory = effects.contains(&Effect::Inventory);
        for effect in effects {
            self.carry_out(effect, before.record()).await;
        }
        if inventory {
            self.say(Outgoing::Inventory(Box::new(self.inventory()))).await;
        }
    }

    /// Makes the record durable. Until it is, nothing may be done; a disk that fails is waited for.
    async fn write_down(&mut self) -> bool {
        loop {
            let record = self.machine.record().clone();
            let written = self.with_journal(move |journal| journal.append(&record)).await;
            match written {
                Some(Ok(())) => return true,
                Some(Err(error)) => {
                    tracing::error!(component = %self.machine.record().component, error = crate::error::chain(&error), "journal");
                }
                None => return false,
            }
            self.waits.fetch_add(1, Ordering::Relaxed);
            tokio::select! {
                () = tokio::time::sleep(JOURNAL_RETRY) => {}
                () = self.shutdown.cancelled() => return false,
            }
        }
    }

    async fn with_journal<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Journal) -> T + Send + 'static,
    ) -> Option<T> {
        let mut journal = self.journal.take()?;
        let task = tokio::task::spawn_blocking(move || {
            let result = work(&mut journal);
            (journal, result)
        });
        let (journal, result) = task.await.ok()?;
        self.journal = Some(journal);
        Some(result)
    }

    async fn carry_out(&mut self, effect: Effect, before: &Record) {
        match effect {
            Effect::Answer(answer) => self.answer(answer),
            Effect::Perform { ticket, step } => self.perform(ticket, step),
            Effect::Abort { ticket } => {
                if let Some((_, _, task)) =
                    self.task.take_if(|(own, abortable, _)| *own == ticket && *abortable)
                {
                    task.abort();
                }
            }
            Effect::Claim { take: true } => {
                let component = &self.machine.record().component;
                self.exclusives.take(component, &self.machine.policy().exclusive_with);
                self.tell(Event::Claim(Ok(())));
            }
            Effect::Claim { take: false } => self.claim(),
            Effect::Release => {
                if let Some(claim) = self.claim.take() {
                    claim.abort();
                }
                self.exclusives.release(&self.machine.record().component);
            }
            Effect::Report => self.report_new(before).await,
            Effect::Compact => {
                let record = self.machine.record().clone();
                let manifests = self.tools.manifests.clone();
                self.with_journal(move |journal| {
                    journal.compact(&record);
                    manifests.prune(&record);
                })
                .await;
                self.forget_offered();
            }
            Effect::History(entry) => self.remember(move |history| history.append(&entry)).await,
            // Said once, after all effects.
            Effect::Inventory => {}
        }
    }

    /// Writes into the history. It is for people: where it can't be written, that is said and nothing else.
    async fn remember(&self, write: impl FnOnce(&History) -> std::io::Result<()> + Send + 'static) {
        let history = self.tools.history.clone();
        let written = tokio::task::spawn_blocking(move || write(&history)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(component = %self.machine.record().component, %error, "history");
        }
    }

    fn answer(&mut self, answer: Result<Generation, Reason>) {
        let kept = self.machine.record().generation;
        match (self.waiting.take(), answer) {
            (Some(Waiting::Order(sender, _)), Ok(generation)) => drop(sender.send(Ok(Acked { generation }))),
            (Some(Waiting::Order(sender, nacked)), Err(reason)) => {
                drop(sender.send(Err(Nacked { reason, kept, ..nacked })));
            }
            (Some(Waiting::Local(sender)), answer) => drop(sender.send(answer.map(drop))),
            (None, _) => {}
        }
    }

    fn perform(&mut self, ticket: u64, step: Step) {
        let abortable = step.kind.abortable();
        let (tools, internal) = (Arc::clone(&self.tools), self.internal.0.clone());
        let upgrade =
            self.machine.record().passage.as_ref().and_then(|passage| passage.order.upgrade.clone());
        let notes = internal.clone();
        // A closed channel means that the actor is gone, and with it the interest.
        let note = Box::new(move |reason| drop(notes.send(Event::Note { ticket, reason })));
        let listener = Listener { upgrade, note };
        let task = tokio::spawn(async move {
            tracing::debug!(component = %step.component, step = step.kind.as_str(), "step");
            let answer = tools.perform(&step.kind, &listener).await;
            if let Err(failure) = &answer {
                tracing::warn!(component = %step.component, step = step.kind.as_str(), reason = %failure.reason, "step failed");
            }
            let _ = internal.send(Event::Done { ticket, answer: Box::new(answer) });
        });
        self.task = Some((ticket, abortable, task));
    }

    /// Asks for the right to upgrade until it is granted.
    fn claim(&mut self) {
        let (rights, internal) = (self.exclusives.clone(), self.internal.0.clone());
        let component = self.machine.record().component.clone();
        let others = self.machine.policy().exclusive_with.clone();
        let task = tokio::spawn(async move {
            loop {
                // Begun before the claim, so that no release in between is missed.
                let released = rights.released();
                tokio::pin!(released);
                let answer = rights.claim(&component, &others);
                let granted = answer.is_ok();
                if internal.send(Event::Claim(answer)).is_err() || granted {
                    break;
                }
                let _ = tokio::time::timeout(Duration::from_secs(5), released).await;
            }
        });
        if let Some(old) = self.claim.replace(task) {
            old.abort();
        }
    }

    fn tell(&self, event: Event) {
        // The receiver is the actor's own.
        let _ = self.internal.0.send(event);
    }

    async fn report_new(&self, before: &Record) {
        let key = |report: &upfleet_domain::report::UpgradeReport| (report.upgrade.clone(), report.sequence);
        let old: HashSet<_> = before.outbox.reports().map(key).collect();
        let new = self.machine.record().outbox.reports().filter(|report| !old.contains(&key(report)));
        for report in new {
            let (component, upgrade) = (&report.component, &report.upgrade);
            tracing::info!(%component, %upgrade, state = %report.state, reason = %report.reason, "upgrade");
            self.say(Outgoing::Report(Box::new(report.clone()))).await;
        }
    }

    async fn say(&self, outgoing: Outgoing) {
        // Nobody listens any more when the agent ends; reports stay in the journal.
        let _ = self.tools.outgoing.send(outgoing).await;
    }
}
