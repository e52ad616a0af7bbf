//! `[component.files]` and `[component.reload]` as they are configured: how a directory is switched, and how those who read
//! it are told. How each is carried out is in `crate::exec` and `crate::reload`.

use std::{path::PathBuf, time::Duration};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::{StatusRange, units::span};

/// How a directory is switched in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SwapMode {
    /// The component's path is a symbolic link to the version. Every version has a directory name of its own, so nothing
    /// that is cached by path outlives a switch. A real directory that is found there first is kept as a version.
    #[default]
    Link,
    /// The component's path stays a real directory, whose place is exchanged with the version's. For programs that follow
    /// no links; needs a file system that can exchange names.
    Exchange,
}

/// `[component.files]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FilesConfig {
    /// How the directory is switched.
    pub swap: SwapMode,
}

/// A signal that asks a program to read its files again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each is the signal it names")]
pub enum ReloadSignal {
    #[default]
    #[serde(rename = "SIGHUP")]
    Hup,
    #[serde(rename = "SIGUSR1")]
    Usr1,
    #[serde(rename = "SIGUSR2")]
    Usr2,
}

impl ReloadSignal {
    /// The kernel's.
    #[must_use]
    pub fn signal(self) -> Signal {
        match self {
            Self::Hup => Signal::HUP,
            Self::Usr1 => Signal::USR1,
            Self::Usr2 => Signal::USR2,
        }
    }

    /// As in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hup => "SIGHUP",
            Self::Usr1 => "SIGUSR1",
            Self::Usr2 => "SIGUSR2",
        }
    }
}

/// A `[component.reload]`: what is done after each switch, forward or back. Its answer is part of the upgrade's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum ReloadConfig {
    /// A signal to one process.
    Signal {
        /// Which signal.
        #[serde(default)]
        signal: ReloadSignal,
        /// Holds the pid of the process. It has to be as old as that process at least; the component's own process,
        /// which the agent supervises, where it is left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid_file: Option<PathBuf>,
        /// How long to look whether the process survives the signal.
        #[serde(default = "a_second", with = "span")]
        settle: Duration,
    },
    /// A program that ends with status 0; what it writes is the answer.
    Exec {
        /// Program and arguments, no shell; `{path}` stands for the component's path.
        command: Vec<String>,
        /// How long it may take.
        #[serde(default = "ten_seconds", with = "span")]
        timeout: Duration,
    },
    /// An HTTP request that is answered as expected; the answer's first line is kept.
    Http {
        /// The method, e.g. `POST`.
        #[serde(default = "post")]
        method: String,
        /// `http://host:port/path`; neither redirects nor proxies are followed.
        url: String,
        /// The status codes that pass.
        #[serde(default)]
        expect: StatusRange,
        /// A text the answer's first 64 KiB have to hold.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        body_contains: Option<String>,
        /// How long it may take.
        #[serde(default = "ten_seconds", with = "span")]
        timeout: Duration,
    },
}

impl ReloadConfig {
    /// As in the file.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Signal { .. } => "signal",
            Self::Exec { .. } => "exec",
            Self::Http { .. } => "http",
        }
    }
}

fn a_second() -> Duration {
    Duration::from_secs(1)
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

fn post() -> String {
    "POST".to_owned()
}
