//! The agent's side of the wire: TLS, the connection, the session and the renewal of the certificate.
//!
//! Only this group of files, and the fetcher of artifacts, sees wire types. Trouble here never touches a
//! component: an agent without its controller keeps what it runs running. No path of the disk is known here.

pub mod connector;
mod expired;
mod facts;
mod jvms;
#[cfg(test)]
mod liars;
mod logs;
mod orders;
mod pump;
mod renewal;
mod session;
#[cfg(test)]
mod tests;
pub mod tls;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use connector::Connector;
pub use expired::renew_expired;
use serde::{Deserialize, Serialize};
pub(crate) use session::told;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use upfleet_domain::{backoff::Backoff, time::Time};

use crate::component::{Handles, Outgoing};

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Serves the node: gets orders, displaces the session before it.
    Serve,
    /// Tries out a new agent: gets no orders, displaces nobody.
    Trial,
}

/// How it stands with the controller, for `upfleet-agent status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Where the controller is.
    pub controller: String,
    /// Whether a session is open.
    pub connected: bool,
    /// Whether all that had to be reported over it is acknowledged.
    #[serde(default)]
    pub reported: bool,
    /// Since when.
    pub since: Time,
    /// Why not, where none is.
    pub problem: Option<String>,
}

impl Link {
    /// Before the first attempt.
    #[must_use]
    pub fn new(controller: &str) -> Self {
        Self {
            controller: controller.to_owned(),
            connected: false,
            reported: false,
            since: now(),
            problem: None,
        }
    }
}

/// All that a session needs beside the components.
#[derive(Clone, Debug)]
pub struct Transport {
    /// The way to the controller.
    pub connector: Connector,
    /// What the sessions are for.
    pub purpose: Purpose,
    /// Told how it stands.
    pub link: watch::Sender<Link>,
    /// Whether somebody waits for the first report: then no wait between two attempts is long.
    pub hurry: bool,
}

/// A session that lived this long was a good one: the next attempt begins with short waits again.
const GOOD_SESSION: Duration = Duration::from_secs(10);

/// The longest wait of an agent whose first report somebody waits for.
const HURRY: Duration = Duration::from_secs(5);

/// Keeps a session open until `shutdown`: connects, serves, and after trouble waits and connects again.
pub async fn run(
    transport: Transport,
    handles: Handles,
    outgoing: mpsc::Receiver<Outgoing>,
    shutdown: CancellationToken,
) {
    let serving = serve_forever(&transport, &handles, outgoing);
    tokio::select! {
        () = serving => {}
        () = shutdown.cancelled() => tracing::debug!("session ends with the agent"),
    }
}

async fn serve_forever(transport: &Transport, handles: &Handles, outgoing: mpsc::Receiver<Outgoing>) {
    // Random per process: the controller tells two agents with one key apart by it.
    let instance = uuid::Uuid::new_v4().to_string();
    let pump = pump::Pump::start(outgoing);
    let (mut attempt, mut hurries) = (0, transport.hurry);
    loop {
        let began = tokio::time::Instant::now();
        let (problem, stopping) = one_session(transport, handles, &instance, &pump).await;
        let was_open = transport.link.send_replace(Link {
            connected: false,
            problem: Some(problem.clone()),
            ..Link::new(transport.connector.address())
        });
        // A controller that says that it stops is being replaced, and will be back soon.
        if stopping || (was_open.connected && began.elapsed() >= GOOD_SESSION) {
            attempt = 0;
        }
        let wait = Backoff::NETWORK.delay(attempt, rand::random());
        hurries &= !was_open.reported;
        let wait = if hurries { wait.min(HURRY) } else { wait };
        let retry_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(problem, retry_ms, "no session with the controller");
        attempt = attempt.saturating_add(1);
        tokio::time::sleep(wait).await;
    }
}

/// One session from its connection to its end; returns why it ended, and whether the controller said that it stops.
async fn one_session(
    transport: &Transport,
    handles: &Handles,
    instance: &str,
    pump: &pump::Pump,
) -> (String, bool) {
    let connector = &transport.connector;
    if connector.identities().current().remaining(now()).is_zero()
        && let Err(reason) = renew_expired(connector.identities()).await
    {
        return (format!("the certificate has expired and could not be renewed: {reason}"), false);
    }
    let channel = match connector.connect().await {
        Ok(channel) => channel,
        Err(error) => return (crate::error::chain(&error), false),
    };
    let session = session::Session { transport, handles, instance };
    let end = session.serve(channel, pump).await;
    (end.to_string(), end.is_stopping())
}

/// How long a session that is only tried may take to open.
const TRIAL: Duration = Duration::from_secs(30);

/// Opens a session that takes no orders and displaces nobody, and ends it once the controller has greeted.
///
/// # Errors
/// Why there is none, as a sentence.
pub async fn trial(connector: &Connector) -> Result<(), String> {
    let tried = async {
        if connector.identities().current().remaining(now()).is_zero() {
            return Err("the certificate has expired".to_owned());
        }
        let channel = connector.connect().await.map_err(|error| crate::error::chain(&error))?;
        session::greet(channel, &uuid::Uuid::new_v4().to_string()).await.map_err(|end| end.to_string())
    };
    let late = |_| format!("the controller did not greet within {} s", TRIAL.as_secs());
    tokio::time::timeout(TRIAL, tried).await.map_err(late)?
}

/// The present, by the node's clock.
#[must_use]
pub fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
