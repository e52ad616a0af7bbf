//! A node whose component a systemd unit runs, rolled by a real controller: systemd is faked over a private bus.

use upfleet_api::v1::{UpgradeState, rollout::State};

use crate::{
    services::{example, versions},
    support::{
        Behaviour, COMPONENT, Fleet, eventually, eventually_async,
        load::{Load, get},
        skip,
    },
};

#[path = "../../node-agent/tests/process/systemd/fake/mod.rs"]
pub mod fake;

const UNIT: &str = "app.service";

#[tokio::test]
async fn a_unit_is_rolled_forward_and_a_bad_release_back() {
    let Some(systemd) = fake::FakeSystemd::start() else {
        return skip("a_unit_is_rolled_forward_and_a_bad_release_back", "there is no dbus-daemon");
    };
    let releases = vec![("1.1.0", Behaviour::Good), ("1.2.0", Behaviour::Crashes)];
    let mut fleet = Fleet { nodes: 0, releases, ..Fleet::default() }.start().await;
    let index = fleet.add_node("n1", None).await;
    let node = &mut fleet.nodes[index];
    node.run_by(&format!("mode = \"systemd\"\nunit = \"{UNIT}\"\n"));
    let path = node.component().display().to_string();
    systemd.install(
        UNIT,
        &format!("[Service]\nExecStart={path}\nRestart=always\nRestartSec=1ms\nStartLimitBurst=3\n"),
    );
    let bus = systemd.address();
    let environment = [("DBUS_SYSTEM_BUS_ADDRESS", bus.as_str())];
    node.start_with(&environment);
    fleet.api.reach_online("n1", true).await;
    fleet.install_base("*").await;
    fleet.install("1.1.0").await;
    let (version, pid) = eventually("the new version", || fleet.node("n1").running());
    assert_eq!((version.as_str(), pid), ("1.1.0", systemd.standing(UNIT).main_pid));
    eventually_async("the controller to know how it is run", || async {
        let component = fleet.api.component("n1").await.ok_or("no component")?;
        let known = component.run_mode == "systemd" && component.pid == pid;
        if known { Ok(()) } else { Err(format!("{component:?}")) }
    })
    .await;
    let checked = run_on_bus(&fleet.nodes[index], &bus, "check-config");
    assert!(checked.contains(&format!("unit {UNIT} is there and runs it")), "{checked}");
    let shown = run_on_bus(&fleet.nodes[index], &bus, "status");
    assert!(shown.contains(&format!("unit {UNIT}")), "{shown}");

    // The agent comes and goes; the unit does not notice.
    fleet.node_mut("n1").kill();
    fleet.api.reach_online("n1", false).await;
    assert_eq!(systemd.standing(UNIT).main_pid, pid);
    fleet.node_mut("n1").start_with(&environment);
    fleet.api.reach_online("n1", true).await;
    assert_eq!(fleet.node("n1").running(), Some(("1.1.0".to_owned(), pid)));

    // A release that falls over until systemd gives it up.
    let rollout = fleet.api.start(fleet.spec("1.2.0")).await;
    fleet.api.reach(&rollout, State::Halted).await;
    assert_eq!(fleet.api.times_entered(&rollout, "n1", UpgradeState::RolledBack).await, 1);
    eventually("the old version to run again", || {
        fleet.node("n1").running().filter(|(version, _)| version == "1.1.0")
    });
    assert_eq!(systemd.standing(UNIT).active, "active");
    assert!(systemd.journal(UNIT).contains("cannot bind"), "the unit's output is systemd's");
    let starts = fleet.node("n1").starts();
    assert_eq!(
        starts.iter().filter(|version| *version == "1.2.0").count().min(1),
        1,
        "{COMPONENT}: {starts:?}"
    );
}

fn run_on_bus(node: &crate::support::Node, bus: &str, command: &str) -> String {
    let output = node.command(&[command]).env("DBUS_SYSTEM_BUS_ADDRESS", bus).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The sockets stay with systemd: while the service is restarted, forward or back, connections wait.
#[tokio::test]
async fn a_socket_unit_is_never_touched_and_no_request_fails() {
    let test = "a_socket_unit_is_never_touched_and_no_request_fails";
    let Some(systemd) = fake::FakeSystemd::start() else { return skip(test, "there is no dbus-daemon") };
    let mut fleet = Fleet { nodes: 0, base: None, releases: Vec::new(), ..Fleet::default() }.start().await;
    let index = fleet.add_node("n1", None).await;
    let node = &mut fleet.nodes[index];
    let path = node.component().display().to_string();
    let text = |file: &str| std::fs::read_to_string(example("rust").join(file)).unwrap();
    let own = |text: String| text.replace("/opt/shop/bin/shop", &path).replace("shop.", "app.");
    systemd.install("app.socket", &own(text("shop.socket")));
    systemd.install(UNIT, &own(text("shop.service")));
    // The third version is ill for as long as it is the one that lies there.
    let probe = format!(
        "interval = \"50ms\"\nsuccesses = 1\n[[component.probe]]\ntype = \"exec\"\ninterval = \"250ms\"\nsuccesses = 1\n\
         failures = 2\ncommand = [\"/bin/sh\", \"-c\", \"! grep -q 'shop 3.0.0' {path}\"]\n\
         [component.health]\nsoak = \"600ms\"\nstart_deadline = \"5s\"\n"
    );
    node.declare(&(own(text("systemd.toml")).replace("\"shop\"", &format!("\"{COMPONENT}\"")) + &probe));
    let address = systemd.operator_opens_socket(UNIT);
    let bus = systemd.address();
    node.start_with(&[("DBUS_SYSTEM_BUS_ADDRESS", &bus)]);
    fleet.api.reach_online("n1", true).await;
    let programs = versions("rust", fleet.dir()).unwrap().map(|path| std::fs::read(path).unwrap());
    let ill = crate::services::named(&programs[0], "shop 3.0.0");
    let releases = [("1.0.0", &programs[0]), ("2.0.0", &programs[1]), ("3.0.0", &ill)];
    for (sequence, (version, program)) in (1..).zip(releases) {
        fleet.api.publish(version, sequence, program).await;
    }
    let falls = b"#!/bin/sh\nexit 3\n";
    fleet.api.publish("4.0.0", 4, falls).await;
    fleet.install("1.0.0").await;
    let checked = run_on_bus(&fleet.nodes[index], &bus, "check-config");
    assert!(checked.contains(&format!("unit {UNIT} is there and runs it")), "{checked}");

    let load = Load::start(address, 8, 4);
    fleet.install("2.0.0").await;
    assert_eq!(get(address, "/version").unwrap(), "shop 2.0.0");
    for version in ["3.0.0", "4.0.0"] {
        let rollout = fleet.api.start(fleet.spec(version)).await;
        fleet.api.reach(&rollout, State::Halted).await;
        assert_eq!(fleet.api.upgrade(&rollout, "n1").await.state(), UpgradeState::RolledBack, "{version}");
        assert_eq!(get(address, "/version").unwrap(), "shop 2.0.0", "{version}");
        let cancelled = ["rollout", "cancel", rollout.trim_start_matches("rollouts/"), "--yes"];
        fleet.cli(&cancelled).success();
    }
    let tally = load.end();
    assert_eq!(tally.failures, Vec::<String>::new(), "of {}", tally.answered());
    println!("{} requests, the slowest took {:?}", tally.answered(), tally.slowest);
    let calls = systemd.calls();
    assert!(calls.contains(&format!("StopUnit {UNIT}")), "{calls:?}");
    assert!(!calls.iter().any(|call| call.contains("socket")), "{calls:?}");
}
