//! Directory releases through the controller: switched as one, taken up live, put back.

use std::{fs, path::Path};

use upfleet_api::v1::{self, UpgradeState, rollout::State, rollout_spec::Change};

use crate::support::{COMPONENT, Fleet, Shops, TestFleet, apply, eventually, java};

/// How the program of the component is told, and is asked what it was told.
const BY_EXEC: &str = r#"
[component.reload]
type = "exec"
command = ["/bin/sh", "-c", "read -r words <{path}/words; echo read $words; test $words != bad"]
"#;
const BY_SIGNAL: &str = r#"
[component.reload]
type = "signal"
settle = "50ms"
"#;

/// One node with a directory as its component, whose program writes what it heard into `heard`, and 1.0.0 on it.
async fn start(reload: &str) -> TestFleet {
    let mut fleet = Fleet { nodes: 0, base: None, releases: vec![], ..Fleet::default() }.start().await;
    fleet.add_node("n1", None).await;
    let at = fleet.dir().join("n1").display().to_string();
    let script = "hear() { cat $0/words >heard; }; trap hear HUP; echo $$ >pid; hear; while :; do sleep 3600 & wait $!; done";
    let text = format!(
        r#"
state_dir = "{at}/state"
run_dir = "{at}/run"

[fetch]
allow_loopback = true

[[component]]
name = "{COMPONENT}"
path = "{at}/app/{COMPONENT}"
kind = "files"

[component.run]
mode = "supervised"
cwd = "{at}/app"
command = ["/bin/sh", "-c", "{script}", "{{path}}"]
stop_timeout = "1s"
{reload}

[[component.probe]]
type = "exec"
command = ["/usr/bin/test", "-s", "{at}/app/heard"]
interval = "50ms"
successes = 1
failures = 2

[component.health]
soak = "100ms"
start_deadline = "20s"
"#
    );
    fs::write(fleet.dir().join("n1/etc/agent.toml"), text).unwrap();
    fleet.node_mut("n1").start();
    fleet.api.reach_online("n1", true).await;
    publish(&fleet, "1.0.0", "first");
    fleet.install("1.0.0").await;
    fleet
}

/// Publishes a directory with these words.
fn publish(fleet: &TestFleet, version: &str, words: &str) {
    let dir = fleet.dir().join(format!("release-{version}"));
    fs::create_dir_all(dir.join("more")).unwrap();
    fs::write(dir.join("words"), format!("{words}\n")).unwrap();
    fs::write(dir.join("more").join(version), words).unwrap();
    create(fleet, version, &dir);
}

fn create(fleet: &TestFleet, version: &str, dir: &Path) {
    let name = format!("{COMPONENT}@{version}");
    fleet.cli(&["release", "create", &name, "--kind", "files", "--dir", dir.to_str().unwrap()]).success();
}

/// What lies in the component's directory and what its program heard last.
fn seen(fleet: &TestFleet) -> (String, String) {
    let read =
        |name: &str| fs::read_to_string(fleet.node("n1").app(name)).unwrap_or_default().trim().to_owned();
    (read("app/words"), read("heard"))
}

fn pid(fleet: &TestFleet) -> String {
    fs::read_to_string(fleet.node("n1").app("pid")).unwrap()
}

fn both(words: &str) -> (String, String) {
    (words.to_owned(), words.to_owned())
}

#[tokio::test]
async fn a_directory_takes_effect_by_a_signal_and_is_put_back() {
    let fleet = start(BY_SIGNAL).await;
    let before = pid(&fleet);
    publish(&fleet, "1.1.0", "second");
    let rollout = fleet.install("1.1.0").await;
    eventually("the program to hear it", || (seen(&fleet) == both("second")).then_some(()));
    let upgrade = fleet.api.upgrade(&rollout, "n1").await;
    assert!(upgrade.reload.contains("SIGHUP"), "{:?}", upgrade.reload);
    // What the release does not name is gone.
    assert!(!fleet.node("n1").app("app/more/1.0.0").exists());
    fleet.cli(&["rollout", "rollback", rollout.trim_start_matches("rollouts/"), "--yes"]).success();
    eventually("the program to hear the old", || (seen(&fleet) == both("first")).then_some(()));
    assert_eq!(pid(&fleet), before, "nothing was restarted");
}

#[tokio::test]
async fn what_a_reload_answers_is_part_of_the_result() {
    let fleet = start(BY_EXEC).await;
    publish(&fleet, "1.1.0", "second");
    publish(&fleet, "1.2.0", "bad");
    let rollout = fleet.install("1.1.0").await;
    let upgrade = fleet.api.upgrade(&rollout, "n1").await;
    assert!(upgrade.reload.contains("read second"), "{:?}", upgrade.reload);
    // One that says no has the old directory put back, and is carried out again for it.
    let rollout = fleet.api.start(fleet.spec("1.2.0")).await;
    let upgrade = fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::RolledBack).await;
    let reason = upgrade.reason.unwrap();
    assert!(reason.message.contains("read bad") || reason.code.contains("RELOAD"), "{reason:?}");
    fleet.api.reach(&rollout, State::Halted).await;
    assert_eq!(seen(&fleet).0, "second");
}

#[tokio::test]
async fn files_that_were_changed_on_the_node_are_not_run_over() {
    let fleet = start(BY_SIGNAL).await;
    publish(&fleet, "1.1.0", "second");
    fs::write(fleet.node("n1").app("app/words"), "mine\n").unwrap();
    let rollout = fleet.api.start(fleet.spec("1.1.0")).await;
    let upgrade = fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::FailedUnchanged).await;
    let reason = upgrade.reason.unwrap();
    assert_eq!(reason.code, "LOCAL_CHANGES");
    assert!(reason.message.contains("words"), "{}", reason.message);
    fleet.api.reach(&rollout, State::Halted).await;
    assert_eq!(seen(&fleet), ("mine".to_owned(), "first".to_owned()));
}

#[tokio::test]
async fn a_java_application_that_is_a_directory_takes_patches() {
    let Some(shops) = Shops::empty("a_java_application_that_is_a_directory", 1, "files", "").await else {
        return;
    };
    create(&shops.fleet, "1.0.0", &shops.base);
    shops.run(shops.install("1.0.0")).await;
    let built = shops.patch_to(1, "new", "old", &["--fix", "SHOP-1"]);
    assert!(built.is_dir());
    let pid = shops.pid("n1");
    shops.run(Change::Stack(v1::StackChange { live: true, ..apply(&["p1"]) })).await;
    assert_eq!((shops.pid("n1"), shops.says("n1").0), (pid, "new".to_owned()));
    // The directory is as it was released; a new one, with the fix in it, leaves the patch behind.
    let next = java::build(shops.jdk, "newer", "old");
    shops
        .fleet
        .cli(&[
            "release",
            "create",
            "app@1.1.0",
            "--kind",
            "files",
            "--dir",
            next.to_str().unwrap(),
            "--fixes",
            "SHOP-1",
        ])
        .success();
    let change = v1::BaseWithStackChange { release: "releases/app@1.1.0".to_owned(), ..Default::default() };
    let rollout = shops.run(Change::BaseWithStack(change)).await;
    assert_eq!((shops.stack("n1").await, shops.says("n1").0), (vec![], "newer".to_owned()));
    shops.fleet.cli(&["rollout", "rollback", rollout.trim_start_matches("rollouts/"), "--yes"]).success();
    assert_eq!((shops.stack("n1").await, shops.says("n1").0), (vec!["1".to_owned()], "new".to_owned()));
}
