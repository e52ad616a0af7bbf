//! The guard of an agent's upgrade: when is a new agent taken out of its place again. Pure.
//!
//! It trusts nothing that the new agent says of itself, only what can be seen from outside: how often it had to be
//! started, how much memory it takes, and whether the controller has acknowledged it in time. Whether the controller can
//! be reached at all is shown by a session of the guard's own.

use std::time::Duration;

use crate::reason::{Reason, ReasonCode};

/// How long the controller has to be within reach before silence counts, at most; and how far a deadline moves while it is
/// not.
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
    /// How long it has been watched, over all restarts of the node and of the guard; anew from where it was acknowledged.
    pub watched: Duration,
    /// Whether the controller has acknowledged it, so that it is in its soak time.
    pub reported: bool,
    /// How much memory it takes, in bytes, where it runs.
    pub memory: Option<u64>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on watching.
    Watch,
    /// Its time runs out: try whether the controller can be reached, then ask [`overdue`].
    Try,
    /// Put the old agent back.
    PutBack(Reason),
}

/// What follows from a session of the guard's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// Nobody gets through: that says nothing of the new agent. So long counts as watched.
    Moved(Duration),
    /// The controller is within reach, since so long was watched. The new agent, which waits longer between two attempts,
    /// is given the time to find out.
    Reached(Duration),
    /// Put the old agent back.
    PutBack(Reason),
}

impl Rules {
    /// How long the controller has to be within reach before silence counts.
    fn grace(&self) -> Duration {
        EXTENSION.min(self.deadline / 4)
    }
}

/// What is to be done about a new agent whose upgrade is not committed yet.
///
/// `reached`: how long had been watched when the guard's own sessions began to get through; `None` while they don't.
/// `last_words`: what it wrote last before it ended; empty where nobody knows.
#[must_use]
pub fn judge(rules: &Rules, seen: &Seen, reached: Option<Duration>, last_words: &str) -> Verdict {
    if seen.starts > rules.starts {
        let limit = rules.starts;
        let problem = match seen.reported {
            false => format!("it was started {limit} times and ended each time before it had reported"),
            true => format!("it was started {limit} times and did not stay for its soak time"),
        };
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
    let due = match reached {
        None => rules.deadline.saturating_sub(rules.grace()),
        Some(since) => rules.deadline.max(since.saturating_add(rules.grace())),
    };
    if seen.watched < due { Verdict::Watch } else { Verdict::Try }
}

/// What is to be done about one whose time runs out, by whether a session of the guard's own got through just now.
#[must_use]
pub fn overdue(rules: &Rules, seen: &Seen, reached: Option<Duration>, tried: Result<(), String>) -> Overdue {
    if tried.is_err() {
        return Overdue::Moved(rules.deadline.saturating_sub(rules.grace().saturating_mul(2)));
    }
    match reached {
        Some(since) if seen.watched >= rules.deadline.max(since.saturating_add(rules.grace())) => {
            let limit = rules.deadline.as_secs();
            Overdue::PutBack(reason(match seen.reported {
                false => format!(
                    "it did not report to the controller within {limit} s, though the agent before it gets through"
                ),
                true => {
                    format!("it reported, and was not healthy for its soak time within {limit} s after that")
                }
            }))
        }
        Some(since) => Overdue::Reached(since),
        None => Overdue::Reached(seen.watched),
    }
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

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn seen(starts: u32, watched: u64, memory: Option<u64>) -> Seen {
        Seen { starts, watched: seconds(watched), reported: false, memory }
    }

    #[test]
    fn a_new_agent_is_given_its_starts_its_time_and_its_memory() {
        for (seen, stays) in [
            (seen(0, 0, None), true),
            (seen(3, 539, Some(1 << 30)), true),
            (seen(4, 1, None), false),
            (seen(1, 1, Some((1 << 30) + 1)), false),
        ] {
            assert_eq!(judge(&RULES, &seen, None, "") == Verdict::Watch, stays, "{seen:?}");
        }
        let unbound = Rules { memory_max: 0, ..RULES };
        assert_eq!(judge(&unbound, &seen(1, 1, Some(u64::MAX)), None, ""), Verdict::Watch);
        let Verdict::PutBack(reason) = judge(&RULES, &seen(4, 1, None), None, "no libfoo") else { panic!() };
        assert!(reason.to_string().contains("saying `no libfoo` last"), "{reason}");
    }

    /// Twice, and long enough apart for an agent that was waiting to have tried as well.
    #[test]
    fn silence_counts_once_the_controller_was_within_reach_for_a_while() {
        assert_eq!(judge(&RULES, &seen(1, 540, None), None, ""), Verdict::Try);
        let first = overdue(&RULES, &seen(1, 540, None), None, Ok(()));
        assert_eq!(first, Overdue::Reached(seconds(540)));
        assert_eq!(judge(&RULES, &seen(1, 599, None), Some(seconds(540)), ""), Verdict::Watch);
        assert_eq!(judge(&RULES, &seen(1, 600, None), Some(seconds(540)), ""), Verdict::Try);
        let second = overdue(&RULES, &seen(1, 600, None), Some(seconds(540)), Ok(()));
        assert!(matches!(second, Overdue::PutBack(_)), "{second:?}");
        // It came back after the deadline: the agent has as long as ever to find out.
        assert_eq!(judge(&RULES, &seen(1, 659, None), Some(seconds(600)), ""), Verdict::Watch);
        let late = overdue(&RULES, &seen(1, 660, None), Some(seconds(600)), Ok(()));
        assert!(matches!(late, Overdue::PutBack(_)), "{late:?}");
    }

    #[test]
    fn a_controller_that_nobody_reaches_moves_the_deadline() {
        for reached in [None, Some(seconds(540))] {
            let moved = overdue(&RULES, &seen(1, 600, None), reached, Err("429".to_owned()));
            assert_eq!(moved, Overdue::Moved(seconds(480)));
        }
        assert_eq!(judge(&RULES, &seen(1, 480, None), None, ""), Verdict::Watch);
    }
}
