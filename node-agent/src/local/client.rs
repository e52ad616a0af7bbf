//! The commands' side of the socket.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Answer, Answered, Asked, Request, VERSION, socket_path};

/// What the agent needs to say it, beyond the time that the request itself may take.
const SLACK: Duration = Duration::from_secs(5);
/// No answer is longer, in bytes.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;

/// Why the agent can't be asked. For the operator of the node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// Nobody listens.
    #[error("the agent is not running: nobody listens at `{0}`")]
    NotRunning(PathBuf),
    /// Another user's.
    #[error("this user may not talk to the agent at `{0}`")]
    NotPermitted(PathBuf),
    /// The connection broke.
    #[error("could not talk to the agent at `{path}`")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It speaks another version of the protocol.
    #[error("the agent's answer can't be read; it may be of another version")]
    Version,
}

/// Asks the agent whose sockets are in `run_dir`.
///
/// # Errors
/// [`LocalError`].
pub fn call(run_dir: &Path, request: Request) -> Result<Answer, LocalError> {
    let path = socket_path(run_dir);
    let line = ask(&path, request).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => LocalError::NotRunning(path.clone()),
        io::ErrorKind::PermissionDenied => LocalError::NotPermitted(path.clone()),
        _ => LocalError::Io { path, source },
    })?;
    let answered: Answered = serde_json::from_str(&line).map_err(|_| LocalError::Version)?;
    Ok(answered.answer)
}

fn ask(path: &Path, request: Request) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(request.patience() + SLACK))?;
    stream.set_write_timeout(Some(SLACK))?;
    let mut line = serde_json::to_string(&Asked { v: VERSION, request })?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_ANSWER)).read_line(&mut answer)?;
    Ok(answer)
}
