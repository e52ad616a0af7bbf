//! Keeps house: artifacts that nobody names, uploads given up, and answers that nobody will ask for again.

use std::{collections::HashSet, time::Duration};

use tokio_util::sync::CancellationToken;
use upfleet_domain::time::Time;

use crate::{
    ops::Operations,
    store::{Change, Page},
};

/// How often.
const EVERY: Duration = Duration::from_secs(3600);
/// How long the same request id gives the first answer: a week.
const REQUESTS_MILLIS: i64 = 7 * 86_400_000;

/// Keeps house until `stop`.
pub(super) async fn house(operations: Operations, stop: CancellationToken) {
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let before = Time(operations.clock.now().0.saturating_sub(REQUESTS_MILLIS));
        if let Err(error) = operations.store.commit(vec![Change::PruneRequests { before }]).await {
            tracing::warn!(%error, "could not forget old requests");
        }
        collect(&operations).await;
    }
}

async fn collect(operations: &Operations) {
    let named: HashSet<_> = match operations.store.artifacts(&Page::ALL).await {
        Ok(found) => found.rows.into_iter().map(|artifact| artifact.digest).collect(),
        Err(error) => return tracing::warn!(%error, "could not read which artifacts are named"),
    };
    match operations.blobs.collect(named, std::time::SystemTime::now()).await {
        Ok(collected) if collected.artifacts + collected.uploads > 0 => {
            let (artifacts, uploads) = (collected.artifacts, collected.uploads);
            tracing::info!(artifacts, uploads, "removed what nobody names");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "could not remove what nobody names"),
    }
}
