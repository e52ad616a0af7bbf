//! The socket from both sides, without components.

use std::os::unix::fs::PermissionsExt;

use tokio::sync::watch;
use upfleet_domain::reason::ReasonCode;

use super::*;
use crate::component::Handles;

async fn ask(run_dir: &Path, request: Request) -> Result<Answer, LocalError> {
    let run_dir = run_dir.to_owned();
    tokio::task::spawn_blocking(move || call(&run_dir, request)).await.unwrap()
}

#[tokio::test]
async fn status_and_refusals_come_over_a_private_socket() {
    let dir = tempfile::tempdir().unwrap();
    let missing = ask(dir.path(), Request::Status).await;
    assert!(matches!(missing, Err(LocalError::NotRunning(_))), "{missing:?}");

    let (_link, seen) = watch::channel(Link::new("controller:7443"));
    let run_dir = dir.path().to_owned();
    let served = tokio::spawn(async move {
        serve(&run_dir, &run_dir.join("state"), Handles::default(), Some("web-01".into()), Some(seen)).await
    });
    while !socket_path(dir.path()).exists() {
        tokio::task::yield_now().await;
    }
    let mode = std::fs::metadata(socket_path(dir.path())).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let Ok(Answer::Status(status)) = ask(dir.path(), Request::Status).await else { panic!("no status") };
    assert_eq!(status.node.as_deref(), Some("web-01"));
    assert_eq!(status.link.unwrap().controller, "controller:7443");

    let request = Request::RollBack { component: "web".parse().unwrap(), to: None, message: String::new() };
    let Ok(Answer::Refused(reason)) = ask(dir.path(), request).await else { panic!("not refused") };
    assert_eq!(reason.code, ReasonCode::UnknownComponent);

    // A file that is no bundle is refused, and leaves nothing behind.
    let file = dir.path().join("file.bundle");
    std::fs::write(&file, b"#!/bin/sh\n").unwrap();
    let request = Request::Apply { file, component: None, waive: Vec::new(), message: String::new() };
    let Ok(Answer::Refused(reason)) = ask(dir.path(), request).await else { panic!("not refused") };
    assert_eq!(reason.code, ReasonCode::ArchiveHostile, "{reason}");
    assert!(!dir.path().join("state/apply").exists());
    served.abort();
}

#[test]
fn lines_carry_their_version() {
    let line = serde_json::to_string(&Asked { v: VERSION, request: Request::Status }).unwrap();
    assert_eq!(line, r#"{"v":1,"op":"status"}"#);
}
