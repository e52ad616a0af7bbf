//! Probes: one question to a component, with a time limit and a sentence as the answer.
//!
//! A probe asks once. How many answers in a row count, and what follows from them, is the upgrade machine's.
//! Probes connect to what the configuration names and nowhere else: no redirects, no proxies.

mod exec;
mod grpc;
mod http;

use std::path::PathBuf;

pub(crate) use exec::execute;
pub(crate) use http::request;

use tokio::{net::TcpStream, time::timeout};

use crate::config::{ProbeConfig, ProbeKind};

/// What a probe has to know about the component.
#[derive(Clone, Debug)]
pub struct ProbeContext {
    /// The component's file, for `{path}`.
    pub path: PathBuf,
    /// The pid of its process, or why there is none; for a probe of the unit, what is wrong with that.
    pub process: Result<u32, String>,
    /// Whether that process has said that it is ready, or what to tell people instead.
    pub ready: Result<(), String>,
}

/// Why a probe did not pass: evidence for people, e.g. `GET http://127.0.0.1:9001/healthz answered 503`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct ProbeFailure {
    /// What was asked, and what came back.
    pub text: String,
}

impl ProbeFailure {
    fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }
}

/// Asks once, for at most `probe.timeout`.
///
/// # Errors
/// Where the component does not answer as it should.
pub async fn run(probe: &ProbeConfig, context: &ProbeContext) -> Result<(), ProbeFailure> {
    let answer = async {
        match &probe.kind {
            // What a unit says is asked by whoever makes the context.
            ProbeKind::Process | ProbeKind::Systemd => match &context.process {
                Ok(_) => Ok(()),
                Err(why) => Err(ProbeFailure::new(why.clone())),
            },
            ProbeKind::Notify => match (&context.process, &context.ready) {
                (Ok(_), Ok(())) => Ok(()),
                (Err(why), _) | (_, Err(why)) => Err(ProbeFailure::new(why.clone())),
            },
            ProbeKind::Exec { command } => {
                let pid = context.process.as_ref().ok().copied();
                exec::execute(command, &context.path, pid).await.map(drop)
            }
            ProbeKind::Http { url, expect, body_contains } => {
                http::request("GET", url, *expect, body_contains.as_deref()).await.map(drop)
            }
            ProbeKind::Tcp { address } => match TcpStream::connect(address).await {
                Ok(_) => Ok(()),
                Err(error) => Err(ProbeFailure::new(format!("{}: {error}", question(&probe.kind)))),
            },
            ProbeKind::Grpc { address, service } => grpc::probe(address, service).await,
        }
    };
    timeout(probe.timeout, answer).await.unwrap_or_else(|_| {
        let limit = humantime::format_duration(probe.timeout);
        Err(ProbeFailure::new(format!("{} gave no answer within {limit}", question(&probe.kind))))
    })
}

/// What a probe asks, for people.
#[must_use]
pub fn question(kind: &ProbeKind) -> String {
    match kind {
        ProbeKind::Process => "the process".to_owned(),
        ProbeKind::Systemd => "the unit".to_owned(),
        ProbeKind::Notify => "READY=1".to_owned(),
        ProbeKind::Exec { command } => format!("`{}`", command.join(" ")),
        ProbeKind::Http { url, .. } => format!("GET {url}"),
        ProbeKind::Tcp { address } => format!("connecting to {address}"),
        ProbeKind::Grpc { address, service } if service.is_empty() => format!("gRPC health of {address}"),
        ProbeKind::Grpc { address, service } => format!("gRPC health of `{service}` at {address}"),
    }
}

/// The beginning of what a component said, on one line, for a sentence.
fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match line.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests;
