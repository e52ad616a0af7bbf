//! Collecting children that have ended: the component's process, and every orphan it left to the shim.
//!
//! The standard library collects the child of a failed `spawn` itself, and signals go by pid; both are safe
//! only while nobody else collects. So everything of that kind happens while [`Reaper::hold`] is held.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{WaitId, WaitIdOptions, WaitOptions, WaitStatus, wait, waitid},
};

/// The one place that collects children.
#[derive(Default)]
pub struct Reaper {
    lock: Mutex<()>,
    born: Condvar,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its process id, which may belong to another process from now on.
    pub pid: u32,
    /// Its exit status.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

impl Reaper {
    /// While the guard lives no child is collected, so no pid of a child can be given away.
    pub fn hold(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that there is a child to wait for.
    pub fn child_was_born(&self) {
        self.born.notify_all();
    }

    /// Collects for ever; `tell` hears of each child and answers whether to go on.
    pub fn run(&self, mut tell: impl FnMut(Ended) -> bool) {
        loop {
            // Waits without collecting, and therefore without the lock.
            let _ = waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
            let guard = self.hold();
            let ended = match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => ended(pid.as_raw_nonzero().get().unsigned_abs(), status),
                Err(Errno::CHILD) => {
                    // No children at all. The limit only bounds the harm of a wake-up that got lost.
                    let _ = self.born.wait_timeout(guard, Duration::from_secs(1));
                    continue;
                }
                Ok(None) | Err(_) => continue,
            };
            drop(guard);
            if !tell(ended) {
                return;
            }
        }
    }
}

fn ended(pid: u32, status: WaitStatus) -> Ended {
    Ended { pid, code: status.exit_status(), signal: status.terminating_signal() }
}
