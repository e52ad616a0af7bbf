//! Questions for a component's output, asked of an agent over its session.

use std::collections::HashMap;

use tokio::sync::mpsc;
use upfleet_api::v1;
use upfleet_domain::{
    id::{ComponentId, NodeId},
    reason::{Reason, ReasonCode},
};
use v1::session_response::Message as Out;

use super::Sessions;
use crate::failure::internal;

/// Questions that wait for a session to take them.
const WAITING: usize = 8;
/// Questions open at once over one session.
const OPEN: usize = 8;
/// Parts of an answer that wait for a slow reader; then its question ends.
const PARTS: usize = 64;

/// Some whole lines, or why there are none.
pub type Part = Result<Vec<String>, Reason>;

/// A question.
#[derive(Debug)]
pub(super) struct Query {
    component: ComponentId,
    lines: u32,
    follow: bool,
    answer: mpsc::Sender<Part>,
}

/// The open questions of one session.
pub(super) struct Questions {
    asked: mpsc::Receiver<Box<Query>>,
    open: HashMap<String, mpsc::Sender<Part>>,
    next: u64,
}

impl Questions {
    pub(super) fn new() -> (Self, mpsc::Sender<Box<Query>>) {
        let (sender, asked) = mpsc::channel(WAITING);
        (Self { asked, open: HashMap::new(), next: 0 }, sender)
    }

    /// The next question to send; cancel safe. `None` where it could not be taken.
    pub(super) async fn next(&mut self) -> Option<Out> {
        let Some(query) = self.asked.recv().await else {
            // The session is about to end: its handle is gone.
            return std::future::pending().await;
        };
        // Readers that went away make room.
        self.open.retain(|_, answer| !answer.is_closed());
        if self.open.len() >= OPEN {
            let limit = Reason::new(ReasonCode::LimitExceeded).with("what", "questions open at once");
            let _ = query.answer.try_send(Err(limit.with("limit", OPEN)));
            return None;
        }
        self.next += 1;
        let query_id = self.next.to_string();
        self.open.insert(query_id.clone(), query.answer);
        Some(Out::LogQuery(v1::LogQuery {
            query_id,
            component: query.component.to_string(),
            lines: query.lines,
            follow: query.follow,
        }))
    }

    /// Passes an answer on. Where nobody reads it any more, the message that ends the question.
    pub(super) fn answer(&mut self, lines: v1::LogLines) -> Option<Out> {
        let over = || Some(Out::LogQueryEnd(v1::LogQueryEnd { query_id: lines.query_id.clone() }));
        let Some(answer) = self.open.get(&lines.query_id) else {
            return if lines.done { None } else { over() };
        };
        let part = match &lines.failure {
            Some(failure) => Err(failure.clone().try_into().unwrap_or_else(|reason: Reason| reason)),
            None => Ok(lines.lines.clone()),
        };
        // A reader that is too slow loses its question: an agent's output must not pile up here.
        let passed = answer.try_send(part).is_ok();
        if lines.done || !passed {
            self.open.remove(&lines.query_id);
        }
        if passed || lines.done { None } else { over() }
    }
}

impl Sessions {
    /// Asks a connected agent for a component's last lines, and with `follow` for those to come.
    ///
    /// # Errors
    /// `NODE_OFFLINE` where the agent is not connected.
    pub async fn tail(
        &self,
        node: &NodeId,
        component: ComponentId,
        lines: u32,
        follow: bool,
    ) -> Result<mpsc::Receiver<Part>, Reason> {
        let (answer, receiver) = mpsc::channel(PARTS);
        if let Some(handle) = self.handle(node) {
            let query = Box::new(Query { component, lines, follow, answer });
            if handle.queries.try_send(query).is_ok() {
                return Ok(receiver);
            }
        }
        let record = self.store().node(node).await.map_err(internal)?;
        let seen = record.and_then(|record| record.last_seen);
        let seen = seen.map_or("never".to_owned(), crate::clock::rfc3339);
        Err(Reason::new(ReasonCode::NodeOffline).with("node", node).with("last_seen", seen))
    }
}
