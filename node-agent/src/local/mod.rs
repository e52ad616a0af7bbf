//! The agent's own Unix socket: how `upfleet-agent status`, `rollback --local` and `apply` talk to the running agent.
//!
//! Open to the agent's user and root alone. One JSON object a line; each carries the protocol's version, so
//! that a newer command can tell an older agent. It works whether or not the controller does.

mod apply;
mod client;
mod server;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

pub use client::{LocalError, call};
use serde::{Deserialize, Serialize};
pub use server::serve;
use upfleet_domain::{id::ComponentId, reason::Reason, report::ComponentInventory, state::ComponentState};

use crate::transport::Link;

/// The protocol's version.
pub const VERSION: u32 = 1;
/// No request is longer, in bytes.
const MAX_REQUEST: u64 = 64 * 1024;

/// The socket below the configuration's `run_dir`.
#[must_use]
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// How it stands.
    Status,
    /// Puts a kept state back and holds the component.
    RollBack {
        /// Which component.
        component: ComponentId,
        /// A version, or the beginning of a digest; the newest kept state where it is left out.
        to: Option<String>,
        /// Why, for the record.
        message: String,
    },
    /// Applies what a bundle holds and holds the component, where its configuration permits that.
    Apply {
        /// The bundle's absolute path.
        file: PathBuf,
        /// Which component, where the bundle is for several.
        component: Option<ComponentId>,
        /// Fixes that a new base may lose.
        #[serde(default)]
        waive: Vec<String>,
        /// Why, for the record.
        message: String,
    },
}

impl Request {
    /// How long the answer may take: a bundle of gigabytes is read to its end before it is answered.
    fn patience(&self) -> Duration {
        match self {
            Self::Status | Self::RollBack { .. } => Duration::from_secs(10),
            Self::Apply { .. } => Duration::from_secs(15 * 60),
        }
    }
}

/// A line from a command.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Asked {
    v: u32,
    #[serde(flatten)]
    request: Request,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// The rollback is recorded and under way.
    RollingBack,
    /// What the bundle holds is recorded and under way.
    Applying {
        /// The component.
        component: ComponentId,
        /// What it will run.
        to: ComponentState,
    },
    /// It can't be done.
    Refused(Reason),
}

/// A line from the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Answered {
    v: u32,
    answer: Answer,
}

/// How the agent and its components stand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The node's name, once it is enrolled.
    pub node: Option<String>,
    /// The agent's version.
    pub agent_version: String,
    /// The agent's process; `None` where it does not run and this was read from its journals.
    pub pid: Option<u32>,
    /// How it stands with the controller; `None` where that is not known.
    pub link: Option<Link>,
    /// Each component.
    pub components: Vec<ComponentStatus>,
}

/// How one component stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComponentStatus {
    /// What it is and runs.
    pub inventory: ComponentInventory,
    /// What it waits for, or how its last upgrade ended.
    pub reason: Option<Reason>,
    /// Reports that the controller has not recorded yet.
    pub unacknowledged: usize,
}
