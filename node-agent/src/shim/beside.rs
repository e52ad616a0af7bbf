//! Two processes at once: one that stands beside the current one while it is judged, and those that were asked to
//! finish. A part of the keeper, which alone decides.
//!
//! `spec.json` names what is to run: until the keeper is told to drain, the current process; from then on the one that
//! stood beside it. So whatever is lost, the next shim starts what was in force. A process that stands beside and ends
//! is not started again: whoever judges it sees that it ended. Where the current one ends meanwhile it is started
//! again as ever, which fails while the file in its place is another one; the sockets are served by the other process.
//!
//! What ends with what: a process that drains is killed after its time, with what it has started and nothing else;
//! a stop ends all of them; a shim that is killed takes none of them along, and the next one kills all of them, since
//! the sockets died with the shim; the end of the lifeline kills all of them.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{
    child::{Child, signal_group},
    keeper::{KILL_LIMIT, Keeper, Phase, Reply},
    protocol::{Body, ErrorCode, Event as Notice, ExitRecord, ProcessState, ProtocolError},
    reaper::Ended,
    shared::View,
    spec::{Launch, Spec},
    tree::Main,
};

/// The processes beside the current one.
#[derive(Default)]
pub struct Besides {
    beside: Option<(Launch, Standing)>,
    draining: Vec<Leaving>,
}

/// The one that is judged.
enum Standing {
    Running(Child),
    Dismissed(Leaving),
    Gone(ExitRecord),
}

/// One that was asked to end.
struct Leaving {
    child: Child,
    until: Option<Instant>,
    killed: bool,
    replies: Vec<Reply>,
}

impl Leaving {
    fn new(child: Child, limit: Duration, replies: Vec<Reply>) -> Self {
        Self { child, until: Some(Instant::now() + limit), killed: false, replies }
    }

    /// Not even killed it ends.
    fn give_up(&mut self) {
        self.until = None;
        let message = format!("process {} does not end, not even by SIGKILL", self.child.info.pid);
        for reply in self.replies.drain(..) {
            let _ = reply.send(refusal(ErrorCode::StopFailed, message.clone()));
        }
    }
}

impl Besides {
    /// Whether there is none.
    #[must_use]
    pub fn none(&self) -> bool {
        self.beside.is_none() && self.draining.is_empty()
    }

    /// When something is due.
    pub fn deadlines(&self) -> impl Iterator<Item = Instant> {
        self.leaving().filter_map(|leaving| leaving.until)
    }

    /// Their processes.
    pub fn mains(&self) -> impl Iterator<Item = Main> {
        let beside = match &self.beside {
            Some((_, Standing::Running(child))) => Some(Main::of(&child.info)),
            _ => None,
        };
        beside.into_iter().chain(self.leaving().map(|leaving| Main::of(&leaving.child.info)))
    }

    /// How the one that is judged stands.
    #[must_use]
    pub fn view(&self) -> Option<View> {
        let (_, standing) = self.beside.as_ref()?;
        Some(match standing {
            Standing::Running(child) => View::running(child, ProcessState::Running(child.info.clone())),
            Standing::Dismissed(leaving) => {
                View::running(&leaving.child, ProcessState::Stopping(leaving.child.info.clone()))
            }
            Standing::Gone(exit) => View::of(ProcessState::Stopped { last_exit: Some(exit.clone()) }),
        })
    }

    /// Those that were asked to finish.
    #[must_use]
    pub fn draining(&self) -> Vec<u32> {
        self.draining.iter().map(|leaving| leaving.child.info.pid).collect()
    }

    fn leaving(&self) -> impl Iterator<Item = &Leaving> {
        let dismissed = match &self.beside {
            Some((_, Standing::Dismissed(leaving))) => Some(leaving),
            _ => None,
        };
        dismissed.into_iter().chain(&self.draining)
    }

    fn leaving_mut(&mut self) -> impl Iterator<Item = &mut Leaving> {
        let dismissed = match &mut self.beside {
            Some((_, Standing::Dismissed(leaving))) => Some(leaving),
            _ => None,
        };
        dismissed.into_iter().chain(&mut self.draining)
    }
}

fn refusal(code: ErrorCode, message: String) -> Body {
    Body::Error(ProtocolError { code, message, versions: Vec::new() })
}

/// By what a process is asked to finish, and how long it may take.
fn drain_of(launch: &Launch) -> (Signal, Duration) {
    let signal = launch.drain_signal.unwrap_or(launch.stop_signal).signal();
    let limit = match launch.drain_timeout_ms {
        0 => launch.stop_timeout_ms,
        limit => limit,
    };
    (signal, Duration::from_millis(limit))
}

impl Keeper {
    /// Starts a process beside the current one.
    pub(super) fn start_beside(&mut self, launch: Launch, reply: &Reply) {
        let refuse = |code, message: &str| {
            let _ = reply.send(refusal(code, message.to_owned()));
        };
        if self.ending {
            return refuse(ErrorCode::WrongState, "the shim is about to end");
        }
        match &self.besides.beside {
            Some((same, Standing::Running(_))) if *same == launch => return self.say(reply),
            Some((_, Standing::Running(_) | Standing::Dismissed(_))) => {
                return refuse(ErrorCode::WrongState, "a process stands beside already; dismiss it first");
            }
            Some((_, Standing::Gone(_))) | None => self.besides.beside = None,
        }
        match &self.phase {
            Phase::Running(child) if !child.info.sockets.is_empty() && !launch.sockets.is_empty() => {}
            Phase::Running(_) => {
                let message = "the process that runs was started without the agent's sockets";
                return refuse(ErrorCode::CantStandBeside, message);
            }
            _ => return refuse(ErrorCode::CantStandBeside, "no process runs"),
        }
        if let Err(problem) = self.sockets.ensure(&launch.sockets) {
            // Other addresses than before, which the process that runs is in the way of.
            return refuse(ErrorCode::CantStandBeside, &problem);
        }
        let number = self.shared.output.begin_launch(launch.log_size);
        match self.spawn_process(&launch, number) {
            Ok(child) => {
                self.shared.output.announce(&Notice::Started(child.info.clone()));
                self.besides.beside = Some((launch, Standing::Running(child)));
                self.say(reply);
            }
            Err(error) => {
                self.forget_sockets();
                let _ = reply.send(Body::Error(error));
            }
        }
    }

    /// The process beside takes the place of the current one, which is asked to finish.
    pub(super) fn drain(&mut self, reply: Reply) {
        let (launch, child) = match self.besides.beside.take() {
            Some((launch, Standing::Running(child))) => (launch, child),
            Some((launch, other)) => {
                self.besides.beside = Some((launch, other));
                let _ = reply.send(refusal(ErrorCode::WrongState, "what stood beside has ended".to_owned()));
                return;
            }
            None => return self.when_drained(reply),
        };
        if matches!(self.phase, Phase::Stopping { .. }) {
            self.besides.beside = Some((launch, Standing::Running(child)));
            let _ = reply.send(refusal(ErrorCode::WrongState, "the process is being stopped".to_owned()));
            return;
        }
        let (signal, limit) = drain_of(&launch);
        let sockets = launch.sockets.clone();
        // From here on it is what a next shim starts.
        if let Err(error) =
            self.save_spec(Spec { run: true, launch: Some(launch.clone()), ..Spec::default() })
        {
            self.besides.beside = Some((launch, Standing::Running(child)));
            let _ = reply.send(Body::Error(error));
            return;
        }
        self.record.process = Some(child.info.identity());
        let _ = self.save_record();
        (self.restarts, self.attempt, self.number) = (0, 0, child.number);
        if let Phase::Running(old) = std::mem::replace(&mut self.phase, Phase::Running(child)) {
            signal_group(&old.info, signal, &self.shared.reaper);
            self.besides.draining.push(Leaving::new(old, limit, Vec::new()));
        }
        self.sockets.keep_only(&sockets);
        self.when_drained(reply);
    }

    fn when_drained(&mut self, reply: Reply) {
        match self.besides.draining.last_mut() {
            Some(leaving) if leaving.until.is_some() => leaving.replies.push(reply),
            _ => self.say(&reply),
        }
    }

    /// Ends the process beside; it may finish what it has begun, since it has served as well.
    pub(super) fn dismiss(&mut self, reply: Reply) {
        match self.besides.beside.take() {
            Some((launch, Standing::Running(child))) => {
                let (signal, limit) = drain_of(&launch);
                signal_group(&child.info, signal, &self.shared.reaper);
                let leaving = Leaving::new(child, limit, vec![reply]);
                self.besides.beside = Some((launch, Standing::Dismissed(leaving)));
            }
            Some((launch, Standing::Dismissed(mut leaving))) => {
                leaving.replies.push(reply);
                self.besides.beside = Some((launch, Standing::Dismissed(leaving)));
            }
            Some((_, Standing::Gone(_))) | None => {
                self.forget_sockets();
                self.say(&reply);
            }
        }
    }

    /// A stop is of all of them: they are asked to end, and killed when the current process has ended.
    pub(super) fn end_besides(&mut self) {
        let launch = self.spec.launch.as_ref();
        let limit = Duration::from_millis(launch.map_or(0, |launch| launch.stop_timeout_ms));
        if let Some((launch, Standing::Running(child))) =
            self.besides.beside.take_if(|(_, standing)| matches!(standing, Standing::Running(_)))
        {
            signal_group(&child.info, launch.stop_signal.signal(), &self.shared.reaper);
            let leaving = Leaving::new(child, limit, Vec::new());
            self.besides.beside = Some((launch, Standing::Dismissed(leaving)));
        }
        self.besides.beside.take_if(|(_, standing)| matches!(standing, Standing::Gone(_)));
        let latest = Instant::now() + limit;
        for leaving in self.besides.leaving_mut() {
            leaving.until = leaving.until.map(|until| until.min(latest));
        }
    }

    /// Kills what had its time.
    pub(super) fn besides_on_time(&mut self, now: Instant) {
        let mut kill = Vec::new();
        for leaving in self.besides.leaving_mut() {
            if leaving.until.is_none_or(|until| until > now) {
                continue;
            }
            if leaving.killed {
                leaving.give_up();
            } else {
                (leaving.killed, leaving.until) = (true, Some(now + KILL_LIMIT));
                kill.push(leaving.child.info.pid);
            }
        }
        for pid in kill {
            if let Some(leaving) = self.besides.leaving().find(|leaving| leaving.child.info.pid == pid) {
                self.kill_tree(&leaving.child);
            }
        }
    }

    /// Takes note of an end; `false` where it is none of theirs.
    pub(super) fn beside_ended(&mut self, ended: Ended) -> bool {
        if let Some(at) = self.besides.draining.iter().position(|leaving| leaving.child.info.pid == ended.pid)
        {
            let Leaving { child, killed, replies, .. } = self.besides.draining.remove(at);
            let _ = self.record_exit(&child, ended, true, killed);
            replies.iter().for_each(|reply| self.say(reply));
            return true;
        }
        let pid = match &self.besides.beside {
            Some((_, Standing::Running(child))) => child.info.pid,
            Some((_, Standing::Dismissed(leaving))) => leaving.child.info.pid,
            _ => return false,
        };
        if pid != ended.pid {
            return false;
        }
        match self.besides.beside.take() {
            Some((launch, Standing::Running(child))) => {
                let exit = self.record_exit(&child, ended, false, false);
                self.besides.beside = Some((launch, Standing::Gone(exit)));
            }
            Some((_, Standing::Dismissed(leaving))) => {
                let _ = self.record_exit(&leaving.child, ended, true, leaving.killed);
                self.forget_sockets();
                leaving.replies.iter().for_each(|reply| self.say(reply));
            }
            _ => {}
        }
        true
    }

    /// Closes what only a process needed that is gone.
    fn forget_sockets(&mut self) {
        let wanted = self.spec.launch.as_ref().map(|launch| launch.sockets.clone()).unwrap_or_default();
        self.sockets.keep_only(&wanted);
    }

    fn say(&self, reply: &Reply) {
        self.publish();
        let _ = reply.send(Body::Both(Box::new(self.shared.both())));
    }
}
