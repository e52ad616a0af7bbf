//! Agents that lie: nodes that speak for others, messages that are none, sessions that keep to no order.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rcgen::KeyPair;
use tokio::io::AsyncWriteExt as _;
use tokio_stream::StreamExt as _;
use tonic::{Code, Status, body::Body, codec::Codec as _};
use tower::ServiceExt as _;
use upfleet_api::{reason::from_status, v1};
use upfleet_domain::{digest::Digest, reason::ReasonCode};
use v1::{session_request::Message as In, session_response::Message as Out};

use super::support::{Agent, Controller, Identity, code, component, csr, enroll_request, hello};
use crate::{
    store::contract::fixtures,
    testing::{client_config_with, tls_connect},
};

fn report(upgrade: &str, sequence: u64) -> v1::UpgradeReport {
    v1::UpgradeReport {
        upgrade: upgrade.into(),
        component: "hello".into(),
        sequence,
        state: v1::UpgradeState::Succeeded.into(),
        reason: Some(v1::Reason { code: "SUCCEEDED".into(), ..Default::default() }),
        event_time: Some(pbjson_types::Timestamp { seconds: 1, nanos: 0 }),
        ..Default::default()
    }
}

type Everything = tonic_prost::ProstCodec<v1::SessionRequest, v1::SessionResponse>;

/// A session that carries these bytes instead of messages; returns how it ended.
async fn session_of(controller: &Controller, node: &Identity, frames: Vec<Vec<u8>>) -> Status {
    let channel = controller.channel(node).await;
    // What was sent is followed by silence: the controller must not wait for more.
    let frames = tokio_stream::iter(frames).chain(tokio_stream::pending());
    let frames = frames.map(|frame| Ok::<_, Status>(Bytes::from(frame)));
    let request = http::Request::post("http://controller/upfleet.v1.AgentService/Session")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(axum::body::Body::from_stream(frames)))
        .unwrap();
    let answered = tokio::time::timeout(Duration::from_secs(20), async {
        let response =
            channel.oneshot(request).await.map_err(|error| Status::unavailable(format!("{error:?}")))?;
        if let Some(status) = Status::from_header_map(response.headers()) {
            return Err(status);
        }
        let decoder = Everything::default().decoder();
        let body = response.into_body();
        let mut stream = tonic::Streaming::new_response(decoder, body, http::StatusCode::OK, None, None);
        while stream.message().await?.is_some() {}
        Ok(())
    });
    match answered.await.expect("the controller ends the session") {
        Ok(()) => Status::ok("ended"),
        Err(status) => status,
    }
}

/// A gRPC frame: not compressed, of that length, with these bytes.
fn frame(length: u32, bytes: &[u8]) -> Vec<u8> {
    [&[0], &length.to_be_bytes()[..], bytes].concat()
}

#[tokio::test]
async fn garbage_ends_its_own_session_only() {
    let controller = Controller::start().await;
    let liar = controller.enroll("liar").await;
    let honest = controller.enroll("web-01").await;
    let mut witness = Agent::open(&controller, &honest, hello("w")).await.unwrap();
    let random: Vec<u8> = (0..4096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (case, frames) in [
        ("bytes that are no message", vec![frame(4096, &random)]),
        ("no frame at all", vec![random.clone()]),
        ("a length of 100 MiB", vec![frame(100 << 20, b"begun")]),
        ("the longest length", vec![frame(u32::MAX, b"")]),
        ("a compressed frame", vec![[&[1, 0, 0, 0, 1][..], b"x"].concat()]),
        ("an unknown flag", vec![[&[9, 0, 0, 0, 1][..], b"x"].concat()]),
        // A Hello whose length prefix goes on and on.
        (
            "an endless number",
            vec![frame(12, &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])],
        ),
        ("nothing, for ever", vec![]),
        ("a message of an unknown kind first", vec![frame(3, &[0xfa, 0x3f, 0x00])]),
    ] {
        let status = session_of(&controller, &liar, frames).await;
        assert_ne!(status.code(), Code::Ok, "{case}");
    }
    witness.say(In::Inventory(component("hello"))).await;
    let list = controller.nodes().await.list_nodes(v1::ListNodesRequest::default()).await.unwrap();
    assert_eq!(list.into_inner().nodes.iter().filter(|node| node.online).count(), 1, "the witness is there");
    let silence = tokio::time::timeout(Duration::from_millis(200), witness.stream.message()).await;
    assert!(silence.is_err(), "the witness' session was touched: {silence:?}");
}

/// What is said in a session that was opened properly, and ends it with a reason that names the field.
#[tokio::test]
async fn what_is_wrong_ends_the_session_and_is_named() {
    let controller = Controller::start().await;
    let node = controller.enroll("web-01").await;
    let twice = In::Hello(hello("a"));
    let absurd = v1::ComponentInventory { component: "../../etc".into(), ..component("hello") };
    let ack = v1::DesiredStateAck { component: "a b".into(), epoch: u64::MAX, generation: u64::MAX };
    let many = v1::JvmInventory { jvms: vec![v1::Jvm::default(); 10_000] };
    let request = v1::CertificateRequest { csr_der: vec![7; 100_000].into() };
    for (message, wanted) in [
        (twice, ReasonCode::InvalidArgument),
        (In::Inventory(absurd), ReasonCode::InvalidArgument),
        (In::Ack(ack), ReasonCode::InvalidArgument),
        (In::JvmInventory(many), ReasonCode::LimitExceeded),
        (In::CertificateRequest(request), ReasonCode::CsrInvalid),
    ] {
        let mut agent = Agent::open(&controller, &node, hello("a")).await.unwrap();
        agent.say(message.clone()).await;
        let reason = from_status(&agent.end().await).unwrap();
        assert_eq!(reason.code, wanted, "{message:?}: {reason}");
    }
    // The first message, out of order.
    for message in [In::Report(report("u-1", 1)), In::Inventory(component("hello"))] {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        sender.send(v1::SessionRequest { message: Some(message) }).await.unwrap();
        let channel = controller.channel(&node).await;
        let mut client = v1::agent_service_client::AgentServiceClient::new(channel);
        let mut stream =
            client.session(tokio_stream::wrappers::ReceiverStream::new(receiver)).await.unwrap().into_inner();
        assert_eq!(code(stream.message().await), ReasonCode::InvalidArgument);
    }
    Agent::open(&controller, &node, hello("a")).await.expect("the node itself is not shut out");
}

/// Numbers and enums that nobody would say: recorded as they are bounded, or refused; nothing is believed of them.
#[tokio::test]
async fn absurd_numbers_harm_nobody() {
    let controller = Controller::start().await;
    let node = controller.enroll("web-01").await;
    let mut agent = Agent::open(&controller, &node, hello("a")).await.unwrap();
    let mut odd = report("u-1", u64::MAX);
    odd.state = i32::MAX;
    odd.event_time = Some(pbjson_types::Timestamp { seconds: i64::MAX, nanos: i32::MIN });
    agent.say(In::Report(odd)).await;
    let Out::ReportAck(ack) = agent.next().await.unwrap() else { panic!("no acknowledgement") };
    assert_eq!(ack.sequence, u64::MAX, "it would come again for ever");
    let progress = v1::UpgradeProgress { upgrade: "u-1".into(), fetched_bytes: u64::MAX, total_bytes: 0 };
    agent.say(In::Progress(progress)).await;
    agent.say(In::LogLines(v1::LogLines { query_id: "nobody asked".into(), ..Default::default() })).await;
    agent.say(In::Report(report("u-1", 1))).await;
    let Out::LogQueryEnd(_) = agent.next().await.unwrap() else { panic!("told that nobody asked") };
    let Out::ReportAck(ack) = agent.next().await.unwrap() else { panic!("the session goes on") };
    assert_eq!(ack.sequence, 1);
}

#[tokio::test]
async fn a_node_speaks_for_itself_only() {
    let controller = Controller::start().await;
    let (one, other) = (controller.enroll("web-01").await, controller.enroll("web-02").await);
    let mut honest = Agent::open(&controller, &other, hello("b")).await.unwrap();
    let store = controller.running.operations.store.clone();
    let upgrade = "r-1.web-02.1";
    let rows = vec![fixtures::upgrade("web-02", 0, Some(upgrade))];
    store.commit(vec![fixtures::create("r-1", 10, rows)]).await.unwrap();

    // A report of the other's upgrade: acknowledged, so that it does not come for ever, and the session ends.
    let mut liar = Agent::open(&controller, &one, hello("a")).await.unwrap();
    liar.say(In::Report(report(upgrade, 99))).await;
    let Out::ReportAck(_) = liar.next().await.unwrap() else { panic!("no acknowledgement") };
    let status = liar.end().await;
    assert_eq!(
        (status.code(), code(Err::<(), _>(status))),
        (Code::PermissionDenied, ReasonCode::ForeignReport)
    );
    let row = store.upgrade(&"r-1".parse().unwrap(), &"web-02".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(row.sequence, 0, "nothing of it was recorded");

    // A request for the other's name: the names in it are not looked at.
    let mut liar = Agent::open(&controller, &one, hello("a")).await.unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names.push(rcgen::SanType::URI("spiffe://upfleet/node/web-02".try_into().unwrap()));
    params.distinguished_name.push(rcgen::DnType::CommonName, "web-02");
    let csr_der = params.serialize_request(&key).unwrap().der().to_vec().into();
    liar.say(In::CertificateRequest(v1::CertificateRequest { csr_der })).await;
    let Out::CertificateGrant(grant) = liar.next().await.unwrap() else { panic!("no certificate") };
    let granted = Identity { chain_pem: grant.certificate_pem, key_pem: key.serialize_pem() };
    let leaf = crate::tls::Leaf::parse(&granted.shown().0[0]).unwrap();
    assert_eq!(leaf.identity.uri(), "spiffe://upfleet/node/web-01");

    // Joining as the other, with a token that is good; and renewing the other's certificate with one's own key.
    let token = controller.token(v1::CreateEnrollmentTokenRequest::default()).await;
    let taken = controller.enrollment().await.enroll(enroll_request(&token, "web-02", &key)).await;
    assert_eq!(code(taken), ReasonCode::NodeExists);
    let renew = v1::RenewExpiredRequest {
        certificate_der: other.shown().0[0].to_vec().into(),
        csr_der: csr(&key).into(),
    };
    assert!(controller.enrollment().await.renew_expired(renew).await.is_err());

    // The other never noticed.
    honest.say(In::Report(report("u-1", 1))).await;
    let Out::ReportAck(_) = honest.next().await.unwrap() else { panic!("its session goes on") };
}

/// One node reports as fast as it can; another's work is not held up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_reports_holds_up_nobody() {
    let controller = Controller::start().await;
    let (one, other) = (controller.enroll("flood").await, controller.enroll("web-01").await);
    let flood = Agent::open(&controller, &one, hello("a")).await.unwrap();
    let Agent { sender, mut stream } = flood;
    let flooding = tokio::spawn(async move {
        for sequence in 1.. {
            let message = Some(In::Report(report("u-1", sequence)));
            if sender.send(v1::SessionRequest { message }).await.is_err() {
                return;
            }
        }
    });
    // It does not read its acknowledgements for a while, either.
    let reading = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut read = 0_u64;
        while let Ok(Some(_)) = stream.message().await {
            read += 1;
        }
        read
    });
    let mut honest = Agent::open(&controller, &other, hello("b")).await.unwrap();
    let mut slowest = Duration::ZERO;
    for sequence in 1..=50 {
        let began = Instant::now();
        honest.say(In::Report(report("u-2", sequence))).await;
        let Out::ReportAck(_) = honest.next().await.unwrap() else { panic!("no acknowledgement") };
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    flooding.abort();
    reading.abort();
    println!("figure: report_flood the slowest of 50 honest reports took {} ms", slowest.as_millis());
}

/// Clients that begin to shake hands and go on a byte at a time, and others that never begin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_handshakes_hold_up_nobody() {
    let controller = Controller::start().await;
    let node = controller.enroll("web-01").await;
    let address = controller.running.endpoints.api;
    let mut slow = Vec::new();
    for _ in 0..100 {
        slow.push(tokio::spawn(async move {
            let Ok(mut tcp) = tokio::net::TcpStream::connect(address).await else { return };
            // The beginning of a handshake of 512 bytes.
            for byte in [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0] {
                if tcp.write_all(&[byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }));
    }
    let began = Instant::now();
    let mut agent = Agent::open(&controller, &node, hello("a")).await.unwrap();
    agent.say(In::Report(report("u-1", 1))).await;
    let Out::ReportAck(_) = agent.next().await.unwrap() else { panic!("no acknowledgement") };
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // Each of them is cut off after five seconds, however diligently it goes on.
    let ended = async {
        for task in slow {
            let _ = task.await;
        }
    };
    tokio::time::timeout(Duration::from_secs(15), ended).await.expect("they are cut off");
}

async fn upload(controller: &Controller, bytes: &[u8]) -> Digest {
    use v1::upload_artifact_request::Part;
    let digest = Digest::of(bytes);
    let start = v1::UploadStart { digest: Some((&digest).into()), size_bytes: bytes.len() as u64, offset: 0 };
    let mut parts = vec![Part::Start(start)];
    parts.extend(bytes.chunks(1 << 19).map(|part| Part::Data(part.to_vec().into())));
    parts.push(Part::Commit(v1::UploadCommit {}));
    let parts = parts.into_iter().map(|part| v1::UploadArtifactRequest { part: Some(part) });
    let channel = controller.channel(&controller.admin).await;
    let mut client = v1::artifact_service_client::ArtifactServiceClient::new(channel);
    client.upload_artifact(tokio_stream::iter(parts.collect::<Vec<_>>())).await.unwrap();
    digest
}

/// A client that asks for much and reads nothing costs little, and holds up nobody.
#[tokio::test]
async fn who_does_not_read_is_not_waited_for() {
    let controller = Controller::start().await;
    let node = controller.enroll("web-01").await;
    let bytes = vec![7_u8; 8 << 20];
    let digest = upload(&controller, &bytes).await;
    let channel = controller.channel(&node).await;
    let mut unread = Vec::new();
    // As many as a node may have, but for the one that reads.
    for _ in 0..7 {
        let mut client = v1::artifact_service_client::ArtifactServiceClient::new(channel.clone());
        let request = v1::DownloadArtifactRequest { digest: Some((&digest).into()), ..Default::default() };
        unread.push(client.download_artifact(request).await.unwrap().into_inner());
    }
    let began = Instant::now();
    let mut client = v1::artifact_service_client::ArtifactServiceClient::new(controller.channel(&node).await);
    let request = v1::DownloadArtifactRequest { digest: Some((&digest).into()), ..Default::default() };
    let mut stream = client.download_artifact(request).await.unwrap().into_inner();
    let mut got = 0;
    while let Some(part) = stream.message().await.unwrap() {
        got += part.data.len();
    }
    assert_eq!(got, bytes.len());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    drop(unread);
}

#[tokio::test]
async fn who_speaks_another_protocol_is_dropped() {
    let controller = Controller::start().await;
    let config = client_config_with(&controller.ca, Some(controller.admin.shown()));
    let mut stream = tls_connect(controller.running.endpoints.api, config).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer);
    tokio::time::timeout(Duration::from_secs(20), read).await.expect("it is dropped").ok();
    controller.nodes().await.list_nodes(v1::ListNodesRequest::default()).await.unwrap();
}
