//! Finding JDKs, compiling fixtures from their texts, and JVMs that end with their guard.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use upfleet_agent::{jvm::Target, processes};
use upfleet_domain::digest::Digest;

/// The binary under test.
pub const AGENT: &str = env!("CARGO_BIN_EXE_upfleet-agent");
/// How long a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Options that keep a JVM small and quick to start.
const SMALL: [&str; 4] = ["-Xmx32m", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"];

/// Says that `test` did not run, and why, past the test runner's capture.
pub fn skip(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {reason}");
}

/// An installed JDK.
#[derive(Clone, Debug)]
pub struct Jdk {
    /// Where it lies.
    pub home: PathBuf,
    /// 8, 11, 17 and so on.
    pub feature: u32,
}

impl Jdk {
    /// One of its programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.home.join("bin").join(name)
    }

    fn at(home: &Path) -> Option<Self> {
        let home = home.canonicalize().ok()?;
        let java = home.join("bin/java");
        if !java.exists() || !home.join("bin/javac").exists() {
            return None;
        }
        let said = Command::new(java).arg("-version").output().ok()?;
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        let version = said.lines().find_map(|line| line.split('"').nth(1))?.to_owned();
        let mut parts = version.split(['.', '-', '+', '_']).filter_map(|part| part.parse().ok());
        let first = parts.next()?;
        Some(Self { home, feature: if first == 1 { parts.next()? } else { first } })
    }
}

/// One JDK of each feature version, the oldest first.
pub fn jdks() -> &'static [Jdk] {
    static JDKS: OnceLock<Vec<Jdk>> = OnceLock::new();
    JDKS.get_or_init(|| {
        let mut homes: Vec<PathBuf> = std::env::var_os("UPFLEET_JDKS")
            .map(|dirs| std::env::split_paths(&dirs).collect())
            .unwrap_or_default();
        homes.extend(std::env::var_os("JAVA_HOME").map(PathBuf::from));
        let mut installed: Vec<PathBuf> = fs::read_dir("/usr/lib/jvm")
            .map(|entries| entries.filter_map(Result::ok).map(|entry| entry.path()).collect())
            .unwrap_or_default();
        installed.sort();
        homes.extend(installed);
        for dir in std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()) {
            let home = dir.join("java").canonicalize().ok();
            homes.extend(home.and_then(|java| Some(java.parent()?.parent()?.to_owned())));
        }
        let mut found = BTreeMap::new();
        let mut known = Vec::new();
        for home in homes.iter().filter_map(|home| home.canonicalize().ok()) {
            if !known.contains(&home) {
                known.push(home.clone());
                if let Some(jdk) = Jdk::at(&home) {
                    found.entry(jdk.feature).or_insert(jdk);
                }
            }
        }
        found.into_values().collect()
    })
}

/// The newest JDK; `None`, and said so, where there is none.
pub fn newest_jdk(test: &str) -> Option<&'static Jdk> {
    let newest = jdks().last();
    if newest.is_none() {
        skip(test, "no JDK is installed");
    }
    newest
}

/// Runs `body` with each JDK.
pub fn each_jdk(test: &str, mut body: impl FnMut(&Jdk)) {
    if newest_jdk(test).is_none() {
        return;
    }
    for jdk in jdks() {
        println!("{test}: JDK {} of {}", jdk.feature, jdk.home.display());
        body(jdk);
    }
}

/// A directory with the classes of these sources, as (file name, text), compiled once for Java 8.
pub fn compile(sources: &[(&str, &str)]) -> PathBuf {
    compile_with(jdks().last().expect("a JDK"), &["--release", "8", "-Xlint:-options"], sources)
}

/// As [`compile`], with one JDK's own compiler and these options.
pub fn compile_with(jdk: &Jdk, options: &[&str], sources: &[(&str, &str)]) -> PathBuf {
    once(&format!("{}{options:?}{sources:?}", jdk.home.display()), |dir| {
        let sources_dir = tempfile::tempdir().unwrap();
        let mut javac = Command::new(jdk.program("javac"));
        javac.args(["-J-Xmx128m", "-J-XX:TieredStopAtLevel=1", "-g", "-d"]).arg(dir).args(options);
        for (name, text) in sources {
            let path = sources_dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            javac.arg(path);
        }
        succeed(&mut javac);
    })
}

/// A jar with the classes of the directory `classes` and these lines of manifest.
pub fn jar(classes: &Path, manifest: &str) -> PathBuf {
    once(&format!("{}{manifest}", classes.display()), |dir| {
        let lines = dir.join("manifest");
        fs::write(&lines, manifest).unwrap();
        let jdk = jdks().last().expect("a JDK");
        succeed(
            Command::new(jdk.program("jar"))
                .arg("cfm")
                .arg(dir.join("a.jar"))
                .arg(lines)
                .arg("-C")
                .arg(classes)
                .arg("."),
        );
    })
    .join("a.jar")
}

/// A directory named by `key` that `make` fills, once for all runs; readable to everyone.
fn once(key: &str, make: impl FnOnce(&Path)) -> PathBuf {
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("jvm");
    let made = cache.join(Digest::of(key.as_bytes()).to_string().replace(':', "-"));
    if !made.exists() {
        fs::create_dir_all(&cache).unwrap();
        let dir = tempfile::Builder::new().permissions(mode(0o755)).tempdir_in(&cache).unwrap();
        make(dir.path());
        fs::rename(dir.keep(), &made).unwrap();
    }
    made
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Permission bits.
pub fn mode(bits: u32) -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(bits)
}

/// Whether this test may act as any user; said so where not.
pub fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(test, "needs root");
    }
    root
}

/// A process whose output goes into a file, and that ends with this value and all its descendants.
pub struct Jvm {
    child: Child,
    dir: TempDir,
}

impl Jvm {
    /// A small JVM with these arguments.
    pub fn start(jdk: &Jdk, arguments: &[&str]) -> Self {
        let mut command = Command::new(jdk.program("java"));
        command.args(SMALL).args(arguments);
        Self::spawn(&mut command)
    }

    /// The options of a small JVM, for those who write their own command.
    pub fn small() -> &'static [&'static str] {
        &SMALL
    }

    /// Any command; it works in a directory of its own, which everyone may write.
    pub fn spawn(command: &mut Command) -> Self {
        let dir = tempfile::Builder::new().permissions(mode(0o755)).tempdir().unwrap();
        let work = dir.path().join("work");
        fs::create_dir(&work).unwrap();
        fs::set_permissions(&work, mode(0o777)).unwrap();
        let output = fs::File::create(dir.path().join("output")).unwrap();
        let child = command
            .current_dir(work)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Self { child, dir }
    }

    /// The process that was started.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// It, as one that may be attached to by the agent's program.
    pub fn target(&self) -> Target {
        Target::of(self.pid()).unwrap().with_helper(Path::new(AGENT))
    }

    /// Where it works.
    pub fn work_dir(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// All that it has written.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("output")).unwrap()).into_owned()
    }

    /// Waits until it has written `text`.
    pub fn wait_for(&mut self, text: &str) {
        let begun = Instant::now();
        while !self.output().contains(text) {
            assert!(self.is_alive(), "it ended: {}", self.output());
            assert!(begun.elapsed() < PATIENCE, "`{text}` was not written: {}", self.output());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// That it runs on, and that no signal made it write a thread dump.
    pub fn assert_undisturbed(&mut self) {
        assert!(self.is_alive(), "it ended: {}", self.output());
        assert!(!self.output().contains("thread dump"), "{}", self.output());
    }

    /// Kills it, as a full memory would.
    pub fn kill(&mut self) {
        for process in processes::descendants(self.pid()) {
            let _ = process.signal(rustix::process::Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Jvm {
    fn drop(&mut self) {
        self.kill();
        // A JVM that is killed leaves its socket.
        let _ = fs::remove_file(socket_path(self.pid()));
        if std::thread::panicking() {
            eprintln!("the output of process {}: {}", self.pid(), self.output());
        }
    }
}

/// Where a JVM of this namespace listens.
pub fn socket_path(pid: u32) -> String {
    format!("/tmp/.java_pid{pid}")
}

/// Runs a future to its end.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// An application that says `ready` and then does nothing.
pub fn idle() -> PathBuf {
    compile(&[(
        "Idle.java",
        "public class Idle { public static void main(String[] a) throws Exception {\
           System.out.println(\"ready\"); while (true) Thread.sleep(1000); } }",
    )])
}

/// A Java agent that does what its options say: `write FILE`, `throw`, `sleep MILLISECONDS`.
pub fn obedient_agent() -> PathBuf {
    let classes = compile(&[(
        "Obedient.java",
        "public class Obedient { public static void agentmain(String o) throws Exception {\
           String[] w = o.split(\" \");\
           if (w[0].equals(\"throw\")) throw new Exception(\"as told\");\
           if (w[0].equals(\"sleep\")) Thread.sleep(Long.parseLong(w[1]));\
           if (w[0].equals(\"write\")) java.nio.file.Files.write(java.nio.file.Paths.get(w[1]), \"done\".getBytes()); } }",
    )]);
    jar(&classes, "Agent-Class: Obedient\n")
}
