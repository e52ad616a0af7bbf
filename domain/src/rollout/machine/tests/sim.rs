//! A small world for the machine: nodes that do what agents do, a network that loses and repeats, people who
//! decide at random, and a clock. Each world is made from one seed.

use super::*;
use crate::{
    digest::Digest,
    report::UpgradeReport,
    rollout::{PlannedUpgrade, Policy, WaveSpec},
    state::{ComponentState, ReleaseRef},
};
use std::time::Duration;

/// A small generator: the same seed gives the same world.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}

/// What becomes of a node's upgrade.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fate {
    Good,
    Bad,
    Stuck,
    Unfetched,
    Refuses,
}

pub(crate) fn state(version: &str) -> ComponentState {
    let digest = Digest::of(version.as_bytes());
    ComponentState::release(ReleaseRef {
        component: "web".parse().unwrap(),
        version: version.parse().unwrap(),
        sequence: 1,
        manifest: digest,
        artifact: digest,
    })
}

/// A node: its agent, and the newest desired state that waits for it.
pub(crate) struct Node {
    pub(crate) online: bool,
    pub(crate) fate: Fate,
    pub(crate) installed: ComponentState,
    pub(crate) swaps: Vec<UpgradeId>,
    desired: Option<DesiredState>,
    seen: Generation,
    active: Option<Active>,
    outbox: Vec<UpgradeReport>,
    last: Option<(UpgradeId, u64)>,
}

struct Active {
    id: UpgradeId,
    phase: Phase,
    hold: bool,
    cancelled: bool,
    from: ComponentState,
    to: ComponentState,
}

impl Node {
    fn unavailable(&self) -> bool {
        let down = [Phase::Activating, Phase::Probing, Phase::RollingBack];
        self.active.as_ref().is_some_and(|active| down.contains(&active.phase))
    }

    fn report(&mut self, id: &UpgradeId, state: UpgradeState, reason: ReasonCode, now: Time) {
        let next = self.last.as_ref().filter(|(last, _)| last == id).map_or(1, |(_, sequence)| sequence + 1);
        self.last = Some((id.clone(), next));
        self.outbox.push(UpgradeReport {
            upgrade: id.clone(),
            component: "web".parse().unwrap(),
            sequence: next,
            generation: self.seen,
            state,
            reason: Reason::new(reason).with("from", "1").with("why", "its probe failed"),
            time: now,
            from: None,
            current: Some(self.installed.clone()),
            running: None,
            evidence: None,
            proof: None,
            reload: None,
            interruption: None,
        });
    }

    /// Takes the newest desired state.
    fn obey(&mut self, now: Time) {
        let Some(desired) = self.desired.clone().filter(|d| d.generation > self.seen) else { return };
        self.seen = desired.generation;
        match (&desired.target, &desired.upgrade) {
            (Target::Install(release), Some(id)) => {
                if let Some(active) = self.active.as_mut().filter(|active| active.id == *id) {
                    active.hold = desired.hold_before.is_some();
                } else if self.last.as_ref().is_none_or(|(last, _)| last != id) {
                    assert!(self.active.is_none(), "ordered while under way");
                    let to = ComponentState::release(release.clone());
                    let hold = desired.hold_before.is_some();
                    let (from, id) = (self.installed.clone(), id.clone());
                    self.active =
                        Some(Active { id, phase: Phase::Pending, hold, cancelled: false, from, to });
                }
            }
            (Target::Stay, upgrade) => self.stay(upgrade.clone(), now),
            (Target::Restore(state), None) => {
                assert!(state.same_content(&self.installed), "settled on what does not run");
            }
            other => panic!("unexpected order {other:?}"),
        }
    }

    fn stay(&mut self, upgrade: Option<UpgradeId>, now: Time) {
        let known = |id: &UpgradeId| self.last.as_ref().is_some_and(|(last, _)| last == id);
        let Some(active) = self.active.as_mut() else {
            // A cancel for an upgrade that never came is answered.
            if let Some(id) = upgrade.filter(|id| !known(id)) {
                let ended = UpgradeState::Ended(Outcome::Cancelled);
                self.report(&id, ended, ReasonCode::CancelledByOrder, now);
            }
            return;
        };
        let id = active.id.clone();
        match active.phase {
            phase if phase < Phase::Activating => {
                self.active = None;
                self.report(&id, UpgradeState::Ended(Outcome::Cancelled), ReasonCode::CancelledByOrder, now);
            }
            Phase::Activating | Phase::Probing => {
                active.phase = Phase::RollingBack;
                active.cancelled = true;
                self.report(&id, UpgradeState::Active(Phase::RollingBack), ReasonCode::PuttingBack, now);
            }
            _ => {}
        }
    }

    /// One step of the upgrade under way.
    fn advance(&mut self, now: Time) {
        use ReasonCode as R;
        let Some(active) = self.active.as_mut() else { return };
        let id = active.id.clone();
        let end = |outcome| Err::<Phase, _>(outcome);
        let (next, reason) = match (active.phase, self.fate) {
            (Phase::Pending, Fate::Refuses) => (end(Outcome::Refused), R::ComponentHeld),
            (Phase::Pending, _) if active.to.same_content(&self.installed) => {
                (end(Outcome::AlreadyCurrent), R::AlreadyCurrent)
            }
            (Phase::Pending, _) => (Ok(Phase::Fetching), R::Fetching),
            (Phase::Fetching, Fate::Unfetched) => (end(Outcome::FailedUnchanged), R::FetchFailed),
            (Phase::Fetching, _) => (Ok(Phase::Staged), R::Staged),
            (Phase::Staged, _) if active.hold => return,
            (Phase::Staged, _) => {
                self.installed = active.to.clone();
                self.swaps.push(id.clone());
                (Ok(Phase::Activating), R::Activating)
            }
            (Phase::Activating, _) => (Ok(Phase::Probing), R::Probing),
            (Phase::Probing, Fate::Bad | Fate::Stuck) => (Ok(Phase::RollingBack), R::PuttingBack),
            (Phase::Probing, _) => (end(Outcome::Succeeded), R::Healthy),
            (_, Fate::Stuck) => (end(Outcome::RollbackFailed), R::RollbackUnhealthy),
            _ => {
                self.installed = active.from.clone();
                let code = if active.cancelled { R::CancelledAfterSwitch } else { R::RolledBack };
                (end(Outcome::RolledBack), code)
            }
        };
        let state = match next {
            Ok(phase) => {
                active.phase = phase;
                UpgradeState::Active(phase)
            }
            Err(outcome) => {
                self.active = None;
                UpgradeState::Ended(outcome)
            }
        };
        self.report(&id, state, reason, now);
    }
}

/// Nodes, people and a clock around one rollout.
pub(crate) struct World {
    pub(crate) machine: Machine,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) now: Time,
    pub(crate) dice: Dice,
    /// Everything that nodes were told, in order.
    pub(crate) told: Vec<(NodeId, Generation, Tell)>,
    /// Write and read the machine between any two steps.
    pub(crate) reload: bool,
    pub(crate) reverted: Vec<NodeId>,
    cancelled: bool,
}

pub(crate) fn by() -> By {
    By { actor: "users/anna".into(), message: "because".into() }
}

impl World {
    pub(crate) fn new(policy: Policy, fates: &[Fate], seed: u64) -> Self {
        let spec = Spec {
            component: "web".parse().unwrap(),
            selector: "*".into(),
            change: Change::Install {
                version: "2".parse().unwrap(),
                allow_downgrade: false,
                allow_failed_digest: false,
            },
            policy,
            seed,
        };
        let mut plan = Plan {
            upgrades: vec![],
            excluded: vec![],
            warnings: vec![],
            max_unavailable: spec.policy.max_unavailable.of(fates.len()).max(1),
            release: None,
            live: false,
            digest: Digest::of(b"plan"),
        };
        let mut nodes = BTreeMap::new();
        let mut start = 0;
        for (index, wave) in spec.policy.waves.iter().enumerate() {
            let last = index + 1 == spec.policy.waves.len();
            let end = if last { fates.len() } else { (start + wave.size.of(fates.len())).min(fates.len()) };
            for (number, fate) in fates.iter().enumerate().take(end).skip(start) {
                let node: NodeId = format!("n{number:02}").parse().unwrap();
                let (from, to) = (state("1"), state("2"));
                plan.upgrades.push(PlannedUpgrade {
                    node: node.clone(),
                    from,
                    to,
                    wave: index,
                    online: true,
                });
                nodes.insert(node, node_of(*fate));
            }
            start = end;
        }
        let origin = Origin { id: "r-1".parse().unwrap(), by: by(), reverts: None };
        let machine = Machine::planned(spec, &plan, origin, Time(0));
        let (told, reverted) = (Vec::new(), Vec::new());
        Self {
            machine,
            nodes,
            now: Time(0),
            dice: Dice(seed),
            told,
            reload: false,
            reverted,
            cancelled: false,
        }
    }

    pub(crate) fn random(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let count = 1 + dice.roll(9) as usize;
        let fates: Vec<Fate> = (0..count)
            .map(|_| match dice.roll(12) {
                0 => Fate::Bad,
                1 => Fate::Unfetched,
                2 => Fate::Refuses,
                3 if dice.one_in(2) => Fate::Stuck,
                _ => Fate::Good,
            })
            .collect();
        let mut waves = Vec::new();
        for _ in 0..=dice.roll(3) {
            let size = NodeCount::Count(1 + dice.roll(3) as u32);
            let bake = Duration::from_secs(dice.roll(2) * 30);
            waves.push(WaveSpec { size, approval: dice.one_in(4), bake });
        }
        let budget = Budget { limit: NodeCount::Percent(30 + dice.roll(70) as u32), minimum_sample: 2 };
        let on_failure = [OnFailure::Halt, OnFailure::RevertWave, OnFailure::RevertAll];
        let policy = Policy {
            waves,
            max_unavailable: NodeCount::Count(1 + dice.roll(3) as u32),
            budgets: Cause::ALL.into_iter().filter(|_| dice.one_in(2)).map(|cause| (cause, budget)).collect(),
            silence_budget: NodeCount::Count(dice.roll(3) as u32),
            on_failure: on_failure[dice.roll(3) as usize],
            approval: dice.one_in(4),
            ..Policy::default()
        };
        let mut world = Self::new(policy, &fates, seed);
        world.dice = dice;
        world
    }

    /// Puts an event to the machine and carries out what it asks for.
    pub(crate) fn put(&mut self, event: Event) -> Result<(), Reason> {
        if self.reload {
            let text = serde_json::to_string(&self.machine).unwrap();
            self.machine = serde_json::from_str(&text).unwrap();
        }
        let revision = self.machine.rollout.revision;
        let (machine, result) = self.machine.clone().step(event.clone(), self.now);
        let Ok(outcomes) = result.clone() else {
            assert_eq!(machine, self.machine, "a refused command changed something");
            return result.map(drop);
        };
        self.machine = machine;
        let changes = outcomes.upgrades.len() as u64 + u64::from(outcomes.rollout);
        assert_eq!(self.machine.rollout.revision, revision + changes);
        assert_eq!(check(&self.machine), Vec::<&str>::new(), "after {event:?}");
        self.carry_out(outcomes.effects);
        // Deciding is idempotent: nothing is left to do at the same instant.
        let (again, rest) = self.machine.clone().step(Event::Tick, self.now);
        let wakes = |e: &Effect| matches!(e, Effect::WakeAt(_));
        let rest = rest.unwrap().effects;
        assert!(rest.iter().all(wakes), "{rest:?} after {event:?}: {}", again.rollout.reason);
        self.assert_bound();
        Ok(())
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Tell { node, upgrade, tell } => {
                    let starts = matches!(tell, Tell::Go | Tell::Continue | Tell::HoldBefore(_));
                    assert!(!(self.cancelled && starts), "{node} was told to go after the cancel");
                    let last = self.told.iter().rev().find(|(n, ..)| *n == node).map(|(_, g, _)| *g);
                    let number = last.unwrap_or_default().number + 1;
                    let generation = Generation { epoch: 1, number };
                    let desired = self.machine.desired(&node, upgrade, &tell, generation, self.now).unwrap();
                    self.machine.upgrades.get_mut(&node).unwrap().generation = number;
                    self.nodes.get_mut(&node).unwrap().desired = Some(desired);
                    self.told.push((node, generation, tell));
                }
                Effect::StartRevert { nodes } => {
                    self.reverted = nodes;
                    self.put(Event::RevertStarted("r-2".parse().unwrap())).unwrap();
                }
                Effect::RolledBack { .. } | Effect::WakeAt(_) => {}
            }
        }
    }

    /// A restore: what was not delivered yet never will be.
    pub(crate) fn forget_orders(&mut self) {
        self.nodes.values_mut().for_each(|node| node.desired = None);
    }

    fn assert_bound(&self) {
        let down = self.nodes.values().filter(|node| node.unavailable()).count();
        let limit = self.machine.rollout.max_unavailable;
        assert!(down <= limit, "{down} of at most {limit} are unavailable");
    }

    /// One thing happens.
    pub(crate) fn happen(&mut self) {
        let index = self.dice.roll(self.nodes.len() as u64) as usize;
        let id = self.nodes.keys().nth(index).unwrap().clone();
        match self.dice.roll(40) {
            0..=9 => self.node_obeys(&id),
            10..=19 => self.node_advances(&id),
            20..=29 => self.deliver(&id),
            30 => self.set_online(&id, false),
            31 | 32 => self.set_online(&id, true),
            33 | 34 => self.pass(1 + self.dice.0 % 20),
            35 if self.dice.one_in(8) => self.pass(400),
            36..=38 => self.person(),
            39 if self.dice.one_in(20) => {
                self.put(Event::Restored).unwrap();
                // After a restore a person decides anew, also about what was being cancelled.
                self.cancelled &= self.machine.rollout.state != State::Halted;
            }
            _ => drop(self.put(Event::Tick)),
        }
    }

    pub(crate) fn node_obeys(&mut self, id: &NodeId) {
        let now = self.now;
        let node = self.nodes.get_mut(id).unwrap();
        if node.online {
            node.obey(now);
        }
        self.assert_bound();
    }

    pub(crate) fn node_advances(&mut self, id: &NodeId) {
        let now = self.now;
        self.nodes.get_mut(id).unwrap().advance(now);
        self.assert_bound();
    }

    /// Reports arrive in order, sometimes twice, sometimes not yet.
    pub(crate) fn deliver(&mut self, id: &NodeId) {
        let twice = self.dice.one_in(5);
        let node = self.nodes.get_mut(id).unwrap();
        if !node.online || node.outbox.is_empty() {
            return;
        }
        let report = if twice { node.outbox[0].clone() } else { node.outbox.remove(0) };
        self.put(Event::Report { node: id.clone(), report: Box::new(report) }).unwrap();
    }

    pub(crate) fn set_online(&mut self, id: &NodeId, online: bool) {
        self.nodes.get_mut(id).unwrap().online = online;
        let offline_since = (!online).then_some(self.now);
        if self.machine.upgrades[id].offline_since.is_some() == online {
            if online {
                // Back in touch: say what you run, get what you should run, before anybody else is told to go.
                self.node_obeys(id);
            }
            let presence = Presence { offline_since, unhealthy: false, drift: None };
            self.put(Event::Presence { node: id.clone(), presence }).unwrap();
        }
    }

    /// Time passes. An agent's phases have deadlines shorter than what makes a node silent, so nodes that are
    /// under way end by themselves meanwhile.
    pub(crate) fn pass(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
        if seconds > 100 {
            let ids: Vec<NodeId> = self.nodes.keys().cloned().collect();
            for id in ids {
                (0..8).for_each(|_| self.node_advances(&id));
            }
        }
        self.put(Event::Tick).unwrap();
    }

    fn person(&mut self) {
        let index = self.dice.roll(self.nodes.len() as u64) as usize;
        let node = self.nodes.keys().nth(index).unwrap().clone();
        let failed = [FailedNodes::Retry, FailedNodes::Skip, FailedNodes::Revert];
        let event = match self.dice.roll(30) {
            0..=9 => Event::Start(by()),
            10..=14 => Event::Approve { wave: None, by: by() },
            15 => Event::Pause { strength: PauseStrength::StartNoMore, by: by() },
            16 => Event::Pause { strength: PauseStrength::NextSafePoint, by: by() },
            17..=23 => {
                let failed = Some(failed[self.dice.roll(3) as usize]).filter(|_| self.dice.one_in(2));
                Event::Resume { failed, allow_failed_digest: true, by: by() }
            }
            24 if self.dice.one_in(4) => Event::Cancel(by()),
            25 if self.dice.one_in(4) => Event::RollBack(by()),
            26 => Event::Skip { node, by: by() },
            _ => Event::Retry { nodes: vec![], allow_failed_digest: true, by: by() },
        };
        let cancel = matches!(event, Event::Cancel(_));
        if self.put(event).is_ok() && cancel {
            self.cancelled = true;
        }
    }

    /// Everything that nodes and network still owe happens.
    pub(crate) fn quiesce(&mut self) {
        let ids: Vec<NodeId> = self.nodes.keys().cloned().collect();
        for _ in 0..40 {
            for id in &ids {
                self.node_obeys(id);
                self.node_advances(id);
                self.deliver(id);
            }
        }
    }

    /// People and nodes answer until the rollout is terminal.
    pub(crate) fn finish(&mut self) {
        let ids: Vec<NodeId> = self.nodes.keys().cloned().collect();
        for _ in 0..40 {
            ids.iter().for_each(|id| self.set_online(id, true));
            self.quiesce();
            match self.machine.rollout.state {
                State::Planned => self.put(Event::Start(by())).unwrap(),
                State::Reverting => self.put(Event::RevertEnded(State::Succeeded)).unwrap(),
                State::Paused | State::Halted => {
                    let failed = Some(FailedNodes::Skip);
                    self.put(Event::Resume { failed, allow_failed_digest: false, by: by() }).unwrap();
                }
                _ => drop(self.put(Event::Approve { wave: None, by: by() })),
            }
            self.pass(60);
        }
        self.quiesce();
    }
}

fn node_of(fate: Fate) -> Node {
    Node {
        online: true,
        fate,
        installed: state("1"),
        swaps: vec![],
        desired: None,
        seen: Generation::default(),
        active: None,
        outbox: vec![],
        last: None,
    }
}
