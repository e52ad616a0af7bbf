//! What comes over a shim's socket can be anything; the shim and the process go on.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use rustix::fs::{Mode, OFlags};
use upfleet_agent::shim::{
    protocol::{Answer, Body, ErrorCode, MAX_REQUEST},
    socket_path,
};

use super::support::Fixture;

fn connect(fixture: &Fixture) -> UnixStream {
    let dir = rustix::fs::open(fixture.shim_dir(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let stream = UnixStream::connect(socket_path(&dir)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// Sends `bytes`, closes that side, and reads the code of the refusal.
fn refused(fixture: &Fixture, bytes: &[u8]) -> ErrorCode {
    let mut stream = connect(fixture);
    // The shim may hang up before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    let line = text.split(|byte| *byte == b'\n').next().unwrap();
    let answer: Answer = serde_json::from_slice(line).unwrap_or_else(|error| {
        panic!("{error}: {:?}", String::from_utf8_lossy(line));
    });
    let Body::Error(error) = answer.body else { panic!("{:?}", answer.body) };
    error.code
}

#[tokio::test]
async fn hostile_input_is_refused_and_harmless() {
    let fixture = Fixture::sleeper();
    let info = fixture.supervisor.start(&fixture.launch()).await.unwrap();
    assert_eq!(refused(&fixture, b"\n"), ErrorCode::Malformed);
    assert_eq!(refused(&fixture, b"no end"), ErrorCode::Malformed);
    assert_eq!(refused(&fixture, &[0xff, 0, b'\n']), ErrorCode::Malformed);
    assert_eq!(refused(&fixture, b"{\"v\":1,\"op\":\"start\"}\n"), ErrorCode::Malformed);
    assert_eq!(refused(&fixture, b"{\"v\":99,\"op\":\"hello\"}\n"), ErrorCode::UnknownVersion);
    assert_eq!(refused(&fixture, "[".repeat(MAX_REQUEST / 2).as_bytes()), ErrorCode::Malformed);
    assert_eq!(refused(&fixture, format!("{}\n", "[".repeat(100_000)).as_bytes()), ErrorCode::Malformed);
    for _ in 0..3 {
        let mut stream = connect(&fixture);
        let _ = stream.write_all(&vec![b'x'; MAX_REQUEST * 2]);
    }
    for _ in 0..200 {
        drop(connect(&fixture));
    }
    let state = fixture.supervisor.process().await.unwrap();
    assert_eq!(state.running(), Some(&info));
}

#[tokio::test]
async fn silent_connections_are_bounded() {
    let fixture = Fixture::sleeper();
    fixture.supervisor.ensure_shim().await.unwrap();
    let silent: Vec<UnixStream> = (0..40).map(|_| connect(&fixture)).collect();
    assert_eq!(refused(&fixture, b""), ErrorCode::Busy);
    drop(silent);
    super::support::until("free connection", || async { fixture.supervisor.process().await.ok() }).await;
}
