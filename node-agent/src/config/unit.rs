//! What a configuration may not say about a component that a systemd unit runs. Pure: it asks no systemd.

use std::time::Duration;

use super::{
    ComponentConfig, RunConfig, RunMode,
    check::{Found, add, path_problem},
};

/// The longest name of a unit, as systemd has it.
const MAX_NAME: usize = 255;

pub(super) fn check(component: &ComponentConfig, found: &mut Found) {
    let run = &component.run;
    if run.mode != RunMode::Systemd {
        if run.unit.is_some() {
            add(found, "run.unit", "has no effect in this mode; set run.mode = \"systemd\" or remove it");
        }
        return;
    }
    match run.unit.as_deref() {
        None => add(found, "run.unit", "is missing; write it like unit = \"shop.service\""),
        Some(unit) => {
            if let Some(text) = name_problem(unit) {
                add(found, "run.unit", text);
            }
        }
    }
    let usual = RunConfig::default();
    let unused = [
        ("run.command", !run.command.is_empty(), "ExecStart="),
        ("run.env", !run.env.is_empty(), "Environment="),
        ("run.cwd", run.cwd.is_some(), "WorkingDirectory="),
        ("run.stop_signal", run.stop_signal != usual.stop_signal, "KillSignal="),
        ("run.restart_delay", run.restart_delay != usual.restart_delay, "RestartSec="),
    ];
    for (key, _, instead) in unused.iter().filter(|(_, set, _)| *set) {
        add(found, *key, format!("has no effect, as the unit says it; set {instead} there and remove it"));
    }
    if let Some(text) = path_problem(&run.drop_in_dir) {
        add(found, "run.drop_in_dir", text);
    }
    if component.timeouts.activate < Duration::from_secs(1) {
        add(found, "timeouts.activate", "leaves systemd less than a second");
    }
}

/// A unit belongs to one component: two would stop each other's process.
pub(super) fn check_against(own: &ComponentConfig, other: &ComponentConfig, found: &mut Found) {
    if own.run.unit.is_some() && own.run.unit == other.run.unit {
        let unit = own.run.unit.as_deref().unwrap_or_default();
        let text = format!("`{unit}` is the unit of component `{}` too; a unit runs one", other.name);
        add(found, "run.unit", text);
    }
}

fn name_problem(unit: &str) -> Option<String> {
    let Some(name) = unit.strip_suffix(".service") else {
        return Some(format!("`{unit}` is no service; write it like \"shop.service\""));
    };
    if name.ends_with('@') {
        return Some(format!("`{unit}` is a template; name an instance, like \"{name}a.service\""));
    }
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    let sound = !name.is_empty() && unit.len() <= MAX_NAME && name.bytes().all(letter);
    (!sound || name.starts_with('@')).then(|| format!("`{unit}` is not a unit's name"))
}

#[cfg(test)]
mod tests {
    use super::name_problem;

    #[test]
    fn units_are_services_and_instances() {
        for unit in ["shop.service", "shop@a.service", "a-b_c.d.service", "x\\x2dy.service"] {
            assert_eq!(name_problem(unit), None, "{unit}");
        }
        for unit in
            ["shop", "shop.socket", "shop@.service", ".service", "@a.service", "a b.service", "a/b.service"]
        {
            assert!(name_problem(unit).is_some(), "{unit}");
        }
    }
}
