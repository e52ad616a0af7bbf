//! Upgrades of a unit, and what a bad release comes to.

use std::os::unix::fs::PermissionsExt as _;

use upfleet_domain::{
    reason::ReasonCode,
    upgrade::{Outcome, UpgradeState},
};

use super::support::{Shop, UNIT, program, script, systemd};
use crate::support::until;

fn sleepers() -> [super::support::Release; 3] {
    [program("1.0", 1, "/bin/sleep"), program("2.0", 2, "/bin/sleep"), program("3.0", 3, "/bin/false")]
}

#[tokio::test]
async fn a_unit_is_upgraded_and_a_bad_release_rolled_back() {
    let Some(fake) = systemd("a_unit_is_upgraded_and_a_bad_release_rolled_back") else { return };
    let mut shop = Shop::new(fake, "", "", &sleepers());
    shop.expect(0, Outcome::Succeeded).await;
    shop.runs(0).await;
    let first = shop.fake.standing(UNIT);
    shop.expect(1, Outcome::Succeeded).await;
    shop.runs(1).await;
    assert_ne!(shop.fake.standing(UNIT).invocation, first.invocation);
    let report = shop.expect(2, Outcome::RolledBack).await;
    assert!(report.reason.to_string().contains("exit status 1"), "{}", report.reason);
    let evidence = report.evidence.unwrap();
    assert!(evidence.lines.iter().any(|line| line.contains("journalctl -u shop.service")), "{evidence:?}");
    shop.runs(1).await;
    shop.expect(1, Outcome::AlreadyCurrent).await;
    shop.expect(0, Outcome::Succeeded).await;
    shop.runs(0).await;
    let calls = shop.fake.calls();
    let enables = calls.iter().any(|call| call.contains("Enable") || call.contains("Mask"));
    assert!(!enables && !calls.contains(&"Reload".to_owned()), "{calls:?}");
    shop.agent.end().await;
}

/// systemd restarts a bad release until it gives up. That must not keep the good one from being started.
#[tokio::test]
async fn a_start_limit_that_was_hit_does_not_stand_in_the_way_back() {
    let Some(fake) = systemd("a_start_limit_that_was_hit_does_not_stand_in_the_way_back") else { return };
    let lines = "Restart=always\nRestartSec=1ms\nStartLimitBurst=3\nStartLimitIntervalSec=60";
    // It stays up just long enough to look well, each time.
    let loops = script("2.0", 2, "exit 3");
    let good = program("1.0", 1, "/bin/sleep");
    let mut shop = Shop::new(fake, lines, "", &[good, loops]);
    shop.expect(0, Outcome::Succeeded).await;
    for _ in 0..3 {
        let report = shop.expect(1, Outcome::RolledBack).await;
        assert!(report.reason.to_string().contains("exit status 3"), "{}", report.reason);
        shop.runs(0).await;
        assert_eq!(shop.fake.standing(UNIT).restarts, 0);
    }
    assert!(shop.fake.calls().contains(&format!("ResetFailedUnit {UNIT}")));
    shop.agent.end().await;
}

/// A process that does not end is killed with all that it has started: by systemd, or by the agent where the unit has
/// no limit of its own.
#[tokio::test]
async fn a_process_that_does_not_end_is_killed() {
    let Some(_) = systemd("a_process_that_does_not_end_is_killed") else { return };
    let deaf = script(
        "1.0",
        1,
        "trap '' TERM\n(trap '' TERM; while :; do sleep 0.05; done) &\nwhile :; do sleep 0.05; done",
    );
    for (lines, killed) in [("TimeoutStopSec=300ms", false), ("TimeoutStopSec=infinity", true)] {
        let fake = super::fake::FakeSystemd::start().unwrap();
        let more = "[timeouts]\nactivate = \"3s\"";
        let mut shop = Shop::new(fake, lines, more, &[deaf.clone(), program("2.0", 2, "/bin/sleep")]);
        shop.expect(0, Outcome::Succeeded).await;
        shop.runs(0).await;
        shop.expect(1, Outcome::Succeeded).await;
        shop.runs(1).await;
        assert_eq!(shop.fake.calls().contains(&format!("KillUnit {UNIT}")), killed, "{lines}");
        shop.agent.end().await;
    }
}

/// A version that says it is ready later than it was started is waited for, by the probe.
#[tokio::test]
async fn a_unit_that_notifies_is_healthy_once_it_says_so() {
    let Some(fake) = systemd("a_unit_that_notifies_is_healthy_once_it_says_so") else { return };
    let notify = "systemd-notify --ready 2>/dev/null || exit 7";
    let ready = script("1.0", 1, &format!("sleep 0.3; {notify}; exec sleep 1000"));
    let never = script("2.0", 2, "exec sleep 1000");
    let mut shop = Shop::new(fake, "Type=notify\nNotifyAccess=all", "", &[ready, never]);
    shop.config.health.start_deadline = std::time::Duration::from_secs(2);
    let mut shop = shop.restart_agent().await;
    let report = shop.order(0).await;
    let report = shop.agent.end_of(&report).await;
    if report.state.outcome() != Some(Outcome::Succeeded)
        && !std::path::Path::new("/usr/bin/systemd-notify").exists()
    {
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "skipped: systemd::notify: there is no systemd-notify");
        return shop.agent.end().await;
    }
    assert_eq!(report.state.outcome(), Some(Outcome::Succeeded), "{report:?}");
    let report = shop.expect(1, Outcome::RolledBack).await;
    assert!(report.reason.to_string().contains("activating"), "{}", report.reason);
    assert_eq!(shop.fake.standing(UNIT).active, "active");
    shop.agent.end().await;
}

/// What the operator had stopped is not started by a rollout, and what nobody ran is not run by a rollback.
#[tokio::test]
async fn a_unit_is_left_as_its_operator_had_it() {
    let Some(fake) = systemd("a_unit_is_left_as_its_operator_had_it") else { return };
    let mut shop = Shop::new(fake, "", "", &sleepers());
    shop.expect(0, Outcome::Succeeded).await;
    shop.fake.operator_stops(UNIT);
    let report = shop.expect(1, Outcome::FailedUnchanged).await;
    assert_eq!(report.reason.code, ReasonCode::BaselineUnhealthy, "{}", report.reason);
    assert!(report.reason.to_string().contains("inactive"), "{}", report.reason);
    let report = shop.expect(0, Outcome::FailedUnchanged).await;
    assert_eq!(report.reason.code, ReasonCode::BaselineUnhealthy, "{}", report.reason);
    assert_eq!(shop.fake.standing(UNIT).active, "inactive");
    // An agent that is started again leaves it stopped too, as after a reboot with a disabled unit.
    let mut shop = shop.restart_agent().await;
    until("inventory", || async { (!shop.agent.inventory().await.healthy).then_some(()) }).await;
    assert_eq!(shop.fake.standing(UNIT).active, "inactive");
    // Where the configuration allows it, a bad release is put back and the unit stopped again.
    shop.config.health.require_healthy_baseline = false;
    let mut shop = shop.restart_agent().await;
    shop.expect(2, Outcome::RolledBack).await;
    assert!(["inactive", "failed"].contains(&shop.fake.standing(UNIT).active));
    assert_eq!(shop.agent.inventory().await.current.artifact(), Some(shop.releases[0].reference.artifact));
    shop.agent.end().await;
}

/// A unit that ran before Upfleet came is adopted by the digest of what really runs, and can be rolled back to.
#[tokio::test]
async fn a_unit_that_runs_already_is_adopted() {
    let Some(fake) = systemd("a_unit_that_runs_already_is_adopted") else { return };
    let releases = sleepers();
    let mut shop = Shop::new(fake, "", "", &releases);
    let path = shop.config.path.clone();
    std::fs::write(&path, &releases[0].bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(shop.fake.operator_starts(UNIT), "done");
    let mut shop = {
        shop.releases = releases.to_vec();
        shop.restart_agent().await
    };
    let report = shop.expect(2, Outcome::RolledBack).await;
    assert!(report.reason.to_string().contains("unmanaged@"), "{}", report.reason);
    assert_eq!(shop.fake.standing(UNIT).active, "active");
    shop.expect(1, Outcome::Succeeded).await;
    shop.runs(1).await;
    shop.agent.end().await;
}

/// An operator restarts the unit while a new version is watched: it counts as what it is, a process that has ended.
#[tokio::test]
async fn a_restart_behind_the_agents_back_is_seen() {
    let Some(fake) = systemd("a_restart_behind_the_agents_back_is_seen") else { return };
    let mut shop = Shop::new(fake, "", "", &sleepers());
    shop.expect(0, Outcome::Succeeded).await;
    // While nothing is under way it is nobody's business but the operator's.
    shop.fake.operator_restarts(UNIT);
    shop.runs(0).await;
    shop.config.health.soak = std::time::Duration::from_secs(30);
    let mut shop = shop.restart_agent().await;
    let name = shop.order(1).await;
    let reason = |report: &upfleet_domain::report::UpgradeReport| report.reason.code;
    shop.agent
        .report(|report| report.upgrade.as_str() == name && reason(report) == ReasonCode::Soaking)
        .await;
    shop.fake.operator_restarts(UNIT);
    let report = shop.agent.end_of(&name).await;
    assert_eq!(report.state, UpgradeState::Ended(Outcome::RolledBack), "{report:?}");
    assert!(report.reason.to_string().contains("ended with"), "{}", report.reason);
    shop.runs(0).await;
    shop.agent.end().await;
}
