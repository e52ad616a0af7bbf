//! The lifeline: a pipe whose write end this process alone keeps.
//!
//! Every process of a dev fleet has the read end as its standard input and `UPFLEET_LIFELINE_FD=0`. The kernel
//! closes the write end when this process ends, even by kill -9; the readers see the end of the pipe and end too.

use std::{
    io,
    os::fd::OwnedFd,
    process::{Command, Stdio},
};

/// Names the descriptor of the read end in the environment.
pub(crate) const VARIABLE: &str = "UPFLEET_LIFELINE_FD";

/// The pipe.
#[derive(Debug)]
pub(super) struct Lifeline {
    read: OwnedFd,
    /// Dropped, it ends everything.
    _write: OwnedFd,
}

impl Lifeline {
    pub(super) fn new() -> io::Result<Self> {
        // Neither end is inherited but by `hold_on`.
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok(Self { read, _write: write })
    }

    /// Lets a process live no longer than this one.
    pub(super) fn hold_on(&self, command: &mut Command) -> io::Result<()> {
        command.stdin(Stdio::from(self.read.try_clone()?)).env(VARIABLE, "0");
        Ok(())
    }
}

/// Ends this process when the lifeline that it was started with ends; does nothing where it has none.
pub(crate) fn obey() {
    let Some(number) = std::env::var_os(VARIABLE) else { return };
    let path = std::path::Path::new("/proc/self/fd").join(number);
    std::thread::spawn(move || {
        if let Ok(mut pipe) = std::fs::File::open(path) {
            // Nothing is ever written: reading returns at the end of the pipe.
            let _ = io::copy(&mut pipe, &mut io::sink());
            std::process::exit(0);
        }
    });
}
