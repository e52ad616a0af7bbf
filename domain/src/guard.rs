//! The guard of an agent's upgrade: when is a new agent taken out of its place again. Pure.
//!
//! It trusts nothing that the new agent says of itself, only what can be seen from outside: how often it had to be
//! started, how much memory it takes, and whether the controller has acknowledged it in time. Whether the controller can
//! be reached at all is shown by a session of the guard's own.

use std::time::Duration;

use crate::reason::{Reason, ReasonCode};

/// How far a deadline moves while nobody gets through to the controller, at most.
const EXTENSION: Duration = Duration::from_secs(60);

/// What a new agent is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How long it may take until the controller has acknowledged it and it has been healthy for its soak time.
    pub deadline: Duration,
    /// How often it may be started.
    pub starts: u32,
    /// How much memory it may take, in bytes; 0 for no limit.
    pub memory_max: u64,
}

/// What is seen of it from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// How often it was started.
    pub starts: u32,
    /// How long it has been watched, over all restarts of the node and of the guard.
    pub watched: Duration,
    /// How much memory it takes, in bytes, where it runs.
    pub memory: Option<u64>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on watching.
    Watch,
    /// Its time is over: try whether the controller can be reached, then ask [`overdue`].
    Try,
    /// Put the old agent back.
    PutBack(Reason),
}

/// What is to be done about a new agent that has not been acknowledged yet.
///
/// `last_words`: what it wrote last before it ended; empty where nobody knows.
#[must_use]
pub fn judge(rules: &Rules, seen: &Seen, last_words: &str) -> Verdict {
    if seen.starts > rules.starts {
        let limit = rules.starts;
        let problem = format!("it was started {limit} times and ended each time before it had reported");
        return put_back(match last_words {
            "" => problem,
            words => format!("{problem}, saying `{words}` last"),
        });
    }
    if let Some(memory) = seen.memory.filter(|memory| rules.memory_max > 0 && *memory > rules.memory_max) {
        let most = rules.memory_max >> 20;
        return put_back(format!(
            "it takes {} MiB of memory, more than the {most} it may have",
            memory >> 20
        ));
    }
    if seen.watched < rules.deadline { Verdict::Watch } else { Verdict::Try }
}

/// What is to be done about one whose time is over, by whether a session of the guard's own got through. Where it did not,
/// that says nothing of the new agent: the answer is how long was watched, so that the deadline has moved.
///
/// # Errors
/// Why the old agent is to be put back.
pub fn overdue(rules: &Rules, tried: Result<(), String>) -> Result<Duration, Reason> {
    match tried {
        Ok(()) => {
            let limit = rules.deadline.as_secs();
            let problem = format!(
                "it did not report to the controller within {limit} s, though the agent before it gets through"
            );
            Err(reason(problem))
        }
        Err(_) => Ok(before_the_deadline(rules)),
    }
}

/// When it is tried for the first time whether the controller can be reached, in time of watching. One that only comes
/// back when the time is over already must not be held against the new agent.
#[must_use]
pub fn before_the_deadline(rules: &Rules) -> Duration {
    rules.deadline.saturating_sub(EXTENSION.min(rules.deadline / 4))
}

fn put_back(problem: String) -> Verdict {
    Verdict::PutBack(reason(problem))
}

fn reason(problem: String) -> Reason {
    Reason::new(ReasonCode::AgentPutBack).with("problem", problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { deadline: Duration::from_secs(600), starts: 3, memory_max: 1 << 30 };

    fn seen(starts: u32, watched: u64, memory: Option<u64>) -> Seen {
        Seen { starts, watched: Duration::from_secs(watched), memory }
    }

    #[test]
    fn a_new_agent_is_given_its_starts_its_time_and_its_memory() {
        for (seen, stays) in [
            (seen(0, 0, None), true),
            (seen(3, 599, Some(1 << 30)), true),
            (seen(4, 1, None), false),
            (seen(1, 1, Some((1 << 30) + 1)), false),
        ] {
            assert_eq!(judge(&RULES, &seen, "") == Verdict::Watch, stays, "{seen:?}");
        }
        assert_eq!(judge(&RULES, &seen(1, 600, None), ""), Verdict::Try);
        let unbound = Rules { memory_max: 0, ..RULES };
        assert_eq!(judge(&unbound, &seen(1, 1, Some(u64::MAX)), ""), Verdict::Watch);
    }

    #[test]
    fn a_controller_that_nobody_reaches_moves_the_deadline() {
        let reason = overdue(&RULES, Ok(())).unwrap_err();
        assert_eq!(reason.code, ReasonCode::AgentPutBack);
        let watched = overdue(&RULES, Err("429".to_owned())).unwrap();
        assert_eq!(watched, Duration::from_secs(540));
        assert_eq!(judge(&RULES, &Seen { watched, ..seen(1, 0, None) }, ""), Verdict::Watch);
        let short = Rules { deadline: Duration::from_secs(8), ..RULES };
        assert_eq!(overdue(&short, Err(String::new())).unwrap(), Duration::from_secs(6));
    }
}
