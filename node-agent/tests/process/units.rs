//! The agent as a unit of systemd sees it: what it tells a service manager, and the check before a JVM's start.

use std::{
    collections::VecDeque,
    fs,
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use upfleet_agent::exec::{
    Place,
    stack::{Content, SetFile, SetFiles, switch},
};
use upfleet_domain::jvm::Mechanism;

use crate::support::AGENT;

/// A node with one component that nothing runs, and a service manager that only listens.
struct Unit {
    dir: TempDir,
    socket: UnixDatagram,
    agent: Option<Child>,
    said: VecDeque<String>,
}

impl Unit {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display();
        let text = format!(
            "state_dir = \"{path}/state\"\nrun_dir = \"{path}/run\"\n[[component]]\nname = \"shop\"\n\
             path = \"{path}/shop.jar\"\n[component.run]\nmode = \"none\"\n"
        );
        fs::write(dir.path().join("agent.toml"), text).unwrap();
        fs::write(dir.path().join("shop.jar"), "a jar").unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self { dir, socket, agent: None, said: VecDeque::new() }
    }

    fn run(&mut self, watchdog: &str) {
        let mut command = self.command(&["run"]);
        command.env("NOTIFY_SOCKET", self.dir.path().join("notify")).env("WATCHDOG_USEC", watchdog);
        self.agent = Some(command.stderr(Stdio::null()).spawn().unwrap());
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(AGENT);
        command.arg("--config").arg(self.dir.path()).args(arguments).stdin(Stdio::null());
        command
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.agent.as_ref().unwrap().id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Waits for the next line that begins with `wanted`; passes over others.
    fn heard(&mut self, wanted: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut bytes = [0; 4096];
        loop {
            while let Some(line) = self.said.pop_front() {
                if line.starts_with(wanted) {
                    return line;
                }
            }
            assert!(Instant::now() < deadline, "no {wanted} within a minute");
            if let Ok(length) = self.socket.recv(&mut bytes) {
                self.said.extend(String::from_utf8_lossy(&bytes[..length]).lines().map(str::to_owned));
            }
        }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

#[test]
fn the_agent_tells_its_service_manager_how_it_does() {
    let mut unit = Unit::new();
    unit.run("1500000");
    unit.heard("READY=1");
    unit.heard("STATUS=shop healthy; not enrolled");
    for _ in 0..3 {
        unit.heard("WATCHDOG=1");
    }
    unit.signal(Signal::HUP);
    unit.heard("RELOADING=1");
    let micros: u64 = unit.heard("MONOTONIC_USEC=").split_once('=').unwrap().1.parse().unwrap();
    assert!(micros > 0);
    unit.heard("READY=1");
    unit.heard("WATCHDOG=1");
    unit.signal(Signal::TERM);
    unit.heard("STOPPING=1");
    assert!(unit.agent.take().unwrap().wait().unwrap().success());
}

fn checked(unit: &Unit) -> Output {
    unit.command(&["check-stack", "shop"]).output().unwrap()
}

fn install(dir: &Path) -> SetFiles {
    let place = Place::new(&"shop".parse().unwrap(), &dir.join("shop.jar"));
    let file =
        |name: &str, bytes: &[u8]| SetFile { name: name.to_owned(), content: Content::Bytes(bytes.to_vec()) };
    let files = |_: &Path| Ok(vec![file("000010-p.jar", b"a patch"), file("java.args", b"-cp x")]);
    let set = SetFiles::new(&place, &[], Mechanism::ClassPath, files).unwrap();
    switch(&place, Some(&set)).unwrap();
    set
}

#[test]
fn a_jvm_with_damaged_patches_is_not_started_by_its_unit() {
    let unit = Unit::new();
    let nothing = checked(&unit);
    assert!(nothing.status.success());
    assert_eq!(String::from_utf8_lossy(&nothing.stdout), "shop: no patches, nothing to check\n");
    let set = install(unit.dir.path());
    assert!(checked(&unit).status.success());
    for name in ["000010-p.jar", "java.args", "stack.json"] {
        let path = set.dir.join(name);
        let whole = fs::read(&path).unwrap();
        for damage in [Some(&whole[..whole.len() / 2]), Some(b""), None] {
            match damage {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let refused = checked(&unit);
            assert_eq!(refused.status.code(), Some(9), "{name}");
            assert!(String::from_utf8_lossy(&refused.stderr).contains(name), "{refused:?}");
        }
        fs::write(&path, &whole).unwrap();
        assert!(checked(&unit).status.success(), "{name} is back");
    }
    // The set that the JVM is started with counts, whatever is in force, and no configuration is needed.
    let name = set.dir.file_name().unwrap().to_str().unwrap();
    let path = unit.dir.path().join("shop.jar").display().to_string();
    let started = |config: &str, name: &str| {
        let words = ["check-stack", "--quiet", "--path", &path, "--set", name, "shop", "--config", config];
        Command::new(AGENT).args(words).output().unwrap().status.code()
    };
    fs::remove_file(set.dir.parent().unwrap().join("current")).unwrap();
    assert_eq!(started("/nowhere", name), Some(0));
    assert_eq!(started("/nowhere", "../.."), Some(9));
    fs::write(set.dir.join("java.args"), "-cp y").unwrap();
    assert_eq!(started("/nowhere", name), Some(9));
    assert!(checked(&unit).status.success(), "there is none in force");
    let mut told = unit.command(&["check-stack", "shop"]);
    assert_eq!(told.env("UPFLEET_STACK", "0a1b").status().unwrap().code(), Some(9), "but the unit says so");
    let unknown = unit.command(&["check-stack", "other"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
}
