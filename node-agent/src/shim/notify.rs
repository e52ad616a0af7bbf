//! What a component's process says of itself over `NOTIFY_SOCKET`: `READY=1`, `STOPPING=1`, `STATUS=…`. Everything
//! else is passed over.
//!
//! One socket per process. A message counts only where the kernel says that it came from that process, from one that
//! descends from it, or from its group; a sender that is gone by the time its message is read can't be told from a
//! stranger and is not believed.

use std::{
    fs,
    io::{self, IoSliceMut, PipeWriter},
    mem::MaybeUninit,
    os::{
        fd::AsFd,
        linux::net::SocketAddrExt as _,
        unix::{
            fs::FileTypeExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg,
        sockopt::set_socket_passcred,
    },
};
use serde::{Deserialize, Serialize};

use super::{child::STACK, tree::speaks_for};

/// The longest message; longer ones are passed over.
const MAX_MESSAGE: usize = 4096;
/// How much of a status is kept, in characters.
const MAX_STATUS: usize = 200;
/// The longest path of a Unix socket.
const MAX_PATH: usize = 107;

/// What a process has said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notified {
    /// `READY=1`.
    pub ready: bool,
    /// `STOPPING=1`.
    pub stopping: bool,
    /// The last `STATUS=`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status: String,
}

impl Notified {
    /// Takes in one message.
    fn note(&mut self, message: &str) {
        for line in message.lines() {
            match line.split_once('=') {
                Some(("READY", "1")) => self.ready = true,
                Some(("STOPPING", "1")) => self.stopping = true,
                Some(("STATUS", text)) => {
                    let plain = |c: char| if c.is_control() { ' ' } else { c };
                    self.status = text.chars().take(MAX_STATUS).map(plain).collect();
                }
                _ => {}
            }
        }
    }
}

/// What the files of these sockets are called, before a number.
const PREFIX: &str = "notify-";
/// The number of the next one. Each has a name of its own: one that drains is still heard.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// The socket of one process. Dropped, nobody listens any more.
pub struct Notify {
    socket: Option<UnixDatagram>,
    /// What the process is told, in `NOTIFY_SOCKET`.
    pub name: String,
    /// The socket's file, where it has one.
    path: Option<PathBuf>,
    said: Arc<Mutex<Notified>>,
    /// Its end wakes the listener, which then ends.
    alive: Option<PipeWriter>,
}

/// Removes what a shim that was killed has left in `dir`.
///
/// # Errors
/// Where it can't be removed.
pub fn clear(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && entry.file_type()?.is_socket() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

impl Notify {
    /// Opens the socket for a process of the shim in `dir`. Where the path is too long for an address it is an abstract
    /// one, whose name nobody can guess and take first.
    ///
    /// # Errors
    /// Where it can't be opened.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(format!("{PREFIX}{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let (socket, name, path) = if path.as_os_str().len() <= MAX_PATH {
            (UnixDatagram::bind(&path)?, path.to_string_lossy().into_owned(), Some(path))
        } else {
            let name = format!("upfleet-shim-{:032x}", rand::random::<u128>());
            let address = SocketAddr::from_abstract_name(&name)?;
            (UnixDatagram::bind_addr(&address)?, format!("@{name}"), None)
        };
        let opened = Self { socket: Some(socket), name, path, said: Arc::default(), alive: None };
        set_socket_passcred(opened.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?, true)?;
        Ok(opened)
    }

    /// Listens to the process `pid`, which was told the socket's name.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn listen(&mut self, pid: u32) -> io::Result<()> {
        let Some(socket) = self.socket.take() else { return Ok(()) };
        let (stop, alive) = io::pipe()?;
        let said = Arc::clone(&self.said);
        let work = move || {
            while wait(&socket, &stop) {
                if let Ok(Some(message)) = receive(&socket, pid) {
                    said.lock().unwrap_or_else(PoisonError::into_inner).note(&message);
                }
            }
        };
        thread::Builder::new().stack_size(STACK).spawn(work)?;
        self.alive = Some(alive);
        Ok(())
    }

    /// Where what was said is kept.
    #[must_use]
    pub fn said(&self) -> Arc<Mutex<Notified>> {
        Arc::clone(&self.said)
    }

    /// Whether `READY=1` was ever said.
    #[must_use]
    pub fn was_ready(&self) -> bool {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).ready
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        drop(self.alive.take());
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// Waits for a message; `false` once nobody wants one any more.
fn wait(socket: &UnixDatagram, stop: &impl AsFd) -> bool {
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
            Ok(_) if !fds[1].revents().is_empty() => return false,
            Ok(_) => return true,
        }
    }
}

/// One message; none where it is too long, no text, or not of that process.
fn receive(socket: &UnixDatagram, process: u32) -> io::Result<Option<String>> {
    let mut bytes = [0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    let sender = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(sender) => {
            Some(sender.pid.as_raw_nonzero().get().unsigned_abs())
        }
        // Descriptors that came along are closed by being dropped here.
        _ => None,
    });
    let whole = !message.flags.contains(ReturnFlags::TRUNC);
    if !whole || !sender.is_some_and(|sender| speaks_for(sender, process)) {
        return Ok(None);
    }
    Ok(std::str::from_utf8(&bytes[..message.bytes]).ok().map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use std::{
        process::Command,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn what_is_said_is_kept_within_bounds() {
        let mut said = Notified::default();
        said.note("STATUS=warming up\nFDSTORE=1\nREADY=0\nMAINPID=1");
        assert_eq!((said.ready, said.status.as_str()), (false, "warming up"));
        said.note(&format!("READY=1\nSTATUS={}", "x".repeat(1000)));
        assert_eq!((said.ready, said.stopping, said.status.len()), (true, false, MAX_STATUS));
        said.note("STOPPING=1");
        assert!(said.stopping);
    }

    #[test]
    fn strangers_are_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let notify = Notify::open(dir.path()).unwrap();
        let socket = notify.socket.as_ref().unwrap();
        let own = UnixDatagram::unbound().unwrap();
        let mut other = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        for (message, process, heard) in [
            ("READY=1".to_owned(), std::process::id(), true),
            ("READY=1".to_owned(), other.id(), false),
            ("x".repeat(MAX_MESSAGE + 1), std::process::id(), false),
        ] {
            own.send_to(message.as_bytes(), &notify.name).unwrap();
            let got = receive(socket, process).unwrap();
            assert_eq!(got, heard.then_some(message));
        }
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn each_process_has_a_socket_of_its_own_for_as_long_as_it_is_listened_to() {
        let dir = tempfile::tempdir().unwrap();
        let files = || fs::read_dir(dir.path()).unwrap().count();
        // Left by a shim that was killed; and something else.
        drop(UnixDatagram::bind(dir.path().join("notify-7")).unwrap());
        fs::write(dir.path().join("notify-text"), "").unwrap();
        clear(dir.path()).unwrap();
        assert_eq!(files(), 1);
        let first = Notify::open(dir.path()).unwrap();
        let more: Vec<Notify> = (0..9).map(|_| Notify::open(dir.path()).unwrap()).collect();
        assert_eq!(files(), 11);
        drop(more);
        let own = UnixDatagram::unbound().unwrap();
        own.send_to(b"STOPPING=1", &first.name).unwrap();
        assert!(receive(first.socket.as_ref().unwrap(), std::process::id()).unwrap().is_some());
        drop(first);
        assert_eq!(files(), 1);
        let long = dir.path().join("l".repeat(100));
        let names = [Notify::open(&long).unwrap(), Notify::open(&long).unwrap()].map(|one| one.name.clone());
        assert!(names[0] != names[1] && names[0].len() > 40, "{names:?}");
    }

    #[test]
    fn a_process_is_heard_until_nobody_listens_any_more() {
        let dir = tempfile::tempdir().unwrap();
        // Too long for an address: the socket is an abstract one.
        let long = dir.path().join("l".repeat(100));
        std::fs::create_dir(&long).unwrap();
        for dir in [dir.path(), &long] {
            let mut notify = Notify::open(dir).unwrap();
            notify.listen(std::process::id()).unwrap();
            let own = UnixDatagram::unbound().unwrap();
            match notify.name.strip_prefix('@') {
                Some(name) => {
                    let address = SocketAddr::from_abstract_name(name).unwrap();
                    own.send_to_addr(b"READY=1", &address).unwrap();
                }
                None => drop(own.send_to(b"READY=1", &notify.name).unwrap()),
            }
            let said = notify.said();
            let deadline = Instant::now() + Duration::from_secs(60);
            while !said.lock().unwrap().ready {
                assert!(Instant::now() < deadline, "it was not heard");
                thread::yield_now();
            }
            drop(notify);
            while Arc::strong_count(&said) > 1 {
                assert!(Instant::now() < deadline, "the listener does not end");
                thread::yield_now();
            }
        }
    }
}
