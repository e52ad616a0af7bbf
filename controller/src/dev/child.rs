//! A process of a dev fleet: started, and started again when it ends, until the fleet ends.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, task::JoinHandle};

use super::{lifeline::Lifeline, place::Place};
use crate::cli::failure::{Failure, Result};

/// Between the end of a process and its next start.
const RESTART_DELAY: Duration = Duration::from_millis(200);
/// A process that is asked to end is killed after so long.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// What to run.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// Its name in the fleet, e.g. `demo-3`.
    pub name: String,
    /// The executable.
    pub executable: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Where its output goes.
    pub log: PathBuf,
}

/// What every process of the fleet shares.
#[derive(Debug)]
pub(super) struct Household {
    pub lifeline: Lifeline,
    pub place: Place,
    /// Set once the fleet ends: nothing is started any more.
    pub ending: watch::Sender<bool>,
}

/// A process that is kept running.
#[derive(Debug)]
pub(super) struct Child {
    task: JoinHandle<()>,
}

impl Program {
    /// The command, tied to the lifeline, its output going to the log.
    pub(super) fn command(&self, household: &Household) -> Result<Command> {
        let log = open_log(&self.log).map_err(|error| Failure::io("write", &self.log, &error))?;
        let mut command = Command::new(&self.executable);
        command.args(&self.arguments).stdout(Stdio::from(log.0)).stderr(Stdio::from(log.1));
        household
            .lifeline
            .hold_on(&mut command)
            .map_err(|error| Failure::io("start", &self.executable, &error))?;
        // Ctrl-C is for the parent, which ends the others in order.
        command.process_group(0);
        Ok(command)
    }

    /// Starts it once and waits for its end.
    pub(super) async fn run(&self, household: &Household) -> Result<()> {
        let status = tokio::process::Command::from(self.command(household)?)
            .status()
            .await
            .map_err(|error| Failure::io("start", &self.executable, &error))?;
        if status.success() {
            return Ok(());
        }
        let mut failure =
            Failure::new(crate::exit::Exit::Internal, format!("{} failed: {status}", self.name));
        failure.causes.extend(last_lines(&self.log));
        Err(failure)
    }

    /// Keeps it running.
    pub(super) fn keep(self, household: Arc<Household>) -> Result<Child> {
        let mut ending = household.ending.subscribe();
        let mut process = self.spawn(&household)?;
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = process.wait() => {}
                    () = over(&mut ending) => {
                        stop(&mut process).await;
                        return;
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(RESTART_DELAY) => {}
                    () = over(&mut ending) => return,
                }
                match self.spawn(&household) {
                    Ok(next) => process = next,
                    // The executable is gone, or there are no processes to be had: trying on would not mend it.
                    Err(_) => return,
                }
            }
        });
        Ok(Child { task })
    }

    fn spawn(&self, household: &Household) -> Result<tokio::process::Child> {
        let process = tokio::process::Command::from(self.command(household)?)
            .spawn()
            .map_err(|error| Failure::io("start", &self.executable, &error))?;
        household.place.note_pid(&self.name, process.id().unwrap_or(0));
        Ok(process)
    }
}

impl Child {
    /// Waits until it has ended, once the fleet ends.
    pub(super) async fn ended(self) {
        // A task that panicked has no process to wait for.
        let _ = self.task.await;
    }
}

/// Waits until the fleet ends; a fleet that is gone has ended.
async fn over(ending: &mut watch::Receiver<bool>) {
    let _ = ending.wait_for(|ending| *ending).await;
}

async fn stop(process: &mut tokio::process::Child) {
    let pid = process.id().and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(STOP_PATIENCE, process.wait()).await.is_err() {
        let _ = process.kill().await;
    }
}

fn open_log(path: &Path) -> io::Result<(File, File)> {
    let log = OpenOptions::new().append(true).create(true).open(path)?;
    Ok((log.try_clone()?, log))
}

/// The last lines of a log, for an error's causes.
pub(super) fn last_lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let skip = lines.len().saturating_sub(5);
    lines[skip..].iter().map(ToString::to_string).collect()
}
