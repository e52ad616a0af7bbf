//! `upfleet patch`: make patches, and see which patch is in force where.
//!
//! Making is offline: `build` and `lint` talk to nobody. Putting patches on and taking them off is a rollout.

use clap::Subcommand;

use super::{app::App, failure::Result};
use crate::exit::Exit;

mod make;
mod publish;
mod query;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a patch from classes, or from the difference between two builds; talks to nobody.
    Build(Box<make::BuildArgs>),
    /// Say beforehand what would go wrong with a patch; talks to nobody.
    Lint(make::LintArgs),
    /// Publish a patch that was built: upload its jar, store its manifest.
    Publish(publish::PublishArgs),
    /// List patches: what they fix, and how many nodes have them.
    List(query::ListArgs),
    /// Show a patch: its classes, what it fixes, what it is built on, whether it can be applied live.
    Info(query::InfoArgs),
    /// Show the patch stack of a node, newest first, and what the running JVM says of it.
    Stack(query::StackArgs),
    /// Compare two nodes: base, patches, and which patch each class comes from.
    Diff(query::DiffArgs),
    /// Say which nodes lack a fix, have it in a patch, or in their base.
    Fixes(query::FixesArgs),
}

pub(super) async fn run(app: &App, command: Command) -> Result<Exit> {
    match command {
        Command::Build(args) => make::build(app, &args),
        Command::Lint(args) => make::lint(app, &args),
        Command::Publish(args) => publish::publish(app, &args).await,
        Command::List(args) => query::list(app, args).await,
        Command::Info(args) => query::info(app, &args).await,
        Command::Stack(args) => query::stack(app, &args).await,
        Command::Diff(args) => query::diff(app, &args).await,
        Command::Fixes(args) => query::fixes(app, args).await,
    }
}
