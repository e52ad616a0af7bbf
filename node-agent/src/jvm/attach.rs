//! Attaching to a HotSpot JVM by its own protocol, without any external program.
//!
//! Says what goes to which JVM and what the answer means; the files, the signal and the socket are the helper's
//! work (see [`super::helper`]), which acts with the JVM's own user.

mod deadline;
mod failure;
pub mod handshake;
pub mod wire;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use upfleet_domain::reason::Reason;

pub use deadline::Deadline;
pub use failure::Failure;
pub use wire::Reply;

use super::{
    discover::Seen,
    helper::{self, Subject, Task},
    process::{self, Mapped},
};
use crate::processes::Identity;

/// How long attaching and one command may take unless the caller says otherwise.
pub const LIMIT: Duration = Duration::from_secs(15);

/// A JVM that may be attached to, told from every other process.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its process as the node sees it, its effective user and group, and its pid in its own namespace.
    pub subject: Subject,
    /// Why it will never be attached to, where its options or its kind say so.
    pub obstacle: Option<Failure>,
    /// The program whose `jvm-helper` acts.
    program: PathBuf,
}

impl Target {
    /// The JVM that has `pid` now. Nothing is sent to it.
    ///
    /// # Errors
    /// `ATTACH_REFUSED` or `ATTACH_FAILED` where there is no such process, or it is not a JVM.
    pub fn of(pid: u32) -> Result<Self, Reason> {
        Self::find(pid).map_err(|failure| failure.reason(pid))
    }

    /// As [`Target::of`], for exactly this process.
    ///
    /// # Errors
    /// As [`Target::of`], also where the pid belongs to another process by now.
    pub fn planned(identity: &Identity) -> Result<Self, Reason> {
        let target = Self::of(identity.pid)?;
        if target.subject.identity == *identity { Ok(target) } else { Err(target.reason(&Failure::Gone)) }
    }

    /// Another program than this process's own provides the helper.
    #[must_use]
    pub fn with_helper(mut self, program: &Path) -> Self {
        program.clone_into(&mut self.program);
        self
    }

    /// Its process id as the node sees it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.subject.identity.pid
    }

    /// The program that provides the helper.
    #[must_use]
    pub fn helper(&self) -> &Path {
        &self.program
    }

    /// A failure of this JVM as users see it.
    #[must_use]
    pub fn reason(&self, failure: &Failure) -> Reason {
        failure.reason(self.pid())
    }

    fn find(pid: u32) -> Result<Self, Failure> {
        let program = helper::own_program();
        let mapped = process::mapped(pid);
        let Some(seen) = Seen::new(pid, mapped.clone(), &program) else { return Err(Failure::Gone) };
        let obstacle = match mapped {
            Some(Mapped::OpenJ9(_)) => Some(Failure::OpenJ9),
            None if !process::is_launcher(pid) && seen.subject.identity.is_running() => {
                return Err(Failure::NotAJvm);
            }
            _ => seen.started.forbids_attaching().map(Failure::Disabled),
        };
        // After all that was read by the pid: it was all of one process.
        if !seen.subject.identity.is_running() {
            return Err(Failure::Gone);
        }
        Ok(Self { subject: seen.subject, obstacle, program })
    }

    /// Sends `words`, a command and its arguments; the answer may say that it failed.
    ///
    /// # Errors
    /// Where the JVM can't be asked or does not answer.
    pub async fn ask(&self, words: &[&str], limit: Duration) -> Result<Reply, Failure> {
        if let Some(obstacle) = &self.obstacle {
            return Err(obstacle.clone());
        }
        wire::version_for(words)?;
        let task = Task::Attach { words: words.iter().map(|word| (*word).to_owned()).collect() };
        let answer = helper::call(&self.program, &self.subject, limit, task).await?;
        wire::reply(&answer.unwrap_or_default())
    }
}

/// Loads the Java agent `jar` into a running JVM, and answers once its `agentmain` has returned. `jar`, and every
/// path in `options`, is as the JVM sees it: see [`super::Workspace`]. Keep `options` short: a JVM of the first
/// protocol version takes 1024 bytes for both together.
///
/// A JVM that did not answer in time may load the agent later: remove the jar, and it will find nothing to load.
///
/// # Errors
/// A reason for each way in which it can fail, where nothing was loaded or the agent itself failed.
pub async fn load(jvm: &Target, jar: &str, options: &str, limit: Duration) -> Result<(), Reason> {
    let argument = if options.is_empty() { jar.to_owned() } else { format!("{jar}={options}") };
    let asked = jvm.ask(&["load", "instrument", "false", &argument], limit).await;
    asked.and_then(|reply| wire::loaded(&reply)).map_err(|failure| jvm.reason(&failure))
}

/// Asks the JVM's attach listener: `getversion`, `properties`, `jcmd …`.
///
/// # Errors
/// Where the JVM can't be asked, does not answer, or answers with an error.
pub async fn command(jvm: &Target, words: &[&str], limit: Duration) -> Result<Reply, Reason> {
    let refused = |reply: Reply| Failure::Answer { code: reply.code, text: wire::excerpt(&reply.text) };
    match jvm.ask(words, limit).await {
        Ok(reply) if reply.code == 0 => Ok(reply),
        Ok(reply) => Err(jvm.reason(&refused(reply))),
        Err(failure) => Err(jvm.reason(&failure)),
    }
}
