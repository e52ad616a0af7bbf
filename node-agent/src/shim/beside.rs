//! Two processes at once: one that stands beside the current one while it is judged, and those that were asked to
//! finish. A part of the keeper, which alone decides.
//!
//! `spec.json` names what is to run: until the keeper is told to drain, the current process; from then on the one that
//! stood beside it. So whatever is lost, the next shim starts what was in force. A process that stands beside and ends
//! is not started again: whoever judges it sees that it ended. Where the current one ends meanwhile it is started
//! again as ever, which fails while the file in its place is another one; the sockets are served by the other process.
//!
//! Whoever is asked to finish is signalled alone: what it has started belongs to what it is to finish. It is killed
//! after its time, with what it has started and nothing else. Whoever asked need not wait: a drain goes on without a
//! client, and meanwhile everything else can be asked for.
//!
//! What ends with what: a stop ends all of them; a shim that is killed takes none of them along, and the next one kills all of them, since
//! the sockets died with the shim; the end of the lifeline kills all of them.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{
    child::{Child, signal_group},
    keeper::{KILL_LIMIT, Keeper, Phase, Reply},
    notify::Notify,
    protocol::{Body, ErrorCode, Event as Notice, ExitRecord, ProcessState, ProtocolError},
    reaper::Ended,
    shared::View,
    spec::{Launch, Spec},
    tree::Main,
};
use crate::processes::Identity;

/// The processes beside the current one.
#[derive(Default)]
pub struct Besides {
    beside: Option<(Launch, Standing)>,
    /// What stood beside last was dismissed, and does not take over whoever still asks for it.
    dismissed: bool,
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
        let answer = self.unending();
        self.replies.drain(..).for_each(|reply| drop(reply.send(answer.clone())));
        eprintln!("upfleet-agent shim: process {} does not end, not even by SIGKILL", self.child.info.pid);
    }

    fn unending(&self) -> Body {
        unending(&self.child)
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

    /// Those that were asked to finish, as long as they can be expected to end.
    #[must_use]
    pub fn draining(&self) -> Vec<u32> {
        let expected = self.draining.iter().filter(|leaving| leaving.until.is_some());
        expected.map(|leaving| leaving.child.info.pid).collect()
    }

    /// Those of the process that stands beside, and of those that drain.
    #[must_use]
    pub fn identities(&self) -> Vec<Identity> {
        let beside = match &self.beside {
            Some((_, Standing::Running(child))) => Some(child.info.identity()),
            _ => None,
        };
        beside.into_iter().chain(self.leaving().map(|leaving| leaving.child.info.identity())).collect()
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

/// What is said of a process that was killed and is still there.
pub(super) fn unending(child: &Child) -> Body {
    let message = format!("process {} does not end, not even by SIGKILL", child.info.pid);
    refusal(ErrorCode::StopFailed, message)
}

/// By what a process that stands beside is asked to end. One that was to say when it serves, and has not, has nothing
/// to finish: what it takes from the sockets meanwhile is lost.
fn dismissal_of(launch: &Launch, child: &Child) -> (Signal, Duration) {
    let (signal, limit) = drain_of(launch);
    let served = child.notify.as_ref().is_none_or(Notify::was_ready);
    let stop = Duration::from_millis(launch.stop_timeout_ms);
    if served { (signal, limit) } else { (launch.stop_signal.signal(), limit.min(stop)) }
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
        if let Err(problem) = self.open_beside(&launch) {
            self.forget_sockets();
            let _ = reply.send(Body::Error(problem));
            return;
        }
        let number = self.shared.output.begin_launch(launch.log_size);
        match self.spawn_process(&launch, number) {
            Ok(child) => {
                self.shared.output.announce(&Notice::Started(child.info.clone()));
                self.besides.beside = Some((launch, Standing::Running(child)));
                self.besides.dismissed = false;
                self.record_besides();
                self.say(reply);
            }
            Err(error) => {
                self.forget_sockets();
                let _ = reply.send(Body::Error(error));
            }
        }
    }

    /// Opens what sockets a process beside the current one needs. An address that the current process's sockets are in
    /// the way of can be had once that has ended. Any other that can't be had is none that its end would help.
    fn open_beside(&mut self, launch: &Launch) -> Result<(), ProtocolError> {
        let wanted = &launch.sockets;
        let (barred, free): (Vec<_>, Vec<_>) =
            wanted.iter().cloned().partition(|spec| self.sockets.in_the_way_of(spec).is_some());
        let error = |code, message| ProtocolError { code, message, versions: Vec::new() };
        self.sockets.ensure(&free).map_err(|problem| error(ErrorCode::StartFailed, problem))?;
        let Some((spec, other)) =
            barred.iter().find_map(|spec| Some((spec, self.sockets.in_the_way_of(spec)?)))
        else {
            return Ok(());
        };
        let message =
            format!("could not listen on `{}` while `{}` is listened on", spec.listen, other.listen);
        Err(error(ErrorCode::CantStandBeside, message))
    }

    /// Puts the processes beside the current one on record. Without it a next shim finds all that stayed in its session.
    fn record_besides(&mut self) {
        self.record.besides = self.besides.identities();
        let _ = self.save_record();
    }

    /// The process beside takes the place of the current one, which is asked to finish.
    pub(super) fn drain(&mut self, reply: &Reply) {
        let refuse = |code, message: &str| {
            let _ = reply.send(refusal(code, message.to_owned()));
        };
        let (launch, child) = match self.besides.beside.take() {
            Some((launch, Standing::Running(child))) => (launch, child),
            Some((launch, other)) => {
                let gone = matches!(other, Standing::Gone(_));
                self.besides.beside = Some((launch, other));
                return match gone {
                    true => refuse(ErrorCode::BesideEnded, "what stood beside has ended"),
                    false => refuse(ErrorCode::WrongState, "what stood beside was dismissed"),
                };
            }
            None if self.besides.dismissed => {
                return refuse(ErrorCode::WrongState, "what stood beside was dismissed");
            }
            None => return self.say(reply),
        };
        if matches!(self.phase, Phase::Stopping { .. }) {
            self.besides.beside = Some((launch, Standing::Running(child)));
            return refuse(ErrorCode::WrongState, "the process is being stopped");
        }
        match self.take_over(launch, child) {
            Ok(()) => self.say(reply),
            Err(error) => drop(reply.send(Body::Error(error))),
        }
    }

    fn take_over(&mut self, launch: Launch, child: Child) -> Result<(), ProtocolError> {
        let (signal, limit) = drain_of(&launch);
        let sockets = launch.sockets.clone();
        // From here on it is what a next shim starts.
        if let Err(error) =
            self.save_spec(Spec { run: true, launch: Some(launch.clone()), ..Spec::default() })
        {
            self.besides.beside = Some((launch, Standing::Running(child)));
            return Err(error);
        }
        self.record.process = Some(child.info.identity());
        (self.restarts, self.attempt, self.number) = (0, 0, child.number);
        if let Phase::Running(old) = std::mem::replace(&mut self.phase, Phase::Running(child)) {
            let _ = old.info.identity().signal(signal);
            self.besides.draining.push(Leaving::new(old, limit, Vec::new()));
        }
        self.record_besides();
        self.sockets.keep_only(&sockets);
        Ok(())
    }

    /// Ends the process beside; it may finish what it has begun, where it has served as well.
    pub(super) fn dismiss(&mut self, reply: Reply) {
        self.besides.dismissed |= self.besides.beside.is_some();
        match self.besides.beside.take() {
            Some((launch, Standing::Running(child))) => {
                let (signal, limit) = dismissal_of(&launch, &child);
                let _ = child.info.identity().signal(signal);
                let leaving = Leaving::new(child, limit, vec![reply]);
                self.besides.beside = Some((launch, Standing::Dismissed(leaving)));
            }
            Some((launch, Standing::Dismissed(mut leaving))) => {
                match leaving.until {
                    Some(_) => leaving.replies.push(reply),
                    None => drop(reply.send(leaving.unending())),
                }
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
            let Leaving { child, killed, .. } = self.besides.draining.remove(at);
            let _ = self.record_exit(&child, ended, true, killed);
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
        self.sockets.restore(&wanted);
    }

    fn say(&self, reply: &Reply) {
        self.publish();
        let _ = reply.send(Body::Both(Box::new(self.shared.both())));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        process::Command,
        sync::{
            Arc,
            mpsc::{Receiver, sync_channel},
        },
    };

    use upfleet_domain::digest::Digest;

    use super::*;
    use crate::shim::{child::now, output::Output, protocol::ProcessInfo, shared::Shared};

    const LAUNCH: &str = r#"{"argv":[],"env":{},"cwd":"/","file":"/a","expect":null,"stop_signal":"SIGTERM",
        "stop_timeout_ms":1,"restart_delay_ms":1,"restart_delay_max_ms":1,"log_size":1}"#;

    /// One that was killed in vain.
    fn given_up(child: &std::process::Child) -> Leaving {
        let Identity { boot_id, pid, start_time } = Identity::of(child.id()).unwrap();
        let info = ProcessInfo {
            pid,
            start_time,
            boot_id,
            digest: Digest::of(b""),
            exact: true,
            stack: None,
            since: now(),
            restarts: 0,
            sockets: vec![],
            notified: None,
        };
        let child = Child { info, started: Instant::now(), file: None, number: 1, notify: None };
        let mut leaving = Leaving::new(child, Duration::ZERO, vec![]);
        leaving.killed = true;
        leaving.give_up();
        leaving
    }

    fn code(answer: &Receiver<Body>) -> Option<ErrorCode> {
        match answer.try_recv().expect("an answer at once") {
            Body::Error(error) => Some(error.code),
            _ => None,
        }
    }

    #[test]
    fn whoever_asks_about_what_can_t_be_killed_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let shared = Arc::new(Shared::new(Output::new(dir.path().to_owned())));
        let mut keeper = Keeper::new(dir.path().to_owned(), shared).unwrap();
        let launch: Launch = serde_json::from_str(LAUNCH).unwrap();
        keeper.besides.beside = Some((launch, Standing::Dismissed(given_up(&process))));
        let (reply, answer) = sync_channel(1);
        keeper.dismiss(reply.clone());
        assert_eq!(code(&answer), Some(ErrorCode::StopFailed));
        keeper.drain(&reply);
        assert_eq!(code(&answer), Some(ErrorCode::WrongState));
        // A stop of the process itself, that is as stubborn.
        let Some((_, Standing::Dismissed(Leaving { child, .. }))) = keeper.besides.beside.take() else {
            panic!("it stands there still")
        };
        keeper.phase = Phase::Stopping { child, until: None, killed: true, replies: vec![] };
        keeper.stop(reply.clone());
        assert_eq!(code(&answer), Some(ErrorCode::StopFailed));
        // One that drains is waited for only as long as it can be expected to end.
        keeper.phase = Phase::Stopped;
        keeper.besides = Besides::default();
        let mut draining = given_up(&process);
        draining.until = Some(Instant::now());
        keeper.besides.draining.push(draining);
        assert_eq!(keeper.besides.draining(), [process.id()]);
        keeper.besides_on_time(Instant::now());
        assert!(keeper.besides.draining().is_empty());
        keeper.drain(&reply);
        assert_eq!(code(&answer), None);
        process.kill().unwrap();
        process.wait().unwrap();
    }
}
