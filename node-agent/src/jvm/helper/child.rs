//! The child's side: opens what needs the agent's rights, drops them for good, does one task, answers.
//!
//! Must run in a process of its own with a single thread: the kernel keeps rights per thread.

use std::{
    io::{self, BufRead, Read, Write},
    process::ExitCode,
    time::Duration,
};

use rustix::{
    fs::Mode,
    process::{getegid, geteuid, umask},
    thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use super::{Header, Request, Subject, Task, files};
use crate::jvm::{
    attach::{Deadline, Failure, handshake},
    namespace::{Links, Root},
};

/// The longest request, without the bytes that follow it.
const MAX_REQUEST: u64 = 1 << 20;

/// Reads one request from standard input, does it, and writes the answer to standard output.
#[must_use]
pub fn main() -> ExitCode {
    let input = io::stdin().lock();
    let (header, body) = match run(input) {
        Ok(body) => (Header::Done(body.as_ref().map(|body| body.len() as u64)), body.unwrap_or_default()),
        Err(failure) => (Header::Failed(failure), Vec::new()),
    };
    match answer(&header, &body) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn answer(header: &Header, body: &[u8]) -> io::Result<()> {
    let mut output = io::stdout().lock();
    serde_json::to_writer(&mut output, header)?;
    output.write_all(b"\n")?;
    output.write_all(body)?;
    output.flush()
}

fn run(mut input: impl BufRead) -> Result<Option<Vec<u8>>, Failure> {
    let mut line = Vec::new();
    (&mut input).take(MAX_REQUEST).read_until(b'\n', &mut line).map_err(|error| broken(&error))?;
    let request: Request = serde_json::from_slice(&line).map_err(|error| broken(&error))?;
    let deadline = Deadline::after(Duration::from_millis(request.limit_ms));
    let subject = &request.subject;
    umask(Mode::RWXG | Mode::RWXO);
    match request.task {
        Task::Attach { words } => {
            let prepared = handshake::prepare(subject, deadline)?;
            drop_privileges(subject)?;
            handshake::converse(&prepared, subject, &words, deadline).map(Some)
        }
        Task::Create { dir, files } => {
            let tmp = files::tmp(subject)?;
            drop_privileges(subject)?;
            files::create(&tmp, &dir, subject, &files, input).map(|()| None)
        }
        Task::Read { dir, name, max } => {
            let tmp = files::tmp(subject)?;
            drop_privileges(subject)?;
            files::read(&tmp, &dir, &name, max)
        }
        Task::Remove { dir } => {
            let tmp = files::tmp(subject)?;
            drop_privileges(subject)?;
            files::remove(&tmp, &dir).map(|()| None)
        }
        Task::Show { path, max } => {
            let root = Root::of(subject.identity.pid).map_err(|error| unreadable(subject, &error))?;
            still(subject)?;
            drop_privileges(subject)?;
            let read = root.read(&path, max, Links::Within);
            read.map(Some).map_err(|error| Failure::Files(format!("{path} can't be read: {error}")))
        }
    }
}

fn broken(error: &dyn std::error::Error) -> Failure {
    Failure::Helper(format!("the request could not be read: {error}"))
}

/// What an error at `/proc/PID/…` means.
pub fn unreadable(subject: &Subject, error: &io::Error) -> Failure {
    if subject.identity.is_running() {
        Failure::Privileges(format!("its files can't be looked at: {error}"))
    } else {
        Failure::Gone
    }
}

/// What was opened by the pid belongs to the planned process only if that still runs after it was opened.
pub fn still(subject: &Subject) -> Result<(), Failure> {
    if subject.identity.is_running() { Ok(()) } else { Err(Failure::Gone) }
}

/// Becomes the JVM's user and group, with no further groups and no way back.
fn drop_privileges(subject: &Subject) -> Result<(), Failure> {
    let privileges = |error: rustix::io::Errno| Failure::Privileges(error.to_string());
    let (uid, gid) = (rustix::fs::Uid::from_raw(subject.uid), rustix::fs::Gid::from_raw(subject.gid));
    let same = geteuid() == uid && getegid() == gid;
    match set_thread_groups(&[]) {
        // An ordinary user can't leave groups, and needs not where the JVM is its own.
        Err(_) if same && !uid.is_root() => {}
        cleared => cleared.map_err(privileges)?,
    }
    set_thread_res_gid(gid, gid, gid).map_err(privileges)?;
    set_thread_res_uid(uid, uid, uid).map_err(privileges)?;
    if geteuid() != uid || getegid() != gid {
        return Err(Failure::Privileges("the kernel did not change the user".into()));
    }
    set_no_new_privs(true).map_err(privileges)
}
