//! `upfleet-agent rollback --local`: a person at the node puts a kept version back, whatever the controller
//! says or whether it answers. The component stays held until an operator releases it.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use clap::Args;
use upfleet_domain::{id::ComponentId, reason::ReasonCode};

use super::{Done, Exit, Failure, Global, enroll::exit_of};
use crate::local::{self, Answer, ComponentStatus, LocalError, Request};

const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct Rollback {
    /// Say that it is meant for this node alone; fleets are rolled back with `upfleet rollout`
    #[arg(long, required = true)]
    local: bool,
    /// The component
    component: ComponentId,
    /// A kept version, or the beginning of a digest [default: the newest kept]
    #[arg(long, value_name = "STATE")]
    to: Option<String>,
    /// Why, for the record
    #[arg(long, short, default_value = "")]
    message: String,
    /// How long to wait for the end; 0 does not wait
    #[arg(long, value_name = "SPAN", default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

impl Rollback {
    pub(super) fn run(self, global: &Global) -> Done {
        debug_assert!(self.local, "the parser demands it");
        let config = super::load(global)?;
        let (node, before) = self.look(&config)?;
        let (component, to, message) = (self.component.clone(), self.to.clone(), self.message.clone());
        match local::call(&config.run_dir, Request::RollBack { component, to, message }) {
            Ok(Answer::RollingBack) => {}
            Ok(Answer::Refused(reason)) => {
                let kept =
                    before.inventory.kept.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let kept = if kept.is_empty() { "none".to_owned() } else { kept };
                let exit = exit_of(&reason);
                return Err(Failure::new(exit, reason).hint(format!("kept states: {kept}")));
            }
            Ok(Answer::Status(_) | Answer::Applying { .. }) => return Err(LocalError::Version.into()),
            Err(error) => return Err(unreachable(error)),
        }
        println!("Rolling {} back; it is held until: upfleet node release {node} {0}", self.component);
        self.wait(&config, &before)
    }

    fn wait(&self, config: &crate::config::Config, before: &ComponentStatus) -> Done {
        let deadline = Instant::now() + self.timeout;
        while Instant::now() < deadline {
            thread::sleep(LOOK);
            let (_, now) = self.look(config)?;
            let failed = [ReasonCode::RollbackStepFailed, ReasonCode::RollbackUnhealthy];
            if let Some(reason) = now.reason.as_ref().filter(|reason| failed.contains(&reason.code)) {
                let hint = reason.code.hint().unwrap_or("upfleet-agent diagnostics");
                return Err(Failure::new(Exit::NeedsPerson, anyhow!("{reason}")).hint(hint));
            }
            if now.inventory.changer == "local"
                && now.inventory.changed != before.inventory.changed
                && now.inventory.healthy
            {
                println!("{} runs {} and is healthy.", self.component, now.inventory.current);
                return Ok(Exit::Done);
            }
        }
        println!("Still under way: upfleet-agent status");
        Ok(if self.timeout.is_zero() { Exit::Done } else { Exit::Waiting })
    }

    /// The node's name, and how the component stands.
    fn look(&self, config: &crate::config::Config) -> Result<(String, ComponentStatus), Failure> {
        let status = match local::call(&config.run_dir, Request::Status) {
            Ok(Answer::Status(status)) => status,
            Ok(_) => return Err(LocalError::Version.into()),
            Err(error) => return Err(unreachable(error)),
        };
        let found = status.components.into_iter().find(|found| found.inventory.component == self.component);
        let found = found.ok_or_else(|| {
            let error = anyhow!("`{}` is not in the agent's configuration", self.component);
            Failure::new(Exit::Refused, error).hint("upfleet-agent status lists the components")
        })?;
        Ok((status.node.unwrap_or_else(|| "NODE".to_owned()), found))
    }
}

pub(super) fn unreachable(error: LocalError) -> Failure {
    match error {
        LocalError::NotPermitted(_) => {
            Failure::new(Exit::NotPermitted, error).hint("run it as root or as the agent's user")
        }
        LocalError::NotRunning(_) => {
            Failure::new(Exit::Unreachable, error).hint("start it first: upfleet-agent run")
        }
        _ => Failure::new(Exit::Unreachable, error),
    }
}
