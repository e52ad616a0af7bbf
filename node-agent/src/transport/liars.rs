//! Controllers that lie: bytes that are no message, messages in no order, numbers that nobody would say.
//!
//! A session may end by it, with a reason for the log; the agent must not. What it runs is not touched by any of it.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use bytes::Bytes;
use prost::Message as _;
use tokio::{io::AsyncWriteExt as _, net::TcpListener};
use tokio_rustls::TlsAcceptor;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{body::Body, server::NamedService};
use upfleet_api::v1::{
    self, CertificateGrant, session_request::Message as Request, session_response::Message as Response,
};

use super::{
    tests::{agent, component, desired},
    *,
};
use crate::{
    config::ControllerConfig,
    identity::{Identities, tests::TestCa},
    testing::{WEEK, accept, server_config},
};

/// Longer than any of these lies may hold a session.
const SOON: Duration = Duration::from_secs(40);

/// What the liar answers to a call.
type Answer = http::Response<Body>;

/// A controller whose one service gives scripted answers, whatever is asked.
#[derive(Clone)]
struct Liar(std::sync::Arc<std::sync::Mutex<VecDeque<Answer>>>);

impl NamedService for Liar {
    const NAME: &'static str = "upfleet.v1.AgentService";
}

impl tower::Service<http::Request<Body>> for Liar {
    type Response = Answer;
    type Error = Infallible;
    type Future = Ready<Result<Answer, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        let answer = self.0.lock().unwrap().pop_front();
        ready(Ok(answer.unwrap_or_else(|| http::Response::new(Body::empty()))))
    }
}

/// An answer of these bytes, after which nothing more comes.
fn bytes(body: Vec<u8>) -> Answer {
    let stream =
        tokio_stream::once(Ok::<_, std::io::Error>(Bytes::from(body))).chain(tokio_stream::pending());
    let body = Body::new(reqwest::Body::wrap_stream(stream));
    http::Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

/// A gRPC frame: of that flag and length, with these bytes.
fn frame(flag: u8, length: u32, bytes: &[u8]) -> Vec<u8> {
    [&[flag], &length.to_be_bytes()[..], bytes].concat()
}

fn message(message: Response) -> Vec<u8> {
    let bytes = v1::SessionResponse { message: Some(message) }.encode_to_vec();
    frame(0, u32::try_from(bytes.len()).unwrap(), &bytes)
}

fn welcome() -> Vec<u8> {
    message(Response::Welcome(v1::Welcome { node: "nodes/web-01".into(), epoch: 1, ..Default::default() }))
}

/// Answers that are no session, by what is wrong with them.
fn lies() -> Vec<(&'static str, Answer)> {
    let garbage: Vec<u8> = (0..4096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let status = |code: u16| http::Response::builder().status(code).body(Body::empty()).unwrap();
    let mut html = http::Response::new(Body::new("<html>".to_owned()));
    html.headers_mut().insert("content-type", "text/html".parse().unwrap());
    let endless = [0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    vec![
        ("garbage where a message should be", bytes(frame(0, 4096, &garbage))),
        ("no frame at all", bytes(garbage.clone())),
        ("a length of 100 MiB", bytes(frame(0, 100 << 20, b"begun"))),
        ("the longest length", bytes(frame(0, u32::MAX, b""))),
        ("100 MiB after a greeting", bytes([welcome(), frame(0, 100 << 20, b"begun")].concat())),
        ("garbage after a greeting", bytes([welcome(), frame(0, 4096, &garbage)].concat())),
        ("a compressed frame", bytes(frame(1, 1, b"x"))),
        ("an unknown flag", bytes(frame(9, 1, b"x"))),
        ("an endless number", bytes(frame(0, 12, &endless))),
        ("an order before the greeting", bytes(message(Response::DesiredState(desired(3))))),
        ("two greetings", bytes([welcome(), welcome()].concat())),
        ("an empty answer", http::Response::new(Body::empty())),
        ("a web page", html),
        ("not found", status(404)),
        ("a redirect", status(302)),
        ("a failure", status(500)),
    ]
}

fn connector(ca: &TestCa, listener: &TcpListener, state: &tempfile::TempDir) -> Connector {
    let address = listener.local_addr().unwrap().to_string();
    let identities = Identities::create(state.path(), ca.node("web-01", WEEK)).unwrap();
    Connector::new(ControllerConfig { address, server_name: Some("localhost".into()) }, identities)
}

/// One session after another, each of which must end by itself with a reason.
async fn sessions_end(connector: Connector, lies: impl IntoIterator<Item = &'static str>) {
    let handles = Handles::default();
    let _acked = component(&handles, vec![]);
    let (link, _seen) = watch::channel(Link::new(connector.address()));
    let transport = Transport { connector, purpose: Purpose::Serve, link, hurry: false };
    let (_said, outgoing) = mpsc::channel(8);
    let pump = pump::Pump::start(outgoing);
    for lie in lies {
        let session = one_session(&transport, &handles, "instance", &pump);
        let (problem, _) =
            tokio::time::timeout(SOON, session).await.unwrap_or_else(|_| panic!("{lie} is believed"));
        assert!(!problem.is_empty(), "{lie}");
        println!("{lie}: {problem}");
    }
}

#[tokio::test]
async fn a_session_with_a_liar_ends_with_a_reason() {
    let (ca, state) = (TestCa::new(), tempfile::tempdir().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connector = connector(&ca, &listener, &state);
    let (names, answers): (Vec<_>, VecDeque<_>) = lies().into_iter().unzip();
    let liar = Liar(std::sync::Arc::new(std::sync::Mutex::new(answers)));
    let incoming = ReceiverStream::new(accept(listener, &ca));
    let serving = tonic::transport::Server::builder().add_service(liar).serve_with_incoming(incoming);
    let serving = tokio::spawn(serving);
    sessions_end(connector, names).await;
    serving.abort();
}

/// Below gRPC: a peer with the right certificate that speaks no HTTP/2, or nothing at all for a while, or breaks off.
#[tokio::test]
async fn a_peer_that_speaks_no_http_ends_with_a_reason() {
    let (ca, state) = (TestCa::new(), tempfile::tempdir().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connector = connector(&ca, &listener, &state);
    let lies: [(&'static str, Vec<u8>); 4] = [
        ("an answer in HTTP/1", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()),
        // A frame of 16 MiB, of a kind that there is not.
        ("a frame too large", vec![0xff, 0xff, 0xff, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]),
        // SETTINGS, then a header block that goes on for ever.
        ("headers without an end", headers_without_end()),
        ("an end", Vec::new()),
    ];
    let names: Vec<_> = lies.iter().map(|(name, _)| *name).collect();
    let acceptor = TlsAcceptor::from(server_config(&ca, b"h2"));
    let serving = tokio::spawn(async move {
        for (_, bytes) in lies {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
            let _ = stream.write_all(&bytes).await;
            if bytes.is_empty() {
                continue;
            }
            // What the agent says is not read; its end of the connection is what ends it.
            tokio::spawn(async move {
                tokio::time::sleep(SOON).await;
                drop(stream);
            });
        }
        std::future::pending::<()>().await;
    });
    sessions_end(connector, names).await;
    serving.abort();
}

fn headers_without_end() -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    // HEADERS on stream 1 without END_HEADERS, then CONTINUATION after CONTINUATION.
    bytes.extend([0, 0, 1, 1, 0, 0, 0, 0, 1, 0x88]);
    for _ in 0..2000 {
        bytes.extend([0, 0x40, 0, 9, 0, 0, 0, 0, 1]);
        bytes.extend([0x40; 0x4000]);
    }
    bytes
}

/// A controller of another authority, or with a certificate for another name or use, is told nothing.
#[tokio::test]
async fn a_controller_that_is_not_the_fleets_is_told_nothing() {
    let (ca, other, state) = (TestCa::new(), TestCa::new(), tempfile::tempdir().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connector = connector(&ca, &listener, &state);
    // First a server of another authority, then the fleet's own under another name.
    let serving = tokio::spawn(async move {
        for authority in [&other, &ca] {
            let acceptor = TlsAcceptor::from(server_config(authority, b"h2"));
            let (tcp, _) = listener.accept().await.unwrap();
            assert!(acceptor.accept(tcp).await.is_err(), "the agent trusted it");
        }
    });
    sessions_end(connector.clone(), ["another authority"]).await;
    let named = ControllerConfig {
        address: connector.address().to_owned(),
        server_name: Some("elsewhere.example".into()),
    };
    let wrong = Connector::new(named, connector.identities().clone());
    sessions_end(wrong, ["another name"]).await;
    serving.await.unwrap();
}

/// Orders whose fields are absurd are refused one by one, by name; the session and the component go on.
#[tokio::test]
async fn absurd_orders_are_refused_and_the_session_goes_on() {
    let mut agent = agent(WEEK, vec![]).await;
    let (mut session, _) = agent.greeted().await;
    let absurd = [
        v1::DesiredState { component: "../../etc/passwd".into(), ..desired(3) },
        v1::DesiredState { component: String::new(), ..desired(3) },
        v1::DesiredState { component: "x".repeat(100_000), ..desired(3) },
        v1::DesiredState { upgrade: "a b\n\0".into(), ..desired(3) },
        v1::DesiredState { hold_before: i32::MAX, ..desired(3) },
        v1::DesiredState { target: None, ..desired(3) },
    ];
    for order in absurd {
        session.send(Response::DesiredState(order.clone())).await;
        let Request::Nack(nack) = session.next().await else { panic!("{order:?} was taken") };
        let reason = nack.reason.unwrap();
        assert!(!reason.message.is_empty(), "{order:?}");
    }
    // What nobody asked for.
    let id = || "nobody".to_owned();
    session.send(Response::LogQueryEnd(v1::LogQueryEnd { query_id: id() })).await;
    session.send(Response::ReportAck(v1::UpgradeReportAck { upgrade: id(), sequence: u64::MAX })).await;
    session.send(Response::ReportAck(v1::UpgradeReportAck { upgrade: "../x".into(), sequence: 0 })).await;
    let grant = CertificateGrant { certificate_pem: "garbage".into(), ca_pem: "garbage".into() };
    session.send(Response::CertificateGrant(grant)).await;
    session.send(Response::DesiredState(desired(3))).await;
    let Request::Ack(ack) = session.next().await else { panic!("no ack") };
    assert_eq!(ack.generation, 3);
    assert!(agent.link.borrow().connected);
    agent.running.abort();
}

/// A controller that orders and asks without end fills no memory: the session ends, or the questions are passed over.
#[tokio::test]
async fn a_flood_of_orders_ends_the_session() {
    let mut agent = agent(WEEK, vec![]).await;
    let (session, _) = agent.greeted().await;
    for number in 0..200 {
        let query =
            v1::LogQuery { query_id: number.to_string(), component: "web".into(), lines: 0, follow: true };
        session.send(Response::LogQuery(query)).await;
    }
    let flood = async {
        // Nothing of what the agent says is read meanwhile.
        for number in 3.. {
            let message = v1::SessionResponse { message: Some(Response::DesiredState(desired(number))) };
            if session.outbound.send(Ok(message)).await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, flood).await.expect("the agent ends it");
    drop(session);
    agent.link.wait_for(|link| link.problem.is_some()).await.unwrap();
    let problem = agent.link.borrow().problem.clone().unwrap();
    assert!(problem.contains("faster"), "{problem}");
    // The next session is served as ever.
    let (mut session, _) = agent.greeted().await;
    session.send(Response::DesiredState(desired(5))).await;
    loop {
        if let Request::Ack(ack) = session.next().await {
            assert_eq!(ack.generation, 5);
            break;
        }
    }
    agent.running.abort();
}
