//! A thread with a runtime of its own for each download, so that its bytes hop between no worker threads and
//! hold up nobody else's work.

use std::future::Future;

use tokio::{runtime::Builder, sync::oneshot};
use tokio_util::sync::CancellationToken;

/// Runs `work` to its end on a thread of its own, and returns what it gives; `None` where there is no thread
/// to be had or the work panicked. Dropping the future cancels the work at its next await.
pub(super) async fn run<T, F>(work: impl FnOnce() -> F + Send + 'static) -> Option<T>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let cancel = CancellationToken::new();
    let _guard = cancel.clone().drop_guard();
    let (answer, answered) = oneshot::channel();
    let thread = std::thread::Builder::new().name("download".into()).spawn(move || {
        let runtime = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "no runtime for a download"),
        };
        runtime.block_on(async {
            tokio::select! {
                done = work() => drop(answer.send(done)),
                () = cancel.cancelled() => {}
            }
        });
        // The last write may still be on its way; the lock of the file makes the next download wait for it.
    });
    match thread {
        Ok(_) => answered.await.ok(),
        Err(error) => {
            tracing::error!(%error, "no thread for a download");
            None
        }
    }
}
