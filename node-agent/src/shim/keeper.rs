//! The shim's one decision maker: it starts, stops and restarts, and writes down what became of it.
//!
//! Everything that happens comes to it as an [`Event`]; everybody else reads [`Shared`].

use std::{
    fs::File,
    io,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender},
    },
    time::{Duration, Instant},
};

use rustix::process::Signal;
use upfleet_domain::digest::Digest;

use super::{
    child::{Child, hash, kill_descendants, now, signal_group, spawn},
    output::Output,
    protocol::{Body, ErrorCode, Event as Notice, ExitRecord, ProcessState, ProtocolError},
    reaper::{Ended, Reaper},
    spec::{self, Launch, Record, Spec},
};
use crate::processes::{FileId, executable, executable_path};

/// How long killed processes may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long the output's last words are waited for.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// Where an answer goes.
pub type Reply = SyncSender<Body>;

/// What happens to a shim.
pub enum Event {
    /// A client wants the process started.
    Start(Box<Launch>, Reply),
    /// A client wants the next start to use another launch.
    Replace(Box<Launch>, Reply),
    /// A client wants it stopped.
    Stop(Reply),
    /// A client wants it stopped and the shim ended.
    Shutdown(Reply),
    /// A child has ended: the process, or an orphan of it.
    Ended(Ended),
    /// The lifeline's other end is gone.
    LifelineLost,
}

/// What all threads of a shim see.
pub struct Shared {
    /// The component's output.
    pub output: Arc<Output>,
    /// The children.
    pub reaper: Reaper,
    view: Mutex<View>,
}

struct View {
    state: ProcessState,
    /// The file that was executed, where it was the component's.
    file: Option<FileId>,
    /// What runs instead, once the process has executed another file by itself.
    other: Option<(FileId, Digest)>,
}

impl Shared {
    /// Nothing runs yet.
    #[must_use]
    pub fn new(output: Output) -> Self {
        let state = ProcessState::Stopped { last_exit: None };
        let view = Mutex::new(View { state, file: None, other: None });
        Self { output: Arc::new(output), reaper: Reaper::default(), view }
    }

    /// How the process stands, with the digest of what really runs.
    #[must_use]
    pub fn state(&self) -> ProcessState {
        let mut view = self.view();
        let (ProcessState::Running(info), Some(file)) = (&view.state, view.file) else {
            return view.state.clone();
        };
        let mut info = info.clone();
        match executable(info.pid) {
            Some(other) if other != file => {
                let known = view.other.filter(|(known, _)| *known == other);
                let digest = known
                    .map(|(_, digest)| digest)
                    .or_else(|| File::open(executable_path(info.pid)).and_then(hash).ok());
                if let Some(digest) = digest {
                    view.other = Some((other, digest));
                    info.digest = digest;
                }
            }
            _ => {}
        }
        ProcessState::Running(info)
    }

    fn publish(&self, state: ProcessState, file: Option<FileId>) {
        *self.view() = View { state, file, other: None };
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Phase {
    Stopped,
    Running(Child),
    Stopping { child: Child, until: Option<Instant>, killed: bool, replies: Vec<Reply> },
    BackOff { until: Instant, problem: Option<String> },
}

/// See the module.
pub struct Keeper {
    dir: PathBuf,
    shared: Arc<Shared>,
    spec: Spec,
    record: Record,
    phase: Phase,
    restarts: u32,
    attempt: u32,
    ending: bool,
}

impl Keeper {
    /// Reads what an earlier shim left in `dir`.
    ///
    /// # Errors
    /// Where that can't be read.
    pub fn new(dir: PathBuf, shared: Arc<Shared>) -> io::Result<Self> {
        let spec = spec::read_or_move_aside(&dir.join(spec::SPEC))?;
        let record = spec::read_record(&dir)?;
        Ok(Self { dir, shared, spec, record, phase: Phase::Stopped, restarts: 0, attempt: 0, ending: false })
    }

    /// Ends what an earlier shim of this directory left running, then starts what is wanted.
    ///
    /// # Errors
    /// Where the directory can't be written, or a left process can't be ended.
    pub fn resume(&mut self) -> io::Result<()> {
        if !self.record.end_leftovers(KILL_LIMIT) {
            return Err(io::Error::other("a process of an earlier shim can't be killed"));
        }
        self.record.begin_shim()?;
        self.save_record()?;
        if self.spec.run && self.spec.launch.is_some() {
            self.try_start();
        }
        self.publish();
        Ok(())
    }

    /// Handles events until the shim is to end.
    pub fn run(&mut self, events: &Receiver<Event>) -> ExitCode {
        loop {
            let event = match self.deadline() {
                Some(at) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Ok(Event::Start(launch, reply)) => self.start(*launch, &reply),
                Ok(Event::Replace(launch, reply)) => self.replace(*launch, &reply),
                Ok(Event::Stop(reply)) => self.stop(reply),
                Ok(Event::Shutdown(reply)) => {
                    self.ending = true;
                    self.stop(reply);
                }
                Ok(Event::Ended(ended)) => self.ended(ended),
                Err(RecvTimeoutError::Timeout) => self.on_time(),
                Ok(Event::LifelineLost) | Err(RecvTimeoutError::Disconnected) => {
                    kill_descendants(KILL_LIMIT);
                    return ExitCode::SUCCESS;
                }
            }
            self.publish();
            if self.ending && matches!(self.phase, Phase::Stopped) {
                return ExitCode::SUCCESS;
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Stopping { until, .. } => *until,
            Phase::BackOff { until, .. } => Some(*until),
            Phase::Stopped | Phase::Running(_) => None,
        }
    }

    fn start(&mut self, launch: Launch, reply: &Reply) {
        let refuse = |message: String| {
            let error = ProtocolError { code: ErrorCode::WrongState, message, versions: Vec::new() };
            let _ = reply.send(Body::Error(error));
        };
        match &self.phase {
            _ if self.ending => return refuse("the shim is about to end".to_owned()),
            Phase::Running(_) if self.spec.launch.as_ref() == Some(&launch) => {
                let _ = reply.send(Body::State(self.shared.state()));
                return;
            }
            Phase::Running(child) | Phase::Stopping { child, .. } => {
                return refuse(format!("process {} runs; stop it first", child.info.pid));
            }
            Phase::Stopped | Phase::BackOff { .. } => {}
        }
        self.shared.output.begin_launch(launch.log_size);
        (self.restarts, self.attempt) = (0, 0);
        let answer = self.save_spec(Spec { run: true, launch: Some(launch), ..Spec::default() });
        let answer = answer.and_then(|()| self.spawn());
        if answer.is_err() {
            // Whoever asked decides what comes next; the shim must not start it later by itself.
            self.phase = Phase::Stopped;
            let _ = self.save_spec(Spec { run: false, ..self.spec.clone() });
        }
        self.publish();
        let _ = reply.send(match answer {
            Ok(()) => Body::State(self.shared.state()),
            Err(error) => Body::Error(error),
        });
    }

    /// The launch of a process that runs, for its next start. Only there: what does not run is started.
    fn replace(&mut self, launch: Launch, reply: &Reply) {
        let Phase::Running(child) = &mut self.phase else {
            let message = "no process runs whose launch could be replaced".to_owned();
            let error = ProtocolError { code: ErrorCode::WrongState, message, versions: Vec::new() };
            let _ = reply.send(Body::Error(error));
            return;
        };
        let stack = std::mem::replace(&mut child.info.stack, launch.stack);
        let answer = self.save_spec(Spec { launch: Some(launch), ..self.spec.clone() });
        if answer.is_err()
            && let Phase::Running(child) = &mut self.phase
        {
            child.info.stack = stack;
        }
        self.publish();
        let _ = reply.send(match answer {
            Ok(()) => Body::State(self.shared.state()),
            Err(error) => Body::Error(error),
        });
    }

    fn stop(&mut self, reply: Reply) {
        if self.spec.run
            && let Err(error) = self.save_spec(Spec { run: false, ..self.spec.clone() })
        {
            let _ = reply.send(Body::Error(error));
            self.ending = false;
            return;
        }
        match std::mem::replace(&mut self.phase, Phase::Stopped) {
            Phase::Running(child) => {
                let (signal, limit) = self.spec.launch.as_ref().map_or((Signal::TERM, 0), |launch| {
                    (launch.stop_signal.signal(), launch.stop_timeout_ms)
                });
                signal_group(&child.info, signal, &self.shared.reaper);
                let until = Some(Instant::now() + Duration::from_millis(limit));
                self.phase = Phase::Stopping { child, until, killed: false, replies: vec![reply] };
            }
            Phase::Stopping { child, until, killed, mut replies } => {
                replies.push(reply);
                self.phase = Phase::Stopping { child, until, killed, replies };
            }
            Phase::Stopped | Phase::BackOff { .. } => {
                self.publish();
                let _ = reply.send(Body::State(self.shared.state()));
            }
        }
    }

    fn on_time(&mut self) {
        match &mut self.phase {
            Phase::BackOff { .. } => {
                self.restarts += 1;
                self.try_start();
            }
            Phase::Stopping { until, killed, .. } if !*killed => {
                *killed = true;
                *until = Some(Instant::now() + KILL_LIMIT);
                kill_descendants(KILL_LIMIT);
            }
            Phase::Stopping { child, until, replies, .. } => {
                *until = None;
                let message = format!("process {} does not end, not even by SIGKILL", child.info.pid);
                let error = ProtocolError { code: ErrorCode::StopFailed, message, versions: Vec::new() };
                for reply in replies.drain(..) {
                    let _ = reply.send(Body::Error(error.clone()));
                }
            }
            Phase::Stopped | Phase::Running(_) => {}
        }
    }

    /// Starts it, or tries again later.
    fn try_start(&mut self) {
        if let Err(error) = self.spawn() {
            self.back_off(Some(error.message));
        }
    }

    fn back_off(&mut self, problem: Option<String>) {
        let delay = self.spec.launch.as_ref().map_or(Duration::ZERO, |launch| launch.delay(self.attempt));
        self.attempt = self.attempt.saturating_add(1);
        self.phase = Phase::BackOff { until: Instant::now() + delay, problem };
    }

    fn spawn(&mut self) -> Result<(), ProtocolError> {
        let Some(launch) = &self.spec.launch else { return Ok(()) };
        let mut child = spawn(launch, &self.shared.reaper, &self.shared.output)?;
        child.info.restarts = self.restarts;
        self.record.process = Some(child.info.identity());
        // The session is on record already; without this line a next shim finds the process all the same.
        let _ = self.save_record();
        self.shared.output.announce(&Notice::Started(child.info.clone()));
        self.phase = Phase::Running(child);
        Ok(())
    }

    fn ended(&mut self, ended: Ended) {
        match std::mem::replace(&mut self.phase, Phase::Stopped) {
            Phase::Running(child) if child.info.pid == ended.pid => {
                let ran = child.started.elapsed();
                self.record_exit(&child, ended, false, false);
                if self.spec.launch.as_ref().is_some_and(|launch| launch.counts_as_up(ran)) {
                    self.attempt = 0;
                }
                self.back_off(None);
            }
            Phase::Stopping { child, killed, replies, .. } if child.info.pid == ended.pid => {
                self.record_exit(&child, ended, true, killed);
                self.publish();
                for reply in replies {
                    let _ = reply.send(Body::State(self.shared.state()));
                }
            }
            orphan_of => self.phase = orphan_of,
        }
    }

    fn record_exit(&mut self, child: &Child, ended: Ended, requested: bool, killed: bool) {
        // What the process left behind would hold its ports and its output.
        kill_descendants(KILL_LIMIT);
        self.shared.output.drain(DRAIN_LIMIT);
        let exit = ExitRecord {
            pid: child.info.pid,
            digest: child.info.digest,
            code: ended.code,
            signal: ended.signal,
            at: now(),
            ran_ms: u64::try_from(child.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            requested,
            killed,
        };
        self.record.process = None;
        self.record.push(exit.clone());
        if let Err(error) = self.save_record() {
            eprintln!("upfleet-agent shim: could not record an exit: {error}");
        }
        self.shared.output.announce(&Notice::Exited(exit));
    }

    fn publish(&self) {
        let last_exit = self.record.exits.back().cloned();
        let (state, file) = match &self.phase {
            Phase::Stopped => (ProcessState::Stopped { last_exit }, None),
            Phase::Running(child) => (ProcessState::Running(child.info.clone()), child.file),
            Phase::Stopping { child, .. } => (ProcessState::Stopping(child.info.clone()), child.file),
            Phase::BackOff { until, problem } => {
                let until = now().after(until.saturating_duration_since(Instant::now()));
                let problem = problem.clone();
                (ProcessState::BackOff { last_exit, restarts: self.restarts, until, problem }, None)
            }
        };
        self.shared.publish(state, file);
    }

    fn save_spec(&mut self, spec: Spec) -> Result<(), ProtocolError> {
        spec::write(&self.dir.join(spec::SPEC), &spec).map_err(|error| ProtocolError {
            code: ErrorCode::Storage,
            message: format!("could not write `{}`: {error}", self.dir.join(spec::SPEC).display()),
            versions: Vec::new(),
        })?;
        self.spec = spec;
        Ok(())
    }

    fn save_record(&self) -> io::Result<()> {
        spec::write(&self.dir.join(spec::RECORD), &self.record)
    }
}
