//! The controller's store is full, locked or slow: new work is refused, streams stay, nothing wrong is recorded, and it
//! passes by itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use upfleet_api::v1::{UpgradeState, rollout::State};

use crate::support::{Behaviour, Fleet, TestFleet, endure, eventually, eventually_async, script, skip};

/// `GET /readyz`: the code and the text.
fn ready(fleet: &TestFleet) -> (u16, String) {
    let output = Command::new("curl")
        .args(["-s", "--max-time", "10", "-w", "\n%{http_code}"])
        .arg(format!("{}/readyz", fleet.metrics()))
        .output()
        .expect("curl is there");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').unwrap_or(("", "0"));
    (code.trim().parse().unwrap_or(0), body.to_owned())
}

/// A process that holds the database's write lock until it is dropped.
struct Locked(Child);

impl Locked {
    fn new(database: &Path) -> Self {
        let script = "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1],isolation_level=None,timeout=30)\n\
                      c.execute('BEGIN IMMEDIATE')\nprint('held',flush=True)\nsys.stdin.read()";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .arg(database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is there");
        let mut line = String::new();
        let mut out = std::io::BufReader::new(child.stdout.take().expect("it is piped"));
        std::io::BufRead::read_line(&mut out, &mut line).expect("it is readable");
        assert_eq!(line.trim(), "held");
        Self(child)
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A small file system, unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).ok()?;
        let options = format!("size={size},mode=0700");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "upfleet-test"]).arg(at).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l"]).arg(&self.0).status();
    }
}

/// Writes until there is no room.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    for size in [1 << 20, 1 << 12, 1] {
        while std::io::Write::write_all(&mut file, &vec![1; size]).is_ok() {}
    }
}

/// Waits until the controller says that it is ready, or that it is not.
fn until_ready(fleet: &TestFleet, wanted: bool) -> String {
    eventually(&format!("ready to be {wanted}"), || {
        let (code, text) = ready(fleet);
        ((code == 200) == wanted).then_some(text)
    })
}

/// New work is refused with a reason that names the store; the node stays connected and its component is left alone.
async fn refuses(fleet: &TestFleet) {
    let before = fleet.node("n1").running();
    let refused = fleet.cli(&["token", "create"]);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.err.contains("store"), "{refused:?}");
    assert!(fleet.api.node("n1").await.online, "the stream stays");
    assert_eq!(fleet.node("n1").running(), before);
}

/// A rollout goes through, swapped once.
async fn goes_on(fleet: &TestFleet, version: &str, sequence: u64) {
    eventually_async("a release to be taken again", || async {
        let manifest = crate::support::manifest(version, sequence, &script(version, Behaviour::Good));
        fleet.api.upload(&script(version, Behaviour::Good)).await;
        fleet.api.publish_manifest(&manifest).await.map(drop).map_err(|status| status.to_string())
    })
    .await;
    let rollout = fleet.install(version).await;
    assert_eq!(fleet.api.times_entered(&rollout, "n1", UpgradeState::Activating).await, 1);
    assert_eq!(fleet.node("n1").starts().iter().filter(|started| *started == version).count(), 1);
}

fn tools(test: &str) -> bool {
    let there = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
    let both = there("curl") && there("python3");
    if !both {
        skip(test, "curl or python3 is missing");
    }
    both
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn matrix_of_a_locked_store() {
    if !tools("store::matrix_of_a_locked_store") {
        return;
    }
    let fleet = Fleet::default().start().await;
    let rounds = if endure() { 5 } else { 1 };
    for round in 0..rounds {
        // A rollout is under way as the lock is taken.
        let version = format!("1.{}.0", 2 + 2 * round);
        fleet.api.publish(&version, 10 + 2 * round, &script(&version, Behaviour::HealthyWhenToldSo)).await;
        let _ = fs::remove_file(fleet.node("n1").app("healthy"));
        let rollout = fleet.api.start(fleet.spec(&version)).await;
        fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::Probing).await;
        let locked = Locked::new(&fleet.data().join("upfleet.db"));
        // The node ends its upgrade meanwhile; that is recorded once the lock is gone.
        fs::write(fleet.node("n1").app("healthy"), "").unwrap();
        let said = until_ready(&fleet, false);
        assert!(said.contains("store"), "{said}");
        refuses(&fleet).await;
        drop(locked);
        until_ready(&fleet, true);
        fleet.api.reach(&rollout, State::Succeeded).await;
        assert_eq!(fleet.api.times_entered(&rollout, "n1", UpgradeState::Activating).await, 1);
        goes_on(&fleet, &format!("1.{}.0", 3 + 2 * round), 11 + 2 * round).await;
    }
    println!("figure: locked_store {rounds} of {rounds} locks: refused, streams kept, recovered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn matrix_of_a_full_store() {
    const NAME: &str = "store::matrix_of_a_full_store";
    if !tools(NAME) {
        return;
    }
    let mut fleet = Fleet::default().start().await;
    fleet.kill_controller();
    // The data directory moves to a small disk.
    let (data, aside) = (fleet.data(), fleet.dir().join("aside"));
    fs::rename(&data, &aside).unwrap();
    let Some(small) = Small::mount(&data, "160m") else {
        return skip(NAME, "mounting a small file system needs root");
    };
    let copied = Command::new("cp").args(["-a", "-T"]).arg(&aside).arg(&data).status().unwrap();
    assert!(copied.success());
    fleet.start_controller().await;
    fleet.api.reach_online("n1", true).await;
    let rounds = if endure() { 5 } else { 1 };
    for round in 0..rounds {
        let filler = data.join("filler");
        // Everything but a page or none; the log of the database can't grow any more.
        fill(&filler);
        let mut number = 0;
        let said = eventually("the controller to say that it is full", || {
            number += 1;
            // Something has to be written for it to be felt.
            fleet.cli(&["token", "create"]);
            let (code, text) = ready(&fleet);
            (code == 503 || number > 400).then_some(text)
        });
        assert!(said.contains("store"), "{said}");
        refuses(&fleet).await;
        fs::remove_file(&filler).unwrap();
        until_ready(&fleet, true);
        goes_on(&fleet, &format!("2.{round}.0"), 50 + round).await;
    }
    println!("figure: full_store {rounds} of {rounds} full disks: refused, streams kept, recovered");
    fleet.kill_controller();
    drop(small);
    // So that what drops the fleet finds it as it was.
    let _ = fs::remove_dir(&data);
    let _ = fs::rename(&aside, &data);
}
