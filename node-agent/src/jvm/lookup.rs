//! Proof without asking the JVM: the files that it holds open, and the order of its class path.
//!
//! It shows that whoever loads a class finds the patched bytes first, not that the class is loaded: the most it
//! says is *armed*. For JVMs that nobody may attach to and that take no Java agents.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use upfleet_domain::{
    digest::Digest,
    jvm::{
        ClassProof, Mechanism, Proof, Standing,
        command::{self, JavaCommand, Main},
        manifest,
    },
    reason::{Reason, ReasonCode},
};

use super::{
    process, report,
    request::{LayerView, StackView},
};
use crate::{exec::jar::Jar, processes::FileId};

/// The largest jar that is hashed, in bytes.
const MOST_BYTES: u64 = 1 << 30;
const VARIABLES: [&str; 4] = ["JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH"];

/// A file that a process holds open.
struct Open {
    path: String,
    id: FileId,
    /// Under `/proc/PID/fd`.
    descriptor: PathBuf,
}

/// Which classes the JVM would load patched, and whether it is rid of the patches that are gone.
///
/// # Errors
/// `PROOF_MISSING` where the mechanism leaves no such trace, or the process can't be looked at.
pub fn prove(pid: u32, wanted: &StackView, mechanism: Mechanism) -> Result<Proof, Reason> {
    let classes = wanted.effective();
    let patched = classes.iter().any(|class| class.patched.is_some());
    if patched && matches!(mechanism, Mechanism::JavaAgent | Mechanism::Live) {
        return Err(missing("nobody may attach to it, and its Java agent left no journal of this stack"));
    }
    if let Some(option) = cache(pid).filter(|_| patched) {
        return Err(missing(&format!("it is started with {option}, so its files do not say what it runs")));
    }
    let open = open_files(pid).map_err(|error| missing(&format!("its open files can't be read: {error}")))?;
    let order = if patched { search_order(pid, mechanism)? } else { vec![] };
    let held = |layers: &[LayerView]| -> BTreeMap<u32, Option<String>> {
        let own = |layer: &LayerView| {
            let holds = |file: &&Open| digest(&file.descriptor).is_ok_and(|digest| digest == layer.sha256);
            (layer.number, open.iter().find(holds).map(|file| file.path.clone()))
        };
        layers.iter().filter(|layer| !layer.retired).map(own).collect()
    };
    let (here, gone) = (held(&wanted.layers), held(&wanted.gone));
    let still: Vec<&LayerView> =
        wanted.gone.iter().filter(|layer| matches!(gone.get(&layer.number), Some(Some(_)))).collect();
    let proofs = classes.into_iter().map(|class| {
        let own = here.get(&class.number).cloned().flatten();
        let problem = match (&class.patched, &own) {
            (None, _) => still
                .iter()
                .find(|layer| layer.spec.class(&class.name).is_some())
                .map(|layer| format!("the JVM still holds the jar of patch {} open", layer.number)),
            (Some(_), None) => Some(format!("the JVM does not hold the jar of patch {} open", class.number)),
            (Some(_), Some(jar)) => first(pid, &order, &class.name, jar),
        };
        let first_accepted = class.accepts.first().copied().unwrap_or(Digest([0; 32]));
        ClassProof {
            standing: if problem.is_some() { Standing::Old } else { Standing::Armed },
            class: class.name,
            number: class.number,
            loader: String::new(),
            source: own,
            original: class.patched.filter(|_| problem.is_none()),
            expected: class.patched.unwrap_or(first_accepted),
            mechanism,
            problem: problem.unwrap_or_default(),
        }
    });
    Ok(Proof { pid, mechanism, classes: proofs.collect(), alarms: vec![], time: report::now() })
}

/// What may lead to old code: a jar on the disk that is not the one open, a class cache in use.
#[must_use]
pub fn alarms(pid: u32, wanted: &StackView, mechanism: Mechanism) -> Vec<Reason> {
    let mut alarms = vec![];
    let names: BTreeSet<String> =
        command(pid).map(|command| command.class_path_entries()).unwrap_or_default().into_iter().collect();
    for file in open_files(pid).unwrap_or_default() {
        let plain = file.path.strip_suffix(" (deleted)").unwrap_or(&file.path);
        let patch = wanted.layers.iter().any(|layer| layer.jar == Path::new(plain));
        if !patch && !names.contains(plain) {
            continue;
        }
        let there = fs::metadata(inside(pid, plain)).map(|metadata| FileId::of(&metadata)).ok();
        if there != Some(file.id) {
            alarms.push(Reason::new(ReasonCode::JarReplaced).with("path", plain).with("pid", pid));
        }
    }
    if !matches!(mechanism, Mechanism::JavaAgent | Mechanism::Live)
        && let Some(option) = cache(pid)
    {
        alarms.push(Reason::new(ReasonCode::ClassCache).with("option", option).with("pid", pid));
    }
    alarms
}

/// The option by which the JVM may run classes from a cache that was made without the patches.
fn cache(pid: u32) -> Option<String> {
    let command = command(pid)?;
    let off = command.setting("AOTMode").is_some_and(|(mode, _)| mode == "off");
    let (path, _) = command.setting("AOTCache").filter(|_| !off)?;
    Some(format!("-XX:AOTCache={path}"))
}

/// Why the class would not come from `jar`: `None` where it is the first that has it.
fn first(pid: u32, order: &[String], class: &str, jar: &str) -> Option<String> {
    let entry = format!("{}.class", class.replace('.', "/"));
    for element in order {
        if same(pid, element, jar) {
            return None;
        }
        let path = inside(pid, element);
        let has = if path.is_dir() {
            path.join(&entry).exists()
        } else {
            Jar::open(&path).is_ok_and(|jar| jar.names().contains(&entry))
        };
        if has {
            return Some(format!("{element} comes before the patch and has it as well"));
        }
    }
    Some(format!("{jar} is not on the class path"))
}

fn same(pid: u32, one: &str, other: &str) -> bool {
    let id = |path: &str| fs::metadata(inside(pid, path)).map(|metadata| FileId::of(&metadata)).ok();
    one == other || (id(one).is_some() && id(one) == id(other))
}

/// The places in which the JVM looks, in their order.
fn search_order(pid: u32, mechanism: Mechanism) -> Result<Vec<String>, Reason> {
    let command = command(pid).ok_or_else(|| missing("its command line can't be read as one of java"))?;
    let separated = |text: &str, by: char| text.split(by).map(str::to_owned).collect::<Vec<_>>();
    Ok(match mechanism {
        Mechanism::PatchModule => {
            let patches =
                command.values(&["--patch-module"]).into_iter().filter_map(|value| value.split_once('='));
            patches.flat_map(|(_, jars)| separated(jars, ':')).collect()
        }
        Mechanism::PropertiesLauncher => {
            let path = command.prefixed("-Dloader.path=").map(|(path, _)| path).unwrap_or_default();
            separated(path, ',')
        }
        Mechanism::PathingJar => pathed(pid, &command).unwrap_or_default(),
        _ => command.class_path_entries(),
    })
}

/// What the manifest of the jar that is run names.
fn pathed(pid: u32, command: &JavaCommand) -> Option<Vec<String>> {
    let Main::Jar(jar) = &command.main else {
        return None;
    };
    let opened = Jar::open(&inside(pid, jar)).ok()?;
    let urls = manifest::class_path(opened.manifest().main("Class-Path")?);
    let beside = Path::new(jar).parent()?;
    let paths = urls.iter().filter_map(|url| manifest::path_of_url(url));
    Some(paths.map(|path| beside.join(path).to_string_lossy().into_owned()).collect())
}

fn command(pid: u32) -> Option<JavaCommand> {
    let argv = process::command_line(pid);
    let environment: BTreeMap<_, _> = process::variables(pid, &VARIABLES).into_iter().collect();
    let read = |path: &str| fs::read_to_string(inside(pid, path)).map_err(|error| error.to_string());
    command::read(&argv, &environment, None, &read).ok()
}

/// A path of the process as the node reaches it.
fn inside(pid: u32, path: &str) -> PathBuf {
    if path.starts_with('/') {
        PathBuf::from(format!("/proc/{pid}/root{path}"))
    } else {
        PathBuf::from(format!("/proc/{pid}/cwd/{path}"))
    }
}

fn open_files(pid: u32) -> io::Result<Vec<Open>> {
    let mut found = vec![];
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.filter_map(Result::ok) {
        let descriptor = entry.path();
        let Ok(path) = fs::read_link(&descriptor) else {
            continue;
        };
        let path = path.to_string_lossy().into_owned();
        let jar = path.strip_suffix(" (deleted)").unwrap_or(&path).ends_with(".jar");
        if let Some(metadata) = fs::metadata(&descriptor).ok().filter(|metadata| jar && metadata.is_file()) {
            found.push(Open { path, id: FileId::of(&metadata), descriptor });
        }
    }
    Ok(found)
}

fn digest(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() > MOST_BYTES {
        return Err(io::Error::other("too large"));
    }
    let (mut hash, mut part) = (Sha256::new(), vec![0; 64 << 10]);
    loop {
        match file.read(&mut part)? {
            0 => return Ok(Digest(hash.finalize().into())),
            n => hash.update(&part[..n]),
        }
    }
}

fn missing(problem: &str) -> Reason {
    Reason::new(ReasonCode::ProofMissing).with("problem", problem)
}
