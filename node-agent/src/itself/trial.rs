//! The trial of a new agent: before it is switched in it shows on this node that it starts, reads all that the old one has
//! written, and gets through to the controller.
//!
//! [`run`] is the old agent's side: it starts the new executable as a process of its own and believes only what that did.
//! [`show`] is the new agent's side: it reads everything, writes nothing, and opens a session that takes no orders.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
};
use upfleet_domain::reason::{Reason, ReasonCode};

use super::marker::Markers;
use crate::{
    cli::Exit,
    component,
    config::Config,
    formats::{Formats, readable},
    identity::Identities,
    journal,
    shim::spec,
    transport::{self, Connector},
};

/// How long a new agent may take to show all that.
const LIMIT: Duration = Duration::from_secs(60);
/// How much of what it says is read, in bytes.
const MOST: u64 = 64 * 1024;
/// How many characters of its last words are in the reason.
const LAST_WORDS: usize = 300;

/// Why a new agent is not switched in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The cause.
    pub reason: Reason,
    /// Whether all it lacked was a session with the controller.
    pub unreached: bool,
}

impl From<Reason> for Failed {
    fn from(reason: Reason) -> Self {
        Self { reason, unreached: false }
    }
}

fn failed(problem: String) -> Failed {
    Reason::new(ReasonCode::AgentTrialFailed).with("problem", problem).into()
}

/// Has the agent in `program` show what it can, with the configuration in `config_dir`.
///
/// # Errors
/// [`ReasonCode::AgentTrialFailed`] with what it said last; `AGENT_FORMAT_UNREADABLE`.
pub async fn run(program: &Path, config_dir: &Path) -> Result<Formats, Failed> {
    let mut command = Command::new(program);
    command.args(["trial", "--log", "text", "--config"]).arg(config_dir);
    command.env_clear().envs(crate::processes::environment()).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Its group ends with it: what it starts is nobody's afterwards.
    command.process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| failed(format!("it can't be executed: {error}")))?;
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(failed("it has no output".to_owned()));
    };
    let group = child.id();
    let mut said = (Vec::new(), Vec::new());
    let told = async {
        let (read, read_too) = tokio::join!(hear(out, &mut said.0), hear(err, &mut said.1));
        read.and(read_too)?;
        child.wait().await
    };
    let ended = tokio::time::timeout(LIMIT, told).await;
    // One that has not ended yet is still the group's first; of another one the number may be somebody else's.
    if let Some(group) = group.filter(|_| ended.is_err()).and_then(crate::processes::as_pid) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let words = last_words(&said.1);
    match ended {
        Err(_) => Err(failed(format!("it did not show within {} s that it can{words}", LIMIT.as_secs()))),
        Ok(Err(error)) => Err(failed(format!("it could not be waited for: {error}"))),
        Ok(Ok(status)) if status.code() == Some(Exit::Unreachable as i32) => Err(Failed {
            unreached: true,
            ..failed(format!("it gets no session with the controller{words}"))
        }),
        Ok(Ok(status)) if !status.success() => Err(failed(format!("its trial ended with {status}{words}"))),
        Ok(Ok(_)) => {
            let formats: Formats = serde_json::from_slice(&said.0)
                .map_err(|error| failed(format!("it does not speak like an agent: {error}{words}")))?;
            // It takes over what this agent wrote, and this one takes that back if it has to.
            readable(&Formats::own(), &formats)?;
            readable(&formats, &Formats::own())?;
            Ok(formats)
        }
    }
}

/// Reads all that is said, and keeps the beginning.
async fn hear(mut from: impl AsyncRead + Unpin, said: &mut Vec<u8>) -> std::io::Result<()> {
    (&mut from).take(MOST).read_to_end(said).await?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await.map(drop)
}

fn last_words(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let last = text.lines().rev().find(|line| !line.trim().is_empty() && !line.starts_with("hint:"));
    last.map_or_else(String::new, |line| {
        format!(", saying `{}`", line.trim().chars().take(LAST_WORDS).collect::<String>())
    })
}

/// There is no session with the controller.
#[derive(Debug, thiserror::Error)]
#[error("no session with the controller: {0}")]
pub struct Unreached(String);

/// Reads all that the agent of the configuration in `dir` has written, and opens a session that takes no orders.
///
/// # Errors
/// What can't be read, or why there is no session.
pub async fn show(dir: &Path) -> anyhow::Result<Formats> {
    use anyhow::Context as _;
    let config = Config::load(dir)?;
    let journals = journal::dir(&config.state_dir);
    for component in &config.components {
        let name = &component.name;
        journal::check(&journals, name).with_context(|| format!("can't read the journal of `{name}`"))?;
        let shim = crate::supervise::shim_dir(&config.state_dir, name);
        spec::read::<spec::Spec>(&shim.join(spec::SPEC))?;
        spec::read::<spec::Record>(&shim.join(spec::RECORD))?;
        let _ = component::known_releases(&config.state_dir, name);
    }
    Markers::new(&config.state_dir).read().context("can't read the marker of an upgrade of the agent")?;
    if let Some(controller) = &config.controller {
        let identities = Identities::load(&config.state_dir)?;
        let connector = Connector::new(controller.clone(), identities);
        transport::trial(&connector).await.map_err(Unreached)?;
    }
    Ok(Formats::own())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn program(dir: &Path, text: &str) -> std::path::PathBuf {
        let path = dir.join("agent");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn an_agent_that_can_t_do_its_work_is_told_by_what_it_does() {
        let dir = tempfile::tempdir().unwrap();
        for (text, expected) in [
            ("#!/bin/sh\necho '{\"version\":\"9\",\"reads\":{},\"writes\":{}}'\n", Ok("9")),
            (
                "#!/bin/sh\necho '{\"version\":\"9\",\"reads\":{},\"writes\":{\"journal\":7}}'\n",
                Err("journal"),
            ),
            (
                "#!/bin/sh\necho '{\"version\":\"9\",\"reads\":{\"journal\":[7,9]},\"writes\":{}}'\n",
                Err("journal"),
            ),
            (
                "#!/bin/sh\necho 'no libfoo.so.9' >&2\nexit 127\n",
                Err("exit status: 127, saying `no libfoo.so.9`"),
            ),
            ("#!/bin/sh\nkill -SEGV $$\n", Err("signal: 11")),
            ("#!/bin/sh\necho hello\n", Err("does not speak like an agent")),
            ("#!/no/such/program\n", Err("can't be executed")),
            ("\u{7f}ELF\u{1}\u{1}", Err("can't be executed")),
        ] {
            let shown = run(&program(dir.path(), text), dir.path()).await;
            match (shown, expected) {
                (Ok(shown), Ok(version)) => assert_eq!(shown.version, version),
                (Err(failed), Err(part)) => {
                    let reason = failed.reason.to_string();
                    assert!(reason.contains(part), "{reason} for {text}");
                }
                (shown, expected) => panic!("{shown:?}, not {expected:?}"),
            }
        }
    }
}
