//! `upfleet dev`: a whole fleet on this machine, to try things out.
//!
//! The same controller and agents as in production, as real processes over mutual TLS; only the CA, the paths and
//! the timers differ. This process is their parent: it restarts what is killed, and when it ends, by whatever
//! cause, everything ends with it (see `lifeline`).

mod agent;
mod app;
mod chaos;
mod child;
mod context;
mod fleet;
pub(crate) mod lifeline;
mod place;
mod scenario;
mod welcome;

use std::{path::PathBuf, time::Instant};

use clap::Subcommand;

use crate::{
    cli::{
        app::App,
        failure::{Failure, Result},
    },
    exit::Exit,
};
use agent::Components;
use fleet::{Fleet, Wanted};

/// What to bring up.
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// How many agents.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=200))]
    agents: u16,
    /// Keep everything in this directory instead of a temporary one that is removed at the end.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Look after these components instead of the demo service: a file with `[[component]]` tables as in an agent's
    /// configuration, where `{root}` stands for the node's directory, `{port}` for a free port and `{node}` for its name.
    #[arg(long, value_name = "FILE", conflicts_with = "scenario")]
    component: Option<PathBuf>,
    /// Play a story, print what happens, and end: exit 0 only where it happened as told.
    #[arg(long, value_enum, value_name = "STORY")]
    scenario: Option<scenario::Story>,
    /// Print lines instead of a live tree, for logs.
    #[arg(long, requires = "scenario")]
    ci: bool,
    /// Removes a directory once the lifeline on standard input has ended.
    #[arg(long, hide = true, value_name = "DIR")]
    janitor: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Break something in the running dev fleet, to see it mend itself.
    #[command(subcommand)]
    Chaos(chaos::Command),
}

/// Brings a fleet up and stays until interrupted; or breaks something in a running one.
///
/// # Errors
/// Where something that is needed is missing.
pub async fn run(app: &App, args: Args) -> Result<Exit> {
    if let Some(directory) = &args.janitor {
        place::clean_after_the_lifeline(directory);
        return Ok(Exit::Success);
    }
    if let Some(Command::Chaos(command)) = &args.command {
        return chaos::run(app, command);
    }
    let begun = Instant::now();
    let wanted = Wanted {
        agents: args.agents,
        keep: args.keep.clone(),
        for_a_person: args.scenario.is_none(),
        components: Components::read(args.component.as_deref())?,
    };
    // Ctrl-C is taken before anything is started, so that nothing is left behind whenever it comes.
    let mut interrupts = interrupts()?;
    let fleet = Fleet::begin(&wanted)?;
    let result = tokio::select! {
        result = live(app, &fleet, &args, begun) => result,
        () = interrupted(&mut interrupts) => Ok(Exit::Interrupted),
    };
    fleet.end(app).await;
    match result {
        // Ctrl-C is how a dev fleet ends in good order.
        Ok(Exit::Interrupted) if args.scenario.is_none() => Ok(Exit::Success),
        result => result,
    }
}

async fn live(app: &App, fleet: &Fleet, args: &Args, begun: Instant) -> Result<Exit> {
    fleet.bring_up(app).await?;
    if let Some(story) = args.scenario {
        return scenario::play(app, fleet, story, args.ci).await;
    }
    app.say(fleet.welcome(begun.elapsed(), app.paint()));
    std::future::pending().await
}

/// The signals that end a dev fleet.
struct Interrupts(tokio::signal::unix::Signal, tokio::signal::unix::Signal, tokio::signal::unix::Signal);

fn interrupts() -> Result<Interrupts> {
    use tokio::signal::unix::{SignalKind, signal};
    let take = |kind| {
        signal(kind).map_err(|error| Failure::new(Exit::Internal, "could not take signals").because(&error))
    };
    Ok(Interrupts(
        take(SignalKind::interrupt())?,
        take(SignalKind::terminate())?,
        take(SignalKind::hangup())?,
    ))
}

async fn interrupted(signals: &mut Interrupts) {
    tokio::select! {
        _ = signals.0.recv() => {}
        _ = signals.1.recv() => {}
        _ = signals.2.recv() => {}
    }
}
