//! The helper: a short-lived child of the agent that acts on one JVM with that JVM's user and nothing more.
//!
//! The agent writes one request, a line of JSON and the bytes that it announces, on the child's standard input;
//! the child opens what needs the agent's rights, drops them, does the one task, and writes one answer the same
//! way. It has deadlines of its own and cleans up itself, so that an agent that ends leaves nothing half done.

mod child;
mod files;

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

pub use child::main;
pub(super) use child::{still, unreadable};
pub(super) use files::tmp;

use super::attach::Failure;
use crate::processes::{self, Identity};

/// The most that an answer may hold: a dump of every thread of a large application fits.
const MAX_ANSWER: u64 = 16 << 20;
/// How much longer than its own deadline the child is given.
const GRACE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// The JVM that a request is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The process, told from every other one.
    pub identity: Identity,
    /// The user that it acts as.
    pub uid: u32,
    /// The group that it acts as.
    pub gid: u32,
    /// Its pid in its own namespace.
    pub inner_pid: u32,
    /// The option that keeps it from catching SIGQUIT, where it has one.
    pub no_signals: Option<String>,
}

/// What the child is to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// To whom.
    pub subject: Subject,
    /// Within how many milliseconds.
    pub limit_ms: u64,
    /// What.
    pub task: Task,
}

/// The one thing that a child does.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Attach, send this command with its arguments, and answer the JVM's bytes.
    Attach {
        /// The command and its arguments.
        words: Vec<String>,
    },
    /// Make a directory in the JVM's temporary directory, with these files, whose bytes follow the request.
    Create {
        /// The directory's name.
        dir: String,
        /// Its files.
        files: Vec<Piece>,
    },
    /// Answer the bytes of a file of such a directory, nothing where it is not there.
    Read {
        /// The directory's name.
        dir: String,
        /// The file's name.
        name: String,
        /// How many bytes it may have.
        max: u64,
    },
    /// Remove such a directory with all that is in it.
    Remove {
        /// The directory's name.
        dir: String,
    },
    /// Answer the bytes of any file that the JVM's user can read, by its path as the JVM sees it.
    Show {
        /// The path.
        path: String,
        /// How many bytes it may have.
        max: u64,
    },
}

/// A file whose bytes follow.
#[derive(Debug, Serialize, Deserialize)]
pub struct Piece {
    /// Its plain name.
    pub name: String,
    /// How many bytes it has.
    pub length: u64,
}

/// How the child's answer begins.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Header {
    /// Done; this many bytes follow. `None` where what was asked for is not there.
    Done(Option<u64>),
    /// Not done.
    Failed(Failure),
}

/// Where the bytes of a new file come from.
#[derive(Clone, Debug)]
pub enum Content {
    /// From memory.
    Bytes(Vec<u8>),
    /// From a file of the node.
    File(PathBuf),
}

impl Content {
    fn open(&self) -> io::Result<(u64, Box<dyn Read + '_>)> {
        Ok(match self {
            Self::Bytes(bytes) => (bytes.len() as u64, Box::new(bytes.as_slice())),
            Self::File(path) => {
                let file = std::fs::File::open(path)?;
                (file.metadata()?.len(), Box::new(file))
            }
        })
    }
}

/// The agent's own program, also when its file was replaced or removed since it was started.
#[must_use]
pub fn own_program() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

/// Has a child do one task; `None` where what was asked for is not there. The child carries it through also when
/// this future is dropped.
///
/// # Errors
/// What the child says, or why there was none.
pub async fn call(
    program: &Path,
    subject: &Subject,
    limit: Duration,
    task: Task,
) -> Result<Option<Vec<u8>>, Failure> {
    let (program, subject) = (program.to_owned(), subject.clone());
    let calling = tokio::task::spawn_blocking(move || call_blocking(&program, &subject, limit, task, &[]));
    within(limit, calling).await
}

/// Waits for a call that runs on a thread of its own, somewhat longer than it should take.
///
/// # Errors
/// What the call says, or that it takes too long.
pub async fn within<T>(
    limit: Duration,
    calling: tokio::task::JoinHandle<Result<T, Failure>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit + GRACE, calling).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => Err(Failure::Helper(error.to_string())),
        Err(_) => Err(Failure::Timeout { seconds: limit.as_secs() }),
    }
}

/// As [`call`], and waits. The bytes of `contents` follow the request, which announces them.
///
/// # Errors
/// As [`call`].
pub fn call_blocking(
    program: &Path,
    subject: &Subject,
    limit: Duration,
    task: Task,
    contents: &[Content],
) -> Result<Option<Vec<u8>>, Failure> {
    let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    let request = Request { subject: subject.clone(), limit_ms, task };
    exchange(program, &request, contents).unwrap_or_else(|error| Err(Failure::Helper(error.to_string())))
}

fn exchange(
    program: &Path,
    request: &Request,
    contents: &[Content],
) -> io::Result<Result<Option<Vec<u8>>, Failure>> {
    let mut child = Command::new(program)
        .arg("jvm-helper")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let limit = Duration::from_millis(request.limit_ms).saturating_add(GRACE);
    let watch = Watch::over(&child, limit).inspect_err(|_| {
        let _ = child.kill().and_then(|()| child.wait());
    });
    let _watch = watch?;
    let (mut input, output) = (child.stdin.take(), child.stdout.take());
    let sent = input.as_mut().map_or(Ok(()), |input| send(input, request, contents));
    drop(input);
    let answer = output.map_or_else(|| Err(io::ErrorKind::BrokenPipe.into()), read_answer);
    let status = child.wait()?;
    match (answer, sent) {
        // A child that fails early does not read on; its answer says why.
        (Ok(answer), _) => Ok(answer),
        (Err(_), Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        (Err(error), _) => Err(io::Error::other(format!("it ended with {status}: {error}"))),
    }
}

/// Ends a child that outlives its time. It keeps deadlines of its own, but it acts with the JVM's user, who may have
/// stopped it, and whose file systems may never answer. The watch goes with this value, before or after the child.
struct Watch(Option<mpsc::Sender<()>>);

impl Watch {
    fn over(child: &Child, limit: Duration) -> io::Result<Self> {
        // Taken while the child can't have been waited for: the number stands for no other process.
        let pid =
            processes::as_pid(child.id()).ok_or_else(|| io::Error::other("the helper has no number"))?;
        let child = pidfd_open(pid, PidfdFlags::empty())?;
        let (done, waiting) = mpsc::channel();
        std::thread::Builder::new().name("jvm-helper".into()).spawn(move || {
            if waiting.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = pidfd_send_signal(child, Signal::KILL);
            }
        })?;
        Ok(Self(Some(done)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.take();
    }
}

fn send(mut input: impl Write, request: &Request, contents: &[Content]) -> io::Result<()> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    input.write_all(&line)?;
    for content in contents {
        io::copy(&mut content.open()?.1, &mut input)?;
    }
    input.flush()
}

fn read_answer(output: impl Read) -> io::Result<Result<Option<Vec<u8>>, Failure>> {
    let mut output = BufReader::new(output.take(MAX_ANSWER));
    let mut line = Vec::new();
    output.read_until(b'\n', &mut line)?;
    match serde_json::from_slice(&line)? {
        Header::Failed(failure) => Ok(Err(failure)),
        Header::Done(None) => Ok(Ok(None)),
        Header::Done(Some(length)) => {
            let mut bytes = Vec::new();
            output.read_to_end(&mut bytes)?;
            if bytes.len() as u64 == length {
                Ok(Ok(Some(bytes)))
            } else {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the answer is cut short"))
            }
        }
    }
}

/// What the pieces of `contents` are called and how long they are.
///
/// # Errors
/// Where one can't be read.
pub fn announce(names: &[String], contents: &[Content]) -> io::Result<Vec<Piece>> {
    let piece =
        |(name, content): (&String, &Content)| Ok(Piece { name: name.clone(), length: content.open()?.0 });
    names.iter().zip(contents).map(piece).collect()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, time::Instant};

    use super::*;

    #[test]
    fn a_child_that_its_user_stopped_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("stopped");
        std::fs::write(&program, "#!/bin/sh\nkill -STOP $$\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let identity = Identity::of(std::process::id()).unwrap();
        let subject = Subject { identity, uid: 0, gid: 0, inner_pid: 1, no_signals: None };
        let (begun, task) = (Instant::now(), Task::Remove { dir: "x".into() });
        let answer = exchange(&program, &Request { subject, limit_ms: 0, task }, &[]);
        assert!(answer.is_err() && begun.elapsed() < GRACE * 4, "{answer:?}");
    }
}
