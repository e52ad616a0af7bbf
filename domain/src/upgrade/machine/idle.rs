//! While no upgrade is under way: looking whether all is as recorded, and whether the JVM still runs what was proved.

use super::Machine;
use crate::{
    jvm::Proof,
    reason::{Reason, ReasonCode},
    time::Time,
    upgrade::{
        event::Effect,
        recover::{self, Found},
        step::{Answer, Failure, Process, StepKind},
    },
};

impl Machine {
    pub(super) fn look(&mut self) {
        if self.ready && self.record.passage.is_none() && self.outstanding.is_none() {
            self.inspect(true);
        }
    }

    /// After a reboot, or when a shim was ended, what ran is started again, with the stack it ran with.
    pub(super) fn start_recorded(&mut self, found: &Found) {
        let current = self.record.current.artifact();
        let gone = self.policy.supervised && self.record.started && found.process == Process::NotRun;
        // A directory that somebody edited is still what is to run after a reboot.
        let there = found.installed == current || !found.changes.is_empty();
        if let Some(digest) = current.filter(|_| gone && there) {
            let layers = self.record.current.layers.clone();
            self.perform(StepKind::Start { digest, layers });
        }
    }

    /// Compares what was found with what is recorded. A difference is shown, never mended unasked.
    pub(super) fn notice(&mut self, found: &Found, now: Time) {
        let drift = recover::drift(&self.record, &self.policy, found);
        // Shown until the next upgrade: what was known before the damage is gone.
        let damaged = |reason: &Reason| reason.code == ReasonCode::JournalDamaged;
        let old = self.old_classes();
        let stays = self.record.drift.as_ref().is_some_and(|reason| damaged(reason) || old);
        if drift.is_some() || !stays {
            self.drifted(drift, now);
        }
    }

    fn drifted(&mut self, drift: Option<Reason>, now: Time) {
        let of =
            |reason: &Option<Reason>| reason.as_ref().map(|reason| (reason.code, reason.metadata.clone()));
        if of(&drift) != of(&self.record.drift) {
            self.record.drift = drift.map(|reason| reason.since(now));
            self.effects.push(Effect::Inventory);
        }
    }

    /// Whether the running JVM is known to have other classes in force than the recorded stack says.
    pub(super) fn old_classes(&self) -> bool {
        let old = |reason: &Reason| reason.code == ReasonCode::ClassOld;
        self.record.current.stack().is_some() && self.record.drift.as_ref().is_some_and(old)
    }

    /// Takes in what the JVM says, whoever asked.
    pub(super) fn saw_proof(&mut self, proof: Option<Proof>, now: Time) {
        let of = |proof: &Option<Proof>| {
            proof.as_ref().map(|proof| (proof.pid, proof.mechanism, proof.classes.clone()))
        };
        let alarms = proof.as_ref().map(|proof| proof.alarms.clone()).unwrap_or_default();
        if of(&self.seen.proof) != of(&proof) || self.seen.alarms != alarms {
            self.effects.push(Effect::Inventory);
        }
        (self.seen.proof, self.seen.alarms) = (proof, alarms);
        self.seen.asked = Some((now, self.seen.process.pid()));
    }

    /// An answer while no upgrade is under way.
    pub(super) fn idle_answer(&mut self, kind: &StepKind, answer: Result<Answer, Failure>, now: Time) {
        match (kind, answer) {
            (StepKind::Prove { .. }, Ok(Answer::Proved(proof))) => {
                // A class that loads old later leaves the finished upgrade as recorded, and is shown.
                if proof.is_none() && self.seen.process.pid().is_some() {
                    let reason = Reason::new(ReasonCode::ProofMissing);
                    self.unproved(reason.with("problem", "the component's process is no JVM"));
                }
                match proof.as_ref().and_then(Proof::old) {
                    Some(old) => self.drifted(Some(old), now),
                    None if self.old_classes() => self.drifted(None, now),
                    None => {}
                }
            }
            (StepKind::Prove { .. }, Err(failure)) => {
                self.seen.asked = Some((now, self.seen.process.pid()));
                self.unproved(failure.reason);
            }
            (_, Ok(Answer::Inspected(found))) => self.looked(&found, now),
            _ => {}
        }
    }

    /// The JVM could not be asked: what it said last may not hold any more.
    fn unproved(&mut self, reason: Reason) {
        let alarms = vec![reason];
        if self.seen.alarms != alarms {
            self.seen.alarms = alarms;
            self.effects.push(Effect::Inventory);
        }
    }

    fn looked(&mut self, found: &Found, now: Time) {
        self.notice(found, now);
        let process = !self.policy.supervised || found.process.digest().is_some();
        let healthy = match &found.health {
            Some(health) => health.is_ok() && process,
            None => process && found.installed.is_some(),
        };
        if healthy != self.seen.healthy {
            self.seen.healthy = healthy;
            self.effects.push(Effect::Inventory);
        }
        self.start_recorded(found);
        self.dismiss_stray();
        if found.watched && healthy && self.outstanding.is_none() {
            // A guard that watches an upgrade which nobody knows of any more would act on its own some time.
            self.prune();
        }
        if self.outstanding.is_none() {
            self.ask_again(now);
        }
    }

    /// Asks the JVM which classes are in force: when another process runs, and every now and then.
    fn ask_again(&mut self, now: Time) {
        let pid = self.seen.process.pid();
        let runs = pid.is_some() || !self.policy.supervised;
        if !self.policy.patchable || !runs || self.record.current.stack().is_none() {
            return;
        }
        let due =
            self.seen.asked.is_none_or(|(at, of)| of != pid || at.after(self.policy.prove_every) <= now);
        if due {
            let layers = self.record.current.layers.clone();
            self.perform(StepKind::Prove { layers, gone: Vec::new() });
        }
    }
}
