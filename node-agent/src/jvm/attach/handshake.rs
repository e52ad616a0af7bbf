//! The handshake and one request, carried out in the helper: makes the JVM listen, asks, reads the answer.
//!
//! A SIGQUIT kills a process that does not catch it, and makes a JVM that does not look for the trigger write a
//! thread dump into the application's output. So the signal is sent to exactly the planned process, only when it
//! has mapped HotSpot and catches the signal, and only with the trigger file in place, which goes on every path.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use rustix::{
    fs::{Access, AtFlags, FileType, Mode, OFlags, accessat, unlinkat},
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
    process::Signal,
};

use super::{
    Failure,
    deadline::{Deadline, FIRST_PAUSE},
    wire,
};
use crate::jvm::{
    helper::{Subject, still, tmp, unreadable},
    namespace::{TMP, kind, look, open_in, working_directory},
    process::{self, Mapped},
};

/// How long a young JVM may take until it catches SIGQUIT.
const STARTING: Duration = Duration::from_secs(10);
/// How long a JVM may take to listen after it was told to; a long pause for garbage fits.
const LISTENING: Duration = Duration::from_secs(10);
/// The most that is read of an answer.
const MAX_REPLY: u64 = 15 << 20;

/// What was opened and found out with the agent's rights.
pub struct Prepared {
    tmp: OwnedFd,
    /// HotSpot looks for the trigger there too; not every directory can be opened.
    cwd: Option<OwnedFd>,
    /// Whether it may be sent the signal.
    ready: bool,
}

/// Opens what the JVM's own user may not open, and waits until the JVM is ready to be attached to.
pub fn prepare(subject: &Subject, deadline: Deadline) -> Result<Prepared, Failure> {
    let tmp = tmp(subject)?;
    let cwd = working_directory(subject.identity.pid).ok();
    still(subject)?;
    let mut prepared = Prepared { tmp, cwd, ready: false };
    prepared.ready = wait_until_ready(&prepared, subject, deadline)?;
    Ok(prepared)
}

/// Whether it catches the signal; `false` where it listens already and catches none.
///
/// Catching the signal is not enough: for some moments more a JVM removes what others left under its number, which
/// may be the socket that it just made, and answers while it has no class loader for applications yet, or never.
fn wait_until_ready(prepared: &Prepared, subject: &Subject, deadline: Deadline) -> Result<bool, Failure> {
    let pid = subject.identity.pid;
    let deadline = deadline.or_after(STARTING);
    let mut pause = FIRST_PAUSE;
    loop {
        still(subject)?;
        let status = process::status(pid).map_err(|error| unreadable(subject, &error))?;
        let started = match process::mapped(pid) {
            Some(Mapped::OpenJ9(_)) => return Err(Failure::OpenJ9),
            Some(Mapped::HotSpot(_)) => process::has_started(pid) || !is_young(subject),
            None if process::is_launcher(pid) => false,
            None => return Err(Failure::NotAJvm),
        };
        if started && status.catches_quit {
            return Ok(true);
        }
        if started && look(prepared.tmp.as_fd(), &socket_name(subject)).is_ok() {
            return Ok(false);
        }
        if started && let Some(option) = &subject.no_signals {
            return Err(Failure::NoSignals(option.clone()));
        }
        if !deadline.sleep(&mut pause) {
            return Err(Failure::NotReady { seconds: deadline.seconds() });
        }
    }
}

/// Whether a JVM may still be starting.
pub fn is_young(subject: &Subject) -> bool {
    subject.identity.age().is_none_or(|age| age < STARTING)
}

/// Sends `words`, a command and its arguments, and answers the JVM's bytes.
pub fn converse(
    prepared: &Prepared,
    subject: &Subject,
    words: &[String],
    deadline: Deadline,
) -> Result<Vec<u8>, Failure> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let version = wire::version_for(&words)?;
    if version == wire::Version::V2 {
        let ask = wire::request(wire::Version::V1, &["getversion"]);
        let answer = exchange(listen(prepared, subject, deadline)?, &ask, deadline)?;
        if !wire::speaks_v2(&wire::reply(&answer)?) {
            return Err(wire::too_long(&words));
        }
    }
    exchange(listen(prepared, subject, deadline)?, &wire::request(version, &words), deadline)
}

fn exchange(mut stream: UnixStream, request: &[u8], deadline: Deadline) -> Result<Vec<u8>, Failure> {
    stream.set_write_timeout(Some(deadline.left())).map_err(|error| spoken(&error, deadline))?;
    let sent = stream.write_all(request);
    let mut answer = Vec::new();
    let mut buffer = [0; 8192];
    while (answer.len() as u64) < MAX_REPLY {
        stream.set_read_timeout(Some(deadline.left())).map_err(|error| spoken(&error, deadline))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => answer.extend_from_slice(buffer.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // It closes without reading to the end what it does not like.
            Err(error) if is_closed(&error) => break,
            Err(error) => return Err(spoken(&error, deadline)),
        }
        if deadline.passed() {
            return Err(deadline.failure());
        }
    }
    match sent {
        Err(error) if answer.is_empty() && !is_closed(&error) => Err(spoken(&error, deadline)),
        _ if answer.is_empty() => Err(Failure::NoAnswer),
        _ => Ok(answer),
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

fn spoken(error: &io::Error, deadline: Deadline) -> Failure {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => deadline.failure(),
        _ => Failure::Garbled(error.to_string()),
    }
}

fn socket_name(subject: &Subject) -> String {
    format!(".java_pid{}", subject.inner_pid)
}

/// A connection to the JVM, which is made to listen if need be.
fn listen(prepared: &Prepared, subject: &Subject, deadline: Deadline) -> Result<UnixStream, Failure> {
    if let Some(stream) = try_connect(prepared, subject, deadline)? {
        return Ok(stream);
    }
    if !prepared.ready {
        let option = subject.no_signals.clone().unwrap_or_else(|| "-Xrs".to_owned());
        return Err(Failure::NoSignals(option));
    }
    // Where it can't make its socket, the signal would only make it write a thread dump.
    accessat(&prepared.tmp, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|error| Failure::Files(format!("it can't make its socket in its {TMP}: {error}")))?;
    let _trigger = Trigger::place(prepared, subject)?;
    let deadline = deadline.or_after(LISTENING);
    knock(subject)?;
    let mut pause = FIRST_PAUSE;
    // Once more where the first one came to nothing, as the JDK's own tools do; not sooner, since a signal that
    // finds the JVM listening makes it write a thread dump.
    let mut second = Some(deadline.or_after(LISTENING / 2));
    loop {
        if let Some(stream) = try_connect(prepared, subject, deadline)? {
            return Ok(stream);
        }
        still(subject)?;
        if second.take_if(|time| time.passed()).is_some() {
            knock(subject)?;
        }
        if !deadline.sleep(&mut pause) {
            return Err(Failure::Silent { seconds: deadline.seconds() });
        }
    }
}

/// Sends the signal.
fn knock(subject: &Subject) -> Result<(), Failure> {
    if subject.identity.signal(Signal::QUIT) {
        return Ok(());
    }
    still(subject)?;
    Err(Failure::Privileges("it may not be signalled".into()))
}

/// A connection, or `None` where nobody listens. A socket that nobody listens at is removed: it is what a process
/// of the same number left that was killed, and hides from the JVM that its own is missing.
fn try_connect(
    prepared: &Prepared,
    subject: &Subject,
    deadline: Deadline,
) -> Result<Option<UnixStream>, Failure> {
    let name = socket_name(subject);
    let files = |problem: &str| Failure::Files(format!("{TMP}/{name} {problem}"));
    let (found, stat) = match look(prepared.tmp.as_fd(), &name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        looked => looked.map_err(|error| files(&format!("can't be looked at: {error}")))?,
    };
    if kind(&stat) == FileType::Symlink {
        return Err(files("is a symbolic link"));
    }
    if kind(&stat) != FileType::Socket || stat.st_uid != subject.uid {
        return Err(files("is not a socket of the JVM's user"));
    }
    let system = |error: Errno| files(&format!("can't be connected to: {error}"));
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let socket = socket.map_err(system)?;
    set_socket_timeout(&socket, Timeout::Send, Some(deadline.left())).map_err(system)?;
    // By the descriptor: what was looked at is what is connected to, also below another root.
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(system)?;
    match connect(&socket, &address) {
        Ok(()) => Ok(Some(UnixStream::from(socket))),
        Err(Errno::AGAIN | Errno::TIMEDOUT) => Err(deadline.failure()),
        Err(Errno::CONNREFUSED) => {
            let _ = unlinkat(&prepared.tmp, &*name, AtFlags::empty());
            Ok(None)
        }
        Err(error) => Err(system(error)),
    }
}

/// The file that tells the JVM that the signal means to listen. Goes with this value.
struct Trigger<'a> {
    dir: &'a OwnedFd,
    name: String,
}

impl<'a> Trigger<'a> {
    /// In the temporary directory, where it disturbs nobody; else in the working directory, where JVMs look first.
    fn place(prepared: &'a Prepared, subject: &Subject) -> Result<Self, Failure> {
        let name = format!(".attach_pid{}", subject.inner_pid);
        if let Some(cwd) = &prepared.cwd
            && look(cwd.as_fd(), &name).is_ok_and(|(_, stat)| stat.st_uid != subject.uid && stat.st_uid != 0)
        {
            return Err(Failure::Files(format!("its working directory has a {name} of another user")));
        }
        let mut problem = None;
        for dir in std::iter::once(&prepared.tmp).chain(&prepared.cwd) {
            match Self::create(dir, &name, subject) {
                Ok(()) => return Ok(Self { dir, name }),
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        let problem = problem.map_or_else(String::new, |error| error.to_string());
        Err(Failure::Files(format!("{name} can't be created in its {TMP}, nor where it works: {problem}")))
    }

    fn create(dir: &OwnedFd, name: &str, subject: &Subject) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        match open_in(dir.as_fd(), name, flags, Mode::RUSR | Mode::WUSR) {
            // Left by an attacher that was killed: as good as a new one, and gone afterwards.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let (_, stat) = look(dir.as_fd(), name)?;
                if kind(&stat) == FileType::RegularFile && (stat.st_uid == subject.uid || stat.st_uid == 0) {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            created => created.map(drop),
        }
    }
}

impl Drop for Trigger<'_> {
    fn drop(&mut self) {
        let _ = unlinkat(self.dir, &*self.name, AtFlags::empty());
    }
}
