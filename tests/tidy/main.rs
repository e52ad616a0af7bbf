//! The house rules as tests. Reads the sources and documents; must not start anything or reach out.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

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
    /// Whether all of it is test code.
    test: bool,
}

impl Source {
    /// Where the modules lie that this file declares under `#[cfg(test)]`, without `.rs`.
    fn test_modules(&self) -> Vec<String> {
        let (dir, name) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        let stem = name.trim_end_matches(".rs");
        let dir =
            if ["mod", "lib", "main"].contains(&stem) { dir.to_owned() } else { format!("{dir}/{stem}") };
        let lines: Vec<&str> = self.text.lines().collect();
        let declared = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]").filter_map(|pair| {
            let words: Vec<&str> = pair[1].split_whitespace().collect();
            words.last()?.strip_suffix(';').filter(|_| words.contains(&"mod"))
        });
        declared.map(|module| format!("{dir}/{module}")).collect()
    }

    /// The numbered lines of the program: neither comments nor what follows `#[cfg(test)] mod`.
    fn program(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines: Vec<&str> = self.text.lines().collect();
        let end = lines
            .windows(2)
            .position(|pair| {
                pair[0] == "#[cfg(test)]"
                    && (pair[1].starts_with("mod ") || pair[1].starts_with("pub(super) mod "))
            })
            .unwrap_or(lines.len());
        let end = if self.test { 0 } else { end };
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
    let mut sources = read(dirs, extensions);
    let modules: Vec<String> = sources.iter().flat_map(Source::test_modules).collect();
    for source in &mut sources {
        let within = |module: &String| {
            source.path.strip_prefix(module).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        };
        source.test = source.path.starts_with("tests/")
            || source.path.contains("/tests/")
            || modules.iter().any(within);
    }
    sources
}

fn read(dirs: &[&str], extensions: &[&str]) -> Vec<Source> {
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
            test: false,
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
