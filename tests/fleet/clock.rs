//! Clocks that are set while the fleet works, on a node and on the controller: no deadline passes for it, nothing is put
//! back, big steps are told, and what was cut off comes back once the clock is right.

use std::{fs, path::PathBuf, time::Duration};

use upfleet_api::v1::{UpgradeState, rollout::State};

use crate::support::{Behaviour, Fleet, TestFleet, endure, eventually, script, skip};

/// Whose clock is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Agent,
    Controller,
}

/// By how much, as the library reads it, and whether a certificate is good by such a clock.
const STEPS: [(&str, bool); 4] = [("+1s", true), ("-4m", true), ("-366d", false), ("+3660d", false)];

const LIBRARIES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// The clock of one process, set through a file.
struct Clock(PathBuf);

impl Clock {
    fn new(fleet: &TestFleet, name: &str) -> Self {
        let clock = Self(fleet.dir().join(format!("{name}.clock")));
        clock.set("+0s");
        clock
    }

    fn set(&self, step: &str) {
        // Replaced as a whole: it is read at every look at the clock.
        let next = self.0.with_extension("next");
        fs::write(&next, format!("{step}\n")).unwrap();
        fs::rename(next, &self.0).unwrap();
    }

    /// Only the time of day is faked: what has passed since the boot goes on, as it does when a clock is set.
    fn environment(&self, library: &str) -> Vec<(&'static str, String)> {
        vec![
            ("LD_PRELOAD", library.to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.0.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }
}

/// A rollout in whose midst the clock is set; it must end as if it had not been.
async fn set_in_mid_upgrade(fleet: &TestFleet, clock: &Clock, step: &str, number: u64) {
    let version = format!("2.{number}.0");
    let _ = fs::remove_file(fleet.node("n1").app("healthy"));
    fleet.api.publish(&version, 10 + number, &script(&version, Behaviour::HealthyWhenToldSo)).await;
    let mut spec = fleet.spec(&version);
    spec.policy.as_mut().unwrap().silence_after = Some(pbjson_types::Duration { seconds: 60, nanos: 0 });
    let rollout = fleet.api.start(spec).await;
    fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::Probing).await;
    clock.set(step);
    // The moment is what is being tried: a second in which whatever looks at the clock does.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let upgrade = fleet.api.upgrade(&rollout, "n1").await;
    assert_eq!(upgrade.state(), UpgradeState::Probing, "{step}: {:?}", upgrade.reason);
    fs::write(fleet.node("n1").app("healthy"), "").unwrap();
    fleet.api.reach(&rollout, State::Succeeded).await;
    assert_eq!(fleet.node("n1").starts().iter().filter(|started| **started == version).count(), 1);
    assert_eq!(fleet.api.times_entered(&rollout, "n1", UpgradeState::Activating).await, 1, "{step}");
}

/// Started while the clock is wrong: components run on, somebody is told, and the fleet is whole once it is right.
async fn restarted(
    fleet: &mut TestFleet,
    whose: Whose,
    clock: &Clock,
    environment: &[(&'static str, String)],
    valid: bool,
) {
    let before = fleet.node("n1").running();
    let words: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    match whose {
        Whose::Agent => {
            fleet.node_mut("n1").kill();
            fleet.node_mut("n1").start_with(&words);
            if !valid {
                eventually("the node to say why it has no session", || {
                    let status = fleet.node("n1").run(&["status", "--output", "json"]);
                    let status: serde_json::Value = serde_json::from_str(&status.out).ok()?;
                    status["link"]["problem"].is_string().then_some(())
                });
            }
            clock.set("+0s");
            fleet.node_mut("n1").kill();
            fleet.node_mut("n1").start_with(&words);
        }
        Whose::Controller => {
            fleet.kill_controller();
            fleet.try_start_controller().await.expect("a wrong clock is no reason to refuse");
            clock.set("+0s");
            fleet.kill_controller();
            fleet.start_controller().await;
        }
    }
    fleet.api.reach_online("n1", true).await;
    assert_eq!(fleet.node("n1").running(), before, "the component was not touched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn matrix_of_clocks_that_are_set() {
    let Some(library) = LIBRARIES.into_iter().find(|path| fs::exists(path).unwrap_or(false)) else {
        return skip("clock::matrix_of_clocks_that_are_set", "the library that fakes the time is missing");
    };
    let mut done = 0;
    for whose in [Whose::Agent, Whose::Controller] {
        let mut fleet = Fleet::default().start().await;
        let clock = Clock::new(&fleet, "faked");
        let environment = clock.environment(library);
        match whose {
            Whose::Agent => {
                let words: Vec<(&str, &str)> =
                    environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
                fleet.node_mut("n1").kill();
                fleet.node_mut("n1").start_with(&words);
            }
            Whose::Controller => {
                fleet.kill_controller();
                fleet.set_environment(environment.clone());
                fleet.start_controller().await;
            }
        }
        fleet.api.reach_online("n1", true).await;
        let all = if endure() { &STEPS[..] } else { &STEPS[3..] };
        for (number, (step, valid)) in (0..).zip(all) {
            set_in_mid_upgrade(&fleet, &clock, step, number).await;
            restarted(&mut fleet, whose, &clock, &environment, *valid).await;
            done += 1;
        }
    }
    println!(
        "figure: clock_steps {done} of {done} steps in mid-upgrade and before a start, nothing put back"
    );
}
