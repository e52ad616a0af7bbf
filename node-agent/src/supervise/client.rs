//! One request to a shim, or one stream of its events. A shim that hangs or talks nonsense costs the caller
//! a bounded time and a bounded memory.

use std::{io, path::Path, time::Duration};

use rustix::fs::{Mode, OFlags};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::{sleep, timeout},
};

use crate::shim::{
    protocol::{Answer, Body, ErrorCode, Event, MAX_ANSWER, Op, ProcessState, ProtocolError, Request},
    socket_path,
};

/// The wait before a shim that has too many connections is asked again.
const BUSY: Duration = Duration::from_millis(20);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens: there is no shim, or it is just starting or ending.
    #[error("no shim answers: {0}")]
    NoShim(io::Error),
    /// The connection broke.
    #[error("the connection to the shim broke: {0}")]
    Broken(io::Error),
    /// It did not answer in time.
    #[error("the shim did not answer within {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    /// It said no.
    #[error("{}", .0.message)]
    Refused(ProtocolError),
}

impl CallError {
    /// Whether the shim does not know what it was asked, since it is older than that.
    pub fn is_of_older_shim(&self) -> bool {
        let unknown =
            |error: &ProtocolError| matches!(error.code, ErrorCode::UnknownVersion | ErrorCode::Malformed);
        matches!(self, Self::Refused(error) if unknown(error))
    }
}

/// Asks once.
pub async fn call(dir: &Path, op: Op, limit: Duration) -> Result<Body, CallError> {
    let work = async {
        loop {
            let mut stream = open(dir, op.clone()).await?;
            let answer = read(&mut stream, &mut Vec::new()).await?;
            match answer.ok_or_else(|| CallError::Broken(io::ErrorKind::UnexpectedEof.into()))? {
                // Nothing was done yet; others hang up sooner or later, or are hung up on.
                Body::Error(error) if error.code == ErrorCode::Busy => sleep(BUSY).await,
                answer => return Ok(answer),
            }
        }
    };
    match timeout(limit, work).await {
        Ok(Ok(Body::Error(error))) => Err(CallError::Refused(error)),
        Ok(answer) => answer,
        Err(_) => Err(CallError::TimedOut(limit)),
    }
}

async fn open(dir: &Path, op: Op) -> Result<BufReader<UnixStream>, CallError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(dir, flags, Mode::empty()).map_err(|error| CallError::NoShim(error.into()))?;
    let mut stream = UnixStream::connect(socket_path(&dir)).await.map_err(CallError::NoShim)?;
    let request = serde_json::to_vec(&Request { v: op.version(), op });
    let mut line = request.map_err(|error| CallError::Broken(error.into()))?;
    line.push(b'\n');
    match stream.write_all(&line).await {
        // A shim with too many connections says so and hangs up before it has heard anything: that is still to be read.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CallError::Broken(error)),
        _ => Ok(BufReader::new(stream)),
    }
}

/// The next answer; `None` at the end. Where this is cancelled, `line` holds what came so far.
async fn read(stream: &mut BufReader<UnixStream>, line: &mut Vec<u8>) -> Result<Option<Body>, CallError> {
    let room = MAX_ANSWER.saturating_sub(line.len()) as u64;
    stream.take(room).read_until(b'\n', line).await.map_err(CallError::Broken)?;
    if line.is_empty() {
        return Ok(None);
    }
    let answer = serde_json::from_slice::<Answer>(line).map_err(|error| CallError::Broken(error.into()));
    line.clear();
    Ok(Some(answer?.body))
}

/// Output, starts and exits as they happen.
pub struct Follow {
    /// How the process stood when this began.
    pub state: ProcessState,
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
}

impl Follow {
    pub(super) async fn open(dir: &Path, limit: Duration) -> Result<Self, CallError> {
        let work = async {
            let mut stream = open(dir, Op::Follow).await?;
            match read(&mut stream, &mut Vec::new()).await? {
                Some(Body::State(state)) => Ok(Self { state, stream, line: Vec::new() }),
                Some(Body::Error(error)) => Err(CallError::Refused(error)),
                Some(_) | None => Err(CallError::Broken(io::ErrorKind::UnexpectedEof.into())),
            }
        };
        timeout(limit, work).await.unwrap_or(Err(CallError::TimedOut(limit)))
    }

    /// The next event; `None` once the shim is gone. Safe to cancel: no event is lost.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match read(&mut self.stream, &mut self.line).await {
                Ok(Some(Body::Event(event))) => return Some(event),
                // Of a newer shim: something this version does not know.
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }
}
