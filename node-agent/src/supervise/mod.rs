//! The agent's side of supervision: one [`Supervisor`] per component, which talks to the component's shim, or to systemd
//! about the component's unit.
//!
//! It starts a shim where none answers, and otherwise only asks and orders; what a component is to run is
//! decided elsewhere. Unix sockets are all it opens: no network.

mod client;
mod handover;
mod launch;
mod outside;
pub mod own_unit;
mod spawn;
mod systemd;

use std::{
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use upfleet_domain::{
    id::ComponentId,
    reason::{Reason, ReasonCode},
};

pub use crate::shim::{
    protocol::{Both, Event, ExitRecord, ProcessInfo, ProcessState as ProcessStateInfo},
    spec::{Input, Launch, SocketSpec},
};
use crate::{
    config::{ComponentConfig, RunMode},
    shim::{
        protocol::{Body, ErrorCode, Op},
        spec::SPEC,
    },
};
pub use client::Follow;
use client::{CallError, call};
pub(crate) use systemd::STACK;

/// How long a shim may take for an answer that needs no work.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a start may take: the file is hashed first, and may be large and on a slow disk.
const START: Duration = Duration::from_secs(600);
/// What a stop may take beyond the configured time: killing, and the output's last words.
const STOP_MARGIN: Duration = Duration::from_secs(30);

/// Why a component's process can't be started, stopped or seen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Fault {
    /// The cause.
    pub reason: Reason,
}

impl Fault {
    fn new(code: ReasonCode, problem: impl ToString) -> Self {
        Self { reason: Reason::new(code).with("problem", problem.to_string()) }
    }
}

/// One component's process. Cheap to clone; make a new one when the configuration changes.
#[derive(Clone, Debug)]
pub struct Supervisor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    component: ComponentId,
    mode: RunMode,
    stop_timeout: Duration,
    drain_timeout: Duration,
    dir: PathBuf,
    program: PathBuf,
    unit: Option<systemd::Unit>,
    /// Held while a shim is started, so that one agent starts only one.
    starting: tokio::sync::Mutex<()>,
}

impl Supervisor {
    /// For a component of the agent whose state is in `state_dir`. Nothing is started.
    #[must_use]
    pub fn new(state_dir: &Path, component: &ComponentConfig) -> Self {
        // A shim runs on the very file this agent runs on, also when that was replaced by a newer one.
        Self::with_program(state_dir, component, Path::new("/proc/self/exe"))
    }

    /// Like [`Supervisor::new`], with shims started from `program`.
    #[must_use]
    pub fn with_program(state_dir: &Path, component: &ComponentConfig, program: &Path) -> Self {
        Self::build(state_dir, component, program, None)
    }

    /// Like [`Supervisor::with_program`], with systemd asked on the bus at `address` instead of the system's, where
    /// one is given.
    #[must_use]
    pub fn build(
        state_dir: &Path,
        component: &ComponentConfig,
        program: &Path,
        address: Option<&str>,
    ) -> Self {
        let unit = systemd::Unit::of(state_dir, component, &lasting(program), address);
        let inner = Inner {
            component: component.name.clone(),
            mode: component.run.mode,
            stop_timeout: component.run.stop_timeout,
            drain_timeout: component.run.drain_timeout,
            dir: shim_dir(state_dir, &component.name),
            program: program.to_owned(),
            unit,
            starting: tokio::sync::Mutex::new(()),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Starts the component's shim unless one answers. A shim that finds in its directory that the process
    /// is wanted (after a reboot, or after it was killed) starts it.
    ///
    /// # Errors
    /// [`ReasonCode::ShimUnavailable`].
    pub async fn ensure_shim(&self) -> Result<(), Fault> {
        if self.inner.mode != RunMode::Supervised {
            return Ok(());
        }
        let _one_at_a_time = self.inner.starting.lock().await;
        spawn::ensure(&self.inner.dir, &self.inner.program).await.map_err(|problem| self.unavailable(problem))
    }

    /// Starts the shim of a component that has been run, which goes on with what it was to do.
    ///
    /// # Errors
    /// [`ReasonCode::ShimUnavailable`].
    pub async fn revive(&self) -> Result<(), Fault> {
        if self.has_run() { self.ensure_shim().await } else { Ok(()) }
    }

    /// Starts the process. Where just this launch runs already, nothing happens and it is the answer.
    ///
    /// # Errors
    /// [`ReasonCode::StartFailed`], also where another process runs or the file is not the expected one.
    pub async fn start(&self, launch: &Launch) -> Result<ProcessInfo, Fault> {
        if self.inner.mode == RunMode::None {
            return Err(Fault::new(ReasonCode::StartFailed, "the component is not run by the agent"));
        }
        if let Some(unit) = &self.inner.unit {
            return unit.start(launch).await;
        }
        self.ensure_shim().await?;
        self.renew_shim(launch).await?;
        let op = Op::Start { launch: Box::new(launch.clone()) };
        match call(&self.inner.dir, op, START).await {
            Ok(Body::State(ProcessStateInfo::Running(info))) => Ok(info),
            Ok(other) => Err(Fault::new(ReasonCode::StartFailed, format!("it is {other:?}"))),
            Err(CallError::Refused(error)) => Err(Fault::new(ReasonCode::StartFailed, error.message)),
            Err(error) => Err(self.unavailable(error)),
        }
    }

    /// Makes the next start of the process that runs use `launch`: after a crash, a reboot. The process stays,
    /// and is from now on said to be of that launch's stack.
    ///
    /// # Errors
    /// [`ReasonCode::StartFailed`] where no process runs; [`ReasonCode::ShimUnavailable`].
    pub async fn replace(&self, launch: &Launch) -> Result<ProcessInfo, Fault> {
        if let Some(unit) = &self.inner.unit {
            return unit.replace(launch).await;
        }
        let replace =
            |launch: Launch| call(&self.inner.dir, Op::Replace { launch: Box::new(launch) }, ANSWER);
        let mut answer = replace(launch.clone()).await;
        if launch.needs_sockets() && answer.as_ref().is_err_and(CallError::is_of_older_shim) {
            // It keeps no sockets, and is replaced by one that does at the next stop and start. Until then it starts
            // the process again as it has started it.
            answer = replace(Launch { sockets: Vec::new(), notify: false, ..launch.clone() }).await;
        }
        match answer {
            Ok(Body::State(ProcessStateInfo::Running(info))) => Ok(info),
            Ok(other) => Err(Fault::new(ReasonCode::StartFailed, format!("it is {other:?}"))),
            Err(CallError::Refused(error)) => Err(Fault::new(ReasonCode::StartFailed, error.message)),
            Err(error) => Err(self.unavailable(error)),
        }
    }

    /// Stops the process, with all that it has started, and keeps it stopped. How it ended is in
    /// [`Supervisor::process`].
    ///
    /// # Errors
    /// [`ReasonCode::StopFailed`] where it does not end; [`ReasonCode::ShimUnavailable`].
    pub async fn stop(&self) -> Result<(), Fault> {
        if let Some(unit) = &self.inner.unit {
            return unit.stop().await;
        }
        if self.inner.mode == RunMode::None || !self.has_run() {
            return Ok(());
        }
        // Without a shim there may still be a process, of a shim that was killed: the new one ends it.
        self.ensure_shim().await?;
        match call(&self.inner.dir, Op::Stop, self.inner.stop_timeout + STOP_MARGIN).await {
            Ok(_) => Ok(()),
            Err(CallError::Refused(error)) => Err(Fault::new(ReasonCode::StopFailed, error.message)),
            Err(error) => Err(self.unavailable(error)),
        }
    }

    /// How the process stands. No shim is started for this.
    ///
    /// # Errors
    /// [`ReasonCode::ShimUnavailable`] where the component has been run and no shim answers.
    pub async fn process(&self) -> Result<ProcessStateInfo, Fault> {
        if let Some(unit) = &self.inner.unit {
            return Ok(unit.process().await);
        }
        if self.inner.mode == RunMode::None {
            return Ok(ProcessStateInfo::NotRun);
        }
        match self.ask(Op::State).await {
            Ok(Body::State(state)) => Ok(state),
            Ok(other) => Err(self.unavailable(format!("unexpected answer {other:?}"))),
            Err(CallError::NoShim(_)) if !self.has_run() => Ok(ProcessStateInfo::Stopped { last_exit: None }),
            Err(error) => Err(self.unavailable(error)),
        }
    }

    /// Asks the shim for what needs no work. A node under load may make it late; that says nothing of the process.
    async fn ask(&self, op: Op) -> Result<Body, CallError> {
        let mut answer = call(&self.inner.dir, op.clone(), ANSWER).await;
        for _ in 0..2 {
            if matches!(answer, Err(CallError::TimedOut(_) | CallError::Broken(_))) {
                answer = call(&self.inner.dir, op.clone(), ANSWER).await;
            }
        }
        answer
    }

    /// The last lines of output, at most `lines`, oldest first; from the log where no shim answers.
    pub async fn tail(&self, lines: usize) -> Vec<String> {
        if let Some(unit) = &self.inner.unit {
            return unit.evidence().await;
        }
        match call(&self.inner.dir, Op::Tail { lines, this_launch: false }, ANSWER).await {
            Ok(Body::Lines(lines)) if !lines.is_empty() => lines,
            _ => log_tail(&self.inner.dir.join("output.log"), lines),
        }
    }

    /// The last lines since the last [`Supervisor::start`], restarts included: the evidence of a launch.
    pub async fn launch_tail(&self, lines: usize) -> Vec<String> {
        if let Some(unit) = &self.inner.unit {
            return unit.evidence().await;
        }
        match call(&self.inner.dir, Op::Tail { lines, this_launch: true }, ANSWER).await {
            Ok(Body::Lines(lines)) => lines,
            _ => Vec::new(),
        }
    }

    /// Output, starts and exits from now on.
    ///
    /// # Errors
    /// [`ReasonCode::ShimUnavailable`].
    pub async fn follow(&self) -> Result<Follow, Fault> {
        Follow::open(&self.inner.dir, ANSWER).await.map_err(|error| self.unavailable(error))
    }

    /// Stops the process and ends the shim: for a component that was taken out of the configuration.
    ///
    /// # Errors
    /// As [`Supervisor::stop`].
    pub async fn shutdown(&self) -> Result<(), Fault> {
        if let Some(unit) = &self.inner.unit {
            return unit.stop().await;
        }
        match call(&self.inner.dir, Op::Shutdown, self.inner.stop_timeout + STOP_MARGIN).await {
            Ok(_) | Err(CallError::NoShim(_)) => self.until_shim_is_gone().await,
            Err(CallError::Refused(error)) if error.code == ErrorCode::StopFailed => {
                Err(Fault::new(ReasonCode::StopFailed, error.message))
            }
            Err(error) => Err(self.unavailable(error)),
        }
    }

    /// The pid of a process whose unit is active, or what is wrong with the unit. Of a component without one, whether its
    /// process is up.
    ///
    /// # Errors
    /// A sentence for people.
    pub async fn active(&self) -> Result<u32, String> {
        match &self.inner.unit {
            Some(unit) => unit.active().await,
            None => self.process().await.map_err(|fault| fault.to_string())?.up(),
        }
    }

    /// Whether what runs the component can be asked to: its unit is there, not masked, and runs it. A shim always can.
    ///
    /// # Errors
    /// What stands in the way, as a reason with what to do.
    pub async fn ready(&self) -> Result<(), Fault> {
        match &self.inner.unit {
            Some(unit) => unit.ready().await,
            None => Ok(()),
        }
    }

    /// What the operator of the node has the unit put into the variable that options for a JVM go to, with its name.
    ///
    /// # Errors
    /// Where systemd can't be asked.
    pub async fn own_options(&self) -> Result<Option<(String, String)>, Fault> {
        match &self.inner.unit {
            Some(unit) => unit.own_options().await,
            None => Ok(None),
        }
    }

    /// An ending shim still answers for a moment; whoever starts the next one must not meet it.
    async fn until_shim_is_gone(&self) -> Result<(), Fault> {
        let deadline = tokio::time::Instant::now() + STOP_MARGIN;
        while !matches!(call(&self.inner.dir, Op::Hello, ANSWER).await, Err(CallError::NoShim(_))) {
            if tokio::time::Instant::now() > deadline {
                return Err(self.unavailable("it does not end"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Whether there has ever been something to run.
    fn has_run(&self) -> bool {
        self.inner.dir.join(SPEC).exists()
    }

    fn unavailable(&self, problem: impl ToString) -> Fault {
        let mut fault = Fault::new(ReasonCode::ShimUnavailable, problem);
        fault.reason = fault.reason.with("component", &self.inner.component);
        fault
    }
}

/// The name of a program that outlasts this process: what `/proc/self/exe` stands for, also when it was replaced.
fn lasting(program: &Path) -> PathBuf {
    if program != Path::new("/proc/self/exe") {
        return program.to_owned();
    }
    let name = std::fs::read_link(program).unwrap_or_else(|_| program.to_owned());
    let text = name.to_string_lossy();
    PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text))
}

/// Where the shim of a component lives: it has to outlast a reboot, so it is not in the run directory.
#[must_use]
pub fn shim_dir(state_dir: &Path, component: &ComponentId) -> PathBuf {
    state_dir.join("shims").join(component.as_str())
}

/// The last lines of a log, from its last 256 KiB.
fn log_tail(path: &Path, lines: usize) -> Vec<String> {
    let read = || {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        let skip = length.saturating_sub(256 * 1024);
        file.seek(SeekFrom::Start(skip))?;
        let mut bytes = Vec::new();
        file.take(256 * 1024).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>((skip > 0, bytes))
    };
    let Ok((cut, bytes)) = read() else { return Vec::new() };
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().skip(usize::from(cut)).collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::UnixListener};

    use super::*;

    /// Two connections break, the third is answered.
    #[tokio::test]
    async fn a_shim_that_is_late_is_asked_again() {
        let state = tempfile::tempdir().unwrap();
        let config = "name = \"a\"\npath = \"/opt/a\"\n[run]\nmode = \"supervised\"";
        let config: ComponentConfig = toml::from_str(config).unwrap();
        let dir = shim_dir(state.path(), &config.name);
        std::fs::create_dir_all(&dir).unwrap();
        let listener = UnixListener::bind(dir.join(crate::shim::protocol::SOCKET)).unwrap();
        let shim = tokio::spawn(async move {
            for _ in 0..2 {
                drop(listener.accept().await.unwrap());
            }
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"{\"v\":1,\"state\":{\"state\":\"not_run\"}}\n").await.unwrap();
        });
        assert_eq!(Supervisor::new(state.path(), &config).process().await, Ok(ProcessStateInfo::NotRun));
        shim.await.unwrap();
    }
}
