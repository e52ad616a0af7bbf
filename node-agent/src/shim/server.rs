//! The shim's socket: who may connect, how much they may say, and who answers.
//!
//! One thread per connection, few of them. Nothing that a client sends or leaves out ends the shim.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags},
    net::sockopt::socket_peercred,
    process::geteuid,
};

use super::{
    child::STACK,
    keeper::Event,
    protocol::{
        Answer, Body, ErrorCode, Event as Notice, Hello, MAX_REQUEST, Op, ProtocolError, SOCKET, VERSIONS,
        parse_request,
    },
    shared::Shared,
};
use crate::{formats, processes::Identity};

/// Connections at a time; an agent uses one or two.
const CONNECTIONS: usize = 32;
/// How long a client may be silent, or not take its answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a quiet client that waits is checked for being there.
const HANG_UP_CHECK: Duration = Duration::from_millis(500);

/// What a connection needs.
pub struct Server {
    shared: Arc<Shared>,
    events: Sender<Event>,
    hello: Hello,
    connections: AtomicUsize,
    answering: AtomicUsize,
}

/// Opens the socket in `dir`, mode 0600. The name is bound through the directory's descriptor, because a
/// socket's address has room for 107 bytes only.
///
/// # Errors
/// Where that is not possible.
pub fn listen(dir: &Path) -> io::Result<UnixListener> {
    let handle = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = super::socket_path(&handle);
    crate::damage::clear_directory(&dir.join(SOCKET))?;
    match fs::remove_file(dir.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    // The directory is 0700, so nobody else can have connected before this line.
    fs::set_permissions(dir.join(SOCKET), fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl Server {
    /// Answers for `shared`, and passes on to `events` what has to be decided.
    ///
    /// # Errors
    /// Where `/proc` is not there.
    pub fn new(shared: Arc<Shared>, events: Sender<Event>) -> io::Result<Self> {
        let hello = Hello {
            versions: VERSIONS.to_vec(),
            program: formats::VERSION.to_owned(),
            process: Identity::of(std::process::id())?,
        };
        Ok(Self { shared, events, hello, connections: AtomicUsize::new(0), answering: AtomicUsize::new(0) })
    }

    /// Accepts for ever.
    pub fn run(self: &Arc<Self>, listener: &UnixListener) {
        loop {
            let Ok((stream, _)) = listener.accept() else {
                // Out of descriptors, most likely; they come back as connections end.
                thread::sleep(Duration::from_millis(50));
                continue;
            };
            let server = Arc::clone(self);
            let busy = self.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS;
            let thread = thread::Builder::new().stack_size(STACK * 2).spawn(move || {
                let _ = server.serve(&stream, busy);
                server.connections.fetch_sub(1, Ordering::Relaxed);
            });
            if thread.is_err() {
                self.connections.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Waits until answers that are under way have left, so that a shim's last one is heard.
    pub fn finish(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.answering.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn serve(&self, stream: &UnixStream, busy: bool) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let peer = socket_peercred(stream)?;
        if peer.uid != geteuid() && !peer.uid.is_root() {
            return Ok(());
        }
        if busy {
            return send(stream, refusal(ErrorCode::Busy, "too many connections"));
        }
        let mut reader = BufReader::new(stream);
        loop {
            let mut line = Vec::new();
            let limit = MAX_REQUEST as u64 + 1;
            if (&mut reader).take(limit).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            if line.last() != Some(&b'\n') {
                let whole = line.len() <= MAX_REQUEST;
                let (code, text) = if whole {
                    (ErrorCode::Malformed, "the request has no end of line")
                } else {
                    (ErrorCode::TooLong, "the request is too long")
                };
                // What follows can't be told from a request any more, so the connection ends.
                return send(stream, refusal(code, text));
            }
            match parse_request(&line) {
                Ok(Op::Follow) => return self.follow(stream),
                Ok(op) => {
                    self.answering.fetch_add(1, Ordering::SeqCst);
                    let sent = self.answer(op, stream).map_or(Err(gone()), |answer| send(stream, answer));
                    self.answering.fetch_sub(1, Ordering::SeqCst);
                    sent?;
                }
                Err(error) => send(stream, Body::Error(error))?,
            }
        }
    }

    /// The answer; none where the client hangs up before. What it has asked for goes on.
    fn answer(&self, op: Op, stream: &UnixStream) -> Option<Body> {
        let (reply, answer) = sync_channel(1);
        let sent = match op {
            Op::Hello => return Some(Body::Hello(self.hello.clone())),
            Op::State => return Some(Body::State(self.shared.state())),
            Op::Tail { lines, this_launch } => {
                return Some(Body::Lines(self.shared.output.tail(lines, this_launch)));
            }
            Op::Start { launch } => self.events.send(Event::Start(launch, reply)),
            Op::Replace { launch } => self.events.send(Event::Replace(launch, reply)),
            Op::Stop => self.events.send(Event::Stop(reply)),
            Op::Shutdown => self.events.send(Event::Shutdown(reply)),
            Op::Both => return Some(Body::Both(Box::new(self.shared.both()))),
            Op::StartBeside { launch } => self.events.send(Event::StartBeside(launch, reply)),
            Op::Drain => self.events.send(Event::Drain(reply)),
            Op::Dismiss => self.events.send(Event::Dismiss(reply)),
            Op::Follow => return Some(refusal(ErrorCode::Malformed, "follow has no answer")),
        };
        let ending = || refusal(ErrorCode::WrongState, "the shim is about to end");
        if sent.is_err() {
            return Some(ending());
        }
        loop {
            // An end takes minutes. Whoever no longer waits for it must not use up the connections.
            match answer.recv_timeout(HANG_UP_CHECK) {
                Ok(answer) => return Some(answer),
                Err(RecvTimeoutError::Disconnected) => return Some(ending()),
                Err(RecvTimeoutError::Timeout) if closed(stream) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn follow(&self, stream: &UnixStream) -> io::Result<()> {
        let events: Receiver<Notice> = self.shared.output.follow();
        send(stream, Body::State(self.shared.state()))?;
        loop {
            match events.recv_timeout(HANG_UP_CHECK) {
                Ok(event) => send(stream, Body::Event(event))?,
                Err(RecvTimeoutError::Timeout) if hung_up(stream)? => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }
}

fn gone() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

/// Whether the other side has closed both ways, also where something that it sent is still to be read.
fn closed(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok_and(|_| fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR))
}

/// Whether the other side has closed; what it sends meanwhile is thrown away.
fn hung_up(mut stream: &UnixStream) -> io::Result<bool> {
    stream.set_nonblocking(true)?;
    let closed = match stream.read(&mut [0; 512]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    };
    stream.set_nonblocking(false)?;
    Ok(closed)
}

fn refusal(code: ErrorCode, message: &str) -> Body {
    Body::Error(ProtocolError { code, message: message.to_owned(), versions: VERSIONS.to_vec() })
}

fn send(mut stream: &UnixStream, body: Body) -> io::Result<()> {
    let mut line = serde_json::to_vec(&Answer::new(body))?;
    line.push(b'\n');
    stream.write_all(&line)
}
