//! Starting a shim so that it outlives the agent, and waiting until it answers.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    process::Stdio,
    time::Duration,
};

use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

use super::{
    client::{CallError, call},
    outside,
};
use crate::{
    damage,
    shim::{
        EXIT_TAKEN, LIFELINE, TAKEN,
        protocol::{Body, Op, VERSIONS},
    },
};

/// How long a new shim may take until it answers; before that it may have to end leftovers and to hash a file.
const LIMIT: Duration = Duration::from_secs(120);
/// How long one `hello` may take.
const HELLO: Duration = Duration::from_secs(2);
/// How often it is asked whether a service that does not answer still lives.
const LOOK: Duration = Duration::from_millis(500);
/// Where the shim's own words go. It has few: why it could not begin.
const SHIM_LOG: &str = "shim.log";

/// A shim that is starting.
enum Starting {
    /// As a child of this process.
    Child(Child),
    /// As a service of its own; looked after since then.
    Service(Instant),
}

/// Answers once a shim of `dir` does, which is started from `program` if need be.
pub async fn ensure(dir: &Path, program: &Path) -> Result<(), String> {
    let deadline = Instant::now() + LIMIT;
    let mut child: Option<Starting> = None;
    loop {
        let problem = match call(dir, Op::Hello, HELLO).await {
            Ok(Body::Hello(hello)) if hello.versions.iter().any(|known| VERSIONS.contains(known)) => {
                reap_some_day(child);
                return Ok(());
            }
            Ok(other) => return Err(format!("it speaks another protocol: {other:?}")),
            Err(CallError::Refused(error)) => return Err(error.message),
            Err(error) => error,
        };
        if Instant::now() > deadline {
            reap_some_day(child);
            return Err(problem.to_string());
        }
        match (&mut child, &problem) {
            (None, CallError::NoShim(_)) => {
                child =
                    Some(begin(dir, program).await.map_err(|error| format!("could not start it: {error}"))?);
            }
            (Some(Starting::Service(looked)), CallError::NoShim(_)) if looked.elapsed() > LOOK => {
                *looked = Instant::now();
                if !outside::lives(dir).await.unwrap_or(true) {
                    let words = last_words(dir, "its service ended");
                    if !words.contains(TAKEN) {
                        return Err(words);
                    }
                    child = None;
                }
            }
            (Some(Starting::Service(_)), _) => {}
            (Some(Starting::Child(started)), _) => {
                if let Some(status) = started.try_wait().map_err(|error| error.to_string())? {
                    if status.code() != Some(i32::from(EXIT_TAKEN)) {
                        return Err(last_words(dir, &format!("it ended with {status}")));
                    }
                    // Another shim holds the directory: it is just starting or just ending.
                    child = None;
                }
            }
            (None, _) => {}
        }
        sleep(Duration::from_millis(10)).await;
    }
}

async fn begin(dir: &Path, program: &Path) -> io::Result<Starting> {
    if !dir.is_dir() && dir.symlink_metadata().is_ok() {
        damage::move_aside(dir)?;
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let path = dir.join(SHIM_LOG);
    damage::clear_directory(&path)?;
    let log = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    if outside::wanted() {
        match outside::start(dir, &path).await {
            Ok(()) => return Ok(Starting::Service(Instant::now())),
            Err(error) if outside::goes_down(&error) => return Err(io::Error::other(error)),
            Err(error) => {
                tracing::warn!(unit = outside::unit(dir), %error, "no service of its own for a shim");
            }
        }
    }
    start(dir, program, log).map(Starting::Child)
}

fn start(dir: &Path, program: &Path, log: File) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.arg("shim").arg("--dir").arg(dir).env_clear();
    match std::env::var_os(LIFELINE) {
        Some(fd) => {
            let path = Path::new("/proc/self/fd").join(fd);
            command.stdin(File::open(path)?).env(LIFELINE, "0");
        }
        None => {
            command.stdin(Stdio::null());
        }
    }
    command.stdout(log.try_clone()?).stderr(log).kill_on_drop(false).spawn()
}

/// The shim is meant to outlive this process; while both live, it must not become a zombie when it ends.
fn reap_some_day(child: Option<Starting>) {
    if let Some(Starting::Child(mut child)) = child {
        tokio::spawn(async move { child.wait().await });
    }
}

fn last_words(dir: &Path, ended: &str) -> String {
    let words = std::fs::read_to_string(dir.join(SHIM_LOG)).unwrap_or_default();
    let last = words.trim().lines().last().unwrap_or("it said nothing").to_owned();
    format!("{ended}: {last}")
}
