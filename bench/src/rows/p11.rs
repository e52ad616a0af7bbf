//! How long after the first bad node's report the controller still starts nodes.

use std::time::{Duration, Instant};

use upfleet_api::v1::{self, rollout::State};

use super::{
    Bench,
    bed::{Bed, COMPONENT},
};
use crate::{
    api::{all_at_once, count},
    report::{Goal, Measure, Report, percentile},
    sim::{Fleet, Mark, Pace},
};

/// How long orders are waited for that were sent before the halt.
const LATE: Duration = Duration::from_secs(1);

/// How to measure it.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// How many agents.
    #[arg(long, default_value_t = 10_000)]
    pub agents: usize,
    /// How often.
    #[arg(long, default_value_t = 10)]
    pub runs: usize,
    /// How many nodes may be under way at once.
    #[arg(long, default_value_t = 200)]
    pub unavailable: u32,
}

/// Measures it.
///
/// # Errors
/// Where a program is missing or fails.
pub fn run(bench: &Bench, args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("p11");
    let bed = Bed::new(bench, args.agents)?;
    let quick = Duration::from_millis(300);
    let good = Pace { preflight: quick, fetch: quick, activate: quick, probe: quick, failures: 0.0 };
    let fleet = bed.connect(args.agents, good.clone())?;
    bed.settle()?;
    let api = bed.api()?;
    let (mut millis, mut halted) = (Vec::new(), Vec::new());
    for run in 0..args.runs.max(1) {
        let mut spec = all_at_once(COMPONENT, if run % 2 == 0 { "2.0.0" } else { "3.0.0" });
        if let Some(policy) = &mut spec.policy {
            policy.max_unavailable = Some(count(args.unavailable));
        }
        if let Some(v1::rollout_spec::Change::Install(install)) = &mut spec.change {
            (install.allow_failed_digest, install.allow_downgrade) = (true, true);
        }
        let found = bed.runtime.block_on(async {
            let name = api.create_rollout(spec).await?;
            let request = v1::WatchRolloutRequest { name: name.clone(), from_revision: 0, progress: false };
            let mut watch = api.rollouts().watch_rollout(request).await?.into_inner();
            fleet.set_pace(good.clone());
            fleet.stats().note();
            let began = Instant::now();
            api.start_rollout(&name).await?;
            let halted = watch_until_halted(&mut watch, &fleet, &good, args.unavailable).await?;
            // An order that is on its way still counts.
            tokio::time::sleep(LATE).await;
            let found = found(&fleet, began, halted)?;
            fleet.set_pace(good.clone());
            let request = v1::CancelRolloutRequest { name, ..Default::default() };
            api.rollouts().cancel_rollout(request).await?;
            anyhow::Ok(found)
        })?;
        millis.push(found.0);
        halted.push(found.1);
        report.note(format!(
            "run {}: {} orders reached agents after the report; halted after {:.0} ms",
            run + 1,
            found.2,
            found.1
        ));
        bed.settle()?;
    }
    let p99 = |values: &[f64]| percentile(values, 0.99).into_iter();
    report.add(
        Measure::new("first bad report to the last order at any agent, p99", "ms")
            .ours(p99(&millis))
            .goal(Goal::AtMost(100.0)),
    );
    report.add(Measure::new("first bad report to HALTED, p50", "ms").ours(percentile(&halted, 0.5)));
    report.add(
        Measure::new("first bad report to HALTED, p99", "ms").ours(p99(&halted)).goal(Goal::AtMost(100.0)),
    );
    Ok(report.end())
}

/// Until HALTED was heard of. From the time when `twice` the allowed number of nodes were told, some upgrades fail: the
/// first of them to say so is the first bad node.
async fn watch_until_halted(
    watch: &mut tonic::Streaming<v1::WatchRolloutResponse>,
    fleet: &Fleet,
    good: &Pace,
    unavailable: u32,
) -> anyhow::Result<Instant> {
    let mut started = 0_u32;
    while let Some(change) = watch.message().await? {
        let before = change.previous_state();
        match change.change {
            Some(v1::watch_rollout_response::Change::Upgrade(upgrade)) => {
                let pending = v1::UpgradeState::Pending;
                let first = upgrade.state() == pending && before == pending && upgrade.attempt > 0;
                started += u32::from(first);
                if first && started == unavailable * 2 {
                    fleet.set_pace(Pace { failures: 0.02, ..good.clone() });
                }
            }
            Some(v1::watch_rollout_response::Change::Rollout(rollout))
                if rollout.state() == State::Halted =>
            {
                return Ok(Instant::now());
            }
            _ => {}
        }
    }
    anyhow::bail!("the rollout ended without a bad node")
}

/// Milliseconds from the first bad node's word, as its agent said it, to the last order that reached any agent, and to
/// HALTED, as a watcher heard of it; and how many orders reached agents after that word.
fn found(fleet: &Fleet, began: Instant, halted: Instant) -> anyhow::Result<(f64, f64, usize)> {
    let bad = fleet.stats().millis(Mark::RolledBack, began).into_iter().min_by(f64::total_cmp);
    let bad = bad.ok_or_else(|| anyhow::anyhow!("it halted, and no agent was bad"))?;
    let after: Vec<f64> =
        fleet.stats().millis(Mark::Ordered, began).into_iter().filter(|at| *at > bad).collect();
    let last = after.iter().copied().max_by(f64::total_cmp).unwrap_or(bad);
    Ok((last - bad, (halted - began).as_secs_f64() * 1e3 - bad, after.len()))
}
