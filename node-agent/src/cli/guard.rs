//! `upfleet-agent guard`.

use std::path::PathBuf;

use clap::Args;

use super::{Done, Exit, Global, load, logging};
use crate::guard::{self, Ward};

/// Watch the upgrade of the agent itself; started by the agent's unit or parent.
#[derive(Debug, Args)]
pub(super) struct Guard {
    /// Count one start of the agent and end; called before each start
    #[arg(long)]
    count: bool,
    /// The agent's state directory [default: the configuration's]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The unit that runs the agent
    #[arg(long, value_name = "NAME")]
    unit: Option<String>,
}

impl Guard {
    pub(super) fn run(self, global: &Global) -> Done {
        logging::begin(global.log);
        let state = match self.state {
            Some(state) => state,
            None => load(global)?.state_dir,
        };
        if self.count {
            guard::count(&state)?;
            return Ok(Exit::Done);
        }
        super::run::follow_lifeline()?;
        super::run::end_with_parent();
        let ward = self.unit.map_or(Ward::Child, Ward::Unit);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(guard::watch(&state, &global.config, ward))?;
        Ok(Exit::Done)
    }
}
