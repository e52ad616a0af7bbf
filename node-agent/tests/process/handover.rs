//! Sockets that outlive processes, and two processes at once, shown with real ones: a small server in Python which
//! answers each line with its version and its process id.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    process::Command,
    time::Duration,
};

use rustix::process::Signal;
use upfleet_agent::{
    processes::{Identity, descendants},
    shim::spec::SPEC,
    supervise::{Launch, ProcessInfo},
};
use upfleet_domain::reason::ReasonCode;

use super::support::{Fixture, until, until_gone};

/// Answers on what it was given. `wait` holds the answer back until the file `go` exists; `work` has a program do so, and
/// says its exit status; `orphan` leaves a process in a session of its own and says its id. By SIGTERM it says STOPPING=1, takes no more connections, answers what it
/// has begun, and ends. With a file `stubborn` it passes SIGTERM over.
pub const SERVER: &str = r#"
import os, select, signal, socket, subprocess, sys, threading, time
assert os.environ["LISTEN_PID"] == str(os.getpid()), os.environ["LISTEN_PID"]
names = os.environ["LISTEN_FDNAMES"].split(":")
assert len(names) == int(os.environ["LISTEN_FDS"])
here = os.path.dirname(os.path.abspath(sys.argv[0]))
sockets = [socket.socket(fileno=3 + i) for i in range(len(names))]
assert sys.stdin.read() == ""
def tell(text):
    if "NOTIFY_SOCKET" in os.environ:
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        name = os.environ["NOTIFY_SOCKET"]
        s.sendto(text.encode(), "\0" + name[1:] if name[0] == "@" else name)
stop = threading.Event()
busy = []
def serve(connection):
    with connection, connection.makefile("rw") as file:
        for line in file:
            word = line.strip()
            if word == "wait":
                while not os.path.exists(here + "/go"): time.sleep(0.005)
            extra = ""
            if word == "work":
                program = ["sh", "-c", "echo; until [ -e go ]; do sleep 0.01; done"]
                worker = subprocess.Popen(program, cwd=here, stdout=subprocess.PIPE, text=True)
                worker.stdout.readline()
                file.write("began " + str(worker.pid) + "\n"); file.flush()
                extra = " " + str(worker.wait())
            if word == "orphan":
                child = subprocess.Popen(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"], stdout=subprocess.PIPE, text=True)
                extra = " " + child.stdout.readline().strip()
                child.wait()
            file.write(VERSION + " " + str(os.getpid()) + extra + "\n"); file.flush()
            if stop.is_set(): break
def accept():
    while not stop.is_set():
        ready, _, _ = select.select(sockets, [], [], 0.01)
        for s in ready:
            try: connection, _ = s.accept()
            except BlockingIOError: continue
            connection.setblocking(True)
            thread = threading.Thread(target=serve, args=(connection,)); thread.start(); busy.append(thread)
def end(*_):
    if os.path.exists(here + "/stubborn"): return
    tell("STOPPING=1\nSTATUS=draining"); stop.set()
signal.signal(signal.SIGTERM, end)
for s in sockets: s.setblocking(False)
if not os.path.exists(here + "/silent"): tell("READY=1\nSTATUS=serving " + VERSION)
accept()
for thread in busy: thread.join()
"#;

pub fn python() -> Option<String> {
    let found = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().ok()?;
    Some(String::from_utf8_lossy(&found.stdout).trim().to_owned()).filter(|path| !path.is_empty())
}

/// A component with a TCP and a Unix socket.
pub struct Service {
    pub fixture: Fixture,
    pub address: SocketAddr,
    python: String,
}

impl Service {
    pub fn new(test: &str) -> Option<Self> {
        let Some(python) = python() else {
            super::files::skipped(test, "no python3");
            return None;
        };
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut fixture = Fixture::new("");
        let unix = fixture.file("sock");
        let run = format!(
            "activate = \"handover\"\ndrain_timeout = \"20s\"\nmode = \"supervised\"\nstop_timeout = \"20s\"\n\
             restart_delay = \"20ms\"\nrestart_delay_max = \"100ms\"\n\
             [[socket]]\nname = \"http\"\nlisten = \"{address}\"\n\
             [[socket]]\nname = \"unix\"\nlisten = {unix:?}\nmode = \"0600\"\n"
        );
        fixture.config.run = toml::from_str(&run).unwrap();
        fixture.config.probes = vec![toml::from_str("type = \"notify\"").unwrap()];
        fixture.refresh();
        let service = Self { fixture, address, python };
        service.install("one");
        Some(service)
    }

    pub fn install(&self, version: &str) {
        let text = format!("#!{}\nVERSION = {version:?}\n{SERVER}", self.python);
        self.fixture.install(text.as_bytes());
    }

    pub fn launch(&self) -> Launch {
        self.fixture.launch()
    }

    pub async fn start(&self) -> ProcessInfo {
        self.fixture.supervisor.start(&self.launch()).await.unwrap()
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// The version and process that a new connection comes to.
    pub fn ask(&self) -> (String, u32) {
        exchange(&self.connect(), "x")
    }

    /// Lets the process beside take over, and waits until the old one has finished.
    pub async fn hand_over(&self) {
        self.fixture.supervisor.drain().await.unwrap();
        self.until_draining(&[]).await;
    }

    /// Waits until just these processes drain.
    pub async fn until_draining(&self, pids: &[u32]) {
        until("drain", || async {
            (self.fixture.supervisor.both().await.unwrap().draining == pids).then_some(())
        })
        .await;
    }

    pub async fn ready(&self, pid: u32) {
        until("READY=1", || async {
            let both = self.fixture.supervisor.both().await.ok()?;
            let states = [Some(both.current), both.beside];
            let mut infos = states.iter().flatten().filter_map(|state| state.running());
            infos.find(|info| info.pid == pid)?.ready().ok()
        })
        .await;
    }
}

pub fn exchange(stream: &TcpStream, word: &str) -> (String, u32) {
    let mut stream = stream;
    writeln!(stream, "{word}").unwrap();
    answer(stream)
}

pub fn answer(stream: &TcpStream) -> (String, u32) {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    let mut words = line.split_whitespace();
    (words.next().expect("an answer").to_owned(), words.next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_process_finds_its_sockets_and_says_that_it_is_ready() {
    let Some(service) = Service::new("a_process_finds_its_sockets") else { return };
    let info = service.start().await;
    assert_eq!(info.sockets, ["http", "unix"]);
    assert_eq!(service.ask(), ("one".to_owned(), info.pid));
    let mut unix = UnixStream::connect(service.fixture.file("sock")).unwrap();
    writeln!(unix, "x").unwrap();
    let mut line = String::new();
    BufReader::new(unix).read_line(&mut line).unwrap();
    assert_eq!(line, format!("one {}\n", info.pid));
    service.ready(info.pid).await;
    let state = service.fixture.supervisor.process().await.unwrap();
    assert_eq!(state.running().unwrap().notified.as_ref().unwrap().status, "serving one");
    // Nothing but the process has them: its own files and those of the shim.
    service.fixture.supervisor.shutdown().await.unwrap();
    assert!(TcpStream::connect(service.address).is_err());
    assert!(!service.fixture.file("sock").exists(), "the file goes with the component");
}

#[tokio::test]
async fn connections_wait_while_no_process_runs() {
    let Some(service) = Service::new("connections_wait") else { return };
    let info = service.start().await;
    service.fixture.supervisor.stop().await.unwrap();
    let waiting = service.connect();
    let mut writer = &waiting;
    writeln!(writer, "x").unwrap();
    let next = service.start().await;
    assert_ne!(next.pid, info.pid);
    assert_eq!(answer(&waiting), ("one".to_owned(), next.pid));
    // Also while it is restarted after a crash.
    assert!(next.identity().signal(Signal::KILL));
    let (_, third) = service.ask();
    assert_ne!(third, next.pid);
}

#[tokio::test]
async fn the_new_process_takes_over_and_the_old_one_finishes() {
    let Some(service) = Service::new("the_new_process_takes_over") else { return };
    let supervisor = &service.fixture.supervisor;
    let old = service.start().await;
    service.ready(old.pid).await;
    let begun = service.connect();
    let mut writer = &begun;
    writeln!(writer, "wait").unwrap();
    service.install("two");
    let new = supervisor.start_beside(&service.launch()).await.unwrap();
    assert_ne!(new.pid, old.pid);
    assert_eq!(supervisor.start_beside(&service.launch()).await.unwrap().pid, new.pid, "started once");
    service.ready(new.pid).await;
    assert_eq!(supervisor.process().await.unwrap().up(), Ok(old.pid), "the old one is the current one");
    supervisor.drain().await.unwrap();
    assert_eq!(supervisor.both().await.unwrap().draining, [old.pid]);
    assert_eq!(supervisor.process().await.unwrap().up(), Ok(new.pid));
    assert!(old.identity().is_running(), "it has not answered yet");
    std::fs::write(service.fixture.file("go"), "").unwrap();
    assert_eq!(answer(&begun), ("one".to_owned(), old.pid));
    service.until_draining(&[]).await;
    assert!(!old.identity().is_running());
    assert_eq!(service.ask(), ("two".to_owned(), new.pid));
    supervisor.drain().await.unwrap();
    // What was in force last is what is started again.
    assert!(new.identity().signal(Signal::KILL));
    assert_eq!(service.ask().0, "two");
}

#[tokio::test]
async fn a_dismissed_process_leaves_the_old_one_as_it_was() {
    let Some(service) = Service::new("a_dismissed_process") else { return };
    let supervisor = &service.fixture.supervisor;
    let old = service.start().await;
    // A script is read after its process was started.
    service.ready(old.pid).await;
    let spec = std::fs::read(service.fixture.shim_dir().join(SPEC)).unwrap();
    service.install("two");
    let new = supervisor.start_beside(&service.launch()).await.unwrap();
    supervisor.dismiss().await.unwrap();
    assert!(!new.identity().is_running());
    assert_eq!(supervisor.process().await.unwrap().up(), Ok(old.pid));
    assert_eq!(supervisor.both().await.unwrap().beside, None);
    assert_eq!(service.ask(), ("one".to_owned(), old.pid));
    assert_eq!(std::fs::read(service.fixture.shim_dir().join(SPEC)).unwrap(), spec);
    supervisor.dismiss().await.unwrap();
    // One that ends by itself stays ended, and is seen.
    let third = supervisor.start_beside(&service.launch()).await.unwrap();
    assert!(third.identity().signal(Signal::KILL));
    let exit = until("its end", || async {
        let beside = supervisor.both().await.unwrap().beside?;
        beside.last_exit().cloned()
    })
    .await;
    assert_eq!((exit.pid, exit.signal), (third.pid, Some(9)));
    let fault = supervisor.drain().await.expect_err("nothing is promoted that has ended");
    assert_eq!(fault.reason.code, ReasonCode::ProcessExited);
    assert!(fault.reason.message().contains("signal 9"), "{fault}");
    assert_eq!(service.ask(), ("one".to_owned(), old.pid));
    supervisor.dismiss().await.unwrap();
}

#[tokio::test]
async fn what_drains_too_long_is_killed_with_what_it_started_and_nothing_else() {
    let Some(mut service) = Service::new("what_drains_too_long") else { return };
    let old = service.start().await;
    let orphan = |stream: &TcpStream| -> u32 {
        let mut writer = stream;
        writeln!(writer, "orphan").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line.split_whitespace().nth(2).unwrap().parse().unwrap()
    };
    service.ready(old.pid).await;
    let of_old = Identity::of(orphan(&service.connect())).unwrap();
    std::fs::write(service.fixture.file("stubborn"), "").unwrap();
    service.install("two");
    service.fixture.config.run.drain_timeout = Duration::from_millis(200);
    service.fixture.config.run.stop_timeout = Duration::from_millis(200);
    service.fixture.refresh();
    let supervisor = &service.fixture.supervisor;
    let new = supervisor.start_beside(&service.launch()).await.unwrap();
    // Which of the two a connection comes to is the kernel's choice.
    let of_new = until("an answer of the new one", || async {
        let stream = service.connect();
        let mut writer = &stream;
        writeln!(writer, "orphan").unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let words: Vec<u32> = line.split_whitespace().skip(1).map(|word| word.parse().unwrap()).collect();
        (words[0] == new.pid).then(|| Identity::of(words[1]).unwrap())
    })
    .await;
    service.hand_over().await;
    assert!(!old.identity().is_running() && !of_old.is_running());
    assert!(new.identity().is_running() && of_new.is_running());
    let record = service.fixture.record();
    let exit = record.exits.back().unwrap();
    assert_eq!((exit.pid, exit.signal, exit.killed), (old.pid, Some(9), true));
    // A stop ends what is left, all of it.
    supervisor.stop().await.unwrap();
    assert_eq!(descendants(service.fixture.shim().pid), []);
}

#[tokio::test]
async fn what_was_started_without_sockets_can_t_be_stood_beside() {
    let Some(service) = Service::new("what_was_started_without_sockets") else { return };
    let supervisor = &service.fixture.supervisor;
    let bare = Launch { sockets: vec![], argv: vec!["/bin/sleep".into(), "1000".into()], ..service.launch() };
    supervisor.start(&bare).await.unwrap();
    let fault = supervisor.start_beside(&service.launch()).await.unwrap_err();
    assert_eq!(fault.reason.code, ReasonCode::HandoverUnavailable);
    supervisor.stop().await.unwrap();
    let fault = supervisor.start_beside(&service.launch()).await.unwrap_err();
    assert_eq!(fault.reason.code, ReasonCode::HandoverUnavailable);
    // A port that somebody else has is said, and the process is not started.
    let taken = TcpListener::bind(service.address).unwrap();
    let fault = supervisor.start(&service.launch()).await.unwrap_err();
    assert!(fault.reason.message().contains("could not listen"), "{fault}");
    drop(taken);
    service.start().await;
}

#[tokio::test]
async fn a_killed_shim_leaves_nothing_and_the_next_one_starts_what_was_in_force() {
    let Some(service) = Service::new("a_killed_shim") else { return };
    let supervisor = &service.fixture.supervisor;
    let old = service.start().await;
    let new = supervisor.start_beside(&service.launch()).await.unwrap();
    for drained in [false, true] {
        if drained {
            let beside = supervisor.start_beside(&service.launch()).await.unwrap();
            service.hand_over().await;
            assert_eq!(supervisor.process().await.unwrap().up(), Ok(beside.pid));
        }
        let shim = service.fixture.shim();
        let all = descendants(shim.pid);
        assert!(shim.signal(Signal::KILL));
        until_gone(&shim).await;
        supervisor.ensure_shim().await.unwrap();
        assert!(all.iter().all(|process| !process.is_running()));
        assert_eq!(supervisor.both().await.unwrap().beside, None);
        let (version, pid) = service.ask();
        assert!(version == "one" && pid != old.pid && pid != new.pid);
    }
}
