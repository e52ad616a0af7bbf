//! Lanes for artifacts' bytes: threads with a runtime of their own, each with the artifact service, the same gate
//! as the main listener, and windows and frames for bulk. A lane serves nothing else.
//!
//! Measured: a message of 1 MiB that fits one frame, windows that hold several, and no hop between worker threads
//! reach what TLS alone does (docs/performance.md).

use std::{convert::Infallible, io, thread};

use tokio::{
    runtime::Builder,
    sync::{mpsc, oneshot},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::listen::{HEADERS, PENDING_RESETS, STREAMS, lane_services};
use crate::{
    auth::AuthLayer,
    ops::Operations,
    tls::{Handover, Lanes},
};

/// More threads than processors gain nothing; on a large machine the controller leaves some to others.
const MOST_LANES: usize = 8;
/// Connections that may wait for a lane.
const WAITING: usize = 16;
/// A piece of an artifact, with what is around it, fits one frame; the windows hold several.
const FRAME: u32 = 1024 * 1024 + 4096;
const WINDOW: u32 = 4 * 1024 * 1024;

/// One lane; dropping it cuts what it still serves.
pub(super) struct Lane {
    ended: oneshot::Receiver<()>,
    _cut: tokio_util::sync::DropGuard,
}

impl Lane {
    /// Waits until it has ended, which it does some time after the controller was asked to stop.
    pub(super) async fn ended(self) {
        // Nothing is ever sent: the sender is dropped with the thread.
        let _ = self.ended.await;
    }
}

/// Starts one lane for each processor, which serve until `stop`.
pub(super) fn start(operations: &Operations, stop: &CancellationToken) -> io::Result<(Lanes, Vec<Lane>)> {
    let count = thread::available_parallelism().map_or(1, |count| count.get().min(MOST_LANES));
    let mut doors = Vec::new();
    let mut lanes = Vec::new();
    for _ in 0..count {
        let (door, handed) = mpsc::channel(WAITING);
        let (operations, stop, cut) = (operations.clone(), stop.clone(), CancellationToken::new());
        let (alive, ended) = oneshot::channel();
        let guard = cut.clone().drop_guard();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("bulk".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(handed, operations, stop) => {}
                    () = cut.cancelled() => {}
                }
            });
            drop(alive);
        })?;
        doors.push(door);
        lanes.push(Lane { ended, _cut: guard });
    }
    Ok((Lanes::new(doors), lanes))
}

async fn serve(mut handed: mpsc::Receiver<Handover>, operations: Operations, stop: CancellationToken) {
    let (sender, admitted) = mpsc::channel(WAITING);
    let admitting = tokio::spawn(async move {
        while let Some(connection) = handed.recv().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                if let Some(stream) = connection.finish().await {
                    let _ = sender.send(Ok::<_, Infallible>(stream)).await;
                }
            });
        }
    });
    let server = Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(HEADERS)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .max_frame_size(FRAME)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .layer(AuthLayer)
        .add_routes(lane_services(operations))
        .serve_with_incoming_shutdown(ReceiverStream::new(admitted), stop.cancelled_owned());
    if let Err(error) = server.await {
        tracing::error!(%error, "a lane for artifacts' bytes ended");
    }
    admitting.abort();
}
