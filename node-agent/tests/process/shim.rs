//! What a shim promises about the component's process, shown with real ones.

use std::{
    fs,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use rustix::process::{Signal, kill_process_group};
use upfleet_agent::{
    processes::{as_pid, descendants},
    shim::{EXIT_TAKEN, LIFELINE, spec::RECORD},
    supervise::{Event, Launch, ProcessStateInfo},
};
use upfleet_domain::{digest::Digest, reason::ReasonCode};

use super::support::{AGENT, Fixture, until, until_gone};

#[tokio::test]
async fn a_process_is_started_once_and_stopped() {
    let fixture = Fixture::sleeper();
    let first = fixture.supervisor.start(&fixture.launch()).await.unwrap();
    assert!(first.exact && first.identity().is_running(), "{first:?}");
    assert_eq!(first.digest, Digest::of(&fs::read("/bin/sleep").unwrap()));
    let again = fixture.supervisor.start(&fixture.launch()).await.unwrap();
    assert_eq!(again, first, "the same launch is not started twice");
    let other = Launch { argv: vec!["/bin/true".into()], ..fixture.launch() };
    let fault = fixture.supervisor.start(&other).await.unwrap_err();
    assert_eq!(fault.reason.code, ReasonCode::StartFailed);

    fixture.supervisor.stop().await.unwrap();
    assert!(!first.identity().is_running());
    let state = fixture.supervisor.process().await.unwrap();
    let exit = state.last_exit().unwrap();
    assert_eq!((exit.to_string().as_str(), exit.requested, exit.killed), ("signal 15", true, false));
    assert_eq!(exit.digest, first.digest);
    assert_eq!(fixture.record().exits.len(), 1);
    fixture.supervisor.stop().await.unwrap();
}

#[tokio::test]
async fn a_process_that_ends_is_restarted_later_and_later() {
    let fixture = Fixture::script("", "echo out; echo err >&2; exit 3");
    fixture.supervisor.start(&fixture.launch()).await.unwrap();
    let state =
        fixture.wait_for(|state| matches!(state, ProcessStateInfo::BackOff { restarts: 3.., .. })).await;
    let exit = state.last_exit().unwrap();
    assert_eq!((exit.to_string().as_str(), exit.requested), ("exit status 3", false));
    let lines = fixture.supervisor.launch_tail(200).await;
    let count = |text: &str| lines.iter().filter(|line| *line == text).count();
    assert!(count("out") >= 3 && count("err") >= 3, "{lines:?}");
    // Stopping works while it waits for its next start, and forgets that start.
    fixture.supervisor.stop().await.unwrap();
    let ProcessStateInfo::Stopped { last_exit } = fixture.supervisor.process().await.unwrap() else {
        panic!()
    };
    assert_eq!(last_exit.unwrap().code, Some(3));
}

#[tokio::test]
async fn what_does_not_end_in_time_is_killed_with_all_it_started() {
    let script = "trap '' TERM; setsid sleep 1000 & echo pid $!; while :; do sleep 1; done";
    let mut fixture = Fixture::script("", script);
    fixture.config.run.stop_timeout = std::time::Duration::from_millis(100);
    fixture.supervisor.start(&fixture.launch()).await.unwrap();
    let orphan = fixture.printed_pid().await;
    fixture.supervisor.stop().await.unwrap();
    let state = fixture.supervisor.process().await.unwrap();
    let exit = state.last_exit().unwrap();
    assert_eq!((exit.signal, exit.killed), (Some(9), true));
    assert!(!orphan.is_running());
    assert_eq!(descendants(fixture.shim().pid), []);
}

#[tokio::test]
async fn orphans_end_with_the_process_that_left_them() {
    let fixture = Fixture::script("", "setsid sh -c 'echo pid $$; exec sleep 1000' & sleep 0.2; exit 0");
    let mut follow = {
        fixture.supervisor.ensure_shim().await.unwrap();
        fixture.supervisor.follow().await.unwrap()
    };
    fixture.supervisor.start(&fixture.launch()).await.unwrap();
    let mut orphan = None;
    loop {
        match follow.next().await.expect("the shim is there") {
            Event::Line { text, .. } => {
                let pid = text.strip_prefix("pid ").unwrap().parse().unwrap();
                orphan = upfleet_agent::processes::Identity::of(pid).ok();
            }
            Event::Exited(exit) => {
                assert_eq!(exit.code, Some(0));
                break;
            }
            _ => {}
        }
    }
    assert!(!orphan.expect("a line came before the exit").is_running());
}

#[tokio::test]
async fn the_digest_is_of_what_really_runs() {
    let fixture = Fixture::sleeper();
    let old = Digest::of(&fs::read("/bin/sleep").unwrap());
    fixture.supervisor.start(&fixture.launch()).await.unwrap();
    let mut bytes = fs::read("/bin/sleep").unwrap();
    bytes.push(0);
    let new = fixture.install(&bytes);
    let running = |state: ProcessStateInfo| state.running().cloned().unwrap();
    assert_eq!(running(fixture.supervisor.process().await.unwrap()).digest, old);

    fixture.supervisor.stop().await.unwrap();
    let expect_old = Launch { expect: Some(old), ..fixture.launch() };
    let fault = fixture.supervisor.start(&expect_old).await.unwrap_err();
    assert!(fault.reason.message().contains(&new.to_string()), "{fault}");
    let state = fixture.supervisor.process().await.unwrap();
    assert!(matches!(state, ProcessStateInfo::Stopped { .. }), "not tried again by itself: {state:?}");
    let expect_new = Launch { expect: Some(new), ..fixture.launch() };
    assert_eq!(fixture.supervisor.start(&expect_new).await.unwrap().digest, new);
}

#[tokio::test]
async fn a_crash_after_the_swap_does_not_start_the_new_file() {
    let fixture = Fixture::sleeper();
    let old = Digest::of(&fs::read("/bin/sleep").unwrap());
    let first = fixture.supervisor.start(&Launch { expect: Some(old), ..fixture.launch() }).await.unwrap();
    fixture.install(b"#!/bin/sh\nexec sleep 1000\n");
    assert!(first.identity().signal(Signal::KILL));
    let state =
        fixture.wait_for(|state| matches!(state, ProcessStateInfo::BackOff { problem: Some(_), .. })).await;
    assert!(state.up().unwrap_err().contains("SHA-256"), "{state:?}");
}

#[tokio::test]
async fn a_process_that_becomes_another_program_is_seen() {
    let mut fixture = Fixture::new("");
    fixture.install(&fs::read("/bin/sh").unwrap());
    let go = fixture.file("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.01; done; exec /bin/sleep 1000", go.display());
    fixture.config.run.command = vec!["{path}".into(), "-c".into(), script];
    let info = fixture.supervisor.start(&fixture.launch()).await.unwrap();
    assert_eq!(info.digest, Digest::of(&fs::read("/bin/sh").unwrap()));
    fs::write(go, "").unwrap();
    let sleep = Digest::of(&fs::read("/bin/sleep").unwrap());
    fixture.wait_for(|state| state.running().is_some_and(|info| info.digest == sleep)).await;
}

#[tokio::test]
async fn what_can_t_be_started_is_said_and_not_tried_again() {
    let fixture = Fixture::new("");
    let start = async || fixture.supervisor.start(&fixture.launch()).await.unwrap_err().reason.message();
    assert!(start().await.contains("No such file"));
    fs::write(&fixture.config.path, "no program").unwrap();
    assert!(start().await.contains("Permission denied"));
    let state = fixture.supervisor.process().await.unwrap();
    assert_eq!(state, ProcessStateInfo::Stopped { last_exit: None });
}

#[tokio::test]
async fn shim_and_process_outlive_whoever_started_them() {
    let fixture = Fixture::sleeper();
    let script = format!("{AGENT} shim --dir {} & wait", fixture.shim_dir().display());
    let mut agent = Command::new("/bin/sh").args(["-c", &script]).process_group(0).spawn().unwrap();
    until("shim", || async { fixture.shim_dir().join("sock").exists().then_some(()) }).await;
    let info = fixture.supervisor.start(&fixture.launch()).await.unwrap();
    kill_process_group(as_pid(agent.id()).unwrap(), Signal::KILL).unwrap();
    agent.wait().unwrap();
    let state = fixture.supervisor.process().await.unwrap();
    assert_eq!(state.running(), Some(&info));
    assert!(info.identity().is_running());
}

#[tokio::test]
async fn a_second_shim_of_a_directory_is_refused() {
    let fixture = Fixture::sleeper();
    fixture.supervisor.ensure_shim().await.unwrap();
    let status = Command::new(AGENT)
        .args(["shim", "--dir"])
        .arg(fixture.shim_dir())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(i32::from(EXIT_TAKEN)));
    fixture.supervisor.process().await.unwrap();
}

#[tokio::test]
async fn the_next_shim_ends_what_a_killed_one_has_left() {
    let fixture = Fixture::script("", "sleep 1000 & echo pid $!; wait");
    let first = fixture.supervisor.start(&fixture.launch()).await.unwrap();
    let other = fixture.printed_pid().await;
    let shim = fixture.shim();
    assert!(shim.signal(Signal::KILL));
    until_gone(&shim).await;
    assert!(first.identity().is_running(), "a killed shim does not take the process with it");
    assert_eq!(fixture.supervisor.process().await.unwrap_err().reason.code, ReasonCode::ShimUnavailable);

    fixture.supervisor.ensure_shim().await.unwrap();
    assert!(!first.identity().is_running() && !other.is_running());
    let state = fixture.wait_for(|state| state.running().is_some()).await;
    assert_ne!(state.running().unwrap().pid, first.pid);
}

#[tokio::test]
async fn after_a_reboot_the_recorded_state_is_resumed() {
    let fixture = Fixture::sleeper();
    let first = fixture.supervisor.start(&fixture.launch()).await.unwrap();
    let shim = fixture.shim();
    assert!(shim.signal(Signal::KILL) && first.identity().signal(Signal::KILL));
    until_gone(&shim).await;
    // As an earlier boot would have left it: pids that mean nothing any more.
    let mut record = fixture.record();
    let mut stranger = upfleet_agent::processes::Identity::of(std::process::id()).unwrap();
    stranger.boot_id = "earlier".into();
    record.shim = Some(stranger.clone());
    record.process = Some(stranger);
    fs::write(fixture.shim_dir().join(RECORD), serde_json::to_vec(&record).unwrap()).unwrap();

    fixture.supervisor.ensure_shim().await.unwrap();
    fixture.wait_for(|state| state.running().is_some()).await;
    fixture.supervisor.shutdown().await.unwrap();
    let state = fixture.supervisor.process().await;
    assert!(state.is_err(), "{state:?}");
    fixture.supervisor.ensure_shim().await.unwrap();
    let state = fixture.supervisor.process().await.unwrap();
    assert!(matches!(state, ProcessStateInfo::Stopped { .. }), "stopped stays stopped: {state:?}");
}

#[tokio::test]
async fn the_end_of_the_lifeline_ends_the_tree() {
    let fixture =
        Fixture::script("", "trap '' TERM HUP; setsid sleep 1000 & echo pid $!; while :; do sleep 1; done");
    let (reader, writer) = std::io::pipe().unwrap();
    let mut shim = Command::new(AGENT)
        .args(["shim", "--dir"])
        .arg(fixture.shim_dir())
        .env(LIFELINE, "0")
        .stdin(reader)
        .spawn()
        .unwrap();
    // Otherwise the supervisor would start a shim of its own.
    until("shim", || async { fixture.shim_dir().join("sock").exists().then_some(()) }).await;
    let info = fixture.supervisor.start(&fixture.launch()).await.unwrap();
    let other = fixture.printed_pid().await;
    drop(writer);
    until_gone(&info.identity()).await;
    until_gone(&other).await;
    assert!(shim.wait().unwrap().success());
}

#[tokio::test]
async fn the_log_is_there_when_the_shim_is_not() {
    let fixture = Fixture::script("", "echo one; echo two; exec sleep 1000");
    fixture.supervisor.start(&fixture.launch()).await.unwrap();
    until("output", || async { (fixture.supervisor.tail(9).await.len() == 2).then_some(()) }).await;
    fixture.supervisor.shutdown().await.unwrap();
    assert_eq!(fixture.supervisor.tail(1).await, ["two"]);
}
