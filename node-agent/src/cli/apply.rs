//! `upfleet-agent apply`: a person at the node applies releases from a file, whether or not there is a controller.
//! The same machine as for an order: checked, backed up, probed, put back where it fails. The component stays held.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use clap::Args;
use upfleet_domain::{id::ComponentId, state::ComponentState, upgrade::Outcome};

use super::{Done, Exit, Failure, Global, enroll::exit_of, rollback::unreachable};
use crate::{
    component::history::History,
    config::Config,
    local::{self, Answer, LocalError, Request},
};

/// How often the agent is asked how it stands.
const LOOK: Duration = Duration::from_millis(150);

#[derive(Debug, Args)]
pub(super) struct Apply {
    /// A file made by `upfleet release export`
    file: PathBuf,
    /// The component, where the file is for several
    #[arg(long, value_name = "NAME")]
    component: Option<ComponentId>,
    /// Do without this fix of a patch that a new base retires
    #[arg(long, value_name = "FIX")]
    waive_fix: Vec<String>,
    /// Why, for the record
    #[arg(long, short, default_value = "")]
    message: String,
    /// How long to wait for the end; 0 does not wait
    #[arg(long, value_name = "SPAN", default_value = "15m", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

impl Apply {
    pub(super) fn run(self, global: &Global) -> Done {
        let config = super::load(global)?;
        let file = self.file.canonicalize();
        let file = file.with_context(|| format!("could not read `{}`", self.file.display()));
        let file = file.map_err(|error| Failure::new(Exit::Usage, error))?;
        let (component, waive) = (self.component.clone(), self.waive_fix.clone());
        let request = Request::Apply { file, component, waive, message: self.message.clone() };
        // Taken before it begins, so that its own entry is told from earlier ones.
        let known = |component: &ComponentId| entries(&config, component).len();
        let before: Vec<(ComponentId, usize)> =
            config.components.iter().map(|c| (c.name.clone(), known(&c.name))).collect();
        match local::call(&config.run_dir, request) {
            Ok(Answer::Applying { component, to }) => {
                let before =
                    before.iter().find(|(name, _)| *name == component).map_or(0, |(_, count)| *count);
                println!(
                    "Applying {to} to {component}; it is held until: upfleet node release NODE {component}"
                );
                self.wait(&config, &component, &to, before)
            }
            Ok(Answer::Refused(reason)) => {
                let (exit, hint) = (exit_of(&reason), reason.code.hint());
                let failure = Failure::new(exit, reason);
                Err(match hint {
                    Some(hint) => failure.hint(hint),
                    None => failure,
                })
            }
            Ok(Answer::Status(_) | Answer::RollingBack) => Err(LocalError::Version.into()),
            Err(error) => Err(unreachable(error)),
        }
    }

    fn wait(&self, config: &Config, component: &ComponentId, to: &ComponentState, before: usize) -> Done {
        let deadline = Instant::now() + self.timeout;
        let mut told = String::new();
        while Instant::now() < deadline {
            // The end first: an upgrade that is over says nothing of what it waits for.
            if let Some(entry) = entries(config, component).into_iter().skip(before).next_back() {
                return ended(component, entry.outcome, &entry.reason.message(), to, &entry.current);
            }
            let status = super::status::gather(config)?;
            let found = status.components.iter().find(|found| found.inventory.component == *component);
            if let Some(reason) = found.and_then(|found| found.reason.as_ref()) {
                let line = reason.to_string();
                if line != told {
                    println!("  {line}");
                    told = line;
                }
            }
            thread::sleep(LOOK);
        }
        println!("Still under way: upfleet-agent status");
        Ok(if self.timeout.is_zero() { Exit::Done } else { Exit::Waiting })
    }
}

fn entries(config: &Config, component: &ComponentId) -> Vec<upfleet_domain::upgrade::history::Entry> {
    // What can't be read is waited for until the time is up.
    History::new(&config.state_dir, component).read().unwrap_or_default()
}

/// What is said of the end, and the exit code.
fn ended(
    component: &ComponentId,
    outcome: Outcome,
    why: &str,
    to: &ComponentState,
    now: &ComponentState,
) -> Done {
    let exit = match outcome {
        Outcome::Succeeded | Outcome::AlreadyCurrent => {
            println!("{component} runs {now}: {why}");
            return Ok(Exit::Done);
        }
        Outcome::RollbackFailed => Exit::NeedsPerson,
        Outcome::Refused => Exit::Refused,
        _ => Exit::Failed,
    };
    let told = anyhow!("{outcome}: {component} runs {now}, not {to}: {why}");
    Err(Failure::new(exit, told).hint("upfleet-agent history shows what happened"))
}
