//! A component that is a Java application, from the order to the proof: the actor with the real node, real stack sets,
//! the real shim and a real JVM. T01–T03, T40 and T41, and a base with its stack.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use upfleet_agent::{
    component::{self, Exclusives, Handle, ManifestBytes, Shared, history::History, world::Node},
    config::{ComponentConfig, FetchConfig},
    download::Fetcher,
    exec::Place,
    platform::node_platform,
    supervise::Supervisor,
};
use upfleet_domain::{
    digest::Digest,
    jvm::Standing,
    order::{DesiredState, Generation, Target},
    patch::PatchSpec,
    reason::{Reason, ReasonCode},
    release::{ArtifactRef, FORMAT, Kind, Manifest, Platform},
    report::ComponentInventory,
    state::{Base, ComponentState, Layer, ReleaseRef},
    upgrade::Outcome,
};

mod units;

use crate::{
    patches,
    support::{AGENT, Jdk, Jvm, compile, each_jdk, jar, newest_jdk},
};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The application's classes; it prints what `Greeter` says whenever that changes.
fn built(says: &str) -> PathBuf {
    compile(&[
        (
            "app/Main.java",
            "package app; public class Main { public static void main(String[] a) throws Exception {\
               String last = \"\"; while (true) { String now = Greeter.say();\
                 if (!now.equals(last)) { System.out.println(\"says \" + now); last = now; } Thread.sleep(5); } } }",
        ),
        (
            "app/Greeter.java",
            &format!(
                "package app; public class Greeter {{ public static String say() {{ return \"{says}\"; }} }}"
            ),
        ),
    ])
}

/// A release with the bytes that it names.
#[derive(Clone)]
struct Published {
    release: ReleaseRef,
    manifest: ManifestBytes,
    file: PathBuf,
}

fn publish(kind: Kind, version: &str, sequence: u64, file: &Path, patch: Option<PatchSpec>) -> Published {
    let bytes = fs::read(file).unwrap();
    let manifest = Manifest {
        format: FORMAT,
        component: "app".parse().unwrap(),
        version: version.parse().unwrap(),
        sequence,
        kind,
        notes: String::new(),
        artifacts: vec![ArtifactRef {
            platform: Platform { arch: "any".to_owned(), ..node_platform() },
            sha256: Digest::of(&bytes),
            md5: None,
            size: bytes.len() as u64,
            sources: vec![],
            encodings: vec![],
        }],
        fixes: vec![],
        patch,
        files: None,
    };
    let text = manifest.to_bytes();
    let release = ReleaseRef {
        component: manifest.component,
        version: manifest.version,
        sequence,
        manifest: Digest::of(&text),
        artifact: Digest::of(&bytes),
    };
    Published { release, manifest: ManifestBytes { bytes: text, signatures: vec![] }, file: file.to_owned() }
}

fn base(number: u64, classes: &Path) -> Published {
    let jar = jar(classes, "Main-Class: app.Main\n");
    publish(Kind::Binary, &format!("1.0.{number}"), number, &jar, None)
}

/// The patch for `base` that was built from `parent`, which may be what an earlier patch makes of it.
fn patch(number: u32, base: &Path, parent: &Path, changed: &Path) -> Published {
    let mut made = patches::patch(number, base, changed);
    let parents = patches::classes(parent);
    for class in &mut made.spec.classes {
        let own = parents.iter().find(|(name, _)| *name == class.name);
        class.parent = own.map(|(_, bytes)| Digest::of(bytes));
    }
    publish(Kind::Patch, &format!("p{number}"), number.into(), &made.jar, Some(made.spec))
}

/// An agent's core with one component; all that runs ends with it.
struct Bench {
    dir: tempfile::TempDir,
    config: ComponentConfig,
    handle: Handle,
    task: Option<JoinHandle<()>>,
    shutdown: CancellationToken,
    /// Where systemd is asked, for a component that a unit runs.
    bus: Option<String>,
}

impl Bench {
    fn new(jdk: &Jdk, jvm: &str) -> Self {
        let small = Jvm::small().iter().map(|option| format!("{option:?}, ")).collect::<String>();
        let java = jdk.program("java");
        Self::with(&format!(
            "[run]\nmode = \"supervised\"\nrestart_delay = \"20ms\"\ncommand = [{java:?}, {small}\"-jar\", \
             \"{{path}}\"]\n[health]\nsoak = \"300ms\"\n[[probe]]\ntype = \"process\"\ninterval = \
             \"20ms\"\n[jvm]\n{jvm}"
        ))
    }

    /// With these further lines of configuration.
    fn with(text: &str) -> Self {
        Self::on_bus(text, None)
    }

    /// The same with systemd on that bus.
    fn on_bus(text: &str, bus: Option<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.jar");
        let text = format!("name = \"app\"\npath = {path:?}\nallow_local_apply = true\n{text}");
        let config: ComponentConfig = toml::from_str(&text).unwrap();
        let (handle, task, shutdown) = launch(dir.path(), &config, bus.as_deref());
        Self { dir, config, handle, task: Some(task), shutdown, bus }
    }

    fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn place(&self) -> Place {
        Place::new(&self.config.name, &self.config.path)
    }

    async fn inventory(&self) -> ComponentInventory {
        self.handle.snapshot().await.unwrap().inventory
    }

    /// Applies a release or a stack as `upfleet-agent apply` does, and waits for its end.
    async fn apply(&self, base: &Published, patches: &[&Published], live: bool, installs: bool) -> Outcome {
        let layers = |published: &&Published| Layer {
            number: u32::try_from(published.release.sequence).unwrap(),
            release: published.release.clone(),
            retired: false,
            contains: vec![],
        };
        let desired = DesiredState {
            component: self.config.name.clone(),
            generation: Generation::default(),
            rollout: None,
            upgrade: None,
            target: match installs {
                true => Target::Install(base.release.clone()),
                false => Target::Stack(Base::Release(base.release.clone())),
            },
            layers: patches.iter().map(layers).collect(),
            live,
            hold_before: None,
            not_after: None,
            allow_downgrade: false,
            allow_failed_digest: false,
            soak: None,
            trace: String::new(),
            actor: "anna".to_owned(),
        };
        let manifests = patches.iter().map(|published| published.manifest.clone()).collect();
        let all = patches.iter().copied().chain([base]);
        let files = all.map(|published| (published.release.artifact, published.file.clone())).collect();
        let before = self.ended();
        let manifest = installs.then(|| base.manifest.clone());
        self.handle.apply(desired, manifest, manifests, files, "test".to_owned()).await.unwrap();
        self.end_after(before).await
    }

    fn ended(&self) -> usize {
        History::new(&self.state_dir(), &self.config.name).read().unwrap().len()
    }

    /// How the next upgrade ends.
    async fn end_after(&self, before: usize) -> Outcome {
        until("end", async || {
            let history = History::new(&self.state_dir(), &self.config.name).read().unwrap();
            history.get(before).map(|entry| {
                println!("{}: {} {}", entry.to, entry.outcome, entry.reason);
                entry.outcome
            })
        })
        .await
    }

    /// Waits until the newest line of the application is this one.
    async fn says(&self, text: &str) {
        let wanted = format!("says {text}");
        until(&wanted, async || {
            let lines = self.handle.tail(200).await.unwrap();
            let last = lines.iter().rev().find(|line| line.starts_with("says "));
            last.is_some_and(|line| *line == wanted).then_some(())
        })
        .await;
    }

    async fn pid(&self) -> u32 {
        until("process", async || self.inventory().await.pid).await
    }

    /// Ends the process as if it had crashed; its shim starts it again.
    async fn crash(&self) {
        let pid = self.pid().await;
        let process = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
        until("another process", async || self.inventory().await.pid.filter(|new| *new != pid)).await;
    }

    /// Ends the agent's core and the application, each in its turn.
    async fn close(mut self) {
        self.shutdown.cancel();
        if let Some(task) = self.task.take() {
            task.await.unwrap();
        }
        supervisor(self.dir.path(), &self.config, self.bus.as_deref()).shutdown().await.unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if self.task.is_none() || self.bus.is_some() {
            return;
        }
        // A test failed: the runtime may be in use, so that the shim is ended from a thread of its own.
        let (dir, config) = (self.dir.path().to_owned(), self.config.clone());
        let ended = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _ = runtime.block_on(supervisor(&dir, &config, None).shutdown());
        });
        let _ = ended.join();
    }
}

fn supervisor(dir: &Path, config: &ComponentConfig, bus: Option<&str>) -> Supervisor {
    Supervisor::build(&dir.join("state"), config, Path::new(AGENT), bus)
}

fn launch(
    dir: &Path,
    config: &ComponentConfig,
    bus: Option<&str>,
) -> (Handle, JoinHandle<()>, CancellationToken) {
    let state_dir = dir.join("state");
    let fetcher = Fetcher::new(&FetchConfig::default(), None);
    let supervisor = supervisor(dir, config, bus);
    let world = Node::with_supervisor(&state_dir, config, fetcher, Path::new(AGENT), supervisor);
    let (sender, mut outgoing) = mpsc::channel(1024);
    tokio::spawn(async move { while outgoing.recv().await.is_some() {} });
    let shutdown = CancellationToken::new();
    let shared = Shared {
        platform: node_platform(),
        outgoing: sender,
        exclusives: Exclusives::default(),
        shutdown: shutdown.clone(),
    };
    let (handle, task) = component::start(&state_dir, config, world, shared);
    (handle, task, shutdown)
}

/// Polls until there is an answer.
async fn until<T>(what: &str, poll: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = poll().await {
            return value;
        }
        assert!(Instant::now() < deadline, "no {what} within a minute");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

fn standing(inventory: &ComponentInventory) -> Vec<(u32, Standing)> {
    let proof = inventory.proof.as_ref().expect("a proof");
    proof.classes.iter().map(|class| (class.number, class.standing)).collect()
}

/// T01, T02, T40, T41: by restart, live on top, through a crash of the JVM, live back, and back to none.
#[test]
fn patches_by_restart_and_live_and_back() {
    each_jdk("patches_by_restart_and_live_and_back", |jdk| {
        run(async {
            let bench = Bench::new(jdk, "");
            let (plain, first, second) = (built("888888"), built("PATCH1"), built("PATCH2"));
            let (base, one, two) =
                (base(1, &plain), patch(1, &plain, &plain, &first), patch(2, &plain, &first, &second));
            assert_eq!(bench.apply(&base, &[], false, true).await, Outcome::Succeeded);
            bench.says("888888").await;
            let before = bench.pid().await;
            assert_eq!(bench.apply(&base, &[&one], false, false).await, Outcome::Succeeded);
            bench.says("PATCH1").await;
            let pid = bench.pid().await;
            assert_ne!(pid, before, "by a restart");
            assert_eq!(standing(&bench.inventory().await), [(1, Standing::Proved)]);
            assert_eq!(bench.apply(&base, &[&two, &one], true, false).await, Outcome::Succeeded);
            bench.says("PATCH2").await;
            assert_eq!(bench.pid().await, pid, "without a restart");
            assert_eq!(standing(&bench.inventory().await), [(2, Standing::Proved)]);
            bench.crash().await;
            bench.says("PATCH2").await;
            let pid = bench.pid().await;
            assert_eq!(bench.apply(&base, &[&one], true, false).await, Outcome::Succeeded);
            bench.says("PATCH1").await;
            assert_eq!(bench.pid().await, pid);
            let before = bench.ended();
            let none = ComponentState::release(base.release.clone());
            bench.handle.roll_back(Some(none.clone()), "back".to_owned()).await.unwrap();
            assert_eq!(bench.end_after(before).await, Outcome::Succeeded);
            bench.says("888888").await;
            assert_eq!(bench.inventory().await.current, none);
            let history = History::new(&bench.state_dir(), &bench.config.name).read().unwrap();
            let states: Vec<String> = history.iter().map(|entry| entry.current.to_string()).collect();
            assert_eq!(states, ["1.0.1", "1.0.1+patch1", "1.0.1+patch2,1", "1.0.1+patch1", "1.0.1"]);
            bench.close().await;
        });
    });
}

/// T03 and T06: ten before nine, by number; and what was built for another base is refused with both digests.
#[test]
fn the_order_is_by_number_and_the_base_by_digest() {
    let Some(jdk) = newest_jdk("the_order_is_by_number_and_the_base_by_digest") else { return };
    run(async {
        let bench = Bench::new(jdk, "mechanism = \"pathing-jar\"\n");
        let (plain, nine, ten) = (built("888888"), built("PATCH9"), built("PATCH10"));
        let (base, nine, ten) =
            (base(1, &plain), patch(9, &plain, &plain, &nine), patch(10, &plain, &nine, &ten));
        assert_eq!(bench.apply(&base, &[&ten, &nine], false, true).await, Outcome::Succeeded);
        bench.says("PATCH10").await;
        let another = built("another");
        let other = patch(11, &another, &another, &built("PATCH11"));
        let pid = bench.pid().await;
        assert_eq!(bench.apply(&base, &[&other], false, false).await, Outcome::FailedUnchanged);
        let history = History::new(&bench.state_dir(), &bench.config.name).read().unwrap();
        let reason: &Reason = &history.last().unwrap().reason;
        assert_eq!(reason.code, ReasonCode::BaseMismatch, "{reason}");
        assert!(reason.metadata["expected"] != reason.metadata["actual"], "{reason}");
        assert_eq!(bench.pid().await, pid, "nothing was touched");
        bench.close().await;
    });
}

/// A JVM that somebody else runs is found by what it runs, patched live and taken back; what would need a restart is
/// refused, since nobody would make one.
#[test]
fn a_jvm_that_the_agent_does_not_run_is_patched_live() {
    let Some(jdk) = newest_jdk("a_jvm_that_the_agent_does_not_run_is_patched_live") else { return };
    run(async {
        let bench = Bench::with("[run]\nmode = \"none\"\n[jvm]\n");
        let (plain, first) = (built("888888"), built("PATCH1"));
        let (base, one) = (base(1, &plain), patch(1, &plain, &plain, &first));
        assert_eq!(bench.apply(&base, &[], false, true).await, Outcome::Succeeded);
        let mut jvm = Jvm::start(jdk, &["-jar", bench.config.path.to_str().unwrap()]);
        jvm.wait_for("says 888888");
        assert_eq!(bench.apply(&base, &[&one], false, false).await, Outcome::FailedUnchanged);
        let history = History::new(&bench.state_dir(), &bench.config.name).read().unwrap();
        assert_eq!(history.last().unwrap().reason.code, ReasonCode::RestartNeeded);
        assert_eq!(bench.apply(&base, &[&one], true, false).await, Outcome::Succeeded);
        jvm.wait_for("says PATCH1");
        let proof = bench.inventory().await.proof.unwrap();
        assert_eq!((proof.pid, proof.count(Standing::Proved)), (jvm.pid(), 1));
        assert_eq!(bench.apply(&base, &[], true, false).await, Outcome::Succeeded);
        until("way back to the old words", async || {
            let output = jvm.output();
            let last = output.lines().rev().find(|line| line.starts_with("says "));
            (last == Some("says 888888")).then_some(())
        })
        .await;
        assert!(jvm.is_alive());
        bench.close().await;
    });
}

/// A base brings its stack; one that fails takes both back. T04: a jar that was damaged is never started with.
#[test]
fn a_base_with_its_stack_and_a_damaged_jar() {
    let Some(jdk) = newest_jdk("a_base_with_its_stack_and_a_damaged_jar") else { return };
    run(async {
        let bench = Bench::new(jdk, "");
        let (plain, first) = (built("888888"), built("PATCH1"));
        let (newer, newest) = (built("999999"), built("PATCH3"));
        let (one, two) = (base(1, &plain), base(2, &newer));
        let (on_one, on_two) = (patch(1, &plain, &plain, &first), patch(3, &newer, &newer, &newest));
        assert_eq!(bench.apply(&one, &[&on_one], false, true).await, Outcome::Succeeded);
        bench.says("PATCH1").await;
        assert_eq!(bench.apply(&two, &[&on_two], false, true).await, Outcome::Succeeded);
        bench.says("PATCH3").await;
        // A stack for the older base is found out once the newer one lies there to be asked.
        let broken = jar(&compile(&[("Other.java", "public class Other { }")]), "Main-Class: app.Main\n");
        let broken = publish(Kind::Binary, "1.0.3", 3, &broken, None);
        let ended = bench.apply(&broken, &[&on_two], false, true).await;
        assert_eq!(ended, Outcome::FailedUnchanged);
        bench.says("PATCH3").await;
        let before = bench.ended();
        bench.handle.roll_back(None, "back".to_owned()).await.unwrap();
        assert_eq!(bench.end_after(before).await, Outcome::Succeeded);
        bench.says("PATCH1").await;
        assert_eq!(bench.inventory().await.current.to_string(), "1.0.1+patch1");
        let set = fs::read_link(bench.place().current_stack()).unwrap();
        let jars = fs::read_dir(bench.place().stacks().join(set)).unwrap().map(|entry| entry.unwrap().path());
        let of_patch = jars.filter(|path| path.to_string_lossy().contains("000001-"));
        let path = of_patch.into_iter().next().unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let drift = until("drift", async || bench.inventory().await.drift).await;
        assert_eq!(drift.code, ReasonCode::StackDamaged, "{drift}");
        let process = rustix::process::Pid::from_raw(i32::try_from(bench.pid().await).unwrap()).unwrap();
        rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
        until("refused start", async || bench.inventory().await.pid.is_none().then_some(())).await;
        // The same stack once more puts it right.
        assert_eq!(bench.apply(&one, &[&on_one], false, false).await, Outcome::Succeeded);
        bench.says("PATCH1").await;
        bench.close().await;
    });
}
