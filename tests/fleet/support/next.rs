//! The same tree built once more as the next version: an agent and a controller that differ from the current ones in
//! version, in what they write to the disk and in what they say on the wire.
//!
//! They lie beside the current ones under names of their own, and share all their dependencies. cargo decides whether
//! anything has to be built; with everything built that takes half a second.
//!
//! The whole suite runs with others' programs where `UPFLEET_TEST_AGENT` or `UPFLEET_TEST_CONTROLLER` names one:
//! a path, or `next` for what is built here.

use std::{path::PathBuf, process::Command, sync::OnceLock};

use super::process::binary;

/// What the feature `next` makes of the version.
pub const VERSION: &str = "0.2.0";

/// The agent of the next version.
pub fn agent() -> PathBuf {
    built();
    binary("upfleet-agent-next")
}

/// The controller of the next version, which is its command line, too.
pub fn controller() -> PathBuf {
    built();
    binary("upfleet-next")
}

/// The agent of this version.
pub fn current_agent() -> PathBuf {
    binary("upfleet-agent")
}

/// The controller of this version, which is its command line, too.
pub fn current_controller() -> PathBuf {
    binary("upfleet")
}

/// The agent that nodes run unless a test says otherwise.
pub fn wanted_agent() -> PathBuf {
    wanted("UPFLEET_TEST_AGENT", current_agent, agent)
}

/// The controller that fleets have unless a test says otherwise.
pub fn wanted_controller() -> PathBuf {
    wanted("UPFLEET_TEST_CONTROLLER", current_controller, controller)
}

fn wanted(variable: &str, current: fn() -> PathBuf, next: fn() -> PathBuf) -> PathBuf {
    match std::env::var_os(variable) {
        None => current(),
        Some(name) if name == "next" => next(),
        Some(path) => path.into(),
    }
}

/// Builds both where they are not what the tree says, once per test process; cargo's own lock keeps others out. With
/// `UPFLEET_TEST_BUILT` in the environment they are taken as they lie there.
fn built() {
    static BUILT: OnceLock<()> = OnceLock::new();
    if std::env::var_os("UPFLEET_TEST_BUILT").is_none() {
        BUILT.get_or_init(build);
    }
}

fn build() {
    // Tests lie in <target>/<profile>/deps.
    let test = std::env::current_exe().expect("the test runs from a file");
    let mut above = test.ancestors().skip(2);
    let profile = above.next().and_then(|dir| dir.file_name()).and_then(|name| name.to_str());
    let target = above.next().expect("tests lie in target/<profile>/deps");
    let profile = match profile {
        None | Some("debug") => "dev",
        Some(name) => name,
    };
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--quiet", "--offline", "--locked", "--profile", profile, "--target-dir"])
        .arg(target)
        .args(["-p", "upfleet-agent", "-p", "upfleet-controller"])
        .args(["--features", "next"])
        .args(["--bin", "upfleet-agent-next", "--bin", "upfleet-next"]);
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
