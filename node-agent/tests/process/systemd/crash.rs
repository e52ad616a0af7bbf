//! The agent's core is killed at each of its crash points while it upgrades a unit; the unit goes on, and the next agent
//! ends in the new state or the old one. `UPFLEET_ENDURE=1` kills it in the recovery as well.

use std::{
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use upfleet_agent::{
    crash::{POINTS, VARIABLE},
    exec::hash_file,
    journal::Journal,
};
use upfleet_domain::upgrade::{Outcome, record::Record};

use super::{
    fake::FakeSystemd,
    support::{Release, UNIT, begin, config, program, systemd, unit},
};

/// Names the directory of the component in a child.
const DIR: &str = "UPFLEET_HARNESS_UNIT_DIR";
/// Names the release to order in a child.
const ORDER: &str = "UPFLEET_HARNESS_UNIT_ORDER";

fn releases() -> [Release; 3] {
    [program("one", 1, "/bin/sleep"), program("two", 2, "/bin/sleep"), program("bad", 2, "/bin/false")]
}

fn named(name: &str) -> Release {
    releases().into_iter().find(|release| release.reference.version.to_string() == name).unwrap()
}

/// The child: orders a release and stays until that has ended.
#[test]
fn harness() {
    let (Ok(dir), Ok(name)) = (std::env::var(DIR), std::env::var(ORDER)) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = Path::new(&dir);
        let mut agent = begin(dir, &config(dir, ""), None, &releases());
        agent.order(&named(&name), &name, if name == "one" { 1 } else { 2 }).await;
        agent.end_of(&name).await;
        agent.end().await;
    });
}

/// Runs a child; true where it was killed at `point`.
fn child(fake: &FakeSystemd, dir: &Path, name: &str, point: Option<&str>) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "systemd::crash::harness", "--nocapture"]).env(DIR, dir).env(ORDER, name);
    command.env("DBUS_SYSTEM_BUS_ADDRESS", fake.address()).env_remove(VARIABLE);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(point) = point {
        command.env(VARIABLE, point);
    }
    let mut running = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    let status = loop {
        if let Some(status) = running.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            running.kill().unwrap();
            panic!("{name} did not end; point {point:?}; {:?}", record(dir).passage);
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let killed = status.signal() == Some(9);
    assert!(killed || status.success(), "{status}: {name} at {point:?}: {:?}", record(dir));
    killed
}

fn record(dir: &Path) -> Record {
    let name = "shop".parse().unwrap();
    Journal::peek(&dir.join("state/journals"), &name).unwrap_or_else(|| Record::new(name))
}

/// One series: an upgrade to `name` with these deaths, then a run to the end. Says whether the last death came.
fn series(name: &str, deaths: &[String]) -> bool {
    let fake = FakeSystemd::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    fake.install(UNIT, &unit(path, "Restart=on-failure\nRestartSec=1ms\nStartLimitBurst=3"));
    assert!(!child(&fake, path, "one", None));
    let mut died = false;
    for point in deaths {
        died = child(&fake, path, name, Some(point));
    }
    assert!(!child(&fake, path, name, None), "without a crash point nobody dies");
    let about = format!("{name} after {deaths:?}");
    let (outcome, runs) = match name {
        "bad" => (Outcome::RolledBack, named("one")),
        _ => (Outcome::Succeeded, named(name)),
    };
    let record = record(path);
    assert!(record.passage.is_none(), "{about}: {record:?}");
    assert_eq!(record.last.as_ref().map(|last| last.outcome), Some(outcome), "{about}: {:?}", record.last);
    let digest = Some(runs.reference.artifact);
    assert_eq!((record.current.artifact(), hash_file(&path.join("shop")).ok()), (digest, digest), "{about}");
    let standing = fake.standing(UNIT);
    assert_eq!(standing.active, "active", "{about}: {standing:?}");
    let executed = hash_file(Path::new(&format!("/proc/{}/exe", standing.main_pid))).ok();
    assert_eq!(executed.or(digest), digest, "{about}: what runs is what is recorded");
    let bytes = std::fs::read(format!("/proc/{}/exe", standing.main_pid)).unwrap();
    assert!(bytes == runs.bytes, "{about}: what runs is what is recorded");
    died
}

/// Those that have to do with the unit, and some of the others.
fn points() -> Vec<&'static str> {
    if std::env::var_os("UPFLEET_ENDURE").is_some() {
        return POINTS.to_vec();
    }
    let near = ["step.stop", "step.start", "step.switch", "step.probe", "step.put-back"];
    let own = |point: &&str| near.iter().any(|near| point.starts_with(near));
    POINTS.iter().copied().filter(own).chain(["journal.append.torn"]).collect()
}

#[test]
fn an_agent_killed_at_any_step_ends_with_the_unit_old_or_new() {
    let Some(_) = systemd("an_agent_killed_at_any_step_ends_with_the_unit_old_or_new") else { return };
    let mut all = Vec::new();
    for point in points() {
        for name in ["two", "bad"] {
            // The first and the second time: on the way there and, where there is one, on the way back.
            all.extend([1, 2].map(|count| (name, vec![format!("{point}:{count}")])));
        }
    }
    if std::env::var_os("UPFLEET_ENDURE").is_some() {
        for first in ["step.stop.before", "step.stop.after", "step.start.before", "step.start.after"] {
            for second in POINTS {
                all.extend(
                    ["two", "bad"].map(|name| (name, vec![format!("{first}:1"), format!("{second}:1")])),
                );
            }
        }
    }
    let (runs, queue) = (all.len(), std::sync::Mutex::new(all.into_iter()));
    let died = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some((name, deaths)) = next else { return };
                    if series(name, &deaths) {
                        died.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let died = died.into_inner();
    println!("{runs} series, died in {died}");
    // Not every point is come to twice, nor after every other.
    assert!(died * 4 > runs, "the points are come to");
}
