//! Nodes: seen, watched, labelled, kept out, held, and taken out for good.

use std::collections::BTreeMap;

use tokio::sync::{broadcast::error::RecvError, mpsc};
use upfleet_domain::{
    id::{ComponentId, NodeId},
    labels::Selector,
    order::HoldOrder,
    reason::{Reason, ReasonCode},
};

use super::{Operations, audit, token::check_labels};
use crate::{
    auth::Principal,
    failure::internal,
    sessions::edit_node,
    store::{Change, ComponentRecord, DesiredRecord, NodeRecord, NodeState, Notice, Page, Rows},
};

/// A node with all that is shown of it.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// Its record.
    pub node: NodeRecord,
    /// What its components run.
    pub components: Vec<ComponentRecord>,
    /// What they should run and hold.
    pub desired: Vec<DesiredRecord>,
}

/// What a watcher gets.
#[derive(Clone, Debug)]
pub struct WatchItem {
    /// A node as it is now; `None` where nothing matched at the beginning.
    pub view: Option<NodeView>,
    /// Set on the last item of those that matched at the beginning.
    pub initial_done: bool,
}

/// Items that wait for a slow watcher; then the watch waits with it, and reads less often.
const WATCH_BACKLOG: usize = 16;

fn not_active(node: &NodeRecord) -> Reason {
    Reason::new(ReasonCode::NodeNotActive).with("node", &node.id).with("state", node.state)
}

fn person(principal: &Principal, message: &str, code: ReasonCode) -> Reason {
    Reason::new(code).with("actor", principal).with("message", message)
}

impl Operations {
    /// One node.
    ///
    /// # Errors
    /// `NOT_FOUND`, or what the store says.
    pub async fn node(&self, id: &NodeId) -> Result<NodeView, Reason> {
        let found = self.store.node(id).await.map_err(internal)?;
        let node =
            found.ok_or_else(|| Reason::new(ReasonCode::NotFound).with("what", "node").with("name", id))?;
        self.view(node).await
    }

    async fn view(&self, node: NodeRecord) -> Result<NodeView, Reason> {
        let components = self.store.components(&node.id).await.map_err(internal)?;
        let desired = self.store.desired(&node.id).await.map_err(internal)?;
        Ok(NodeView { node, components, desired })
    }

    /// Nodes that `selector` chooses, by name; where `states` is empty all but the retired.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list_nodes(
        &self,
        selector: &Selector,
        states: &[NodeState],
        page: &Page,
    ) -> Result<Rows<NodeView>, Reason> {
        let wanted = |node: &NodeRecord| {
            let state = if states.is_empty() {
                node.state != NodeState::Retired
            } else {
                states.contains(&node.state)
            };
            state && selector.matches(&node.id, &node.labels)
        };
        let found = self.store.nodes(&wanted, page).await.map_err(internal)?;
        let mut rows = Vec::with_capacity(found.rows.len());
        for node in found.rows {
            rows.push(self.view(node).await?);
        }
        Ok(Rows { rows, next: found.next })
    }

    /// Nodes that match, now and as they change, until the receiver is dropped.
    #[must_use]
    pub fn watch_nodes(&self, selector: Selector) -> mpsc::Receiver<Result<WatchItem, Reason>> {
        let (sender, receiver) = mpsc::channel(WATCH_BACKLOG);
        let (operations, stop) = (self.clone(), self.sessions.stopped());
        tokio::spawn(async move {
            let watch = operations.watch(&selector, &sender);
            let ended = tokio::select! {
                ended = watch => ended,
                () = sender.closed() => return,
                // The stream ends in good order, so that stopping does not wait for watchers.
                () = stop.cancelled() => return,
            };
            if let Err(reason) = ended {
                // A watcher that went away needs no reason.
                let _ = sender.send(Err(reason)).await;
            }
        });
        receiver
    }

    async fn watch(
        &self,
        selector: &Selector,
        sender: &mpsc::Sender<Result<WatchItem, Reason>>,
    ) -> Result<(), Reason> {
        // Listens before it reads, so that no change falls between the two.
        let mut notices = self.store.subscribe();
        self.send_all(selector, sender).await?;
        loop {
            match notices.recv().await {
                Ok(Notice::Node { id } | Notice::Desired { node: id } | Notice::Answered { node: id }) => {
                    let found = self.store.node(&id).await.map_err(internal)?;
                    let Some(node) = found.filter(|node| selector.matches(&node.id, &node.labels)) else {
                        continue;
                    };
                    let view = Some(self.view(node).await?);
                    if sender.send(Ok(WatchItem { view, initial_done: false })).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => self.send_all(selector, sender).await?,
                Err(RecvError::Closed) => return Ok(()),
            }
        }
    }

    async fn send_all(
        &self,
        selector: &Selector,
        sender: &mpsc::Sender<Result<WatchItem, Reason>>,
    ) -> Result<(), Reason> {
        let mut page = Page::first(crate::store::MAX_PAGE);
        loop {
            let found = self.list_nodes(selector, &[], &page).await?;
            let last = found.next.is_none();
            let count = found.rows.len();
            for (index, view) in found.rows.into_iter().enumerate() {
                let item = WatchItem { view: Some(view), initial_done: last && index + 1 == count };
                if sender.send(Ok(item)).await.is_err() {
                    return Ok(());
                }
            }
            if last && count == 0 {
                // Nothing matched, or the last page was empty: the end is told all the same.
                let _ = sender.send(Ok(WatchItem { view: None, initial_done: true })).await;
            }
            match found.next {
                Some(after) => page.after = Some(after),
                None => return Ok(()),
            }
        }
    }

    /// Sets a node's labels; `revision` must match where given.
    ///
    /// # Errors
    /// `NOT_FOUND`, `ETAG_MISMATCH`, `INVALID_ARGUMENT`, or what the store says.
    pub async fn label_node(
        &self,
        principal: &Principal,
        id: &NodeId,
        labels: BTreeMap<String, String>,
        revision: Option<u64>,
    ) -> Result<NodeView, Reason> {
        check_labels(&labels)?;
        self.edit(principal, id, "node.label", |node| {
            if revision.is_some_and(|revision| revision != node.revision) {
                return Err(Reason::new(ReasonCode::EtagMismatch).with("what", "node").with("name", id));
            }
            node.labels.clone_from(&labels);
            Ok(Vec::new())
        })
        .await
    }

    /// Keeps a node out of new plans.
    ///
    /// # Errors
    /// `NODE_NOT_ACTIVE` where it is suspended or retired, `NOT_FOUND`, or what the store says.
    pub async fn cordon_node(
        &self,
        principal: &Principal,
        id: &NodeId,
        message: &str,
    ) -> Result<NodeView, Reason> {
        let now = self.clock.now();
        self.edit(principal, id, "node.cordon", |node| match node.state {
            NodeState::Active | NodeState::Cordoned => {
                node.state = NodeState::Cordoned;
                node.reason = Some(person(principal, message, ReasonCode::NodeCordoned).since(now));
                Ok(Vec::new())
            }
            NodeState::Suspended | NodeState::Retired => Err(not_active(node)),
        })
        .await
    }

    /// Takes a node into plans again; a suspension ends.
    ///
    /// # Errors
    /// `NODE_NOT_ACTIVE` where it is retired, `NOT_FOUND`, or what the store says.
    pub async fn uncordon_node(&self, principal: &Principal, id: &NodeId) -> Result<NodeView, Reason> {
        self.edit(principal, id, "node.uncordon", |node| {
            let mut changes = Vec::new();
            match node.state {
                NodeState::Retired => return Err(not_active(node)),
                NodeState::Suspended => {
                    changes.push(Change::SuspendNodeCertificates { node: id.clone(), suspended: false });
                }
                NodeState::Active | NodeState::Cordoned => {}
            }
            node.state = NodeState::Active;
            node.reason = None;
            Ok(changes)
        })
        .await
    }

    /// Removes a node for good; its certificates are revoked and its session ends.
    ///
    /// # Errors
    /// `NOT_FOUND`, or what the store says.
    pub async fn retire_node(
        &self,
        principal: &Principal,
        id: &NodeId,
        message: &str,
    ) -> Result<NodeView, Reason> {
        let now = self.clock.now();
        self.edit(principal, id, "node.retire", |node| {
            node.state = NodeState::Retired;
            node.reason = Some(
                Reason::new(ReasonCode::NodeNotActive)
                    .with("node", id)
                    .with("state", "RETIRED")
                    .with("actor", principal)
                    .with("message", message)
                    .since(now),
            );
            Ok(vec![Change::RevokeNodeCertificates { node: id.clone(), time: now }])
        })
        .await
    }

    /// Edits a node and records who did.
    async fn edit<E>(
        &self,
        principal: &Principal,
        id: &NodeId,
        action: &str,
        mut change: E,
    ) -> Result<NodeView, Reason>
    where
        E: FnMut(&mut NodeRecord) -> Result<Vec<Change>, Reason>,
    {
        let now = self.clock.now();
        let shown = |node: &NodeRecord| serde_json::json!({ "labels": node.labels, "state": node.state, "reason": node.reason });
        let edited = edit_node(self.store.as_ref(), id, |node| {
            let before = shown(node);
            let mut changes = change(node)?;
            let entry = audit(&principal.to_string(), action, &format!("nodes/{id}"), now)
                .before(before)
                .after(shown(node));
            changes.push(entry.change());
            Ok(changes)
        });
        self.view(edited.await?).await
    }

    /// Holds a component as it is, or releases it. The agent carries it out; its inventory shows when.
    ///
    /// # Errors
    /// `NOT_FOUND` where the node has no such component, or what the store says.
    pub async fn hold_component(
        &self,
        principal: &Principal,
        id: &NodeId,
        component: &ComponentId,
        hold: bool,
        message: &str,
    ) -> Result<NodeView, Reason> {
        for _ in 0..8 {
            let view = self.node(id).await?;
            if !view.components.iter().any(|known| known.component() == component) {
                let name = format!("{component} on {id}");
                return Err(Reason::new(ReasonCode::NotFound).with("what", "component").with("name", name));
            }
            let record = view.desired.iter().find(|record| record.component == *component);
            let old = record.and_then(|record| record.hold.clone());
            // After a restore the agent may have kept a higher one than the store knows to have given.
            let kept = record.map_or(0, |record| record.hold_acked);
            let order = HoldOrder {
                hold,
                generation: old.as_ref().map_or(0, |old| old.generation).max(kept).saturating_add(1),
                message: message.to_owned(),
                actor: principal.to_string(),
            };
            let action = if hold { "component.hold" } else { "component.release" };
            let object = format!("nodes/{id}/components/{component}");
            let entry = audit(&principal.to_string(), action, &object, self.clock.now())
                .before(serde_json::json!(old))
                .after(serde_json::json!(order));
            let put = Change::PutHold { node: id.clone(), component: component.clone(), hold: order };
            match self.store.commit(vec![put, entry.change()]).await {
                Ok(_) => return self.node(id).await,
                // Somebody else held or released it meanwhile: read again and go above that.
                Err(error) if error.is_stale() => {}
                Err(error) => return Err(internal(error)),
            }
        }
        Err(Reason::new(ReasonCode::EtagMismatch).with("what", "component").with("name", component))
    }
}
