//! Which bytes a unit's main process runs, and which stack it was started with. What was seen once of a process is kept
//! on disk, so that it stays known while the component's file is replaced under it, and while nobody answers on the bus.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use upfleet_domain::{digest::Digest, release::Kind, time::Time};

use crate::{
    config::ComponentConfig,
    processes::{FileId, Identity, descendants, executable, executable_path},
    shim::{
        child::{hash, now},
        protocol::ProcessInfo,
        spec::{self, FORMAT},
    },
};

/// The variable of a drop-in that says which stack a process was started with.
pub(crate) const STACK: &str = "UPFLEET_STACK";

/// What is kept on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    format: u32,
    known: Option<Known>,
}

impl Default for Record {
    fn default() -> Self {
        Self { format: FORMAT, known: None }
    }
}

/// What is known of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    process: Identity,
    /// What it executes: a script may put another program in its own place.
    file: FileId,
    digest: Digest,
    /// Whether that is the executed file itself.
    exact: bool,
    /// The stack it was started with, or has been brought to since.
    stack: Option<Digest>,
}

/// The processes of one component. Everything here blocks.
#[derive(Debug)]
pub(super) struct Processes {
    component: PathBuf,
    kind: Kind,
    path: PathBuf,
    known: Mutex<Option<Record>>,
}

impl Processes {
    pub(super) fn new(state_dir: &Path, config: &ComponentConfig) -> Self {
        let file = format!("{}.json", config.name);
        let path = state_dir.join("units").join(file);
        Self { component: config.path.clone(), kind: config.kind, path, known: Mutex::default() }
    }

    /// What `pid` runs; `None` where it is gone. `named` says that its unit's file names the component.
    pub(super) fn look(&self, pid: u32, restarts: u32, named: bool) -> Option<ProcessInfo> {
        let process = Identity::of(pid).ok().filter(Identity::is_running)?;
        let file = executable(pid)?;
        let mut slot = self.load();
        let kept =
            slot.known.as_ref().filter(|known| known.process == process && known.file == file).cloned();
        let known = match kept {
            Some(known) => known,
            None => {
                let (digest, exact) = self.measure(pid, named)?;
                let known = Known { process, file, digest, exact, stack: stack_of(pid) };
                // Between the two looks it may have become another program.
                if executable(pid) != Some(file) {
                    return None;
                }
                slot.known = Some(known.clone());
                self.store(&slot);
                known
            }
        };
        Some(info(known, restarts))
    }

    /// The process seen last, where it still runs: what can be said without systemd.
    pub(super) fn last(&self) -> Option<ProcessInfo> {
        let known = self.load().known?;
        let same = known.process.is_running() && executable(known.process.pid) == Some(known.file);
        same.then(|| info(known, 0))
    }

    /// The process that runs has been brought to a stack.
    pub(super) fn brought_to(&self, pid: u32, stack: Option<Digest>) {
        let mut record = self.load();
        if let Some(known) = record.known.as_mut().filter(|known| known.process.pid == pid) {
            known.stack = stack;
            self.store(&record);
        }
    }

    /// Whether `pid` runs the component: by its own program, or by what it and those below it were told to run.
    pub(super) fn is_component(&self, pid: u32) -> bool {
        self.executes(pid) || self.is_told(pid)
    }

    fn load(&self) -> Record {
        let mut slot = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // A record that can't be read is one of nothing: what runs can be looked at again.
        slot.get_or_insert_with(|| spec::read(&self.path).unwrap_or_default()).clone()
    }

    fn store(&self, record: &Record) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(record.clone());
        let write = || -> io::Result<()> {
            if let Some(dir) = self.path.parent() {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            }
            spec::write(&self.path, record)
        };
        if let Err(error) = write() {
            tracing::warn!(path = %self.path.display(), %error, "what a unit runs is not written down");
        }
    }

    /// The digest of what a process runs, and whether the kernel vouches for it.
    fn measure(&self, pid: u32, named: bool) -> Option<(Digest, bool)> {
        let executed = || hash(File::open(executable_path(pid)).ok()?).ok();
        if self.executes(pid) || self.kind == Kind::Files || !(named || self.is_told(pid)) {
            // Of a program that has nothing to do with the component this is a digest that fits no release.
            return Some((executed()?, true));
        }
        let file = File::open(&self.component).ok()?;
        Some((hash(file).ok()?, false))
    }

    /// Whether the executed file is the component's, or was until another took its name.
    fn executes(&self, pid: u32) -> bool {
        let same = fs::metadata(&self.component).is_ok_and(|file| executable(pid) == Some(FileId::of(&file)));
        if same {
            return true;
        }
        let Ok(name) = fs::read_link(executable_path(pid)) else { return false };
        let name = name.to_string_lossy();
        let name = Path::new(name.strip_suffix(" (deleted)").unwrap_or(&name));
        let parent = self.component.parent().and_then(|parent| fs::canonicalize(parent).ok());
        let own = parent.zip(self.component.file_name()).map(|(parent, file)| parent.join(file));
        own.is_some_and(|own| name == own || (self.kind == Kind::Files && name.starts_with(own)))
            || self.is_kept(name)
    }

    /// Whether a file lies among the component's kept versions.
    fn is_kept(&self, file: &Path) -> bool {
        let versions = file.parent().filter(|parent| parent.ends_with("versions"));
        let store = versions.and_then(Path::parent).and_then(Path::parent);
        let own = self.component.parent().and_then(|parent| fs::canonicalize(parent).ok());
        store.is_some_and(|store| store.ends_with(".upfleet") && store.parent() == own.as_deref())
    }

    /// Whether the component's path is among what a process, or one below it, was told to run.
    fn is_told(&self, pid: u32) -> bool {
        let path = self.component.to_string_lossy().into_owned();
        let told = |pid: u32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            names(words.split(|byte| *byte == 0).map(String::from_utf8_lossy), &path)
        };
        told(pid) || descendants(pid).iter().any(|process| told(process.pid))
    }
}

/// Whether one of the words is the path, begins with it as a directory, or has it as a part: `-cp=a:/opt/b.jar`.
pub(super) fn names(words: impl IntoIterator<Item = impl AsRef<str>>, path: &str) -> bool {
    words.into_iter().any(|word| {
        let word = word.as_ref();
        word.match_indices(path).any(|(at, _)| {
            let after = word[at + path.len()..].chars().next();
            let before = word[..at].chars().next_back();
            let ends =
                |letter: Option<char>| letter.is_none_or(|letter| !letter.is_alphanumeric() && letter != '-');
            ends(before) && after.is_none_or(|letter| ":,;/ \"'=".contains(letter))
        })
    })
}

/// The stack that a process was told to start with.
fn stack_of(pid: u32) -> Option<Digest> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let prefix = format!("{STACK}=");
    let mut words = bytes.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok());
    words.find_map(|word| word.strip_prefix(&prefix)?.parse().ok())
}

fn info(known: Known, restarts: u32) -> ProcessInfo {
    let age = known.process.age().unwrap_or_default();
    let since = now().0.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(0));
    let Identity { boot_id, pid, start_time } = known.process;
    ProcessInfo {
        pid,
        start_time,
        boot_id,
        digest: known.digest,
        exact: known.exact,
        stack: known.stack,
        since: Time(since),
        restarts,
        sockets: Vec::new(),
        notified: None,
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_path_is_named_as_a_whole() {
        for word in ["/opt/a.jar", "-jar=/opt/a.jar", "x.jar:/opt/a.jar:y.jar", "/opt/a.jar/bin/x"] {
            assert!(names([word], "/opt/a.jar"), "{word}");
        }
        for word in ["/opt/a.jar.old", "/x/opt/a.jar2", "opt/a.jar", "/srv/opt/a.jar"] {
            assert!(!names([word], "/opt/a.jar"), "{word}");
        }
    }

    #[test]
    fn a_process_stays_known_when_its_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app");
        let old = fs::read("/bin/sleep").unwrap();
        fs::write(&path, &old).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut child = Command::new(&path).arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let text = format!("name = \"a\"\npath = {path:?}\n[run]\nmode = \"systemd\"\nunit = \"a.service\"");
        let config: ComponentConfig = toml::from_str(&text).unwrap();
        let processes = Processes::new(dir.path(), &config);
        fs::write(dir.path().join("new"), b"new").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        let seen = processes.look(child.id(), 2, true).unwrap();
        assert_eq!((seen.digest, seen.exact, seen.restarts), (Digest::of(&old), true, 2));
        let again = Processes::new(dir.path(), &config);
        assert_eq!(again.last().map(|info| info.pid), Some(child.id()), "read back from the disk");
        again.brought_to(child.id(), Some(Digest::of(b"stack")));
        assert_eq!(again.look(child.id(), 0, true).unwrap().stack, Some(Digest::of(b"stack")));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(again.last(), None);
        assert_eq!(again.look(child.id(), 0, true), None);
    }
}
