//! Takes what the components have to say, at once and always, so that no network can make one of them wait.
//!
//! Whoever listens hears it. What nobody hears is not lost: reports stay with their component until they are
//! acknowledged, and the next Hello carries the inventory.

use tokio::sync::{broadcast, mpsc};

use crate::component::Outgoing;

/// How far a session may lag before it reads everything anew from the components.
const CAPACITY: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Pump {
    sender: broadcast::Sender<Outgoing>,
    task: tokio::task::JoinHandle<()>,
}

impl Pump {
    pub(super) fn start(mut outgoing: mpsc::Receiver<Outgoing>) -> Self {
        let (sender, _) = broadcast::channel(CAPACITY);
        let out = sender.clone();
        let task = tokio::spawn(async move {
            while let Some(said) = outgoing.recv().await {
                // An error means only that nobody listens now.
                let _ = out.send(said);
            }
        });
        Self { sender, task }
    }

    pub(super) fn listen(&self) -> broadcast::Receiver<Outgoing> {
        self.sender.subscribe()
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.task.abort();
    }
}
