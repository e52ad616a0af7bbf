//! The upgrade's transitions as data, for the diagram, for the documentation and for the tests that hold the
//! machine to it. It decides nothing.

use std::fmt::Write as _;

use super::{Outcome, Phase, UpgradeState};

/// One possible transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// From where.
    pub from: Phase,
    /// To where.
    pub to: UpgradeState,
    /// When it is taken.
    pub when: &'static str,
}

const fn go(from: Phase, to: Phase, when: &'static str) -> Row {
    Row { from, to: UpgradeState::Active(to), when }
}

const fn end(from: Phase, to: Outcome, when: &'static str) -> Row {
    Row { from, to: UpgradeState::Ended(to), when }
}

/// Every transition that an agent's upgrade can take. An order refused at once goes straight to `REFUSED`.
pub const TRANSITIONS: &[Row] = &[
    go(Phase::Pending, Phase::Preflight, "its turn"),
    go(Phase::Preflight, Phase::Fetching, "checks passed"),
    go(Phase::Preflight, Phase::Verifying, "restores a kept state"),
    go(Phase::Preflight, Phase::Staged, "nothing to fetch"),
    go(Phase::Fetching, Phase::Verifying, "all bytes are there"),
    go(Phase::Verifying, Phase::Staged, "digest and platform are right"),
    go(Phase::Verifying, Phase::Fetching, "bytes lost while no agent ran"),
    go(Phase::Staged, Phase::Fetching, "bytes lost while no agent ran"),
    go(Phase::Staged, Phase::Activating, "not held"),
    go(Phase::Activating, Phase::Probing, "switched and restarted"),
    go(Phase::Probing, Phase::Committing, "healthy for the soak time"),
    go(Phase::Committing, Phase::Probing, "process lost while no agent ran"),
    go(Phase::Activating, Phase::RollingBack, "a step failed or cancelled"),
    go(Phase::Probing, Phase::RollingBack, "unhealthy or cancelled"),
    go(Phase::Committing, Phase::RollingBack, "something else runs, or cancelled"),
    end(Phase::Pending, Outcome::Expired, "deadline passed"),
    end(Phase::Pending, Outcome::Cancelled, "cancelled"),
    end(Phase::Pending, Outcome::Superseded, "newer order"),
    end(Phase::Pending, Outcome::FailedUnchanged, "changed by somebody else"),
    end(Phase::Preflight, Outcome::AlreadyCurrent, "same digest installed and running"),
    end(Phase::Preflight, Outcome::FailedUnchanged, "a check failed"),
    end(Phase::Preflight, Outcome::Cancelled, "cancelled"),
    end(Phase::Preflight, Outcome::Superseded, "newer order"),
    end(Phase::Fetching, Outcome::FailedUnchanged, "can't be fetched"),
    end(Phase::Fetching, Outcome::Refused, "source not allowed"),
    end(Phase::Fetching, Outcome::Cancelled, "cancelled"),
    end(Phase::Fetching, Outcome::Superseded, "newer order"),
    end(Phase::Verifying, Outcome::FailedUnchanged, "digest or platform is wrong"),
    end(Phase::Verifying, Outcome::Cancelled, "cancelled"),
    end(Phase::Verifying, Outcome::Superseded, "newer order"),
    end(Phase::Staged, Outcome::FailedUnchanged, "no further order came"),
    end(Phase::Staged, Outcome::Cancelled, "cancelled"),
    end(Phase::Staged, Outcome::Superseded, "newer order"),
    end(Phase::Activating, Outcome::FailedUnchanged, "no backup could be made"),
    end(Phase::Committing, Outcome::Succeeded, "digest of what runs is right"),
    end(Phase::RollingBack, Outcome::RolledBack, "old state is healthy again"),
    end(Phase::RollingBack, Outcome::RollbackFailed, "needs a person"),
];

/// Whether the machine may go from `from` to `to`.
#[must_use]
pub fn permits(from: Phase, to: UpgradeState) -> bool {
    TRANSITIONS.iter().any(|row| row.from == from && row.to == to)
}

/// The transitions as a Mermaid state diagram.
#[must_use]
pub fn diagram() -> String {
    let mut text =
        String::from("stateDiagram-v2\n    [*] --> PENDING: accepted\n    [*] --> REFUSED: refused\n");
    let mut pairs: Vec<(Phase, UpgradeState)> = Vec::new();
    for row in TRANSITIONS {
        if !pairs.contains(&(row.from, row.to)) {
            pairs.push((row.from, row.to));
            let _ = writeln!(text, "    {} --> {}: {}", row.from, row.to, row.when);
        }
    }
    for outcome in Outcome::ALL.iter().filter(|outcome| **outcome != Outcome::Skipped) {
        let _ = writeln!(text, "    {outcome} --> [*]");
    }
    text
}

/// The page `docs/reference/upgrade-states.md`.
#[must_use]
pub fn page() -> String {
    let mut text = String::from(
        "# States of an upgrade\n\n<!-- Generated from domain/src/upgrade/table.rs by `UPFLEET_BLESS=1 cargo \
         test -p upfleet-domain table`. Do not edit. -->\n\nOne node's passage from a state of a component to \
         another. Each state that is not an end has a deadline and a printable reason.\n\n```mermaid\n",
    );
    text.push_str(&diagram());
    text.push_str("```\n\n| from | to | when |\n|---|---|---|\n");
    for row in TRANSITIONS {
        let _ = writeln!(text, "| `{}` | `{}` | {} |", row.from, row.to, row.when);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_shows_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/upgrade-states.md");
        #[expect(clippy::disallowed_methods, reason = "a test that compares a document, not a decision")]
        if std::env::var("UPFLEET_BLESS").is_ok() {
            std::fs::write(path, page()).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(found, page(), "run it with UPFLEET_BLESS=1 and commit the change");
    }

    #[test]
    fn every_phase_leads_on_and_every_outcome_is_reached() {
        for phase in Phase::ALL {
            assert!(TRANSITIONS.iter().any(|row| row.from == *phase), "{phase} is a dead end");
        }
        for outcome in Outcome::ALL.iter().filter(|outcome| **outcome != Outcome::Skipped) {
            let reached = TRANSITIONS.iter().any(|row| row.to == UpgradeState::Ended(*outcome));
            assert!(reached, "{outcome} is never reached");
        }
    }
}
