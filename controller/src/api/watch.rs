//! The stream of a rollout's changes: the store's events from a revision on, then new ones as they are
//! committed, until the rollout is terminal. Byte progress goes in between and has no revision.

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use tokio::sync::{broadcast, mpsc};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use upfleet_api::{
    convert::{self, rollout as wire},
    reason::status,
    v1::{self, watch_rollout_response::Change},
};
use upfleet_domain::{
    id::{NodeId, RolloutId},
    reason::Reason,
    rollout::{NodeUpgrade, Rollout},
};

use crate::{
    failure::{internal, unexpected},
    sessions::{Progress, Sessions},
    store::{EventKind, EventRecord, Notice, Page, Store},
};

/// What a watch answers with.
pub type Changes = Pin<Box<dyn Stream<Item = Result<v1::WatchRolloutResponse, Status>> + Send>>;

/// Events that are read at once.
const BATCH: u32 = 500;
/// Changes that may wait for a slow watcher before reading stops.
const BACKLOG: usize = 256;
/// After so long without a notice the store is asked again, in case one was missed.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// The changes of a rollout after `from`.
pub(super) fn changes(
    store: Arc<dyn Store>,
    id: RolloutId,
    from: u64,
    progress: Option<broadcast::Receiver<Progress>>,
    stop: CancellationToken,
) -> Changes {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    // Before the first read, so that nothing committed in between is missed.
    let notices = store.subscribe();
    let watch = Watch { store, id, at: from, rollout: None, rows: BTreeMap::new(), sender };
    // Where the controller stops, the stream ends in good order, and the watcher asks the next controller.
    tokio::spawn(stop.run_until_cancelled_owned(watch.run(notices, progress)));
    Box::pin(ReceiverStream::new(receiver))
}

struct Watch {
    store: Arc<dyn Store>,
    id: RolloutId,
    at: u64,
    rollout: Option<Rollout>,
    /// Each node's upgrade as the watcher knows it, so that numbers fit the moment of each event.
    rows: BTreeMap<NodeId, NodeUpgrade>,
    sender: mpsc::Sender<Result<v1::WatchRolloutResponse, Status>>,
}

/// The watcher has gone, or all was said.
struct Over;

impl Watch {
    async fn run(
        mut self,
        mut notices: broadcast::Receiver<Notice>,
        mut progress: Option<broadcast::Receiver<Progress>>,
    ) {
        loop {
            match self.catch_up().await {
                Ok(Ok(())) => {}
                Ok(Err(Over)) => return,
                Err(reason) => {
                    let _ = self.sender.send(Err(status(&reason))).await;
                    return;
                }
            }
            if self.wait(&mut notices, &mut progress).await.is_err() {
                return;
            }
        }
    }

    /// Sends what was committed since.
    async fn catch_up(&mut self) -> Result<Result<(), Over>, Reason> {
        if self.rows.is_empty() {
            let rows = self.store.upgrades(&self.id, &[], &Page::ALL).await.map_err(internal)?.rows;
            self.rows = rows.into_iter().map(|row| (row.node.clone(), row)).collect();
        }
        loop {
            let record = self.store.rollout(&self.id).await.map_err(internal)?;
            let Some(record) = record else { return Ok(Err(Over)) };
            let events = self.store.events(&self.id, self.at, BATCH).await.map_err(internal)?;
            let full = events.len() == BATCH as usize;
            self.rollout.get_or_insert_with(|| record.rollout.clone());
            for event in events {
                self.at = event.revision;
                let change = self.change(event)?;
                if self.sender.send(Ok(change)).await.is_err() {
                    return Ok(Err(Over));
                }
            }
            if !full {
                // The rollout was read before the events, so they reach at least to where it was terminal.
                let over = record.rollout.state.is_terminal() && self.at >= record.rollout.revision;
                return Ok(if over { Err(Over) } else { Ok(()) });
            }
        }
    }

    fn change(&mut self, event: EventRecord) -> Result<v1::WatchRolloutResponse, Reason> {
        let (change, previous) = match event.kind {
            EventKind::Rollout => {
                let rollout: Rollout =
                    serde_json::from_value(event.snapshot).map_err(|error| unexpected(&error))?;
                let mut counts = wire::Counts::default();
                self.rows.values().for_each(|row| counts.add(row));
                let change = Change::Rollout(wire::rollout(&rollout, &counts));
                self.rollout = Some(rollout);
                (change, None)
            }
            EventKind::Upgrade { node, previous } => {
                let row: NodeUpgrade =
                    serde_json::from_value(event.snapshot).map_err(|error| unexpected(&error))?;
                let rollout = self.rollout.as_ref().ok_or_else(|| unexpected(&std::fmt::Error))?;
                let change = Change::Upgrade(wire::upgrade(rollout, &row));
                self.rows.insert(node, row);
                (change, previous)
            }
        };
        Ok(v1::WatchRolloutResponse {
            change: Some(change),
            revision: event.revision,
            event_time: Some(convert::timestamp(event.time)),
            previous_state: previous.map_or(0, |state| v1::UpgradeState::from(state) as i32),
        })
    }

    /// Until something of this rollout may have changed; sends byte progress meanwhile.
    async fn wait(
        &self,
        notices: &mut broadcast::Receiver<Notice>,
        progress: &mut Option<broadcast::Receiver<Progress>>,
    ) -> Result<(), Over> {
        let deadline = tokio::time::sleep(LOOK_AGAIN);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                () = &mut deadline => return Ok(()),
                () = self.sender.closed() => return Err(Over),
                notice = notices.recv() => match notice {
                    Ok(Notice::Rollout { id }) if id == self.id => return Ok(()),
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => return Ok(()),
                    Err(broadcast::error::RecvError::Closed) => return Err(Over),
                },
                heard = next(progress) => if let Some(heard) = heard { self.progress(&heard); },
            }
        }
    }

    /// Byte progress may be dropped: the next one says more.
    fn progress(&self, heard: &Progress) {
        let row = self.rows.get(&heard.node).filter(|row| row.id.as_ref() == Some(&heard.upgrade));
        if let (Some(row), Some(rollout)) = (row, &self.rollout) {
            let upgrade = v1::Upgrade {
                fetched_bytes: heard.fetched,
                total_bytes: heard.total,
                ..wire::upgrade(rollout, row)
            };
            let change = Some(Change::Upgrade(upgrade));
            let _ = self.sender.try_send(Ok(v1::WatchRolloutResponse { change, ..Default::default() }));
        }
    }
}

/// The next byte progress; never, where none was asked for.
async fn next(progress: &mut Option<broadcast::Receiver<Progress>>) -> Option<Progress> {
    let Some(receiver) = progress else { return std::future::pending().await };
    match receiver.recv().await {
        Ok(heard) => Some(heard),
        Err(broadcast::error::RecvError::Lagged(_)) => None,
        Err(broadcast::error::RecvError::Closed) => {
            *progress = None;
            None
        }
    }
}

/// An upgrade with the byte progress that its node told last.
pub(super) fn with_progress(
    upgrade: v1::Upgrade,
    row: &NodeUpgrade,
    sessions: Option<&Sessions>,
) -> v1::Upgrade {
    let heard = sessions.and_then(|sessions| sessions.progress_of(&row.node));
    match heard.filter(|heard| row.id.as_ref() == Some(&heard.upgrade)) {
        Some(heard) => v1::Upgrade { fetched_bytes: heard.fetched, total_bytes: heard.total, ..upgrade },
        None => upgrade,
    }
}
