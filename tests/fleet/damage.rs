//! Each state file of the agent and of the controller, damaged in each way: components run on, nothing damaged is obeyed,
//! somebody is told, and the fleet goes on once the file is put right.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use upfleet_domain::digest::Digest;

use crate::support::{Behaviour, Fleet, TestFleet, endure, eventually};

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Missing,
    Truncated,
    Zeroed,
    Flipped,
    /// Of a format that is not known yet.
    Future,
    Directory,
}

use Damage::{Directory, Flipped, Future, Missing, Truncated, Zeroed};

const ALL: [Damage; 6] = [Missing, Truncated, Zeroed, Flipped, Future, Directory];

/// When a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// As the agent starts.
    Agent,
    /// As a shim starts: after a reboot.
    Shim,
}

/// What somebody is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// `upfleet-agent status` shows one of these codes.
    Code(&'static [&'static str]),
    /// Nobody needs to be: nothing is decided by it, or it is made anew.
    Nobody,
    /// The agent refuses to start and names the file's directory; or, where the damage can't be seen, starts.
    Refused,
}

/// A state file of the agent.
struct Row {
    path: &'static str,
    when: When,
    told: Told,
}

const fn row(path: &'static str, when: When, told: Told) -> Row {
    Row { path, when, told }
}

const JOURNAL: Told = Told::Code(&["JOURNAL_DAMAGED", "STATE_DAMAGED", "STATE_TOO_NEW"]);
const MOVED: Told = Told::Code(&["STATE_DAMAGED"]);

/// All of them, below the node's directory. `<digest>` stands for any.
const AGENT: &[Row] = &[
    row("state/journals/app.journal", When::Agent, JOURNAL),
    row("state/journals/app.journal-spare", When::Agent, Told::Nobody),
    row("state/identity/node.key", When::Agent, Told::Code(&["controller"])),
    row("state/identity/node.crt", When::Agent, Told::Code(&["controller"])),
    row("state/identity/ca.crt", When::Agent, Told::Code(&["controller"])),
    row("state/identity/enrollment.json", When::Agent, Told::Code(&["controller"])),
    row("state/manifests/app/<digest>", When::Agent, Told::Nobody),
    row("state/history/app.jsonl", When::Agent, Told::Nobody),
    row("state/lock", When::Agent, Told::Nobody),
    row("run/agent.sock", When::Agent, Told::Nobody),
    row("etc/agent.toml", When::Agent, Told::Refused),
    row("etc/conf.d/controller.toml", When::Agent, Told::Refused),
    row("state/shims/app/spec.json", When::Shim, MOVED),
    row("state/shims/app/record.json", When::Shim, MOVED),
    row("state/shims/app/spec.spare", When::Shim, Told::Nobody),
    row("state/shims/app/record.spare", When::Shim, Told::Nobody),
    row("state/shims/app/lock", When::Shim, Told::Nobody),
    row("state/shims/app/sock", When::Shim, Told::Nobody),
    row("state/shims/app/shim.log", When::Shim, Told::Nobody),
    row("state/shims/app/output.log", When::Shim, Told::Nobody),
    row("app/.upfleet/app/versions/<digest>", When::Agent, Told::Nobody),
];

/// Files that are there and are no state of the agent's: the component's own, and the test's.
const NO_STATE: &[&str] = &["app/app", "app/starts", "agent.log"];

/// The same of the controller, below its data directory, and whether it may refuse to start.
const CONTROLLER: &[(&str, bool)] = &[
    ("upfleet.db", true),
    ("upfleet.db-wal", false),
    ("upfleet.db-shm", false),
    ("upfleet.lock", true),
    ("controller.toml", true),
    ("ca/ca.key", true),
    ("ca/ca.crt", true),
    ("tls/server.key", false),
    ("tls/server.crt", true),
    ("run/endpoints.json", true),
    ("artifacts/<digest>", false),
];

/// `path` with every digest as `<digest>`, and without the directory that artifacts are spread over.
fn pattern(path: &Path) -> String {
    let word = |word: &std::ffi::OsStr| {
        let text = word.to_string_lossy().into_owned();
        if text.parse::<Digest>().is_ok() { "<digest>".to_owned() } else { text }
    };
    let words: Vec<String> = path.iter().map(word).collect();
    let spread =
        |index: usize, word: &String| index > 0 && words[index - 1] == "artifacts" && word.len() == 2;
    let kept = words.iter().enumerate().filter(|(index, word)| !spread(*index, word));
    kept.map(|(_, word)| word.as_str()).collect::<Vec<_>>().join("/")
}

/// Every file below `root` that is no directory, relative to it.
fn files(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut dirs) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                dirs.push(path);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    found
}

fn find(root: &Path, wanted: &str) -> Option<PathBuf> {
    files(root).into_iter().find(|path| pattern(path) == wanted).map(|path| root.join(path))
}

/// Damages a file. Says what was there, and whether it could be done: a socket has no content.
fn damage(path: &Path, damage: Damage) -> bool {
    let Ok(bytes) = fs::read(path) else {
        // A socket.
        if damage == Missing || damage == Directory {
            let _ = fs::remove_file(path);
            if damage == Directory {
                fs::create_dir(path).unwrap();
            }
            return true;
        }
        return false;
    };
    let used = bytes.iter().rposition(|byte| !matches!(byte, 0 | b' ' | b'\n')).map_or(0, |at| at + 1);
    let damaged = match damage {
        Missing => return fs::remove_file(path).is_ok(),
        Directory => {
            fs::remove_file(path).unwrap();
            return fs::create_dir(path).is_ok();
        }
        _ if used == 0 => return false,
        Truncated => bytes[..used / 2].to_vec(),
        Zeroed => vec![0; bytes.len()],
        Flipped => {
            let mut bytes = bytes;
            bytes[used / 2] ^= 1;
            bytes
        }
        Future => match from_the_future(&bytes) {
            Some(bytes) => bytes,
            None => return false,
        },
    };
    // Another file with the same name: a kept version shares its content with what is installed.
    let mode = fs::metadata(path).unwrap().permissions();
    fs::remove_file(path).unwrap();
    fs::write(path, damaged).unwrap();
    fs::set_permissions(path, mode).unwrap();
    true
}

/// The file as a later version might write it, where it carries a format's number.
fn from_the_future(bytes: &[u8]) -> Option<Vec<u8>> {
    if bytes.starts_with(b"UPFLEETJ") {
        let mut bytes = bytes.to_vec();
        bytes[8] = 99;
        return Some(bytes);
    }
    let text = String::from_utf8(bytes.to_vec()).ok()?;
    if text.starts_with("{\"format\":1") {
        return Some(br#"{"format":99,"novel":{}}"#.to_vec());
    }
    None
}

fn remove(path: &Path) {
    let _ = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
}

/// A copy of the tree beside it, and back.
fn copy(from: &Path, to: &Path) {
    assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// What stands in a status: every reason's code, and `controller` where there is no session for a reason.
fn codes(status: &serde_json::Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut values = vec![status];
    while let Some(value) = values.pop() {
        match value {
            serde_json::Value::Object(map) => {
                found.extend(map.get("code").and_then(|code| code.as_str()).map(str::to_owned));
                values.extend(map.values());
            }
            serde_json::Value::Array(list) => values.extend(list),
            _ => {}
        }
    }
    if status["link"]["problem"].is_string() {
        found.insert("controller".to_owned());
    }
    found
}

/// The fleet that all damages are done to: 1.1.0 after 1.0.0, so that every file is there.
async fn lived_in() -> TestFleet {
    let releases = vec![("1.1.0", Behaviour::Good), ("1.2.0", Behaviour::Good)];
    let fleet = Fleet { releases, ..Fleet::default() }.start().await;
    fleet.install("1.1.0").await;
    fleet
}

/// One damage of one file of the agent. Says whether it applies to the file.
fn agent_cell(fleet: &mut TestFleet, row: &Row, how: Damage) -> bool {
    let root = fleet.dir().join("n1");
    let what = format!("{} {how:?}", row.path);
    let node = fleet.node_mut("n1");
    let (_, pid) = eventually("the component to run", || node.running());
    let starts = node.starts().len();
    node.kill();
    let Some(path) = find(&root, row.path) else { panic!("{what}: there is no such file") };
    let socket = fs::read(&path).is_err();
    let whole = fs::read(&path).ok();
    if row.when == When::Shim {
        reboot(&root, pid);
    }
    let applies = damage(&path, how);
    node.start();
    if applies {
        judge(fleet, row, how, &what);
        let node = fleet.node("n1");
        let (version, now) = eventually(&format!("{what}: the component to run"), || {
            node.running().filter(|(_, now)| row.when == When::Agent || *now != pid)
        });
        assert_eq!(version, "1.1.0", "{what}");
        if row.when == When::Agent {
            assert_eq!((now, node.starts().len()), (pid, starts), "{what}: it was not touched");
        }
    }
    let node = fleet.node_mut("n1");
    node.kill();
    // Put right, as a person would from what was moved aside.
    if let Some(bytes) = whole.filter(|_| !socket && (row.when == When::Agent || !path.is_file())) {
        let mode = fs::metadata(&path).ok().filter(|found| found.is_file()).map(|found| found.permissions());
        remove(&path);
        fs::write(&path, bytes).unwrap();
        if let Some(mode) = mode {
            fs::set_permissions(&path, mode).unwrap();
        }
    }
    for entry in fs::read_dir(path.parent().unwrap()).unwrap().flatten() {
        if entry.file_name().to_string_lossy().contains(".damaged-") {
            remove(&entry.path());
        }
    }
    node.start();
    applies
}

/// The agent must run and say it, or refuse with a reason.
fn judge(fleet: &mut TestFleet, row: &Row, how: Damage, what: &str) {
    let node = fleet.node_mut("n1");
    if row.told == Told::Refused {
        let ended = eventually(what, || match node.ended() {
            true => Some(true),
            false => {
                let status = node.run(&["status", "--output", "json"]);
                let status: serde_json::Value = serde_json::from_str(&status.out).ok()?;
                status["pid"].is_number().then_some(false)
            }
        });
        if ended {
            let log = node.log();
            let last = log.lines().rev().take(12).collect::<Vec<_>>().join("\n");
            assert!(last.contains("error") && last.contains("etc"), "{what}: {last}");
        }
        return;
    }
    let mut seen = BTreeSet::new();
    eventually(&format!("{what}: the agent to tell"), || {
        assert!(!node.ended(), "{what}: the agent ended: {}", node.log());
        let status = node.run(&["status", "--output", "json"]);
        let status: serde_json::Value = serde_json::from_str(&status.out).ok()?;
        if !status["pid"].is_number() {
            return None;
        }
        seen = codes(&status);
        match row.told {
            Told::Code(wanted) if how != Missing || wanted == ["controller"] => {
                // A bit that changes nothing, in the armour of a certificate, is no damage.
                let harmless = how == Flipped && status["link"]["connected"] == true;
                let journal_kept = how == Truncated && wanted.contains(&"JOURNAL_DAMAGED");
                (harmless || journal_kept || wanted.iter().any(|code| seen.contains(*code))).then_some(())
            }
            _ => Some(()),
        }
    });
}

/// Ends the shim and all it runs, as a reboot does.
fn reboot(root: &Path, component: u32) {
    let stat = fs::read_to_string(format!("/proc/{component}/stat")).unwrap();
    let parent: u32 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
    let shim = fs::read_to_string(format!("/proc/{parent}/cmdline")).unwrap();
    assert!(shim.contains(&root.display().to_string()), "{shim:?} is the node's shim");
    for pid in [parent, component] {
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(),
            rustix::process::Signal::KILL,
        );
    }
    eventually("the shim and the component to be gone", || {
        let gone = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
        };
        [parent, component].iter().all(gone).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn matrix_of_damaged_agents() {
    let mut fleet = lived_in().await;
    let root = fleet.dir().join("n1");
    let known: BTreeSet<&str> = AGENT.iter().map(|row| row.path).chain(NO_STATE.iter().copied()).collect();
    let new: Vec<String> =
        files(&root).iter().map(|path| pattern(path)).filter(|path| !known.contains(path.as_str())).collect();
    assert_eq!(new, Vec::<String>::new(), "a state file that is not in the table of this test");
    let (mut done, mut passed_over) = (0, 0);
    for (index, row) in AGENT.iter().enumerate() {
        // Each file in one way in every run, in all ways in the long matrices.
        let ways: Vec<Damage> = if endure() { ALL.to_vec() } else { vec![ALL[(index * 5 + 1) % ALL.len()]] };
        for how in ways {
            if agent_cell(&mut fleet, row, how) { done += 1 } else { passed_over += 1 }
        }
    }
    fleet.api.reach_online("n1", true).await;
    fleet.install("1.2.0").await;
    println!(
        "figure: damaged_agent {done} of {done} damages of {} files survived, {passed_over} do not apply",
        AGENT.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn matrix_of_damaged_controllers() {
    let mut fleet = lived_in().await;
    let data = fleet.data();
    let copy_of = fleet.dir().join("whole");
    fleet.kill_controller();
    copy(&data, &copy_of);
    let known: BTreeSet<&str> = CONTROLLER.iter().map(|(path, _)| *path).collect();
    let new: Vec<String> =
        files(&data).iter().map(|path| pattern(path)).filter(|path| !known.contains(path.as_str())).collect();
    assert_eq!(new, Vec::<String>::new(), "a state file that is not in the table of this test");
    let (mut started, mut refused) = (0, 0);
    for (index, (wanted, may_refuse)) in CONTROLLER.iter().enumerate() {
        let ways: Vec<Damage> = if endure() { ALL.to_vec() } else { vec![ALL[(index * 5 + 2) % ALL.len()]] };
        for how in ways {
            let what = format!("{wanted} {how:?}");
            let before = fleet.node("n1").running();
            fs::remove_dir_all(&data).unwrap();
            copy(&copy_of, &data);
            let path = find(&data, wanted).unwrap_or_else(|| panic!("{what}: there is no such file"));
            if !damage(&path, how) {
                continue;
            }
            match fleet.try_start_controller().await {
                Ok(()) => {
                    started += 1;
                    fleet.kill_controller();
                }
                Err(said) => {
                    assert!(*may_refuse || how == Directory, "{what}: {said}");
                    let last = said.lines().last().unwrap_or_default().to_owned();
                    assert!(said.contains("could not") || said.contains("error"), "{what}: {said}");
                    assert!(
                        !said.contains("panicked") && !said.contains("should not happen"),
                        "{what}: {said}"
                    );
                    println!("{what}: {last}");
                    refused += 1;
                }
            }
            assert_eq!(fleet.node("n1").running(), before, "{what}: the component runs on");
        }
    }
    fs::remove_dir_all(&data).unwrap();
    copy(&copy_of, &data);
    fleet.start_controller().await;
    fleet.api.reach_online("n1", true).await;
    fleet.install("1.2.0").await;
    println!(
        "figure: damaged_controller {started} damages started with, {refused} refused with what to do, of {} files",
        CONTROLLER.len()
    );
}
