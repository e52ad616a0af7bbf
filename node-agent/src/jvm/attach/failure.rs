//! Why a JVM could not be attached to: one variant for each cause that can be told apart. Says what to do.

use serde::{Deserialize, Serialize};
use upfleet_domain::reason::{Reason, ReasonCode};

/// Why attaching, or what was asked by it, came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The process is not there any more, or its number belongs to another one now.
    #[error("the process has ended, or its number belongs to another one now; no signal was sent")]
    Gone,
    /// It is no JVM. It was not touched.
    #[error("it is not a JVM; no signal was sent")]
    NotAJvm,
    /// OpenJ9 is attached to in another way.
    #[error("it is an OpenJ9 JVM, which is attached to in another way; patch it by a restart")]
    OpenJ9,
    /// Its options forbid it.
    #[error("it is started with {0}; patch it by a restart, or take the option out")]
    Disabled(String),
    /// With `-Xrs` the JVM does not listen for the signal, and would die of it.
    #[error(
        "it is started with {0} and does not listen yet; add -XX:+StartAttachListener, or patch it by a restart"
    )]
    NoSignals(String),
    /// It did not get as far as catching SIGQUIT.
    #[error("it did not finish starting within {seconds} s; no signal was sent")]
    NotReady {
        /// How long it was waited for.
        seconds: u64,
    },
    /// It was asked to listen and does not.
    #[error("it was asked to listen and does not after {seconds} s; its log may hold a thread dump")]
    Silent {
        /// How long it was waited for.
        seconds: u64,
    },
    /// A file that the protocol needs can't be had, or is not what it should be.
    #[error("{0}")]
    Files(String),
    /// The helper may not act as the JVM's user.
    #[error("the agent can't act as the JVM's user: {0}; run the agent as root, or as that user")]
    Privileges(String),
    /// What is to be asked does not fit into a request of this JVM.
    #[error("the request is too long for this JVM: {actual} bytes, at most {max}")]
    TooLong {
        /// How long it is.
        actual: usize,
        /// How long it may be.
        max: usize,
    },
    /// A request can't hold these bytes.
    #[error("a request can't hold a zero byte")]
    ZeroByte,
    /// The JVM listens, but did not answer in time.
    #[error("it did not answer within {seconds} s; its one attach listener may be busy")]
    Timeout {
        /// How long it was waited for.
        seconds: u64,
    },
    /// The JVM closed the connection without a word.
    #[error(
        "it closed the connection without an answer, as it does for another user's or an overlong request"
    )]
    NoAnswer,
    /// The JVM speaks another version of the protocol.
    #[error("it does not know this version of the attach protocol")]
    Version,
    /// The answer could not be understood.
    #[error("its answer could not be understood: {0}")]
    Garbled(String),
    /// The JVM refused the request, in its own words.
    #[error("it answered {code}: {text}")]
    Answer {
        /// The first line.
        code: i32,
        /// The rest.
        text: String,
    },
    /// Java agents may not be loaded into it while it runs.
    #[error("it forbids to load a Java agent while it runs; start it with -XX:+EnableDynamicAgentLoading")]
    LoadingForbidden,
    /// It did not find the jar, or the jar names no agent class.
    #[error("it could not open the jar, or the jar names no Agent-Class (return code 100)")]
    BadJar,
    /// The agent's class is not in the jar.
    #[error("the agent's class is not on its class path (return code 101)")]
    NotOnClassPath,
    /// The agent threw.
    #[error("the agent failed in it (return code 102); its standard error has the stack trace")]
    AgentThrew,
    /// Another return code.
    #[error("the agent could not be loaded (return code {0})")]
    LoadFailed(i32),
    /// The helper process itself failed.
    #[error("the agent's helper process failed: {0}")]
    Helper(String),
}

impl Failure {
    /// As users see it.
    #[must_use]
    pub fn reason(&self, pid: u32) -> Reason {
        Reason::new(self.code()).with("pid", pid).with("problem", self)
    }

    fn code(&self) -> ReasonCode {
        match self {
            Self::NotReady { .. } => ReasonCode::JvmNotReady,
            Self::NotAJvm
            | Self::OpenJ9
            | Self::Disabled(_)
            | Self::NoSignals(_)
            | Self::Files(_)
            | Self::Privileges(_)
            | Self::LoadingForbidden => ReasonCode::AttachRefused,
            _ => ReasonCode::AttachFailed,
        }
    }
}
