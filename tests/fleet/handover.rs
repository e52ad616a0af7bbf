//! A service under load changes its version through a whole fleet: a good release, bad ones, and a way back, by the agent's
//! own handover; and for comparison by stop and start, which says how long nothing answered.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    time::Duration,
};

use upfleet_api::v1::{self, UpgradeState, rollout::State};

use crate::{
    services::versions,
    support::{
        COMPONENT, Fleet, TestFleet, eventually,
        load::{Load, get},
    },
};

/// How long the load goes on around each change.
const AROUND: Duration = Duration::from_millis(400);

/// A node that runs the example service in Rust on sockets of the agent's.
struct Shop {
    fleet: TestFleet,
    address: SocketAddr,
}

impl Shop {
    async fn start(activate: &str) -> Self {
        let mut fleet = Fleet { base: None, releases: vec![], ..Fleet::default() }.start().await;
        let [old, new] = versions("rust", fleet.dir()).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        configure(fleet.node("n1").dir(), activate, address);
        fleet.node_mut("n1").kill();
        fleet.node_mut("n1").start();
        fleet.api.reach_online("n1", true).await;
        // Serves as the old one does, and never says that it is ready.
        let silent = format!("#!/bin/sh\nexec /usr/bin/env -u NOTIFY_SOCKET {} \"$@\"\n", old.display());
        let dies = "#!/bin/sh\necho 'no table of prices' >&2\nexit 7\n".to_owned();
        for (version, sequence, bytes) in [
            ("1.0.0", 1, fs::read(&old).unwrap()),
            ("2.0.0", 2, fs::read(&new).unwrap()),
            ("2.1.0", 3, silent.into_bytes()),
            ("2.2.0", 4, dies.into_bytes()),
        ] {
            fleet.api.publish(version, sequence, &bytes).await;
        }
        let shop = Self { fleet, address };
        let first = shop.roll_out("1.0.0", UpgradeState::Succeeded).await;
        assert_eq!(first.interruption, None, "a first install interrupts nobody");
        assert!(get(address, "/version").unwrap().contains("shop 1.0.0"));
        shop
    }

    async fn roll_out(&self, version: &str, ends: UpgradeState) -> v1::Upgrade {
        let name = self.fleet.api.start(self.fleet.spec(version)).await;
        let upgrade = self.fleet.api.reach_upgrade(&name, "n1", ends).await;
        let state = if ends == UpgradeState::Succeeded { State::Succeeded } else { State::Halted };
        self.fleet.api.reach(&name, state).await;
        if state == State::Halted {
            let id = name.trim_start_matches("rollouts/");
            self.fleet.cli(&["rollout", "cancel", id, "--yes"]);
        }
        let shown = self.fleet.cli(&["rollout", "show", name.trim_start_matches("rollouts/")]);
        println!("{}", shown.out);
        upgrade
    }

    fn serves(&self, version: &str) {
        eventually("the version", || {
            get(self.address, "/version").ok().filter(|text| text.contains(version))
        });
    }
}

fn configure(dir: &Path, activate: &str, address: SocketAddr) {
    let path = dir.join("etc/agent.toml");
    let text = fs::read_to_string(&path).unwrap();
    let (head, _) = text.split_once("[component.run]").unwrap();
    let rest = format!(
        r#"[component.run]
mode = "supervised"
activate = "{activate}"
stop_timeout = "20s"
drain_timeout = "20s"
restart_delay = "50ms"

[[component.run.socket]]
name = "http"
listen = "{address}"

[[component.probe]]
type = "notify"
interval = "50ms"
successes = 2
failures = 1000

[component.health]
soak = "300ms"
start_deadline = "3s"
"#
    );
    fs::write(path, format!("{head}{rest}")).unwrap();
}

#[tokio::test]
async fn a_service_changes_version_and_back_without_one_failed_request() {
    let shop = Shop::start("handover").await;
    let load = Load::start(shop.address, 4, 2);
    tokio::time::sleep(AROUND).await;
    let good = shop.roll_out("2.0.0", UpgradeState::Succeeded).await;
    let cost = good.interruption.expect("it concerned a process");
    let down = cost.down.unwrap_or_default();
    assert!(cost.handed_over && (down.seconds, down.nanos) == (0, 0), "{cost:?}");
    shop.serves("shop 2.0.0");
    for bad in ["2.1.0", "2.2.0"] {
        let upgrade = shop.roll_out(bad, UpgradeState::RolledBack).await;
        assert_eq!(upgrade.interruption, None, "the old process never stopped");
        shop.serves("shop 2.0.0");
    }
    let back = shop.fleet.node("n1").run(&["rollback", "--local", COMPONENT, "--message", "pager"]);
    assert_eq!(back.code, 0, "{back:?}");
    shop.serves("shop 1.0.0");
    tokio::time::sleep(AROUND).await;
    let tally = load.end();
    println!("figure: fleet_handover_failed {} of {}", tally.failures.len(), tally.answered());
    assert_eq!(tally.failures, Vec::<String>::new());
    assert!(tally.answered() > 20 && tally.answers.len() >= 2, "{tally:?}");
    let history = shop.fleet.node("n1").run(&["history"]);
    assert!(history.out.contains("0s, handed over"), "{history:?}");
}

#[tokio::test]
async fn by_stop_and_start_connections_wait_and_the_result_says_how_long() {
    let shop = Shop::start("stop-then-start").await;
    let upgrade = shop.roll_out("2.0.0", UpgradeState::Succeeded).await;
    let cost = upgrade.interruption.expect("it concerned a process");
    let down = cost.down.expect("it is measured");
    assert!(!cost.handed_over && (down.seconds > 0 || down.nanos > 0), "{cost:?}");
    println!(
        "figure: fleet_stop_then_start_down_ms {}",
        down.seconds * 1000 + i64::from(down.nanos / 1_000_000)
    );
    shop.serves("shop 2.0.0");
}
