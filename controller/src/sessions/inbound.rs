//! What agents say: recorded first, acknowledged afterwards.

use upfleet_api::{convert, v1};
use upfleet_domain::{
    id::NodeId,
    jvm::Jvm,
    order::{Generation, Target},
    reason::{Reason, ReasonCode},
    report::{ComponentInventory, UpgradeReport},
};
use v1::{session_request::Message as In, session_response::Message as Out};

use super::{Sessions, hub::Progress, orders::Orders, session::Session};
use crate::{
    failure::internal,
    store::{Change, DesiredRecord, ReportOutcome},
};

/// Deals with one message.
///
/// # Errors
/// Why the session has to end. What an agent was not told to be recorded it sends again.
pub(super) async fn handle(
    session: &mut Session<'_>,
    orders: &mut Orders,
    message: In,
) -> Result<(), Reason> {
    match message {
        In::Hello(_) => Err(convert::invalid("hello", "it is the first message only")),
        In::Ack(ack) => acknowledged(session, orders, &ack).await,
        In::Nack(nack) => refused(session, orders, nack).await,
        In::Report(report) => reported(session, report).await,
        In::Progress(progress) => {
            if let Ok(upgrade) = convert::parse(&progress.upgrade, "progress.upgrade") {
                session.sessions.publish(Progress {
                    node: session.node.clone(),
                    upgrade,
                    fetched: progress.fetched_bytes,
                    total: progress.total_bytes,
                });
            }
            Ok(())
        }
        In::Inventory(inventory) => {
            let inventory: ComponentInventory = convert::within("inventory", inventory.try_into())?;
            orders.keeps(&inventory.component, inventory.generation)?;
            let changes = record_inventory(session.sessions, session.node, inventory).await?;
            commit(session, changes).await?;
            raise(session, orders).await
        }
        In::JvmInventory(inventory) => jvms(session, inventory).await,
        In::CertificateRequest(request) => renew(session, &request).await,
        In::LogLines(lines) => {
            if let Some(over) = session.questions.answer(lines) {
                session.outbox.send(over).await?;
            }
            Ok(())
        }
    }
}

/// Records which JVMs run on the node.
async fn jvms(session: &Session<'_>, wire: v1::JvmInventory) -> Result<(), Reason> {
    if wire.jvms.len() > convert::jvm::MAX_JVMS {
        return Err(Reason::new(ReasonCode::LimitExceeded)
            .with("what", "the number of JVMs")
            .with("limit", convert::jvm::MAX_JVMS));
    }
    let mut jvms: Vec<Jvm> = convert::within("jvm_inventory", convert::each(wire.jvms, "jvms"))?;
    jvms.sort_by_key(|jvm| jvm.pid);
    commit(session, vec![Change::PutJvms { node: session.node.clone(), jvms }]).await?;
    Ok(())
}

/// Raises the alarm where the agent turned out to be ahead of the store.
async fn raise(session: &Session<'_>, orders: &mut Orders) -> Result<(), Reason> {
    orders.compare(session.sessions.store().as_ref()).await?;
    match orders.alarm() {
        Some(alarm) => session.alarm(alarm).await,
        None => Ok(()),
    }
}

async fn commit(session: &Session<'_>, changes: Vec<Change>) -> Result<crate::store::Committed, Reason> {
    let gate = session.sessions.gate();
    let _passes = gate.read().await;
    session.sessions.store().commit(changes).await.map_err(internal)
}

async fn acknowledged(
    session: &Session<'_>,
    orders: &mut Orders,
    ack: &v1::DesiredStateAck,
) -> Result<(), Reason> {
    let component = convert::parse(&ack.component, "ack.component")?;
    let generation = Generation { epoch: ack.epoch, number: ack.generation };
    orders.keeps(&component, generation)?;
    let hold_generation = orders.hold_sent(&component);
    let node = session.node.clone();
    commit(session, vec![Change::Acknowledge { node, component, generation, hold_generation }]).await?;
    Ok(())
}

async fn refused(
    session: &Session<'_>,
    orders: &mut Orders,
    nack: v1::DesiredStateNack,
) -> Result<(), Reason> {
    let component = convert::parse(&nack.component, "nack.component")?;
    let reason = convert::field(nack.reason, "nack.reason")?;
    let kept = Generation { epoch: nack.kept_epoch, number: nack.kept_generation };
    orders.keeps(&component, kept)?;
    let generation = Generation { epoch: nack.epoch, number: nack.generation };
    tracing::warn!(%component, %reason, "the agent refused an order");
    let (node, time) = (session.node.clone(), session.sessions.clock().now());
    commit(session, vec![Change::Refuse { node, component, generation, reason, time }]).await?;
    // A stale refusal may show that the agent is ahead; orders must end then.
    raise(session, orders).await
}

async fn reported(session: &Session<'_>, wire: v1::UpgradeReport) -> Result<(), Reason> {
    let ack = v1::UpgradeReportAck { upgrade: wire.upgrade.clone(), sequence: wire.sequence };
    let mut foreign = false;
    match UpgradeReport::try_from(wire) {
        Ok(report) => {
            let (node, time) = (session.node.clone(), session.sessions.clock().now());
            let report = Box::new(report);
            let committed = commit(session, vec![Change::RecordReport { node, report, time }]).await?;
            foreign = committed.reports.iter().any(|(_, _, outcome)| *outcome == ReportOutcome::Foreign);
        }
        // It would come again for ever and hold up all behind it.
        Err(reason) => tracing::error!(%reason, "passed over a report"),
    }
    let upgrade = ack.upgrade.clone();
    session.outbox.send(Out::ReportAck(ack)).await?;
    if foreign {
        let reason = Reason::new(ReasonCode::ForeignReport).with("node", session.node);
        return Err(reason.with("upgrade", upgrade));
    }
    Ok(())
}

/// The changes that record what a component runs, and who put it there.
pub(super) async fn record_inventory(
    sessions: &Sessions,
    node: &NodeId,
    inventory: ComponentInventory,
) -> Result<Vec<Change>, Reason> {
    let changed = if inventory.changer == "local" {
        Some(("local".to_owned(), None))
    } else {
        let desired = sessions.store().desired(node).await.map_err(internal)?;
        let record = desired.into_iter().find(|record| record.component == inventory.component);
        record.and_then(|record| ordered_by(&record, &inventory))
    };
    let seen = Change::Acknowledge {
        node: node.clone(),
        component: inventory.component.clone(),
        generation: inventory.generation,
        hold_generation: inventory.hold_generation,
    };
    Ok(vec![Change::PutComponent { node: node.clone(), inventory, changed }, seen])
}

/// Who ordered what runs, where the newest order is what put it there.
fn ordered_by(
    record: &DesiredRecord,
    inventory: &ComponentInventory,
) -> Option<(String, Option<upfleet_domain::id::RolloutId>)> {
    let desired = record.desired.as_ref()?;
    if desired.generation != inventory.generation {
        return None;
    }
    let runs_it = match &desired.target {
        Target::Install(release) => {
            let stack = upfleet_domain::state::stack_digest(&desired.layers);
            inventory.current.artifact() == Some(release.artifact) && inventory.current.stack() == stack
        }
        Target::Restore(state) => inventory.current.same_content(state),
        Target::Stack(_) => {
            let wanted = upfleet_domain::state::stack_digest(&desired.layers);
            inventory.current.stack() == wanted
        }
        Target::Stay => false,
    };
    runs_it.then(|| (desired.actor.clone(), desired.rollout.clone()))
}

/// Signs a new key for the node; the old certificate stays good until it ends.
async fn renew(session: &Session<'_>, request: &v1::CertificateRequest) -> Result<(), Reason> {
    let sessions = session.sessions;
    let renewed = crate::ops::renew_node(
        sessions.store().as_ref(),
        sessions.ca(),
        session.node,
        &request.csr_der,
        sessions.clock().now(),
    );
    let issued = renewed.await?;
    tracing::info!(serial = issued.serial, "renewed a node's certificate");
    let grant =
        v1::CertificateGrant { certificate_pem: issued.chain_pem, ca_pem: sessions.ca().pem().to_owned() };
    session.outbox.send(Out::CertificateGrant(grant)).await
}
