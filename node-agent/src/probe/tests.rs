//! Each kind of probe against something that answers well, badly, and not at all.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic_health::ServingStatus;

use super::*;
use crate::{config::StatusRange, processes};

fn context() -> ProbeContext {
    ProbeContext {
        path: "/bin/sh".into(),
        process: Err("the process ended with exit status 1".into()),
        ready: Err("it has not said READY=1".into()),
    }
}

/// Runs a probe of that kind; the failure's text, or nothing.
async fn failure(kind: ProbeKind) -> Option<String> {
    let probe = ProbeConfig { timeout: Duration::from_secs(20), ..ProbeConfig::new(kind) };
    run(&probe, &context()).await.err().map(|failure| failure.text)
}

/// A server that gives this answer to everybody, then hangs up.
async fn server(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address
}

/// An address where nobody listens.
async fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
}

fn http(address: &str, contains: Option<&str>) -> ProbeKind {
    let url = format!("http://{address}/healthz");
    ProbeKind::Http { url, expect: StatusRange::default(), body_contains: contains.map(str::to_owned) }
}

#[tokio::test]
async fn process() {
    assert_eq!(failure(ProbeKind::Process).await.unwrap(), "the process ended with exit status 1");
    let up = ProbeContext { process: Ok(1), ..context() };
    assert_eq!(run(&ProbeConfig::new(ProbeKind::Process), &up).await, Ok(()));
}

#[tokio::test]
async fn ready_is_what_the_process_says_and_not_that_it_runs() {
    let asked = |process, ready| async move {
        let context = ProbeContext { process, ready, ..context() };
        run(&ProbeConfig::new(ProbeKind::Notify), &context).await.map_err(|failure| failure.text)
    };
    assert_eq!(asked(Ok(1), Ok(())).await, Ok(()));
    assert_eq!(asked(Ok(1), Err("not yet".into())).await.unwrap_err(), "not yet");
    assert_eq!(asked(Err("down".into()), Ok(())).await.unwrap_err(), "down");
}

#[tokio::test]
async fn an_exec_probe_is_told_which_process_is_judged() {
    let probe = ProbeConfig::new(exec("test {pid} = 77"));
    let with = |process| ProbeContext { process, ..context() };
    assert_eq!(run(&probe, &with(Ok(77))).await, Ok(()));
    assert!(run(&probe, &with(Ok(78))).await.is_err());
    assert!(run(&probe, &with(Err("down".into()))).await.unwrap_err().text.contains("no process whose id"));
}

#[tokio::test]
async fn http_answers() {
    let good = server("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nall ok\n").await;
    assert_eq!(failure(http(&good, None)).await, None);
    assert_eq!(failure(http(&good, Some("ok"))).await, None);
    let text = failure(http(&good, Some("perfect"))).await.unwrap();
    assert_eq!(text, format!("GET http://{good}/healthz answered 200 without `perfect`: all ok"));
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nal\r\n5\r\nl ok\n\r\n0\r\n\r\n";
    assert_eq!(failure(http(&server(chunked).await, Some("all ok"))).await, None);

    let bad = server("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 7\r\n\r\nno\tdb\r\n").await;
    let text = failure(http(&bad, None)).await.unwrap();
    assert_eq!(text, format!("GET http://{bad}/healthz answered 503: no db"));
    let elsewhere = server("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\n\r\n").await;
    assert!(failure(http(&elsewhere, None)).await.unwrap().contains("answered 302"));
    assert!(failure(http(&server("nonsense\r\n\r\n").await, None)).await.is_some());
    assert!(failure(http(&server("").await, None)).await.is_some());
    let text = failure(http(&nobody().await, None)).await.unwrap();
    assert!(text.contains("Connection refused"), "{text}");
}

#[tokio::test]
async fn silence_is_no_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    for kind in [http(&address, None), ProbeKind::Grpc { address: address.clone(), service: String::new() }] {
        let probe = ProbeConfig { timeout: Duration::from_millis(50), ..ProbeConfig::new(kind) };
        let text = run(&probe, &context()).await.unwrap_err().text;
        assert!(text.ends_with("gave no answer within 50ms") && text.contains(&address), "{text}");
    }
}

#[tokio::test]
async fn tcp() {
    let address = server("").await;
    assert_eq!(failure(ProbeKind::Tcp { address }).await, None);
    let text = failure(ProbeKind::Tcp { address: nobody().await }).await.unwrap();
    assert!(text.starts_with("connecting to 127.0.0.1:") && text.contains("Connection refused"), "{text}");
}

#[tokio::test]
async fn grpc() {
    let (reporter, service) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let kind = |service: &str| ProbeKind::Grpc { address: address.clone(), service: service.into() };
    assert_eq!(failure(kind("")).await, None);
    reporter.set_service_status("db", ServingStatus::NotServing).await;
    let text = failure(kind("db")).await.unwrap();
    assert_eq!(text, format!("gRPC health of `db` at {address}: NOT_SERVING"));
    assert!(failure(kind("unknown")).await.unwrap().contains("NotFound"));
    let text = failure(ProbeKind::Grpc { address: nobody().await, service: String::new() }).await.unwrap();
    assert!(text.contains("Connection refused"), "{text}");
}

fn exec(script: &str) -> ProbeKind {
    ProbeKind::Exec { command: vec!["{path}".into(), "-c".into(), script.into()] }
}

#[tokio::test]
async fn exec_answers() {
    assert_eq!(failure(exec("exit 0")).await, None);
    let text = failure(exec("echo out; echo err >&2; exit 7")).await.unwrap();
    assert!(text.ends_with("ended with exit status 7: out err"), "{text}");
    assert!(failure(exec("kill -9 $$")).await.unwrap().ends_with("ended with signal 9"));
    let none = ProbeKind::Exec { command: vec!["/none".into()] };
    assert!(failure(none).await.unwrap().contains("could not be executed"));
    // More than a pipe holds, and more than is kept.
    let text = failure(exec("head -c 300000 /dev/zero | tr '\\0' x; exit 1")).await.unwrap();
    assert!(text.len() < 1000, "{}", text.len());
}

/// The process that a script has named in a file.
fn named(file: &std::path::Path) -> Option<processes::Identity> {
    processes::Identity::of(std::fs::read_to_string(file).ok()?.trim().parse().ok()?).ok()
}

#[tokio::test]
async fn exec_leaves_nothing_running() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let late = exec(&format!("sleep 1000 & echo $! > {}; wait", file.display()));
    let probe = ProbeConfig { timeout: Duration::from_millis(300), ..ProbeConfig::new(late) };
    let text = run(&probe, &context()).await.unwrap_err().text;
    assert!(text.contains("gave no answer within 300ms"), "{text}");
    gone(&file).await;

    let ended = exec(&format!("sleep 1000 & echo $! > {}; exit 0", file.display()));
    assert_eq!(failure(ended).await, None);
    gone(&file).await;
}

/// Waits until the process named in `file` is gone.
async fn gone(file: &std::path::Path) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while named(file).is_some_and(|process| process.is_running()) {
        assert!(tokio::time::Instant::now() < deadline, "still runs");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
