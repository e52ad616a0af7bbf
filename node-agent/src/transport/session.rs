//! One session: says what the node runs, takes what it should run, and reports until the connection ends.
//!
//! Losing a message costs nothing: orders come again with the next session, reports are sent again until they
//! are acknowledged.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};
use upfleet_api::{
    convert, reason,
    v1::{
        self, agent_service_client::AgentServiceClient, session_request::Message as Request,
        session_response::Message as Response,
    },
};
use upfleet_domain::{
    id::{ComponentId, UpgradeId},
    reason::ReasonCode,
    report::UpgradeReport,
};

use super::{Link, Purpose, Transport, facts, jvms, logs::Logs, now, orders::Orders, pump::Pump, renewal};
use crate::component::{Handles, Outgoing, Snapshot};

/// How long the controller may take to greet.
const PATIENCE: Duration = Duration::from_secs(30);
/// Byte progress of an upgrade is sent at most this often.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// An order carries a manifest of up to 1 MiB and those of its layers, with signatures.
const MAX_MESSAGE: usize = 32 * 1024 * 1024;

/// Why a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// The controller closed it without saying why.
    Closed,
    /// The controller or the network said why.
    Status(Box<Status>),
    /// The controller did not keep to the protocol.
    Protocol(&'static str),
}

impl End {
    /// Whether the controller said that it stops.
    pub(super) fn is_stopping(&self) -> bool {
        let Self::Status(status) = self else { return false };
        reason::from_status(status).is_some_and(|reason| reason.code == ReasonCode::ControllerStopping)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the controller closed the session"),
            Self::Status(status) => f.write_str(&told(status)),
            Self::Protocol(problem) => f.write_str(problem),
        }
    }
}

/// What a status says, for a log: its reason's sentence where it carries one.
pub(crate) fn told(status: &Status) -> String {
    match reason::from_status(status) {
        Some(reason) => reason.message(),
        // Its `Display` repeats the code and shows its source for programmers.
        None if status.message().is_empty() => status.code().to_string(),
        None => status.message().to_owned(),
    }
}

/// Sends to the controller. What can't be sent any more belongs to a session that has ended. Cheap to clone.
#[derive(Clone)]
pub(super) struct Sender(mpsc::Sender<v1::SessionRequest>);

impl Sender {
    pub(super) async fn send(&self, message: Request) {
        let _ = self.0.send(v1::SessionRequest { message: Some(message) }).await;
    }
}

/// Which component an upgrade of this session belongs to, since acknowledgements name the upgrade only; and what is not
/// acknowledged yet.
#[derive(Clone, Default)]
struct Owners(Arc<Mutex<Sent>>);

#[derive(Default)]
struct Sent {
    owners: BTreeMap<UpgradeId, ComponentId>,
    /// The last report of each upgrade that waits for its acknowledgement.
    open: BTreeMap<UpgradeId, u64>,
}

impl Owners {
    fn note(&self, report: &UpgradeReport) {
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sent.owners.insert(report.upgrade.clone(), report.component.clone());
        sent.open.insert(report.upgrade.clone(), report.sequence);
    }

    fn acknowledged(&self, upgrade: &UpgradeId, sequence: u64) -> Option<ComponentId> {
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sent.open.get(upgrade).is_some_and(|last| *last <= sequence) {
            sent.open.remove(upgrade);
        }
        sent.owners.get(upgrade).cloned()
    }

    fn nothing_open(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).open.is_empty()
    }
}

/// What one session needs.
pub(super) struct Session<'a> {
    pub(super) transport: &'a Transport,
    pub(super) handles: &'a Handles,
    pub(super) instance: &'a str,
}

impl Session<'_> {
    /// Serves until the session ends, and says why it did.
    pub(super) async fn serve(&self, channel: Channel, pump: &Pump) -> End {
        // Listening begins before the components are asked, so that nothing falls in between.
        let (said, heard) = (pump.listen(), pump.listen());
        let snapshots = snapshots(self.handles).await;
        let (sender, outbound) = mpsc::channel(64);
        let sender = Sender(sender);
        let hello = facts::hello(self.transport.purpose, self.instance, &snapshots);
        sender.send(Request::Hello(hello)).await;
        let opening = tokio::time::timeout(PATIENCE, open(channel, outbound)).await;
        let (inbound, welcome) = match opening {
            Ok(Ok(opened)) => opened,
            Ok(Err(end)) => return end,
            Err(_) => return End::Protocol("the controller did not greet"),
        };
        self.opened(&welcome);
        let owners = Owners::default();
        let (grants, granted) = mpsc::channel(1);
        let wished = welcome.renew_time.as_ref().map(convert::time);
        tokio::select! {
            end = self.read(inbound, &sender, &owners, grants) => end,
            () = self.write(said, snapshots, &sender, &owners) => End::Closed,
            () = jvms::tell(self.handles, heard, &sender) => End::Closed,
            () = renewal::keep_fresh(&self.transport.connector, &sender, granted, wished) => End::Closed,
        }
    }

    fn opened(&self, welcome: &v1::Welcome) {
        let controller = self.transport.connector.address();
        let (version, wire_minor) = (welcome.controller_version.as_str(), welcome.wire_minor);
        tracing::info!(
            controller,
            node = welcome.node,
            epoch = welcome.epoch,
            version,
            wire_minor,
            "session opened"
        );
        let link = Link { connected: true, ..Link::new(controller) };
        self.transport.link.send_replace(link);
        if let Some(theirs) = welcome.server_time.as_ref().map(convert::time) {
            let skew = theirs.0.abs_diff(now().0);
            if skew > 30_000 {
                tracing::warn!(skew_ms = skew, "the node's clock differs from the controller's");
            }
        }
    }

    /// Tells whether anything waits for its acknowledgement.
    fn all_reported(&self, owners: &Owners) {
        let reported = owners.nothing_open();
        self.transport.link.send_if_modified(|link| {
            let changed = link.connected && link.reported != reported;
            link.reported = link.connected && reported;
            changed
        });
    }

    async fn read(
        &self,
        mut inbound: Streaming<v1::SessionResponse>,
        sender: &Sender,
        owners: &Owners,
        grants: mpsc::Sender<v1::CertificateGrant>,
    ) -> End {
        let mut orders = Orders::new(self.handles.clone(), sender.clone());
        let mut logs = Logs::new(self.handles.clone(), sender.clone());
        loop {
            let message = match inbound.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return End::Closed,
                Err(status) => return End::Status(Box::new(status)),
            };
            match message.message {
                Some(Response::DesiredState(desired)) => {
                    if orders.offer(desired).is_err() {
                        return End::Protocol("the controller orders faster than it lets be answered");
                    }
                }
                Some(Response::ReportAck(ack)) => {
                    recorded(&mut orders, owners, &ack);
                    self.all_reported(owners);
                }
                // Nobody waits for an answer that comes twice.
                Some(Response::CertificateGrant(grant)) => drop(grants.try_send(grant)),
                Some(Response::LogQuery(query)) => logs.begin(query),
                Some(Response::LogQueryEnd(end)) => logs.end(&end.query_id),
                Some(Response::Welcome(_)) => return End::Protocol("the controller greeted twice"),
                // Of a later version.
                None => tracing::debug!("a message of an unknown kind was passed over"),
            }
        }
    }

    /// First what is not acknowledged yet, in order; then what the components say.
    async fn write(
        &self,
        mut said: broadcast::Receiver<Outgoing>,
        first: Vec<Snapshot>,
        sender: &Sender,
        owners: &Owners,
    ) {
        self.resend(first, sender, owners).await;
        self.all_reported(owners);
        let mut progress: BTreeMap<UpgradeId, (u64, u64)> = BTreeMap::new();
        let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                said = said.recv() => match said {
                    Ok(Outgoing::Report(report)) => {
                        owners.note(&report);
                        self.all_reported(owners);
                        progress.remove(&report.upgrade);
                        sender.send(Request::Report(report.as_ref().into())).await;
                    }
                    Ok(Outgoing::Inventory(inventory)) => {
                        sender.send(Request::Inventory(inventory.as_ref().into())).await;
                    }
                    Ok(Outgoing::Progress { upgrade, fetched, total }) => {
                        progress.insert(upgrade, (fetched, total));
                    }
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        tracing::debug!(missed, "the session lagged; all is sent again");
                        let snapshots = snapshots(self.handles).await;
                        for snapshot in &snapshots {
                            sender.send(Request::Inventory((&snapshot.inventory).into())).await;
                        }
                        self.resend(snapshots, sender, owners).await;
                    }
                    // The agent is ending.
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                _ = tick.tick(), if !progress.is_empty() => {
                    for (upgrade, (fetched_bytes, total_bytes)) in std::mem::take(&mut progress) {
                        let upgrade = upgrade.to_string();
                        let part = v1::UpgradeProgress { upgrade, fetched_bytes, total_bytes };
                        sender.send(Request::Progress(part)).await;
                    }
                }
            }
        }
    }

    async fn resend(&self, snapshots: Vec<Snapshot>, sender: &Sender, owners: &Owners) {
        for report in snapshots.iter().flat_map(|snapshot| &snapshot.reports) {
            owners.note(report);
            sender.send(Request::Report(report.into())).await;
        }
    }
}

fn recorded(orders: &mut Orders, owners: &Owners, ack: &v1::UpgradeReportAck) {
    if let Ok(upgrade) = ack.upgrade.parse::<UpgradeId>()
        && let Some(component) = owners.acknowledged(&upgrade, ack.sequence)
    {
        orders.recorded(&component, upgrade, ack.sequence);
    }
}

async fn open(
    channel: Channel,
    outbound: mpsc::Receiver<v1::SessionRequest>,
) -> Result<(Streaming<v1::SessionResponse>, v1::Welcome), End> {
    let status = |status| End::Status(Box::new(status));
    let mut client = AgentServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let answer = client.session(ReceiverStream::new(outbound)).await.map_err(status)?;
    let mut inbound = answer.into_inner();
    let first = inbound.message().await.map_err(status)?.ok_or(End::Closed)?;
    match first.message {
        Some(Response::Welcome(welcome)) => Ok((inbound, welcome)),
        _ => Err(End::Protocol("the controller did not begin with a greeting")),
    }
}

/// Opens a session for a trial and leaves it once the controller has greeted.
pub(super) async fn greet(channel: Channel, instance: &str) -> Result<(), End> {
    let (sender, outbound) = mpsc::channel(1);
    let hello = facts::hello(Purpose::Trial, instance, &[]);
    Sender(sender.clone()).send(Request::Hello(hello)).await;
    // The session stays open until it is answered.
    let opened = open(channel, outbound).await.map(drop);
    drop(sender);
    opened
}

/// What all components are at this moment; one that is ending is left out.
pub(super) async fn snapshots(handles: &Handles) -> Vec<Snapshot> {
    let mut snapshots = Vec::new();
    for handle in handles.all() {
        snapshots.extend(handle.snapshot().await);
    }
    snapshots
}
