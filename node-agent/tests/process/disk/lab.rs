//! A component on a disk that fails: what can be done to it, each deed in a child process of its own, and what must
//! hold of it afterwards. Here are no faults.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use upfleet_agent::{
    component::{self, Exclusives, Handle, ManifestBytes, Shared},
    config::ComponentConfig,
    exec::{Executor, stack},
    journal::{self, Journal},
    platform::node_platform,
    supervise::{ProcessStateInfo, Supervisor},
};
use upfleet_domain::{
    digest::Digest,
    files::OnLocalChange,
    order::{DesiredState, Generation, HoldOrder, Target},
    state::{Base, ComponentState, stack_digest},
    upgrade::{Outcome, record::Record},
};

use crate::{
    files_support::{self, Release},
    releases::{self, BAD, base, patch, state},
    support::AGENT,
    world::Local,
};

const DIR: &str = "UPFLEET_LAB_DIR";
const SORT: &str = "UPFLEET_LAB_SORT";
const DEED: &str = "UPFLEET_LAB_DEED";
/// Events of [`Local`] at which a child does what [`DO`] says, with commas in between.
pub const ON: &str = "UPFLEET_LAB_ON";
/// What is done then: `fill` fills the disk, `hold` keeps what was fetched open for writing, and `flip PATH N` changes
/// the byte at `N` of a file.
pub const DO: &str = "UPFLEET_LAB_DO";
/// How long a deed may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// What the component is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// A program, with patches if a deed brings some.
    Program,
    /// A directory that is switched by a link.
    Link,
    /// A directory that is switched by an exchange of names.
    Exchange,
}

impl Sort {
    /// As the agent is configured.
    pub fn config(self, dir: &Path) -> ComponentConfig {
        let deadline = if self == Self::Program { "20s" } else { "2s" };
        let health = format!("[health]\nsoak = \"10ms\"\nstart_deadline = \"{deadline}\"\n");
        match self {
            Self::Program => toml::from_str(&format!(
                "name = \"app\"\npath = {:?}\n[run]\nmode = \"supervised\"\ncommand = [\"{{path}}\", \"1000\"]\n\
                 {health}[[probe]]\ntype = \"process\"\ninterval = \"5ms\"\n[jvm]\n",
                dir.join("app")
            ))
            .unwrap(),
            Self::Link | Self::Exchange => {
                let swap = if self == Self::Link { "link" } else { "exchange" };
                let lines = format!(
                    "[files]\nswap = \"{swap}\"\n{health}[[probe]]\ntype = \"exec\"\ncommand = [\"/bin/true\"]\n\
                     interval = \"5ms\"\n"
                );
                files_support::config(dir, &lines)
            }
        }
    }

    fn parse(text: &str) -> Self {
        [Self::Program, Self::Link, Self::Exchange]
            .into_iter()
            .find(|sort| format!("{sort:?}") == text)
            .unwrap()
    }
}

/// What is done to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// The controller orders a release, with patches over it.
    Install(u64, Vec<u32>),
    /// The controller orders patches over the base that is there.
    Patch(u64, Vec<u32>),
    /// A person at the node puts the newest kept state back.
    RollBack,
}

impl Deed {
    fn write(&self) -> String {
        let list = |patches: &[u32]| patches.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        match self {
            Self::Install(n, patches) => format!("install {n} {}", list(patches)),
            Self::Patch(n, patches) => format!("patch {n} {}", list(patches)),
            Self::RollBack => "roll-back 0 ".to_owned(),
        }
    }

    fn parse(text: &str) -> Self {
        let words: Vec<&str> = text.split(' ').collect();
        let n = words[1].parse().unwrap();
        let patches = words[2].split(',').filter(|word| !word.is_empty()).map(|word| word.parse().unwrap());
        match words[0] {
            "install" => Self::Install(n, patches.collect()),
            "patch" => Self::Patch(n, patches.collect()),
            _ => Self::RollBack,
        }
    }
}

/// Release `n` of the directory `site`.
pub fn site(n: u64) -> Release {
    let text = |name: &str| {
        let size = std::env::var(releases::SIZE).ok().and_then(|size| size.parse().ok()).unwrap_or(0);
        format!("{name} {n} {}", "x".repeat(size))
    };
    let (a, b, c) = (text("a"), format!("b {n}"), format!("c {n}"));
    let new = format!("e/f{n}");
    let mut files = vec![("a", a.as_str()), ("d/b", b.as_str()), (new.as_str(), c.as_str())];
    if n == BAD {
        files.push(("bad", ""));
    }
    files_support::release(n, &files, OnLocalChange::Keep, &["local/**"])
}

fn artifact(digest: &Digest) -> Option<Vec<u8>> {
    let site = || (1..=BAD + 1).map(site).find(|site| site.reference.artifact == *digest);
    releases::artifact(digest).or_else(|| Some(site()?.artifact))
}

/// What an order says, and the manifests that come with it.
type Ordered = (Target, Vec<upfleet_domain::state::Layer>, Option<ManifestBytes>, Vec<ManifestBytes>);

fn ordered(sort: Sort, deed: &Deed) -> Ordered {
    let layers = |patches: &[u32]| patches.iter().map(|number| patch(*number)).unzip();
    match deed {
        Deed::Install(n, _) if sort != Sort::Program => {
            let site = site(*n);
            (Target::Install(site.reference), vec![], Some(site.manifest), vec![])
        }
        Deed::Install(n, patches) => {
            let ((layers, manifests), (release, manifest)) = (layers(patches), base(*n));
            (Target::Install(release), layers, Some(manifest), manifests)
        }
        Deed::Patch(n, patches) => {
            let (layers, manifests) = layers(patches);
            (Target::Stack(state(*n, &[]).base), layers, None, manifests)
        }
        Deed::RollBack => unreachable!("no order of the controller"),
    }
}

// ---- the child -------------------------------------------------------------------------------------------------

/// The child: does one deed, or goes on with it where it was begun, and stays until it is over. All work on files is
/// done by one thread and the rest by another; it says which, and waits for a line before it begins.
#[test]
fn harness() {
    let (Ok(dir), Ok(sort), Ok(deed)) = (std::env::var(DIR), std::env::var(SORT), std::env::var(DEED)) else {
        return;
    };
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let keep = Duration::from_secs(3600);
    let runtime = builder.max_blocking_threads(1).thread_keep_alive(keep).enable_all().build().unwrap();
    let (number, deed) = deed.split_once(' ').unwrap();
    let (number, deed) = (number.parse().unwrap(), Deed::parse(deed));
    runtime.block_on(async {
        let tid = || rustix::thread::gettid().as_raw_nonzero();
        let files = tokio::task::spawn_blocking(tid).await.unwrap();
        println!("\nready {} {files}", tid());
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).unwrap();
        let said =
            tokio::time::timeout(PATIENCE, act(Path::new(&dir), Sort::parse(&sort), number, &deed)).await;
        println!(
            "\nsaid {}",
            said.unwrap_or_else(|_| {
                let last = record(Path::new(&dir), Sort::parse(&sort)).and_then(|record| record.last);
                format!("STUCK after {last:?}")
            })
        );
    });
}

async fn act(dir: &Path, sort: Sort, number: u64, deed: &Deed) -> String {
    let (config, begun) = (sort.config(dir), record(dir, sort));
    let world = Local::new(&dir.join("state"), &config, artifact, on);
    let (outgoing, mut said) = mpsc::channel(1024);
    let shutdown = CancellationToken::new();
    let shared = Shared {
        platform: node_platform(),
        outgoing,
        exclusives: Exclusives::default(),
        shutdown: shutdown.clone(),
    };
    let (handle, task) = component::start(&dir.join("state"), &config, world, shared);
    let answer = match deed {
        // Known to the journal already: once is enough.
        Deed::RollBack if begun.is_some_and(|record| record.hold.is_some()) => Ok(()),
        Deed::RollBack => {
            handle.roll_back(None, "a test".to_owned()).await.map_err(|reason| reason.to_string())
        }
        deed => order(&handle, sort, number, deed).await,
    };
    let over = |record: &Record| {
        let ours = |id: &upfleet_domain::id::UpgradeId| id.as_str() == format!("u{number}");
        let ended =
            if *deed == Deed::RollBack { record.last.is_some() } else { record.ended.iter().any(ours) };
        record.passage.is_none() && record.next.is_none() && ended
    };
    while answer.is_ok() && !record(dir, sort).is_some_and(|record| over(&record)) {
        // Everything that is said is a moment to look whether it is over.
        let _ = tokio::time::timeout(Duration::from_millis(20), said.recv()).await;
    }
    // After a power cut, what is recorded is started again.
    let well =
        |record: &Record| record.last.as_ref().is_none_or(|last| last.outcome != Outcome::RollbackFailed);
    let started = record(dir, sort).is_some_and(|record| record.started && well(&record));
    while answer.is_ok() && started && handle.snapshot().await.is_ok_and(|seen| seen.inventory.pid.is_none())
    {
        let _ = tokio::time::timeout(Duration::from_millis(20), said.recv()).await;
    }
    // Whatever follows the end, e.g. the line in the history, is part of it.
    let snapshot = handle.snapshot().await.map(|snapshot| snapshot.reason.map(|reason| reason.to_string()));
    shutdown.cancel();
    drop(said);
    task.await.unwrap();
    match answer {
        Ok(()) => format!("ENDED {}", snapshot.ok().flatten().unwrap_or_default()),
        Err(reason) => format!("REFUSED {reason}"),
    }
}

async fn order(handle: &Handle, sort: Sort, number: u64, deed: &Deed) -> Result<(), String> {
    let (target, layers, manifest, manifests) = ordered(sort, deed);
    let desired = DesiredState {
        component: handle.component().clone(),
        generation: Generation { epoch: 1, number },
        rollout: None,
        upgrade: Some(format!("u{number}").parse().unwrap()),
        target,
        layers,
        live: false,
        hold_before: None,
        not_after: None,
        allow_downgrade: true,
        allow_failed_digest: true,
        soak: None,
        trace: String::new(),
        actor: String::new(),
    };
    let release = HoldOrder { hold: false, generation: number, message: String::new(), actor: String::new() };
    let ordered = handle.order(desired, manifest, manifests, Some(release)).await;
    ordered.map(drop).map_err(|nacked| nacked.reason.to_string())
}

fn on(event: &str, path: &Path) {
    let (Ok(events), Ok(deed)) = (std::env::var(ON), std::env::var(DO)) else { return };
    if !events.split(',').any(|wanted| wanted == event) {
        return;
    }
    let parent = path.parent().unwrap();
    let words: Vec<&str> = deed.split(' ').collect();
    match words[0] {
        "fill" => fill_disk(parent),
        "flip" => {
            // Twice would be not at all.
            static ONCE: std::sync::Once = std::sync::Once::new();
            ONCE.call_once(|| flip(Path::new(words[1]), words[2].parse().unwrap()));
        }
        _ => {
            let incoming = parent.join(".upfleet/app/incoming");
            for part in std::fs::read_dir(incoming).unwrap().flatten() {
                std::mem::forget(std::fs::OpenOptions::new().append(true).open(part.path()).unwrap());
            }
        }
    }
}

/// Changes one byte of a file, as a bad disk would.
pub fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = at % bytes.len();
    bytes[at] ^= 1;
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[at..=at], at as u64).unwrap();
}

/// Makes a file that leaves not one byte free.
pub fn fill_disk(dir: &Path) {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("ballast")).unwrap();
    for size in [1 << 20, 64 << 10, 4096, 512, 1] {
        let block = vec![0x5a; size];
        while file.write_all(&block).is_ok() && file.sync_data().is_ok() {}
    }
}

// ---- the parent ------------------------------------------------------------------------------------------------

/// A child that waits for its first line.
pub struct Waiting {
    child: Child,
    stdin: ChildStdin,
    output: std::sync::mpsc::Receiver<String>,
    /// The thread that does everything but work on files.
    pub mind: i32,
    /// The thread that works on files.
    pub hands: i32,
}

/// How a child ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was killed.
    Killed,
    /// What it said last.
    Said(String),
}

/// The command of a child that does `deed`, the order of that number.
pub fn command(dir: &Path, sort: Sort, number: u64, deed: &Deed) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "disk::lab::harness", "--nocapture", "--test-threads", "1"]);
    command.env(DIR, dir).env(SORT, format!("{sort:?}")).env(DEED, format!("{number} {}", deed.write()));
    command
}

impl Waiting {
    /// Starts a child and waits until it is ready.
    pub fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, output) = std::sync::mpsc::channel();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let also = sender.clone();
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
        });
        std::thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).for_each(|line| drop(also.send(line)));
        });
        let stdin = child.stdin.take().unwrap();
        let mut waiting = Self { child, stdin, output, mind: 0, hands: 0 };
        let ready = waiting.line("ready ").unwrap_or_else(|said| panic!("no child: {said:?}"));
        let threads: Vec<i32> = ready.split(' ').map(|tid| tid.parse().unwrap()).collect();
        (waiting.mind, waiting.hands) = (threads[0], threads[1]);
        waiting
    }

    /// The next line with that beginning; all that was said where there is none.
    fn line(&mut self, prefix: &str) -> Result<String, Vec<String>> {
        let (deadline, mut said) = (Instant::now() + 2 * PATIENCE, Vec::new());
        loop {
            let Ok(line) = self.output.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            else {
                let _ = self.child.kill();
                return Err(said);
            };
            if let Some(rest) = line.strip_prefix(prefix) {
                return Ok(rest.to_owned());
            }
            said.push(line);
        }
    }

    /// Lets it go on to its end.
    pub fn finish(mut self) -> Ended {
        self.stdin.write_all(b"go\n").unwrap();
        let said = self.line("said ");
        let status = self.child.wait().unwrap();
        match said {
            Ok(said) => Ended::Said(said),
            Err(_) if std::os::unix::process::ExitStatusExt::signal(&status) == Some(9) => Ended::Killed,
            Err(said) => Ended::Said(format!("DIED {status}: {}", said.join("\n"))),
        }
    }
}

/// Does one deed without any fault, and expects that it ends.
pub fn done(dir: &Path, sort: Sort, number: u64, deed: &Deed) -> String {
    match Waiting::spawn(command(dir, sort, number, deed)).finish() {
        Ended::Said(said) if said.starts_with("ENDED") => said,
        ended => panic!("{sort:?} {deed:?}: {ended:?}"),
    }
}

/// What the journal says.
pub fn record(dir: &Path, sort: Sort) -> Option<Record> {
    Journal::peek(&journal::dir(&dir.join("state")), &sort.config(dir).name)
}

/// The component's processes.
pub fn supervisor(dir: &Path, sort: Sort) -> Supervisor {
    Supervisor::with_program(&dir.join("state"), &sort.config(dir), Path::new(AGENT))
}

/// Ends what the component runs, also where a test fails.
pub struct Ending(pub PathBuf, pub Sort);

impl Drop for Ending {
    fn drop(&mut self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _ = runtime.block_on(supervisor(&self.0, self.1).shutdown());
    }
}

// ---- what must hold --------------------------------------------------------------------------------------------

/// What the start path names: the base's digest, and the stack's.
pub type Path2 = (Option<Digest>, Option<Digest>);

/// The start path of a state.
pub fn of_state(state: &ComponentState) -> Path2 {
    (state.artifact(), state.stack())
}

/// What the next start would use at this moment.
///
/// # Errors
/// Where that is nothing complete.
pub fn start_path(dir: &Path, sort: Sort) -> Result<Path2, String> {
    let executor = Executor::of(&sort.config(dir));
    let lying = executor.inspect().map_err(|reason| reason.to_string())?;
    let layers = stack::layers(executor.place()).map_err(|reason| reason.to_string())?;
    Ok((lying.installed, stack_digest(&layers)))
}

/// The state that a deed leads to when it succeeds.
pub fn goal(sort: Sort, deed: &Deed, kept: &ComponentState) -> ComponentState {
    match deed {
        Deed::Install(n, _) if sort != Sort::Program => {
            ComponentState { base: Base::Release(site(*n).reference), layers: vec![] }
        }
        Deed::Install(n, patches) | Deed::Patch(n, patches) => state(*n, patches),
        Deed::RollBack => kept.clone(),
    }
}

/// The invariant of a component that rests: the journal can be read and names what is in place and runs; nothing
/// temporary is left, and every way back lies there.
///
/// # Errors
/// What does not hold.
pub fn at_rest(dir: &Path, sort: Sort) -> Result<Record, String> {
    let record = record(dir, sort).ok_or("no journal can be read")?;
    if let Some(passage) = &record.passage {
        return Err(format!("an upgrade is under way still: {:?}", passage.reason));
    }
    let current = of_state(&record.current);
    let found = start_path(dir, sort)?;
    if found != current {
        return Err(format!("recorded is {current:?}, in place {found:?}"));
    }
    if record.started {
        let running = running(dir, sort);
        if running != Some(current) {
            return Err(format!("recorded is {current:?}, what runs is {running:?}"));
        }
    }
    let kept = Executor::of(&sort.config(dir)).inspect().map_err(|reason| reason.to_string())?.kept;
    for state in &record.kept {
        let artifacts =
            state.artifact().into_iter().chain(state.active().map(|layer| layer.release.artifact));
        if let Some(gone) =
            artifacts.into_iter().find(|digest| !kept.contains(digest) && current.0 != Some(*digest))
        {
            return Err(format!("{gone} is a way back and does not lie there"));
        }
    }
    let left = temporary(dir);
    if left.is_empty() { Ok(record) } else { Err(format!("left behind: {left:?}")) }
}

/// What runs: the base's digest, and the stack's.
fn running(dir: &Path, sort: Sort) -> Option<Path2> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let state = runtime.block_on(supervisor(dir, sort).process());
        match state {
            Ok(ProcessStateInfo::Running(info)) => return Some((Some(info.digest), info.stack)),
            _ if Instant::now() > deadline => return None,
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// What should not lie there while nothing is under way.
fn temporary(dir: &Path) -> Vec<PathBuf> {
    let (mut all, mut open) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(&at).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            let hidden = name.starts_with('.') && name != ".upfleet";
            let incoming = at.ends_with("incoming") || at.ends_with("offered");
            if hidden || incoming || name.ends_with("tmp") || name.contains(".damaged-") {
                all.push(entry.path());
            }
        }
    }
    all
}

/// How a deed is expected to end where nothing fails.
pub fn outcome(deed: &Deed) -> Outcome {
    match deed {
        Deed::Install(BAD, _) => Outcome::RolledBack,
        Deed::Install(_, patches) | Deed::Patch(_, patches)
            if patches.contains(&crate::world::UNLOADABLE) =>
        {
            Outcome::RolledBack
        }
        _ => Outcome::Succeeded,
    }
}
