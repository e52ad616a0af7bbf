//! `upfleet-agent run --supervised`: a small parent that starts the agent, starts it again whenever it ends, and runs the
//! guard while a new agent is on trial. For nodes where no service manager does.
//!
//! It runs what lies in the agent's place, never a copy of its own, and has every start counted by the last good executable.
//! It reads the configuration once, opens no network, and decides nothing about upgrades. It outlives the agents: a newer
//! parent begins with the next start of the node or of whoever started it.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    time::Instant,
};
use upfleet_domain::release::Kind;

use crate::{
    config::{Config, ConfigError},
    itself::{EXIT_HANDED_OVER, keeper::PARENT, marker::Markers},
    processes::{Identity, as_pid},
};

/// The wait before an agent that ended by itself is started again; doubles from there.
const DELAY: Duration = Duration::from_millis(500);
/// The longest such wait. While a new agent is on trial, it is always the shortest.
const DELAY_MAX: Duration = Duration::from_secs(30);
/// An agent that ran this long has not failed at its start.
const UP: Duration = Duration::from_secs(60);
/// Between two starts of a guard.
const GUARD_AGAIN: Duration = Duration::from_secs(1);
/// How long an agent may take to end when the parent is asked to.
const END: Duration = Duration::from_secs(60);
/// How much of a line is passed on at once, in bytes.
const MOST_LINE: u64 = 64 * 1024;
/// How long counting a start may take: a file is hashed.
const COUNT: Duration = Duration::from_secs(60);

/// Why nothing can be supervised.
#[derive(Debug, thiserror::Error)]
pub enum SupervisedError {
    /// The configuration has mistakes.
    #[error("the configuration can't be used")]
    Config(#[from] ConfigError),
    /// Another parent keeps the agent, or the state directory can't be used.
    #[error("could not begin to keep the agent of `{dir}`")]
    State {
        /// The state directory.
        dir: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// Keeps the agent of the configuration in `dir` running until asked to end by SIGTERM or SIGINT, which the agent is then
/// asked, too. SIGHUP is passed on. `arguments` are the agent's own.
///
/// # Errors
/// Where it can't begin.
pub async fn run(dir: &Path, arguments: &[String]) -> Result<(), SupervisedError> {
    let config = Config::load(dir)?;
    let place = config.components.iter().find(|component| component.kind == Kind::Agent);
    let program = place.map_or_else(own_program, |component| component.path.clone());
    let markers = Markers::new(&config.state_dir);
    let failed = |source| SupervisedError::State { dir: config.state_dir.clone(), source };
    step_aside(&markers).map_err(failed)?;
    let taken = || failed(std::io::Error::other("another parent keeps it"));
    let _lock = markers.become_parent().map_err(failed)?.ok_or_else(taken)?;
    end_leftover(&markers).await;
    let mut parent = Parent {
        dir: dir.to_owned(),
        state_dir: config.state_dir,
        markers,
        program,
        arguments: arguments.to_vec(),
        guard: None,
        guard_ended: None,
        attempt: 0,
    };
    parent.keep().await;
    Ok(())
}

/// The file that this process was started from, by name.
fn own_program() -> PathBuf {
    let name = std::fs::read_link("/proc/self/exe").unwrap_or_else(|_| "/proc/self/exe".into());
    let text = name.to_string_lossy();
    PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text))
}

/// Where this very file is the new agent that is on trial, the last good one takes this process over: a parent that has to
/// be guarded itself guards nobody.
fn step_aside(markers: &Markers) -> std::io::Result<()> {
    let Ok(Some(marker)) = markers.read() else { return Ok(()) };
    let own = std::fs::File::open("/proc/self/exe").and_then(crate::shim::hash)?;
    if own != marker.new {
        return Ok(());
    }
    tracing::warn!("the agent is on trial: its last good version keeps it");
    // Returns only where it can't be executed.
    let error = std::process::Command::new(markers.last_good()).args(std::env::args_os().skip(1)).exec();
    tracing::error!(%error, "the last good agent can't be executed");
    Ok(())
}

/// A parent that was killed has left its agent: two of them can't have one state directory.
async fn end_leftover(markers: &Markers) {
    let Some(left) = markers.child().filter(Identity::is_running) else { return };
    tracing::warn!(pid = left.pid, "an agent whose parent is gone is ended");
    for signal in [Signal::TERM, Signal::KILL] {
        let _ = left.signal(signal);
        let deadline = Instant::now() + END / 2;
        while left.is_running() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

struct Parent {
    dir: PathBuf,
    state_dir: PathBuf,
    markers: Markers,
    program: PathBuf,
    arguments: Vec<String>,
    guard: Option<Child>,
    guard_ended: Option<Instant>,
    attempt: u32,
}

/// What made a wait end.
enum Event {
    Agent(Option<ExitStatus>),
    Guard,
    Look,
    Reload,
    End,
    Due,
}

impl Parent {
    async fn keep(&mut self) {
        let listen = |kind| signal(kind).expect("the runtime handles signals");
        let mut signals = (
            listen(SignalKind::terminate()),
            listen(SignalKind::interrupt()),
            listen(SignalKind::hangup()),
            listen(SignalKind::user_defined1()),
        );
        let mut agent: Option<(Child, Instant)> = None;
        let mut due = Some(Instant::now());
        loop {
            if due.is_some_and(|due| due <= Instant::now()) {
                due = None;
                agent = self.start().await.map(|child| (child, Instant::now()));
                if agent.is_none() {
                    due = Some(Instant::now() + self.delay());
                }
            }
            self.look();
            let event = tokio::select! {
                ended = ended(agent.as_mut().map(|(child, _)| child)) => Event::Agent(ended),
                _ = ended(self.guard.as_mut()) => Event::Guard,
                _ = signals.0.recv() => Event::End,
                _ = signals.1.recv() => Event::End,
                _ = signals.2.recv() => Event::Reload,
                _ = signals.3.recv() => Event::Look,
                () = until(due) => Event::Due,
                // A guard that could not be started, or can't begin, is tried again.
                () = tokio::time::sleep(GUARD_AGAIN), if self.wants_guard() => Event::Due,
            };
            match event {
                Event::Agent(status) => {
                    let ran = agent.take().map_or(Duration::ZERO, |(_, since)| since.elapsed());
                    due = Some(Instant::now() + self.after(status, ran));
                }
                Event::Guard => (self.guard, self.guard_ended) = (None, Some(Instant::now())),
                Event::Reload => send(agent.as_ref().map(|(child, _)| child), Signal::HUP),
                Event::End => return self.end(agent.map(|(child, _)| child)).await,
                Event::Look | Event::Due => {}
            }
        }
    }

    /// How long to wait before the agent is started again.
    fn after(&mut self, status: Option<ExitStatus>, ran: Duration) -> Duration {
        if ran >= UP {
            self.attempt = 0;
        }
        if status.and_then(|status| status.code()) == Some(i32::from(EXIT_HANDED_OVER)) {
            tracing::info!(program = %self.program.display(), "the agent has handed over");
            return Duration::ZERO;
        }
        let status = status.map_or_else(|| "an unknown exit".to_owned(), |status| status.to_string());
        tracing::warn!(
            status,
            ran_ms = u64::try_from(ran.as_millis()).unwrap_or(u64::MAX),
            "the agent has ended"
        );
        self.delay()
    }

    fn delay(&mut self) -> Duration {
        if self.markers.is_set() {
            return DELAY;
        }
        let delay = DELAY.saturating_mul(1 << self.attempt.min(6)).min(DELAY_MAX);
        self.attempt = self.attempt.saturating_add(1);
        delay
    }

    /// Starts what lies in the agent's place, and has the start counted before.
    async fn start(&mut self) -> Option<Child> {
        if self.markers.is_set() {
            self.count().await;
        }
        let mut command = self.command(&self.program);
        let on_trial = self.markers.is_set();
        if on_trial {
            command.stderr(Stdio::piped());
        }
        command.arg("run").args(&self.arguments);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                tracing::error!(program = %self.program.display(), %error, "the agent could not be started");
                if on_trial {
                    self.markers.note_last_words(&error.to_string());
                }
                return None;
            }
        };
        if let Some(output) = child.stderr.take() {
            tokio::spawn(listen(output, self.markers.clone()));
        }
        let noted = child.id().map(|pid| Identity::of(pid).and_then(|child| self.markers.note_child(&child)));
        if let Some(Err(error)) = noted {
            tracing::error!(%error, "which process is the agent could not be written down");
        }
        Some(child)
    }

    async fn count(&self) {
        let mut command = self.command(&self.markers.last_good());
        command.args(["guard", "--count", "--state"]).arg(&self.state_dir).kill_on_drop(true);
        match tokio::time::timeout(COUNT, command.status()).await {
            Ok(Ok(status)) if status.success() => {}
            Ok(Ok(status)) => tracing::error!(%status, "a start of the new agent could not be counted"),
            Ok(Err(error)) => tracing::error!(%error, "a start of the new agent could not be counted"),
            Err(_) => tracing::error!("a start of the new agent could not be counted in time"),
        }
    }

    /// Sees that there is a guard while one is wanted.
    fn look(&mut self) {
        // A guard that can't begin must not keep a processor busy.
        let just = self.guard_ended.is_some_and(|at| at.elapsed() < GUARD_AGAIN);
        if just || !self.wants_guard() {
            return;
        }
        let mut command = self.command(&self.markers.last_good());
        command.args(["guard", "--state"]).arg(&self.state_dir);
        match command.spawn() {
            Ok(child) => self.guard = Some(child),
            Err(error) => tracing::error!(%error, "the guard could not be started"),
        }
    }

    fn wants_guard(&self) -> bool {
        self.guard.is_none() && self.markers.is_set()
    }

    /// A program of the agent's, with its configuration and the parent's lifeline.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.arg("--config").arg(&self.dir).stdin(Stdio::inherit());
        // Also a guard ends with its parent: the next one starts its own.
        command.env(PARENT, std::process::id().to_string());
        command
    }

    async fn end(&mut self, agent: Option<Child>) {
        send(agent.as_ref(), Signal::TERM);
        send(self.guard.as_ref(), Signal::TERM);
        for mut child in agent.into_iter().chain(self.guard.take()) {
            if tokio::time::timeout(END, child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
    }
}

/// Passes on what a new agent writes, and keeps the last line of it: if it is put back, that is most often why.
async fn listen(output: impl AsyncRead + Unpin, markers: Markers) {
    let (mut output, mut last) = (BufReader::new(output), Vec::new());
    loop {
        let mut line = Vec::new();
        // A line without an end is passed on in parts.
        match (&mut output).take(MOST_LINE).read_until(b'\n', &mut line).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => break,
        }
        let _ = tokio::io::stderr().write_all(&line).await;
        if !line.trim_ascii().is_empty() {
            last = line;
        }
    }
    if markers.is_set() {
        markers.note_last_words(String::from_utf8_lossy(&last).trim());
    }
}

/// The end of a child; never, where there is none.
async fn ended(child: Option<&mut Child>) -> Option<ExitStatus> {
    match child {
        Some(child) => child.wait().await.ok(),
        None => std::future::pending().await,
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn send(child: Option<&Child>, signal: Signal) {
    if let Some(pid) = child.and_then(Child::id).and_then(as_pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}
