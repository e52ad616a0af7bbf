//! Who starts this agent again when it ends, and who can be asked to run its guard: a parent of Upfleet's own, or systemd.

use std::time::Duration;

use rustix::process::{Signal, getppid};
use upfleet_domain::reason::{Reason, ReasonCode};

use super::marker::Markers;
use crate::{processes::as_pid, supervise::own_unit};

/// Names the pid of the parent that keeps an agent.
pub const PARENT: &str = "UPFLEET_PARENT";
/// The signal that has the parent look whether a guard is wanted.
pub const LOOK: Signal = Signal::USR1;
/// How long a guard may take until it watches.
const LIMIT: Duration = Duration::from_secs(30);
/// How often it is looked whether it does.
const EVERY: Duration = Duration::from_millis(20);

/// Who keeps this agent running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// A parent: `upfleet-agent run --supervised`.
    Parent(u32),
    /// A unit of systemd's, by its name.
    Unit(String),
}

impl Keeper {
    /// Of this process, as it was started.
    #[must_use]
    pub fn find() -> Option<Self> {
        let parent = std::env::var(PARENT).ok().and_then(|pid| pid.parse().ok());
        let real = getppid().and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok());
        match (parent, real) {
            (Some(parent), Some(real)) if parent == real => Some(Self::Parent(parent)),
            _ => own_unit::find().map(Self::Unit),
        }
    }

    /// Has the guard started, and waits until it watches.
    ///
    /// # Errors
    /// [`ReasonCode::GuardNotSet`].
    pub async fn set_guard(&self, markers: &Markers) -> Result<(), Reason> {
        let failed = |problem: String| Reason::new(ReasonCode::GuardNotSet).with("problem", problem);
        match self {
            Self::Parent(pid) => {
                let parent = as_pid(*pid).ok_or_else(|| failed("its parent is gone".to_owned()))?;
                rustix::process::kill_process(parent, LOOK)
                    .map_err(|error| failed(format!("its parent can't be told: {error}")))?;
            }
            Self::Unit(unit) => own_unit::start_guard(unit).await.map_err(failed)?,
        }
        let watches = async {
            loop {
                let marker = markers.read().ok().flatten();
                if marker.and_then(|marker| marker.guard).is_some_and(|guard| guard.is_running()) {
                    return;
                }
                tokio::time::sleep(EVERY).await;
            }
        };
        let late = || failed(format!("it does not watch after {} s", LIMIT.as_secs()));
        tokio::time::timeout(LIMIT, watches).await.map_err(|_| late())
    }
}
