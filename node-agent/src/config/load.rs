//! Reading the files: which there are, what each may hold, and how they become one [`Config`].
//!
//! All problems of all files are collected, so that one run of `check-config` shows them all.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{ComponentConfig, Config, ControllerConfig, FRAGMENT_DIR, FetchConfig, MAIN_FILE, check::check};

/// A file larger than this is no configuration.
const MAX_FILE: u64 = 1024 * 1024;

/// One thing that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file it is in.
    pub file: PathBuf,
    /// What it is about, e.g. `component "web": run.command`; empty for the file as a whole.
    pub key: String,
    /// What is wrong, and what to do about it.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file.display())?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)
    }
}

/// A configuration that can't be used. The one that was in force before stays so. An operator of the node
/// can mend it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// All that was found.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration can't be used")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigError {}

/// What is wrong with the configuration in `dir`; nothing if it can be used.
#[must_use]
pub fn check_config(dir: &Path) -> Vec<Problem> {
    load(dir).err().map(|error| error.problems).unwrap_or_default()
}

/// The main file. A fragment is the same without the directories and `[fetch]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MainFile {
    #[serde(default = "default_state_dir")]
    state_dir: PathBuf,
    #[serde(default = "default_run_dir")]
    run_dir: PathBuf,
    controller: Option<ControllerConfig>,
    #[serde(default)]
    fetch: FetchConfig,
    #[serde(default, rename = "component")]
    components: Vec<ComponentConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fragment {
    controller: Option<ControllerConfig>,
    #[serde(default, rename = "component")]
    components: Vec<ComponentConfig>,
}

fn default_state_dir() -> PathBuf {
    "/var/lib/upfleet-agent".into()
}

fn default_run_dir() -> PathBuf {
    "/run/upfleet-agent".into()
}

/// A component and the file it came from.
pub(super) struct Sourced {
    pub(super) file: PathBuf,
    pub(super) component: ComponentConfig,
}

pub(super) fn load(dir: &Path) -> Result<Config, ConfigError> {
    let main_path = dir.join(MAIN_FILE);
    let mut problems = Vec::new();
    let main: MainFile = match parse(&main_path) {
        Ok(main) => main,
        Err(problem) => return Err(ConfigError { problems: vec![problem] }),
    };
    let sourced = |file: &Path, components: Vec<ComponentConfig>| {
        let file = file.to_owned();
        components.into_iter().map(move |component| Sourced { file: file.clone(), component })
    };
    let mut controller = main.controller;
    let mut components: Vec<Sourced> = sourced(&main_path, main.components).collect();
    for path in fragments(dir, &mut problems) {
        match parse::<Fragment>(&path) {
            Ok(fragment) => {
                if controller.is_some() && fragment.controller.is_some() {
                    let text = "is in another file already; remove one of them".to_owned();
                    problems.push(Problem { file: path.clone(), key: "controller".into(), text });
                }
                controller = controller.or(fragment.controller);
                components.extend(sourced(&path, fragment.components));
            }
            Err(problem) => problems.push(problem),
        }
    }
    let mut config = Config {
        state_dir: main.state_dir,
        run_dir: main.run_dir,
        controller,
        fetch: main.fetch,
        components: Vec::new(),
    };
    check(&main_path, &config, &components, &mut problems);
    if !problems.is_empty() {
        return Err(ConfigError { problems });
    }
    config.components = components.into_iter().map(|sourced| sourced.component).collect();
    Ok(config)
}

/// The fragments by name. Files that do not end in `.toml` (an editor's back-ups) are passed over.
fn fragments(dir: &Path, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let folder = dir.join(FRAGMENT_DIR);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            let text = format!("can't be listed: {error}");
            problems.push(Problem { file: folder, key: String::new(), text });
            return Vec::new();
        }
    };
    let is_fragment = |path: &PathBuf| {
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        !hidden && path.extension().is_some_and(|extension| extension == "toml")
    };
    let mut paths: Vec<PathBuf> =
        entries.filter_map(Result::ok).map(|entry| entry.path()).filter(is_fragment).collect();
    paths.sort();
    paths
}

fn parse<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, Problem> {
    let problem = |text: String| Problem { file: path.to_owned(), key: String::new(), text };
    let length = std::fs::metadata(path).map_err(|error| problem(format!("can't be read: {error}")))?.len();
    if length > MAX_FILE {
        return Err(problem(format!("is {length} bytes long; at most {MAX_FILE} are read")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| problem(format!("can't be read: {error}")))?;
    toml::from_str(&text).map_err(|error| problem(describe(&text, &error)))
}

/// The parser's message with its line and the table it is in, on one line.
fn describe(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().trim().replace('\n', "; ");
    match error.span() {
        Some(span) => {
            let line = text.get(..span.start).map_or(1, |before| before.matches('\n').count() + 1);
            format!("line {line}: {message}")
        }
        None => message,
    }
}
