//! What an upgrade cost those whom the component serves: how long nothing answered, or that nothing ever failed to.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::reason::Reason;

/// How the process was changed, and how long none was known to answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interruption {
    /// The new process stood beside the old one until it was healthy.
    pub handed_over: bool,
    /// From when a process was asked to end, or was found ended, to when the next healthy one first passed the slowest
    /// of its probes, in milliseconds; both ways together where the upgrade was rolled back. Zero where all was handed
    /// over.
    pub down_ms: u64,
    /// Why a process was stopped and started although the configuration says to hand over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Reason>,
}

impl Interruption {
    /// How long nothing was known to answer.
    #[must_use]
    pub fn down(&self) -> Duration {
        Duration::from_millis(self.down_ms)
    }
}

impl fmt::Display for Interruption {
    /// `handed over, down 0 ms` or `down 1240 ms`, with why it was not handed over.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.handed_over {
            f.write_str("handed over, ")?;
        }
        write!(f, "down {} ms", self.down_ms)?;
        match &self.why {
            Some(why) => write!(f, "; {why}"),
            None => Ok(()),
        }
    }
}
