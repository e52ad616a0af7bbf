//! `upfleet serve`: puts the controller together, and takes it apart in order.
//!
//! Nothing is decided here. What runs: three listeners, the lanes for artifacts' bytes, the sessions' dispatcher, the engine, and the keepers
//! of certificates, revocations and artifacts.

mod bulk;
mod config;
mod http;
mod keep;
mod listen;
mod logs;
mod notify;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub use config::{Config, ConfigError};
pub use logs::{LogFormat, start_logs};

use crate::{
    blobs::{BlobError, Blobs, Limits},
    ca::{Ca, CaError},
    clock::Clock,
    engine::Engine,
    files::{self, FileError},
    init::DataDir,
    ops::{Attempts, Operations},
    sessions::Sessions,
    store::{Change, Store, StoreError, sqlite::SqliteStore},
    tls::{self, Certificates, Door, Live, StoreTrust, TlsError},
};

/// How long calls under way may take once the controller is asked to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// What the command line says; it goes before the configuration file.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data directory.
    pub data: DataDir,
    /// The main listener.
    pub api: Option<SocketAddr>,
    /// The enrollment listener.
    pub enroll: Option<SocketAddr>,
    /// The listener for metrics and health.
    pub metrics: Option<SocketAddr>,
}

/// Where a running controller listens, as `run/endpoints.json` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// The main listener.
    pub api: SocketAddr,
    /// The enrollment listener.
    pub enroll: SocketAddr,
    /// The listener for metrics and health.
    pub metrics: SocketAddr,
}

/// Why a controller can't run. All are the operator's to mend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no controller in the data directory.
    #[error("could not find a controller in `{0}`; `upfleet init` makes one")]
    NotInitialised(String),
    /// A file can't be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The authority can't be used.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The certificate can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The store can't be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The artifacts can't be opened.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// A part of it ended by itself while it ran; the log says which.
    #[error("could not go on: a part of the controller ended by itself")]
    PartEnded,
    /// A thread can't be started.
    #[error("could not start a thread")]
    Thread(#[source] std::io::Error),
    /// An address can't be listened on.
    #[error("could not listen on `{address}`")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// A controller that runs.
pub struct Running {
    /// Where it listens.
    pub endpoints: Endpoints,
    /// Its operations, for other doors and for tests.
    pub operations: Operations,
    engine: Engine,
    store: Arc<SqliteStore>,
    data: DataDir,
    live: Live,
    strangers: Live,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Running {
    /// Stops it: no new connections, sessions end, calls under way may finish for ten seconds.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let drained = tokio::time::timeout(DRAIN, async { while self.tasks.join_next().await.is_some() {} });
        if drained.await.is_err() {
            tracing::warn!("cuts the calls that did not end in time");
            self.live.cut_all();
            self.strangers.cut_all();
            self.tasks.shutdown().await;
        }
        self.store.close().await;
        // The next start writes it anew; a leftover only misleads.
        let _ = std::fs::remove_file(self.data.run().join("endpoints.json"));
        tracing::info!("stopped");
    }

    /// Waits until a part of it ends by itself, which none should.
    pub async fn failed(&mut self) {
        if self.tasks.join_next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Starts a controller.
///
/// # Errors
/// [`ServeError`]; nothing is left running then.
pub async fn start(options: &Options, clock: Clock) -> Result<Running, ServeError> {
    let data = &options.data;
    if !data.ca().join("ca.key").exists() {
        return Err(ServeError::NotInitialised(data.0.display().to_string()));
    }
    let config = Config::load(&data.config())?.with(options);
    let store = Arc::new(SqliteStore::open_existing(&data.0).await?);
    let ca = Arc::new(Ca::load(&data.ca())?);
    if let Some(issued) = tls::mend(&ca, &data.tls(), clock.now())? {
        store.commit(vec![tls::record(&issued)]).await?;
    }
    let certificates = Arc::new(Certificates::load(&data.tls(), ca.clone())?);
    // Whatever was open ended with the controller before.
    store.commit(vec![Change::CloseAllSessions]).await?;
    let blobs = Blobs::open(&data.artifacts(), Limits::default())?;

    let api = bind(config.api).await?;
    let enroll = bind(config.enroll).await?;
    let metrics = bind(config.metrics).await?;
    let endpoints = Endpoints { api: local(&api)?, enroll: local(&enroll)?, metrics: local(&metrics)? };
    let stop = CancellationToken::new();
    let shared: Arc<dyn Store> = store.clone();
    let sessions = Sessions::new(shared.clone(), ca.clone(), clock.clone(), stop.clone());
    let operations = Operations {
        store: shared.clone(),
        blobs,
        ca,
        clock: clock.clone(),
        sessions,
        doors: config.doors(&endpoints),
        attempts: Arc::new(Attempts::default()),
        downloaded: Arc::default(),
    };
    let (live, strangers) = (Live::default(), Live::default());
    let (lanes, bulk) = bulk::start(&operations, &stop).map_err(ServeError::Thread)?;
    let trust = Arc::new(StoreTrust::new(shared.clone(), clock.clone()));
    let doors = listen::Doors {
        api: Door {
            config: certificates.api.clone(),
            trust: Some(trust),
            live: live.clone(),
            bulk: Some(lanes),
        },
        enroll: Door {
            config: certificates.enroll.clone(),
            trust: None,
            live: strangers.clone(),
            bulk: None,
        },
    };
    let mut tasks = JoinSet::new();
    bulk.into_iter().for_each(|lane| drop(tasks.spawn(lane.ended())));
    tasks.spawn(listen::api(api, doors.api, operations.clone(), stop.clone()));
    tasks.spawn(listen::enroll(enroll, doors.enroll, operations.clone(), stop.clone()));
    tasks.spawn(http::serve(metrics, operations.clone(), live.clone(), certificates.clone(), stop.clone()));
    tasks.spawn(operations.sessions.clone().run());
    // One controller drives all rollouts, so that leases have no holder.
    let engine = Engine::new(shared.clone(), clock.clone(), None, stop.clone());
    tasks.spawn(engine.clone().run());
    tasks.spawn(tls::cut_refused(shared.clone(), live.clone(), clock.clone(), stop.clone()));
    tasks.spawn(tls::keep_renewed(certificates, shared, clock, stop.clone()));
    tasks.spawn(keep::house(operations.clone(), stop.clone()));

    publish(data, &endpoints)?;
    tracing::info!(api = %endpoints.api, enroll = %endpoints.enroll, metrics = %endpoints.metrics, "serving");
    Ok(Running { endpoints, operations, engine, store, data: data.clone(), live, strangers, stop, tasks })
}

/// Runs a controller until SIGTERM or SIGINT.
///
/// # Errors
/// [`ServeError`] where it can't start, or where a part of it ends by itself: whoever keeps it running must see that.
pub async fn run(options: &Options) -> Result<(), ServeError> {
    let mut running = start(options, Clock::steady()).await?;
    let telling = notify::tell(running.operations.clone(), running.engine.clone());
    let outcome = tokio::select! {
        () = asked_to_stop() => Ok(()),
        () = running.failed() => Err(ServeError::PartEnded),
    };
    match &outcome {
        Ok(()) => tracing::info!("asked to stop"),
        Err(_) => tracing::error!("a part of the controller ended; stops"),
    }
    telling.abort();
    notify::stopping();
    running.stop().await;
    outcome
}

async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without handlers the signals end the process at once, which the store survives.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })
}

fn local(listener: &TcpListener) -> Result<SocketAddr, ServeError> {
    let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
    listener.local_addr().map_err(|source| ServeError::Listen { address: unknown, source })
}

/// Tells others on this machine where it listens, once it does.
fn publish(data: &DataDir, endpoints: &Endpoints) -> Result<(), ServeError> {
    files::private_dir(&data.run())?;
    let json = serde_json::to_vec(endpoints).expect("three addresses have a JSON form");
    Ok(files::write(&data.run().join("endpoints.json"), &json, files::PUBLIC)?)
}

#[cfg(test)]
mod tests;
