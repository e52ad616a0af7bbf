//! Plain HTTP for machines on this host: `/metrics`, `/livez`, `/readyz`. It shows numbers and no names.

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    ops::Operations,
    tls::{Certificates, Live},
};

/// How long the store may take to answer before the controller counts as not ready.
const READY: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Shown {
    operations: Operations,
    live: Live,
    certificates: Arc<Certificates>,
    stop: CancellationToken,
}

pub(super) async fn serve(
    listener: TcpListener,
    operations: Operations,
    live: Live,
    certificates: Arc<Certificates>,
    stop: CancellationToken,
) {
    let shown = Shown { operations, live, certificates, stop: stop.clone() };
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(shown);
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "the listener for metrics ended");
    }
}

async fn ready(State(shown): State<Shown>) -> (StatusCode, String) {
    if shown.stop.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned());
    }
    match tokio::time::timeout(READY, shown.operations.store.probe()).await {
        Ok(Ok(())) => (StatusCode::OK, ready_text(shown.operations.clock.step())),
        Ok(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("store: {error}\n")),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "store: no answer within 2 seconds\n".to_owned()),
    }
}

/// Ready all the same where the clock was set: nothing that runs depends on it.
fn ready_text(step: i64) -> String {
    match step {
        0 => "ok\n".to_owned(),
        step => format!("ok\nclock: the system's clock was set by {} s and is not followed\n", step / 1000),
    }
}

async fn metrics(State(shown): State<Shown>) -> (StatusCode, [(&'static str, &'static str); 1], String) {
    const TYPE: [(&str, &str); 1] =
        [("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    let expires = shown.certificates.expires().0 / 1000;
    match crate::metrics::page(&shown.operations, &shown.live, expires).await {
        Ok(page) => (StatusCode::OK, TYPE, page),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, TYPE, format!("# {error}\n")),
    }
}
