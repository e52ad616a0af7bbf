//! The command line: what people type, one noun per file.
//!
//! Fleet commands use the generated client only. `render` holds how things look; the commands here fetch,
//! print and choose the exit code.

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    exit::{self, Exit},
    version::VERSION,
};

pub mod app;
mod artifact;
mod bundle;
mod change;
pub mod client;
mod completion;
pub mod config;
mod context;
pub mod failure;
pub(crate) mod file;
mod jar;
mod node;
mod page;
mod patch;
mod plan;
pub mod reference;
pub(crate) mod release;
pub mod render;
mod rollout;
pub(crate) mod server;
mod spec;
mod token;
mod tree;
mod user;
pub mod watch;

use app::{App, Globals};
use failure::Result;

/// Upgrades fleets of Linux servers while they run.
#[derive(Debug, Parser)]
#[command(
    name = "upfleet",
    version = VERSION,
    max_term_width = 100,
    after_help = "Exit codes: upfleet help exit-codes\nBegin with: upfleet dev"
)]
pub struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Choose which controller to talk to, and as whom.
    #[command(subcommand)]
    Context(context::Command),
    /// Upload and look at artifacts: immutable bytes named by their SHA-256.
    #[command(subcommand)]
    Artifact(artifact::Command),
    /// Publish releases and take them out of use.
    #[command(subcommand)]
    Release(release::Command),
    /// Look at nodes, label them, keep them out of plans.
    #[command(subcommand)]
    Node(node::Command),
    /// Make patches, and see which patch is in force where.
    #[command(subcommand)]
    Patch(Box<patch::Command>),
    /// Create the tokens with which nodes enroll.
    #[command(subcommand)]
    Token(token::Command),
    /// Issue and revoke the certificates of people and CI jobs.
    #[command(subcommand)]
    User(user::Command),
    /// Show what a rollout would do; changes nothing.
    Plan(Box<plan::Args>),
    /// Start, watch and steer rollouts.
    #[command(subcommand)]
    Rollout(Box<rollout::Command>),
    /// Run a whole fleet on this machine to try things out.
    Dev(crate::dev::Args),
    /// Make a controller's data: CA, server certificate, first admin.
    Init(server::InitArgs),
    /// Run the controller.
    Serve(server::ServeArgs),
    /// Write a copy of the controller's data while it runs.
    Backup(server::BackupArgs),
    /// Put a backup in place; rollouts come up paused.
    Restore(server::RestoreArgs),
    /// Print a shell's completion script.
    Completion(completion::Args),
    /// Print versions.
    Version,
    /// Print documentation generated from this program.
    #[command(hide = true)]
    Docs(reference::Args),
}

/// Runs a command line and says how the process ends.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let words: Vec<String> = args.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    if words == ["help", "exit-codes"] {
        app::print(&exit::table());
        return Exit::Success.into();
    }
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => {
            // A terminal that can't be written to needs no further message.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Success.into() };
        }
    };
    let app = App::new(cli.globals);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return report(&app, failure::Failure::new(Exit::Internal, "could not start").because(&error));
        }
    };
    let result = runtime.block_on(async {
        match (run(&app, cli.command).await, app.context()) {
            (Err(failure), Ok((_, context))) => Err(client::explain(&context, failure).await),
            (result, _) => result,
        }
    });
    // Reads of standard input that never end must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => report(&app, failure),
    }
}

fn report(app: &App, failure: failure::Failure) -> ExitCode {
    use std::io::Write as _;
    let text = render::failure(&failure, app.paint_err());
    let _ = std::io::stderr().write_all(text.as_bytes());
    failure.exit.into()
}

async fn run(app: &App, command: Command) -> Result<Exit> {
    match command {
        Command::Context(command) => context::run(app, command),
        Command::Artifact(command) => artifact::run(app, command).await,
        Command::Release(command) => release::run(app, command).await,
        Command::Node(command) => node::run(app, command).await,
        Command::Patch(command) => patch::run(app, *command).await,
        Command::Token(command) => token::run(app, command).await,
        Command::User(command) => user::run(app, command).await,
        Command::Plan(args) => plan::run(app, *args).await,
        Command::Rollout(command) => rollout::run(app, *command).await,
        Command::Dev(args) => crate::dev::run(app, args).await,
        Command::Init(args) => server::init(app, args).await,
        Command::Serve(args) => server::serve(args).await,
        Command::Backup(args) => server::backup(app, args).await,
        Command::Restore(args) => server::restore(app, args).await,
        Command::Completion(args) => completion::run(&args),
        Command::Version => version(app).await,
        Command::Docs(args) => reference::run(&args),
    }
}

/// Versions of this program and, where a context leads to one, of the controller.
async fn version(app: &App) -> Result<Exit> {
    app.say(format!("upfleet {VERSION}"));
    let Ok((name, context)) = app.context() else { return Ok(Exit::Success) };
    let Ok(client) = client::Client::connect(&name, &context).await else {
        app.say(format!("controller of context {name}: not reachable at {}", context.address));
        return Ok(Exit::Success);
    };
    let caller = client.users().get_caller(upfleet_api::v1::GetCallerRequest {}).await?.into_inner();
    app.say(format!(
        "controller of context {name}: {} at {}, you are {} ({})",
        caller.controller_version,
        context.address,
        render::id(&caller.name),
        user::role_name(caller.role()),
    ));
    if app.globals.verbose > 0 {
        app.say(format!("key exchange: {}", caller.key_exchange));
    }
    Ok(Exit::Success)
}

/// Now, in seconds since 1970: the one place where the command line reads the clock for display.
pub(crate) fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// The full resource name of an id: `web-01` or `nodes/web-01` is `nodes/web-01`.
pub(crate) fn resource(collection: &str, id: &str) -> String {
    let prefix = format!("{collection}/");
    if id.starts_with(&prefix) { id.to_owned() } else { prefix + id }
}
