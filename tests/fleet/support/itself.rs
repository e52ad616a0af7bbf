//! Agents as releases: what a test fleet's agents run from and are upgraded to.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use super::process::{binary, run};

/// The component that is the agent.
pub const AGENT: &str = "upfleet-agent";

/// The agent of this build without what only debuggers read, so that copies of it are small; made once per fleet.
pub fn current(dir: &Path) -> PathBuf {
    stripped(&binary(AGENT), &dir.join("agent-current"))
}

/// The same program with another digest: what follows the last section of an executable is nobody's.
pub fn variant(dir: &Path, label: &str) -> Vec<u8> {
    let mut bytes = fs::read(current(dir)).unwrap();
    write!(bytes, "\n{label}\n").unwrap();
    bytes
}

fn stripped(program: &Path, to: &Path) -> PathBuf {
    if !to.exists() {
        let temporary = to.with_extension("tmp");
        run(Command::new("strip").arg("-o").arg(&temporary).arg(program)).success();
        fs::rename(temporary, to).unwrap();
    }
    to.to_owned()
}
