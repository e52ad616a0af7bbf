//! `upfleet dev chaos`: breaks something in the running dev fleet.

use clap::Subcommand;
use rustix::process::{Pid, Signal, kill_process};

use super::place;
use crate::{
    cli::{
        app::App,
        failure::{Failure, Result},
    },
    exit::Exit,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Kill an agent with SIGKILL; it is started again.
    KillAgent {
        /// The node, e.g. `demo-3`.
        node: String,
    },
    /// Kill the controller with SIGKILL; it is started again.
    KillController,
}

/// The agent that a parent keeps, if it runs just now. A guard is its child too, but is no agent.
fn agent_of(parent: u32) -> Option<u32> {
    let children =
        std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    let runs = |pid: &u32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).any(|word| word == b"run")
    };
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(runs)
}

pub(super) fn run(app: &App, command: &Command) -> Result<Exit> {
    let name = match command {
        Command::KillAgent { node } => node.as_str(),
        Command::KillController => "controller",
    };
    let processes = place::living_processes()?;
    let Some((_, pid)) = processes.iter().find(|(found, _)| found == name) else {
        let known: Vec<&str> = processes.iter().map(|(name, _)| name.as_str()).collect();
        let hint = if known.is_empty() {
            "start one: upfleet dev".to_owned()
        } else {
            format!("there is {}", known.join(", "))
        };
        return Err(Failure::usage(format!("no dev fleet runs a process `{name}`")).hint(hint));
    };
    let pid = if name == "controller" { Some(*pid) } else { agent_of(*pid) };
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let pid = pid
        .ok_or_else(|| Failure::new(Exit::Internal, format!("`{name}` has no agent just now; try again")))?;
    kill_process(pid, Signal::KILL).map_err(|error| {
        Failure::new(Exit::Internal, format!("could not kill `{name}`")).because(&std::io::Error::from(error))
    })?;
    app.note(format!("Killed {name} (pid {}); it is started again.", pid.as_raw_nonzero()));
    Ok(Exit::Success)
}
