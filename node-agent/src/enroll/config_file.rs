//! Writes the controller's address into the agent's configuration.
//!
//! It goes into a fragment of its own, so that no file that a person keeps is rewritten.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::config::{ControllerConfig, FRAGMENT_DIR, MAIN_FILE};

/// The fragment's name.
const FILE: &str = "controller.toml";

/// The configuration can't be written.
#[derive(Debug, thiserror::Error)]
#[error("could not {operation} `{path}`")]
pub struct ConfigFileError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

#[derive(Serialize)]
struct Fragment<'a> {
    controller: &'a ControllerConfig,
}

const NEW_MAIN_FILE: &str = "\
# What the Upfleet agent may change on this node. See docs/reference/configuration.md.
# The controller's address is in conf.d/controller.toml. Components may be declared here or in conf.d/*.toml:
#
# [[component]]
# name = \"hello\"
# path = \"/opt/hello/hello\"
";

/// Writes `[controller]` into `conf.d/controller.toml` of `dir`; makes `agent.toml` where there is none. Returns
/// the file that was written.
///
/// # Errors
/// Where `dir` can't be written.
pub fn write_controller(
    dir: &Path,
    state_dir: Option<&Path>,
    controller: &ControllerConfig,
) -> Result<PathBuf, ConfigFileError> {
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| ConfigFileError { operation, path, source }
    };
    let fragments = dir.join(FRAGMENT_DIR);
    fs::create_dir_all(&fragments).map_err(failed("create", &fragments))?;
    let main = dir.join(MAIN_FILE);
    if !main.exists() {
        let place = state_dir.map(|dir| format!("state_dir = {:?}\n", dir.display().to_string()));
        let text = format!("{}{NEW_MAIN_FILE}", place.unwrap_or_default());
        replace(&main, &text).map_err(failed("write", &main))?;
    }
    let text = toml::to_string(&Fragment { controller }).expect("two strings");
    let path = fragments.join(FILE);
    let text = format!("# Written by `upfleet-agent enroll`.\n{text}");
    replace(&path, &text).map_err(failed("write", &path))?;
    Ok(path)
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(path.parent().unwrap_or(path))?.sync_all()
}
