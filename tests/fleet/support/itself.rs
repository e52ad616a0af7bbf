//! Agents as releases: what a test fleet's agents run from and are upgraded to.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use upfleet_agent::processes;
use upfleet_domain::digest::Digest;

use super::{
    node::Node,
    process::{binary, run},
};

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

/// A program without what only debuggers read.
pub fn stripped(program: &Path, to: &Path) -> PathBuf {
    if !to.exists() {
        let temporary = to.with_extension("tmp");
        run(Command::new("strip").arg("-o").arg(&temporary).arg(program)).success();
        fs::rename(temporary, to).unwrap();
    }
    to.to_owned()
}

/// The marker of an upgrade of the node's agent.
pub fn marker(node: &Node) -> PathBuf {
    node.dir().join("state/itself/marker.json")
}

/// Where the node's agent is run from.
pub fn place(node: &Node) -> PathBuf {
    node.dir().join("bin").join(AGENT)
}

/// SHA-256 of what lies in the agent's place.
pub fn installed(node: &Node) -> Option<Digest> {
    fs::read(place(node)).ok().map(|bytes| Digest::of(&bytes))
}

/// Whether that version lies in the agent's place, without reading it: a version is put there by a link.
pub fn lies(node: &Node, digest: Digest) -> bool {
    let version = place(node).with_file_name(format!(".upfleet/{AGENT}/versions/{digest}"));
    let of = |path: PathBuf| fs::metadata(path).ok().as_ref().map(processes::FileId::of);
    let kept = of(version);
    kept.is_some() && kept == of(place(node))
}

/// Whether the agent that runs is the file that lies in its place.
pub fn runs_installed(node: &Node) -> bool {
    let lies = fs::metadata(place(node)).ok().as_ref().map(processes::FileId::of);
    let runs = node.find_own_agent().and_then(processes::executable);
    lies.is_some() && lies == runs
}

/// The node's processes that are agents in one way or another, each with its command line: parents, agents, guards,
/// trials; no shims.
pub fn processes_of(node: &Node) -> Vec<(u32, String)> {
    let directory = node.dir().join("etc").display().to_string();
    let line = |pid: u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.split(' ').any(|word| word == directory).then(|| (pid, line.trim().to_owned()))
    };
    processes::all()
        .into_iter()
        .filter(|(_, stat)| stat.is_running())
        .filter_map(|(pid, _)| line(pid))
        .collect()
}

/// What of those is left besides one parent and one agent.
pub fn strays(node: &Node) -> Vec<(u32, String)> {
    let mut all = processes_of(node);
    let mut spare = |wanted: &dyn Fn(&str) -> bool| {
        if let Some(at) = all.iter().position(|(_, line)| wanted(line)) {
            all.remove(at);
        }
    };
    spare(&|line| line.contains(" run --supervised"));
    spare(&|line| line.ends_with(" run") || line.contains(" run --log"));
    all
}
