//! Rules about documents: links lead somewhere, generated pages are current, the README's commands are marked.

use std::{env, fmt::Write as _, fs, path::Path};

use clap::CommandFactory as _;
use upfleet_controller::cli::Cli;
use upfleet_domain::reason::{Class, ReasonCode};

use crate::{Source, files, none, root};

fn documents() -> Vec<Source> {
    files(
        &[
            "docs",
            "README.md",
            "CONTRIBUTING.md",
            "ARCHITECTURE.md",
            "CHANGELOG.md",
            "SECURITY.md",
            "dist",
            "examples",
        ]
        .into_iter()
        .filter(|path| root().join(path).exists())
        .collect::<Vec<_>>(),
        &["md"],
    )
}

/// The targets of `[text](target)`.
fn links(text: &str) -> Vec<&str> {
    text.match_indices("](")
        .filter_map(|(start, _)| text[start + 2..].split_once(')').map(|(target, _)| target))
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let mut faults = Vec::new();
    for file in documents() {
        let dir = root().join(&file.path);
        let dir = dir.parent().unwrap();
        for target in links(&file.text) {
            let path = target.split('#').next().unwrap();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            if !dir.join(path).exists() {
                faults.push(format!("{}: {target}", file.path));
            }
        }
    }
    none("relative links lead to files", &faults);
}

#[test]
fn the_book_has_every_page() {
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    let faults: Vec<_> = documents()
        .iter()
        .filter_map(|file| file.path.strip_prefix("docs/"))
        .filter(|page| *page != "SUMMARY.md" && !page.ends_with("0000-template.md"))
        .filter(|page| !links(&summary).contains(page))
        .map(str::to_owned)
        .collect();
    none("docs/SUMMARY.md links every page", &faults);
}

#[test]
fn the_readme_marks_what_the_gate_runs() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for mark in ["<!-- ci:main-job -->\n```sh\n", "<!-- ci:test -->\n```sh\n"] {
        assert_eq!(readme.matches(mark).count(), 1, "{mark}");
    }
}

#[test]
fn promises_name_tests_that_exist() {
    let page = fs::read_to_string(root().join("docs/promises.md")).unwrap();
    let mut faults = Vec::new();
    for name in page.split('`').filter(|word| word.contains(".rs::")) {
        let (path, test) = name.split_once("::").unwrap();
        let text = fs::read_to_string(root().join(path)).unwrap_or_default();
        if !text.contains(&format!("fn {test}(")) {
            faults.push(name.to_owned());
        }
    }
    none("docs/promises.md names tests that exist", &faults);
    assert!(page.matches(".rs::").count() > 20, "the page names its proofs");
}

/// Compares a generated page with the file, or writes it where `UPFLEET_BLESS=1`.
fn current(path: &str, text: &str) {
    let file = root().join(path);
    if env::var_os("UPFLEET_BLESS").is_some() {
        fs::create_dir_all(file.parent().unwrap_or(Path::new("."))).unwrap();
        fs::write(&file, text).unwrap();
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    assert!(found == text, "{path} is not what the code says; run `UPFLEET_BLESS=1 cargo test --test tidy`");
}

fn class(class: Class) -> &'static str {
    match class {
        Class::Information => "—",
        Class::InvalidArgument => "INVALID_ARGUMENT",
        Class::NotFound => "NOT_FOUND",
        Class::AlreadyExists => "ALREADY_EXISTS",
        Class::FailedPrecondition => "FAILED_PRECONDITION",
        Class::Aborted => "ABORTED",
        Class::Unauthenticated => "UNAUTHENTICATED",
        Class::PermissionDenied => "PERMISSION_DENIED",
        Class::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Class::Unavailable => "UNAVAILABLE",
        Class::DataLoss => "DATA_LOSS",
        Class::Unimplemented => "UNIMPLEMENTED",
        Class::Internal => "INTERNAL",
    }
}

#[test]
fn reasons_are_documented() {
    let mut page = String::from(
        "# Reasons\n\n<!-- Generated from domain/src/reason.rs; `UPFLEET_BLESS=1 cargo test --test tidy` rewrites it. -->\n\n\
         Why something waits, failed or was refused. The code is in `google.rpc.ErrorInfo.reason` of an error (domain \
         `upfleet`), and in the `reason` of every state; the values in braces are in its `metadata`.\n\n\
         | code | sentence | gRPC code of an error | who acts next | hint |\n|---|---|---|---|---|\n",
    );
    for code in ReasonCode::ALL {
        writeln!(
            page,
            "| `{code}` | {} | {} | {} | {} |",
            code.template().replace('|', "\\|"),
            class(code.class()),
            code.actor().as_str(),
            code.hint().unwrap_or("").replace('|', "\\|"),
        )
        .unwrap();
    }
    current("docs/reference/reasons.md", &page);
}

/// The lines of shell blocks that call `program`, without what follows a comment, a pipe or a redirection.
fn commands<'a>(file: &'a Source, program: &'a str) -> impl Iterator<Item = Vec<&'a str>> {
    let mut inside = false;
    file.text.lines().filter_map(move |line| {
        if let Some(fence) = line.trim_start().strip_prefix("```") {
            inside = fence == "sh" || fence == "console";
            return None;
        }
        let words: Vec<_> =
            line.split_whitespace().take_while(|word| !["#", "|", ">", "&&"].contains(word)).collect();
        let name = words.first()?.rsplit('/').next()?;
        (inside && name == program).then_some(words)
    })
}

/// Joins what a shell would join: `"a b"` is one word.
fn unquoted(words: &[&str]) -> Vec<String> {
    let mut joined: Vec<String> = Vec::new();
    let mut open = false;
    for word in words {
        match joined.last_mut().filter(|_| open) {
            Some(last) => {
                last.push(' ');
                last.push_str(word);
            }
            None => joined.push((*word).to_owned()),
        }
        open ^= word.matches('"').count() % 2 == 1;
    }
    joined.into_iter().map(|word| word.replace('"', "")).collect()
}

#[test]
fn documented_commands_are_commands() {
    let mut faults = Vec::new();
    for file in documents() {
        for (program, command) in
            [("upfleet", Cli::command()), ("upfleet-agent", upfleet_agent::cli::command())]
        {
            for words in commands(&file, program) {
                if let Err(error) = command.clone().try_get_matches_from(unquoted(&words))
                    && error.use_stderr()
                {
                    faults.push(format!("{}: {}\n{error}", file.path, words.join(" ")));
                }
            }
        }
    }
    none("every command in a document parses", &faults);
}

#[test]
fn the_agents_command_line_is_documented() {
    let mut page = String::from(
        "# Command line of the agent\n\n<!-- Generated from node-agent/src/cli; `UPFLEET_BLESS=1 cargo test --test tidy` \
         rewrites it. -->\n\nWhat is common to all commands, and the exit codes, come first.\n\n\
         | exit | meaning |\n|---|---|\n| 0 | done |\n| 1 | failed |\n| 2 | wrong usage or configuration |\n\
         | 4 | a person is needed |\n| 5 | still under way |\n| 9 | refused as things stand |\n\
         | 69 | the agent or the controller can't be reached |\n| 77 | not permitted |\n",
    );
    let mut command = upfleet_agent::cli::command().term_width(100);
    command.build();
    let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help");
    for sub in shown {
        // `build` gives subcommands the whole name for their usage.
        let help = sub.clone().render_long_help().to_string();
        writeln!(page, "\n## `upfleet-agent {}`\n\n```text\n{}\n```", sub.get_name(), help.trim_end())
            .unwrap();
    }
    let page: String = page.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    current("docs/reference/agent-cli.md", &page);
}
