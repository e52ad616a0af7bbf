//! systemd that says no, and a bus on which nobody answers.

use std::time::Duration;

use upfleet_domain::{
    reason::ReasonCode,
    upgrade::{Outcome, UpgradeState},
};

use super::support::{Release, Shop, UNIT, program, systemd};
use crate::support::until;

fn sleepers() -> [Release; 2] {
    [program("1.0", 1, "/bin/sleep"), program("2.0", 2, "/bin/sleep")]
}

#[tokio::test]
async fn units_that_are_not_there_or_masked_or_another_program_change_nothing() {
    let Some(fake) = systemd("units_that_are_not_there_or_masked_or_another_program_change_nothing") else {
        return;
    };
    let mut shop = Shop::new(fake, "", "", &sleepers());
    shop.expect(0, Outcome::Succeeded).await;
    let text = std::fs::read_to_string(shop.fake.units_dir().join(UNIT)).unwrap();
    shop.fake.mask(UNIT);
    let report = shop.expect(1, Outcome::FailedUnchanged).await;
    assert_eq!(report.reason.code, ReasonCode::UnitMasked, "{}", report.reason);
    std::fs::remove_file(shop.fake.units_dir().join(UNIT)).unwrap();
    shop.fake.reload();
    let report = shop.expect(1, Outcome::FailedUnchanged).await;
    assert_eq!(report.reason.code, ReasonCode::UnitNotFound, "{}", report.reason);
    shop.fake.install(UNIT, "[Service]\nType=oneshot\nExecStart=/bin/true");
    let report = shop.expect(1, Outcome::FailedUnchanged).await;
    assert!(report.reason.to_string().contains("oneshot"), "{}", report.reason);
    shop.fake.install(UNIT, &text);
    shop.fake.operator_stops(UNIT);
    shop.fake.install(UNIT, "[Service]\nExecStart=/bin/sleep 1000");
    shop.fake.operator_starts(UNIT);
    let report = shop.expect(1, Outcome::FailedUnchanged).await;
    assert_eq!(report.reason.code, ReasonCode::UnitUnfit, "{}", report.reason);
    assert!(report.reason.to_string().contains("`/bin/sleep 1000`"), "{}", report.reason);
    shop.agent.end().await;
}

/// Without permission the old version goes on, and nobody blames the release.
#[tokio::test]
async fn an_agent_that_may_not_stop_a_unit_leaves_it_as_it_was() {
    let Some(fake) = systemd("an_agent_that_may_not_stop_a_unit_leaves_it_as_it_was") else { return };
    let mut shop = Shop::new(fake, "", "", &sleepers());
    shop.expect(0, Outcome::Succeeded).await;
    let before = shop.fake.standing(UNIT).main_pid;
    shop.fake.deny("StopUnit", true);
    let report = shop.expect(1, Outcome::RolledBack).await;
    assert!(report.reason.to_string().contains("does not let the agent stop"), "{}", report.reason);
    assert_eq!(shop.fake.standing(UNIT).main_pid, before, "the process has not noticed");
    shop.runs(0).await;
    assert_eq!(shop.agent.inventory().await.failed, []);
    shop.fake.deny("StopUnit", false);
    shop.expect(1, Outcome::Succeeded).await;
    shop.agent.end().await;
}

#[tokio::test]
async fn without_a_bus_nothing_is_begun_and_what_runs_is_still_known() {
    let Some(fake) = systemd("without_a_bus_nothing_is_begun_and_what_runs_is_still_known") else { return };
    let mut shop = Shop::new(fake, "", "", &sleepers());
    shop.expect(0, Outcome::Succeeded).await;
    let pid = shop.fake.standing(UNIT).main_pid;
    shop.fake.end_bus();
    let report = shop.expect(1, Outcome::FailedUnchanged).await;
    assert_eq!(report.reason.code, ReasonCode::UnitUnreachable, "{}", report.reason);
    assert_eq!(shop.agent.supervisor.process().await.unwrap().up(), Ok(pid), "the kernel knows it");
    // Another agent knows it too, from what was written down.
    let mut shop = shop.restart_agent().await;
    assert_eq!(shop.agent.supervisor.process().await.unwrap().up(), Ok(pid));
    shop.fake.begin_bus();
    shop.expect(1, Outcome::Succeeded).await;
    shop.runs(1).await;
    shop.agent.end().await;
}

/// The bus dies while a healthy version is watched: that is no reason to roll it back.
#[tokio::test]
async fn a_bus_that_dies_in_the_soak_time_rolls_nothing_back() {
    let Some(fake) = systemd("a_bus_that_dies_in_the_soak_time_rolls_nothing_back") else { return };
    let mut shop = Shop::new(fake, "", "", &sleepers());
    shop.expect(0, Outcome::Succeeded).await;
    shop.config.health.soak = Duration::from_secs(2);
    let mut shop = shop.restart_agent().await;
    let name = shop.order(1).await;
    shop.agent
        .report(|report| report.upgrade.as_str() == name && report.reason.code == ReasonCode::Soaking)
        .await;
    shop.fake.end_bus();
    let report = shop.agent.end_of(&name).await;
    assert_eq!(report.state, UpgradeState::Ended(Outcome::Succeeded), "{report:?}");
    shop.fake.begin_bus();
    until("answer", || async { shop.agent.supervisor.active().await.ok() }).await;
    shop.runs(1).await;
    shop.agent.end().await;
}

/// The bus dies in the middle of the stop job and comes back: the upgrade goes on where it was.
#[tokio::test]
async fn a_bus_that_dies_between_stop_and_start_is_waited_for() {
    let Some(fake) = systemd("a_bus_that_dies_between_stop_and_start_is_waited_for") else { return };
    let slow =
        super::support::script("1.0", 1, "trap 'sleep 0.5; exit 0' TERM\nwhile :; do sleep 0.05; done");
    let mut shop = Shop::new(fake, "", "", &[slow, program("2.0", 2, "/bin/sleep")]);
    shop.expect(0, Outcome::Succeeded).await;
    let name = shop.order(1).await;
    until("stop job", || async { (shop.fake.standing(UNIT).active == "deactivating").then_some(()) }).await;
    shop.fake.end_bus();
    until("end of the unit", || async { (shop.fake.standing(UNIT).active == "inactive").then_some(()) })
        .await;
    shop.fake.begin_bus();
    let report = shop.agent.end_of(&name).await;
    assert_eq!(report.state, UpgradeState::Ended(Outcome::Succeeded), "{report:?}");
    shop.runs(1).await;
    shop.agent.end().await;
}
