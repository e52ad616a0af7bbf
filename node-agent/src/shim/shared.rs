//! What all threads of a shim see: the output, the children, and how the processes stand. The keeper alone changes it.

use std::{
    fs::File,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use upfleet_domain::digest::Digest;

use super::{
    child::{Child, hash},
    notify::Notified,
    output::Output,
    protocol::{Both, ProcessInfo, ProcessState},
    reaper::Reaper,
};
use crate::processes::{FileId, executable, executable_path};

/// What all threads of a shim see.
pub struct Shared {
    /// The component's output.
    pub output: Arc<Output>,
    /// The children.
    pub reaper: Reaper,
    views: Mutex<Views>,
}

struct Views {
    current: View,
    beside: Option<View>,
    draining: Vec<u32>,
}

/// How one process stands.
pub struct View {
    state: ProcessState,
    /// The file that was executed, where it was the component's.
    file: Option<FileId>,
    /// What runs instead, once the process has executed another file by itself.
    other: Option<(FileId, Digest)>,
    /// What it says of itself.
    said: Option<Arc<Mutex<Notified>>>,
}

impl View {
    /// Of what does not run.
    #[must_use]
    pub fn of(state: ProcessState) -> Self {
        Self { state, file: None, other: None, said: None }
    }

    /// Of what runs.
    #[must_use]
    pub fn running(child: &Child, state: ProcessState) -> Self {
        let said = child.notify.as_ref().map(super::notify::Notify::said);
        Self { state, file: child.file, other: None, said }
    }

    /// With the digest of what really runs, and with what it has said until now.
    fn now(&mut self) -> ProcessState {
        match self.state.clone() {
            ProcessState::Running(info) => ProcessState::Running(self.look(info)),
            ProcessState::Stopping(info) => ProcessState::Stopping(self.look(info)),
            other => other,
        }
    }

    fn look(&mut self, mut info: ProcessInfo) -> ProcessInfo {
        let said = self.said.as_ref();
        info.notified = said.map(|said| said.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let Some(file) = self.file else { return info };
        if let Some(other) = executable(info.pid).filter(|other| *other != file) {
            let known = self.other.filter(|(known, _)| *known == other);
            let digest = known
                .map(|(_, digest)| digest)
                .or_else(|| File::open(executable_path(info.pid)).and_then(hash).ok());
            if let Some(digest) = digest {
                self.other = Some((other, digest));
                info.digest = digest;
            }
        }
        info
    }
}

impl Shared {
    /// Nothing runs yet.
    #[must_use]
    pub fn new(output: Output) -> Self {
        let current = View::of(ProcessState::Stopped { last_exit: None });
        let views = Mutex::new(Views { current, beside: None, draining: Vec::new() });
        Self { output: Arc::new(output), reaper: Reaper::default(), views }
    }

    /// How the process stands, with the digest of what really runs.
    #[must_use]
    pub fn state(&self) -> ProcessState {
        self.views().current.now()
    }

    /// The same, and how the one beside it stands.
    #[must_use]
    pub fn both(&self) -> Both {
        let mut views = self.views();
        Both {
            current: views.current.now(),
            beside: views.beside.as_mut().map(View::now),
            draining: views.draining.clone(),
        }
    }

    /// Shows how things stand from now on.
    pub fn publish(&self, current: View, beside: Option<View>, draining: Vec<u32>) {
        *self.views() = Views { current, beside, draining };
    }

    fn views(&self) -> MutexGuard<'_, Views> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
