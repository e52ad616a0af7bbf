//! One faked service: its life, without any D-Bus. Everything here blocks.

use std::{
    fs::{self, OpenOptions},
    net::{SocketAddr, TcpListener},
    os::{
        fd::OwnedFd,
        unix::{net::UnixDatagram, process::CommandExt as _, process::ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, kill_process},
};

use super::unit_file::UnitFile;

/// How often what is waited for is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// What systemd does where a unit says nothing.
const TIMEOUT: Duration = Duration::from_secs(90);

/// How a unit stands, as its properties say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub load: &'static str,
    pub active: &'static str,
    pub sub: &'static str,
    pub result: &'static str,
    pub main_pid: u32,
    pub restarts: u32,
    pub exit: (i32, i32),
    pub invocation: String,
    pub job: u32,
    pub outdated: bool,
}

/// A service.
pub struct Service {
    dir: PathBuf,
    /// The unit's name.
    pub name: String,
    state: Mutex<State>,
    /// Jobs of a unit follow each other.
    jobs: Mutex<()>,
    /// Where an active socket unit of the same name listens.
    socket: Mutex<Option<TcpListener>>,
}

struct State {
    file: UnitFile,
    standing: Standing,
    starts: Vec<Instant>,
    /// Raised by whatever ends a life: what still waits for that life's end has no say any more.
    life: u64,
    ready: bool,
}

impl Service {
    /// Reads a unit's files. Nothing is started.
    pub fn load(dir: &Path, name: &str) -> Self {
        let file = UnitFile::read(dir, name);
        let standing = Standing {
            load: file.load,
            active: "inactive",
            sub: "dead",
            result: "success",
            main_pid: 0,
            restarts: 0,
            exit: (0, 0),
            invocation: String::new(),
            job: 0,
            outdated: false,
        };
        let state = State { file, standing, starts: Vec::new(), life: 0, ready: false };
        let (dir, name) = (dir.to_owned(), name.to_owned());
        Self { dir, name, state: Mutex::new(state), jobs: Mutex::default(), socket: Mutex::default() }
    }

    /// Starts its socket unit: its processes are given the socket, and a connection that nobody takes starts it.
    pub fn listen_for(self: &Arc<Self>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        *self.socket.lock().unwrap() = Some(listener.try_clone().unwrap());
        let own = Arc::clone(self);
        thread::spawn(move || {
            let pause = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            while own.socket.lock().unwrap().is_some() {
                let waiting = poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&pause)).unwrap() > 0;
                let down = matches!(own.state().standing.active, "inactive" | "failed");
                if waiting && down {
                    own.start();
                }
                thread::sleep(LOOK);
            }
        });
        address
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Reads the files again.
    pub fn reload(&self) {
        let file = UnitFile::read(&self.dir, &self.name);
        let mut state = self.state();
        state.standing.load = file.load;
        state.file = file;
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        let outdated = UnitFile::read(&self.dir, &self.name) != self.state().file;
        Standing { outdated, ..self.state().standing.clone() }
    }

    /// What its files say.
    pub fn file(&self) -> UnitFile {
        self.state().file.clone()
    }

    /// Where its output goes.
    pub fn journal(&self) -> PathBuf {
        self.dir.join(format!("{}.journal", self.name))
    }

    /// Names the job under way, 0 for none.
    pub fn set_job(&self, job: u32) {
        self.state().standing.job = job;
    }

    /// `ResetFailed`.
    pub fn reset_failed(&self) {
        let mut state = self.state();
        state.starts.clear();
        state.standing.restarts = 0;
        state.standing.result = "success";
        if state.standing.active == "failed" {
            (state.standing.active, state.standing.sub) = ("inactive", "dead");
        }
    }

    /// A start job, with its result.
    pub fn start(self: &Arc<Self>) -> &'static str {
        let _one_after_the_other = self.jobs.lock().unwrap();
        {
            let state = self.state();
            if state.standing.load != "loaded" {
                return "failed";
            }
            if state.standing.active == "active" {
                return "done";
            }
        }
        // A start that is under way, or that the manager is about to begin itself, is joined.
        loop {
            let mut state = self.state();
            match state.standing.active {
                "activating" => {}
                "active" => return "done",
                "deactivating" => return "canceled",
                _ => {
                    state.standing.restarts = 0;
                    break;
                }
            }
            drop(state);
            thread::sleep(LOOK);
        }
        self.begin()
    }

    /// One life: from the start limit to the main process. Also where systemd restarts by itself.
    fn begin(self: &Arc<Self>) -> &'static str {
        let (file, life) = {
            let mut state = self.state();
            state.life += 1;
            if !state.file.may_start() {
                (state.standing.active, state.standing.sub) = ("inactive", "dead");
                return "done";
            }
            let burst: usize = state.file.get("StartLimitBurst").map_or(5, |text| text.parse().unwrap());
            let interval = state.file.span("StartLimitIntervalSec", Duration::from_secs(10));
            state.starts.retain(|start| interval.is_none_or(|interval| start.elapsed() < interval));
            if burst > 0 && state.starts.len() >= burst {
                self.fail(&mut state, "start-limit-hit");
                return "failed";
            }
            state.starts.push(Instant::now());
            state.ready = false;
            let standing = &mut state.standing;
            standing.invocation = invocation();
            (standing.active, standing.sub, standing.result) = ("activating", "start-pre", "success");
            (state.file.clone(), state.life)
        };
        for (command, ignored) in file.commands("ExecStartPre") {
            let status = self.command(&file, &command).status();
            if !ignored && !status.is_ok_and(|status| status.success()) {
                self.fail(&mut self.state(), "exit-code");
                return "failed";
            }
        }
        let (command, _) = file.commands("ExecStart").pop().unwrap();
        let notify = matches!(file.get("Type"), Some("notify" | "notify-reload"));
        let socket = notify.then(|| self.notify_socket());
        let spawned = self.main_command(&file, &command).spawn();
        let mut state = self.state();
        if state.life != life {
            // Ended meanwhile: by a stop, or with everything else.
            drop(state);
            if let Ok(mut child) = spawned {
                let _ = child.kill();
                let _ = child.wait();
            }
            return "canceled";
        }
        let Ok(child) = spawned else {
            // systemd's own word for a program that can't be executed.
            state.standing.exit = (1, 203);
            drop(state);
            self.over(life, (1, 203));
            return "done";
        };
        state.standing.main_pid = child.id();
        let up = if notify { ("activating", "start") } else { ("active", "running") };
        (state.standing.active, state.standing.sub) = up;
        drop(state);
        let own = Arc::clone(self);
        thread::spawn(move || own.watch(life, child));
        match socket {
            Some(socket) => self.wait_until_ready(life, &file, socket),
            None => "done",
        }
    }

    fn command(&self, file: &UnitFile, words: &[String]) -> Command {
        let journal = || OpenOptions::new().create(true).append(true).open(self.journal()).unwrap();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().env("PATH", "/usr/bin:/bin").current_dir("/").process_group(0);
        command.env("INVOCATION_ID", &self.state().standing.invocation).envs(file.environment());
        command.env("NOTIFY_SOCKET", self.socket_path());
        if let Some(watchdog) = file.get("WatchdogSec").and(file.span("WatchdogSec", TIMEOUT)) {
            command.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        }
        command.stdin(Stdio::null()).stdout(journal()).stderr(journal());
        command
    }

    /// The main process's, with the socket where there is one.
    fn main_command(&self, file: &UnitFile, words: &[String]) -> Command {
        let socket = self.socket.lock().unwrap();
        let Some(socket) = socket.as_ref() else { return self.command(file, words) };
        // The shell becomes the program, so that its number is the one that is told.
        let script = "export LISTEN_PID=$$; exec \"$0\" \"$@\" 3<&0 </dev/null";
        let shell = [&["/bin/sh", "-c", script].map(str::to_owned), words].concat();
        let mut command = self.command(file, &shell);
        command.envs([("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "http")]);
        command.stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap())));
        command
    }

    fn socket_path(&self) -> PathBuf {
        self.dir.join(format!("{}.notify", self.name))
    }

    fn notify_socket(&self) -> UnixDatagram {
        let _ = fs::remove_file(self.socket_path());
        let socket = UnixDatagram::bind(self.socket_path()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        socket
    }

    /// Waits for `READY=1`; a thread then goes on listening for the watchdog's sake.
    fn wait_until_ready(self: &Arc<Self>, life: u64, file: &UnitFile, socket: UnixDatagram) -> &'static str {
        let limit = file.span("TimeoutStartSec", TIMEOUT);
        let watchdog = file.get("WatchdogSec").and_then(|_| file.span("WatchdogSec", TIMEOUT));
        let own = Arc::clone(self);
        thread::spawn(move || own.listen(life, watchdog, &socket));
        let begun = Instant::now();
        loop {
            {
                let mut state = self.state();
                if state.life != life || state.standing.main_pid == 0 {
                    return "failed";
                }
                if state.ready {
                    (state.standing.active, state.standing.sub) = ("active", "running");
                    return "done";
                }
                if limit.is_some_and(|limit| begun.elapsed() > limit) {
                    self.fail(&mut state, "timeout");
                    drop(state);
                    self.kill(Signal::KILL);
                    return "timeout";
                }
            }
            thread::sleep(LOOK);
        }
    }

    fn listen(&self, life: u64, watchdog: Option<Duration>, socket: &UnixDatagram) {
        let (mut buffer, mut fed) = ([0; 4096], Instant::now());
        while self.state().life == life {
            let length = socket.recv(&mut buffer).unwrap_or(0);
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.lines().any(|line| line == "READY=1") {
                self.state().ready = true;
                fed = Instant::now();
            }
            if text.lines().any(|line| line == "WATCHDOG=1") {
                fed = Instant::now();
            }
            if self.state().ready && watchdog.is_some_and(|limit| fed.elapsed() > limit) {
                self.state().standing.result = "watchdog";
                self.kill(Signal::ABORT);
                fed = Instant::now();
            }
        }
    }

    /// Waits for the end of the main process.
    fn watch(self: &Arc<Self>, life: u64, mut child: Child) {
        let pid = child.id();
        let status = child.wait().unwrap();
        {
            let mut state = self.state();
            if state.standing.main_pid == pid {
                state.standing.main_pid = 0;
                state.standing.exit = exit(status);
            }
        }
        self.over(life, exit(status));
    }

    /// The main process has ended by itself: systemd ends the rest of its control group, and restarts it or not.
    fn over(self: &Arc<Self>, life: u64, exit: (i32, i32)) {
        let restart = {
            let mut state = self.state();
            if state.life != life {
                return;
            }
            state.life += 1;
            let clean = exit == (1, 0) || state.file.names("SuccessExitStatus", exit);
            let restart = match state.file.get("Restart") {
                _ if state.file.names("RestartForceExitStatus", exit) => true,
                Some("always") => true,
                Some("on-failure") => !clean,
                _ => false,
            };
            let was = state.standing.result;
            let result = match exit.0 {
                _ if was == "watchdog" || was == "timeout" => was,
                1 if clean => "success",
                1 => "exit-code",
                _ => "signal",
            };
            state.standing.result = result;
            let standing = match (restart, clean) {
                (true, _) => ("activating", "auto-restart"),
                (false, true) => ("inactive", "dead"),
                (false, false) => ("failed", "failed"),
            };
            (state.standing.active, state.standing.sub) = standing;
            restart.then_some(state.life)
        };
        if !self.spares() {
            self.signal(Signal::KILL);
        }
        let Some(life) = restart else { return };
        let pause = self.file().span("RestartSec", Duration::from_millis(100)).unwrap();
        let begun = Instant::now();
        while begun.elapsed() < pause {
            thread::sleep(LOOK.min(pause));
            if self.state().life != life {
                return;
            }
        }
        self.state().standing.restarts += 1;
        self.begin();
    }

    fn fail(&self, state: &mut State, result: &'static str) {
        (state.standing.active, state.standing.sub, state.standing.result) = ("failed", "failed", result);
    }

    /// A stop job, with its result.
    pub fn stop(&self) -> &'static str {
        let file = {
            let mut state = self.state();
            if matches!(state.standing.active, "inactive" | "failed") {
                return "done";
            }
            state.life += 1;
            (state.standing.active, state.standing.sub) = ("deactivating", "stop-sigterm");
            state.file.clone()
        };
        let _one_after_the_other = self.jobs.lock().unwrap();
        let limit = file.span("TimeoutStopSec", TIMEOUT);
        self.kill(Signal::TERM);
        let ended = self.wait_until_empty(limit);
        if !ended {
            self.kill(Signal::KILL);
            self.wait_until_empty(Some(Duration::from_secs(20)));
        }
        let mut state = self.state();
        match ended {
            true => {
                (state.standing.active, state.standing.sub, state.standing.result) =
                    ("inactive", "dead", "success")
            }
            false => self.fail(&mut state, "timeout"),
        }
        "done"
    }

    fn wait_until_empty(&self, limit: Option<Duration>) -> bool {
        let begun = Instant::now();
        while self.state().standing.main_pid != 0 || !(self.spares() || self.group().is_empty()) {
            if limit.is_some_and(|limit| begun.elapsed() > limit) {
                return false;
            }
            thread::sleep(LOOK);
        }
        true
    }

    /// Whether only the main process is ever ended: `KillMode=process`.
    fn spares(&self) -> bool {
        self.state().file.get("KillMode") == Some("process")
    }

    /// Signals what the unit's `KillMode=` says.
    fn kill(&self, signal: Signal) {
        if !self.spares() {
            return self.signal(signal);
        }
        if let Some(pid) = Pid::from_raw(self.state().standing.main_pid.cast_signed()) {
            let _ = kill_process(pid, signal);
        }
    }

    /// The processes of the control group.
    pub fn group(&self) -> Vec<Pid> {
        let invocation = self.state().standing.invocation.clone();
        if invocation.is_empty() {
            return Vec::new();
        }
        let mark = format!("INVOCATION_ID={invocation}").into_bytes();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let own = |pid: &i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|word| word == mark)
        };
        pids.filter(own).filter_map(Pid::from_raw).collect()
    }

    /// Signals the whole control group.
    pub fn signal(&self, signal: Signal) {
        for pid in self.group() {
            let _ = kill_process(pid, signal);
        }
    }

    /// Ends everything, as a machine that loses its power.
    pub fn end(&self) {
        *self.socket.lock().unwrap() = None;
        {
            let mut state = self.state();
            state.life += 1;
            (state.standing.active, state.standing.sub) = ("inactive", "dead");
        }
        self.signal(Signal::KILL);
    }
}

fn exit(status: ExitStatus) -> (i32, i32) {
    match (status.code(), status.signal()) {
        (Some(code), _) => (1, code),
        (None, signal) => (2, signal.unwrap_or(0)),
    }
}

fn invocation() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{:016x}{:016x}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}
