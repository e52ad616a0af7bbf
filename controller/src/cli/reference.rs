//! The reference of the command line, generated from its own definition so that it can't go stale.

use clap::{ArgAction, Command, CommandFactory as _};

use super::{Cli, failure::Result};
use crate::exit::{self, Exit};

/// Which page.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// `cli` or `exit-codes`.
    page: Page,
}

/// A page of the reference.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Page {
    /// Commands and flags.
    Cli,
    /// Exit codes.
    ExitCodes,
}

pub(super) fn run(args: &Args) -> Result<Exit> {
    super::app::print(&match args.page {
        Page::Cli => cli(),
        Page::ExitCodes => exit_codes(),
    });
    Ok(Exit::Success)
}

/// `docs/reference/exit-codes.md`.
#[must_use]
pub fn exit_codes() -> String {
    format!(
        "# Exit codes\n\n<!-- Generated from controller/src/exit.rs; `UPFLEET_BLESS=1 cargo test -p upfleet-controller` \
         writes it. -->\n\n{}",
        exit::table()
    )
}

/// `docs/reference/cli.md`.
#[must_use]
pub fn cli() -> String {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut text = String::from(
        "# Command line\n\n<!-- Generated from controller/src/cli; `UPFLEET_BLESS=1 cargo test -p upfleet-controller` \
         writes it. -->\n\n",
    );
    text.push_str(&format!("{}.\n\n## Global options\n\nGood for every command.\n\n", about(&command)));
    let globals: Vec<_> = command.get_arguments().filter(|arg| arg.is_global_set()).cloned().collect();
    text.push_str(&options(globals.iter()));
    for noun in command.get_subcommands() {
        section(&mut text, noun, "upfleet", 2);
    }
    text
}

fn section(text: &mut String, command: &Command, parent: &str, level: usize) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    let name = format!("{parent} {}", command.get_name());
    text.push_str(&format!("{} `{name}`\n\n{}.\n\n", "#".repeat(level), about(command)));
    let aliases: Vec<String> = command.get_visible_aliases().map(|alias| format!("`{alias}`")).collect();
    if !aliases.is_empty() {
        text.push_str(&format!("Also: {}.\n\n", aliases.join(", ")));
    }
    if command.get_subcommands().next().is_none() {
        let usage = command.clone().render_usage().to_string();
        let usage: Vec<&str> = usage.trim_start_matches("Usage:").split_whitespace().collect();
        text.push_str(&format!("```text\n{}\n```\n\n", usage.join(" ")));
    }
    let own = command.get_arguments().filter(|arg| !arg.is_global_set());
    text.push_str(&options(own));
    for child in command.get_subcommands() {
        section(text, child, &name, level + 1);
    }
}

fn options<'a>(arguments: impl Iterator<Item = &'a clap::Arg>) -> String {
    let shown =
        arguments.filter(|arg| !arg.is_hide_set() && arg.get_id() != "help" && arg.get_id() != "version");
    let rows: String = shown.map(|arg| format!("| {} | {} |\n", spelling(arg), meaning(arg))).collect();
    if rows.is_empty() { rows } else { format!("| argument | meaning |\n|---|---|\n{rows}\n") }
}

fn spelling(arg: &clap::Arg) -> String {
    let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let names: Vec<String> =
        arg.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect();
    let value = if takes_value { names.join(" ").replace('|', "\\|") } else { String::new() };
    let mut flags = Vec::new();
    flags.extend(arg.get_short().map(|short| format!("-{short}")));
    flags.extend(arg.get_long().map(|long| format!("--{long}")));
    if flags.is_empty() {
        return format!("`{}`", value);
    }
    format!("`{}`", format!("{} {value}", flags.join(", ")).trim_end())
}

fn meaning(arg: &clap::Arg) -> String {
    let help =
        arg.get_help().map(|help| format!("{}.", help.to_string().trim_end_matches('.'))).unwrap_or_default();
    let mut text = help.replace('|', "\\|").replace('\n', " ");
    let values: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|value| {
            !value.is_hide_set() && matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
        })
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if !values.is_empty() {
        text.push_str(&format!(" ({})", values.join(", ")));
    }
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    if !defaults.is_empty() && takes_value && !arg.is_hide_default_value_set() {
        text.push_str(&format!(" Default: {}.", defaults.join(" ")));
    }
    if let Some(variable) = arg.get_env() {
        text.push_str(&format!(" Environment: `{}`.", variable.to_string_lossy()));
    }
    text
}

fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_manifests_of_the_reference_are_manifests() {
        let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/manifest.md");
        let page = std::fs::read_to_string(page).unwrap();
        let blocks: Vec<&str> =
            page.split("```json\n").skip(1).map(|block| block.split("```").next().unwrap()).collect();
        let kinds: Vec<&str> = blocks
            .iter()
            .map(|block| upfleet_domain::release::parse_manifest(block.as_bytes()).unwrap().kind.as_str())
            .collect();
        assert_eq!(kinds, ["binary", "files", "patch"]);
    }

    #[test]
    fn the_pages_are_those_of_this_program() {
        let reference = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference");
        for (file, text) in [("cli.md", cli()), ("exit-codes.md", exit_codes())] {
            let path = reference.join(file);
            if std::env::var_os("UPFLEET_BLESS").is_some() {
                std::fs::create_dir_all(&reference).unwrap();
                std::fs::write(&path, &text).unwrap();
            }
            let found = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                found == text,
                "{} is stale: UPFLEET_BLESS=1 cargo test -p upfleet-controller --lib reference",
                path.display()
            );
        }
    }
}
