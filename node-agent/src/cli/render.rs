//! Shows a status to people. Pure: text in, text out, so that tests can look at it.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use upfleet_domain::{id::ComponentId, jvm::Standing, state::ComponentState, time::Time};

use crate::local::{ComponentStatus, Status};

/// The units of the components that systemd runs.
pub(super) type Units = BTreeMap<ComponentId, String>;

/// The status as a short text with one line for each component.
pub(super) fn status(status: &Status, units: &Units, now: Time) -> String {
    let mut text = String::new();
    let node = status.node.as_deref().unwrap_or("not enrolled");
    let agent = match status.pid {
        Some(pid) => format!("running, pid {pid}"),
        None => "not running; this is what its journals say".to_owned(),
    };
    let _ = writeln!(text, "Node        {node}");
    let _ = writeln!(text, "Agent       {} ({agent})", status.agent_version);
    if let Some(link) = &status.link {
        let since = span(now.since(link.since));
        let _ = match (link.connected, &link.problem) {
            (true, _) => writeln!(text, "Controller  {}, connected for {since}", link.controller),
            (false, Some(problem)) => {
                writeln!(text, "Controller  {}, not connected: {problem}", link.controller)
            }
            (false, None) => writeln!(text, "Controller  {}, connecting", link.controller),
        };
    }
    if status.components.is_empty() {
        text.push_str(match status.pid {
            Some(_) => "\nNo components. Declare one in agent.toml or conf.d/*.toml.\n",
            None => "\nNo journals yet. Start the agent: upfleet-agent run\n",
        });
        return text;
    }
    text.push('\n');
    table(&mut text, status, units, now);
    text
}

const HEADINGS: [&str; 6] = ["COMPONENT", "RUNS", "DIGEST", "HEALTH", "CHANGED", "STATE"];

fn table(text: &mut String, status: &Status, units: &Units, now: Time) {
    let components = &status.components;
    let running = status.pid.is_some();
    let rows = components.iter().map(|component| row(component, running, now).to_vec()).collect();
    let table = columns(&HEADINGS, rows);
    let mut lines = table.lines();
    // Notes stand under the second column, below their component's row.
    let indent = table.find(HEADINGS[1]).unwrap_or(0);
    let mut say = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    say(lines.next().unwrap_or_default());
    for (line, component) in lines.zip(components) {
        say(line);
        let unit = units.get(&component.inventory.component);
        for note in unit.map(|unit| format!("unit {unit}")).into_iter().chain(notes(component)) {
            say(&format!("{:indent$}{note}", ""));
        }
    }
}

/// What is to be known of a component beside its row: its patches, and what is wrong.
fn notes(component: &ComponentStatus) -> Vec<String> {
    let inventory = &component.inventory;
    let mut notes = Vec::new();
    let bare = inventory.current.layers.is_empty();
    if let Some(proof) = inventory.proof.as_ref().filter(|proof| !bare || !proof.classes.is_empty()) {
        let count = |standing| proof.count(standing);
        let (proved, armed, old) = (count(Standing::Proved), count(Standing::Armed), count(Standing::Old));
        let old = if old > 0 { format!(", {old} OLD") } else { String::new() };
        let stack = upfleet_domain::patch::stack::describe(&inventory.current.layers);
        notes.push(format!("patches {stack}: {proved} proved, {armed} armed{old}, {}", proof.mechanism));
    }
    let alarms = inventory.proof.iter().flat_map(|proof| &proof.alarms).chain(&inventory.alarms);
    let wrong = inventory.hold.iter().chain(&inventory.drift).chain(alarms);
    notes.extend(wrong.map(|note| format!("! {note}")));
    notes
}

/// Rows under headings, columns two spaces apart.
pub(super) fn columns(headings: &[&str], rows: Vec<Vec<String>>) -> String {
    let headings = headings.iter().map(|heading| (*heading).to_owned()).collect::<Vec<String>>();
    let rows: Vec<Vec<String>> = std::iter::once(headings).chain(rows).collect();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Day and time in UTC: `2026-11-23 10:31:02Z`.
pub(super) fn date(time: Time) -> String {
    let seconds = time.0.div_euclid(1000);
    let moment =
        time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (h, m, s) = (moment.hour(), moment.minute(), moment.second());
    format!("{} {h:02}:{m:02}:{s:02}Z", moment.date())
}

fn row(component: &ComponentStatus, running: bool, now: Time) -> [String; 6] {
    let inventory = &component.inventory;
    let health = match (running, inventory.healthy, inventory.pid) {
        _ if inventory.current == ComponentState::absent() => "-".to_owned(),
        (false, ..) => "unknown".to_owned(),
        (true, true, Some(pid)) => format!("healthy, pid {pid}"),
        (true, true, None) => "healthy".to_owned(),
        (true, false, _) => "unhealthy".to_owned(),
    };
    let changed = inventory.changed.map(|changed| {
        let by = if inventory.changer == "local" { ", locally" } else { "" };
        format!("{} ago{by}", span(now.since(changed)))
    });
    let upgrade = inventory.upgrade_state.map(|state| state.to_string());
    let state = match (upgrade, &component.reason) {
        (Some(state), Some(reason)) => format!("{state}: {reason}"),
        (Some(state), None) => state,
        (None, Some(reason)) => reason.to_string(),
        (None, None) => "-".to_owned(),
    };
    let unsent = match component.unacknowledged {
        0 => String::new(),
        count => format!(" ({count} reports wait for the controller)"),
    };
    [
        inventory.component.to_string(),
        change(inventory.previous.as_ref(), &inventory.current),
        inventory.running.or(inventory.current.artifact()).map_or_else(|| "-".to_owned(), |d| d.short()),
        health,
        changed.unwrap_or_else(|| "-".to_owned()),
        format!("{state}{unsent}"),
    ]
}

fn change(previous: Option<&ComponentState>, current: &ComponentState) -> String {
    match previous {
        Some(previous) => format!("{current} (was {previous})"),
        None => current.to_string(),
    }
}

/// The two largest units of a span, in whole seconds.
pub(super) fn span(span: Duration) -> String {
    let whole = humantime::format_duration(Duration::from_secs(span.as_secs())).to_string();
    whole.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use upfleet_domain::{
        digest::Digest,
        order::Generation,
        reason::{Reason, ReasonCode},
        report::ComponentInventory,
        upgrade::{Outcome, UpgradeState},
    };

    use super::*;
    use crate::transport::Link;

    fn component() -> ComponentStatus {
        let inventory = ComponentInventory {
            component: "web".parse().unwrap(),
            current: ComponentState::unmanaged(Digest::of(b"x")),
            previous: Some(ComponentState::absent()),
            kept: vec![],
            kept_digests: vec![],
            running: Some(Digest::of(b"x")),
            healthy: true,
            hold: None,
            drift: None,
            generation: Generation::default(),
            hold_generation: 0,
            upgrade: None,
            upgrade_state: Some(UpgradeState::Ended(Outcome::Succeeded)),
            run_mode: "supervised".into(),
            pid: Some(42),
            changed: Some(Time(0)),
            changer: "local".into(),
            failed: vec![],
            proof: None,
            alarms: Vec::new(),
            patchable: false,
        };
        ComponentStatus { inventory, reason: None, unacknowledged: 2 }
    }

    #[test]
    fn a_person_sees_what_runs_and_what_is_wrong() {
        let mut held = component();
        held.inventory.hold = Some(
            Reason::new(ReasonCode::HeldByOperator).with("actor", "users/anna").with("message", "CHG-1"),
        );
        let link = Link { problem: Some("no route".into()), ..Link::new("controller:7443") };
        let shown = status(
            &Status {
                node: Some("web-01".into()),
                agent_version: "0.1.0".into(),
                pid: Some(7),
                link: Some(link),
                components: vec![held],
            },
            &Units::from([("web".parse().unwrap(), "web.service".to_owned())]),
            Time(3_661_000),
        );
        let expected = "\
Node        web-01
Agent       0.1.0 (running, pid 7)
Controller  controller:7443, not connected: no route

COMPONENT  RUNS                                 DIGEST        HEALTH           CHANGED             STATE
web        unmanaged@2d711642b726 (was absent)  2d711642b726  healthy, pid 42  1h 1m ago, locally  SUCCEEDED (2 reports wait for the controller)
           unit web.service
           ! held by users/anna: CHG-1
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_node_without_anything_is_told_what_to_do() {
        let bare =
            Status { node: None, agent_version: "0.1.0".into(), pid: None, link: None, components: vec![] };
        let shown = status(&bare, &Units::new(), Time(0));
        assert!(shown.contains("not enrolled") && shown.contains("not running"), "{shown}");
        assert!(shown.contains("upfleet-agent run"), "{shown}");
    }
}
