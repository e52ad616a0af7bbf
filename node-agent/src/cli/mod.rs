//! The command line of `upfleet-agent`.
//!
//! What the commands print goes to standard output; logs and errors go to standard error. Exit codes: 0 done,
//! 1 failed, 2 wrong usage or configuration, 4 a person is needed, 5 still under way, 9 refused as things stand,
//! 69 agent or controller can't be reached, 77 not permitted, 79 handed over to another version of the agent.

mod apply;
mod check_config;
mod check_stack;
mod diagnostics;
mod enroll;
mod guard;
mod history;
mod jvms;
mod logging;
mod offline;
mod render;
mod rollback;
mod run;
mod stack;
mod status;
mod trial;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{config, formats};

/// The exit codes, as documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// A person is needed.
    NeedsPerson = 4,
    /// Still under way.
    Waiting = 5,
    /// Refused as things stand.
    Refused = 9,
    /// The agent has handed over to another version: start what lies in its place.
    HandedOver = crate::itself::EXIT_HANDED_OVER,
    /// Agent or controller can't be reached.
    Unreachable = 69,
    /// Not permitted.
    NotPermitted = 77,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A command that did not do what it was to do.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    error: anyhow::Error,
    hint: Option<String>,
}

impl Failure {
    fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(Exit::Failed, error)
    }
}

type Done = Result<Exit, Failure>;

/// The node agent of Upfleet.
#[derive(Debug, Parser)]
#[command(name = "upfleet-agent", version = formats::VERSION, disable_version_flag = true, infer_subcommands = false)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// Directory of agent.toml and conf.d/
    #[arg(long, global = true, env = "UPFLEET_AGENT_CONFIG", hide_env_values = true, value_name = "DIR", default_value = config::DEFAULT_DIR)]
    config: PathBuf,
    /// How logs are written [default: text on a terminal, else json]
    #[arg(long, global = true, value_name = "FORMAT")]
    log: Option<LogFormat>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Json,
    Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join a fleet with a token from `upfleet token create`
    Enroll(enroll::Enroll),
    /// Serve this node until asked to end
    Run(run::Run),
    /// Show what this node runs; works with the controller down
    Status(status::Show),
    /// Put a kept version back on this node and hold it there
    Rollback(rollback::Rollback),
    /// Apply releases from a file on this node, where the component's configuration permits it, and hold it there
    Apply(apply::Apply),
    /// Show what happened to components of this node, also what was rolled back
    History(history::Show),
    /// Show the patch stacks of this node and what the running JVMs say of them
    Stack(stack::Show),
    /// Check that the patches which a JVM is started with are what they were; for units, before each start
    CheckStack(check_stack::CheckStack),
    /// List the JVMs that run on this node
    Jvms(jvms::Show),
    /// Check the configuration and show every mistake in it
    CheckConfig,
    /// Gather what is needed to look into a problem; holds no keys
    Diagnostics(diagnostics::Diagnostics),
    /// Show that this executable can do its work on this node: reads everything, changes nothing, and opens a session with the
    /// controller that takes no orders
    Trial,
    /// Watch the upgrade of the agent itself; started by the agent's unit or by `run --supervised`
    #[command(hide = true)]
    Guard(guard::Guard),
    /// Supervise one component; started by the agent
    #[command(hide = true)]
    Shim {
        /// The shim's directory
        #[arg(long)]
        dir: PathBuf,
    },
    /// Act on one JVM as its user; started by the agent
    #[command(hide = true)]
    JvmHelper,
    /// Show which formats of files this version reads and writes, as JSON
    #[command(hide = true)]
    Formats,
    /// Show the version
    Version,
}

/// The command line's own definition, from which the reference is generated and documented commands are checked.
#[must_use]
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Parses the command line and runs it.
#[must_use]
pub fn main() -> ExitCode {
    // Started by a shim with the component's environment, which must not be taken for options.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|word| word == crate::shim::pass::WORD) {
        return crate::shim::pass::main(arguments);
    }
    let cli = Cli::parse();
    // The shim is another program in the same file: no runtime, no logs of the agent.
    if let Command::Shim { dir } = &cli.command {
        return crate::shim::main(dir);
    }
    // So is the helper, which must have a single thread.
    if let Command::JvmHelper = &cli.command {
        return crate::jvm::helper::main();
    }
    let done = match cli.command {
        Command::Enroll(enroll) => enroll.run(&cli.global),
        Command::Run(run) => run.run(&cli.global),
        Command::Status(show) => show.run(&cli.global),
        Command::Rollback(rollback) => rollback.run(&cli.global),
        Command::Apply(apply) => apply.run(&cli.global),
        Command::History(show) => show.run(&cli.global),
        Command::Stack(show) => show.run(&cli.global),
        Command::Jvms(show) => show.run(&cli.global),
        Command::CheckStack(check) => check.run(&cli.global),
        Command::Trial => trial::run(&cli.global),
        Command::Guard(guard) => guard.run(&cli.global),
        Command::CheckConfig => check_config::run(&cli.global),
        Command::Diagnostics(diagnostics) => diagnostics.run(&cli.global),
        Command::Shim { .. } | Command::JvmHelper => Ok(Exit::Done),
        Command::Formats => show_formats(),
        Command::Version => {
            println!("upfleet-agent {}", formats::VERSION);
            Ok(Exit::Done)
        }
    };
    match done {
        Ok(exit) => exit.into(),
        Err(failure) => {
            eprintln!("error: {}", crate::error::chain(failure.error.as_ref()));
            if let Some(hint) = failure.hint {
                eprintln!("hint: {hint}");
            }
            failure.exit.into()
        }
    }
}

fn show_formats() -> Done {
    println!("{}", serde_json::to_string(&formats::Formats::own())?);
    Ok(Exit::Done)
}

/// The configuration, or every problem in it.
fn load(global: &Global) -> Result<config::Config, Failure> {
    config::Config::load(&global.config).map_err(|error| {
        let hint = "upfleet-agent check-config shows all mistakes; --config DIR reads another directory";
        Failure::new(Exit::Usage, error).hint(hint)
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_rollback_says_that_it_is_local() {
        assert!(Cli::try_parse_from(["upfleet-agent", "rollback", "web"]).is_err());
        assert!(Cli::try_parse_from(["upfleet-agent", "rollback", "--local", "web", "--to", "1.0"]).is_ok());
    }

    #[test]
    fn a_token_comes_one_way() {
        let parse = |args: &[&str]| {
            Cli::try_parse_from(["upfleet-agent", "enroll"].into_iter().chain(args.iter().copied()))
        };
        assert!(parse(&[]).is_err());
        assert!(parse(&["--token", "x", "--token-file", "y"]).is_err());
        assert!(parse(&["--token-file", "-", "--name", "web-01"]).is_ok());
    }
}
