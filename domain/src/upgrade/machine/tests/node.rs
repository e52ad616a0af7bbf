//! A simulated node: answers the machine's steps, has faults, crashes, and checks each report as it comes.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use crate::{
    digest::Digest,
    id::UpgradeId,
    order::{DesiredState, Generation, Target},
    reason::{Reason, ReasonCode},
    release::Kind,
    report::UpgradeReport,
    state::ReleaseRef,
    time::Time,
    upgrade::{
        Outcome, UpgradeState,
        event::{Effect, Event, Offer, Offered},
        machine::Machine,
        outbox::MAX_REPORTS,
        policy::Policy,
        preflight::Facts,
        record::Record,
        recover::Found,
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

pub(super) fn install(number: u64, upgrade: &str, n: u8) -> Offer {
    offer(number, upgrade, Target::Install(release(n)))
}

/// A node: what lies and runs there, and what is wrong with it.
pub(super) struct Node {
    pub(super) machine: Machine,
    pub(super) now: Time,
    pub(super) installed: Option<Digest>,
    pub(super) versions: BTreeSet<Digest>,
    pub(super) process: Process,
    pub(super) pids: u32,
    pub(super) unhealthy: BTreeSet<Digest>,
    pub(super) damaged: BTreeSet<Digest>,
    /// Steps by name that fail with the given code, each once.
    pub(super) faults: Vec<(&'static str, ReasonCode)>,
    pub(super) work: VecDeque<(u64, Step)>,
    pub(super) done: Vec<&'static str>,
    pub(super) answers: Vec<Result<Generation, Reason>>,
    pub(super) log: BTreeMap<UpgradeId, Vec<UpgradeReport>>,
}

impl Node {
    pub(super) fn new(installed: Option<Digest>) -> Self {
        let policy = Policy { soak: Duration::from_secs(2), ..Policy::default() };
        let machine = Machine::new(policy, Record::new("web".parse().unwrap()));
        let mut node = Self {
            machine,
            now: Time(1_000_000),
            installed,
            versions: BTreeSet::new(),
            process: Process::NotRun,
            pids: 100,
            unhealthy: BTreeSet::new(),
            damaged: BTreeSet::new(),
            faults: vec![],
            work: VecDeque::new(),
            done: vec![],
            answers: vec![],
            log: BTreeMap::new(),
        };
        node.send(Event::Started);
        node
    }

    /// A node that runs release 1.
    pub(super) fn settled() -> Self {
        let mut node = Self::new(None);
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
            assert!(self.work.is_empty(), "an upgrade ended with work open");
        }
    }

    pub(super) fn answer_one(&mut self) -> bool {
        let Some((ticket, step)) = self.work.pop_front() else { return false };
        self.done.push(step.kind.as_str());
        let answer = self.perform(&step.kind);
        self.send(Event::Done { ticket, answer });
        true
    }

    pub(super) fn perform(&mut self, kind: &StepKind) -> Result<Answer, Failure> {
        if let Some(at) = self.faults.iter().position(|(name, _)| *name == kind.as_str()) {
            let (_, code) = self.faults.remove(at);
            return Err(Reason::new(code).into());
        }
        match kind {
            StepKind::CheckPreflight { .. } => return Ok(Answer::Preflight(self.facts())),
            StepKind::Inspect { .. } => {
                let kept = self.versions.iter().copied().collect();
                let process = self.process.clone();
                let found = Found {
                    installed: self.installed,
                    layers: Vec::new(),
                    damage: None,
                    kept,
                    changes: Vec::new(),
                    patches: Vec::new(),
                    process,
                    health: None,
                };
                return Ok(Answer::Inspected(found));
            }
            StepKind::Verify { .. } => return Ok(Answer::Verified(None)),
            StepKind::Stage { digest, .. } => {
                self.versions.insert(*digest);
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
            StepKind::Swap { digest } | StepKind::SwapBack { digest } => {
                assert!(self.versions.contains(digest), "switched to what is not there");
                self.installed = Some(*digest);
            }
            StepKind::Remove { digest } => {
                assert!(self.installed.is_none() || self.installed == *digest, "removed somebody's file");
                self.installed = None;
            }
            StepKind::Stop => self.process = Process::NotRun,
            StepKind::Start { digest, .. } => {
                assert_eq!(self.installed, Some(*digest));
                if self.process.digest() != Some(*digest) {
                    self.pids += 1;
                    self.process = Process::Running { pid: self.pids, digest: *digest, stack: None };
                }
                return Ok(Answer::Started(self.process.clone()));
            }
            StepKind::Probe { .. } => {
                let sick = self.process.digest().is_none_or(|digest| self.unhealthy.contains(&digest));
                let result = if sick { Err("answers 500".to_owned()) } else { Ok(()) };
                return Ok(Answer::Probed(Probed { result, process: self.process.clone(), evidence: None }));
            }
            StepKind::Prune { keep, .. } => {
                assert!(self.installed.is_none_or(|digest| keep.contains(&digest)) || self.drifted());
                self.versions.retain(|digest| keep.contains(digest));
            }
            StepKind::SwitchStack { .. }
            | StepKind::SwitchStackBack { .. }
            | StepKind::PatchLive { .. }
            | StepKind::Prove { .. }
            | StepKind::Reload
            | StepKind::Fetch { .. } => {}
        }
        Ok(Answer::Done)
    }

    pub(super) fn drifted(&self) -> bool {
        self.installed != self.machine.record().current.artifact()
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
            forbidden: None,
            layers: Vec::new(),
            damage: None,
            stack: Ok(Vec::new()),
            changes: Vec::new(),
            baseline: None,
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
