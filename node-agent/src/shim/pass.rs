//! Passing sockets to a new process as systemd's socket activation does: descriptors 3 and up, `LISTEN_FDS`,
//! `LISTEN_FDNAMES`, and `LISTEN_PID` with the process's own id.
//!
//! No parent knows that id before it forks, and nothing may be written between `fork` and `exec` without `unsafe`. So
//! the shim starts its own program as `exec-with-sockets`, which has the sockets in their places already, adds its own
//! id and executes the component's program in its own place: the same process, the same id.
//!
//! The two talk over what is the new process's standard input until the program is executed: `+` when the helper
//! runs, then its end by the exec, or a sentence that says why there was none. The program's own input is `/dev/null`.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, PipeReader, Read as _, Write as _},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use command_fds::{CommandFdExt as _, FdMapping};

use super::spec::SocketSpec;
use crate::processes::Identity;

/// The hidden word of the command line.
pub const WORD: &str = "exec-with-sockets";
/// The first descriptor that is passed.
const FIRST: i32 = 3;
/// Names the process that was started with sockets, to tell what it has started from what another one has.
pub const MARK: &str = "UPFLEET_PROCESS";
/// Names the shim that it was started by, so that a later one finds what that has left; its value is of [`of_shim`].
pub const SHIM: &str = "UPFLEET_SHIM";
/// What the helper says first.
const ALIVE: &[u8] = b"+";
/// How often, and how long apart, a file that is "busy" is tried again; see `child::spawn_patiently`.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// The value of [`SHIM`]: no other process of this boot has it.
#[must_use]
pub fn of_shim(shim: &Identity) -> String {
    format!("{}:{}", shim.pid, shim.start_time)
}

/// A command that executes `argv` with `sockets`, and where its helper says how that went. What else the process is to
/// have is added by the caller; its standard input is taken.
///
/// # Errors
/// Where no pipe can be made.
pub fn command(
    argv: &[String],
    specs: &[SocketSpec],
    sockets: Vec<OwnedFd>,
) -> io::Result<(Command, PipeReader)> {
    let (reader, writer) = io::pipe()?;
    // Of this very shim, also when its file was replaced by a newer one.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("upfleet-agent").arg(WORD).args(argv).stdin(Stdio::from(writer));
    let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    command.env_clear().env(SHIM, of_shim(&Identity::of(std::process::id())?));
    command.env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
    let mappings = (FIRST..).zip(sockets).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mappings.collect()).map_err(io::Error::other)?;
    Ok((command, reader))
}

/// Waits until the program is executed. The caller has dropped the command, and with it its end of the pipe.
///
/// # Errors
/// Why it was not, as a sentence.
pub fn executed(reader: PipeReader) -> Result<(), String> {
    let mut said = Vec::new();
    reader.take(4096).read_to_end(&mut said).map_err(|error| error.to_string())?;
    match said.strip_prefix(ALIVE) {
        Some([]) => Ok(()),
        Some(problem) => Err(String::from_utf8_lossy(problem).into_owned()),
        None => Err("the helper that passes the sockets could not be executed".to_owned()),
    }
}

/// The helper: executes the rest of the command line in its own place. Returns only where that fails.
#[must_use]
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let Ok(tell) = rustix::io::fcntl_dupfd_cloexec(io::stdin(), FIRST) else { return ExitCode::from(127) };
    let mut tell = File::from(tell);
    let problem = execute(&mut tell, arguments);
    let _ = tell.write_all(problem.to_string().as_bytes());
    ExitCode::from(127)
}

fn execute(tell: &mut File, mut arguments: impl Iterator<Item = OsString>) -> io::Error {
    let prepare = |tell: &mut File| {
        tell.write_all(ALIVE)?;
        rustix::stdio::dup2_stdin(File::open("/dev/null")?).map_err(io::Error::from)
    };
    if let Err(error) = prepare(tell) {
        return error;
    }
    let Some(program) = arguments.next() else { return io::Error::other("the command is empty") };
    let own = std::process::id().to_string();
    let mut command = Command::new(program);
    command.args(arguments).env("LISTEN_PID", &own).env(MARK, &own);
    for _ in 0..TRIES {
        let error = command.exec();
        if error.kind() != io::ErrorKind::ExecutableFileBusy {
            return error;
        }
        thread::sleep(PAUSE);
    }
    command.exec()
}
