//! Logs: JSON lines on standard error. Secrets never reach them; a test looks for canaries.

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For machines.
    Json,
    /// For people.
    Text,
}

/// Begins to log; `UPFLEET_LOG` filters (e.g. `debug` or `upfleet_controller::tls=debug`), `info` where unset.
/// Does nothing where something logs already.
pub fn start_logs(format: LogFormat) {
    let filter = EnvFilter::try_from_env("UPFLEET_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_writer(std::io::stderr);
    // A second call, as in tests, changes nothing.
    let _ = match format {
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
        LogFormat::Text => registry.with(lines).try_init(),
    };
}
