//! The history of a component: one line for each upgrade that ended, in a file that is never longer than two rotations.
//!
//! It is for people. Nothing is decided by it, and a line that can't be read is passed over.

use std::{
    fs::{DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use upfleet_domain::{id::ComponentId, upgrade::history::Entry};

use crate::damage;

/// The size, in bytes, at which the file is rotated; one older file is kept.
const ROTATE_AT: u64 = 512 * 1024;

/// The history of one component.
#[derive(Clone, Debug)]
pub struct History {
    path: PathBuf,
}

impl History {
    /// Of a component of the agent whose state is in `state_dir`.
    #[must_use]
    pub fn new(state_dir: &Path, component: &ComponentId) -> Self {
        Self { path: state_dir.join("history").join(format!("{component}.jsonl")) }
    }

    /// Adds an entry, durably.
    ///
    /// # Errors
    /// Where the disk does not allow it.
    pub(super) fn append(&self, entry: &Entry) -> io::Result<()> {
        let dir = self.path.parent().unwrap_or_else(|| Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        damage::clear_directory(&self.path)?;
        damage::clear_directory(&self.older())?;
        if std::fs::metadata(&self.path).is_ok_and(|metadata| metadata.len() >= ROTATE_AT) {
            std::fs::rename(&self.path, self.older())?;
        }
        let mut line = crate::formats::encode(entry)?;
        line.push(b'\n');
        // A line that a crash cut short must not swallow this one.
        if !self.whole()? {
            line.insert(0, b'\n');
        }
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?;
        file.write_all(&line)?;
        file.sync_data()
    }

    /// Adds the entry of the upgrade that ended last, unless it is there: a crash may have come in between.
    pub(super) fn catch_up(&self, last: &Entry) -> io::Result<()> {
        let known = |entry: &Entry| entry.time == last.time && entry.upgrade == last.upgrade;
        if self.read()?.iter().rev().any(known) { Ok(()) } else { self.append(last) }
    }

    fn whole(&self) -> io::Result<bool> {
        let text = match std::fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            text => text?,
        };
        Ok(text.last().is_none_or(|byte| *byte == b'\n'))
    }

    fn older(&self) -> PathBuf {
        self.path.with_extension("jsonl.1")
    }

    /// All that is kept, oldest first.
    ///
    /// # Errors
    /// Where a file is there that can't be read.
    pub fn read(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for path in [self.older(), self.path.clone()] {
            let bytes = match std::fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if error.kind() == io::ErrorKind::IsADirectory => continue,
                bytes => bytes?,
            };
            let lines = bytes.split(|byte| *byte == b'\n');
            entries.extend(lines.filter_map(|line| serde_json::from_slice::<Entry>(line).ok()));
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use upfleet_domain::{
        reason::{Reason, ReasonCode},
        state::ComponentState,
        time::Time,
        upgrade::Outcome,
    };

    use super::*;

    fn entry(n: i64) -> Entry {
        Entry {
            time: Time(n),
            outcome: Outcome::Succeeded,
            reason: Reason::new(ReasonCode::Healthy).with("digest", "x".repeat(2_000)),
            from: None,
            to: ComponentState::absent(),
            current: ComponentState::absent(),
            live: false,
            interruption: None,
            actor: "anna".to_owned(),
            rollout: None,
            upgrade: None,
        }
    }

    #[test]
    fn it_is_bounded_and_survives_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path(), &"web".parse().unwrap());
        assert!(history.read().unwrap().is_empty());
        history.append(&entry(1)).unwrap();
        let mut file = OpenOptions::new().append(true).open(&history.path).unwrap();
        file.write_all(b"{\"time\":").unwrap();
        history.catch_up(&entry(1)).unwrap();
        history.catch_up(&entry(2)).unwrap();
        assert_eq!(history.read().unwrap(), [entry(1), entry(2)]);
        for n in 3..1_000 {
            history.append(&entry(n)).unwrap();
        }
        let all = history.read().unwrap();
        assert_eq!(all.last(), Some(&entry(999)));
        assert!(all.len() > 200 && all.len() < 600, "{}", all.len());
        let size = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert!(size(&history.path) <= ROTATE_AT + 4_096 && size(&history.older()) <= ROTATE_AT + 4_096);
    }
}
