//! Sessions: what agents are told, who displaces whom, and what a revocation does.

use std::time::{Duration, Instant};

use upfleet_api::{reason::from_status, v1};
use upfleet_domain::{
    id::NodeId,
    order::{DesiredState, Generation, Target},
    reason::ReasonCode,
};
use v1::{session_request::Message as In, session_response::Message as Out};

use super::support::{Agent, Controller, component, hello};
use crate::{store::Change, testing::eventually};

fn node() -> NodeId {
    "web-01".parse().unwrap()
}

fn stay(epoch: u64, number: u64) -> DesiredState {
    DesiredState {
        component: "hello".parse().unwrap(),
        generation: Generation { epoch, number },
        rollout: None,
        upgrade: None,
        target: Target::Stay,
        layers: Vec::new(),
        live: false,
        hold_before: None,
        not_after: None,
        allow_downgrade: false,
        allow_failed_digest: false,
        soak: None,
        trace: String::new(),
        actor: "users/root".into(),
    }
}

async fn put(controller: &Controller, desired: DesiredState) {
    let store = &controller.running.operations.store;
    store.commit(vec![Change::PutDesired { node: node(), desired }]).await.unwrap();
}

async fn epoch(controller: &Controller) -> u64 {
    controller.running.operations.store.meta().await.unwrap().epoch
}

async fn shown(controller: &Controller) -> v1::Node {
    let get = v1::GetNodeRequest { name: "nodes/web-01".into() };
    controller.nodes().await.get_node(get).await.unwrap().into_inner().node.unwrap()
}

#[tokio::test]
async fn orders_follow_the_store_and_come_again_on_each_connection() {
    let controller = Controller::start().await;
    let identity = controller.enroll("web-01").await;
    let epoch = epoch(&controller).await;
    let mut agent = Agent::open(&controller, &identity, hello("a")).await.unwrap();
    assert!(shown(&controller).await.online);

    put(&controller, stay(epoch, 1)).await;
    let order = agent.order().await;
    assert_eq!((order.epoch, order.generation), (epoch, 1));
    let ack = v1::DesiredStateAck { component: "hello".into(), epoch, generation: 1 };
    agent.say(In::Ack(ack)).await;
    put(&controller, stay(epoch, 2)).await;
    assert_eq!(agent.order().await.generation, 2);
    drop(agent);

    let mut again = Agent::open(&controller, &identity, hello("a")).await.unwrap();
    assert_eq!(again.order().await.generation, 2, "what was acknowledged or not: the newest comes again");
}

#[tokio::test]
async fn a_hold_travels_without_an_order() {
    let controller = Controller::start().await;
    let identity = controller.enroll("web-01").await;
    let mut agent = Agent::open(&controller, &identity, hello("a")).await.unwrap();
    let hold = v1::HoldComponentRequest {
        name: "nodes/web-01".into(),
        component: "hello".into(),
        message: "debugging".into(),
    };
    controller.nodes().await.hold_component(hold).await.unwrap();
    let order = agent.order().await;
    let held = order.hold_order.unwrap();
    assert!(held.hold);
    assert_eq!((order.epoch, order.generation, held.actor.as_str()), (0, 0, "users/root"));
}

#[tokio::test]
async fn a_report_is_acknowledged_once_it_is_recorded() {
    let controller = Controller::start().await;
    let identity = controller.enroll("web-01").await;
    let mut agent = Agent::open(&controller, &identity, hello("a")).await.unwrap();
    // No such upgrade is known: it is acknowledged all the same, so that the agent can forget it.
    let report = v1::UpgradeReport {
        upgrade: "u-1".into(),
        component: "hello".into(),
        sequence: 1,
        state: v1::UpgradeState::Preflight.into(),
        reason: Some(v1::Reason { code: "CHECKING".into(), ..Default::default() }),
        event_time: Some(pbjson_types::Timestamp { seconds: 1, nanos: 0 }),
        ..Default::default()
    };
    agent.say(In::Report(report)).await;
    let Out::ReportAck(ack) = agent.next().await.unwrap() else { panic!("no acknowledgement") };
    assert_eq!((ack.upgrade.as_str(), ack.sequence), ("u-1", 1));
}

#[tokio::test]
async fn a_newer_session_displaces_the_older_and_a_trial_nobody() {
    let controller = Controller::start().await;
    let identity = controller.enroll("web-01").await;
    let mut first = Agent::open(&controller, &identity, hello("a")).await.unwrap();
    let mut trial = hello("t");
    trial.purpose = v1::hello::Purpose::Trial.into();
    let _trial = Agent::open(&controller, &identity, trial).await.unwrap();
    let _second = Agent::open(&controller, &identity, hello("b")).await.unwrap();
    let end = from_status(&first.end().await).unwrap();
    assert_eq!(end.code, ReasonCode::SessionDisplaced);
    assert!(shown(&controller).await.online);
}

#[tokio::test]
async fn two_processes_in_turn_are_cut_off_as_clones() {
    let controller = Controller::start().await;
    let identity = controller.enroll("web-01").await;
    let _one = Agent::open(&controller, &identity, hello("a")).await.unwrap();
    let _two = Agent::open(&controller, &identity, hello("b")).await.unwrap();
    let mut three = Agent::open(&controller, &identity, hello("a")).await.unwrap();
    let begun = Instant::now();
    let four = Agent::open(&controller, &identity, hello("b")).await;
    assert!(four.is_err(), "the third displacement ends both");
    three.end().await;
    assert!(begun.elapsed() < Duration::from_secs(5));
    let node = shown(&controller).await;
    assert_eq!(node.state(), v1::node::State::Suspended);
    assert_eq!(node.reason.unwrap().code, "CLONE_SUSPECTED");
    assert!(!node.online);
    assert!(Agent::open(&controller, &identity, hello("a")).await.is_err(), "until a person decides");

    let uncordon = v1::UncordonNodeRequest { name: "nodes/web-01".into() };
    controller.nodes().await.uncordon_node(uncordon).await.unwrap();
    Agent::open(&controller, &identity, hello("a")).await.unwrap();
}

#[tokio::test]
async fn retiring_a_node_ends_its_session_within_five_seconds() {
    let controller = Controller::start().await;
    let identity = controller.enroll("web-01").await;
    let mut agent = Agent::open(&controller, &identity, hello("a")).await.unwrap();
    let begun = Instant::now();
    let retire = v1::RetireNodeRequest { name: "nodes/web-01".into(), ..Default::default() };
    controller.nodes().await.retire_node(retire).await.unwrap();
    agent.end().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(Agent::open(&controller, &identity, hello("a")).await.is_err());
}

#[tokio::test]
async fn nothing_is_ordered_to_an_agent_that_is_ahead() {
    let controller = Controller::start().await;
    let identity = controller.enroll("web-01").await;
    let epoch = epoch(&controller).await;
    let mut ahead = hello("a");
    ahead.components[0].epoch = epoch;
    ahead.components[0].generation = 7;
    let mut agent = Agent::open(&controller, &identity, ahead.clone()).await.unwrap();
    put(&controller, stay(epoch, 8)).await;
    let silence = tokio::time::timeout(Duration::from_millis(300), agent.stream.message()).await;
    assert!(silence.is_err(), "an order went out: {silence:?}");
    assert_eq!(shown(&controller).await.reason.unwrap().code, "CONTROLLER_BEHIND");
    drop(agent);

    // Overtaking the agent does not end the alarm, raising the epoch does.
    let mut agent = Agent::open(&controller, &identity, ahead.clone()).await.unwrap();
    let silence = tokio::time::timeout(Duration::from_millis(300), agent.stream.message()).await;
    assert!(silence.is_err(), "an order went out: {silence:?}");
    drop(agent);
    let store = &controller.running.operations.store;
    store.commit(vec![Change::RaiseEpoch { from: epoch }]).await.unwrap();
    put(&controller, stay(epoch + 1, 1)).await;
    let mut agent = Agent::open(&controller, &identity, ahead).await.unwrap();
    assert_eq!(agent.order().await.epoch, epoch + 1);
    assert!(shown(&controller).await.reason.is_none(), "the alarm is over");
}

#[tokio::test]
async fn a_certificate_is_renewed_over_the_session() {
    let controller = Controller::start().await;
    let identity = controller.enroll("web-01").await;
    let mut agent = Agent::open(&controller, &identity, hello("a")).await.unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let csr_der = super::support::csr(&key).into();
    agent.say(In::CertificateRequest(v1::CertificateRequest { csr_der })).await;
    let Out::CertificateGrant(grant) = agent.next().await.unwrap() else { panic!("no certificate") };
    let renewed = super::support::Identity { chain_pem: grant.certificate_pem, key_pem: key.serialize_pem() };
    Agent::open(&controller, &renewed, hello("a")).await.unwrap();
    Agent::open(&controller, &identity, hello("a")).await.expect("the old one is good until it ends");
}

#[tokio::test]
async fn logs_are_asked_of_the_agent_and_a_silent_node_is_offline() {
    let controller = Controller::start().await;
    let identity = controller.enroll("web-01").await;
    let ask = v1::TailComponentLogRequest {
        name: "nodes/web-01".into(),
        component: "hello".into(),
        ..Default::default()
    };
    let offline = controller.nodes().await.tail_component_log(ask.clone()).await;
    assert_eq!(super::support::code(offline.map(drop)), ReasonCode::NodeOffline);

    let mut agent = Agent::open(&controller, &identity, hello("a")).await.unwrap();
    let mut nodes = controller.nodes().await;
    let mut tail = nodes.tail_component_log(ask).await.unwrap().into_inner();
    let Out::LogQuery(query) = agent.next().await.unwrap() else { panic!("not asked") };
    assert_eq!((query.component.as_str(), query.lines), ("hello", 200));
    let lines = vec!["listening".to_owned()];
    let answer = v1::LogLines { query_id: query.query_id, lines: lines.clone(), done: true, failure: None };
    agent.say(In::LogLines(answer)).await;
    assert_eq!(tail.message().await.unwrap().unwrap().lines, lines);
    assert!(tail.message().await.unwrap().is_none(), "the answer was whole");
}

#[tokio::test]
async fn inventory_and_the_end_of_a_session_are_recorded() {
    let controller = Controller::start().await;
    let identity = controller.enroll("web-01").await;
    let agent = Agent::open(&controller, &identity, hello("a")).await.unwrap();
    let changed = v1::ComponentInventory { pid: 77, changer: "local".into(), ..component("hello") };
    agent.say(In::Inventory(changed)).await;
    let sessions = controller.running.operations.sessions.clone();
    for _ in 0..500 {
        if shown(&controller).await.components[0].pid == 77 {
            break;
        }
    }
    let node = shown(&controller).await;
    assert_eq!((node.components[0].pid, node.components[0].changer.as_str()), (77, "local"));
    drop(agent);
    eventually("the session is over", || sessions.count() == 0).await;
    for _ in 0..500 {
        if !shown(&controller).await.online {
            break;
        }
    }
    assert!(!shown(&controller).await.online);
    assert!(shown(&controller).await.last_seen_time.is_some());
}

#[tokio::test]
async fn a_hold_goes_above_what_the_agent_has_kept_from_before_a_restore() {
    let controller = Controller::start().await;
    let node = controller.enroll("web-01").await;
    let mut greeting = hello("a");
    greeting.components[0].hold_generation = 5;
    let mut agent = Agent::open(&controller, &node, greeting).await.unwrap();
    let hold = v1::HoldComponentRequest {
        name: "nodes/web-01".into(),
        component: "hello".into(),
        ..Default::default()
    };
    controller.nodes().await.hold_component(hold).await.unwrap();
    assert_eq!(agent.order().await.hold_order.unwrap().generation, 6);
}

#[tokio::test]
async fn a_hello_that_is_not_valid_leaves_no_session_behind() {
    let controller = Controller::start().await;
    let node = controller.enroll("web-01").await;
    let platform = Some(v1::Platform { os: "../etc".into(), arch: String::new() });
    let refused = Agent::open(&controller, &node, v1::Hello { platform, ..hello("a") }).await;
    assert!(refused.is_err());
    assert_eq!(controller.running.operations.sessions.count(), 0);
}
