//! A private directory where a JVM sees it: what it is to read goes in, what it reports comes out.
//!
//! It lies in the temporary directory of the JVM's own mount namespace, belongs to the JVM's user alone, and goes
//! with the value, on every path. What is read back was written by that user and is not to be trusted.

use std::sync::{Arc, Mutex, PoisonError};

use upfleet_domain::reason::Reason;
use uuid::Uuid;

use super::{
    attach::{Failure, LIMIT, Target},
    helper::{self, Content, Task},
    namespace::TMP,
};

/// How the names of such directories begin.
pub const PREFIX: &str = ".upfleet-";

/// Where a new file's bytes come from.
pub use super::helper::Content as Source;

/// The directory.
#[derive(Debug)]
pub struct Workspace {
    jvm: Target,
    dir: String,
    /// Held by whatever works on the directory, so that the removal comes last.
    turn: Arc<Mutex<()>>,
    removed: bool,
}

impl Workspace {
    /// Makes one with these files.
    ///
    /// # Errors
    /// `ATTACH_REFUSED` where the JVM has no directory that can be written, and where the agent may not act as its
    /// user.
    pub async fn create(jvm: &Target, files: Vec<(String, Source)>) -> Result<Self, Reason> {
        let dir = format!("{PREFIX}{}-{}", jvm.subject.inner_pid, Uuid::new_v4().simple());
        // Before it is there: from here on it will be removed.
        let workspace = Self { jvm: jvm.clone(), dir, turn: Arc::default(), removed: false };
        let (names, contents): (Vec<String>, Vec<Content>) = files.into_iter().unzip();
        let (target, dir, turn) = (jvm.clone(), workspace.dir.clone(), Arc::clone(&workspace.turn));
        let creating = tokio::task::spawn_blocking(move || {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            let announced = helper::announce(&names, &contents);
            let files = announced.map_err(|error| Failure::Files(format!("a file to hand over: {error}")))?;
            let task = Task::Create { dir, files };
            helper::call_blocking(target.helper(), &target.subject, LIMIT, task, &contents)
        });
        helper::within(LIMIT, creating).await.map_err(|failure| jvm.reason(&failure))?;
        Ok(workspace)
    }

    /// The path of one of its files as the JVM sees it; the name need not be there yet.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        format!("{TMP}/{}/{name}", self.dir)
    }

    /// What the JVM wrote into the file `name`, of at most `max` bytes; `None` where it is not there (yet).
    ///
    /// # Errors
    /// Where it can't be read or is no regular file.
    pub async fn read(&self, name: &str, max: u64) -> Result<Option<Vec<u8>>, Reason> {
        let task = Task::Read { dir: self.dir.clone(), name: name.to_owned(), max };
        let called = helper::call(self.jvm.helper(), &self.jvm.subject, LIMIT, task).await;
        called.map_err(|failure| self.jvm.reason(&failure))
    }

    /// Removes it now.
    ///
    /// # Errors
    /// Where it can't be removed. One whose JVM is gone is left to the next agent's or the system's cleaning, since
    /// its namespace can't be entered any more.
    pub async fn remove(mut self) -> Result<(), Reason> {
        self.removed = true;
        let task = Task::Remove { dir: self.dir.clone() };
        let called = helper::call(self.jvm.helper(), &self.jvm.subject, LIMIT, task).await;
        called.map(drop).map_err(|failure| self.jvm.reason(&failure))
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        let (jvm, dir, turn) = (self.jvm.clone(), std::mem::take(&mut self.dir), Arc::clone(&self.turn));
        // Not on this thread, which may be one of the runtime's.
        std::thread::spawn(move || {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            let removed = helper::call_blocking(
                jvm.helper(),
                &jvm.subject,
                LIMIT,
                Task::Remove { dir: dir.clone() },
                &[],
            );
            if let Err(failure) = removed {
                tracing::debug!(pid = jvm.pid(), dir, problem = %failure, "a directory in a JVM's temporary directory was not removed");
            }
        });
    }
}
