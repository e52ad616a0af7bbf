//! `[component.guard]`: what a new version of the agent itself is given until it has to have reported; and what may not be
//! configured of the component that is the agent. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use upfleet_domain::release::Kind;

use super::{
    ComponentConfig, RunConfig,
    check::{Found, add},
    units::{size, span},
};

/// What the trial of a new agent and the start of its guard may take together.
const ACTIVATE: Duration = Duration::from_secs(2 * 60);

/// `[component.guard]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuardConfig {
    /// How long a new agent may take until the controller has acknowledged it and it has been healthy for its soak time.
    #[serde(with = "span")]
    pub deadline: Duration,
    /// How often it may be started until then: 1 to 100.
    pub starts: u32,
    /// How much memory of its own it may take until then; `"0B"` for no limit.
    #[serde(with = "size")]
    pub memory_max: u64,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10 * 60), starts: 3, memory_max: 1 << 30 }
    }
}

pub(super) fn check(component: &ComponentConfig, found: &mut Found) {
    if component.kind != Kind::Agent {
        if component.guard.is_some() {
            add(
                found,
                "guard",
                "has no effect on a component that is not the agent; set kind = \"agent\" or remove it",
            );
        }
        return;
    }
    let run = RunConfig::default();
    let unused = [
        ("run", component.run != run, "the agent is run by its unit, or by `upfleet-agent run --supervised`"),
        ("probe", !component.probes.is_empty(), "healthy is what the controller has acknowledged"),
        ("files", component.files.is_some(), "the agent is one file"),
        ("reload", component.reload.is_some(), "a new agent takes effect by its start"),
        ("jvm", component.jvm.is_some(), "the agent takes no patches"),
    ];
    for (key, _, why) in unused.iter().filter(|(_, set, _)| *set) {
        add(found, *key, format!("has no effect where kind = \"agent\": {why}; remove it"));
    }
    let guard = component.guard.clone().unwrap_or_default();
    if !(1..=100).contains(&guard.starts) {
        add(found, "guard.starts", format!("{} is not between 1 and 100", guard.starts));
    }
    if guard.deadline < Duration::from_secs(10) {
        add(found, "guard.deadline", "is less than 10s; a new agent could not report in that time");
    }
    if component.timeouts.activate < ACTIVATE {
        let text = "is less than 2m; a new agent is tried out in that time, and its guard started";
        add(found, "timeouts.activate", text);
    }
    if component.health.soak >= guard.deadline {
        add(
            found,
            "health.soak",
            "is longer than guard.deadline; a new agent could never be healthy in time",
        );
    }
}

/// There is one agent on a node.
pub(super) fn check_against(own: &ComponentConfig, other: &ComponentConfig, found: &mut Found) {
    if own.kind == Kind::Agent && other.kind == Kind::Agent {
        let text = format!("component `{}` is the agent already; a node has one", other.name);
        add(found, "kind", text);
    }
}
