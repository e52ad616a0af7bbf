//! One session from Hello to its end.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc, mpsc::error::TrySendError},
    time::timeout,
};
use tokio_stream::{Stream, StreamExt as _, adapters::Map, wrappers::ReceiverStream};
use tonic::Status;
use tracing::Instrument as _;
use upfleet_api::{convert, reason::status, v1};
use upfleet_domain::{
    id::NodeId,
    reason::{Reason, ReasonCode},
    report::ComponentInventory,
    time::Time,
};
use v1::{session_request::Message as In, session_response::Message as Out};

use super::{
    Sessions, edit_node,
    hub::{Admission, End, Handle},
    inbound,
    logs::Questions,
    orders::{MAX_COMPONENTS, Orders},
};
use crate::{
    failure::internal,
    store::{Change, NodeRecord, NodeState, SessionRecord},
    version::VERSION,
};

/// Messages that wait for a slow agent; then the session waits with it.
const OUTBOX: usize = 32;
/// How long the session waits for an agent that does not read before it gives it up.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an agent may take to say Hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// A message on its way to the agent. Boxed, as a channel sets aside room for dozens at once.
type Waiting = Result<Box<v1::SessionResponse>, Status>;
/// What goes back to the agent.
pub type Outgoing = Map<ReceiverStream<Waiting>, fn(Waiting) -> Result<v1::SessionResponse, Status>>;

pub(super) fn displaced(node: &NodeId) -> Reason {
    Reason::new(ReasonCode::SessionDisplaced).with("node", node)
}

pub(super) fn clone_suspected(node: &NodeId) -> Reason {
    Reason::new(ReasonCode::CloneSuspected).with("node", node)
}

/// Serves an agent whose certificate names `node`; `expires` is when that certificate does.
pub fn serve<S>(sessions: &Sessions, node: NodeId, renew: Time, incoming: S) -> Outgoing
where
    S: Stream<Item = Result<v1::SessionRequest, Status>> + Send + Unpin + 'static,
{
    let (sender, receiver) = mpsc::channel::<Waiting>(OUTBOX);
    let sessions = sessions.clone();
    let span = tracing::info_span!("session", node_id = %node);
    let served = async move {
        let outbox = Outbox(sender.clone());
        if let Err(reason) = run(&sessions, &node, renew, incoming, outbox).await {
            tracing::info!(code = %reason.code, "session ended: {reason}");
            // Where the agent does not read, the end of the stream has to do.
            let _ = sender.try_send(Err(status(&reason)));
        }
    };
    tokio::spawn(served.instrument(span));
    ReceiverStream::new(receiver).map(unboxed as fn(Waiting) -> Result<v1::SessionResponse, Status>)
}

fn unboxed(message: Waiting) -> Result<v1::SessionResponse, Status> {
    message.map(|message| *message)
}

/// The way to the agent; bounded in room and time.
#[derive(Clone)]
pub(super) struct Outbox(mpsc::Sender<Waiting>);

impl Outbox {
    pub(super) async fn send(&self, message: Out) -> Result<(), Reason> {
        let response = Ok(Box::new(v1::SessionResponse { message: Some(message) }));
        // Mostly there is room, and no timer has to be set.
        let response = match self.0.try_send(response) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(response) | TrySendError::Closed(response)) => response,
        };
        match timeout(SEND_TIMEOUT, self.0.send(response)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Reason::new(ReasonCode::LimitExceeded)
                .with("what", "the time that the agent takes to read")
                .with("limit", "30 seconds")),
        }
    }
}

async fn run<S>(
    sessions: &Sessions,
    node: &NodeId,
    renew: Time,
    mut incoming: S,
    outbox: Outbox,
) -> Result<(), Reason>
where
    S: Stream<Item = Result<v1::SessionRequest, Status>> + Send + Unpin,
{
    // Boxed as all that a session does now and then: what is awaited in place takes its room for as long as the session
    // is open, which is weeks, and there are thousands of them.
    let begun = Box::pin(begin(sessions, node, renew, &mut incoming, outbox)).await?;
    let Some(Begun { mut session, orders, number, instance }) = begun else {
        return idle(sessions, incoming).await;
    };
    let served = match orders {
        Ok(mut orders) => session.exchange(&mut incoming, &mut orders).await,
        Err(reason) => Err(reason),
    };
    Box::pin(close(sessions, node, number, &instance)).await;
    served
}

/// A session that was opened; it has to be closed.
struct Begun<'a> {
    session: Session<'a>,
    /// Or why it has to end at once.
    orders: Result<Orders, Reason>,
    number: u64,
    instance: String,
}

/// Hears who connects and greets; `None` where the agent is only tried out.
async fn begin<'a, S>(
    sessions: &'a Sessions,
    node: &'a NodeId,
    renew: Time,
    incoming: &mut S,
    outbox: Outbox,
) -> Result<Option<Begun<'a>>, Reason>
where
    S: Stream<Item = Result<v1::SessionRequest, Status>> + Send + Unpin,
{
    let hello = first(incoming).await?;
    let record = known(sessions, node).await?;
    let inventory = inventory(&hello)?;
    let meta = sessions.store().meta().await.map_err(internal)?;
    let welcome = v1::Welcome {
        node: format!("nodes/{node}"),
        epoch: meta.epoch,
        server_time: Some(convert::timestamp(sessions.clock().now())),
        controller_version: VERSION.to_owned(),
        wire_minor: upfleet_api::WIRE_MINOR,
        renew_time: Some(convert::timestamp(renew)),
    };
    if hello.purpose() == v1::hello::Purpose::Trial {
        // What an agent is judged by must not get through where its reports could not be recorded.
        let seen = Change::SeeNodes(vec![(node.clone(), sessions.clock().now())]);
        sessions.store().commit(vec![seen]).await.map_err(internal)?;
        outbox.send(Out::Welcome(welcome)).await?;
        return Ok(None);
    }
    let (questions, asked) = Questions::new();
    let wake = Arc::new(Notify::new());
    let (number, end) = (sessions.number(), End::default());
    let handle = Handle {
        number,
        instance: hello.instance_id.clone(),
        wake: wake.clone(),
        queries: asked,
        end: end.clone(),
    };
    open(sessions, node, &hello, &inventory, handle).await?;
    let session = Session { sessions, node, outbox, end, wake, questions };
    let orders = Orders::new(node, &record, meta.epoch, &inventory);
    let orders = greet(&session, welcome, &record, orders).await;
    Ok(Some(Begun { session, orders, number, instance: hello.instance_id }))
}

/// Welcomes the agent, and raises or ends the alarm that it may be ahead of the store.
async fn greet(
    session: &Session<'_>,
    welcome: v1::Welcome,
    record: &NodeRecord,
    mut orders: Orders,
) -> Result<Orders, Reason> {
    session.outbox.send(Out::Welcome(welcome)).await?;
    orders.compare(session.sessions.store().as_ref()).await?;
    match orders.alarm() {
        Some(alarm) => session.alarm(alarm).await?,
        None if !orders.is_behind() => session.end_alarm(record).await?,
        None => {}
    }
    Ok(orders)
}

/// The agent's Hello, which must come first and soon.
async fn first<S>(incoming: &mut S) -> Result<v1::Hello, Reason>
where
    S: Stream<Item = Result<v1::SessionRequest, Status>> + Send + Unpin,
{
    let message = timeout(HELLO_TIMEOUT, incoming.next()).await;
    let Ok(Some(Ok(v1::SessionRequest { message: Some(In::Hello(hello)) }))) = message else {
        return Err(convert::invalid("hello", "it must be the first message, within 10 seconds"));
    };
    if hello.purpose() == v1::hello::Purpose::Unspecified {
        return Err(convert::invalid("hello.purpose", "it is required"));
    }
    for (field, value) in [("instance_id", &hello.instance_id), ("boot_id", &hello.boot_id)] {
        if value.is_empty() || value.len() > 128 {
            return Err(convert::invalid(&format!("hello.{field}"), "it must have 1 to 128 bytes"));
        }
    }
    if hello.components.len() > MAX_COMPONENTS {
        return Err(Reason::new(ReasonCode::LimitExceeded)
            .with("what", "the number of components")
            .with("limit", MAX_COMPONENTS));
    }
    Ok(hello)
}

/// The node's record, where its life permits a session.
async fn known(sessions: &Sessions, node: &NodeId) -> Result<NodeRecord, Reason> {
    let found = sessions.store().node(node).await.map_err(internal)?;
    let record = found.ok_or_else(|| Reason::new(ReasonCode::CertificateUnknown))?;
    match record.state {
        NodeState::Active | NodeState::Cordoned => Ok(record),
        NodeState::Suspended => Err(clone_suspected(node)),
        NodeState::Retired => {
            Err(Reason::new(ReasonCode::NodeNotActive).with("node", node).with("state", record.state))
        }
    }
}

fn inventory(hello: &v1::Hello) -> Result<Vec<ComponentInventory>, Reason> {
    let components = hello.components.clone();
    convert::within("hello", convert::each(components, "components"))
}

/// Lists the session and records it, or ends it as one of two clones.
async fn open(
    sessions: &Sessions,
    node: &NodeId,
    hello: &v1::Hello,
    inventory: &[ComponentInventory],
    handle: Handle,
) -> Result<(), Reason> {
    let number = handle.number;
    let platform = convert::optional(hello.platform.clone(), "hello.platform")?;
    let _turn = sessions.turn(node).await;
    if matches!(sessions.admit(node, handle), Admission::Clone) {
        suspend(sessions, node).await;
        return Err(clone_suspected(node));
    }
    let now = sessions.clock().now();
    let session =
        SessionRecord { instance_id: hello.instance_id.clone(), boot_id: hello.boot_id.clone(), since: now };
    let mut facts: std::collections::BTreeMap<_, _> =
        hello.facts.iter().take(32).map(|(key, value)| (key.clone(), value.clone())).collect();
    facts.insert("agent_version".to_owned(), hello.agent_version.clone());
    let names = inventory.iter().map(|component| component.component.clone()).collect();
    let mut changes = vec![
        Change::OpenSession { node: node.clone(), session, platform, facts },
        Change::KeepComponents { node: node.clone(), components: names },
    ];
    let recorded = async {
        for component in inventory {
            changes.extend(inbound::record_inventory(sessions, node, component.clone()).await?);
        }
        sessions.store().commit(changes).await.map_err(internal)
    };
    if let Err(reason) = recorded.await {
        sessions.dismiss(node, number);
        return Err(reason);
    }
    tracing::info!(instance = hello.instance_id, "session opened");
    Ok(())
}

async fn close(sessions: &Sessions, node: &NodeId, number: u64, instance: &str) {
    let _turn = sessions.turn(node).await;
    if !sessions.dismiss(node, number) {
        return;
    }
    let time = sessions.clock().now();
    let change = Change::CloseSession { node: node.clone(), instance_id: instance.to_owned(), time };
    if let Err(error) = sessions.store().commit(vec![change]).await {
        tracing::warn!(%error, "could not record the end of a session");
    }
}

/// Shuts a node out whose key two processes use, until a person decides.
async fn suspend(sessions: &Sessions, node: &NodeId) {
    let now = sessions.clock().now();
    tracing::error!(code = %ReasonCode::CloneSuspected, "two agents use the key of one node");
    let edited = edit_node(sessions.store().as_ref(), node, |record| {
        let before = record.state.as_str();
        record.state = NodeState::Suspended;
        record.reason = Some(clone_suspected(node).since(now));
        let audit = crate::ops::audit("controller", "node.suspend", &format!("nodes/{node}"), now)
            .before(serde_json::json!({ "state": before }))
            .after(serde_json::json!({ "state": "SUSPENDED", "reason": "CLONE_SUSPECTED" }));
        let mut changes =
            vec![Change::SuspendNodeCertificates { node: node.clone(), suspended: true }, audit.change()];
        // Neither session is listed any more, so neither records its own end.
        if let Some(session) = &record.session {
            let instance_id = session.instance_id.clone();
            changes.push(Change::CloseSession { node: node.clone(), instance_id, time: now });
        }
        Ok(changes)
    });
    if let Err(reason) = edited.await {
        tracing::error!(%reason, "could not suspend the node");
    }
}

/// A session that tries out a new agent: it is heard and told nothing.
async fn idle<S>(sessions: &Sessions, mut incoming: S) -> Result<(), Reason>
where
    S: Stream<Item = Result<v1::SessionRequest, Status>> + Send + Unpin,
{
    let stopped = sessions.stopped();
    loop {
        tokio::select! {
            () = stopped.cancelled() => return Err(stopping()),
            message = incoming.next() => if !matches!(message, Some(Ok(_))) { return Ok(()) },
        }
    }
}

fn stopping() -> Reason {
    Reason::new(ReasonCode::ControllerStopping)
}

/// One open session.
pub(super) struct Session<'a> {
    pub(super) sessions: &'a Sessions,
    pub(super) node: &'a NodeId,
    pub(super) outbox: Outbox,
    end: End,
    wake: Arc<Notify>,
    pub(super) questions: Questions,
}

impl Session<'_> {
    /// Passes messages in both directions until one side ends.
    async fn exchange<S>(&mut self, incoming: &mut S, orders: &mut Orders) -> Result<(), Reason>
    where
        S: Stream<Item = Result<v1::SessionRequest, Status>> + Send + Unpin,
    {
        Box::pin(self.send_orders(orders)).await?;
        let stopped = self.sessions.stopped();
        let (end, wake) = (self.end.clone(), self.wake.clone());
        loop {
            tokio::select! {
                biased;
                () = end.token.cancelled() => return end.reason().map_or(Ok(()), Err),
                () = stopped.cancelled() => return Err(stopping()),
                () = wake.notified() => Box::pin(self.send_orders(orders)).await?,
                question = self.questions.next() => {
                    if let Some(message) = question {
                        Box::pin(self.outbox.send(message)).await?;
                    }
                }
                message = incoming.next() => match message {
                    Some(Ok(v1::SessionRequest { message: Some(message) })) => {
                        Box::pin(inbound::handle(self, orders, message)).await?;
                    }
                    // A later version's message is passed over.
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Ok(()),
                },
            }
        }
    }

    async fn send_orders(&mut self, orders: &mut Orders) -> Result<(), Reason> {
        for order in orders.due(self.sessions.store().as_ref(), self.sessions.manifests()).await? {
            self.outbox.send(Out::DesiredState((&order).into())).await?;
            orders.sent(&order);
        }
        Ok(())
    }

    /// Takes the alarm off the node's record, once a restore has put the store before the agent again.
    async fn end_alarm(&self, record: &NodeRecord) -> Result<(), Reason> {
        let stale =
            |reason: &Option<Reason>| reason.as_ref().is_some_and(|r| r.code == ReasonCode::ControllerBehind);
        if !stale(&record.reason) {
            return Ok(());
        }
        let edited = edit_node(self.sessions.store().as_ref(), self.node, |record| {
            if stale(&record.reason) {
                record.reason = None;
            }
            Ok(Vec::new())
        });
        edited.await.map(drop)
    }

    /// Says that the store is older than this agent, where operators see it.
    pub(super) async fn alarm(&self, alarm: Reason) -> Result<(), Reason> {
        tracing::error!(code = %alarm.code, "{alarm}");
        let alarm = alarm.since(self.sessions.clock().now());
        let edited = edit_node(self.sessions.store().as_ref(), self.node, |record| {
            record.reason = Some(alarm.clone());
            Ok(Vec::new())
        });
        edited.await.map(drop)
    }
}
