//! An application as a component, with patches that are staged, judged, switched to and started, all by the product's
//! own code; only the process is started here, so that its output is at hand.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;
use upfleet_agent::{
    config::ComponentConfig,
    exec::{jar, stack},
    jvm::{
        Change, Patcher,
        request::{LayerView, StackView},
    },
    supervise::Launch,
};
use upfleet_domain::{
    digest::Digest,
    patch::{PatchSpec, PatchedClass, class_path_of, stack::Known},
    reason::Reason,
    state::{Layer, ReleaseRef, stack_digest},
};

use crate::support::{Jdk, Jvm, compile_with};

/// The sources of an application whose greeter says `greeting`. The greeter needs a peer of its package.
pub fn sources(greeting: &str) -> Vec<(&'static str, String)> {
    vec![
        (
            "demo/Main.java",
            "package demo; public class Main { public static void main(String[] a) {\
               System.out.println(\"value=\" + Greeter.greet() + \" own=\" + System.getProperty(\"own\")\
               + \" arguments=\" + java.util.Arrays.asList(a)); } }"
                .to_owned(),
        ),
        (
            "demo/Peer.java",
            "package demo; class Peer { static String say(String s) { return s; } }".to_owned(),
        ),
        (
            "demo/Greeter.java",
            format!(
                "package demo; public class Greeter {{ public static String greet() {{ return Peer.say(\"{greeting}\"); }} }}"
            ),
        ),
    ]
}

/// The directory of the application's classes, of class files that Java 8 reads.
pub fn classes(jdk: &Jdk, greeting: &str) -> PathBuf {
    compiled(jdk, &["-encoding", "UTF-8"], &sources(greeting))
}

/// As it was compiled by that JDK for Java 8, or with these options where they say so.
pub fn compiled(jdk: &Jdk, options: &[&str], sources: &[(&str, String)]) -> PathBuf {
    let texts: Vec<(&str, &str)> = sources.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let mut all = match jdk.feature {
        8 => vec!["-source", "8", "-target", "8"],
        _ if options.contains(&"--release") => vec![],
        _ => vec!["--release", "8", "-Xlint:-options"],
    };
    all.extend(options);
    compile_with(jdk, &all, &texts)
}

/// One component in a directory of its own.
pub struct App<'a> {
    pub jdk: &'a Jdk,
    dir: TempDir,
    pub config: ComponentConfig,
    pub patcher: Patcher,
    pub known: Known,
}

impl<'a> App<'a> {
    /// `{java}` in the command is the JDK's, `{dir}` the component's directory, `{path}` its jar as ever.
    pub fn new(jdk: &'a Jdk, command: &str, jvm: &str) -> Self {
        Self::in_directory(jdk, "app", command, "", jvm)
    }

    /// In a directory of that name, with further lines of `[run]`.
    pub fn in_directory(jdk: &'a Jdk, name: &str, command: &str, run: &str, jvm: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join(name);
        fs::create_dir(&home).unwrap();
        let expanded = |word: &str| {
            let word = word.replace("{java}", &jdk.program("java").display().to_string());
            word.replace("{dir}", &home.display().to_string())
        };
        let words: Vec<String> = command.split(' ').filter(|word| !word.is_empty()).map(expanded).collect();
        let mode = if command.is_empty() { "none" } else { "supervised" };
        let command = if command.is_empty() { String::new() } else { format!("command = {words:?}") };
        let text = format!(
            "name = \"app\"\npath = {:?}\n[run]\nmode = \"{mode}\"\n{command}\n{run}\n[jvm]\n{jvm}",
            home.join("app.jar")
        );
        let config: ComponentConfig = toml::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let patcher = Patcher::new(dir.path(), &config).unwrap();
        Self { jdk, dir, config, patcher, known: Known::new() }
    }

    /// The component's directory.
    pub fn home(&self) -> &Path {
        self.config.path.parent().unwrap()
    }

    /// A directory that goes with the application.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// Installs the classes of a directory as the component's jar.
    pub fn install(&self, classes: &Path, manifest: &str) -> &Self {
        self.install_jar(&jar::write(manifest, &entries(classes)).unwrap())
    }

    /// Installs a jar.
    pub fn install_jar(&self, bytes: &[u8]) -> &Self {
        fs::write(&self.config.path, bytes).unwrap();
        self
    }

    /// A patch of these classes, each (name, bytes, digests of originals, digest of its parent).
    pub fn patch(&mut self, number: u32, classes: &[Shipped]) -> Layer {
        self.patch_with(number, classes, "Manifest-Version: 1.0\r\n\r\n", |_| {})
    }

    /// As [`App::patch`], with a manifest for its jar and a change of what its release says.
    pub fn patch_with(
        &mut self,
        number: u32,
        classes: &[Shipped],
        manifest: &str,
        change: impl FnOnce(&mut PatchSpec),
    ) -> Layer {
        let mut spec: PatchSpec =
            serde_json::from_str(&format!("{{\"number\":{number},\"live\":{{\"possible\":true}}}}")).unwrap();
        spec.classes = classes.iter().map(Shipped::described).collect();
        change(&mut spec);
        let files: Vec<_> =
            classes.iter().map(|class| (class_path_of(&class.name), class.bytes.clone())).collect();
        let bytes = jar::write(manifest, &files).unwrap();
        self.stage(spec, &bytes)
    }

    /// A patch with a jar of any kind.
    pub fn stage(&mut self, spec: PatchSpec, jar: &[u8]) -> Layer {
        let (number, artifact) = (spec.number, Digest::of(jar));
        let version = self.patcher.place().version(&artifact);
        fs::create_dir_all(version.parent().unwrap()).unwrap();
        fs::write(&version, jar).unwrap();
        let manifest = Digest::of(&serde_json::to_vec(&spec).unwrap());
        self.known.insert(manifest, spec);
        let release = ReleaseRef {
            component: self.config.name.clone(),
            version: format!("patch{number}").parse().unwrap(),
            sequence: u64::from(number),
            manifest,
            artifact,
        };
        Layer { number, release, retired: false, contains: vec![] }
    }

    /// A patch whose greeter says `greeting`, for the application that says `base`.
    pub fn greeting_patch(&mut self, number: u32, base: &str, below: Option<&str>, greeting: &str) -> Layer {
        let read = |greeting: &str| class_bytes(&classes(self.jdk, greeting), "demo.Greeter");
        let original = Digest::of(&read(base));
        let parent = below.map_or(original, |below| Digest::of(&read(below)));
        let bytes = read(greeting);
        self.patch(number, &[Shipped { name: "demo.Greeter".into(), bytes, accepts: vec![original], parent }])
    }

    pub fn view(&self, layers: &[Layer]) -> StackView {
        let layer = |layer: &Layer| LayerView {
            number: layer.number,
            jar: self.patcher.place().version(&layer.release.artifact),
            sha256: layer.release.artifact,
            spec: self.known[&layer.release.manifest].clone(),
            retired: layer.retired,
        };
        let set = stack_digest(layers).unwrap_or_else(|| Digest::of(b""));
        StackView { set, layers: layers.iter().map(layer).collect(), gone: vec![] }
    }

    /// Whether a stack fits, with a restart.
    pub fn fit(&self, layers: &[Layer]) -> Result<Vec<Reason>, Reason> {
        self.fits(layers, false)
    }

    /// Whether it fits, in a running JVM.
    pub fn fit_live(&self, layers: &[Layer]) -> Result<Vec<Reason>, Reason> {
        self.fits(layers, true)
    }

    fn fits(&self, layers: &[Layer], live: bool) -> Result<Vec<Reason>, Reason> {
        let view = self.view(layers);
        self.patcher.fit(&Change {
            layers,
            view: &view,
            known: &self.known,
            base: None,
            file: None,
            live,
            process: None,
        })
    }

    /// Judges, switches, and says what to start.
    pub fn apply(&self, layers: &[Layer]) -> Launch {
        self.fit(layers).unwrap_or_else(|reason| panic!("{reason}"));
        self.switch(layers);
        self.patcher.launch(self.base(), layers).unwrap_or_else(|reason| panic!("{reason}"))
    }

    /// Switches without a judgement.
    pub fn switch(&self, layers: &[Layer]) {
        let set = self.patcher.set(layers, &self.view(layers)).unwrap_or_else(|reason| panic!("{reason}"));
        stack::switch(self.patcher.place(), set.as_ref()).unwrap_or_else(|reason| panic!("{reason}"));
    }

    pub fn base(&self) -> Launch {
        Launch::of(&self.config, None)
    }

    /// What the application says with this stack in force.
    pub fn says(&self, layers: &[Layer]) -> String {
        said(&self.apply(layers))
    }
}

/// A class of a patch.
#[derive(Clone)]
pub struct Shipped {
    pub name: String,
    pub bytes: Vec<u8>,
    pub accepts: Vec<Digest>,
    pub parent: Digest,
}

impl Shipped {
    /// For an original of these bytes.
    pub fn over(name: &str, original: &[u8], bytes: Vec<u8>) -> Self {
        let parent = Digest::of(original);
        Self { name: name.to_owned(), bytes, accepts: vec![parent], parent }
    }

    fn described(&self) -> PatchedClass {
        PatchedClass {
            name: self.name.clone(),
            accepts: self.accepts.clone(),
            parent: (!self.accepts.is_empty()).then_some(self.parent),
            patched: Digest::of(&self.bytes),
            major: u16::from_be_bytes([self.bytes[6], self.bytes[7]]),
        }
    }
}

/// The bytes of a class in a directory.
pub fn class_bytes(classes: &Path, name: &str) -> Vec<u8> {
    fs::read(classes.join(class_path_of(name))).unwrap()
}

/// All files below a directory.
pub fn entries(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(at) = left.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().display().to_string();
                found.push((name, fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Starts a small JVM and takes what it says until it ends.
pub fn said(launch: &Launch) -> String {
    let output = output(launch);
    assert!(output.status.success(), "{launch:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// As [`said`], with all of its output however it ends.
pub fn output(launch: &Launch) -> std::process::Output {
    let mut env = launch.env.clone();
    // What makes it small must not disturb the command under test.
    let small: Vec<_> =
        Jvm::small().iter().filter(|option| !option.starts_with("-Xshare")).copied().collect();
    let small = small.join(" ");
    let own = env.remove("JAVA_TOOL_OPTIONS").map(|own| format!("{small} {own}")).unwrap_or(small);
    env.insert("JAVA_TOOL_OPTIONS".to_owned(), own);
    Command::new(&launch.argv[0])
        .args(&launch.argv[1..])
        .env_clear()
        .envs(&env)
        .current_dir(&launch.cwd)
        .output()
        .unwrap_or_else(|error| panic!("{launch:?}: {error}"))
}

/// Runs a tool of a JDK.
pub fn tool(jdk: &Jdk, name: &str, arguments: &[&str]) {
    let output = Command::new(jdk.program(name)).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{name} {arguments:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
}
