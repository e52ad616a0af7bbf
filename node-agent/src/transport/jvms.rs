//! Tells the controller which JVMs run on the node: when a session begins, and when they have changed.

use std::{collections::BTreeMap, time::Duration};

use tokio::sync::broadcast;
use upfleet_api::{convert, v1::session_request::Message};
use upfleet_domain::{jvm::Jvm, upgrade::UpgradeState};

use super::session::{Sender, snapshots};
use crate::{
    component::{Handles, Outgoing},
    jvm,
};

/// How often the node is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Tells it until the session ends.
pub(super) async fn tell(handles: &Handles, mut said: broadcast::Receiver<Outgoing>, sender: &Sender) {
    let mut told: Option<Vec<Jvm>> = None;
    loop {
        let jvms = look(handles).await;
        if told.as_ref() != Some(&jvms) {
            sender.send(Message::JvmInventory(convert::jvm::inventory(&jvms))).await;
            told = Some(jvms);
        }
        // An upgrade that ended has started another JVM, or the same one anew.
        if tokio::time::timeout(LOOK_EVERY, ended(&mut said)).await == Ok(false) {
            // The agent is ending.
            return std::future::pending().await;
        }
    }
}

async fn look(handles: &Handles) -> Vec<Jvm> {
    let supervised = snapshots(handles)
        .await
        .into_iter()
        .filter_map(|snapshot| Some((snapshot.inventory.component.to_string(), snapshot.inventory.pid?)));
    let supervised: BTreeMap<String, u32> = supervised.collect();
    // A task that panicked has found nothing.
    tokio::task::spawn_blocking(move || jvm::inventory(&supervised)).await.unwrap_or_default()
}

/// Waits for the end of an upgrade; `false` where nothing more can be heard.
async fn ended(said: &mut broadcast::Receiver<Outgoing>) -> bool {
    loop {
        match said.recv().await {
            Ok(Outgoing::Report(report)) if matches!(report.state, UpgradeState::Ended(_)) => return true,
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return false,
        }
    }
}
