//! What a handover must bear: clients that hang up, addresses that can't be had, processes that neither serve nor end,
//! a shim that is killed. The server is that of [`super::handover`].

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    time::Duration,
};

use rustix::process::Signal;
use upfleet_agent::{
    processes::Identity,
    shim::protocol::SOCKET,
    supervise::{ProcessInfo, ProcessStateInfo},
};
use upfleet_domain::reason::ReasonCode;

use super::{
    handover::{Service, answer},
    support::{until, until_gone},
};

/// Longer than any test: what would wait for this has failed.
const NEVER: Duration = Duration::from_secs(1000);

/// Says `word`, and answers the first line that comes back.
fn say(stream: &TcpStream, word: &str) -> String {
    let mut writer = stream;
    writeln!(writer, "{word}").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// One whose request is answered once the file `go` exists, and the connection that the request was made on.
async fn busy(service: &Service) -> (ProcessInfo, TcpStream) {
    let info = service.start().await;
    service.ready(info.pid).await;
    let stream = service.connect();
    let mut writer = &stream;
    writeln!(writer, "wait").unwrap();
    // Another connection is answered, so that this one was taken.
    assert_eq!(service.ask().1, info.pid);
    (info, stream)
}

async fn stands_beside(service: &Service, version: &str) -> ProcessInfo {
    service.install(version);
    let info = service.fixture.supervisor.start_beside(&service.launch()).await.unwrap();
    service.ready(info.pid).await;
    info
}

#[tokio::test]
async fn what_a_request_has_started_is_part_of_what_may_finish() {
    let Some(service) = Service::new("what_a_request_has_started") else { return };
    let supervisor = &service.fixture.supervisor;
    let old = service.start().await;
    service.ready(old.pid).await;
    let begun = service.connect();
    assert!(say(&begun, "work").starts_with("began"));
    let new = stands_beside(&service, "two").await;
    supervisor.drain().await.unwrap();
    // Nobody who is signalled does anything else after that.
    std::fs::write(service.fixture.file("go"), "").unwrap();
    let mut line = String::new();
    BufReader::new(&begun).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), format!("one {} 0", old.pid), "what it had started was signalled as well");
    service.until_draining(&[]).await;
    assert_eq!(service.ask(), ("two".to_owned(), new.pid));
}

#[tokio::test]
async fn an_address_that_can_t_be_had_ends_nobody() {
    let Some(mut service) = Service::new("an_address_that_can_t_be_had") else { return };
    let old = service.start().await;
    service.ready(old.pid).await;
    service.install("two");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let more = format!("name = \"more\"\nlisten = \"{}\"", taken.local_addr().unwrap());
    service.fixture.config.run.sockets.push(toml::from_str(&more).unwrap());
    let fault = service.fixture.supervisor.start_beside(&service.launch()).await.unwrap_err();
    assert_eq!(
        fault.reason.code,
        ReasonCode::StartFailed,
        "only a stop would follow from another code: {fault}"
    );
    assert!(fault.reason.message().contains("could not listen"), "{fault}");
    // An address that the running process itself is in the way of is another matter, unless that one is wrong as well.
    let wide = format!("name = \"http\"\nlisten = \"0.0.0.0:{}\"", service.address.port());
    service.fixture.config.run.sockets[0] = toml::from_str(&wide).unwrap();
    let fault = service.fixture.supervisor.start_beside(&service.launch()).await.unwrap_err();
    assert_eq!(fault.reason.code, ReasonCode::StartFailed, "{fault}");
    service.fixture.config.run.sockets.pop();
    let fault = service.fixture.supervisor.start_beside(&service.launch()).await.unwrap_err();
    assert_eq!(fault.reason.code, ReasonCode::HandoverUnavailable, "{fault}");
    let both = service.fixture.supervisor.both().await.unwrap();
    assert_eq!((both.current.up(), both.beside), (Ok(old.pid), None));
    assert_eq!(service.ask(), ("one".to_owned(), old.pid));
}

#[tokio::test]
async fn while_one_drains_everything_else_can_be_asked_for() {
    let Some(service) = Service::new("while_one_drains") else { return };
    let supervisor = &service.fixture.supervisor;
    let (old, begun) = busy(&service).await;
    let new = stands_beside(&service, "two").await;
    for _ in 0..2 {
        supervisor.drain().await.unwrap();
        let both = supervisor.both().await.unwrap();
        assert_eq!((both.current.up(), both.draining), (Ok(new.pid), vec![old.pid]), "also asked again");
    }
    supervisor.dismiss().await.unwrap();
    assert!(new.identity().is_running(), "it does not stand beside any more");
    // The way back begins while the first one still drains.
    let third = stands_beside(&service, "three").await;
    supervisor.dismiss().await.unwrap();
    assert!(!third.identity().is_running());
    let fault = supervisor.drain().await.expect_err("what was dismissed does not take over");
    assert_eq!(fault.reason.code, ReasonCode::StopFailed);
    let fourth = stands_beside(&service, "four").await;
    supervisor.drain().await.unwrap();
    until_gone(&new.identity()).await;
    service.until_draining(&[old.pid]).await;
    std::fs::write(service.fixture.file("go"), "").unwrap();
    assert_eq!(answer(&begun), ("one".to_owned(), old.pid));
    service.until_draining(&[]).await;
    assert_eq!(service.ask(), ("four".to_owned(), fourth.pid));
}

#[tokio::test]
async fn whoever_hangs_up_gives_his_connection_back_and_what_he_asked_for_goes_on() {
    let Some(mut service) = Service::new("whoever_hangs_up") else { return };
    service.fixture.config.run.drain_timeout = NEVER;
    service.fixture.refresh();
    let old = service.start().await;
    service.ready(old.pid).await;
    let new = stands_beside(&service, "two").await;
    std::fs::write(service.fixture.file("stubborn"), "").unwrap();
    // More than the shim has connections.
    for _ in 0..40 {
        let mut stream = UnixStream::connect(service.fixture.shim_dir().join(SOCKET)).unwrap();
        // A shim that is full hangs up before it hears anything.
        let _ = stream.write_all(b"{\"v\":2,\"op\":\"dismiss\"}\n");
    }
    let supervisor = &service.fixture.supervisor;
    let state = until("the dismissal", || async {
        let beside = supervisor.both().await.expect("the shim answers").beside?;
        beside.up().is_err().then_some(beside)
    })
    .await;
    assert!(matches!(state, ProcessStateInfo::Stopping(info) if info.pid == new.pid));
    assert_eq!(supervisor.process().await.unwrap().up(), Ok(old.pid));
}

#[tokio::test]
async fn a_stop_ends_what_drains_as_well() {
    let Some(mut service) = Service::new("a_stop_ends_what_drains") else { return };
    service.fixture.config.run.drain_timeout = NEVER;
    service.fixture.config.run.stop_timeout = Duration::from_millis(200);
    service.fixture.refresh();
    let (old, _begun) = busy(&service).await;
    let new = stands_beside(&service, "two").await;
    let supervisor = &service.fixture.supervisor;
    supervisor.drain().await.unwrap();
    assert_eq!(supervisor.both().await.unwrap().draining, [old.pid]);
    supervisor.stop().await.unwrap();
    until_gone(&old.identity()).await;
    assert!(!new.identity().is_running());
    service.until_draining(&[]).await;
}

#[tokio::test]
async fn what_never_served_has_nothing_to_finish() {
    let Some(mut service) = Service::new("what_never_served") else { return };
    service.fixture.config.run.drain_timeout = NEVER;
    service.fixture.config.run.stop_timeout = Duration::from_millis(200);
    service.fixture.refresh();
    let old = service.start().await;
    service.ready(old.pid).await;
    for name in ["silent", "stubborn"] {
        std::fs::write(service.fixture.file(name), "").unwrap();
    }
    service.install("two");
    let supervisor = &service.fixture.supervisor;
    let new = supervisor.start_beside(&service.launch()).await.unwrap();
    // Which of the two a connection comes to is the kernel's choice. By now it passes signals over.
    until("an answer of the new one", || async { (service.ask().1 == new.pid).then_some(()) }).await;
    let dismissed = tokio::time::timeout(Duration::from_secs(60), supervisor.dismiss()).await;
    dismissed.expect("it was given the time to drain").unwrap();
    let exit = service.fixture.record().exits.back().cloned().unwrap();
    assert_eq!((exit.pid, exit.killed), (new.pid, true));
    assert_eq!(service.ask(), ("one".to_owned(), old.pid));
}

#[tokio::test]
async fn what_left_the_session_of_a_killed_shim_is_ended() {
    let Some(service) = Service::new("what_left_the_session") else { return };
    let old = service.start().await;
    let orphan =
        |line: String| Identity::of(line.split_whitespace().nth(2).unwrap().parse().unwrap()).unwrap();
    let escaped = orphan(say(&service.connect(), "orphan"));
    let beside = stands_beside(&service, "two").await;
    assert_eq!(service.fixture.record().besides, [beside.identity()]);
    let shim = service.fixture.shim();
    assert!(shim.signal(Signal::KILL));
    until_gone(&shim).await;
    service.fixture.supervisor.ensure_shim().await.unwrap();
    for process in [old.identity(), beside.identity(), escaped] {
        assert!(!process.is_running(), "{process:?}");
    }
    assert_eq!(service.fixture.record().besides, []);
}
