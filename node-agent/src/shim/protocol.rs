//! What is said over a shim's socket: one JSON object per line, each with the protocol's version.
//!
//! A shim outlives the agent that started it, so both sides may be of different versions. A request of an
//! unknown version is answered with the versions the shim knows; fields that one side does not know are
//! passed over. Nothing here does input or output.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use upfleet_domain::{digest::Digest, time::Time};

use super::{notify::Notified, spec::Launch};
use crate::processes::Identity;

/// The versions this code speaks. From 2 on a shim keeps sockets and can run a process beside another.
pub const VERSIONS: &[u32] = &[1, 2];
/// The version in use, unless what is asked for needs a later one.
pub const VERSION: u32 = 1;
/// The first version with sockets and handover.
pub const HANDOVER: u32 = 2;
/// The longest request, in bytes.
pub const MAX_REQUEST: usize = 256 * 1024;
/// The longest answer a client reads, in bytes.
pub const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// The socket's name in the shim's directory.
pub const SOCKET: &str = "sock";

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// Who is there.
    Hello,
    /// Start the process, or say that just this one runs already.
    Start {
        /// What to run.
        launch: Box<Launch>,
    },
    /// From the next start on, run this; the process that runs stays, and is said to be of the new stack.
    Replace {
        /// What to run.
        launch: Box<Launch>,
    },
    /// Stop it and keep it stopped.
    Stop,
    /// How it stands.
    State,
    /// The last lines of its output.
    Tail {
        /// At most this many.
        lines: usize,
        /// Only those since the last `start`.
        #[serde(default)]
        this_launch: bool,
    },
    /// Its output and its exits from now on, until the client hangs up.
    Follow,
    /// Stop it and end the shim.
    Shutdown,
    /// How the process and the one beside it stand. Since version 2, as is all that follows.
    Both,
    /// Start a process beside the one that runs, on the same sockets.
    StartBeside {
        /// What to run.
        launch: Box<Launch>,
    },
    /// Make the process beside the current one the current one, and ask the other to finish and end. Answered at once:
    /// whether that has ended is in [`Both::draining`]. Where nothing stands beside it is done; refused once what stood
    /// there was dismissed.
    Drain,
    /// End the process beside the current one, which stays. Where nothing stands beside it is done.
    Dismiss,
}

impl Op {
    /// The first version of the protocol that has it.
    #[must_use]
    pub fn version(&self) -> u32 {
        match self {
            Self::Both | Self::StartBeside { .. } | Self::Drain | Self::Dismiss => HANDOVER,
            Self::Start { launch } | Self::Replace { launch } if launch.needs_sockets() => HANDOVER,
            _ => VERSION,
        }
    }
}

/// A request.
#[derive(Clone, Debug, Serialize)]
pub struct Request {
    /// The protocol's version.
    pub v: u32,
    /// What is asked for.
    #[serde(flatten)]
    pub op: Op,
}

/// An answer, or an event of `follow`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The protocol's version.
    pub v: u32,
    /// What was asked for, or why not.
    #[serde(flatten)]
    pub body: Body,
}

impl Answer {
    /// In the version in use.
    #[must_use]
    pub fn new(body: Body) -> Self {
        Self { v: VERSION, body }
    }
}

/// An answer without its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// To `hello`.
    Hello(Hello),
    /// To `start`, `replace`, `stop`, `state`, `shutdown`.
    State(ProcessState),
    /// To `tail`.
    Lines(Vec<String>),
    /// To `both`, `start_beside`, `drain`, `dismiss`.
    Both(Box<Both>),
    /// During `follow`.
    Event(Event),
    /// It could not be done.
    Error(ProtocolError),
}

/// How the process stands, and the one beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Both {
    /// The current one: what is started again when it ends.
    pub current: ProcessState,
    /// The one beside it, which is not started again when it ends; none where nothing was started beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<ProcessState>,
    /// Those that were asked to finish and have not ended, by process id; without any that not even SIGKILL ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub draining: Vec<u32>,
}

/// Who serves the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The versions of the protocol it knows.
    pub versions: Vec<u32>,
    /// The version of the program it was started from.
    pub program: String,
    /// The shim's own process.
    pub process: Identity,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolError {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// The versions the shim knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub versions: Vec<u32>,
}

/// The kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// Not a request.
    Malformed,
    /// Longer than [`MAX_REQUEST`].
    TooLong,
    /// Of a version that is not known.
    UnknownVersion,
    /// Too many connections.
    Busy,
    /// Another process runs, or the shim is about to end.
    WrongState,
    /// What runs can't have a process beside it.
    CantStandBeside,
    /// What stood beside, and was to take over, has ended.
    BesideEnded,
    /// The process could not be started.
    StartFailed,
    /// The component's file is not the expected one.
    DigestMismatch,
    /// The process could not be stopped.
    StopFailed,
    /// The shim can't write its own directory.
    Storage,
    /// A code this version does not know.
    #[serde(other)]
    Other,
}

/// A process that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// The process id.
    pub pid: u32,
    /// When it was started, in clock ticks since the boot.
    pub start_time: u64,
    /// The boot those ticks count from.
    pub boot_id: String,
    /// SHA-256 of what runs: of the executed file where that is the component's file, otherwise (a script, a
    /// jar) of the component's file at the time of the launch.
    pub digest: Digest,
    /// Whether the kernel confirms the digest: the executed file is the component's file.
    pub exact: bool,
    /// The stack it was started with, or has been brought to since; none for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<Digest>,
    /// Since when.
    pub since: Time,
    /// How often it was restarted since the last `start`.
    pub restarts: u32,
    /// The names of the sockets it was given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<String>,
    /// What it has said of itself, where it was told where to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notified: Option<Notified>,
}

impl ProcessInfo {
    /// Whether it has said that it is ready, or what to tell people instead.
    ///
    /// # Errors
    /// A sentence.
    pub fn ready(&self) -> Result<(), String> {
        // It was started before its configuration asked for that: nothing can be said against it.
        let Some(said) = &self.notified else { return Ok(()) };
        let status =
            if said.status.is_empty() { String::new() } else { format!("; it says `{}`", said.status) };
        match said {
            Notified { stopping: true, .. } => {
                Err(format!("process {} has said STOPPING=1{status}", self.pid))
            }
            Notified { ready: true, .. } => Ok(()),
            _ => Err(format!("process {} has not said READY=1{status}", self.pid)),
        }
    }

    /// The process as it can be told from all others.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity { boot_id: self.boot_id.clone(), pid: self.pid, start_time: self.start_time }
    }
}

/// How the process stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ProcessState {
    /// It runs.
    Running(ProcessInfo),
    /// It was asked to end.
    Stopping(ProcessInfo),
    /// It does not run and is not wanted to.
    Stopped {
        /// How it ended last.
        last_exit: Option<ExitRecord>,
    },
    /// It ended by itself and is started again later.
    BackOff {
        /// How it ended last.
        last_exit: Option<ExitRecord>,
        /// How often it was restarted since the last `start`.
        restarts: u32,
        /// When it is started again.
        until: Time,
        /// Why the last attempt to start it failed, if it did.
        problem: Option<String>,
    },
    /// Its unit has no process. Never said by a shim.
    Down {
        /// How the process ended, as far as systemd says.
        exit: String,
        /// What is wrong, as a sentence.
        problem: String,
    },
    /// Nothing is run: the component is a file that others read. Never said by a shim.
    NotRun,
}

impl ProcessState {
    /// The process, where one runs.
    #[must_use]
    pub fn running(&self) -> Option<&ProcessInfo> {
        match self {
            Self::Running(info) | Self::Stopping(info) => Some(info),
            Self::Stopped { .. } | Self::BackOff { .. } | Self::Down { .. } | Self::NotRun => None,
        }
    }

    /// The process id where it is up, otherwise what to tell people instead.
    ///
    /// # Errors
    /// A text such as `the process ended with exit status 1 after 20ms`.
    pub fn up(&self) -> Result<u32, String> {
        match self {
            Self::Running(info) => Ok(info.pid),
            Self::Stopping(info) => Err(format!("process {} is being stopped", info.pid)),
            Self::NotRun => Err("there is no process".to_owned()),
            Self::Down { problem, .. } => Err(problem.clone()),
            Self::BackOff { problem: Some(problem), .. } => Err(problem.clone()),
            Self::Stopped { last_exit: None } | Self::BackOff { last_exit: None, .. } => {
                Err("the process was not started".to_owned())
            }
            Self::Stopped { last_exit: Some(exit) } | Self::BackOff { last_exit: Some(exit), .. } => {
                let after = humantime::format_duration(Duration::from_millis(exit.ran_ms));
                Err(format!("the process ended with {exit} after {after}"))
            }
        }
    }

    /// How it ended last, where it does not run.
    #[must_use]
    pub fn last_exit(&self) -> Option<&ExitRecord> {
        match self {
            Self::Stopped { last_exit } | Self::BackOff { last_exit, .. } => last_exit.as_ref(),
            Self::Running(_) | Self::Stopping(_) | Self::Down { .. } | Self::NotRun => None,
        }
    }
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Its process id.
    pub pid: u32,
    /// SHA-256 of what it ran.
    pub digest: Digest,
    /// Its exit status, where it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// When it ended.
    pub at: Time,
    /// How long it ran, in milliseconds.
    pub ran_ms: u64,
    /// Whether it was asked to.
    pub requested: bool,
    /// Whether it had to be killed because it did not end in time.
    pub killed: bool,
}

impl fmt::Display for ExitRecord {
    /// `exit status 1` or `signal 11`, as evidence shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit status {code}"),
            (None, Some(signal)) => write!(f, "signal {signal}"),
            (None, None) => write!(f, "an unknown exit status"),
        }?;
        if self.killed { write!(f, " (killed: it did not end in time)") } else { Ok(()) }
    }
}

/// Something that happened while a client follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A line of output.
    Line {
        /// `false` for standard output, `true` for standard error.
        stderr: bool,
        /// The line without its end.
        text: String,
    },
    /// A process was started.
    Started(ProcessInfo),
    /// The process ended.
    Exited(ExitRecord),
    /// The client was too slow: so many events were left out here.
    Missed {
        /// How many.
        events: u64,
    },
}

/// Reads a request.
///
/// # Errors
/// What to answer instead.
pub fn parse_request(line: &[u8]) -> Result<Op, ProtocolError> {
    #[derive(Deserialize)]
    struct Versioned {
        v: u32,
    }
    let malformed = |error: serde_json::Error| ProtocolError {
        code: ErrorCode::Malformed,
        message: format!("not a request: {error}"),
        versions: VERSIONS.to_vec(),
    };
    // The version first: a newer request may have any shape but this.
    let Versioned { v } = serde_json::from_slice(line).map_err(malformed)?;
    if !VERSIONS.contains(&v) {
        return Err(ProtocolError {
            code: ErrorCode::UnknownVersion,
            message: format!("version {v} of the protocol is not known"),
            versions: VERSIONS.to_vec(),
        });
    }
    serde_json::from_slice(line).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_plain_json() {
        let request = Request { v: 1, op: Op::Tail { lines: 5, this_launch: false } };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"v":1,"op":"tail","lines":5,"this_launch":false}"#);
        assert_eq!(parse_request(text.as_bytes()), Ok(request.op));
        assert_eq!(parse_request(br#"{"v":1,"op":"stop","novel":[1]}"#), Ok(Op::Stop));
    }

    #[test]
    fn an_unknown_version_is_told_the_known_ones() {
        let error = parse_request(br#"{"v":7,"op":{"novel":"shape"}}"#).unwrap_err();
        assert_eq!((error.code, error.versions.as_slice()), (ErrorCode::UnknownVersion, VERSIONS));
    }

    #[test]
    fn anything_else_is_malformed() {
        for line in
            ["", "{", "[]", "{}", r#"{"v":"1"}"#, r#"{"v":1}"#, r#"{"v":1,"op":"reboot"}"#, "\u{0}\u{1}"]
        {
            assert_eq!(parse_request(line.as_bytes()).unwrap_err().code, ErrorCode::Malformed, "{line:?}");
        }
    }

    #[test]
    fn answers_come_back_as_they_were() {
        for body in [
            Body::State(ProcessState::Stopped { last_exit: None }),
            Body::Lines(vec!["a".into()]),
            Body::Event(Event::Missed { events: 3 }),
        ] {
            let text = serde_json::to_string(&Answer::new(body.clone())).unwrap();
            assert_eq!(serde_json::from_str::<Answer>(&text).unwrap().body, body, "{text}");
        }
        let novel = r#"{"v":1,"error":{"code":"novel","message":"m"}}"#;
        let Body::Error(error) = serde_json::from_str::<Answer>(novel).unwrap().body else { panic!() };
        assert_eq!(error.code, ErrorCode::Other);
    }
}
