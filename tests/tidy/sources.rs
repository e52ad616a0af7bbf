//! Rules about Rust files: headers, sizes, and what must not be written.

use crate::{files, none, rust};

/// No file is longer; tests move to `foo/tests.rs` beyond it.
const MAX_LINES: usize = 600;
/// Half of all files are no longer than this.
const MEDIAN_LINES: usize = 200;
/// No function is longer.
const MAX_FUNCTION_LINES: usize = 80;

#[test]
fn every_file_opens_with_its_job() {
    let faults: Vec<_> =
        rust().iter().filter(|file| !file.text.starts_with("//! ")).map(|file| file.path.clone()).collect();
    none("open with `//!`: the file's job, and what it must not do", &faults);
}

#[test]
fn files_are_short() {
    let files = rust();
    let faults: Vec<_> = files
        .iter()
        .map(|file| (file.text.lines().count(), &file.path))
        .filter(|(lines, _)| *lines > MAX_LINES)
        .map(|(lines, path)| format!("{path}: {lines} lines"))
        .collect();
    none("at most 600 lines a file", &faults);
    let mut lengths: Vec<_> = files.iter().map(|file| file.text.lines().count()).collect();
    lengths.sort_unstable();
    let median = lengths[lengths.len() / 2];
    assert!(median <= MEDIAN_LINES, "the median file has {median} lines");
}

#[test]
fn functions_are_short() {
    let mut faults = Vec::new();
    for file in rust() {
        let lines: Vec<&str> = file.text.lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let code = line.trim_start();
            let is_function =
                ["fn ", "pub fn ", "async fn ", "pub async fn ", "pub(crate) fn ", "pub(super) fn "]
                    .iter()
                    .any(|prefix| code.starts_with(prefix));
            if !is_function || code.ends_with('}') || code.ends_with(';') {
                continue;
            }
            // rustfmt puts the closing brace at the indentation of the `fn`.
            let close = format!("{}}}", " ".repeat(indent));
            let length = lines[start..].iter().position(|line| *line == close).map_or(0, |end| end + 1);
            if length > MAX_FUNCTION_LINES {
                faults.push(format!("{}:{}: {length} lines", file.path, start + 1));
            }
        }
    }
    none("at most 80 lines a function", &faults);
}

/// Written in two parts, so that this file does not find itself.
fn banned() -> Vec<String> {
    [(".unwr", "ap()"), ("to", "do!("), ("unimplem", "ented!("), ("TO", "DO"), ("FIX", "ME"), ("db", "g!(")]
        .iter()
        .map(|(head, tail)| format!("{head}{tail}"))
        .collect()
}

#[test]
fn programs_neither_unwrap_nor_leave_things_to_do() {
    let banned = banned();
    let mut faults = Vec::new();
    for file in rust() {
        for (number, line) in file.program() {
            for word in banned.iter().filter(|word| line.contains(word.as_str())) {
                faults.push(format!("{}:{number}: {word}", file.path));
            }
        }
    }
    none("no unwrap, and nothing left to do, outside tests", &faults);
}

#[test]
fn lints_are_expected_with_a_reason_never_allowed() {
    let mut faults = Vec::new();
    for file in rust() {
        for (number, line) in file.text.lines().enumerate() {
            let code = line.trim_start();
            if code.starts_with(concat!("#[al", "low(")) || code.starts_with(concat!("#![al", "low(")) {
                faults.push(format!("{}:{}: use #[expect(…, reason = …)]", file.path, number + 1));
            }
        }
    }
    none("no lint is switched off silently", &faults);
}

#[test]
fn nothing_names_a_machine() {
    let mut sources = rust();
    sources.extend(files(
        &[
            "docs",
            "README.md",
            "CONTRIBUTING.md",
            "ARCHITECTURE.md",
            "CHANGELOG.md",
            "SECURITY.md",
            "tests",
            ".ci",
            "dist",
        ],
        &["md", "toml", "py", "txt", "yaml", "sh"],
    ));
    let paths = [concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/wo", "rk/")];
    let mut faults = Vec::new();
    for file in &sources {
        for (number, line) in file.text.lines().enumerate() {
            // The kernel's word for a process's root directory is none.
            let line = line.replace(concat!("/ro", "ot/…"), "").replace(concat!("}/ro", "ot/"), "");
            if paths.iter().any(|path| line.contains(path)) {
                faults.push(format!("{}:{}", file.path, number + 1));
            }
        }
    }
    none("no path of somebody's machine", &faults);
}
