//! From a component's configuration to the policy its machine follows. Decides nothing.

use std::time::Duration;

use upfleet_domain::{
    release::{Kind, Platform},
    upgrade::policy::{Deadlines, PROVE_EVERY, Policy, ProbePolicy},
};

use crate::config::{Activate, ComponentConfig, ProbeConfig, ProbeKind, Require, RunMode};

/// The probes of a component: the configured ones; where there are none, that what runs it says it is up.
#[must_use]
pub fn probes(config: &ComponentConfig) -> Vec<ProbeConfig> {
    if !config.probes.is_empty() {
        return config.probes.clone();
    }
    match config.run.mode {
        RunMode::Supervised => vec![ProbeConfig::new(ProbeKind::Process)],
        RunMode::Systemd => {
            vec![ProbeConfig::new(ProbeKind::Systemd), ProbeConfig::new(ProbeKind::Process)]
        }
        RunMode::None => Vec::new(),
    }
}

/// The machine's policy.
#[must_use]
pub fn policy(config: &ComponentConfig, platform: &Platform) -> Policy {
    let (health, timeouts) = (&config.health, &config.timeouts);
    let probe = |probe: &ProbeConfig| ProbePolicy {
        interval: probe.interval,
        successes: probe.successes,
        failures: probe.failures,
    };
    let usual = Policy {
        platform: platform.clone(),
        kind: config.kind,
        keep: config.keep as usize,
        allow_downgrade: config.allow_downgrade,
        exclusive_with: config.exclusive_with.clone(),
        supervised: config.run.mode != RunMode::None,
        systemd: config.run.mode == RunMode::Systemd,
        patchable: config.jvm.is_some(),
        live: config.jvm.as_ref().is_some_and(|jvm| jvm.live),
        reload: config.reload.is_some(),
        allow_local_apply: config.allow_local_apply,
        prove_every: PROVE_EVERY,
        require_healthy_baseline: health.require_healthy_baseline,
        probes: probes(config).iter().map(probe).collect(),
        any_probe: health.require == Require::Any,
        soak: health.soak,
        start_deadline: health.start_deadline,
        stop_timeout: config.run.stop_timeout,
        handover: config.run.mode == RunMode::Supervised && config.run.activate == Activate::Handover,
        drain_timeout: config.run.drain_timeout,
        deadlines: Deadlines {
            preflight: timeouts.preflight,
            fetching: timeouts.fetch,
            verifying: timeouts.verify,
            activating: timeouts.activate,
            rolling_back: timeouts.rollback,
            ..Deadlines::default()
        },
    };
    if config.kind == Kind::Agent { of_itself(usual) } else { usual }
}

/// The agent's own: its process is there as long as anybody asks, and it is healthy once the controller has acknowledged
/// it. Neither the controller's silence nor the network's is a reason to go back, so it waits for that as long as it
/// lasts; who ends the wait is the guard.
fn of_itself(usual: Policy) -> Policy {
    const PATIENCE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
    const EVERY: Duration = Duration::from_millis(250);
    Policy {
        supervised: true,
        require_healthy_baseline: false,
        probes: vec![ProbePolicy { interval: EVERY, successes: 2, failures: u32::MAX }],
        start_deadline: PATIENCE,
        ..usual
    }
}
