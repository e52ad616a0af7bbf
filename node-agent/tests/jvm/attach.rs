//! T24–T29, T33, T34: attaching, and what must not be done to a process that is not ready for it.

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use upfleet_agent::{
    jvm::{Target, attach},
    processes::Identity,
};
use upfleet_domain::reason::{Reason, ReasonCode};

use crate::support::{
    Jdk, Jvm, PATIENCE, each_jdk, idle, newest_jdk, obedient_agent, skip, socket_path, wait,
};

const LIMIT: Duration = Duration::from_secs(30);

fn start(jdk: &Jdk, options: &[&str]) -> Jvm {
    let classes = idle();
    let arguments = [options, &["-cp", classes.to_str().unwrap(), "Idle"]].concat();
    Jvm::start(jdk, &arguments)
}

fn started(jdk: &Jdk, options: &[&str]) -> Jvm {
    let mut jvm = start(jdk, options);
    jvm.wait_for("ready");
    jvm
}

fn properties(target: &Target) -> Result<attach::Reply, Reason> {
    wait(attach::command(target, &["properties"], LIMIT))
}

fn problem(reason: &Reason) -> String {
    reason.to_string()
}

fn trigger_is_gone(jvm: &Jvm) {
    let name = format!(".attach_pid{}", jvm.pid());
    assert!(!Path::new("/tmp").join(&name).exists() && !jvm.work_dir().join(&name).exists());
}

#[test]
fn t24_a_jvm_that_is_just_starting_is_waited_for_and_never_killed() {
    each_jdk("t24", |jdk| {
        let agent = obedient_agent();
        for age in [0, 10, 40, 80, 150, 300] {
            let mut jvm = start(jdk, &[]);
            // Its age is what is varied here, not something waited for.
            std::thread::sleep(Duration::from_millis(age));
            let report = jvm.work_dir().join("report");
            let options = format!("write {}", report.display());
            wait(attach::load(&jvm.target(), agent.to_str().unwrap(), &options, LIMIT)).unwrap();
            assert!(report.exists());
            jvm.wait_for("ready");
            jvm.assert_undisturbed();
            trigger_is_gone(&jvm);
        }
    });
}

#[test]
fn t25_a_jvm_without_signals_is_refused_and_lives() {
    each_jdk("t25", |jdk| {
        // It listens from its start, so that no signal is needed, unless somebody removed its socket.
        let mut jvm = start(jdk, &["-Xrs"]);
        properties(&jvm.target()).unwrap();
        jvm.wait_for("ready");
        jvm.assert_undisturbed();
        fs::remove_file(socket_path(jvm.pid())).unwrap();
        let reason = properties(&jvm.target()).unwrap_err();
        assert_eq!(reason.code, ReasonCode::AttachRefused, "{reason}");
        assert!(problem(&reason).contains("-Xrs"), "{reason}");
        jvm.assert_undisturbed();
    });
}

#[test]
fn t26_a_jvm_that_forbids_it_is_told_from_its_options_before_any_signal() {
    const FORBID: &str = "-XX:+DisableAttachMechanism";
    each_jdk("t26", |jdk| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("arguments");
        fs::write(&file, format!("# ours\n\"{FORBID}\"\n")).unwrap();
        let classes = idle();
        let plain = ["-cp", classes.to_str().unwrap(), "Idle"].map(str::to_owned);
        let at_file = format!("@{}", file.display());
        let mut cases = vec![
            (None, Some(FORBID.to_owned())),
            (Some("JAVA_TOOL_OPTIONS"), None),
            (Some("_JAVA_OPTIONS"), None),
        ];
        if jdk.feature >= 9 {
            cases.extend([(None, Some(at_file)), (Some("JDK_JAVA_OPTIONS"), None)]);
        }
        for (variable, option) in cases {
            let mut command = Command::new(jdk.program("java"));
            command.args(Jvm::small()).args(&option).args(&plain);
            if let Some(variable) = variable {
                command.env(variable, FORBID);
            }
            let mut jvm = Jvm::spawn(&mut command);
            jvm.wait_for("ready");
            let reason = properties(&jvm.target()).unwrap_err();
            assert_eq!(reason.code, ReasonCode::AttachRefused, "{variable:?} {option:?} {reason}");
            assert!(problem(&reason).contains(FORBID), "{reason}");
            jvm.assert_undisturbed();
        }
    });
}

#[test]
fn t27_what_is_no_jvm_is_sent_nothing() {
    let mut sleeper = Jvm::spawn(Command::new("/bin/sleep").arg("600"));
    let reason = Target::of(sleeper.pid()).unwrap_err();
    assert_eq!(reason.code, ReasonCode::AttachRefused);
    assert!(sleeper.is_alive());

    // One that calls itself java, and one that has mapped a library of that name: neither catches SIGQUIT.
    let dir = tempfile::tempdir().unwrap();
    let java = dir.path().join("java");
    fs::copy("/bin/sleep", &java).unwrap();
    let mut named = Jvm::spawn(Command::new(&java).arg("600"));
    let mut cases = vec![(&mut named, ReasonCode::JvmNotReady)];
    let mut mapped = library().map(|library| {
        fs::copy(library, dir.path().join("libjvm.so")).unwrap();
        fs::copy(library, dir.path().join("libj9vm29.so")).unwrap();
        ["libjvm.so", "libj9vm29.so"].map(|name| {
            Jvm::spawn(Command::new("/bin/sleep").arg("600").env("LD_PRELOAD", dir.path().join(name)))
        })
    });
    if let Some([hotspot, openj9]) = &mut mapped {
        cases.extend([(hotspot, ReasonCode::JvmNotReady), (openj9, ReasonCode::AttachRefused)]);
    } else {
        skip("t27, mapped libraries", "no C library was found to copy");
    }
    for (process, code) in cases {
        let target = process.target();
        let reason = wait(attach::command(&target, &["properties"], Duration::from_secs(1))).unwrap_err();
        assert_eq!(reason.code, code, "{reason}");
        assert!(process.is_alive(), "{reason}");
    }
}

/// A library that any program can be made to map.
fn library() -> Option<&'static str> {
    let known = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6", "/lib64/libm.so.6"];
    known.into_iter().find(|path| Path::new(path).exists())
}

#[test]
fn t28_every_way_in_which_loading_fails_is_told_apart() {
    each_jdk("t28", |jdk| {
        let agent = obedient_agent();
        let agent = agent.to_str().unwrap();
        let jvm = started(jdk, &[]);
        let target = jvm.target();
        let load =
            |target: &Target, jar: &str, options: &str| wait(attach::load(target, jar, options, LIMIT));
        let report = jvm.work_dir().join("report");
        load(&target, agent, &format!("write {}", report.display())).unwrap();
        assert_eq!(fs::read(&report).unwrap(), b"done");
        let failures = [("/nowhere/agent.jar", "", "return code 100"), (agent, "throw", "return code 102")];
        for (jar, options, text) in failures {
            let reason = load(&target, jar, options).unwrap_err();
            assert_eq!(reason.code, ReasonCode::AttachFailed);
            assert!(problem(&reason).contains(text), "{reason}");
        }
        let reason = wait(attach::command(&target, &["bogus"], LIMIT)).unwrap_err();
        assert!(problem(&reason).contains("-1: Operation bogus not recognized"), "{reason}");
        if jdk.feature >= 9 {
            let forbidding = started(jdk, &["-XX:-EnableDynamicAgentLoading"]);
            let reason = load(&forbidding.target(), agent, "write /nowhere").unwrap_err();
            assert_eq!(reason.code, ReasonCode::AttachRefused);
            assert!(problem(&reason).contains("EnableDynamicAgentLoading"), "{reason}");
        }
    });
}

#[test]
fn t29_a_request_that_is_too_long_is_refused_here_unless_the_jvm_takes_it() {
    each_jdk("t29", |jdk| {
        let jvm = started(jdk, &[]);
        let target = jvm.target();
        let report = jvm.work_dir().join("report");
        let agent = obedient_agent();
        let agent = agent.to_str().unwrap();
        let options = format!("write {} {}", report.display(), "x".repeat(1025));
        let v2 = attach::wire::speaks_v2(&wait(target.ask(&["getversion"], LIMIT)).unwrap());
        match wait(attach::load(&target, agent, &options, LIMIT)) {
            Ok(()) => assert!(v2 && report.exists()),
            Err(reason) => {
                assert!(!v2 && !report.exists(), "{reason}");
                assert!(problem(&reason).contains("at most 1024"), "{reason}");
            }
        }
        println!("JDK {}: protocol version {}", jdk.feature, if v2 { 2 } else { 1 });
        let reason = wait(attach::load(&target, agent, &"x".repeat(300_000), LIMIT)).unwrap_err();
        assert!(problem(&reason).contains("too long"), "{reason}");
    });
}

#[test]
fn t33_a_socket_that_was_deleted_or_is_stale_is_healed() {
    each_jdk("t33", |jdk| {
        // What a process of the same number has left that was killed.
        let mut jvm = started(jdk, &[]);
        drop(UnixListener::bind(socket_path(jvm.pid())).unwrap());
        properties(&jvm.target()).unwrap();
        jvm.assert_undisturbed();
        // A cleaner of temporary files removes the socket.
        fs::remove_file(socket_path(jvm.pid())).unwrap();
        match properties(&jvm.target()) {
            Ok(_) => jvm.assert_undisturbed(),
            Err(reason) => {
                println!("JDK {}: {reason}", jdk.feature);
                assert!(jdk.feature < 11, "{reason}");
                assert!(jvm.is_alive());
            }
        }
        trigger_is_gone(&jvm);
        let target = jvm.target();
        jvm.kill();
        assert!(problem(&properties(&target).unwrap_err()).contains("has ended"));
    });
}

#[test]
fn t34_a_process_that_got_the_planned_number_is_not_touched() {
    let Some(jdk) = newest_jdk("t34") else { return };
    let mut jvm = started(jdk, &[]);
    let own = Identity::of(jvm.pid()).unwrap();
    assert!(Target::planned(&own).is_ok());
    let other = Identity { start_time: own.start_time - 1, ..own };
    assert!(Target::planned(&other).is_err());
    // Also where the number changes hands after the plan: the helper looks again.
    let mut target = jvm.target();
    target.subject.identity = other;
    let reason = properties(&target).unwrap_err();
    assert!(problem(&reason).contains("no signal was sent"), "{reason}");
    jvm.assert_undisturbed();
    assert!(!Path::new(&socket_path(jvm.pid())).exists(), "nobody made it listen");
}

#[test]
fn a_busy_listener_runs_into_the_limit() {
    let Some(jdk) = newest_jdk("a busy listener") else { return };
    let jvm = started(jdk, &[]);
    let (target, agent) = (jvm.target(), obedient_agent());
    properties(&target).unwrap();
    let (busy, agent) = (target.clone(), agent.to_str().unwrap().to_owned());
    let loading = std::thread::spawn(move || wait(attach::load(&busy, &agent, "sleep 4000", LIMIT)));
    let begun = Instant::now();
    loop {
        // It may still be accepted before the agent is; then it is quick.
        match wait(attach::command(&target, &["properties"], Duration::from_secs(1))) {
            Ok(_) => assert!(begun.elapsed() < PATIENCE, "the listener was never busy"),
            Err(reason) => {
                assert!(problem(&reason).contains("within 1 s"), "{reason}");
                break;
            }
        }
    }
    loading.join().unwrap().unwrap();
}

#[test]
fn t32_a_link_in_place_of_the_socket_is_refused() {
    let Some(jdk) = newest_jdk("t32") else { return };
    let (first, mut second) = (started(jdk, &[]), started(jdk, &[]));
    properties(&first.target()).unwrap();
    symlink(socket_path(first.pid()), socket_path(second.pid())).unwrap();
    let reason = properties(&second.target()).unwrap_err();
    assert!(problem(&reason).contains("symbolic link"), "{reason}");
    second.assert_undisturbed();
    fs::remove_file(socket_path(second.pid())).unwrap();
    fs::write(socket_path(second.pid()), "no socket").unwrap();
    assert!(problem(&properties(&second.target()).unwrap_err()).contains("not a socket"));
    second.assert_undisturbed();
}
