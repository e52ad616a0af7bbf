//! Orders on their way to the components: in order for each component, and no component waits for another.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinSet};
use upfleet_api::{
    convert::Order,
    v1::{self, session_request::Message},
};
use upfleet_domain::{
    id::{ComponentId, UpgradeId},
    order::Generation,
    reason::{Reason, ReasonCode},
};

use super::session::Sender;
use crate::component::{Acked, Handle, Handles, ManifestBytes, Nacked};

/// Orders that may wait for one component, and words of either kind. A controller that keeps to the protocol has one order
/// under way; one that floods must not fill the node's memory.
const MAX_ORDERS: usize = 16;
const MAX_WAITING: usize = 1024;
/// Refusals that may wait for the way to the controller.
const MAX_REFUSALS: usize = 256;

/// The controller says more than it lets be answered.
#[derive(Debug)]
pub(super) struct Flooded;

/// The wait before a component whose actor was just ending is asked again.
const WHILE_ENDING: Duration = Duration::from_millis(100);

enum Work {
    Order(Box<Order>),
    Recorded(UpgradeId, u64),
}

/// What waits for one component.
struct Queue {
    work: mpsc::Sender<Work>,
    orders: Arc<AtomicUsize>,
}

/// One queue and one task for each component that was addressed in this session.
pub(super) struct Orders {
    handles: Handles,
    sender: Sender,
    queues: HashMap<ComponentId, Queue>,
    tasks: JoinSet<()>,
}

impl Orders {
    pub(super) fn new(handles: Handles, sender: Sender) -> Self {
        Self { handles, sender, queues: HashMap::new(), tasks: JoinSet::new() }
    }

    /// Passes an order on; what the wire can't say or no component can take is refused at once.
    ///
    /// # Errors
    /// Where too much waits already.
    pub(super) fn offer(&mut self, wire: v1::DesiredState) -> Result<(), Flooded> {
        let about = (wire.component.clone(), wire.epoch, wire.generation, wire.upgrade.clone());
        let refused = match Order::try_from(wire) {
            Ok(order) => match self.queue(&order.desired.component) {
                Ok(queue) => {
                    if queue.orders.fetch_add(1, Ordering::Relaxed) >= MAX_ORDERS {
                        return Err(Flooded);
                    }
                    return queue.work.try_send(Work::Order(Box::new(order))).map_err(|_| Flooded);
                }
                Err(reason) => reason,
            },
            Err(reason) => reason,
        };
        let (component, epoch, generation, upgrade) = about;
        tracing::warn!(component, generation, %refused, "order refused");
        let nack = v1::DesiredStateNack {
            component,
            epoch,
            generation,
            reason: Some((&refused).into()),
            kept_epoch: 0,
            kept_generation: 0,
            upgrade,
        };
        // Not waited for: whoever reads from the controller must never wait for the way to it.
        let sender = self.sender.clone();
        while self.tasks.try_join_next().is_some() {}
        if self.tasks.len() > MAX_REFUSALS + self.queues.len() {
            return Err(Flooded);
        }
        self.tasks.spawn(async move { sender.send(Message::Nack(nack)).await });
        Ok(())
    }

    /// Tells a component that its reports are recorded.
    pub(super) fn recorded(&mut self, component: &ComponentId, upgrade: UpgradeId, sequence: u64) {
        if let Ok(queue) = self.queue(component) {
            // Where too much waits, the report goes out again with the next session.
            let _ = queue.work.try_send(Work::Recorded(upgrade, sequence));
        }
    }

    fn queue(&mut self, component: &ComponentId) -> Result<&Queue, Reason> {
        self.handles.get(component)?;
        // A handle that was replaced with the configuration leaves a queue whose task serves the old one.
        Ok(self.queues.entry(component.clone()).or_insert_with(|| {
            let (work, waiting) = mpsc::channel(MAX_WAITING);
            let orders = Arc::new(AtomicUsize::new(0));
            let (component, handles, sender) = (component.clone(), self.handles.clone(), self.sender.clone());
            self.tasks.spawn(serve(component, handles, waiting, orders.clone(), sender));
            Queue { work, orders }
        }))
    }
}

async fn serve(
    component: ComponentId,
    handles: Handles,
    mut work: mpsc::Receiver<Work>,
    orders: Arc<AtomicUsize>,
    sender: Sender,
) {
    while let Some(work) = work.recv().await {
        // The handle is taken anew each time: a reload of the configuration may have replaced it, or removed it.
        match work {
            Work::Recorded(upgrade, sequence) => {
                if let Ok(handle) = handles.get(&component) {
                    handle.report_acked(upgrade, sequence).await;
                }
            }
            Work::Order(order) => {
                let answer = loop {
                    let answer = match handles.get(&component) {
                        Ok(handle) => answer(&handle, (*order).clone()).await,
                        Err(reason) => Some(gone(&order, reason)),
                    };
                    match answer {
                        Some(answer) => break answer,
                        None => tokio::time::sleep(WHILE_ENDING).await,
                    }
                };
                sender.send(answer).await;
                orders.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// The component left the configuration while its order waited.
fn gone(order: &Order, reason: Reason) -> Message {
    let (generation, upgrade) = (order.desired.generation, order.desired.upgrade.clone());
    refused(
        order.desired.component.to_string(),
        Nacked { generation, reason, kept: Generation::default(), upgrade },
    )
}

fn refused(component: String, nacked: Nacked) -> Message {
    let Nacked { generation, reason, kept, upgrade } = nacked;
    tracing::warn!(component, generation = generation.number, %reason, "order refused");
    Message::Nack(v1::DesiredStateNack {
        component,
        epoch: generation.epoch,
        generation: generation.number,
        reason: Some((&reason).into()),
        kept_epoch: kept.epoch,
        kept_generation: kept.number,
        upgrade: upgrade.map(|upgrade| upgrade.to_string()).unwrap_or_default(),
    })
}

/// The answer to an order; `None` where the component's actor is just ending. That is no refusal: its successor
/// is asked, or the next agent.
async fn answer(handle: &Handle, order: Order) -> Option<Message> {
    let bytes = |manifest: upfleet_api::convert::ManifestBytes| ManifestBytes {
        bytes: manifest.bytes,
        signatures: manifest.signatures,
    };
    let manifest = order.manifest.map(bytes);
    let layers = order.layers.into_iter().map(bytes).collect();
    let component = order.desired.component.to_string();
    match handle.order(order.desired, manifest, layers, order.hold).await {
        Ok(Acked { generation: Generation { epoch, number: generation } }) => {
            tracing::info!(component, generation, "order accepted");
            Some(Message::Ack(v1::DesiredStateAck { component, epoch, generation }))
        }
        Err(Nacked { reason, .. }) if reason.code == ReasonCode::AgentEnding => None,
        Err(nacked) => Some(refused(component, nacked)),
    }
}
