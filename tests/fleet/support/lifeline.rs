//! The pipe whose end ends everything a fleet started, also when the test process is killed.

use std::{
    io::{PipeReader, PipeWriter, pipe},
    os::fd::AsRawFd as _,
};

use rustix::io::{FdFlags, fcntl_setfd};

/// Agents and shims hold the read end; this process alone holds the write end. Dropping it ends them.
pub struct Lifeline {
    reader: PipeReader,
    _writer: PipeWriter,
}

impl Lifeline {
    pub fn new() -> Self {
        let (reader, writer) = pipe().expect("a process may have a few more descriptors");
        // The read end is inherited by whatever is started from here on, which does no harm: only the write
        // end keeps things alive, and that stays close-on-exec.
        fcntl_setfd(&reader, FdFlags::empty()).expect("the descriptor is open");
        Self { reader, _writer: writer }
    }

    /// For the environment of what is started.
    pub fn variable(&self) -> (&'static str, String) {
        ("UPFLEET_LIFELINE_FD", self.reader.as_raw_fd().to_string())
    }
}
