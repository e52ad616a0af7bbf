//! One simulated component: takes orders as an agent does, and walks an upgrade's states in the time it is given.
//!
//! Pure but for the random part of durations, which comes from a seed. Which transitions there are is the domain's table.

use std::{collections::VecDeque, time::Duration};

use upfleet_api::convert::Order;
use upfleet_domain::{
    digest::Digest,
    id::{ComponentId, UpgradeId},
    order::{self, Generation, Target},
    reason::{Reason, ReasonCode},
    report::{ComponentInventory, UpgradeReport},
    state::{Base, ComponentState},
    time::Time,
    upgrade::{Outcome, Phase, UpgradeState, table},
};

/// Each duration is longer or shorter by up to this part of it.
const SPREAD: f64 = 0.5;

/// How upgrades go. Durations are means; each is up to half of it longer or shorter.
#[derive(Clone, Debug, PartialEq)]
pub struct Pace {
    /// How long an agent waits before it begins, e.g. for the checks before an upgrade.
    pub preflight: Duration,
    /// How long a fetch takes where nothing is fetched really.
    pub fetch: Duration,
    /// How long switching and restarting takes, forth and back.
    pub activate: Duration,
    /// How long the new version is watched.
    pub probe: Duration,
    /// The part of all nodes, 0 to 1, on which a new version turns out unhealthy.
    pub failures: f64,
}

impl Default for Pace {
    fn default() -> Self {
        let second = Duration::from_secs(1);
        Self { preflight: Duration::ZERO, fetch: second, activate: second, probe: second * 3, failures: 0.0 }
    }
}

/// An upgrade under way.
#[derive(Clone, Debug)]
struct Walk {
    upgrade: UpgradeId,
    to: ComponentState,
    phase: Phase,
    hold: Option<Phase>,
    /// Moves on at this moment; `None` while something else is waited for.
    due: Option<Time>,
    why: Option<Reason>,
    fails: bool,
}

/// What an order came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is kept.
    Kept(Generation),
    /// It is older than what is kept.
    Stale {
        /// Why it is refused.
        reason: Reason,
        /// What is kept.
        kept: Generation,
    },
}

/// One component of a simulated node.
#[derive(Clone, Debug)]
pub struct Component {
    id: ComponentId,
    current: ComponentState,
    previous: Option<ComponentState>,
    generation: Generation,
    hold_generation: u64,
    last: Option<(UpgradeId, UpgradeState)>,
    sequence: u64,
    changed: Option<Time>,
    failed: Vec<Digest>,
    walk: Option<Box<Walk>>,
    /// Reports that the controller has not recorded yet, oldest first.
    outbox: VecDeque<UpgradeReport>,
    /// How many of them were sent over this connection.
    sent: usize,
    /// Whether the controller has not been told yet what it runs.
    news: bool,
    seed: u64,
}

impl Component {
    /// One that runs `current`; the seed decides durations and failures.
    #[must_use]
    pub fn new(id: ComponentId, current: ComponentState, seed: u64) -> Self {
        Self {
            id,
            current,
            previous: None,
            generation: Generation::default(),
            hold_generation: 0,
            last: None,
            sequence: 0,
            changed: None,
            failed: Vec::new(),
            walk: None,
            outbox: VecDeque::new(),
            sent: 0,
            news: false,
            seed,
        }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &ComponentId {
        &self.id
    }

    /// Takes an order.
    pub fn order(&mut self, order: Order, pace: &Pace, now: Time) -> Answer {
        let desired = order.desired;
        if let Err(reason) = order::accept(self.generation, desired.generation) {
            return Answer::Stale { reason, kept: self.generation };
        }
        let again = self.generation == desired.generation;
        self.generation = desired.generation;
        if let Some(hold) = order.hold {
            self.hold_generation = self.hold_generation.max(hold.generation);
        }
        let state = match desired.target {
            Target::Install(release) => {
                ComponentState { base: Base::Release(release), layers: desired.layers }
            }
            Target::Stack(base) => ComponentState { base, layers: desired.layers },
            Target::Restore(state) => state,
            Target::Stay => {
                if !again {
                    self.cancel(pace, now);
                }
                return Answer::Kept(self.generation);
            }
        };
        self.begin(desired.upgrade, state, desired.hold_before, pace, now);
        Answer::Kept(self.generation)
    }

    fn begin(
        &mut self,
        upgrade: Option<UpgradeId>,
        to: ComponentState,
        hold: Option<Phase>,
        pace: &Pace,
        now: Time,
    ) {
        let Some(upgrade) = upgrade else { return };
        if let Some(walk) = self.walk.as_mut().filter(|walk| walk.upgrade == upgrade) {
            walk.hold = hold;
            return;
        }
        if self.last.as_ref().is_some_and(|(last, _)| *last == upgrade) {
            return;
        }
        let fails = self.random(&upgrade, 0) < pace.failures;
        self.sequence = 0;
        self.walk = Some(Box::new(Walk {
            upgrade,
            to,
            phase: Phase::Pending,
            hold,
            due: Some(now),
            why: None,
            fails,
        }));
        self.advance(pace, false, now);
    }

    fn cancel(&mut self, pace: &Pace, now: Time) {
        let Some(walk) = &mut self.walk else { return };
        match walk.phase {
            Phase::Activating | Phase::Probing | Phase::Committing => {
                self.put_back(Reason::new(ReasonCode::CancelledByOrder), pace, now);
            }
            Phase::RollingBack => {}
            _ => self.end(Outcome::Cancelled, Reason::new(ReasonCode::CancelledByOrder), now),
        }
    }

    /// The artifact that is to be fetched now, where fetching is real.
    #[must_use]
    pub fn wants(&self) -> Option<Digest> {
        let walk = self.walk.as_ref().filter(|walk| walk.phase == Phase::Fetching && walk.due.is_none())?;
        walk.to.artifact()
    }

    /// A real fetch has ended.
    pub fn fetched(&mut self, outcome: Result<(), Reason>, pace: &Pace, now: Time) {
        let Some(walk) = self.walk.as_mut().filter(|walk| walk.phase == Phase::Fetching) else { return };
        match outcome {
            Ok(()) => {
                walk.due = Some(now);
                self.advance(pace, true, now);
            }
            Err(reason) => self.end(Outcome::FailedUnchanged, reason, now),
        }
    }

    /// When it next has something to do by itself.
    #[must_use]
    pub fn due(&self) -> Option<Time> {
        self.walk.as_ref()?.due
    }

    /// Moves on as far as the time permits; with `real` fetches are waited for.
    pub fn advance(&mut self, pace: &Pace, real: bool, now: Time) {
        while let Some(walk) = self.walk.as_ref().filter(|walk| walk.due.is_some_and(|due| due <= now)) {
            let held = walk.hold.is_some();
            match walk.phase {
                Phase::Pending => {
                    self.enter(Phase::Preflight, Reason::new(ReasonCode::Checking), pace.preflight, now)
                }
                Phase::Preflight if walk.to.same_content(&self.current) => {
                    let digest = short(&self.current);
                    self.end(
                        Outcome::AlreadyCurrent,
                        Reason::new(ReasonCode::AlreadyCurrent).with("digest", digest),
                        now,
                    );
                }
                Phase::Preflight => {
                    self.enter(
                        Phase::Fetching,
                        Reason::new(ReasonCode::Fetching).with("size", 0),
                        pace.fetch,
                        now,
                    );
                    if let Some(walk) = self.walk.as_mut().filter(|_| real) {
                        walk.due = None;
                    }
                }
                Phase::Fetching => self.enter(
                    Phase::Verifying,
                    Reason::new(ReasonCode::Verifying).with("size", 0),
                    Duration::ZERO,
                    now,
                ),
                Phase::Verifying => {
                    self.enter(Phase::Staged, Reason::new(ReasonCode::Staged), Duration::ZERO, now)
                }
                // A further order moves it on; it looks again in a second.
                Phase::Staged if held => self.wait(now),
                Phase::Staged => {
                    let reason = Reason::new(ReasonCode::Activating).with("step", "switch");
                    self.enter(Phase::Activating, reason, pace.activate, now);
                }
                Phase::Activating => {
                    let reason = Reason::new(ReasonCode::Probing).with("passed", 0).with("needed", 1);
                    self.enter(Phase::Probing, reason, pace.probe, now);
                }
                Phase::Probing if walk.fails => {
                    let reason =
                        Reason::new(ReasonCode::ProbeFailed).with("failed", 3).with("problem", "simulated");
                    self.put_back(reason, pace, now);
                }
                Phase::Probing => {
                    self.enter(Phase::Committing, Reason::new(ReasonCode::Committing), Duration::ZERO, now)
                }
                Phase::Committing => self.succeed(now),
                Phase::RollingBack => self.rolled_back(now),
            }
        }
    }

    fn wait(&mut self, now: Time) {
        if let Some(walk) = &mut self.walk {
            walk.due = Some(now.after(Duration::from_secs(1)));
        }
    }

    fn enter(&mut self, phase: Phase, reason: Reason, stay: Duration, now: Time) {
        let Some(walk) = &self.walk else { return };
        debug_assert!(table::permits(walk.phase, UpgradeState::Active(phase)), "{} to {phase}", walk.phase);
        let spread = 2.0 * self.random(&walk.upgrade, phase as u64 + 1) - 1.0;
        if let Some(walk) = &mut self.walk {
            walk.phase = phase;
            walk.due = Some(now.after(stay.mul_f64(1.0 + SPREAD * spread)));
        }
        self.report(UpgradeState::Active(phase), reason, now);
    }

    fn put_back(&mut self, why: Reason, pace: &Pace, now: Time) {
        let reason =
            Reason::new(ReasonCode::PuttingBack).with("from", &self.current).with("why", why.message());
        if let Some(walk) = &mut self.walk {
            walk.why = Some(why);
        }
        self.enter(Phase::RollingBack, reason, pace.activate, now);
    }

    fn succeed(&mut self, now: Time) {
        let Some(walk) = &self.walk else { return };
        let to = walk.to.clone();
        self.previous = Some(std::mem::replace(&mut self.current, to));
        self.changed = Some(now);
        self.end(
            Outcome::Succeeded,
            Reason::new(ReasonCode::Healthy).with("digest", short(&self.current)),
            now,
        );
    }

    fn rolled_back(&mut self, now: Time) {
        let Some(walk) = &self.walk else { return };
        let why = walk.why.as_ref().map(Reason::message).unwrap_or_default();
        self.failed.extend(walk.to.artifact());
        let reason = Reason::new(ReasonCode::RolledBack).with("from", &self.current).with("why", why);
        self.end(Outcome::RolledBack, reason, now);
    }

    fn end(&mut self, outcome: Outcome, reason: Reason, now: Time) {
        let Some(walk) = &self.walk else { return };
        debug_assert!(
            table::permits(walk.phase, UpgradeState::Ended(outcome)),
            "{} to {outcome}",
            walk.phase
        );
        let ended = UpgradeState::Ended(outcome);
        self.report(ended, reason, now);
        self.last = self.walk.take().map(|walk| (walk.upgrade, ended));
        self.news = true;
    }

    fn report(&mut self, state: UpgradeState, reason: Reason, now: Time) {
        let Some(walk) = &self.walk else { return };
        self.sequence += 1;
        let ended = state.outcome().is_some();
        self.outbox.push_back(UpgradeReport {
            upgrade: walk.upgrade.clone(),
            component: self.id.clone(),
            sequence: self.sequence,
            generation: self.generation,
            state,
            reason: reason.since(now),
            time: now,
            from: ended.then(|| self.previous.clone().unwrap_or_else(|| self.current.clone())),
            current: ended.then(|| self.current.clone()),
            running: ended.then(|| self.current.artifact()).flatten(),
            evidence: None,
            proof: None,
            reload: None,
            interruption: None,
        });
    }

    /// The reports to send that this connection has not carried yet.
    pub fn unsent(&mut self) -> Vec<UpgradeReport> {
        let unsent = self.outbox.iter().skip(self.sent).cloned().collect();
        self.sent = self.outbox.len();
        unsent
    }

    /// What it runs, where the controller has not been told yet.
    pub fn news(&mut self) -> Option<ComponentInventory> {
        std::mem::take(&mut self.news).then(|| self.inventory())
    }

    /// A new connection has carried nothing, and its Hello says what runs.
    pub fn reconnected(&mut self) {
        self.sent = 0;
        self.news = false;
    }

    /// The controller has recorded the reports of `upgrade` up to `sequence`; those that were waiting for that.
    pub fn recorded(&mut self, upgrade: &str, sequence: u64) -> Vec<UpgradeReport> {
        let mut done = Vec::new();
        while let Some(report) = self.outbox.front() {
            if report.upgrade.as_str() != upgrade || report.sequence > sequence {
                break;
            }
            done.extend(self.outbox.pop_front());
            self.sent = self.sent.saturating_sub(1);
        }
        done
    }

    /// What it is and runs.
    #[must_use]
    pub fn inventory(&self) -> ComponentInventory {
        let under_way =
            self.walk.as_ref().map(|walk| (walk.upgrade.clone(), UpgradeState::Active(walk.phase)));
        let (upgrade, upgrade_state) = under_way.or_else(|| self.last.clone()).unzip();
        ComponentInventory {
            component: self.id.clone(),
            current: self.current.clone(),
            previous: self.previous.clone(),
            kept: self.previous.iter().cloned().collect(),
            kept_digests: Vec::new(),
            running: self.current.artifact(),
            healthy: true,
            hold: None,
            drift: None,
            generation: self.generation,
            hold_generation: self.hold_generation,
            upgrade,
            upgrade_state,
            run_mode: "supervised".to_owned(),
            pid: Some(4711),
            changed: self.changed,
            changer: if self.changed.is_some() { "controller".to_owned() } else { String::new() },
            failed: self.failed.clone(),
            proof: None,
            alarms: Vec::new(),
            patchable: false,
        }
    }

    /// 0 to 1, the same for the same seed, upgrade and purpose.
    fn random(&self, upgrade: &UpgradeId, purpose: u64) -> f64 {
        let mut hash = self.seed ^ purpose.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for byte in upgrade.as_str().bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            hash ^= hash >> 29;
        }
        (hash >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn short(state: &ComponentState) -> String {
    state.artifact().map_or_else(|| "nothing".to_owned(), |digest| digest.short())
}

#[cfg(test)]
mod tests {
    use upfleet_domain::{order::DesiredState, state::ReleaseRef};

    use super::*;

    fn release(text: &str) -> ReleaseRef {
        ReleaseRef {
            component: "app".parse().unwrap(),
            version: text.parse().unwrap(),
            sequence: 2,
            manifest: Digest::of(text.as_bytes()),
            artifact: Digest::of(text.as_bytes()),
        }
    }

    fn order(number: u64, upgrade: Option<&str>, target: Target) -> Order {
        let desired = DesiredState {
            component: "app".parse().unwrap(),
            generation: Generation { epoch: 1, number },
            rollout: None,
            upgrade: upgrade.map(|id| id.parse().unwrap()),
            target,
            layers: Vec::new(),
            live: false,
            hold_before: None,
            not_after: None,
            allow_downgrade: false,
            allow_failed_digest: false,
            soak: None,
            trace: String::new(),
            actor: String::new(),
        };
        Order { desired, manifest: None, layers: Vec::new(), hold: None }
    }

    fn states(component: &mut Component) -> Vec<&'static str> {
        component.unsent().iter().map(|report| report.state.as_str()).collect()
    }

    fn component() -> Component {
        Component::new("app".parse().unwrap(), ComponentState::absent(), 7)
    }

    #[test]
    fn an_upgrade_walks_all_states_in_its_time() {
        let pace = Pace::default();
        let mut app = component();
        let kept = app.order(order(1, Some("u-1"), Target::Install(release("2.0.0"))), &pace, Time(0));
        assert_eq!(kept, Answer::Kept(Generation { epoch: 1, number: 1 }));
        assert_eq!(states(&mut app), ["PREFLIGHT", "FETCHING"]);
        app.advance(&pace, false, Time(1));
        assert!(states(&mut app).is_empty(), "a fetch takes its time");
        for second in 1..20 {
            app.advance(&pace, false, Time(second * 1000));
        }
        assert_eq!(
            states(&mut app),
            ["VERIFYING", "STAGED", "ACTIVATING", "PROBING", "COMMITTING", "SUCCEEDED"]
        );
        assert_eq!(app.inventory().current, ComponentState::release(release("2.0.0")));
        assert_eq!(app.recorded("u-1", 7).len(), 7);
        app.reconnected();
        assert_eq!(states(&mut app), ["SUCCEEDED"], "what is not recorded is sent again");
    }

    #[test]
    fn an_unhealthy_version_is_put_back() {
        let pace = Pace { failures: 1.0, fetch: Duration::ZERO, ..Pace::default() };
        let mut app = component();
        app.order(order(1, Some("u-1"), Target::Install(release("2.0.0"))), &pace, Time(0));
        for second in 1..20 {
            app.advance(&pace, false, Time(second * 1000));
        }
        assert_eq!(states(&mut app)[5..], ["PROBING", "ROLLING_BACK", "ROLLED_BACK"]);
        assert_eq!(app.inventory().current, ComponentState::absent());
    }

    #[test]
    fn a_stale_order_is_refused_and_a_cancelled_one_ends() {
        let pace = Pace::default();
        let mut app = component();
        app.order(order(5, Some("u-1"), Target::Install(release("2.0.0"))), &pace, Time(0));
        let stale = app.order(order(4, Some("u-0"), Target::Stay), &pace, Time(0));
        assert!(matches!(stale, Answer::Stale { .. }));
        app.order(order(6, Some("u-1"), Target::Stay), &pace, Time(1));
        assert_eq!(states(&mut app), ["PREFLIGHT", "FETCHING", "CANCELLED"]);
    }
}
