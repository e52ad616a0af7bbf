//! The shim: a small process that is the parent of one component's process, for as long as that runs.
//!
//! It owns the process's output and its listening sockets, restarts it with back-off, records how it ended, and
//! serves a Unix socket to the agent. Agents come and go, and are upgraded; shims stay, each on the executable it
//! was started from. A shim decides nothing about upgrades, speaks over no network and knows no controller.
//!
//! Its directory holds `lock` (two shims of one directory are impossible), `spec.json` (what to run, also
//! after a reboot), `record.json` (the process and the last exits), `sock`, and `output.log`.
//!
//! Threads: the keeper (main) decides; the reaper collects children; the server accepts, with a thread per
//! connection; two readers per process copy its output. They meet in [`keeper::Shared`] and in the keeper's
//! channel of events:
//!
//! ```text
//!   client ─ server ──start, stop──▶ keeper ──spawn, signal──▶ the component's process
//!               ▲                     ▲   └─▶ spec.json, record.json   │ stdout, stderr
//!               └── state, tail ── Shared ◀─────────── readers ◀───────┘
//!                                     └─ended── reaper
//! ```
//!
//! A shim that is itself killed takes its ends of the process's pipes with it, so the next shim of the
//! directory does not adopt that process: it ends what is left of the session and starts anew.
//!
//! **Sockets.** They are opened before the first process that needs them and are given to each one in the manner of
//! systemd's socket activation ([`pass`]); connections wait in them while no process runs. A shim that is killed takes
//! its sockets with it, and connections are refused until the next one has opened them anew.
//!
//! **Handover.** A second process can be started beside the current one on the same sockets, and either takes its
//! place or is dismissed (`beside`). Version 2 of the protocol has that; an older shim answers such a request with the
//! versions it knows, and is replaced once nothing runs.
//!
//! **Lifeline.** Where `UPFLEET_LIFELINE_FD` names a descriptor, it is the read end of a pipe; at its end of
//! file the shim kills the component and exits. Whoever starts a shim passes it as descriptor 0, so that no
//! component inherits it.

mod beside;
pub(crate) mod child;
mod keeper;
mod leftovers;
pub mod notify;
mod output;
pub mod pass;
pub mod protocol;
mod reaper;
mod server;
mod shared;
mod sockets;
pub mod spec;
mod tree;

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    thread,
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock},
    process::{getpid, getsid, set_child_subreaper, setsid},
};

use child::STACK;
pub use child::hash;
use keeper::{Event, Keeper};
use output::Output;
use server::Server;
use shared::Shared;

/// Names the descriptor of the lifeline, see the module.
pub const LIFELINE: &str = "UPFLEET_LIFELINE_FD";
/// The exit status of a shim that found another one in its directory.
pub const EXIT_TAKEN: u8 = 75;
/// What that shim says.
pub const TAKEN: &str = "another shim serves";

/// Why a shim could not begin. An operator of the node can mend it.
#[derive(Debug, thiserror::Error)]
enum ShimError {
    #[error("could not {operation} `{path}`")]
    Directory { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{TAKEN} `{path}`")]
    Taken { path: PathBuf },
    #[error("could not {operation}")]
    Process { operation: &'static str, source: io::Error },
}

/// Runs the shim of the directory `dir` until it is shut down. Must be called from the main thread of a
/// process that does nothing else.
#[must_use]
pub fn main(dir: &Path) -> ExitCode {
    match run(dir) {
        Ok(code) => code,
        Err(error) => {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
            eprintln!("upfleet-agent shim: {error}{}", source.unwrap_or_default());
            match error {
                ShimError::Taken { .. } => ExitCode::from(EXIT_TAKEN),
                ShimError::Directory { .. } | ShimError::Process { .. } => ExitCode::FAILURE,
            }
        }
    }
}

fn run(dir: &Path) -> Result<ExitCode, ShimError> {
    let at = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| ShimError::Directory { operation, path, source }
    };
    let process = |operation| move |source| ShimError::Process { operation, source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at("create", dir))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(at("protect", dir))?;
    let dir = &dir.canonicalize().map_err(at("find", dir))?;
    let _lock = lock(dir)?;
    detach().map_err(process("leave the caller's session"))?;
    let (events, inbox) = channel();
    if let Some(fd) = std::env::var_os(LIFELINE) {
        watch_lifeline(&fd.to_string_lossy(), events.clone()).map_err(process("watch the lifeline"))?;
    }
    let shared = Arc::new(Shared::new(Output::new(dir.clone())));
    let mut keeper = Keeper::new(dir.clone(), Arc::clone(&shared)).map_err(at("read", dir))?;
    let reaper = Arc::clone(&shared);
    let tell = events.clone();
    background(move || reaper.reaper.run(|ended| tell.send(Event::Ended(ended)).is_ok()))
        .map_err(process("start a thread"))?;
    keeper.resume().map_err(at("resume", dir))?;
    let listener = server::listen(dir).map_err(at("listen in", dir))?;
    let server = Arc::new(Server::new(shared, events).map_err(process("read /proc"))?);
    let accepting = Arc::clone(&server);
    background(move || accepting.run(&listener)).map_err(process("start a thread"))?;
    let code = keeper.run(&inbox);
    // Requests that came too late are told so as their replies are dropped with the inbox.
    drop(inbox);
    server.finish(Duration::from_secs(2));
    let _ = fs::remove_file(dir.join(protocol::SOCKET));
    Ok(code)
}

/// Held for the shim's life; the kernel gives it up when the shim ends, however it ends.
fn lock(dir: &Path) -> Result<File, ShimError> {
    let path = dir.join("lock");
    let clear = crate::damage::clear_directory(&path);
    clear.map_err(|source| ShimError::Directory { operation: "move aside", path: path.clone(), source })?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file =
        file.map_err(|source| ShimError::Directory { operation: "open", path: path.clone(), source })?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ShimError::Taken { path: dir.to_owned() }),
        Err(error) => Err(ShimError::Directory { operation: "lock", path, source: error.into() }),
    }
}

/// Leaves the caller's session, so that its end is not the shim's, and becomes the parent of orphans.
fn detach() -> io::Result<()> {
    // A process that leads its session already (under `setsid` or an init) can't found another one.
    if setsid().is_err() && getsid(None)? != getpid() {
        return Err(io::Error::other("the shim leads a process group of a terminal; start it with setsid"));
    }
    std::env::set_current_dir("/")?;
    Ok(set_child_subreaper(Some(getpid()))?)
}

fn watch_lifeline(fd: &str, events: Sender<Event>) -> io::Result<()> {
    let number: u32 = fd.parse().map_err(|_| io::Error::other("the descriptor is not a number"))?;
    let mut pipe = File::open(format!("/proc/self/fd/{number}"))?;
    background(move || {
        while let Ok(1..) = pipe.read(&mut [0; 64]) {}
        let _ = events.send(Event::LifelineLost);
    })
}

fn background(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().stack_size(STACK).spawn(work).map(drop)
}

/// The socket's address, through the directory's descriptor; see [`server::listen`].
#[must_use]
pub fn socket_path(dir: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{}", dir.as_fd().as_raw_fd(), protocol::SOCKET))
}
