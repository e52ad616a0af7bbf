//! The crash matrix of a directory: the agent's core is killed at each point of an upgrade and of its recovery; the
//! directory is then complete, old or new, and what the node owns is there.
//!
//! And nodes that can't take an upgrade: no room, no right to write, no execution.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use upfleet_agent::{
    crash::{POINTS, TREE_POINTS, VARIABLE},
    exec::Executor,
    journal::Journal,
};
use upfleet_domain::{
    files::OnLocalChange,
    reason::ReasonCode,
    upgrade::{Outcome, record::Record},
};

use super::files_support::{Release, Site, config, release};

const DIR: &str = "UPFLEET_FILES_DIR";
const ORDER: &str = "UPFLEET_FILES_ORDER";
const SWAP: &str = "UPFLEET_FILES_SWAP";

fn of(name: &str) -> Release {
    let preserve = &["local/**"];
    match name {
        "one" => {
            release(1, &[("a", "one"), ("d/b", "one"), ("gone", "one")], OnLocalChange::Refuse, preserve)
        }
        "two" => {
            release(2, &[("a", "two"), ("d/b", "two"), ("e/f/new", "two")], OnLocalChange::Keep, preserve)
        }
        _ => release(3, &[("a", "bad"), ("bad", "")], OnLocalChange::Keep, preserve),
    }
}

fn lines(swap: &str) -> String {
    format!(
        "[files]\nswap = \"{swap}\"\n[health]\nsoak = \"10ms\"\nstart_deadline = \"20s\"\n[[probe]]\ntype = \"exec\"\n\
         command = [\"/bin/true\"]\ninterval = \"5ms\"\n"
    )
}

/// The child: orders a release, again if it was ordered before, and stays until that has ended.
#[test]
fn harness() {
    let (Ok(dir), Ok(name), Ok(swap)) = (std::env::var(DIR), std::env::var(ORDER), std::env::var(SWAP))
    else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let release = of(&name);
        let mut site = Site::start(Path::new(&dir), &lines(&swap), &[&release]);
        let number = if name == "one" { 1 } else { 2 };
        site.order(&release, &name, number).await;
        site.end().await;
    });
}

/// Runs a child; true where it was killed at `point`.
fn child(dir: &Path, swap: &str, name: &str, point: Option<&str>) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "files_crash::harness", "--nocapture"]);
    command.env(DIR, dir).env(ORDER, name).env(SWAP, swap).env_remove(VARIABLE);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(point) = point {
        command.env(VARIABLE, point);
    }
    let mut running = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    let status = loop {
        if let Some(status) = running.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            running.kill().unwrap();
            panic!("{name} at {point:?} did not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let killed = status.signal() == Some(9);
    assert!(killed || status.success(), "{status}: {name} at {point:?}");
    killed
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Setting {
    /// From one release to the next, with a changed file that is kept.
    Good,
    /// To a release that is unhealthy, and back.
    Bad,
    /// From a directory that was there before.
    Adopted,
}

const OLD: &str = "changed by hand";

/// Brings the component to where the upgrade begins.
fn prepare(dir: &Path, swap: &str, setting: Setting) {
    let site = dir.join("site");
    if setting == Setting::Adopted {
        fs::create_dir_all(site.join("d")).unwrap();
        fs::write(site.join("d/b"), "was there").unwrap();
    } else {
        assert!(!child(dir, swap, "one", None));
        fs::write(site.join("a"), OLD).unwrap();
    }
    fs::create_dir_all(site.join("local/deep")).unwrap();
    fs::write(site.join("local/deep/own"), "own").unwrap();
}

/// Everything in the directory, as `path=text`.
fn content(dir: &Path) -> BTreeSet<String> {
    let (mut all, mut open) = (BTreeSet::new(), vec![dir.to_owned()]);
    while let Some(at) = open.pop() {
        for entry in
            fs::read_dir(&at).unwrap_or_else(|error| panic!("{}: {error}", at.display())).map(Result::unwrap)
        {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().display().to_string();
                all.insert(format!("{name}={}", fs::read_to_string(&path).unwrap()));
            }
        }
    }
    all
}

/// What the directory holds before, and after an upgrade that succeeds.
fn states(setting: Setting) -> [BTreeSet<String>; 2] {
    let set = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
    let own = "local/deep/own=own";
    match setting {
        Setting::Adopted => [set(&["d/b=was there", own]), set(&["a=two", "d/b=two", "e/f/new=two", own])],
        _ => [
            set(&["a=changed by hand", "d/b=one", "gone=one", own]),
            set(&["a=changed by hand", "d/b=two", "e/f/new=two", own]),
        ],
    }
}

fn record(dir: &Path) -> Record {
    let name = "site".parse().unwrap();
    Journal::peek(&dir.join("state/journals"), &name).unwrap_or_else(|| Record::new(name))
}

/// One series: some deaths, then a run to the end. Returns the points that were really died at.
fn series(swap: &str, setting: Setting, deaths: &[&str]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir, swap, setting);
    let name = if setting == Setting::Bad { "bad" } else { "two" };
    let [old, new] = states(setting);
    let bad: BTreeSet<String> =
        ["a=changed by hand", "bad=", "local/deep/own=own"].iter().map(|line| (*line).to_owned()).collect();
    let mut died = Vec::new();
    for point in deaths {
        if child(dir, swap, name, Some(point)) {
            died.push((*point).to_owned());
            let found = content(&dir.join("site"));
            let ok = found == old || found == new || (setting == Setting::Bad && found == bad);
            assert!(ok, "{swap} {setting:?} after {point}: {found:?}");
        }
    }
    assert!(!child(dir, swap, name, None), "without a crash point nobody dies");
    let record = record(dir);
    let outcome = record.last.as_ref().map(|last| last.outcome);
    let found = content(&dir.join("site"));
    let what = format!("{swap} {setting:?} {deaths:?}: {outcome:?} {found:?}");
    match setting {
        Setting::Bad => assert!(outcome == Some(Outcome::RolledBack) && found == old, "{what}"),
        _ => assert!(outcome == Some(Outcome::Succeeded) && found == new, "{what}"),
    }
    let executor = Executor::of(&config(dir, &lines(swap)));
    let lying = executor.inspect().unwrap();
    assert_eq!(lying.installed, record.current.artifact(), "{what}");
    tidy(dir, &what);
    died
}

/// Nothing temporary is left.
fn tidy(dir: &Path, what: &str) {
    let store = dir.join(".upfleet/site");
    for part in ["versions", "trees", "incoming"] {
        for entry in fs::read_dir(store.join(part)).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            assert!(!name.starts_with('.') && part != "incoming", "{part}/{name} is left: {what}");
        }
    }
    let versions = fs::read_dir(store.join("versions")).unwrap().count();
    assert!(versions <= 4, "{versions} versions: {what}");
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, [".upfleet", "site", "state"], "{what}");
}

/// The points that lie around what is done to a directory; the others are the file's matrix's.
fn points() -> Vec<String> {
    let steps = ["stage", "back-up", "switch", "put-back", "verify-kept", "prune"];
    let around = steps.iter().map(|step| format!("step.{step}.after"));
    let within = ["stage.renamed", "switch.linked", "switch.renamed", "prune.some", "journal.append.torn"];
    let within = TREE_POINTS.iter().chain(&within).map(|point| (*point).to_owned());
    let all = POINTS.iter().chain(TREE_POINTS).map(|point| (*point).to_owned());
    if endures() { all.collect() } else { around.chain(within).collect() }
}

fn endures() -> bool {
    std::env::var_os("UPFLEET_ENDURE").is_some()
}

/// T45 for directories: each point once, and some with a second death in the recovery. `UPFLEET_ENDURE=1` walks all
/// points, and every pair of them around the switch.
#[test]
fn a_directory_is_old_or_new_wherever_the_agent_is_killed() {
    let mut all = Vec::new();
    for swap in ["link", "exchange"] {
        for setting in [Setting::Good, Setting::Bad, Setting::Adopted] {
            // The two ways differ where they switch and where they tidy up after that.
            let differs =
                |point: &String| ["switch", "put-back", "prune"].iter().any(|part| point.contains(part));
            let points = points().into_iter().filter(|point| endures() || swap == "link" || differs(point));
            all.extend(points.map(|point| (swap, setting, vec![format!("{point}:1")])));
            for first in ["switch.recorded:1", "switch.renamed:1", "stage.recorded:1", "backup.recorded:1"] {
                for second in ["switch.renamed:1", "journal.append.torn:1", "prune.some:1"] {
                    if endures() || (swap == "link" && first == "switch.renamed:1") {
                        all.push((swap, setting, vec![first.to_owned(), second.to_owned()]));
                    }
                }
            }
        }
    }
    let (work, reached) = (Mutex::new(all.into_iter()), Mutex::new(BTreeSet::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some((swap, setting, deaths)) = work.lock().unwrap().next() else { break };
                    let deaths: Vec<&str> = deaths.iter().map(String::as_str).collect();
                    let died = series(swap, setting, &deaths);
                    reached.lock().unwrap().extend(died);
                }
            });
        }
    });
    let reached = reached.into_inner().unwrap();
    let missing: Vec<_> =
        TREE_POINTS.iter().filter(|point| !reached.contains(&format!("{point}:1"))).collect();
    assert!(missing.is_empty(), "never reached: {missing:?}");
}

// ---- T52 -------------------------------------------------------------------------------------------------

const NODE: &str = "UPFLEET_FILES_NODE";

/// The child in a mount namespace of its own: what the check before an upgrade says of the file system it is in.
#[test]
fn unfit_node() {
    let Ok(dir) = std::env::var(NODE) else { return };
    let dir = Path::new(&dir);
    let lines = "[run]\nmode = \"supervised\"\ncommand = [\"{path}/bin/run\"]\n";
    let executor = Executor::of(&config(dir, lines));
    let looked = executor.look(&[], true).unwrap();
    match looked.forbidden {
        Some(reason) => println!("\nfound {} {}", reason.code.as_str(), reason.message()),
        None => println!("\nfound room for {}", looked.available),
    }
}

fn inspect(mount: &str) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("mount -t tmpfs {mount} none {0} && exec \"$@\"", dir.path().display());
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "files_crash::unfit_node", "--nocapture"])
        .env(NODE, dir.path())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix("found ")).map(str::to_owned)
}

/// T52: a file system that can't be written or executed on is found before anything is fetched.
#[test]
fn a_node_that_cannot_take_an_upgrade_says_so_beforehand() {
    let Some(fit) = inspect("-o size=1m") else {
        let mut error = std::io::stderr().lock();
        let _ = writeln!(error, "skipped: files T52: no mount namespace can be made here");
        return;
    };
    assert!(fit.starts_with("room for "), "{fit}");
    let code = ReasonCode::NotPermitted.as_str();
    for (mount, said) in [("-o size=1m,ro", "read-only"), ("-o size=1m,noexec", "noexec")] {
        let found = inspect(mount).unwrap();
        assert!(found.starts_with(code) && found.contains(said), "{mount}: {found}");
    }
}

/// T52: no room for what the archive unpacks to is found before it is unpacked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_leaves_the_old_version() {
    let Ok(dir) = std::env::var("UPFLEET_FILES_FULL") else {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("mount -t tmpfs -o size=2m none {0} && exec \"$@\"", dir.path().display());
        let status = Command::new("unshare")
            .args(["-m", "sh", "-c", &script, "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "files_crash::a_full_disk_leaves_the_old_version", "--nocapture"])
            .env("UPFLEET_FILES_FULL", dir.path())
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&status.stderr).into_owned();
        if said.contains("unshare failed") || said.contains("mount:") {
            let mut error = std::io::stderr().lock();
            let _ = writeln!(error, "skipped: files T52: no mount namespace can be made here");
            return;
        }
        assert!(status.status.success(), "{said}");
        return;
    };
    let dir = Path::new(&dir);
    let big = "x".repeat(900 * 1024);
    let one = release(1, &[("a", "one")], OnLocalChange::Refuse, &[]);
    // The archive has room beside the old version, but not its content beside the archive.
    let two = release(2, &[("a", &big)], OnLocalChange::Refuse, &[]);
    let mut site = Site::start(dir, "", &[&one, &two]);
    site.expect(&one, Outcome::Succeeded).await;
    fs::write(dir.join("ballast"), vec![0; 400 * 1024]).unwrap();
    let report = site.expect(&two, Outcome::FailedUnchanged).await;
    assert_eq!(report.reason.code, ReasonCode::DiskFull, "{}", report.reason);
    assert_eq!(fs::read_to_string(dir.join("site/a")).unwrap(), "one");
    site.end().await;
}
