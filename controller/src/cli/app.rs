//! What every command has at hand: global flags, the chosen context, the terminal, the connection.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    time::Duration,
};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{
    client::Client,
    config::{Config, Context},
    failure::{Failure, Result},
    render::{self, Paint},
};
use crate::exit::Exit;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For people, with more columns.
    Wide,
    /// The API's messages as proto3 JSON.
    Json,
    /// One JSON value per line: one per resource, or one per change.
    Jsonl,
}

/// When colours are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set or `TERM=dumb`.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Flags of every command.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// The context to use instead of the selected one.
    #[arg(long, global = true, env = "UPFLEET_CONTEXT", value_name = "NAME", hide_env_values = true)]
    pub context: Option<String>,
    /// How to print results.
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// When to use colours.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub color: Color,
    /// Draw no progress bars and no live tree; print a line per change instead.
    #[arg(long, global = true)]
    pub no_progress: bool,
    /// Print results and errors only.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print more; twice for still more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Never ask; what would have to be asked fails instead.
    #[arg(long, global = true)]
    pub no_input: bool,
    /// Answer yes to questions.
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// The context's name, to permit a change in a protected context.
    #[arg(long, global = true, value_name = "NAME")]
    pub confirm: Option<String>,
    /// Give up after this long, e.g. `30s` or `2h`. A rollout goes on.
    #[arg(long, global = true, value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub timeout: Option<Duration>,
    /// What the change is for, e.g. a change number; recorded with it.
    #[arg(short, long, global = true, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub message: String,
    /// A UUID that makes a repeated command take effect once; a fresh one where not given.
    #[arg(long, global = true, value_name = "UUID")]
    pub request_id: Option<uuid::Uuid>,
}

/// What every command has at hand.
#[derive(Clone, Debug)]
pub struct App {
    /// The flags.
    pub globals: Globals,
    request_id: String,
}

impl App {
    /// From the flags.
    #[must_use]
    pub fn new(globals: Globals) -> Self {
        let request_id = globals.request_id.unwrap_or_else(uuid::Uuid::new_v4).to_string();
        Self { globals, request_id }
    }

    /// The id that makes this invocation's creations happen once.
    #[must_use]
    pub fn request_id(&self) -> String {
        self.request_id.clone()
    }

    /// The same flags with a request id of its own, for a further creation within one command.
    #[must_use]
    pub fn again(&self) -> Self {
        Self { globals: self.globals.clone(), request_id: uuid::Uuid::new_v4().to_string() }
    }

    /// The chosen context.
    ///
    /// # Errors
    /// Where none is chosen, or there is none of that name.
    pub fn context(&self) -> Result<(String, Context)> {
        Ok(Config::load()?.resolve(self.globals.context.as_deref())?)
    }

    /// Connects to read.
    ///
    /// # Errors
    /// Where no context is chosen or the controller can't be reached.
    pub async fn connect(&self) -> Result<Client> {
        let (name, context) = self.context()?;
        Client::connect(&name, &context).await
    }

    /// Connects to change something: in a protected context only with `--confirm NAME`.
    ///
    /// # Errors
    /// As [`App::connect`], and where a protected context was not confirmed.
    pub async fn connect_to_change(&self) -> Result<Client> {
        let (name, context) = self.context()?;
        if context.protected && self.globals.confirm.as_deref() != Some(&name) {
            self.confirm_name(&name)?;
        }
        Client::connect(&name, &context).await
    }

    fn confirm_name(&self, name: &str) -> Result<()> {
        let refused = || {
            Failure::usage(format!("context `{name}` is protected"))
                .hint(format!("repeat the command with --confirm {name}"))
        };
        if !self.may_ask() || self.globals.confirm.is_some() {
            return Err(refused());
        }
        let typed = ask(&format!("Context {name} is protected. Type its name to go on: "));
        if typed == name { Ok(()) } else { Err(refused()) }
    }

    /// Asks before what can't be undone.
    ///
    /// # Errors
    /// Where the answer is no, or nobody can be asked and `--yes` was not given.
    pub fn confirm(&self, question: &str) -> Result<()> {
        if self.globals.yes {
            return Ok(());
        }
        if !self.may_ask() {
            return Err(Failure::usage(format!("{question}: not confirmed")).hint("add --yes"));
        }
        match ask(&format!("{question}? [y/N] ")).to_ascii_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(Failure::usage("nothing was changed")),
        }
    }

    fn may_ask(&self) -> bool {
        !self.globals.no_input && io::stdin().is_terminal() && io::stderr().is_terminal()
    }

    /// Whether results are for programs.
    #[must_use]
    pub fn is_json(&self) -> bool {
        matches!(self.globals.output, Format::Json | Format::Jsonl)
    }

    /// Whether more columns are wanted.
    #[must_use]
    pub fn is_wide(&self) -> bool {
        self.globals.output == Format::Wide
    }

    /// How standard output is painted.
    #[must_use]
    pub fn paint(&self) -> Paint {
        paint(self.globals.color, io::stdout().is_terminal())
    }

    /// How standard error is painted.
    #[must_use]
    pub fn paint_err(&self) -> Paint {
        paint(self.globals.color, io::stderr().is_terminal())
    }

    /// Whether a live picture may be drawn on standard output.
    #[must_use]
    pub fn is_live(&self) -> bool {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        !self.globals.no_progress
            && !self.globals.quiet
            && !self.is_json()
            && !dumb
            && io::stdout().is_terminal()
    }

    /// A bar for bytes on standard error; hidden where that is no terminal.
    #[must_use]
    pub fn byte_bar(&self, total: u64, what: &str) -> indicatif::ProgressBar {
        let hidden = self.globals.no_progress || self.globals.quiet || !io::stderr().is_terminal();
        if hidden {
            return indicatif::ProgressBar::hidden();
        }
        let style = indicatif::ProgressStyle::with_template(
            "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
        )
        .expect("the template is well-formed");
        indicatif::ProgressBar::new(total)
            .with_style(style.progress_chars("=> "))
            .with_message(what.to_owned())
    }

    /// Prints a result for people.
    pub fn say(&self, text: impl AsRef<str>) {
        print(text.as_ref());
    }

    /// Prints what is not the result itself, on standard error; nothing with `--quiet`.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.globals.quiet {
            let _ = writeln!(io::stderr(), "{}", render::safe(text.as_ref().trim_end()));
        }
    }

    /// Prints one API message: as JSON, or as `table` shows it.
    pub fn show<T: Serialize>(&self, message: &T, table: impl FnOnce(Paint) -> String) {
        match self.globals.output {
            Format::Json => print(&json(message, true)),
            Format::Jsonl => print(&json(message, false)),
            Format::Table | Format::Wide => print(&table(self.paint())),
        }
    }

    /// Prints a list: one JSON object with `key`, one line per item, or a table.
    pub fn show_list<T: Serialize>(&self, key: &str, items: &[T], table: impl FnOnce(Paint) -> String) {
        match self.globals.output {
            Format::Json => print(&json(&std::collections::BTreeMap::from([(key, items)]), true)),
            Format::Jsonl => items.iter().for_each(|item| print(&json(item, false))),
            Format::Table | Format::Wide => print(&table(self.paint())),
        }
    }
}

/// Proto3 JSON of a message.
pub(super) fn json<T: Serialize>(message: &T, pretty: bool) -> String {
    let text = if pretty { serde_json::to_string_pretty(message) } else { serde_json::to_string(message) };
    text.expect("API messages have string keys and valid times")
}

/// Prints a line; a reader that went away (`| head`) ends the program as it would end any other.
pub(super) fn print(text: &str) {
    let mut out = io::stdout().lock();
    if writeln!(out, "{}", render::safe(text.trim_end_matches('\n'))).and_then(|()| out.flush()).is_err() {
        std::process::exit(i32::from(Exit::Success.code()));
    }
}

fn ask(question: &str) -> String {
    let _ = write!(io::stderr(), "{question}");
    let mut line = String::new();
    // An unreadable answer is no answer.
    let _ = io::stdin().lock().read_line(&mut line);
    line.trim().to_owned()
}

fn paint(color: Color, terminal: bool) -> Paint {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    match color {
        Color::Always => Paint::COLORED,
        Color::Never => Paint::PLAIN,
        Color::Auto if set("NO_COLOR") || dumb => Paint::PLAIN,
        Color::Auto if terminal || set("CLICOLOR_FORCE") => Paint::COLORED,
        Color::Auto => Paint::PLAIN,
    }
}
