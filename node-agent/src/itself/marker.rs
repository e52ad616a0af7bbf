//! The marker of an agent's upgrade: which agent is being replaced by which, what the new one is given, and what became
//! of that so far.
//!
//! Written by the old agent before the switch, by its guard while it watches, and removed when the new agent has been
//! acknowledged. It lies in `STATE/itself/`, in blocks that are there already, so that neither counting a start nor putting
//! the old agent back needs free disk. Writers hold the lock beside it. It decides nothing.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use upfleet_domain::{
    digest::Digest,
    guard::{Rules, Seen},
    id::ComponentId,
    reason::Reason,
    time::Time,
};

use crate::{
    exec::{Executor, FirstInstall, Place},
    processes::Identity,
    shim::spec,
};

/// The marker's name in its directory.
pub const MARKER: &str = "marker.json";
/// The link to the last good agent: what the guard is run from.
pub const LAST_GOOD: &str = "last-good";
/// Held by the guard that watches.
const GUARD_LOCK: &str = "guard.lock";
/// Held by the parent that keeps the agent.
const PARENT_LOCK: &str = "parent.lock";
/// Held while the marker is changed.
const LOCK: &str = "lock";
/// What a new agent that has ended wrote last.
const LAST_WORDS: &str = "last-words";
/// How many characters of it are told.
const MOST_WORDS: usize = 300;
/// The process that `run --supervised` has started last.
const CHILD: &str = "child.json";

/// What is known of an agent's upgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The component that is the agent itself.
    pub component: ComponentId,
    /// Its file.
    pub path: PathBuf,
    /// The agent that is put back.
    pub old: Digest,
    /// The agent that is switched in.
    pub new: Digest,
    /// When the switch began.
    pub begun: Time,
    /// How long the new one may take until it is acknowledged and healthy, in milliseconds of watching.
    pub deadline_ms: u64,
    /// How often it may be started.
    pub starts_max: u32,
    /// How much memory it may take, in bytes; 0 for no limit.
    pub memory_max: u64,
    /// How often it was started.
    #[serde(default)]
    pub starts: u32,
    /// How long it has been watched, in milliseconds.
    #[serde(default)]
    pub watched_ms: u64,
    /// How many processes of the new agent the controller has acknowledged.
    #[serde(default)]
    pub reported: u32,
    /// The process that has set the marker, and is about to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Identity>,
    /// The guard that watches, once it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<Identity>,
    /// Why the old agent was put back, once it was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub put_back: Option<Reason>,
}

/// The file: a format's number, which no version changes, and the marker.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Content {
    format: u32,
    marker: Option<Marker>,
}

impl Marker {
    /// What the new agent is given.
    #[must_use]
    pub fn rules(&self) -> Rules {
        Rules {
            deadline: Duration::from_millis(self.deadline_ms),
            starts: self.starts_max,
            memory_max: self.memory_max,
        }
    }

    /// What was seen of it, but for the memory that it takes now.
    #[must_use]
    pub fn seen(&self) -> Seen {
        let watched = Duration::from_millis(self.watched_ms);
        Seen { starts: self.starts, watched, reported: self.reported > 0, memory: None }
    }

    /// Whether another one is of the same upgrade.
    #[must_use]
    pub fn is_of(&self, other: &Self) -> bool {
        (self.begun, self.old, self.new) == (other.begun, other.old, other.new)
    }

    /// The executor of the agent's own file.
    #[must_use]
    pub fn executor(&self) -> Executor {
        let first = FirstInstall { mode: 0o755, owner: None, group: None };
        Executor::new(Place::new(&self.component, &self.path), first)
    }
}

/// Where the marker of an agent lies, with all that belongs to it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Markers {
    dir: PathBuf,
}

impl Markers {
    /// Of the agent whose state is in `state_dir`.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("itself") }
    }

    /// The last good agent, by a name that does not change.
    #[must_use]
    pub fn last_good(&self) -> PathBuf {
        self.dir.join(LAST_GOOD)
    }

    /// Whether an upgrade of the agent is under watch. Cheap; says nothing of what the marker holds.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.path().exists()
    }

    /// The marker; `None` where no upgrade of the agent is under way. Of a damaged one, what was written before.
    ///
    /// # Errors
    /// Where it can't be read, and what was written before can't either.
    pub fn read(&self) -> io::Result<Option<Marker>> {
        let content = match spec::read::<Content>(&self.path()) {
            Ok(content) => content,
            Err(error) => {
                let spare = spec::read::<Content>(&self.path().with_extension("spare"));
                spare.ok().filter(|content| content.marker.is_some()).ok_or(error)?
            }
        };
        Ok(content.marker)
    }

    /// Sets the marker, durably, and what the guard is run from.
    ///
    /// # Errors
    /// Where the directory can't be written.
    pub fn set(&self, marker: &Marker) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let _lock = self.lock()?;
        let _ = fs::remove_file(self.dir.join(LAST_WORDS));
        let temporary = self.dir.join(".last-good.tmp");
        let _ = fs::remove_file(&temporary);
        symlink(Place::new(&marker.component, &marker.path).version(&marker.old), &temporary)?;
        fs::rename(&temporary, self.last_good())?;
        File::open(&self.dir)?.sync_all()?;
        self.write(marker)?;
        // Twice: then the spare has all that is needed to put the old agent back, too.
        self.write(marker)
    }

    /// Changes the marker, where there is one, and says what it is now.
    ///
    /// # Errors
    /// Where it can't be read or written.
    pub fn change(&self, change: impl FnOnce(&mut Marker)) -> io::Result<Option<Marker>> {
        if !self.is_set() {
            return Ok(None);
        }
        let _lock = self.lock()?;
        let Some(mut marker) = self.read()? else { return Ok(None) };
        let before = marker.clone();
        change(&mut marker);
        if marker != before {
            self.write(&marker)?;
        }
        Ok(Some(marker))
    }

    /// Ends the watch: the new agent was acknowledged, or the old one runs again.
    ///
    /// # Errors
    /// Where it can't be removed.
    pub fn clear(&self) -> io::Result<()> {
        self.clear_unless(|_| false).map(drop)
    }

    /// Ends the watch unless `kept` says so of the marker, and says whether it has ended.
    ///
    /// # Errors
    /// Where it can't be removed.
    pub fn clear_unless(&self, kept: impl FnOnce(&Marker) -> bool) -> io::Result<bool> {
        if !self.is_set() {
            return Ok(true);
        }
        let _lock = self.lock()?;
        if self.read().ok().flatten().is_some_and(|marker| kept(&marker)) {
            return Ok(false);
        }
        for path in [self.path(), self.path().with_extension("spare"), self.dir.join(LAST_WORDS)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        File::open(&self.dir)?.sync_all()?;
        Ok(true)
    }

    /// The right to be the one parent of the agent, for as long as the file is open; `None` where another one has it.
    ///
    /// # Errors
    /// Where the directory can't be written.
    pub fn become_parent(&self) -> io::Result<Option<File>> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        self.try_lock(PARENT_LOCK)
    }

    /// The right to be the one guard, for as long as the file is open; `None` where another one has it.
    ///
    /// # Errors
    /// Where the directory can't be written.
    pub fn become_guard(&self) -> io::Result<Option<File>> {
        self.try_lock(GUARD_LOCK)
    }

    fn try_lock(&self, name: &str) -> io::Result<Option<File>> {
        let file = self.open(name)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Remembers which process is the agent; for its parent.
    ///
    /// # Errors
    /// Where the directory can't be written.
    pub fn note_child(&self, child: &Identity) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let child = Child { format: spec::FORMAT, process: Some(child.clone()) };
        spec::write(&self.dir.join(CHILD), &child)
    }

    /// Which process is the agent, where a parent has started it; also one that has ended.
    #[must_use]
    pub fn child(&self) -> Option<Identity> {
        spec::read::<Child>(&self.dir.join(CHILD)).ok()?.process
    }

    /// Keeps what a new agent wrote before it ended. Without room for it, nobody will know.
    pub fn note_last_words(&self, line: &str) {
        let line: String = line.chars().filter(|c| !c.is_control()).take(MOST_WORDS).collect();
        let _ = fs::write(self.dir.join(LAST_WORDS), line);
    }

    /// What a new agent wrote before it ended; empty where nothing is known.
    #[must_use]
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(self.dir.join(LAST_WORDS)).unwrap_or_default();
        text.chars().filter(|c| !c.is_control()).take(MOST_WORDS).collect()
    }

    fn write(&self, marker: &Marker) -> io::Result<()> {
        let content = Content { format: spec::FORMAT, marker: Some(marker.clone()) };
        spec::write(&self.path(), &content)
    }

    fn path(&self) -> PathBuf {
        self.dir.join(MARKER)
    }

    fn lock(&self) -> io::Result<File> {
        let file = self.open(LOCK)?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<File> {
        let path = self.dir.join(name);
        crate::damage::clear_directory(&path)?;
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
    }
}

/// The file about the process that was started last.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Child {
    format: u32,
    process: Option<Identity>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker(dir: &Path) -> Marker {
        Marker {
            component: "upfleet-agent".parse().unwrap(),
            path: dir.join("bin/upfleet-agent"),
            old: Digest::of(b"old"),
            new: Digest::of(b"new"),
            begun: Time(7),
            deadline_ms: 600_000,
            starts_max: 3,
            memory_max: 1 << 30,
            starts: 0,
            watched_ms: 0,
            reported: 0,
            by: None,
            guard: None,
            put_back: None,
        }
    }

    #[test]
    fn a_marker_is_set_changed_and_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let markers = Markers::new(dir.path());
        assert!(!markers.is_set() && markers.read().unwrap().is_none());
        assert_eq!(markers.change(|_| unreachable!()).unwrap(), None);
        let marker = marker(dir.path());
        markers.set(&marker).unwrap();
        assert_eq!(markers.read().unwrap(), Some(marker.clone()));
        let link = fs::read_link(markers.last_good()).unwrap();
        assert!(link.ends_with(format!("versions/{}", marker.old)), "{}", link.display());
        let changed = markers.change(|marker| marker.starts += 1).unwrap();
        assert_eq!(changed, Some(Marker { starts: 1, ..marker }));
        markers.clear().unwrap();
        assert!(!markers.is_set() && markers.read().unwrap().is_none());
    }

    /// What was written last may be half written: what the guard needs is in the file before it, too.
    #[test]
    fn a_damaged_marker_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let markers = Markers::new(dir.path());
        markers.set(&marker(dir.path())).unwrap();
        for damage in [b"".as_slice(), b"\0\0\0\0", b"{\"format\":9}"] {
            fs::write(markers.path(), damage).unwrap();
            assert_eq!(markers.read().unwrap(), Some(marker(dir.path())), "{damage:?}");
        }
        fs::write(markers.path().with_extension("spare"), b"x").unwrap();
        assert!(markers.read().is_err());
    }

    #[test]
    fn there_is_one_guard() {
        let dir = tempfile::tempdir().unwrap();
        let markers = Markers::new(dir.path());
        markers.set(&marker(dir.path())).unwrap();
        let held = markers.become_guard().unwrap();
        assert!(held.is_some() && markers.become_guard().unwrap().is_none());
        drop(held);
        assert!(markers.become_guard().unwrap().is_some());
    }
}
