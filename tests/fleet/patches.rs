//! Patches of a Java application through the controller, with real JVMs: what runs is what is said to run.

use std::{fs, process::Command};

use upfleet_api::v1::{
    self, StackChange, Standing, UpgradeState, fix_state, rollout::State, rollout_spec::Change,
};
use upfleet_domain::digest::Digest;

use crate::support::{Shops, apply, eventually, eventually_async, java, run};

/// Price and tax.
fn told(price: &str, tax: &str) -> (String, String) {
    (price.to_owned(), tax.to_owned())
}

/// What the JVM said at the end of the node's upgrade: (class, number, standing), by class.
async fn proof(shops: &Shops, rollout: &str, node: &str) -> Vec<(String, u32, Standing)> {
    let upgrade = shops.fleet.api.upgrade(rollout, node).await;
    assert_eq!(upgrade.state(), UpgradeState::Succeeded);
    assert_eq!(upgrade.reason.unwrap().code, "PATCH_PROVED");
    let proof = upgrade.proof.expect("a stack is proved");
    assert_eq!(proof.pid, shops.pid(node));
    let mut classes: Vec<_> = proof
        .classes
        .iter()
        .map(|class| (class.class_name.clone(), class.number, class.standing()))
        .collect();
    classes.sort();
    classes
}

#[tokio::test]
async fn a_live_patch_survives_a_restart_and_is_taken_back_live() {
    let Some(shops) = Shops::start("a_live_patch", 1, "").await else { return };
    shops.patch_to(1, "new", "new", &["--fix", "SHOP-1"]);
    let pid = shops.pid("n1");
    assert_eq!(shops.ask("n1", "price").unwrap(), "old");
    let live = StackChange { live: true, ..apply(&["p1"]) };
    let rollout = shops.run(Change::Stack(live)).await;
    let classes = proof(&shops, &rollout, "n1").await;
    // Nobody has asked for the tax yet, so that class is not loaded.
    let wanted =
        [("shop.Price".to_owned(), 1, Standing::Proved), ("shop.Tax".to_owned(), 1, Standing::Armed)];
    assert_eq!(classes, wanted);
    assert_eq!((shops.pid("n1"), shops.says("n1")), (pid, told("new", "new")));
    // The stack holds for the next start as well.
    run(Command::new("kill").args(["-9", &pid.to_string()])).success();
    let second = eventually("another process", || Some(shops.pid("n1")).filter(|now| *now != pid));
    assert_eq!(shops.says("n1"), told("new", "new"));
    let back = Change::Stack(StackChange { none: true, live: true, ..Default::default() });
    let back = shops.run(back).await;
    assert_eq!((shops.pid("n1"), shops.says("n1")), (second, told("old", "old")));
    let history = shops.history("n1").await;
    let rollouts: Vec<_> = history.iter().map(|entry| entry.rollout.as_str()).collect();
    assert_eq!(rollouts[1..], [&rollout, &back], "{history:?}");
}

#[tokio::test]
async fn the_rollback_of_a_live_patch_is_live() {
    let Some(shops) = Shops::start("the_rollback_of_a_live_patch", 1, "").await else { return };
    shops.patch_to(1, "new", "old", &["--fix", "SHOP-1"]);
    let pid = shops.pid("n1");
    let rollout = shops.run(Change::Stack(StackChange { live: true, ..apply(&["p1"]) })).await;
    assert_eq!(shops.says("n1"), told("new", "old"));
    let id = rollout.trim_start_matches("rollouts/");
    shops.fleet.cli(&["rollout", "rollback", id, "--yes"]).success();
    assert_eq!((shops.pid("n1"), shops.says("n1")), (pid, told("old", "old")));
    assert_eq!(shops.stack("n1").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_stack_is_changed_as_a_whole_by_restart() {
    let Some(shops) = Shops::start("a_stack_is_changed", 1, "").await else { return };
    let nine = shops.patch_to(9, "nine", "old", &["--fix", "SHOP-9"]);
    shops.patch_to(8, "old", "eight", &["--fix", "SHOP-8"]);
    let ten = java::build(shops.jdk, "ten", "old");
    shops.patch(
        10,
        &ten,
        &["--on", nine.to_str().unwrap(), "--supersedes", "9", "--fix", "SHOP-9", "--fix", "SHOP-10"],
    );
    let before = shops.pid("n1");
    shops.run(Change::Stack(apply(&["p8", "p9"]))).await;
    assert_ne!(shops.pid("n1"), before);
    assert_eq!(
        (shops.stack("n1").await, shops.says("n1")),
        (vec!["9".into(), "8".into()], told("nine", "eight"))
    );
    let rollout = shops.run(Change::Stack(apply(&["p10"]))).await;
    assert_eq!(shops.stack("n1").await, ["10", "-9", "8"]);
    assert_eq!(shops.says("n1"), told("ten", "eight"));
    let classes = proof(&shops, &rollout, "n1").await;
    assert_eq!(classes[0], ("shop.Price".to_owned(), 10, Standing::Proved));
    // Out of the middle, and what had superseded goes: the superseded one comes back.
    shops.run(Change::Stack(StackChange { remove: vec![10], ..Default::default() })).await;
    assert_eq!(
        (shops.stack("n1").await, shops.says("n1")),
        (vec!["9".into(), "8".into()], told("nine", "eight"))
    );
    shops.run(Change::Stack(StackChange { to_number: 8, ..Default::default() })).await;
    assert_eq!((shops.stack("n1").await, shops.says("n1")), (vec!["8".into()], told("old", "eight")));
    shops.run(Change::Stack(StackChange { none: true, ..Default::default() })).await;
    assert_eq!((shops.stack("n1").await, shops.says("n1")), (vec![], told("old", "old")));
    assert_eq!(shops.history("n1").await.len(), 6);
}

#[tokio::test]
async fn a_new_base_takes_its_stack_along_and_comes_back_with_the_old_one() {
    let Some(shops) = Shops::start("a_new_base_takes_its_stack_along", 1, "").await else { return };
    shops.patch_to(1, "old", "right", &["--fix", "SHOP-1", "--to-sequence", "1"]);
    let second = java::build(shops.jdk, "second", "old");
    shops.fleet.api.publish("2.0.0", 2, &fs::read(java::jar(shops.jdk, &second)).unwrap()).await;
    let fixed = java::build(shops.jdk, "second", "right");
    shops.patch_of(2, &second, &fixed, &["--fix", "SHOP-1", "--from-sequence", "2"]);
    shops.run(Change::Stack(apply(&["p1"]))).await;
    let base = |patches: &[&str], waived: &[&str]| {
        Change::BaseWithStack(v1::BaseWithStackChange {
            release: "releases/app@2.0.0".to_owned(),
            apply: apply(patches).apply,
            waive_fixes: waived.iter().map(|&fix| fix.to_owned()).collect(),
            ..Default::default()
        })
    };
    // Without the patch for the new base the fix would be gone.
    let refused = shops.fleet.cli(&["plan", "--release", "app@2.0.0", "--no-patches"]);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(format!("{refused:?}").contains("SHOP-1"), "{refused:?}");
    let rollout = shops.run(base(&["p2"], &[])).await;
    assert_eq!((shops.stack("n1").await, shops.says("n1")), (vec!["2".to_owned()], told("second", "right")));
    shops.fleet.cli(&["rollout", "rollback", rollout.trim_start_matches("rollouts/"), "--yes"]).success();
    assert_eq!((shops.stack("n1").await, shops.says("n1")), (vec!["1".to_owned()], told("old", "right")));
    shops.run(base(&[], &["SHOP-1"])).await;
    assert_eq!((shops.stack("n1").await, shops.says("n1")), (vec![], told("second", "old")));
}

#[tokio::test]
async fn a_patch_of_another_base_is_found_out_before_anything_is_touched() {
    let Some(shops) = Shops::start("a_patch_of_another_base", 1, "").await else { return };
    let other = java::build(shops.jdk, "other", "old");
    shops.patch_of(1, &other, &java::build(shops.jdk, "new", "old"), &[]);
    let pid = shops.pid("n1");
    let rollout = shops.begin(Change::Stack(apply(&["p1"]))).await;
    let upgrade = shops.fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::FailedUnchanged).await;
    let reason = upgrade.reason.unwrap();
    assert_eq!((reason.code.as_str(), reason.metadata["class"].as_str()), ("BASE_MISMATCH", "shop.Price"));
    shops.fleet.api.reach(&rollout, State::Halted).await;
    assert_eq!((shops.pid("n1"), shops.says("n1")), (pid, told("old", "old")));
    assert!(shops.stack("n1").await.is_empty());
    assert_eq!(shops.fleet.api.times_entered(&rollout, "n1", UpgradeState::Activating).await, 0);
}

#[tokio::test]
async fn what_no_running_jvm_can_take_is_refused_by_the_plan() {
    let Some(shops) = Shops::start("what_no_running_jvm_can_take", 1, "").await else { return };
    let grown = [
        java::class("Price", "new", "public static int more() { return 1; }"),
        java::class("Tax", "old", ""),
    ];
    shops.patch(1, &java::compile(shops.jdk, &grown), &[]);
    let pid = shops.pid("n1");
    let refused = shops.fleet.cli(&["plan", "--patch", "app@p1", "--live"]);
    assert!(format!("{refused:?}").contains("can't take effect in a running JVM"), "{refused:?}");
    let live = StackChange { live: true, ..apply(&["p1"]) };
    if let Ok(rollout) = shops.fleet.api.create(shops.spec(Change::Stack(live))).await {
        assert!(shops.fleet.api.upgrades(&rollout.name).await.is_empty(), "the node is left out");
        shops.fleet.cli(&["rollout", "cancel", rollout.name.trim_start_matches("rollouts/"), "--yes"]);
    }
    assert_eq!((shops.pid("n1"), shops.says("n1")), (pid, told("old", "old")));
    // A restart takes it.
    shops.run(Change::Stack(apply(&["p1"]))).await;
    assert_eq!(shops.says("n1"), told("new", "old"));
}

#[tokio::test]
async fn a_patch_that_crashes_the_application_is_put_back() {
    let Some(shops) = Shops::start("a_patch_that_crashes", 1, "").await else { return };
    shops.patch_to(8, "old", "eight", &[]);
    shops.patch_to(9, "crash", "old", &[]);
    shops.run(Change::Stack(apply(&["p8"]))).await;
    let rollout = shops.begin(Change::Stack(apply(&["p9"]))).await;
    let upgrade = shops.fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::RolledBack).await;
    let lines = upgrade.evidence.expect("a failed process leaves evidence").lines;
    assert!(lines.iter().any(|line| line.contains("cannot tell the price")), "{lines:?}");
    shops.fleet.api.reach(&rollout, State::Halted).await;
    assert_eq!((shops.stack("n1").await, shops.says("n1")), (vec!["8".to_owned()], told("old", "eight")));
    // And the JVM that runs now says so itself.
    let pid = shops.pid("n1");
    eventually_async("the old stack to be proved", || async {
        let component = shops.fleet.api.component("n1").await.unwrap();
        let proof = component.proof.ok_or("no proof")?;
        let tax = proof.classes.iter().any(|class| class.class_name == "shop.Tax" && class.number == 8);
        if proof.pid == pid && tax && component.healthy { Ok(()) } else { Err(format!("{proof:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_patch_damaged_on_the_disk_does_not_start() {
    let Some(shops) = Shops::start("a_patch_damaged_on_the_disk", 1, "").await else { return };
    let built = shops.patch_to(1, "new", "old", &[]);
    shops.run(Change::Stack(apply(&["p1"]))).await;
    assert_eq!(shops.says("n1"), told("new", "old"));
    let jar = fs::read_dir(built).unwrap().map(|entry| entry.unwrap().path());
    let jar = jar.into_iter().find(|path| path.extension().is_some_and(|end| end == "jar")).unwrap();
    let kept = format!(".upfleet/app/versions/{}", Digest::of(&fs::read(jar).unwrap()));
    fs::write(shops.fleet.node("n1").app(&kept), "damaged").unwrap();
    let pid = shops.pid("n1");
    run(Command::new("kill").args(["-9", &pid.to_string()])).success();
    eventually_async("the start to be refused, and said so", || async {
        let component = shops.fleet.api.component("n1").await.unwrap();
        let said =
            component.alarms.iter().chain(&component.drift).any(|reason| reason.code == "STACK_DAMAGED");
        if said && !component.healthy { Ok(()) } else { Err(format!("{component:?}")) }
    })
    .await;
    assert_eq!(shops.ask("n1", "price"), None);
    // The same stack once more puts it right, although the component is unhealthy.
    shops.run(Change::Stack(apply(&["p1"]))).await;
    assert_eq!(shops.says("n1"), told("new", "old"));
}

#[tokio::test]
async fn a_class_that_is_loaded_old_later_is_drift() {
    let Some(mut shops) = Shops::start("a_class_that_is_loaded_old", 1, "mechanism = \"java-agent\"").await
    else {
        return;
    };
    shops.patch_to(1, "old", "new", &[]);
    let rollout = shops.run(Change::Stack(apply(&["p1"]))).await;
    assert_eq!(proof(&shops, &rollout, "n1").await, [("shop.Tax".to_owned(), 1, Standing::Armed)]);
    // Another loader has a copy of the class that the patch was not made for.
    let stranger = java::build(shops.jdk, "old", "strange");
    assert_eq!(shops.ask("n1", stranger.to_str().unwrap()).unwrap(), "other strange");
    // The JVM is asked every minute, and by an agent that begins.
    shops.fleet.node_mut("n1").kill();
    shops.fleet.node_mut("n1").start();
    let drift = eventually_async("the drift to be known", || async {
        let component = shops.fleet.api.component("n1").await.unwrap();
        component.drift.clone().ok_or_else(|| format!("{component:?}"))
    })
    .await;
    assert_eq!(drift.code, "CLASS_OLD");
    let said = format!("{drift:?}");
    assert!(said.contains("shop.Tax") && said.contains("URLClassLoader"), "{said}");
}

#[tokio::test]
async fn the_fleet_knows_which_nodes_lack_a_fix_and_which_jvms_run() {
    let Some(shops) = Shops::start("the_fleet_knows", 3, "").await else { return };
    shops.patch_to(1, "new", "old", &["--fix", "SHOP-1"]);
    let jar = java::jar(shops.jdk, &java::build(shops.jdk, "new", "old"));
    let file = jar.to_str().unwrap();
    shops
        .fleet
        .cli(&[
            "release",
            "create",
            "app@2.0.0",
            "--file",
            file,
            "--platform",
            "linux/any",
            "--fixes",
            "SHOP-1",
        ])
        .success();
    let on = |node: &str, change| {
        let mut spec = shops.spec(change);
        spec.selector = format!("name={node}");
        spec
    };
    for spec in [on("n2", Change::Stack(apply(&["p1"]))), on("n3", shops.install("2.0.0"))] {
        let name = shops.fleet.api.start(spec).await;
        shops.fleet.api.reach(&name, State::Succeeded).await;
    }
    let request = v1::ListFixStatesRequest { fix: "SHOP-1".to_owned(), ..Default::default() };
    let answer = shops.fleet.api.client.patches().list_fix_states(request).await.unwrap().into_inner();
    let states: Vec<_> =
        answer.nodes.iter().map(|node| (node.node.as_str(), node.state(), node.number)).collect();
    let wanted = [
        ("nodes/n1", fix_state::State::Lacks, 0),
        ("nodes/n2", fix_state::State::Patched, 1),
        ("nodes/n3", fix_state::State::InBase, 0),
    ];
    assert_eq!(states, wanted);
    assert_eq!(answer.counts["LACKS"], 1);
    let pid = shops.pid("n2");
    eventually_async("the JVM to be listed", || async {
        let request = v1::ListJvmsRequest { selector: "name=n2".to_owned(), ..Default::default() };
        let jvms = shops.fleet.api.client.nodes().list_jvms(request).await.unwrap().into_inner().jvms;
        let jvm = jvms.iter().filter_map(|found| found.jvm.as_ref()).find(|jvm| jvm.pid == pid);
        match jvm {
            Some(jvm) if jvm.main == "shop.Shop" && jvm.component == "app" && jvm.attachable => Ok(()),
            other => Err(format!("{other:?} of {}", jvms.len())),
        }
    })
    .await;
}
