//! `upfleet-agent trial`.

use super::{Done, Exit, Failure, Global, logging};
use crate::{
    fault::{self, When},
    itself::trial::{self, Unreached},
};

/// Shows that this executable can do its work on this node.
pub(super) fn run(global: &Global) -> Done {
    logging::begin(global.log);
    fault::begin(When::Trial);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shown = runtime.block_on(trial::show(&global.config));
    let shown = shown.map_err(|error| {
        let exit = if error.is::<Unreached>() { Exit::Unreachable } else { Exit::Refused };
        Failure::new(exit, error)
    })?;
    println!("{}", serde_json::to_string(&shown)?);
    Ok(Exit::Done)
}
