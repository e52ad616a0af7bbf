//! Tells systemd how the controller does: ready, stopping, alive, and one line for `systemctl status`.
//!
//! It asks the store's writer and the engine whether they live. It decides nothing, and where no service manager
//! listens it does nothing at all.

use std::{collections::BTreeMap, time::Duration};

use sd_notify::NotifyState;
use tokio::{task::JoinHandle, time::timeout};
use upfleet_domain::rollout::State;

use crate::{engine::Engine, ops::Operations, store::StoreError};

/// How often the parts are asked, at most: the line for people is as old as this.
const EVERY: Duration = Duration::from_secs(5);
/// How long a part may take to answer where no watchdog says it.
const ANSWER: Duration = Duration::from_secs(10);
/// The longest line for people, in characters.
const LONGEST: usize = 1000;

/// The controller has begun to listen: says so, and from then on that it lives, until the task is aborted.
pub(super) fn tell(operations: Operations, engine: Engine) -> JoinHandle<()> {
    tokio::spawn(async move {
        // The manager's variables are the only way to it.
        if std::env::var_os("NOTIFY_SOCKET").is_some() {
            tell_for_ever(&operations, &engine, sd_notify::watchdog_enabled()).await;
        }
    })
}

/// The controller ends.
pub(super) fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("Stopping; the agents go on by themselves")]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager does not listen");
    }
}

async fn tell_for_ever(operations: &Operations, engine: &Engine, watchdog: Option<Duration>) {
    let every = watchdog.map_or(EVERY, |limit| (limit / 3).min(EVERY));
    let limit = watchdog.map_or(ANSWER, |limit| limit / 3);
    let mut said = String::new();
    send(&[NotifyState::Ready]);
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (writer, engine) = tokio::join!(writes(operations, limit), timeout(limit, engine.answers()));
        let mut states = Vec::new();
        let line = match (&writer, &engine) {
            (Err(Silent), _) => "No answer from the store's writer".to_owned(),
            (_, Err(_)) => "No answer from the engine".to_owned(),
            (Ok(wrote), Ok(())) => {
                states.push(NotifyState::Watchdog);
                match wrote {
                    Ok(()) => line(operations).await,
                    Err(error) => Err(error.to_string()),
                }
                .unwrap_or_else(|problem| one_line(&format!("Can't use the store: {problem}")))
            }
        };
        if states.is_empty() {
            tracing::error!(problem = line, "a part of the controller does not answer");
        }
        if line != said {
            states.push(NotifyState::Status(&line));
        }
        if !states.is_empty() {
            send(&states);
        }
        said = line;
    }
}

/// The writer has said nothing in time.
struct Silent;

/// Whether the writer answers, and what. A full disk or a locked database is an answer: to end the controller for it
/// would help nobody.
async fn writes(operations: &Operations, limit: Duration) -> Result<Result<(), StoreError>, Silent> {
    // An empty batch goes the writer's whole way and changes nothing.
    let wrote = timeout(limit, operations.store.commit(Vec::new())).await;
    wrote.map(|wrote| wrote.map(drop)).map_err(|_| Silent)
}

/// `12 nodes connected, 1 rollout RUNNING`.
async fn line(operations: &Operations) -> Result<String, String> {
    let open = operations.store.open_rollouts().await.map_err(|error| error.to_string())?;
    let mut states = BTreeMap::new();
    for record in open {
        *states.entry(record.rollout.state).or_insert(0) += 1;
    }
    Ok(status(operations.sessions.count(), &states))
}

/// What can be told in one line: a line break would begin another assignment of the manager's protocol.
fn one_line(text: &str) -> String {
    text.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn status(nodes: usize, rollouts: &BTreeMap<State, u32>) -> String {
    let some = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let mut line = format!("{} connected", some(nodes, "node"));
    if rollouts.is_empty() {
        line.push_str(", no rollout under way");
    }
    for (state, count) in rollouts {
        line.push_str(&format!(", {} {state}", some(*count as usize, "rollout")));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_and_no_assignment() {
        assert_eq!(one_line("disk full\nMAINPID=1\r\u{85}\0"), "disk full MAINPID=1   ");
        assert_eq!(one_line(&"ä".repeat(5000)).chars().count(), LONGEST);
    }

    #[test]
    fn the_line_counts_nodes_and_rollouts() {
        assert_eq!(status(1, &BTreeMap::new()), "1 node connected, no rollout under way");
        let rollouts = [(State::Running, 1), (State::Halted, 2)].into();
        let line = status(12, &rollouts);
        assert!(line.starts_with("12 nodes connected, ") && line.contains("1 rollout RUNNING"), "{line}");
        assert!(line.contains("2 rollouts HALTED"), "{line}");
    }
}
