//! A simulated node: answers the machine's steps, has faults, crashes, and checks each report as it comes.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use crate::{
    digest::Digest,
    id::UpgradeId,
    jvm::{ClassProof, Mechanism, Proof, Standing},
    order::{DesiredState, Generation, Target},
    patch::{BaseRange, Live, PatchSpec},
    reason::{Reason, ReasonCode},
    release::Kind,
    report::UpgradeReport,
    state::{Base, ComponentState, Layer, ReleaseRef, stack_digest},
    time::Time,
    upgrade::{
        Outcome, UpgradeState,
        event::{Effect, Event, Offer, Offered, OfferedLayer},
        history::Entry,
        machine::Machine,
        outbox::MAX_REPORTS,
        policy::Policy,
        preflight::Facts,
        record::Record,
        recover::{Found, Reverted},
        step::{Answer, Failure, Probed, Process, Step, StepKind},
        table,
    },
};

pub(super) fn digest(n: u8) -> Digest {
    Digest([n; 32])
}

pub(super) fn release(n: u8) -> ReleaseRef {
    ReleaseRef {
        component: "web".parse().unwrap(),
        version: format!("1.0.{n}").parse().unwrap(),
        sequence: u64::from(n),
        manifest: digest(n.wrapping_add(100)),
        artifact: digest(n),
    }
}

pub(super) fn offer(number: u64, upgrade: &str, target: Target) -> Offer {
    let offered = |release: &ReleaseRef| {
        Ok(Offered { release: release.clone(), kind: Kind::Binary, size: 10, unfit: None })
    };
    let release = match &target {
        Target::Install(release) => Some(offered(release)),
        _ => None,
    };
    let desired = DesiredState {
        component: "web".parse().unwrap(),
        generation: Generation { epoch: 1, number },
        rollout: None,
        upgrade: (!upgrade.is_empty()).then(|| upgrade.parse().unwrap()),
        target,
        layers: vec![],
        live: false,
        hold_before: None,
        not_after: None,
        allow_downgrade: false,
        allow_failed_digest: false,
        soak: None,
        trace: String::new(),
        actor: String::new(),
    };
    Offer { desired, release, layers: Ok(Vec::new()) }
}

/// The patch of that number, 1 to 40.
pub(super) fn patch(n: u8) -> Layer {
    let release = ReleaseRef {
        version: format!("p{n}").parse().unwrap(),
        manifest: digest(n + 200),
        artifact: digest(n + 50),
        ..release(n)
    };
    Layer { number: n.into(), release, retired: false, contains: vec![] }
}

/// What the manifest of a patch says.
pub(super) fn spec(n: u32) -> PatchSpec {
    PatchSpec {
        number: n,
        base: BaseRange::default(),
        fixes: vec![],
        classes: vec![],
        resources: vec![],
        removed: vec![],
        requires: vec![],
        supersedes: vec![],
        module: None,
        live: Live { possible: true, problems: vec![] },
        needs_restart: false,
    }
}

/// An order with these patches, highest first.
pub(super) fn with_patches(mut offer: Offer, patches: &[u8]) -> Offer {
    offer.desired.layers = patches.iter().copied().map(patch).collect();
    let offered = |layer: &Layer| OfferedLayer {
        layer: layer.clone(),
        offered: Offered { release: layer.release.clone(), kind: Kind::Patch, size: 1, unfit: None },
        patch: spec(layer.number),
    };
    offer.layers = Ok(offer.desired.layers.iter().map(offered).collect());
    offer
}

/// An order for these patches on release `base`.
pub(super) fn stack(number: u64, upgrade: &str, base: u8, patches: &[u8]) -> Offer {
    with_patches(offer(number, upgrade, Target::Stack(Base::Release(release(base)))), patches)
}

/// The same, in the running JVM.
pub(super) fn live(number: u64, upgrade: &str, base: u8, patches: &[u8]) -> Offer {
    let mut offer = stack(number, upgrade, base, patches);
    offer.desired.live = true;
    offer
}

/// The state of release `base` with these patches.
pub(super) fn state(base: u8, patches: &[u8]) -> ComponentState {
    ComponentState {
        layers: patches.iter().copied().map(patch).collect(),
        ..ComponentState::release(release(base))
    }
}

pub(super) fn install(number: u64, upgrade: &str, n: u8) -> Offer {
    offer(number, upgrade, Target::Install(release(n)))
}

/// A node: what lies and runs there, and what is wrong with it.
pub(super) struct Node {
    pub(super) machine: Machine,
    pub(super) now: Time,
    pub(super) installed: Option<Digest>,
    /// The stack that is in force on the disk, and what is wrong with its files.
    pub(super) layers: Vec<Layer>,
    pub(super) damage: Option<Reason>,
    /// What the shim starts when the process ends by itself.
    pub(super) launch: Option<(Digest, Vec<Layer>)>,
    /// The stack whose classes are in force in what runs.
    pub(super) in_force: Option<Digest>,
    /// A class that the JVM has loaded old, whatever the stack.
    pub(super) old_class: bool,
    /// The stack whose classes the JVM never has in force.
    pub(super) unloadable: Option<Digest>,
    /// The JVM says nothing.
    pub(super) silent: bool,
    pub(super) versions: BTreeSet<Digest>,
    pub(super) process: Process,
    /// What stands beside it, and with which stack.
    pub(super) beside: Option<(Process, Vec<Layer>)>,
    /// What runs was started without sockets.
    pub(super) no_sockets: bool,
    /// The old process of a handover that was not asked to end yet.
    pub(super) undrained: Option<u32>,
    /// For how many probes an old process finishes what it has begun, and how many are left.
    pub(super) finishes: u32,
    pub(super) finishing: u32,
    pub(super) pids: u32,
    pub(super) unhealthy: BTreeSet<Digest>,
    /// What runs before an upgrade is unhealthy.
    pub(super) broken_baseline: bool,
    pub(super) damaged: BTreeSet<Digest>,
    /// What a guard has put away.
    pub(super) reverted: Option<Reverted>,
    /// Steps by name that fail with the given code, each once.
    pub(super) faults: Vec<(&'static str, ReasonCode)>,
    pub(super) work: VecDeque<(u64, Step)>,
    pub(super) done: Vec<&'static str>,
    pub(super) answers: Vec<Result<Generation, Reason>>,
    pub(super) log: BTreeMap<UpgradeId, Vec<UpgradeReport>>,
    pub(super) history: Vec<Entry>,
}

impl Node {
    pub(super) fn new(installed: Option<Digest>) -> Self {
        let policy = Policy { patchable: true, live: true, ..Policy::default() };
        Self::with(policy, installed)
    }

    pub(super) fn with(policy: Policy, installed: Option<Digest>) -> Self {
        let policy = Policy { soak: Duration::from_secs(2), ..policy };
        let machine = Machine::new(policy, Record::new("web".parse().unwrap()));
        let mut node = Self {
            machine,
            now: Time(1_000_000),
            installed,
            layers: vec![],
            damage: None,
            launch: None,
            in_force: None,
            old_class: false,
            unloadable: None,
            silent: false,
            versions: BTreeSet::new(),
            process: Process::NotRun,
            beside: None,
            no_sockets: false,
            undrained: None,
            finishes: 2,
            finishing: 0,
            pids: 100,
            unhealthy: BTreeSet::new(),
            broken_baseline: false,
            damaged: BTreeSet::new(),
            reverted: None,
            faults: vec![],
            work: VecDeque::new(),
            done: vec![],
            answers: vec![],
            log: BTreeMap::new(),
            history: vec![],
        };
        node.send(Event::Started);
        node
    }

    /// A node that runs release 1.
    pub(super) fn settled() -> Self {
        Self::settled_with(Self::new(None).machine.policy().clone())
    }

    pub(super) fn settled_with(policy: Policy) -> Self {
        let mut node = Self::with(policy, None);
        node.send(Event::Order(Box::new(install(1, "u1", 1))));
        assert_eq!(node.run("u1"), Outcome::Succeeded);
        node.done.clear();
        node
    }

    pub(super) fn send(&mut self, event: Event) {
        let before = self.machine.record().clone();
        let (machine, effects) = self.machine.clone().step(event, self.now);
        self.machine = machine;
        assert!(self.machine.record().outbox.len() <= MAX_REPORTS);
        for effect in effects {
            match effect {
                Effect::Perform { ticket, step } => self.work.push_back((ticket, step)),
                Effect::Abort { ticket } => self.work.retain(|(other, _)| *other != ticket),
                Effect::Answer(answer) => self.answers.push(answer),
                Effect::History(entry) => self.history.push(*entry),
                _ => {}
            }
        }
        let reports: Vec<UpgradeReport> = self.machine.record().outbox.reports().cloned().collect();
        for report in reports {
            let log = self.log.entry(report.upgrade.clone()).or_default();
            if log.iter().all(|known| known.sequence != report.sequence) {
                check_next(log, &report);
                log.push(report);
            }
        }
        if before.passage.is_some() && self.machine.record().passage.is_none() {
            self.undrained = None;
            assert!(self.work.is_empty(), "an upgrade ended with work open");
        }
    }

    pub(super) fn answer_one(&mut self) -> bool {
        let Some((ticket, step)) = self.work.pop_front() else { return false };
        self.done.push(step.kind.as_str());
        let answer = self.perform(&step.kind);
        self.send(Event::Done { ticket, answer: Box::new(answer) });
        true
    }

    pub(super) fn perform(&mut self, kind: &StepKind) -> Result<Answer, Failure> {
        if let Some(at) = self.faults.iter().position(|(name, _)| *name == kind.as_str()) {
            let (_, code) = self.faults.remove(at);
            return Err(Reason::new(code).into());
        }
        match kind {
            StepKind::CheckPreflight { .. } => return Ok(Answer::Preflight(self.facts())),
            StepKind::Inspect { .. } => return Ok(Answer::Inspected(self.found())),
            StepKind::Verify { .. } => return Ok(Answer::Verified(None)),
            StepKind::Stage { digest, .. } => {
                self.versions.insert(*digest);
                self.damaged.remove(digest);
            }
            StepKind::VerifyKept { digest } => {
                if self.damaged.contains(digest) || !self.versions.contains(digest) {
                    return Err(Reason::new(ReasonCode::RollbackTargetDamaged).into());
                }
            }
            StepKind::Backup { digest } => {
                assert_eq!(self.installed, Some(*digest));
                self.versions.insert(*digest);
            }
            // What they do is the agent's own matter; here they are asked for in time, or fail.
            StepKind::Trial { .. } | StepKind::Arm { .. } => {}
            StepKind::Swap { digest } | StepKind::SwapBack { digest } => {
                assert!(self.versions.contains(digest), "switched to what is not there");
                self.installed = Some(*digest);
            }
            StepKind::Remove { digest } => {
                assert!(self.installed.is_none() || self.installed == *digest, "removed somebody's file");
                self.installed = None;
            }
            StepKind::SwitchStack { layers } | StepKind::SwitchStackBack { layers } => {
                let lies = |layer: &Layer| layer.retired || self.versions.contains(&layer.release.artifact);
                assert!(layers.iter().all(lies), "switched to patches that are not there");
                (self.layers, self.damage) = (layers.clone(), None);
            }
            StepKind::Stop => {
                let pid = self.process.pid();
                assert!(
                    pid.is_none() || pid != self.undrained,
                    "the old process was stopped before the drain"
                );
                (self.process, self.launch, self.beside) = (Process::NotRun, None, None);
            }
            StepKind::StartBeside { digest, layers } => return self.start_beside(*digest, layers),
            StepKind::Drain => return self.drain(),
            StepKind::Dismiss => self.beside = None,
            StepKind::Probe { beside: true, .. } => return Ok(self.probe_beside()),
            StepKind::Start { digest, layers } => return Ok(Answer::Started(self.start(*digest, layers))),
            StepKind::PatchLive { layers, .. } => return self.patch_live(layers),
            StepKind::Prove { layers, .. } => {
                let runs = self.process.pid().is_some() || !self.machine.policy().supervised;
                return Ok(Answer::Proved((runs && !self.silent).then(|| self.proof(layers))));
            }
            StepKind::Reload => {
                self.in_force = stack_digest(&self.layers);
                return Ok(Answer::Reloaded("told".to_owned()));
            }
            StepKind::Probe { .. } => {
                let supervised = self.machine.policy().supervised;
                let content = self.process.digest().or(self.installed.filter(|_| !supervised));
                let bad = self.layers.iter().any(|layer| self.unhealthy.contains(&layer.release.artifact));
                let sick = bad || content.is_none_or(|digest| self.unhealthy.contains(&digest));
                let result = if sick { Err("answers 500".to_owned()) } else { Ok(()) };
                let process = self.process.clone();
                let draining = self.finishing > 0;
                self.finishing = self.finishing.saturating_sub(1);
                return Ok(Answer::Probed(Probed { result, process, evidence: None, draining }));
            }
            StepKind::Prune { keep, .. } => {
                assert!(self.installed.is_none_or(|digest| keep.contains(&digest)) || self.drifted());
                let in_force = |layer: &Layer| layer.retired || keep.contains(&layer.release.artifact);
                assert!(self.layers.iter().all(in_force) || self.drifted(), "pruned a patch in force");
                self.versions.retain(|digest| keep.contains(digest));
            }
            StepKind::Fetch { .. } => {}
        }
        Ok(Answer::Done)
    }

    fn probe_beside(&self) -> Answer {
        let (process, layers) = self.beside.clone().unwrap_or((Process::NotRun, vec![]));
        let bad = layers.iter().any(|layer| self.unhealthy.contains(&layer.release.artifact));
        let sick = bad || process.digest().is_none_or(|digest| self.unhealthy.contains(&digest));
        let result = if sick { Err("answers 500".to_owned()) } else { Ok(()) };
        Answer::Probed(Probed { result, process, evidence: None, draining: false })
    }

    fn start_beside(&mut self, digest: Digest, layers: &[Layer]) -> Result<Answer, Failure> {
        if self.no_sockets || self.process.pid().is_none() {
            return Err(Reason::new(ReasonCode::HandoverUnavailable).into());
        }
        self.assert_whole(digest, layers);
        let stack = stack_digest(layers);
        let same = |(process, _): &(Process, Vec<Layer>)| {
            process.digest() == Some(digest) && process.stack() == stack
        };
        if !self.beside.as_ref().is_some_and(same) {
            self.pids += 1;
            let process = Process::Running { pid: self.pids, digest, stack };
            self.beside = Some((process, layers.to_vec()));
        }
        let forward = |passage: &crate::upgrade::record::Passage| passage.back.is_none();
        if self.machine.record().passage.as_ref().is_some_and(forward) {
            self.undrained = self.process.pid();
        }
        let process = self.beside.as_ref().map(|(process, _)| process.clone());
        Ok(Answer::Started(process.expect("it was just started")))
    }

    fn drain(&mut self) -> Result<Answer, Failure> {
        match self.beside.take() {
            Some((process @ Process::Running { digest, stack, .. }, layers)) => {
                (self.process, self.in_force) = (process, stack);
                self.launch = Some((digest, layers));
                (self.undrained, self.finishing) = (None, self.finishes);
            }
            Some(ended) => {
                self.beside = Some(ended);
                return Err(Reason::new(ReasonCode::ProcessExited).into());
            }
            None => {}
        }
        Ok(Answer::Done)
    }

    /// The process beside ends by itself, and stays ended.
    pub(super) fn fall_beside(&mut self) {
        if let Some((process, _)) = &mut self.beside {
            *process = Process::Down { exit: "exit status 1".to_owned() };
        }
    }

    /// Nothing but one whole state is ever started: never a base with another one's stack.
    fn assert_whole(&self, digest: Digest, layers: &[Layer]) {
        assert_eq!(self.installed, Some(digest));
        assert_eq!(
            stack_digest(&self.layers),
            stack_digest(layers),
            "started with a stack that is not in force"
        );
        let record = self.machine.record();
        let passage = record.passage.iter().flat_map(|passage| {
            let back = passage.back.as_ref().map(|back| &back.to);
            [Some(&passage.from), Some(passage.order.goal.state()), back].into_iter().flatten()
        });
        let whole = |state: &ComponentState| {
            state.artifact() == Some(digest) && state.stack() == stack_digest(layers)
        };
        assert!(std::iter::once(&record.current).chain(passage).any(whole), "started a mixture");
    }

    fn start(&mut self, digest: Digest, layers: &[Layer]) -> Process {
        self.assert_whole(digest, layers);
        let stack = stack_digest(layers);
        if self.process.digest() != Some(digest) || self.process.stack() != stack {
            self.pids += 1;
            self.process = Process::Running { pid: self.pids, digest, stack };
        }
        self.launch = Some((digest, layers.to_vec()));
        self.in_force = stack;
        self.process.clone()
    }

    /// The process ends by itself, and its shim starts it again, unless what it is started from has changed.
    pub(super) fn fall(&mut self) {
        let Some((digest, layers)) = self.launch.clone() else { return };
        let stack = stack_digest(&layers);
        if self.installed == Some(digest) {
            self.pids += 1;
            self.process = Process::Running { pid: self.pids, digest, stack };
            self.in_force = stack;
        } else {
            self.process = Process::Down { exit: "exit status 1".to_owned() };
        }
    }

    fn patch_live(&mut self, layers: &[Layer]) -> Result<Answer, Failure> {
        let supervised = self.machine.policy().supervised;
        if supervised && self.process.pid().is_none() {
            return Err(Reason::new(ReasonCode::JvmGone).into());
        }
        self.in_force = stack_digest(layers);
        if let Process::Running { stack, digest, .. } = &mut self.process {
            *stack = self.in_force;
            self.launch = Some((*digest, layers.to_vec()));
        }
        Ok(Answer::Proved((!self.silent).then(|| self.proof(layers))))
    }

    pub(super) fn proof(&self, layers: &[Layer]) -> Proof {
        let unloadable = self.unloadable.is_some() && self.unloadable == stack_digest(layers);
        let old = self.old_class || unloadable || self.in_force != stack_digest(layers);
        let class = |layer: &Layer| ClassProof {
            class: "com.acme.Greeter".to_owned(),
            number: layer.number,
            standing: if old { Standing::Old } else { Standing::Proved },
            loader: "app".to_owned(),
            source: None,
            original: None,
            expected: layer.release.artifact,
            mechanism: Mechanism::JavaAgent,
            problem: String::new(),
        };
        let classes = layers.iter().filter(|layer| !layer.retired).map(class).collect();
        let pid = self.process.pid().unwrap_or(1);
        Proof { pid, mechanism: Mechanism::JavaAgent, classes, alarms: vec![], time: self.now }
    }

    pub(super) fn found(&self) -> Found {
        Found {
            installed: self.installed,
            layers: if self.damage.is_none() { self.layers.clone() } else { vec![] },
            damage: self.damage.clone(),
            kept: self.versions.iter().copied().collect(),
            patches: self.versions.iter().copied().filter(|digest| digest.0[0] > 50).collect(),
            changes: Vec::new(),
            process: self.process.clone(),
            beside: self.beside.as_ref().map(|(process, _)| process.clone()),
            health: None,
            watched: false,
            reverted: self.reverted.clone(),
        }
    }

    pub(super) fn drifted(&self) -> bool {
        let current = &self.machine.record().current;
        self.installed != current.artifact() || stack_digest(&self.layers) != current.stack()
    }

    /// Whether every upgrade ended as a whole: none with a rollback that needs a person.
    pub(super) fn outcomes_are_known(&self) -> bool {
        !self.drifted() && self.history.iter().all(|entry| entry.outcome != Outcome::RollbackFailed)
    }

    pub(super) fn facts(&self) -> Facts {
        Facts {
            installed: self.installed,
            installed_size: 10,
            process: self.process.clone(),
            path: "/x".to_owned(),
            available: 1 << 30,
            fetched: 0,
            links: true,
            unpacked: 0,
            forbidden: None,
            layers: if self.damage.is_none() { self.layers.clone() } else { vec![] },
            damage: self.damage.clone(),
            stack: Ok(Vec::new()),
            changes: Vec::new(),
            baseline: self.broken_baseline.then(|| Err("it does not answer".to_owned())),
        }
    }

    pub(super) fn crash(&mut self) {
        let text = serde_json::to_string(self.machine.record()).unwrap();
        let record: Record = serde_json::from_str(&text).unwrap();
        assert_eq!(&record, self.machine.record(), "the record does not survive the journal");
        self.work.clear();
        self.machine = Machine::new(self.machine.policy().clone(), record);
        self.send(Event::Started);
    }

    pub(super) fn advance(&mut self) -> bool {
        let Some(at) = self.machine.wake_at() else { return false };
        self.now = self.now.max(at);
        self.send(Event::Tick);
        true
    }

    /// Answers and lets time pass until the upgrade has ended.
    pub(super) fn run(&mut self, upgrade: &str) -> Outcome {
        for _ in 0..2_000 {
            if let Some(outcome) = self.outcome(upgrade) {
                return outcome;
            }
            if !self.answer_one() && !self.advance() {
                break;
            }
        }
        panic!("{upgrade} does not end: {:?}", self.machine.record().passage);
    }

    pub(super) fn outcome(&self, upgrade: &str) -> Option<Outcome> {
        self.log.get(&upgrade.parse().unwrap())?.last()?.state.outcome()
    }

    pub(super) fn reason(&self, upgrade: &str) -> ReasonCode {
        self.log[&upgrade.parse().unwrap()].last().unwrap().reason.code
    }

    /// Answers until a step of this name is asked for.
    pub(super) fn run_to(&mut self, name: &str) {
        for _ in 0..200 {
            if self.work.front().is_some_and(|(_, step)| step.kind.as_str() == name) {
                return;
            }
            if !self.answer_one() && !self.advance() {
                break;
            }
        }
        panic!("never came to {name}");
    }
}

/// Reports are numbered without gaps here, follow the table, and nothing follows an end.
pub(super) fn check_next(log: &[UpgradeReport], report: &UpgradeReport) {
    assert_eq!(report.sequence, log.len() as u64 + 1);
    let Some(last) = log.last() else { return };
    match (last.state, report.state) {
        (UpgradeState::Ended(_), _) => panic!("{} after its end: {report:?}", report.upgrade),
        (UpgradeState::Active(from), to) if UpgradeState::Active(from) != to => {
            assert!(table::permits(from, to), "{from} -> {to} is not in the table");
        }
        _ => {}
    }
}
