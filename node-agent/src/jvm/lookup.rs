//! Proof without asking the JVM: the files that it holds open, and the order of its class path.
//!
//! It shows that whoever loads a class finds the patched bytes first, not that the class is loaded: the most it
//! says is *armed*. For JVMs that nobody may attach to and that take no Java agents.
//!
//! The JVM's user chose every path here, and may have put a link or a pipe at it: all are opened below the JVM's root
//! directory, without waiting.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FileType, OFlags, Stat};
use sha2::{Digest as _, Sha256};
use upfleet_domain::{
    digest::Digest,
    jvm::{
        ClassProof, Mechanism, Proof, Standing,
        command::{JavaCommand, Main},
        manifest,
    },
    reason::{Reason, ReasonCode},
};

use super::{
    Target,
    discover::Seen,
    namespace::{Links, kind},
    process, report,
    request::{LayerView, StackView},
};
use crate::{exec::jar::Jar, processes::FileId};

/// The largest jar that is hashed, in bytes.
const MOST_BYTES: u64 = 1 << 30;

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
pub fn prove(jvm: &Target, wanted: &StackView, mechanism: Mechanism) -> Result<Proof, Reason> {
    let pid = jvm.pid();
    let classes = wanted.effective();
    let patched = classes.iter().any(|class| class.patched.is_some());
    if patched && matches!(mechanism, Mechanism::JavaAgent | Mechanism::Live) {
        return Err(missing("nobody may attach to it, and its Java agent left no journal of this stack"));
    }
    let view = Inside::of(jvm).ok_or_else(|| missing("its files can't be looked at"))?;
    if let Some(option) = view.cache().filter(|_| patched) {
        return Err(missing(&format!("it is started with {option}, so its files do not say what it runs")));
    }
    let open = open_files(pid).map_err(|error| missing(&format!("its open files can't be read: {error}")))?;
    let order = if patched { view.search_order(mechanism)? } else { vec![] };
    let hashed: Vec<(Digest, &str)> =
        open.iter().filter_map(|file| Some((file.digest().ok()?, file.path.as_str()))).collect();
    let held = |layers: &[LayerView]| -> BTreeMap<u32, Option<String>> {
        let own = |layer: &LayerView| {
            let file = hashed.iter().find(|(digest, _)| *digest == layer.sha256);
            (layer.number, file.map(|(_, path)| (*path).to_owned()))
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
            (Some(_), Some(jar)) => view.first(&order, &class.name, jar),
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
pub fn alarms(jvm: &Target, wanted: &StackView, mechanism: Mechanism) -> Vec<Reason> {
    let (pid, mut alarms) = (jvm.pid(), vec![]);
    let Some(view) = Inside::of(jvm) else { return alarms };
    let command = view.0.started.command();
    let names: BTreeSet<String> =
        command.map(JavaCommand::class_path_entries).unwrap_or_default().into_iter().collect();
    for file in open_files(pid).unwrap_or_default() {
        let plain = file.path.strip_suffix(" (deleted)").unwrap_or(&file.path);
        let patch = wanted.layers.iter().any(|layer| layer.jar == Path::new(plain));
        if (patch || names.contains(plain)) && view.id(plain) != Some(file.id) {
            alarms.push(Reason::new(ReasonCode::JarReplaced).with("path", plain).with("pid", pid));
        }
    }
    if !matches!(mechanism, Mechanism::JavaAgent | Mechanism::Live)
        && let Some(option) = view.cache()
    {
        alarms.push(Reason::new(ReasonCode::ClassCache).with("option", option).with("pid", pid));
    }
    alarms
}

/// What the JVM was told, and its files as it sees them.
struct Inside<'a>(Seen<'a>);

impl<'a> Inside<'a> {
    fn of(jvm: &'a Target) -> Option<Self> {
        Seen::new(jvm.pid(), process::mapped(jvm.pid()), jvm.helper()).map(Self)
    }

    /// The option by which the JVM may run classes from a cache that was made without the patches.
    fn cache(&self) -> Option<String> {
        let command = self.0.started.command()?;
        let off = command.setting("AOTMode").is_some_and(|(mode, _)| mode == "off");
        let (path, _) = command.setting("AOTCache").filter(|_| !off)?;
        Some(format!("-XX:AOTCache={path}"))
    }

    /// Links are followed, but never out of the JVM's root directory.
    fn look(&self, path: &str) -> Option<Stat> {
        self.0.root()?.look(&self.0.absolute(path)?, Links::Within).ok()
    }

    fn id(&self, path: &str) -> Option<FileId> {
        self.look(path).map(|stat| FileId { device: stat.st_dev, inode: stat.st_ino })
    }

    fn jar(&self, path: &str) -> Option<Jar> {
        let file = self.0.root()?.open(&self.0.absolute(path)?, Links::Within).ok()?;
        Jar::of_file(file).ok()
    }

    /// Why the class would not come from `jar`: `None` where it is the first that has it.
    fn first(&self, order: &[String], class: &str, jar: &str) -> Option<String> {
        let entry = format!("{}.class", class.replace('.', "/"));
        for element in order {
            if self.same(element, jar) {
                return None;
            }
            let directory = self.look(element).is_some_and(|stat| kind(&stat) == FileType::Directory);
            let has = if directory {
                self.look(&format!("{element}/{entry}")).is_some()
            } else {
                self.jar(element).is_some_and(|jar| jar.names().contains(&entry))
            };
            if has {
                return Some(format!("{element} comes before the patch and has it as well"));
            }
        }
        Some(format!("{jar} is not on the class path"))
    }

    fn same(&self, one: &str, other: &str) -> bool {
        one == other || self.id(one).is_some_and(|id| self.id(other) == Some(id))
    }

    /// The places in which the JVM looks, in their order.
    fn search_order(&self, mechanism: Mechanism) -> Result<Vec<String>, Reason> {
        let command = self.0.started.command();
        let command = command.ok_or_else(|| missing("its command line can't be read as one of java"))?;
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
            Mechanism::PathingJar => self.pathed(command).unwrap_or_default(),
            _ => command.class_path_entries(),
        })
    }

    /// What the manifest of the jar that is run names.
    fn pathed(&self, command: &JavaCommand) -> Option<Vec<String>> {
        let Main::Jar(jar) = &command.main else {
            return None;
        };
        let opened = self.jar(jar)?;
        let urls = manifest::class_path(opened.manifest().main("Class-Path")?);
        let beside = Path::new(jar).parent()?;
        let paths = urls.iter().filter_map(|url| manifest::path_of_url(url));
        Some(paths.map(|path| beside.join(path).to_string_lossy().into_owned()).collect())
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

impl Open {
    fn digest(&self) -> io::Result<Digest> {
        // What the descriptor leads to may be another file by now.
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(flags.bits().cast_signed()).open(&self.descriptor)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || FileId::of(&metadata) != self.id || metadata.size() > MOST_BYTES {
            return Err(io::Error::other("it is another file by now, or too large"));
        }
        hash(file)
    }
}

fn hash(file: File) -> io::Result<Digest> {
    // One that grows while it is read is not read for ever.
    let mut file = file.take(MOST_BYTES);
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
