//! `upfleet completion`: a shell's completion script.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, failure::Result};
use crate::exit::Exit;

/// For which shell.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "upfleet", &mut script);
    super::app::print(&String::from_utf8_lossy(&script));
    Ok(Exit::Success)
}
