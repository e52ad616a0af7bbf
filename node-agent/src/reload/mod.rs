//! Reloads: those who use a component's files are told, once, that they have changed; what they answer is a sentence.
//!
//! A reload asks what the configuration names and nothing else. What follows from the answer is the upgrade
//! machine's.

mod signal;

use std::path::PathBuf;

use tokio::time::timeout;
use upfleet_domain::reason::{Reason, ReasonCode};

use crate::{
    config::ReloadConfig,
    probe::{self, ProbeFailure},
};

/// How many characters of an answer are kept.
const MAX_ANSWER: usize = 500;

/// What a reload has to know about the component.
#[derive(Clone, Debug)]
pub struct ReloadContext {
    /// The component's path, for `{path}`.
    pub path: PathBuf,
    /// The pid of its own process, or why there is none.
    pub process: Result<u32, String>,
}

/// Tells once, and returns what was answered.
///
/// # Errors
/// [`ReasonCode::ReloadFailed`] with the answer, or why there is none.
pub async fn run(reload: &ReloadConfig, context: &ReloadContext) -> Result<String, Reason> {
    let answer = match reload {
        ReloadConfig::Signal { signal, pid_file, settle } => {
            signal::send(*signal, pid_file.as_deref(), *settle, &context.process).await
        }
        ReloadConfig::Exec { command, timeout: limit } => {
            let shown = format!("`{}`", command.join(" "));
            within(
                *limit,
                &shown,
                probe::execute(command, &context.path, context.process.as_ref().ok().copied()),
            )
            .await
        }
        ReloadConfig::Http { method, url, expect, body_contains, timeout: limit } => {
            let shown = format!("{method} {url}");
            let ask = probe::request(method, url, *expect, body_contains.as_deref());
            within(*limit, &shown, ask).await
        }
    };
    let short = |text: String| text.chars().take(MAX_ANSWER).collect::<String>();
    answer.map(short).map_err(|text| Reason::new(ReasonCode::ReloadFailed).with("problem", short(text)))
}

async fn within(
    limit: std::time::Duration,
    shown: &str,
    ask: impl Future<Output = Result<String, ProbeFailure>>,
) -> Result<String, String> {
    match timeout(limit, ask).await {
        Ok(answer) => answer.map_err(|failure| failure.text),
        Err(_) => Err(format!("{shown} gave no answer within {}", humantime::format_duration(limit))),
    }
}

#[cfg(test)]
mod tests;
