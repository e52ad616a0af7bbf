//! The crash matrix of stacks: the agent's core is killed at its crash points while patches are applied, removed, taken
//! back or patched live, and while a base comes with its stack.
//!
//! Real are journal, files, stack sets, shim and process; what stands for a JVM is a program that takes no notice of
//! its patches, and what it has in force is what it was started with or patched to. After each death, what a restart
//! would use, by the shim and by a script that follows the link, is exactly the old stack or the new one.

use std::{
    collections::BTreeSet,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use upfleet_agent::{
    component::{self, Exclusives, ManifestBytes, Outgoing, Shared},
    config::ComponentConfig,
    crash::{STACK_POINTS, VARIABLE},
    exec::{hash_file, stack},
    journal::Journal,
    platform::node_platform,
    shim::spec::{self, SPEC, Spec},
    supervise::{Supervisor, shim_dir},
};
use upfleet_domain::{
    order::{DesiredState, Generation, Target},
    state::{Base, ComponentState, stack_digest},
    upgrade::{Outcome, record::Record},
};

use super::{
    releases::{artifact, base, patch, place, state},
    support::AGENT,
    world::Local,
};

const DIR: &str = "UPFLEET_STACK_HARNESS_DIR";
const ORDER: &str = "UPFLEET_STACK_HARNESS_ORDER";

fn config(dir: &Path) -> ComponentConfig {
    let text = format!(
        "name = \"app\"\npath = {:?}\n[run]\nmode = \"supervised\"\ncommand = [\"{{path}}\", \"1000\"]\n[health]\n\
         soak = \"20ms\"\nstart_deadline = \"20s\"\n[[probe]]\ntype = \"process\"\ninterval = \"10ms\"\n[jvm]\n",
        dir.join("app")
    );
    toml::from_str(&text).unwrap()
}

fn supervisor(dir: &Path) -> Supervisor {
    Supervisor::with_program(&dir.join("state"), &config(dir), Path::new(AGENT))
}

/// What changes; each begins on base 1 with patch 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Settle,
    Patch1,
    Apply,
    Remove,
    Back,
    Base,
    Live,
    LiveRemove,
    Old,
    OldBase,
    OldLive,
}

const CHANGES: [Change; 9] = [
    Change::Apply,
    Change::Remove,
    Change::Back,
    Change::Base,
    Change::Live,
    Change::LiveRemove,
    Change::Old,
    Change::OldBase,
    Change::OldLive,
];

impl Change {
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    fn target(self) -> ComponentState {
        match self {
            Self::Settle | Self::Remove | Self::Back | Self::LiveRemove => state(1, &[]),
            Self::Patch1 => state(1, &[1]),
            Self::Apply | Self::Live => state(1, &[2, 1]),
            Self::Base => state(2, &[3]),
            Self::Old | Self::OldLive => state(1, &[9, 1]),
            Self::OldBase => state(2, &[9]),
        }
    }

    /// How it ends.
    fn ends(self) -> (Outcome, ComponentState) {
        match self {
            Self::Old | Self::OldBase | Self::OldLive => (Outcome::RolledBack, state(1, &[1])),
            _ => (Outcome::Succeeded, self.target()),
        }
    }

    fn order(self) -> (DesiredState, Option<ManifestBytes>, Vec<ManifestBytes>) {
        let to = self.target();
        let installs = matches!(self, Self::Settle | Self::Base | Self::OldBase);
        let number = if to.base == Base::Release(base(2).0) { 2 } else { 1 };
        let target = match self {
            _ if installs => Target::Install(base(number).0),
            Self::Back => Target::Restore(to.clone()),
            _ => Target::Stack(to.base.clone()),
        };
        let desired = DesiredState {
            component: "app".parse().unwrap(),
            generation: Generation { epoch: 1, number: self as u64 + 1 },
            rollout: None,
            upgrade: Some(self.name().parse().unwrap()),
            target,
            layers: if self == Self::Back { vec![] } else { to.layers.clone() },
            live: matches!(self, Self::Live | Self::LiveRemove | Self::OldLive),
            hold_before: None,
            not_after: None,
            allow_downgrade: false,
            allow_failed_digest: false,
            soak: None,
            trace: String::new(),
            actor: String::new(),
        };
        let layers = desired.layers.iter().map(|layer| patch(layer.number).1).collect();
        (desired, installs.then(|| base(number).1), layers)
    }
}

/// The child: orders a change, again if it was ordered before, and stays until that has ended.
#[test]
fn harness() {
    let (Ok(dir), Ok(name)) = (std::env::var(DIR), std::env::var(ORDER)) else { return };
    let all = [Change::Settle, Change::Patch1].into_iter().chain(CHANGES);
    let change = all.into_iter().find(|change| change.name() == name).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(drive(Path::new(&dir), change));
}

async fn drive(dir: &Path, change: Change) {
    let config = config(dir);
    let world = Local::new(&dir.join("state"), &config, artifact, |_, _| {});
    let (sender, mut outgoing) = mpsc::channel(1024);
    let shutdown = CancellationToken::new();
    let shared = Shared {
        platform: node_platform(),
        outgoing: sender,
        exclusives: Exclusives::default(),
        shutdown: shutdown.clone(),
    };
    let (handle, task) = component::start(&dir.join("state"), &config, world, shared);
    let (desired, manifest, layers) = change.order();
    handle.order(desired, manifest, layers, None).await.unwrap();
    loop {
        let inventory = handle.snapshot().await.unwrap().inventory;
        let ours = inventory.upgrade.as_ref().is_some_and(|upgrade| upgrade.as_str() == change.name());
        if ours && inventory.upgrade_state.is_some_and(|state| state.outcome().is_some()) {
            break;
        }
        let _: Option<Outgoing> =
            tokio::time::timeout(Duration::from_millis(50), outgoing.recv()).await.unwrap_or(None);
    }
    shutdown.cancel();
    drop(outgoing);
    task.await.unwrap();
}

/// Runs a child; true where it was killed at `point`.
fn child(dir: &Path, change: Change, point: Option<&str>) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "stack_crash::harness", "--nocapture"]).env(DIR, dir).env(ORDER, change.name());
    command.stdout(Stdio::null()).stderr(Stdio::piped()).env_remove(VARIABLE);
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
            panic!("{change:?} did not end; point {point:?}; {:?}", record(dir).passage);
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let killed = status.signal() == Some(9);
    if !killed && !status.success() {
        let mut said = String::new();
        let _ = std::io::Read::read_to_string(&mut running.stderr.take().unwrap(), &mut said);
        panic!("{status}: {change:?} at {point:?}: {:?}\n{said}", record(dir));
    }
    killed
}

fn record(dir: &Path) -> Record {
    let name = "app".parse().unwrap();
    Journal::peek(&dir.join("state/journals"), &name).unwrap_or_else(|| Record::new(name))
}

/// What a restart would use at this moment: by the link, and by the shim.
fn whole(dir: &Path, change: Change, about: &str) {
    let (old, new) = (state(1, &[1]), change.target());
    let link = stack_digest(&stack::layers(&place(dir)).expect("the set in force is whole"));
    assert!(link == old.stack() || link == new.stack(), "{about}: the link leads to neither stack");
    let spec: Spec = spec::read(&shim_dir(&dir.join("state"), &"app".parse().unwrap()).join(SPEC)).unwrap();
    let Some(launch) = spec.launch else { return };
    let of = |state: &ComponentState| launch.expect == state.artifact() && launch.stack == state.stack();
    assert!(of(&old) || of(&new), "{about}: the shim would start a mixture: {launch:?}");
    for input in &launch.inputs {
        assert_eq!(hash_file(&input.path).ok(), Some(input.digest), "{about}: a start would be refused");
    }
}

/// Ends what a series started, also where the series fails.
struct Ending<'a>(&'a Path);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _ = runtime.block_on(supervisor(self.0).shutdown());
    }
}

/// One series: some deaths, then a run to the end. Returns the points that were really died at.
fn series(change: Change, deaths: &[&str]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let _ending = Ending(path);
    assert!(!child(path, Change::Settle, None) && !child(path, Change::Patch1, None));
    let mut died = Vec::new();
    for point in deaths {
        if child(path, change, Some(point)) {
            died.push((*point).to_owned());
        }
        whole(path, change, &format!("{change:?} after {deaths:?}, at {point}"));
    }
    assert!(!child(path, change, None), "without a crash point nobody dies");
    check(path, change, deaths);
    died
}

fn check(dir: &Path, change: Change, deaths: &[&str]) {
    let about = format!("{change:?} after {deaths:?}");
    let record = record(dir);
    let (outcome, end) = change.ends();
    assert!(record.passage.is_none() && record.next.is_none(), "{about}: {record:?}");
    assert_eq!(record.last.as_ref().map(|last| last.outcome), Some(outcome), "{about}: {:?}", record.last);
    assert_eq!(record.current, end, "{about}");
    assert_eq!(hash_file(&dir.join("app")).ok(), end.artifact(), "{about}");
    assert_eq!(stack::layers(&place(dir)).unwrap(), end.layers, "{about}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let supervisor = supervisor(dir);
    let running = runtime.block_on(async {
        let state = supervisor.process().await;
        let _ = supervisor.shutdown().await;
        state.ok().and_then(|state| state.running().map(|info| (Some(info.digest), info.stack)))
    });
    assert_eq!(running, Some((end.artifact(), end.stack())), "{about}: what runs is what is recorded");
    let history = component::history::History::new(&dir.join("state"), &"app".parse().unwrap());
    let ends = history.read().unwrap();
    let ours = ends.iter().filter(|end| end.upgrade.as_ref().is_some_and(|id| id.as_str() == change.name()));
    assert_eq!(ours.map(|end| end.outcome).collect::<Vec<_>>(), [outcome], "{about}: the history");
    // Whatever kept states need lies there.
    for state in std::iter::once(&record.current).chain(&record.kept) {
        let artifacts = state.active().map(|layer| layer.release.artifact);
        for digest in artifacts {
            assert_eq!(hash_file(&place(dir).version(&digest)).ok(), Some(digest), "{about}");
        }
    }
    let left = std::fs::read_dir(place(dir).stacks()).into_iter().flatten();
    let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> = left.filter(|name| name.starts_with('.')).collect();
    assert!(left.is_empty(), "{about}: left {left:?}");
}

/// Runs many series, three at a time, and returns the points that were died at.
fn walk(all: Vec<(Change, Vec<String>)>) -> BTreeSet<String> {
    let (queue, reached) = (Mutex::new(all.into_iter()), Mutex::new(BTreeSet::new()));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some((change, deaths)) = next else { return };
                    let deaths: Vec<&str> = deaths.iter().map(String::as_str).collect();
                    let died = series(change, &deaths);
                    reached.lock().unwrap().extend(died);
                }
            });
        }
    });
    reached.into_inner().unwrap()
}

/// Points of every upgrade that lie close to what a stack does.
const NEAR: [&str; 12] = [
    "journal.append.before",
    "manifest.store.after",
    "stage.renamed",
    "step.back-up.after",
    "switch.linked",
    "switch.renamed",
    "step.stop.after",
    "step.start.before",
    "step.start.after",
    "step.inspect.after",
    "step.put-back.after",
    "prune.some",
];

#[test]
fn killed_at_every_point_a_restart_uses_an_old_or_a_new_stack() {
    let mut all = Vec::new();
    for change in CHANGES {
        let points = STACK_POINTS.iter().chain(&NEAR);
        all.extend(points.map(|point| (change, vec![format!("{point}:1")])));
        // Each transition is a record: dying around each of them.
        all.extend((1..=12).step_by(2).map(|count| (change, vec![format!("journal.append.torn:{count}")])));
    }
    let runs = all.len();
    let reached = walk(all);
    // Reloads belong to components that are not restarted.
    let stacks = STACK_POINTS.iter().filter(|point| !point.contains("reload"));
    let missing: Vec<_> = stacks.filter(|point| !reached.contains(&format!("{point}:1"))).collect();
    assert!(missing.is_empty(), "never died at {missing:?}");
    println!("{runs} series, died at {} different moments", reached.len());
}

#[test]
fn killed_again_in_the_recovery_a_restart_uses_an_old_or_a_new_stack() {
    let firsts =
        ["stack.written", "stack.linked", "stack.switched", "step.patch-live.after", "step.start.after"];
    let again =
        ["step.inspect.after", "stack.built", "step.put-the-stack-back.before", "journal.append.torn"];
    let mut all = Vec::new();
    for change in [Change::Apply, Change::Base, Change::OldBase, Change::Live, Change::OldLive] {
        for first in firsts {
            all.extend(again.map(|second| (change, vec![format!("{first}:1"), format!("{second}:1")])));
        }
    }
    let runs = all.len();
    walk(all);
    println!("{runs} series of two deaths");
}
