//! Shows a status to people. Pure: text in, text out, so that tests can look at it.

use std::{fmt::Write as _, time::Duration};

use upfleet_domain::{state::ComponentState, time::Time};

use crate::local::{ComponentStatus, Status};

/// The status as a short text with one line for each component.
pub(super) fn status(status: &Status, now: Time) -> String {
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
    table(&mut text, status, now);
    text
}

const HEADINGS: [&str; 6] = ["COMPONENT", "RUNS", "DIGEST", "HEALTH", "CHANGED", "STATE"];

fn table(text: &mut String, status: &Status, now: Time) {
    let components = &status.components;
    let running = status.pid.is_some();
    let rows: Vec<[String; 6]> = components.iter().map(|component| row(component, running, now)).collect();
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([HEADINGS[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut line = |cells: [&str; 6]| {
        let padded: Vec<String> =
            cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    };
    line(HEADINGS);
    for (row, component) in rows.iter().zip(components) {
        line(std::array::from_fn(|column| row[column].as_str()));
        let inventory = &component.inventory;
        for note in [&inventory.hold, &inventory.drift].into_iter().flatten() {
            line(["", &format!("! {note}"), "", "", "", ""]);
        }
    }
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
fn span(span: Duration) -> String {
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
            Time(3_661_000),
        );
        let expected = "\
Node        web-01
Agent       0.1.0 (running, pid 7)
Controller  controller:7443, not connected: no route

COMPONENT  RUNS                                 DIGEST        HEALTH           CHANGED             STATE
web        unmanaged@2d711642b726 (was absent)  2d711642b726  healthy, pid 42  1h 1m ago, locally  SUCCEEDED (2 reports wait for the controller)
           ! held by users/anna: CHG-1
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_node_without_anything_is_told_what_to_do() {
        let bare =
            Status { node: None, agent_version: "0.1.0".into(), pid: None, link: None, components: vec![] };
        let shown = status(&bare, Time(0));
        assert!(shown.contains("not enrolled") && shown.contains("not running"), "{shown}");
        assert!(shown.contains("upfleet-agent run"), "{shown}");
    }
}
