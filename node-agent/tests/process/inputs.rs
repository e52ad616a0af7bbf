//! What a process is started from beside its own file: hashed before each start, and replaced for the next one.

use std::fs;

use rustix::process::Signal;
use upfleet_agent::supervise::{Input, Launch, ProcessStateInfo};
use upfleet_domain::digest::Digest;

use crate::support::Fixture;

fn with_input(fixture: &Fixture, name: &str, bytes: &[u8]) -> Launch {
    let path = fixture.file(name);
    fs::write(&path, bytes).unwrap();
    let stack = Some(Digest::of(name.as_bytes()));
    Launch { inputs: vec![Input { path, digest: Digest::of(bytes) }], stack, ..fixture.launch() }
}

/// T04: truncated, empty and missing, at the first start and at a restart after a crash.
#[tokio::test]
async fn a_damaged_input_refuses_every_start() {
    let fixture = Fixture::sleeper();
    let launch = with_input(&fixture, "p1.jar", b"the bytes of a patch");
    let path = &launch.inputs[0].path;
    for damage in [Some(&b"the bytes of"[..]), Some(b""), None] {
        match damage {
            Some(bytes) => fs::write(path, bytes).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
        let fault = fixture.supervisor.start(&launch).await.unwrap_err();
        assert!(fault.reason.message().contains("p1.jar"), "{fault}");
        assert!(matches!(fixture.supervisor.process().await.unwrap(), ProcessStateInfo::Stopped { .. }));
    }
    fs::write(path, b"the bytes of a patch").unwrap();
    let info = fixture.supervisor.start(&launch).await.unwrap();
    assert_eq!(info.stack, launch.stack);
    fs::write(path, b"").unwrap();
    assert!(info.identity().signal(Signal::KILL));
    let state =
        fixture.wait_for(|state| matches!(state, ProcessStateInfo::BackOff { problem: Some(_), .. })).await;
    assert!(state.up().unwrap_err().contains("p1.jar"), "{state:?}");
}

#[tokio::test]
async fn a_replaced_launch_is_for_the_next_start() {
    let fixture = Fixture::sleeper();
    let (old, new) = (with_input(&fixture, "old.jar", b"old"), with_input(&fixture, "new.jar", b"new"));
    assert!(fixture.supervisor.replace(&new).await.is_err(), "no shim yet");
    let first = fixture.supervisor.start(&old).await.unwrap();
    let replaced = fixture.supervisor.replace(&new).await.unwrap();
    assert_eq!((replaced.pid, replaced.stack), (first.pid, new.stack), "it runs on, of the new stack");
    assert_eq!(fixture.supervisor.start(&new).await.unwrap().pid, first.pid, "just that runs already");
    // The restart uses the new launch: what the old one needed is not needed any more.
    fs::remove_file(&old.inputs[0].path).unwrap();
    assert!(first.identity().signal(Signal::KILL));
    let state = fixture
        .wait_for(|state| state.running().is_some_and(|info| info.pid != first.pid && info.restarts > 0))
        .await;
    assert_eq!(state.running().unwrap().stack, new.stack);
    fixture.supervisor.stop().await.unwrap();
    assert!(fixture.supervisor.replace(&old).await.is_err(), "nothing runs");
}
