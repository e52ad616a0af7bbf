//! Answers a controller that asks for a component's output.

use std::{collections::HashMap, time::Duration};

use tokio::task::{AbortHandle, JoinSet};
use upfleet_api::v1::{self, session_request::Message};
use upfleet_domain::{id::ComponentId, reason::Reason};

use super::session::Sender;
use crate::component::{Handle, Handles};

/// No more lines than this are given at once.
const MAX_LINES: usize = 10_000;
/// So many queries are served at once.
const MAX_QUERIES: usize = 32;
/// How often a follower is given what is new.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);
/// How many of the last lines are compared to find what is new.
const WINDOW: usize = 1000;

/// The queries under way in this session.
pub(super) struct Logs {
    handles: Handles,
    sender: Sender,
    queries: HashMap<String, AbortHandle>,
    tasks: JoinSet<()>,
}

impl Logs {
    pub(super) fn new(handles: Handles, sender: Sender) -> Self {
        Self { handles, sender, queries: HashMap::new(), tasks: JoinSet::new() }
    }

    pub(super) fn begin(&mut self, query: v1::LogQuery) {
        while self.tasks.try_join_next().is_some() {}
        self.queries.retain(|_, task| !task.is_finished());
        let id = query.query_id.clone();
        // The same question again takes the place of the first one; one too many is passed over, and the controller gives
        // it up by itself.
        if let Some(before) = self.queries.remove(&id) {
            before.abort();
        }
        if self.queries.len() >= MAX_QUERIES {
            tracing::warn!("the controller asks for more output at once than is given");
            return;
        }
        let task = self.tasks.spawn(serve(self.handles.clone(), self.sender.clone(), query));
        self.queries.insert(id, task);
    }

    pub(super) fn end(&mut self, query_id: &str) {
        if let Some(task) = self.queries.remove(query_id) {
            task.abort();
        }
    }
}

async fn serve(handles: Handles, sender: Sender, query: v1::LogQuery) {
    let query_id = query.query_id.clone();
    if let Err(reason) = answer(&handles, &sender, query).await {
        let failure = Some((&reason).into());
        sender.send(Message::LogLines(v1::LogLines { query_id, lines: vec![], done: true, failure })).await;
    }
}

async fn answer(handles: &Handles, sender: &Sender, query: v1::LogQuery) -> Result<(), Reason> {
    let component: ComponentId = upfleet_api::convert::parse(&query.component, "component")?;
    let handle = handles.get(&component)?;
    let wanted = usize::try_from(query.lines).unwrap_or(MAX_LINES).min(MAX_LINES);
    let lines = handle.tail(wanted).await?;
    let message = |lines: Vec<String>, done: bool| {
        let query_id = query.query_id.clone();
        Message::LogLines(v1::LogLines { query_id, lines, done, failure: None })
    };
    // In parts, so that no message comes near the limit.
    for part in lines.chunks(200) {
        sender.send(message(part.to_vec(), false)).await;
    }
    if query.follow {
        follow(&handle, sender, message).await?;
    }
    sender.send(message(vec![], true)).await;
    Ok(())
}

/// Goes on until the query is ended or the component can't be asked any more.
async fn follow(
    handle: &Handle,
    sender: &Sender,
    message: impl Fn(Vec<String>, bool) -> Message,
) -> Result<(), Reason> {
    let mut seen = handle.tail(WINDOW).await?;
    loop {
        tokio::time::sleep(FOLLOW_INTERVAL).await;
        let lines = handle.tail(WINDOW).await?;
        let new = new_lines(&seen, &lines);
        if !new.is_empty() {
            sender.send(message(new.to_vec(), false)).await;
        }
        seen = lines;
    }
}

/// Those of `now` that came after `before`: all that follows the longest end of `before` that `now` begins with.
fn new_lines<'a>(before: &[String], now: &'a [String]) -> &'a [String] {
    let overlap = (0..=before.len().min(now.len()))
        .rev()
        .find(|length| before[before.len() - length..] == now[..*length])
        .unwrap_or(0);
    &now[overlap..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_sent() {
        let check = |before: &str, now: &str, new: &str| {
            let lines = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(new_lines(&lines(before), &lines(now)), lines(new), "{before} → {now}");
        };
        check("", "", "");
        check("", "a b", "a b");
        check("a b", "a b", "");
        check("a b", "a b c", "c");
        check("a b c", "b c d e", "d e");
        check("a b c", "x y z", "x y z");
        check("a a a", "a a a a", "a");
    }
}
