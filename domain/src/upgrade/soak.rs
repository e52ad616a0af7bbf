//! Watching a process: consecutive passes, consecutive failures, the time to become healthy, the soak time.

use std::time::Duration;

use super::{
    Evidence,
    policy::{Policy, ProbePolicy},
    step::{Probed, Process},
};
use crate::{
    reason::{Reason, ReasonCode},
    release::Kind,
    time::Time,
};

/// How much of a process's last line is in the reason, in characters.
const LAST_WORDS: usize = 200;
/// How many answers of probes are kept as evidence.
const MAX_RESULTS: usize = 20;

/// What is known of a process under watch. Lost with the agent: the next one watches from the beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    begun: Time,
    limit: Duration,
    soak: Duration,
    strict: bool,
    any: bool,
    pid: Option<u32>,
    counts: Vec<Count>,
    healthy: Option<Time>,
    draining: bool,
    failed: Option<Reason>,
    problem: String,
    results: Vec<String>,
    evidence: Evidence,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Count {
    due: Time,
    passes: u32,
    failures: u32,
    /// From when on it passes, where it does.
    since: Option<Time>,
}

/// What the watch has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on watching.
    Watching,
    /// Healthy for the soak time.
    Healthy,
    /// It is not going to be.
    Failed(Reason),
}

impl Watch {
    /// Begins to watch the process `pid`. A strict watch takes an end of the process for a failure, since a
    /// new version that falls over once is not healthy; the other is for what is put back.
    #[must_use]
    pub fn new(policy: &Policy, soak: Duration, strict: bool, pid: Option<u32>, now: Time) -> Self {
        let count = |_: &ProbePolicy| Count { due: now, passes: 0, failures: 0, since: None };
        Self {
            begun: now,
            limit: policy.start_deadline,
            soak,
            strict,
            any: policy.any_probe,
            pid,
            counts: policy.probes.iter().map(count).collect(),
            healthy: None,
            draining: false,
            failed: None,
            problem: "no probe has answered yet".to_owned(),
            results: Vec::new(),
            evidence: Evidence::default(),
        }
    }

    /// The probe to run now, if one is due.
    #[must_use]
    pub fn due(&self, now: Time) -> Option<usize> {
        self.counts.iter().position(|count| count.due <= now)
    }

    /// When to look again if no probe answers before.
    #[must_use]
    pub fn wake_at(&self) -> Time {
        let probe = self.counts.iter().map(|count| count.due).min();
        let end = match self.healthy {
            // While a probe fails or another process finishes, only the next answers can change anything.
            Some(_) if self.failing() || self.draining => None,
            Some(healthy) => Some(healthy.after(self.soak)),
            None => Some(self.begun.after(self.limit)),
        };
        probe.into_iter().chain(end).min().unwrap_or(self.begun)
    }

    /// Takes in one run of a probe.
    pub fn note(&mut self, policy: &Policy, index: usize, probed: &Probed, now: Time) {
        let (Some(count), Some(probe)) = (self.counts.get_mut(index), policy.probes.get(index)) else {
            return;
        };
        count.due = now.after(probe.interval);
        match &probed.result {
            Ok(()) => {
                (count.passes, count.failures) = (count.passes.saturating_add(1), 0);
                count.since.get_or_insert(now);
            }
            Err(problem) => {
                (count.passes, count.failures) = (0, count.failures.saturating_add(1));
                count.since = None;
                self.problem.clone_from(problem);
            }
        }
        let failures = count.failures;
        let given_up = |(count, probe): (&Count, &ProbePolicy)| count.failures >= probe.failures.max(1);
        let mut all = self.counts.iter().zip(&policy.probes);
        let unhealthy = if policy.any_probe { all.all(given_up) } else { all.any(given_up) };
        let text = probed.result.as_ref().map_or_else(Clone::clone, |()| "passed".to_owned());
        self.results.push(format!("probe {index}: {text}"));
        let surplus = self.results.len().saturating_sub(MAX_RESULTS);
        self.results.drain(..surplus);
        if self.healthy.is_some() && unhealthy {
            let reason = Reason::new(ReasonCode::ProbeFailed).with("failed", failures);
            self.failed = Some(reason.with("problem", &self.problem));
        }
        if let Some(evidence) = &probed.evidence {
            self.evidence = evidence.clone();
        }
        self.note_process(policy, &probed.process, now);
        let healthy = |(count, probe): (&Count, &ProbePolicy)| count.passes >= probe.successes.max(1);
        let mut all = self.counts.iter().zip(&policy.probes);
        let enough = if policy.any_probe { all.any(healthy) } else { all.all(healthy) };
        if self.healthy.is_none() && enough {
            self.healthy = Some(now);
        }
        if self.draining && !probed.draining {
            self.alone(now);
        }
        self.draining = probed.draining;
    }

    fn note_process(&mut self, policy: &Policy, process: &Process, now: Time) {
        if !policy.supervised {
            return;
        }
        let exit = match process {
            Process::Running { pid, .. } if self.pid.is_none() || self.pid == Some(*pid) => None,
            Process::Running { .. } => Some("a restart".to_owned()),
            Process::Down { exit } => Some(exit.clone()),
            Process::NotRun => Some("an unknown exit".to_owned()),
        };
        self.pid = process.pid().or(self.pid);
        let Some(exit) = exit else { return };
        let exit = self.with_last_words(exit);
        if self.strict {
            let after = format!("{} ms", now.since(self.begun).as_millis());
            self.failed =
                Some(Reason::new(ReasonCode::ProcessExited).with("exit", exit).with("after", after));
        } else {
            self.problem = format!("the process ended with {exit}");
            self.counts.iter_mut().for_each(|count| (count.passes, count.since) = (0, None));
        }
    }

    /// What the process said last is most often why it ended.
    fn with_last_words(&self, exit: String) -> String {
        match self.evidence.lines.iter().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => {
                format!("{exit}, saying `{}`,", line.trim().chars().take(LAST_WORDS).collect::<String>())
            }
            None => exit,
        }
    }

    fn failing(&self) -> bool {
        let mut failures = self.counts.iter().map(|count| count.failures > 0);
        if self.any { failures.all(|fails| fails) } else { failures.any(|fails| fails) }
    }

    /// What it has come to by `now`.
    #[must_use]
    pub fn verdict(&self, now: Time) -> Verdict {
        if let Some(reason) = &self.failed {
            return Verdict::Failed(reason.clone());
        }
        match self.healthy {
            // A probe that fails right at the end is waited for: it recovers or reaches its threshold.
            Some(healthy) if now >= healthy.after(self.soak) && !self.draining => {
                if self.failing() {
                    Verdict::Watching
                } else {
                    Verdict::Healthy
                }
            }
            None if now >= self.begun.after(self.limit) => {
                let limit = format!("{} ms", self.limit.as_millis());
                let reason = Reason::new(ReasonCode::ProbeTimedOut).with("limit", limit);
                Verdict::Failed(reason.with("problem", &self.problem))
            }
            _ => Verdict::Watching,
        }
    }

    /// What it waits for.
    #[must_use]
    pub fn reason(&self, policy: &Policy) -> Reason {
        if self.draining {
            let limit = format!("{} ms", policy.drain_timeout.as_millis());
            return Reason::new(ReasonCode::Draining).with("limit", limit);
        }
        if self.healthy.is_some() {
            return Reason::new(ReasonCode::Soaking).with("soak", format!("{} ms", self.soak.as_millis()));
        }
        Self::passed(self.counts.iter().map(|count| count.passes).min().unwrap_or(0), policy)
    }

    /// The reason of a probe that has to pass more often than it did.
    #[must_use]
    pub fn passed(passed: u32, policy: &Policy) -> Reason {
        if policy.kind == Kind::Agent {
            return Reason::new(ReasonCode::AgentReporting);
        }
        let needed = policy.probes.iter().map(|probe| probe.successes.max(1)).max().unwrap_or(1);
        Reason::new(ReasonCode::Probing).with("passed", passed).with("needed", needed)
    }

    /// Whether every probe has passed often enough, so that the soak time runs.
    #[must_use]
    pub fn soaking(&self) -> bool {
        self.healthy.is_some()
    }

    /// The process takes another one's place, which is asked to finish. The soak time begins when that has ended.
    pub fn takes_over(&mut self, now: Time) {
        self.alone(now);
        self.draining = true;
    }

    /// Whether another process still finishes.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.draining
    }

    /// What it was healthy for beside another one does not count: the watch begins anew.
    fn alone(&mut self, now: Time) {
        (self.begun, self.healthy) = (now, None);
        self.counts.fill(Count { due: now, passes: 0, failures: 0, since: None });
    }

    /// From when on all that is asked of a healthy process was passed; `None` while it is not healthy.
    #[must_use]
    pub fn answers_since(&self) -> Option<Time> {
        let mut since = self.counts.iter().map(|count| count.since);
        self.healthy?;
        // With none of several asked for, the first that passes is enough; else it is the slowest that counts.
        if self.any {
            since.flatten().min()
        } else {
            since.try_fold(self.begun, |last, at| Some(last.max(at?)))
        }
    }

    /// When it has been healthy for the soak time; `None` while it is not healthy.
    #[must_use]
    pub fn soaked_at(&self) -> Option<Time> {
        self.healthy.filter(|_| !self.draining).map(|since| since.after(self.soak))
    }

    /// The last problem a probe reported.
    #[must_use]
    pub fn problem(&self) -> &str {
        &self.problem
    }

    /// What the process left behind, with the last answers of the probes, oldest first.
    #[must_use]
    pub fn evidence(&self) -> Evidence {
        Evidence { probe_results: self.results.clone(), ..self.evidence.clone() }
    }
}
