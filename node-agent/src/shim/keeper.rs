//! The shim's one decision maker: it starts, stops and restarts, and writes down what became of it.
//!
//! Everything that happens comes to it as an [`Event`]; everybody else reads [`Shared`].

use std::{
    io,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender},
    },
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{
    beside::{Besides, unending},
    child::{Child, Hands, kill_descendants, now, signal_group, spawn},
    notify,
    protocol::{Body, ErrorCode, Event as Notice, ExitRecord, ProcessState, ProtocolError},
    reaper::Ended,
    shared::{Shared, View},
    sockets::Sockets,
    spec::{self, Launch, Record, Spec},
    tree::{self, Main},
};

/// How long killed processes may take to be gone.
pub(super) const KILL_LIMIT: Duration = Duration::from_secs(10);
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
    /// A client wants another process beside it.
    StartBeside(Box<Launch>, Reply),
    /// A client wants that one to take its place.
    Drain(Reply),
    /// A client wants that one ended.
    Dismiss(Reply),
    /// A child has ended: the process, or an orphan of it.
    Ended(Ended),
    /// The lifeline's other end is gone.
    LifelineLost,
}

pub(super) enum Phase {
    Stopped,
    Running(Child),
    Stopping { child: Child, until: Option<Instant>, killed: bool, replies: Vec<Reply> },
    BackOff { until: Instant, problem: Option<String> },
}

/// See the module.
pub struct Keeper {
    dir: PathBuf,
    pub(super) shared: Arc<Shared>,
    pub(super) spec: Spec,
    pub(super) record: Record,
    pub(super) phase: Phase,
    pub(super) restarts: u32,
    pub(super) attempt: u32,
    pub(super) ending: bool,
    /// Which launch the current process's lines belong to.
    pub(super) number: u64,
    pub(super) sockets: Sockets,
    pub(super) besides: Besides,
}

impl Keeper {
    /// Reads what an earlier shim left in `dir`.
    ///
    /// # Errors
    /// Where that can't be read, or what is stale can't be removed.
    pub fn new(dir: PathBuf, shared: Arc<Shared>) -> io::Result<Self> {
        let spec = spec::read_or_move_aside(&dir.join(spec::SPEC))?;
        let record = spec::read_record(&dir)?;
        notify::clear(&dir)?;
        Ok(Self {
            dir,
            shared,
            spec,
            record,
            phase: Phase::Stopped,
            restarts: 0,
            attempt: 0,
            ending: false,
            number: 0,
            sockets: Sockets::default(),
            besides: Besides::default(),
        })
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
                Ok(Event::StartBeside(launch, reply)) => self.start_beside(*launch, &reply),
                Ok(Event::Drain(reply)) => self.drain(&reply),
                Ok(Event::Dismiss(reply)) => self.dismiss(reply),
                Ok(Event::Ended(ended)) => self.ended(ended),
                Err(RecvTimeoutError::Timeout) => self.on_time(),
                Ok(Event::LifelineLost) | Err(RecvTimeoutError::Disconnected) => {
                    kill_descendants(KILL_LIMIT);
                    return ExitCode::SUCCESS;
                }
            }
            self.publish();
            if self.ending && matches!(self.phase, Phase::Stopped) {
                // The files of Unix sockets go with the component; nobody else removes them.
                self.sockets.keep_only(&[]);
                return ExitCode::SUCCESS;
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let own = match &self.phase {
            Phase::Stopping { until, .. } => *until,
            Phase::BackOff { until, .. } => Some(*until),
            Phase::Stopped | Phase::Running(_) => None,
        };
        own.into_iter().chain(self.besides.deadlines()).min()
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
        self.number = self.shared.output.begin_launch(launch.log_size);
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

    pub(super) fn stop(&mut self, reply: Reply) {
        if self.spec.run
            && let Err(error) = self.save_spec(Spec { run: false, ..self.spec.clone() })
        {
            let _ = reply.send(Body::Error(error));
            self.ending = false;
            return;
        }
        self.end_besides();
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
                match until {
                    Some(_) => replies.push(reply),
                    None => drop(reply.send(unending(&child))),
                }
                self.phase = Phase::Stopping { child, until, killed, replies };
            }
            Phase::Stopped | Phase::BackOff { .. } => {
                if !self.besides.none() {
                    kill_descendants(KILL_LIMIT);
                }
                self.publish();
                let _ = reply.send(Body::State(self.shared.state()));
            }
        }
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        self.besides_on_time(now);
        match &mut self.phase {
            Phase::BackOff { until, .. } if *until > now => {}
            Phase::Stopping { until: Some(until), .. } if *until > now => {}
            Phase::BackOff { .. } => {
                self.restarts += 1;
                self.try_start();
            }
            Phase::Stopping { until, killed, .. } if !*killed => {
                *killed = true;
                *until = Some(now + KILL_LIMIT);
                kill_descendants(KILL_LIMIT);
            }
            Phase::Stopping { child, until, replies, .. } => {
                *until = None;
                let answer = unending(child);
                replies.drain(..).for_each(|reply| drop(reply.send(answer.clone())));
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

    /// Starts a process of `launch`; opens what sockets it needs and are not open yet.
    pub(super) fn spawn_process(&mut self, launch: &Launch, number: u64) -> Result<Child, ProtocolError> {
        let failed = |message| ProtocolError { code: ErrorCode::StartFailed, message, versions: Vec::new() };
        self.sockets.ensure(&launch.sockets).map_err(failed)?;
        let others = self.others(None);
        let Shared { reaper, output, .. } = &*self.shared;
        let (sockets, dir) = (&self.sockets, self.dir.as_path());
        spawn(launch, &Hands { reaper, output, number, sockets, dir, others: &others })
    }

    fn spawn(&mut self) -> Result<(), ProtocolError> {
        let Some(launch) = self.spec.launch.clone() else { return Ok(()) };
        if self.besides.none() {
            self.sockets.keep_only(&launch.sockets);
        }
        let mut child = self.spawn_process(&launch, self.number)?;
        child.info.restarts = self.restarts;
        self.record.process = Some(child.info.identity());
        // The session is on record already; without this line a next shim finds the process all the same.
        let _ = self.save_record();
        self.shared.output.announce(&Notice::Started(child.info.clone()));
        self.phase = Phase::Running(child);
        Ok(())
    }

    /// The shim's processes but the one of that id, or all of them.
    pub(super) fn others(&self, but: Option<u32>) -> Vec<Main> {
        let current = match &self.phase {
            Phase::Running(child) | Phase::Stopping { child, .. } => Some(Main::of(&child.info)),
            Phase::Stopped | Phase::BackOff { .. } => None,
        };
        current.into_iter().chain(self.besides.mains()).filter(|main| Some(main.pid) != but).collect()
    }

    fn ended(&mut self, ended: Ended) {
        if self.beside_ended(ended) {
            return;
        }
        match std::mem::replace(&mut self.phase, Phase::Stopped) {
            Phase::Running(child) if child.info.pid == ended.pid => {
                let ran = child.started.elapsed();
                let _ = self.record_exit(&child, ended, false, false);
                if self.spec.launch.as_ref().is_some_and(|launch| launch.counts_as_up(ran)) {
                    self.attempt = 0;
                }
                self.back_off(None);
            }
            Phase::Stopping { child, killed, replies, .. } if child.info.pid == ended.pid => {
                let _ = self.record_exit(&child, ended, true, killed);
                // Stopped means that nothing of it runs.
                kill_descendants(KILL_LIMIT);
                self.publish();
                for reply in replies {
                    let _ = reply.send(Body::State(self.shared.state()));
                }
            }
            orphan_of => self.phase = orphan_of,
        }
    }

    /// Ends what belongs to a process that ended, and writes down how it did.
    pub(super) fn record_exit(
        &mut self,
        child: &Child,
        ended: Ended,
        requested: bool,
        killed: bool,
    ) -> ExitRecord {
        // What the process left behind would hold its ports and its output.
        self.kill_tree(child);
        self.shared.output.drain(child.number, DRAIN_LIMIT);
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
        self.record.process.take_if(|process| process.pid == child.info.pid);
        self.record.besides.retain(|process| process.pid != child.info.pid);
        self.record.push(exit.clone());
        if let Err(error) = self.save_record() {
            eprintln!("upfleet-agent shim: could not record an exit: {error}");
        }
        self.shared.output.announce(&Notice::Exited(exit.clone()));
        exit
    }

    /// Kills a process with all that it has started, and no other.
    pub(super) fn kill_tree(&self, child: &Child) {
        let others = self.others(Some(child.info.pid));
        if others.is_empty() {
            kill_descendants(KILL_LIMIT);
        } else {
            tree::kill(Main::of(&child.info), &others, KILL_LIMIT);
        }
    }

    /// Shows everybody how things stand.
    pub(super) fn publish(&self) {
        let last_exit = self.record.exits.back().cloned();
        let current = match &self.phase {
            Phase::Stopped => View::of(ProcessState::Stopped { last_exit }),
            Phase::Running(child) => View::running(child, ProcessState::Running(child.info.clone())),
            Phase::Stopping { child, .. } => View::running(child, ProcessState::Stopping(child.info.clone())),
            Phase::BackOff { until, problem } => {
                let until = now().after(until.saturating_duration_since(Instant::now()));
                let problem = problem.clone();
                View::of(ProcessState::BackOff { last_exit, restarts: self.restarts, until, problem })
            }
        };
        self.shared.publish(current, self.besides.view(), self.besides.draining());
    }

    pub(super) fn save_spec(&mut self, spec: Spec) -> Result<(), ProtocolError> {
        spec::write(&self.dir.join(spec::SPEC), &spec).map_err(|error| ProtocolError {
            code: ErrorCode::Storage,
            message: format!("could not write `{}`: {error}", self.dir.join(spec::SPEC).display()),
            versions: Vec::new(),
        })?;
        self.spec = spec;
        Ok(())
    }

    pub(super) fn save_record(&self) -> io::Result<()> {
        spec::write(&self.dir.join(spec::RECORD), &self.record)
    }
}
