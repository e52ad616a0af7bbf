//! The rollout's transitions as data: what the machine may do, what the documentation draws.

use std::fmt::Write as _;

use super::State;

/// One permitted transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// From this state
    pub from: State,
    /// to this one,
    pub to: State,
    /// when this happens.
    pub when: &'static str,
}

const fn of(from: State, to: State, when: &'static str) -> Transition {
    Transition { from, to, when }
}

/// All of them. The machine makes no other; a property test sees to it.
pub const TRANSITIONS: &[Transition] = &[
    of(State::Planned, State::AwaitingApproval, "start, where approval is asked for"),
    of(State::Planned, State::Running, "start"),
    of(State::Planned, State::Cancelled, "cancel"),
    of(State::AwaitingApproval, State::Running, "approve"),
    of(State::AwaitingApproval, State::Cancelled, "cancel"),
    of(State::Running, State::Paused, "pause, or the store was restored"),
    of(State::Running, State::Halted, "a budget was exceeded"),
    of(State::Running, State::Reverting, "a budget was exceeded, or roll back"),
    of(State::Running, State::Cancelling, "cancel"),
    of(State::Running, State::Succeeded, "every node is done"),
    of(State::Running, State::SucceededWithFailures, "every node has ended, within policy"),
    of(State::Paused, State::Running, "resume"),
    of(State::Paused, State::Reverting, "roll back, or resume with revert"),
    of(State::Paused, State::Cancelling, "cancel"),
    of(State::Halted, State::Running, "resume with retry or skip, or retry"),
    of(State::Halted, State::Reverting, "roll back, or resume with revert"),
    of(State::Halted, State::Cancelling, "cancel"),
    of(State::Cancelling, State::Cancelled, "every node under way has ended"),
    of(State::Cancelling, State::Halted, "the store was restored"),
    of(State::Reverting, State::Reverted, "the nodes are back"),
    of(State::Reverting, State::RevertFailed, "some nodes are not back"),
    of(State::Reverting, State::Halted, "the store was restored before nodes were put back"),
    of(State::SucceededWithFailures, State::Running, "retry"),
];

/// Whether the table has a transition between two states.
#[must_use]
pub fn permits(from: State, to: State) -> bool {
    TRANSITIONS.iter().any(|transition| transition.from == from && transition.to == to)
}

/// The transitions as a Mermaid diagram.
#[must_use]
pub fn diagram() -> String {
    let mut text = String::from("stateDiagram-v2\n    [*] --> PLANNED: create\n");
    for Transition { from, to, when } in TRANSITIONS {
        let _ = writeln!(text, "    {from} --> {to}: {when}");
    }
    for state in State::ALL.iter().filter(|state| state.is_terminal()) {
        let _ = writeln!(text, "    {state} --> [*]");
    }
    text
}

/// The page of the documentation that shows the machine.
#[must_use]
pub fn page() -> String {
    let mut text = String::from(
        "# States of a rollout\n\n<!-- Generated from domain/src/rollout/table.rs; UPFLEET_BLESS=1 cargo test -p upfleet-domain rewrites it. -->\n\n",
    );
    let _ = write!(text, "```mermaid\n{}```\n\n| from | to | when |\n|---|---|---|\n", diagram());
    for Transition { from, to, when } in TRANSITIONS {
        let _ = writeln!(text, "| `{from}` | `{to}` | {when} |");
    }
    text.push_str(
        "\nA wave goes `PENDING → AWAITING_APPROVAL? → RUNNING → BAKING? → SUCCEEDED`; it is `FAILED` while the rollout is halted\nover failures in it, and `RUNNING` again once that is resolved or its nodes are retried.\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn each_state_is_reached_and_leads_to_a_terminal_one() {
        let mut leads: Vec<State> = State::ALL.iter().copied().filter(|s| s.is_terminal()).collect();
        let mut reached = vec![State::Planned];
        for _ in State::ALL {
            for Transition { from, to, .. } in TRANSITIONS {
                if leads.contains(to) && !leads.contains(from) {
                    leads.push(*from);
                }
                if reached.contains(from) && !reached.contains(to) {
                    reached.push(*to);
                }
            }
        }
        assert_eq!((leads.len(), reached.len()), (State::ALL.len(), State::ALL.len()));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "compares a generated page with the one in the repository")]
    fn the_documentation_shows_this_table() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/rollout-states.md");
        if std::env::var("UPFLEET_BLESS").is_ok() {
            std::fs::write(&path, page()).unwrap();
        }
        let found = std::fs::read(&path).unwrap();
        assert!(found == page().as_bytes(), "{} is out of date: UPFLEET_BLESS=1", path.display());
    }
}
