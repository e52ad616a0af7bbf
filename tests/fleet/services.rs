//! The services of `examples/handover`, in each language: started as a shim or systemd starts them, with one socket for
//! two processes, they change version without a failed request; and what lies beside them is sound.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt as _, net::UnixDatagram},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use upfleet_api::v1::{UpgradeState, rollout::State};

use crate::support::{
    COMPONENT, Fleet, binary, eventually,
    load::{Load, connect, exchange, get},
    run, skip,
};

/// What each example calls itself, and another name of the same length.
const NAMES: [&str; 2] = ["shop 1.0.0", "shop 2.0.0"];
const LANGUAGES: [&str; 3] = ["rust", "python", "go"];

/// A file of the examples.
pub fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/handover").join(path)
}

/// Two versions of an example, each one file; or why there are none here.
pub fn versions(language: &str, dir: &Path) -> Result<[PathBuf; 2], String> {
    let paths = [dir.join("old"), dir.join("new")];
    for (path, name) in paths.iter().zip(NAMES) {
        match language {
            "rust" => renamed(&binary("examples/shop"), path, name),
            "python" => {
                let version = "import sys; sys.exit(sys.version_info < (3, 8))";
                let found = Command::new("python3").args(["-c", version]).status();
                found.ok().filter(ExitStatus::success).ok_or("there is no python3 of 3.8 or later")?;
                renamed(&example("python/shop.py"), path, name);
            }
            _ => build_go(path, name)?,
        }
    }
    Ok(paths)
}

/// The file with another version's name in it.
fn renamed(from: &Path, to: &Path, name: &str) {
    fs::write(to, named(&fs::read(from).unwrap(), name)).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A program with another version's name in it.
pub fn named(program: &[u8], name: &str) -> Vec<u8> {
    let mut bytes = program.to_owned();
    let here = |part: &[u8]| part == NAMES[0].as_bytes();
    let places = bytes.windows(name.len()).enumerate().filter(|(_, part)| here(part));
    let places: Vec<usize> = places.map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "the program does not name its version");
    for at in places {
        bytes[at..at + name.len()].copy_from_slice(name.as_bytes());
    }
    bytes
}

fn build_go(path: &Path, name: &str) -> Result<(), String> {
    let installed = ["go", "/usr/local/go/bin/go"];
    let works =
        |go: &&str| Command::new(go).arg("version").output().is_ok_and(|found| found.status.success());
    let go = installed.into_iter().find(works).ok_or("go is missing")?;
    let built = run(Command::new(go)
        .args(["build", "-ldflags", &format!("-X 'main.version={name}'"), "-o"])
        .arg(path)
        .current_dir(example("go"))
        .envs([
            ("CGO_ENABLED", "0"),
            ("GOTOOLCHAIN", "local"),
            ("GOFLAGS", "-buildvcs=false"),
            ("GOPROXY", "off"),
        ]));
    assert_eq!(built.code, 0, "{built:?}");
    Ok(())
}

/// Passes one socket to processes as systemd and the agent's shim do.
struct Parent {
    dir: TempDir,
    listener: TcpListener,
    address: SocketAddr,
}

/// A process that was given the socket. It is killed where a test forgets it.
struct Process {
    child: Child,
    heard: UnixDatagram,
}

impl Parent {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        Self { dir: tempfile::tempdir().unwrap(), listener, address }
    }

    /// Starts a program and waits for `READY=1`.
    fn start(&self, program: &Path, number: usize) -> Process {
        let path = self.dir.path().join(format!("notify-{number}"));
        let heard = UnixDatagram::bind(&path).unwrap();
        heard.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // The shell becomes the program, so that its number is the one that is told.
        let script = "export LISTEN_PID=$$; exec \"$0\" 3<&0 </dev/null";
        let child = Command::new("/bin/sh")
            .args(["-c", script])
            .arg(program)
            .envs([("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "http")])
            .env("NOTIFY_SOCKET", path)
            .stdin(Stdio::from(OwnedFd::from(self.listener.try_clone().unwrap())))
            .spawn()
            .unwrap();
        let process = Process { child, heard };
        process.says("READY=1");
        process
    }
}

impl Process {
    fn says(&self, wanted: &str) {
        let mut bytes = [0; 256];
        let length = self.heard.recv(&mut bytes).unwrap_or_else(|error| panic!("no {wanted}: {error}"));
        assert_eq!(String::from_utf8_lossy(&bytes[..length]).trim_end(), wanted);
    }

    fn signal(&self) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
    }

    fn terminate(&self) {
        self.signal();
        self.says("STOPPING=1");
    }

    fn end(mut self) {
        let status = eventually("the old process to end", || self.child.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn changes_version(language: &str, test: &str) {
    let parent = Parent::new();
    let versions = match versions(language, parent.dir.path()) {
        Ok(versions) => versions,
        Err(reason) => return skip(&format!("services::{test}"), &reason),
    };
    let mut old = parent.start(&versions[0], 0);
    // A client that has nothing to ask while the version changes, and asks then.
    let mut idle = connect(parent.address).unwrap();
    assert_eq!(exchange(&mut idle, "/version", true).unwrap(), (NAMES[0].to_owned(), false));
    let load = Load::start(parent.address, 16, 8);
    for number in 1..=4 {
        let new = parent.start(&versions[number % 2], number);
        old.terminate();
        if number == 1 {
            // Answered by the old process, which waits for it, and told that this is the last one.
            eventually("the new version", || {
                get(parent.address, "/version").ok().filter(|text| text == NAMES[1])
            });
            assert_eq!(exchange(&mut idle, "/slow", true).unwrap(), (NAMES[0].to_owned(), true));
        }
        old.end();
        assert_eq!(get(parent.address, "/version").unwrap(), NAMES[number % 2]);
        old = new;
    }
    // Whoever started it may be gone: what it says then nobody hears, and it finishes what it has begun all the same.
    let new = parent.start(&versions[1], 5);
    fs::remove_file(parent.dir.path().join("notify-4")).unwrap();
    old.signal();
    old.end();
    let tally = load.end();
    assert_eq!(tally.failures, Vec::<String>::new(), "{language}: of {}", tally.answered());
    assert_eq!(tally.answers.len(), 2, "{tally:?}");
    // Nobody is connected any more, so it ends at once.
    let began = Instant::now();
    new.terminate();
    new.end();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn a_service_in_rust_changes_its_version_without_a_failed_request() {
    changes_version("rust", "a_service_in_rust_changes_its_version_without_a_failed_request");
}

#[test]
fn a_service_in_python_changes_its_version_without_a_failed_request() {
    changes_version("python", "a_service_in_python_changes_its_version_without_a_failed_request");
}

#[test]
fn a_service_in_go_changes_its_version_without_a_failed_request() {
    changes_version("go", "a_service_in_go_changes_its_version_without_a_failed_request");
}

/// By a real agent's handover, forward, past a version that falls over, and back. That in Rust is in `handover.rs`.
async fn is_handed_over(language: &str, test: &str) {
    let mut fleet = Fleet { nodes: 0, base: None, releases: Vec::new(), ..Fleet::default() }.start().await;
    let versions = match versions(language, fleet.dir()) {
        Ok(versions) => versions,
        Err(reason) => return skip(&format!("services::{test}"), &reason),
    };
    let index = fleet.add_node("n1", None).await;
    let node = &mut fleet.nodes[index];
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let fragment = fs::read_to_string(example("rust/supervised.toml")).unwrap();
    let fragment = fragment
        .replace("/opt/shop/bin/shop", &node.component().display().to_string())
        .replace("\"shop\"", &format!("\"{COMPONENT}\""))
        .replace("0.0.0.0:8080", &address.to_string());
    let health = "interval = \"50ms\"\nsuccesses = 1\n[component.health]\nsoak = \"200ms\"\n";
    node.declare(&(fragment + health));
    node.start();
    fleet.api.reach_online("n1", true).await;
    let programs = versions.map(|path| fs::read(path).unwrap());
    let falls = b"#!/bin/sh\nexit 3\n".to_vec();
    let releases = [("1.0.0", &programs[0]), ("2.0.0", &programs[1]), ("3.0.0", &falls)];
    for (sequence, (version, program)) in (1..).zip(releases) {
        fleet.api.publish(version, sequence, program).await;
    }
    fleet.install("1.0.0").await;
    let load = Load::start(address, 12, 6);
    fleet.install("2.0.0").await;
    assert_eq!(get(address, "/version").unwrap(), NAMES[1]);
    let bad = fleet.api.start(fleet.spec("3.0.0")).await;
    fleet.api.reach(&bad, State::Halted).await;
    assert_eq!(fleet.api.upgrade(&bad, "n1").await.state(), UpgradeState::RolledBack);
    assert_eq!(get(address, "/version").unwrap(), NAMES[1]);
    fleet.cli(&["rollout", "cancel", bad.trim_start_matches("rollouts/"), "--yes"]).success();
    // A version that the node has kept is no downgrade.
    fleet.install("1.0.0").await;
    assert_eq!(get(address, "/version").unwrap(), NAMES[0]);
    let tally = load.end();
    assert_eq!(tally.failures, Vec::<String>::new(), "{language}: of {}", tally.answered());
    assert_eq!(tally.answers.len(), 2, "{tally:?}");
    println!("{language}: {} requests, the slowest took {:?}", tally.answered(), tally.slowest);
}

#[tokio::test]
async fn an_agent_hands_over_a_service_in_python() {
    is_handed_over("python", "an_agent_hands_over_a_service_in_python").await;
}

#[tokio::test]
async fn an_agent_hands_over_a_service_in_go() {
    is_handed_over("go", "an_agent_hands_over_a_service_in_go").await;
}

/// By themselves the examples listen where they are told.
#[test]
fn a_service_without_a_given_socket_opens_one() {
    let dir = tempfile::tempdir().unwrap();
    for language in ["rust", "python"] {
        let Ok(versions) = versions(language, dir.path()) else { continue };
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new(&versions[0]);
        // Meant for another process: not to be taken.
        command.env("SHOP_LISTEN", address.to_string()).envs([("LISTEN_FDS", "1"), ("LISTEN_PID", "1")]);
        let mut program = crate::support::Program::start(&mut command, &dir.path().join("log"));
        let said = eventually("an answer", || get(address, "/version").ok());
        assert_eq!(said, NAMES[0], "{language}");
        program.terminate();
    }
}

#[test]
fn the_units_of_the_examples_are_sound() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return skip("services::the_units_of_the_examples_are_sound", "systemd-analyze is missing");
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]);
    command.env("SYSTEMD_LOG_LEVEL", "warning").env("SYSTEMD_PAGER", "");
    for unit in ["shop.socket", "shop.service"] {
        // They are the same in each language. Where the program would be installed there is nothing here.
        let text = fs::read_to_string(example("rust").join(unit)).unwrap();
        fs::write(dir.path().join(unit), text.replace("/opt/shop/bin/shop", "/bin/true")).unwrap();
        command.arg(dir.path().join(unit));
    }
    let found = run(&mut command);
    assert_eq!((found.code, found.out.trim(), found.err.trim()), (0, "", ""), "{found:?}");
}

#[test]
fn the_configurations_of_the_examples_are_sound() {
    for fragment in ["supervised.toml", "systemd.toml", "shop.socket", "shop.service"] {
        let text = |language: &str| fs::read_to_string(example(&format!("{language}/{fragment}"))).unwrap();
        assert!(LANGUAGES.iter().all(|language| text(language) == text("rust")), "{fragment}");
        // That of a unit is tried where there is a manager to ask, in `systemd.rs`.
        if fragment != "supervised.toml" {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let state = format!("state_dir = {0:?}\nrun_dir = {0:?}\n", dir.path());
        fs::write(dir.path().join("agent.toml"), state).unwrap();
        fs::create_dir(dir.path().join("conf.d")).unwrap();
        fs::write(dir.path().join("conf.d/shop.toml"), text("rust")).unwrap();
        let mut agent = Command::new(binary("upfleet-agent"));
        let found = run(agent.arg("--config").arg(dir.path()).arg("check-config"));
        assert_eq!(found.code, 0, "{fragment}: {found:?}");
    }
}
