//! What an agent that does not run has left behind: its journals, read without changing them.

use std::path::Path;

use upfleet_domain::{report::ComponentInventory, upgrade::record::Record};

use crate::{
    config::{ComponentConfig, Config},
    formats,
    identity::Identities,
    journal,
    local::{ComponentStatus, Status},
};

/// The status as the journals tell it. What runs at this moment is not known.
pub(super) fn status(config: &Config) -> Status {
    let dir = journal::dir(&config.state_dir);
    Status {
        node: Identities::load(&config.state_dir).ok().map(|own| own.current().node().to_string()),
        agent_version: formats::VERSION.to_owned(),
        pid: None,
        link: None,
        components: config.components.iter().filter_map(|component| journaled(&dir, component)).collect(),
    }
}

fn journaled(dir: &Path, component: &ComponentConfig) -> Option<ComponentStatus> {
    match journal::read(dir, &component.name) {
        Ok(record) => record.map(|record| told(record, component)),
        Err(error) => {
            eprintln!("warning: {}", crate::error::chain(&error));
            None
        }
    }
}

fn told(record: Record, component: &ComponentConfig) -> ComponentStatus {
    let upgrade = record.upgrade();
    let (id, state) = (upgrade.map(|(id, _)| id.clone()), upgrade.map(|(_, state)| state));
    let under_way = record.passage.as_ref().map(|passage| passage.reason.clone());
    let reason = under_way.or_else(|| record.last.as_ref().map(|last| last.reason.clone()));
    let inventory = ComponentInventory {
        component: record.component,
        previous: record.kept.first().cloned(),
        current: record.current,
        kept: record.kept,
        kept_digests: Vec::new(),
        running: None,
        healthy: false,
        hold: record.hold,
        drift: record.drift,
        generation: record.generation,
        hold_generation: record.hold_generation,
        upgrade: id,
        upgrade_state: state,
        run_mode: component.run.mode.as_str().to_owned(),
        pid: None,
        changed: record.changed,
        changer: record.changer.as_str().to_owned(),
        failed: record.failed,
        proof: None,
        alarms: Vec::new(),
        patchable: false,
    };
    ComponentStatus { inventory, reason, unacknowledged: record.outbox.len() }
}
