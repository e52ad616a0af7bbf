//! `upfleet dev`: a whole fleet on this machine, to try things out.

use crate::{
    cli::{
        app::App,
        failure::{Failure, Result},
    },
    exit::Exit,
};

/// What to bring up.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// How many agents.
    #[arg(long, default_value_t = 5, value_name = "N")]
    agents: u32,
}

/// Brings a fleet up and stays until interrupted.
///
/// # Errors
/// Where something that is needed is missing.
pub async fn run(_app: &App, args: Args) -> Result<Exit> {
    Err(Failure::usage(format!("`dev` with {} agents is not available in this version", args.agents)))
}
