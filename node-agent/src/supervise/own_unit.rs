//! The agent's own unit: which one it is, its guard's unit, and its process. Asks systemd over D-Bus.

use std::path::Path;

use super::systemd::Manager;

/// Overrides which unit this agent is, where its control group does not say.
pub const UNIT: &str = "UPFLEET_UNIT";
/// What a unit's guard is called: `upfleet-agent.service` has `upfleet-agent-guard.service`.
const SUFFIX: &str = "-guard.service";

/// The unit that this process is the main process of, as its control group says.
#[must_use]
pub fn find() -> Option<String> {
    if let Ok(unit) = std::env::var(UNIT) {
        return Some(unit).filter(|unit| !unit.is_empty());
    }
    // Only a unit tells its process which start of it this is.
    std::env::var_os("INVOCATION_ID")?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let name = groups.lines().find_map(|line| Path::new(line.rsplit(':').next()?).file_name()?.to_str())?;
    name.ends_with(".service").then(|| name.to_owned())
}

/// The name of the guard's unit.
#[must_use]
pub fn guard_of(unit: &str) -> String {
    format!("{}{SUFFIX}", unit.trim_end_matches(".service"))
}

/// Has the guard of an agent's unit started.
///
/// # Errors
/// What systemd said.
pub async fn start_guard(unit: &str) -> Result<(), String> {
    Manager::system().start(&guard_of(unit)).await
}

/// The main process of an agent's unit; `None` where none runs.
///
/// # Errors
/// What systemd said.
pub async fn main_pid(unit: &str) -> Result<Option<u32>, String> {
    Manager::system().main_pid(unit).await
}

/// Has an agent's unit start again, also where systemd has given it up.
///
/// # Errors
/// What systemd said.
pub async fn start(unit: &str) -> Result<(), String> {
    let manager = Manager::system();
    manager.reset_failed(unit).await?;
    manager.start(unit).await
}
