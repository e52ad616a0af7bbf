//! The signal: to one process that was told from every other one, never to a pid alone.

use std::{
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::{Instant, sleep};

use crate::{config::ReloadSignal, processes::Identity};

/// How often it is looked whether the process survives.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How far the clock of the file system may lie behind that of the processes: both are cut, one to the kernel's tick.
const SLACK: Duration = Duration::from_millis(50);

/// Sends it, and watches for `settle` that the process does not die of it.
pub(super) async fn send(
    signal: ReloadSignal,
    pid_file: Option<&Path>,
    settle: Duration,
    own: &Result<u32, String>,
) -> Result<String, String> {
    let identity = match pid_file {
        Some(file) => of_file(file)?,
        None => {
            let pid = own.clone()?;
            Identity::of(pid).map_err(|error| format!("process {pid}: {error}"))?
        }
    };
    let (pid, name) = (identity.pid, signal.as_str());
    if !catches(pid, signal)? {
        return Err(format!("process {pid} does not catch {name}, which would end it; no signal was sent"));
    }
    if !identity.signal(signal.signal()) {
        return Err(format!("process {pid} could not be sent {name}: it is gone or another user's"));
    }
    let until = Instant::now() + settle;
    while Instant::now() < until {
        if !identity.is_running() {
            return Err(format!("process {pid} ended after {name}"));
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(format!("process {pid} took {name} and runs"))
}

/// The process that a pid file means: the one that ran already when the file was written. A younger one with that
/// pid is another.
fn of_file(file: &Path) -> Result<Identity, String> {
    let problem = |text: String| format!("{}: {text}", file.display());
    let opened = std::fs::File::open(file).map_err(|error| problem(error.to_string()))?;
    let metadata = opened.metadata().map_err(|error| problem(error.to_string()))?;
    let mut text = String::new();
    opened.take(64).read_to_string(&mut text).map_err(|error| problem(error.to_string()))?;
    let pid = text.trim().parse().ok().filter(|pid| *pid > 1);
    let pid: u32 =
        pid.ok_or_else(|| problem(format!("`{}` is not a process id", text.trim().escape_debug())))?;
    let identity = Identity::of(pid).map_err(|_| problem(format!("there is no process {pid}")))?;
    let written = Duration::new(
        u64::try_from(metadata.mtime()).unwrap_or(0),
        u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
    );
    let started =
        started(identity.start_time).ok_or_else(|| problem("when it was started can't be told".into()))?;
    if started > written + SLACK {
        return Err(problem(format!(
            "process {pid} was started after the file was written: it is another one"
        )));
    }
    Ok(identity)
}

/// When a process was started, since the epoch, from its clock ticks since the boot.
fn started(ticks: u64) -> Option<Duration> {
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    // The kernel shows hundredths of a second to programs, whatever its own tick.
    let age = Duration::from_secs_f64((uptime - ticks as f64 / 100.0).max(0.0));
    now.checked_sub(age)
}

/// Whether the process has a handler for the signal or ignores it; else the signal would end it.
fn catches(pid: u32, signal: ReloadSignal) -> Result<bool, String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    let status = status.map_err(|error| format!("process {pid}: {error}"))?;
    let mask = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let bit = 1u64 << (signal.signal().as_raw() - 1);
    let caught = mask("SigCgt:").ok_or_else(|| format!("process {pid} does not say what it catches"))?;
    Ok(caught & bit != 0)
}
