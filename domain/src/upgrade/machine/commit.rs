//! The commit: the last word has what really lies there and really runs, and for a JVM which classes are in force.

use super::{MAX_FAILED, Machine, activate::gone};
use crate::{
    digest::Digest,
    jvm::{Proof, Standing},
    reason::{Reason, ReasonCode},
    state::{ComponentState, stack_digest},
    time::Time,
    upgrade::{Outcome, admit, recover::Found, step::StepKind},
};

/// How many classes of a proof go into the journal and the terminal report. Those that run old code come first, and
/// the reason counts all of them.
const MAX_CLASSES: usize = 64;

/// A proof of bounded size.
pub(super) fn brief(mut proof: Proof) -> Proof {
    if proof.classes.len() > MAX_CLASSES {
        proof.classes.sort_by_key(|class| std::cmp::Reverse(class.standing));
        proof.classes.truncate(MAX_CLASSES);
    }
    proof
}

impl Machine {
    /// What was found on the disk and among the processes is what was to be.
    pub(super) fn prove(&mut self, found: &Found, now: Time) {
        let Some(passage) = &self.record.passage else { return };
        let goal = passage.order.goal.state().clone();
        let stack = found.damage.is_none() && stack_digest(&found.layers) == goal.stack();
        let installed = found.installed == goal.artifact();
        if !installed || !stack || !self.policy.runs(&found.process, &goal) {
            let running = found.process.digest();
            let actual = if installed { running.filter(|_| self.policy.supervised) } else { found.installed };
            let name = |digest: Option<Digest>, stack: Option<Digest>| {
                let digest = digest.map_or_else(|| "nothing".to_owned(), |digest| digest.to_string());
                stack.map_or(digest.clone(), |stack| format!("{digest} with stack {stack}"))
            };
            let of_process = found.process.stack().filter(|_| self.policy.supervised && stack);
            let actual = name(actual, of_process.or_else(|| stack_digest(&found.layers)));
            let reason = Reason::new(ReasonCode::ProofMismatch).with("actual", actual);
            let expected = name(goal.artifact(), goal.stack());
            self.roll_back(reason.with("expected", expected), false, now);
            return;
        }
        let patched = goal.stack().is_some() || passage.from.stack().is_some();
        if self.policy.patchable && patched && goal.artifact().is_some() {
            let gone = gone(&passage.from, &goal);
            self.perform(StepKind::Prove { layers: goal.layers, gone });
        } else {
            self.succeed(None, now);
        }
    }

    /// What the running JVM says of the stack.
    pub(super) fn proved(&mut self, proof: Option<Proof>, now: Time) {
        match self.judge_proof(proof) {
            Ok(proof) => self.succeed(proof, now),
            Err(reason) => self.roll_back(reason, false, now),
        }
    }

    /// A live patch was answered; the same is asked once more before the commit.
    pub(super) fn patched_live(&mut self, proof: Option<Proof>, now: Time) {
        match self.judge_proof(proof) {
            Ok(_) => self.started_new(now),
            Err(reason) => self.roll_back(reason, false, now),
        }
    }

    /// Silence is no proof, unless nothing was to be proved.
    fn judge_proof(&mut self, proof: Option<Proof>) -> Result<Option<Proof>, Reason> {
        let Some(passage) = &mut self.record.passage else { return Ok(None) };
        passage.proof = proof.clone().map(brief);
        match proof {
            Some(proof) => proof.old().map_or(Ok(Some(proof)), Err),
            None if passage.order.goal.state().stack().is_none() => Ok(None),
            None => {
                let problem = "no JVM of the component runs";
                Err(Reason::new(ReasonCode::ProofMissing).with("problem", problem))
            }
        }
    }

    fn succeed(&mut self, proof: Option<Proof>, now: Time) {
        let Some(passage) = &self.record.passage else { return };
        let goal = passage.order.goal.state().clone();
        let digest = goal.artifact().map_or_else(|| "nothing".to_owned(), |digest| digest.to_string());
        let reason = match (&proof, &passage.reload) {
            (Some(proof), _) if goal.stack().is_some() => Reason::new(ReasonCode::PatchProved)
                .with("proved", proof.count(Standing::Proved))
                .with("armed", proof.count(Standing::Armed))
                .with("mechanism", proof.mechanism),
            (_, Some(answer)) => {
                Reason::new(ReasonCode::Reloaded).with("digest", digest).with("answer", answer)
            }
            _ => Reason::new(ReasonCode::Healthy).with("digest", digest),
        };
        let content: Vec<Digest> = admit::content(&goal).collect();
        self.become_current(goal, now);
        if let Some(proof) = proof {
            self.saw_proof(Some(proof), now);
        }
        self.record.failed.retain(|failed| !content.contains(failed));
        self.end(Outcome::Succeeded, reason, now);
    }

    /// Remembers as failed here what is new in a state that rolled back: its base, its patches. What was in force
    /// before as well is not to blame.
    pub(super) fn blame(&mut self, state: &ComponentState, from: &ComponentState) {
        let before: Vec<Digest> = admit::content(from).collect();
        for digest in admit::content(state).filter(|digest| !before.contains(digest)) {
            self.record.failed.retain(|failed| *failed != digest);
            self.record.failed.push(digest);
        }
        let surplus = self.record.failed.len().saturating_sub(MAX_FAILED);
        self.record.failed.drain(..surplus);
    }
}
