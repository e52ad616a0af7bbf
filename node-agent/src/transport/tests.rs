//! Sessions, against a scripted controller and scripted components.

use std::sync::atomic::Ordering;

use tokio::task::JoinHandle;
use upfleet_api::{
    convert,
    v1::{self, session_request::Message as Request, session_response::Message as Response},
};
use upfleet_domain::{
    digest::Digest,
    id::UpgradeId,
    order::{DesiredState, Generation, Target},
    reason::{Reason, ReasonCode},
    report::{ComponentInventory, UpgradeReport},
    state::ComponentState,
    upgrade::{Phase, UpgradeState},
};

use super::*;
use crate::{
    component::{Acked, Handle, Message, Nacked, Snapshot},
    testing::{FakeController, Opened, WEEK},
};

fn inventory() -> ComponentInventory {
    ComponentInventory {
        component: "web".parse().unwrap(),
        current: ComponentState::unmanaged(Digest::of(b"x")),
        previous: None,
        kept: vec![],
        kept_digests: vec![],
        running: None,
        healthy: true,
        hold: None,
        drift: None,
        generation: Generation::default(),
        hold_generation: 0,
        upgrade: None,
        upgrade_state: None,
        run_mode: "none".into(),
        pid: None,
        changed: None,
        changer: String::new(),
        failed: vec![],
        proof: None,
        alarms: Vec::new(),
        patchable: false,
    }
}

fn report(sequence: u64) -> UpgradeReport {
    UpgradeReport {
        upgrade: "r-1.web-01".parse().unwrap(),
        component: "web".parse().unwrap(),
        sequence,
        generation: Generation { epoch: 1, number: 1 },
        state: UpgradeState::Active(Phase::Preflight),
        reason: Reason::new(ReasonCode::Checking),
        time: Time(0),
        from: None,
        current: None,
        running: None,
        evidence: None,
        proof: None,
        reload: None,
        interruption: None,
    }
}

fn handle(sender: mpsc::Sender<Message>) -> Handle {
    let web = "web".parse().unwrap();
    let place = crate::exec::Place::new(&web, std::path::Path::new("/nowhere/web"));
    Handle::new(web, place, sender)
}

/// A component that accepts odd generations and has the given reports left; says what was acknowledged.
pub(super) fn component(
    handles: &Handles,
    unacknowledged: Vec<UpgradeReport>,
) -> mpsc::Receiver<(UpgradeId, u64)> {
    let (sender, mut mailbox) = mpsc::channel(8);
    handles.insert(handle(sender));
    let (acked, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Some(message) = mailbox.recv().await {
            match message {
                Message::Snapshot { answer } => {
                    let reports = unacknowledged.clone();
                    let _ = answer.send(Snapshot { inventory: inventory(), reason: None, reports });
                }
                Message::Order { desired, answer, .. } => {
                    let generation = desired.generation;
                    let kept = Generation { epoch: 1, number: 1 };
                    let reason = Reason::new(ReasonCode::ComponentHeld);
                    let nacked = Nacked { generation, reason, kept, upgrade: desired.upgrade };
                    let accepts = generation.number % 2 == 1;
                    let _ = answer.send(if accepts { Ok(Acked { generation }) } else { Err(nacked) });
                }
                Message::ReportAcked { upgrade, sequence } => {
                    let _ = acked.send((upgrade, sequence)).await;
                }
                Message::Tail { lines, answer } => {
                    let _ = answer.send(Ok((0..lines).map(|line| format!("line {line}")).collect()));
                }
                _ => {}
            }
        }
    });
    receiver
}

pub(super) struct Agent {
    controller: FakeController,
    said: mpsc::Sender<Outgoing>,
    acked: mpsc::Receiver<(UpgradeId, u64)>,
    pub(super) link: watch::Receiver<Link>,
    connector: Connector,
    handles: Handles,
    pub(super) running: JoinHandle<()>,
    shutdown: CancellationToken,
    _state: tempfile::TempDir,
}

pub(super) async fn agent(life: Duration, unacknowledged: Vec<UpgradeReport>) -> Agent {
    let (controller, state) = (FakeController::start(vec![]).await, tempfile::tempdir().unwrap());
    let connector = controller.connector(state.path(), life);
    let handles = Handles::default();
    let acked = component(&handles, unacknowledged);
    let (said, outgoing) = mpsc::channel(8);
    let (link, seen) = watch::channel(Link::new(connector.address()));
    let shutdown = CancellationToken::new();
    let transport = Transport { connector: connector.clone(), purpose: Purpose::Serve, link, hurry: false };
    let running = tokio::spawn(run(transport, handles.clone(), outgoing, shutdown.clone()));
    Agent { controller, said, acked, link: seen, connector, handles, running, shutdown, _state: state }
}

impl Agent {
    /// The next session, greeted; with its Hello.
    pub(super) async fn greeted(&mut self) -> (Opened, v1::Hello) {
        let mut session = self.controller.sessions.recv().await.unwrap();
        let Request::Hello(hello) = session.next().await else { panic!("no Hello") };
        let welcome = v1::Welcome { node: "nodes/web-01".into(), epoch: 1, ..Default::default() };
        session.send(Response::Welcome(welcome)).await;
        (session, hello)
    }
}

pub(super) fn desired(number: u64) -> v1::DesiredState {
    let desired = DesiredState {
        component: "web".parse().unwrap(),
        generation: Generation { epoch: 1, number },
        rollout: None,
        upgrade: Some("r-1.web-01".parse().unwrap()),
        target: Target::Stay,
        layers: vec![],
        live: false,
        hold_before: None,
        not_after: None,
        allow_downgrade: false,
        allow_failed_digest: false,
        soak: None,
        trace: String::new(),
        actor: String::new(),
    };
    (&convert::Order { desired, manifest: None, layers: Vec::new(), hold: None }).into()
}

#[tokio::test]
async fn a_session_greets_answers_orders_and_reports() {
    let mut agent = agent(WEEK, vec![]).await;
    let (mut session, hello) = agent.greeted().await;
    assert_eq!(hello.purpose(), v1::hello::Purpose::Serve);
    assert_eq!(hello.components[0].component, "web");
    assert!(!hello.boot_id.is_empty() && !hello.instance_id.is_empty());
    assert_eq!(hello.platform.unwrap().os, "linux");
    agent.link.wait_for(|link| link.connected).await.unwrap();

    session.send(Response::DesiredState(desired(3))).await;
    let Request::Ack(ack) = session.next().await else { panic!("no ack") };
    assert_eq!((ack.epoch, ack.generation), (1, 3));
    session.send(Response::DesiredState(desired(4))).await;
    let Request::Nack(nack) = session.next().await else { panic!("no nack") };
    assert_eq!(nack.reason.unwrap().code, "COMPONENT_HELD");
    assert_eq!((nack.kept_generation, nack.upgrade.as_str()), (1, "r-1.web-01"));
    let unknown = v1::DesiredState { component: "other".into(), ..desired(5) };
    session.send(Response::DesiredState(unknown)).await;
    let Request::Nack(nack) = session.next().await else { panic!("no nack") };
    assert_eq!(nack.reason.unwrap().code, "UNKNOWN_COMPONENT");

    agent.said.send(Outgoing::Report(Box::new(report(1)))).await.unwrap();
    let Request::Report(sent) = session.next().await else { panic!("no report") };
    let ack = v1::UpgradeReportAck { upgrade: sent.upgrade, sequence: sent.sequence };
    session.send(Response::ReportAck(ack)).await;
    assert_eq!(agent.acked.recv().await.unwrap().1, 1);

    let query = v1::LogQuery { query_id: "q".into(), component: "web".into(), lines: 3, follow: false };
    session.send(Response::LogQuery(query)).await;
    let Request::LogLines(lines) = session.next().await else { panic!("no lines") };
    assert_eq!(lines.lines, ["line 0", "line 1", "line 2"]);
    let Request::LogLines(end) = session.next().await else { panic!("no end") };
    assert!(end.done && end.failure.is_none());

    agent.shutdown.cancel();
    agent.running.await.unwrap();
}

/// An actor that ends is asked again, since a reload replaces it; one that is gone for good is said to be.
#[tokio::test]
async fn an_order_to_a_component_that_left_is_refused_in_the_end() {
    let mut agent = agent(WEEK, vec![]).await;
    let (mut session, _) = agent.greeted().await;
    agent.handles.insert(handle(mpsc::channel(1).0));
    session.send(Response::DesiredState(desired(3))).await;
    let unknown = v1::DesiredState { component: "other".into(), ..desired(5) };
    session.send(Response::DesiredState(unknown)).await;
    let Request::Nack(nack) = session.next().await else { panic!("no nack") };
    assert_eq!(nack.component, "other", "nobody waits for another component");
    agent.handles.remove(&"web".parse().unwrap());
    let Request::Nack(nack) = session.next().await else { panic!("no nack") };
    assert_eq!((nack.generation, nack.reason.unwrap().code.as_str()), (3, "UNKNOWN_COMPONENT"));
    agent.running.abort();
}

/// What the controller says of the time is compared, not believed, however absurd.
#[tokio::test]
async fn an_absurd_time_of_the_controller_ends_nothing() {
    let mut agent = agent(WEEK, vec![]).await;
    let mut session = agent.controller.sessions.recv().await.unwrap();
    let Request::Hello(_) = session.next().await else { panic!("no Hello") };
    let server_time = Some(convert::timestamp(Time(i64::MIN)));
    let welcome = v1::Welcome { node: "nodes/web-01".into(), server_time, ..Default::default() };
    session.send(Response::Welcome(welcome)).await;
    session.send(Response::DesiredState(desired(3))).await;
    let Request::Ack(ack) = session.next().await else { panic!("no ack") };
    assert_eq!(ack.generation, 3);
    agent.running.abort();
}

#[tokio::test]
async fn byte_progress_is_coalesced() {
    let mut agent = agent(WEEK, vec![]).await;
    let (mut session, _) = agent.greeted().await;
    agent.link.wait_for(|link| link.connected).await.unwrap();
    for fetched in 0..500 {
        let upgrade = "r-1.web-01".parse().unwrap();
        agent.said.send(Outgoing::Progress { upgrade, fetched, total: 500 }).await.unwrap();
    }
    agent.said.send(Outgoing::Inventory(Box::new(inventory()))).await.unwrap();
    let mut progress = 0;
    while let Request::Progress(_) = session.next().await {
        progress += 1;
    }
    assert!(progress <= 2, "{progress} messages");
}

#[tokio::test]
async fn after_a_break_all_that_is_not_acknowledged_comes_again_in_order() {
    let mut agent = agent(WEEK, vec![report(1), report(2), report(3)]).await;
    let mut instances = Vec::new();
    for _ in 0..2 {
        let (mut session, hello) = agent.greeted().await;
        instances.push(hello.instance_id);
        for sequence in 1..=3 {
            let Request::Report(sent) = session.next().await else { panic!("no report") };
            assert_eq!(sent.sequence, sequence);
        }
        session.outbound.send(Err(tonic::Status::unavailable("test"))).await.unwrap();
        agent.link.wait_for(|link| link.problem.is_some()).await.unwrap();
    }
    assert_eq!(instances[0], instances[1], "the same process");
}

#[tokio::test]
async fn components_never_wait_for_the_network() {
    let (controller, state) = (FakeController::start(vec![]).await, tempfile::tempdir().unwrap());
    let connector = controller.connector(state.path(), WEEK);
    drop(controller);
    let (said, outgoing) = mpsc::channel(1);
    let (link, _seen) = watch::channel(Link::new("nowhere"));
    let transport = Transport { connector, purpose: Purpose::Serve, link, hurry: false };
    let shutdown = CancellationToken::new();
    tokio::spawn(run(transport, Handles::default(), outgoing, shutdown));
    for sequence in 1..5000 {
        said.send(Outgoing::Report(Box::new(report(sequence)))).await.unwrap();
    }
}

#[tokio::test]
async fn the_certificate_is_renewed_over_the_session_and_proven_first() {
    // Past 60 % of its life already, so that it is renewed at once.
    let mut agent = agent(Duration::from_secs(90), vec![]).await;
    let (mut session, _) = agent.greeted().await;
    let Request::CertificateRequest(request) = session.next().await else { panic!("no request") };
    let old = agent.connector.identities().current();
    let granted = agent.controller.script.ca.sign_node(&request.csr_der, "web-01", WEEK);
    let grant = v1::CertificateGrant { certificate_pem: granted.certificate_pem, ca_pem: granted.ca_pem };
    session.send(Response::CertificateGrant(grant)).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while agent.connector.identities().current().not_after() == old.not_after() {
        assert!(tokio::time::Instant::now() < deadline, "not renewed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(agent.controller.script.proofs.load(Ordering::SeqCst), 1);
    assert_ne!(agent.connector.identities().current().chain(), old.chain());
}

#[tokio::test]
async fn a_certificate_for_another_node_is_not_taken() {
    let mut agent = agent(Duration::from_secs(90), vec![]).await;
    let (mut session, _) = agent.greeted().await;
    let Request::CertificateRequest(request) = session.next().await else { panic!("no request") };
    let old = agent.connector.identities().current();
    let granted = agent.controller.script.ca.sign_node(&request.csr_der, "web-02", WEEK);
    let grant = v1::CertificateGrant { certificate_pem: granted.certificate_pem, ca_pem: granted.ca_pem };
    session.send(Response::CertificateGrant(grant)).await;
    // The session goes on, with the old certificate.
    session.send(Response::DesiredState(desired(3))).await;
    let Request::Ack(_) = session.next().await else { panic!("no ack") };
    assert_eq!(agent.connector.identities().current().chain(), old.chain());
}

#[tokio::test]
async fn an_expired_certificate_is_renewed_by_its_key() {
    let (controller, state) = (FakeController::start(vec![]).await, tempfile::tempdir().unwrap());
    let ca = &controller.script.ca;
    let key = crate::identity::new_key();
    let granted = ca.sign_node(&crate::identity::request_for(&key), "web-01", Duration::from_secs(30));
    let address = format!("localhost:{}", controller.address.port());
    let door = crate::identity::EnrollmentDoor { address };
    let expired = crate::identity::Identity::new(&key, granted, door).unwrap();
    assert!(expired.remaining(now()).is_zero());
    let identities = crate::identity::Identities::create(state.path(), expired).unwrap();
    renew_expired(&identities).await.unwrap();
    assert!(!identities.current().remaining(now()).is_zero());
    assert_eq!(identities.current().key_pair().public_key_raw(), key.public_key_raw());
}
