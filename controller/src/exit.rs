//! Exit codes of `upfleet`: stable, documented, one per kind of ending.
//!
//! Scripts branch on these numbers, so a number never changes its meaning. Nothing here prints or exits.

use std::process::ExitCode;

use upfleet_domain::{
    reason::{Class, ReasonCode},
    rollout::State,
};

macro_rules! exits {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $meaning:literal, $note:literal;)+) => {
        /// How a command ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Exit { $(#[doc = $meaning] $(#[$doc])* $name,)+ }

        impl Exit {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The number that the process ends with.
            #[must_use]
            pub fn code(self) -> u8 {
                match self { $(Self::$name => $code,)+ }
            }

            /// What it means.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)+ }
            }

            /// When it happens.
            #[must_use]
            pub fn note(self) -> &'static str {
                match self { $(Self::$name => $note,)+ }
            }
        }
    };
}

exits! {
    Success = 0, "the goal was reached", "`rollout wait`: SUCCEEDED";
    Internal = 1, "something unexpected failed", "prints what to report; also INTERNAL and DATA_LOSS of the controller";
    Usage = 2, "the command line or a file given to it is not valid", "also a name that does not exist, and what this version can't do";
    RolledBack = 3, "the rollout failed and the fleet is safe on its old version", "`rollout wait`: REVERTED, or HALTED with every failed node back on or still on its old state";
    NeedsPerson = 4, "the rollout failed and some nodes could not be put back: a person is needed", "`rollout wait`: REVERT_FAILED, or any node in ROLLBACK_FAILED; the nodes are listed";
    TimedOut = 5, "the time-out passed and the rollout is still under way", "only with `--timeout`; the rollout goes on";
    Waiting = 6, "the rollout waits for a person", "`rollout wait`: PAUSED or AWAITING_APPROVAL";
    Cancelled = 7, "the rollout was cancelled", "`rollout wait`: CANCELLED; says by whom";
    WithFailures = 8, "done within policy, but not on every node", "`rollout wait`: SUCCEEDED_WITH_FAILURES; `--allow-pending` makes it 0";
    Precondition = 9, "not now: the state of things does not permit it", "the fleet changed since the plan, another rollout is under way, it exists already";
    Changes = 10, "something would change, or is not as it should be", "only with `--detailed-exitcode`: `plan` would change something, `patch diff` found a difference, `patch fixes` a node that lacks the fix or has not proved it, `patch lint` warnings but no errors";
    Unavailable = 69, "the controller could not be reached", "nothing is known about what was asked; asking again is safe";
    NotAuthorised = 77, "the controller did not accept the certificate or its role", "says which role is needed";
    Interrupted = 130, "interrupted with Ctrl-C", "a rollout that was watched goes on";
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl Exit {
    /// How `rollout wait` ends on `state`; `None` for states that are waited through.
    ///
    /// `all_put_back` says whether every failed node is back on, or still on, its old state.
    #[must_use]
    pub fn of_rollout(state: State, all_put_back: bool) -> Option<Self> {
        match state {
            State::Planned | State::Running | State::Cancelling | State::Reverting => None,
            State::AwaitingApproval | State::Paused => Some(Self::Waiting),
            State::RevertFailed => Some(Self::NeedsPerson),
            _ if !all_put_back => Some(Self::NeedsPerson),
            State::Halted | State::Reverted => Some(Self::RolledBack),
            State::Succeeded => Some(Self::Success),
            State::SucceededWithFailures => Some(Self::WithFailures),
            State::Cancelled => Some(Self::Cancelled),
        }
    }

    /// How a command ends that the controller answered with `code`.
    #[must_use]
    pub fn of_reason(code: ReasonCode) -> Self {
        // A node that is away says nothing about the controller.
        if code == ReasonCode::NodeOffline {
            return Self::Precondition;
        }
        match code.class() {
            Class::Information
            | Class::AlreadyExists
            | Class::FailedPrecondition
            | Class::Aborted
            | Class::ResourceExhausted => Self::Precondition,
            Class::InvalidArgument | Class::NotFound | Class::Unimplemented => Self::Usage,
            Class::Unauthenticated | Class::PermissionDenied => Self::NotAuthorised,
            Class::Unavailable => Self::Unavailable,
            Class::DataLoss | Class::Internal => Self::Internal,
        }
    }
}

/// The table of exit codes as Markdown, for the terminal and for the reference.
#[must_use]
pub fn table() -> String {
    let rows =
        Exit::ALL.iter().map(|exit| format!("| {} | {} | {} |\n", exit.code(), exit.meaning(), exit.note()));
    format!("| exit | meaning | when |\n|---|---|---|\n{}", rows.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique() {
        for exit in Exit::ALL {
            assert_eq!(Exit::ALL.iter().filter(|other| other.code() == exit.code()).count(), 1, "{exit:?}");
        }
    }

    #[test]
    fn each_rollout_state_has_its_code() {
        let check = |state, put_back, code: Option<u8>| {
            assert_eq!(Exit::of_rollout(state, put_back).map(Exit::code), code, "{state} {put_back}");
        };
        for waited in [State::Planned, State::Running, State::Cancelling, State::Reverting] {
            check(waited, true, None);
            check(waited, false, None);
        }
        check(State::Succeeded, true, Some(0));
        check(State::SucceededWithFailures, true, Some(8));
        check(State::SucceededWithFailures, false, Some(4));
        check(State::Paused, true, Some(6));
        check(State::AwaitingApproval, true, Some(6));
        check(State::Cancelled, true, Some(7));
        check(State::Cancelled, false, Some(4));
        check(State::Reverted, true, Some(3));
        check(State::RevertFailed, true, Some(4));
        check(State::Halted, true, Some(3));
        check(State::Halted, false, Some(4));
    }

    #[test]
    fn each_class_has_its_code() {
        let check = |code, exit| assert_eq!(Exit::of_reason(code), exit, "{code}");
        check(ReasonCode::NotFound, Exit::Usage);
        check(ReasonCode::InvalidArgument, Exit::Usage);
        check(ReasonCode::NotImplemented, Exit::Usage);
        check(ReasonCode::PlanChanged, Exit::Precondition);
        check(ReasonCode::AlreadyExists, Exit::Precondition);
        check(ReasonCode::EtagMismatch, Exit::Precondition);
        check(ReasonCode::LimitExceeded, Exit::Precondition);
        check(ReasonCode::NodeOffline, Exit::Precondition);
        check(ReasonCode::StoreUnavailable, Exit::Unavailable);
        check(ReasonCode::PermissionDenied, Exit::NotAuthorised);
        check(ReasonCode::CertificateUnknown, Exit::NotAuthorised);
        check(ReasonCode::Internal, Exit::Internal);
        check(ReasonCode::ArtifactDamaged, Exit::Internal);
    }

    #[test]
    fn the_table_has_a_row_for_each() {
        assert_eq!(table().lines().count(), Exit::ALL.len() + 2);
    }
}
