//! Logs to standard error: for people on a terminal, as JSON for machines.

use std::{env, io::IsTerminal as _};

use tracing::Level;
use tracing_subscriber::{
    Layer as _, filter::Targets, fmt, layer::SubscriberExt as _, registry, util::SubscriberInitExt as _,
};

use super::LogFormat;

/// Begins logging. `UPFLEET_LOG` chooses what is logged, e.g. `debug` or `upfleet_agent::transport=trace`; where it is
/// unset, `RUST_LOG` does.
pub(super) fn begin(format: Option<LogFormat>) {
    let terminal = std::io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let layer = fmt::layer().with_writer(std::io::stderr);
    let layer = match format {
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
        LogFormat::Text => layer.with_ansi(terminal).with_target(false).boxed(),
    };
    // An error means that a test has begun logging before.
    let _ = registry().with(layer.with_filter(filter())).try_init();
}

/// By target and level only: filters by fields would bring regular expressions into a program that is to stay small.
fn filter() -> Targets {
    let chosen = ["UPFLEET_LOG", "RUST_LOG"].into_iter().find_map(|name| env::var(name).ok()?.parse().ok());
    chosen.unwrap_or_else(|| Targets::new().with_default(Level::INFO))
}
