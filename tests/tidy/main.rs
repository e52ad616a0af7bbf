//! The house rules as tests. Reads the sources and documents; must not start anything or reach out.

mod docs;
mod edges;
mod sources;
mod workspace;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file under the repository, with its text.
struct Source {
    /// Relative to the repository, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// Whether all of it is test code.
    fn is_test(&self) -> bool {
        self.path.split('/').any(|part| part == "tests" || part == "tests.rs" || part == "testing.rs")
    }

    /// The numbered lines of the program: neither comments nor what follows `#[cfg(test)] mod`.
    fn program(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines: Vec<&str> = self.text.lines().collect();
        let end = lines
            .windows(2)
            .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod "))
            .unwrap_or(lines.len());
        let end = if self.is_test() { 0 } else { end };
        lines
            .into_iter()
            .take(end)
            .enumerate()
            .map(|(index, line)| (index + 1, line))
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

/// Every file below `dirs` (or the file itself) with one of `extensions`, in order of their paths.
fn files(dirs: &[&str], extensions: &[&str]) -> Vec<Source> {
    let mut paths = Vec::new();
    for dir in dirs {
        collect(&root().join(dir), extensions, &mut paths);
    }
    paths.sort();
    paths
        .into_iter()
        .map(|path| Source {
            text: fs::read_to_string(&path).unwrap(),
            path: path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned(),
        })
        .collect()
}

fn collect(path: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap().path();
            if entry.file_name().is_some_and(|name| name != "target" && name != ".venv") {
                collect(&entry, extensions, found);
            }
        }
    } else if path.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted)) {
        found.push(path.to_owned());
    }
}

/// Every Rust file of the workspace.
fn rust() -> Vec<Source> {
    files(&["build.rs", "proto", "domain", "controller", "node-agent", "bench", "tests"], &["rs"])
}

/// Fails with all of `faults`, one per line.
fn none(rule: &str, faults: &[String]) {
    assert!(faults.is_empty(), "{rule}:\n  {}", faults.join("\n  "));
}
