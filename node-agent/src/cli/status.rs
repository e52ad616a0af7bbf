//! `upfleet-agent status`: from the running agent, or from what it left behind.

use clap::Args;

use super::{Done, Exit, Failure, Global, Output, offline, render};
use crate::{
    config::{ComponentConfig, Config},
    local::{self, Answer, LocalError, Request, Status},
    transport::now,
};

#[derive(Debug, Args)]
pub(super) struct Show {
    /// How it is shown
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

impl Show {
    pub(super) fn run(self, global: &Global) -> Done {
        let config = super::load(global)?;
        let status = gather(&config)?;
        match self.output {
            Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
            Output::Table => print!("{}", render::status(&status, &units(&config), now())),
        }
        Ok(Exit::Done)
    }
}

/// The units of the components that systemd runs.
pub(super) fn units(config: &Config) -> render::Units {
    let unit = |component: &ComponentConfig| Some((component.name.clone(), component.run.unit.clone()?));
    config.components.iter().filter_map(unit).collect()
}

/// How it stands: asked of the agent, else read from its journals.
pub(super) fn gather(config: &Config) -> Result<Status, Failure> {
    match local::call(&config.run_dir, Request::Status) {
        Ok(Answer::Status(status)) => Ok(*status),
        Ok(_) => Err(LocalError::Version.into()),
        Err(LocalError::NotRunning(_)) => Ok(offline::status(config)),
        Err(error @ LocalError::NotPermitted(_)) => {
            Err(Failure::new(Exit::NotPermitted, error).hint("run it as root or as the agent's user"))
        }
        Err(error) => Err(Failure::new(Exit::Unreachable, error)),
    }
}
