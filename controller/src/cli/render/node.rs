//! Nodes: the list, and one node at length with what each component ran before and runs now.

use upfleet_api::v1::{self, node::State as N};

use super::{Paint, Table, component_state, date, hex, id, reason, short, since, stack, text::state_name};

/// The list of nodes, a row per component.
#[must_use]
pub fn node_table(nodes: &[v1::Node], now: i64, wide: bool, paint: Paint) -> String {
    let mut headings = vec!["NODE", "STATE", "COMPONENT", "RUNS", "HEALTH", "LAST UPGRADE", "LAST SEEN"];
    if wide {
        headings.extend(["DIGEST", "LABELS", "PLATFORM", "AGENT"]);
    }
    let mut table =
        Table::new(&headings, "No nodes. Enroll one: upfleet token create, then on it: upfleet-agent enroll");
    for node in nodes {
        let seen = if node.online { paint.good("online") } else { since(node.last_seen_time.as_ref(), now) };
        let none = v1::NodeComponent::default();
        let components =
            if node.components.is_empty() { std::slice::from_ref(&none) } else { &node.components[..] };
        for (index, component) in components.iter().enumerate() {
            let mut row = vec![
                if index == 0 { id(&node.name).to_owned() } else { String::new() },
                if index == 0 { node_state(node, paint) } else { String::new() },
                component.component.clone(),
                component_state(component.current.as_ref()),
                health(component, node.online, paint),
                upgrade_state(component.upgrade_state()).to_owned(),
                if index == 0 { seen.clone() } else { String::new() },
            ];
            if wide {
                row.push(short(component.running_digest.as_ref()));
                row.push(labels(node));
                row.push(node.platform.as_ref().map(|p| format!("{}/{}", p.os, p.arch)).unwrap_or_default());
                row.push(node.facts.get("agent_version").cloned().unwrap_or_default());
            }
            table.row(row);
        }
    }
    table.text(paint)
}

/// An upgrade's state; `-` where there was none.
#[must_use]
pub fn upgrade_state(state: v1::UpgradeState) -> &'static str {
    if state == v1::UpgradeState::Unspecified { "-" } else { state_name(state) }
}

fn node_state(node: &v1::Node, paint: Paint) -> String {
    let name = node.state().as_str_name().trim_start_matches("STATE_");
    match node.state() {
        N::Active => name.to_owned(),
        N::Cordoned | N::Retired | N::Unspecified => paint.warn(name),
        N::Suspended => paint.bad(name),
    }
}

fn health(component: &v1::NodeComponent, online: bool, paint: Paint) -> String {
    let mut words = Vec::new();
    if component.current.is_none() {
        return "-".to_owned();
    }
    words.push(match (online, component.healthy) {
        (false, _) => paint.dim("unknown"),
        (true, true) => paint.good("healthy"),
        (true, false) => paint.bad("unhealthy"),
    });
    if component.hold.is_some() {
        words.push(paint.warn("HELD"));
    }
    if component.drift.is_some() {
        words.push(paint.bad("DRIFTED"));
    }
    words.join(" ")
}

fn labels(node: &v1::Node) -> String {
    node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// One node at length.
#[must_use]
pub fn node_details(node: &v1::Node, now: i64, paint: Paint) -> String {
    let seen = if node.online {
        paint.good("online")
    } else {
        format!("{}, last seen {}", paint.warn("offline"), since(node.last_seen_time.as_ref(), now))
    };
    let mut lines = vec![
        ("node", paint.bold(id(&node.name))),
        ("state", format!("{}, {seen}", node_state(node, paint))),
        ("why", reason(node.reason.as_ref(), now)),
        ("labels", labels(node)),
        ("platform", node.platform.as_ref().map(|p| format!("{}/{}", p.os, p.arch)).unwrap_or_default()),
        ("facts", node.facts.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")),
        ("enrolled", date(node.create_time.as_ref())),
        ("certificate", format!("good until {}", date(node.certificate_expire_time.as_ref()))),
    ];
    lines.retain(|(_, value)| !value.is_empty());
    let mut text: String = lines.iter().map(|(key, value)| format!("{key:<12} {value}\n")).collect();
    for component in &node.components {
        text.push('\n');
        text.push_str(&component_details(component, node.online, now, paint));
    }
    text
}

/// Before and after: version and digest of each, who changed it, when, and what can be gone back to.
fn component_details(component: &v1::NodeComponent, online: bool, now: i64, paint: Paint) -> String {
    let mut lines = vec![
        ("component", format!("{}  {}", paint.bold(&component.component), health(component, online, paint))),
        ("  before", state_and_digest(component.previous.as_ref())),
        ("  now", state_and_digest(component.current.as_ref())),
        ("  runs", running(component)),
        ("  changed", changed(component)),
        ("  patches", patches(component)),
        ("  upgrade", last_upgrade(component)),
        ("  held", reason(component.hold.as_ref(), now)),
        ("  drift", reason(component.drift.as_ref(), now)),
    ];
    lines.retain(|(_, value)| !value.is_empty());
    let mut text: String = lines.iter().map(|(key, value)| format!("{key:<12} {value}\n")).collect();
    for alarm in component.proof.iter().flat_map(|proof| &proof.alarms).chain(&component.alarms) {
        text.push_str(&format!("{:<12} {}\n", "  alarm", paint.warn(reason(Some(alarm), now))));
    }
    for (index, kept) in component.kept.iter().enumerate() {
        let key = if index == 0 { "  kept" } else { "" };
        text.push_str(&format!("{key:<12} {}\n", state_and_digest(Some(kept))));
    }
    text
}

/// What the running JVM says of the patches, and the first class that runs old code.
fn patches(component: &v1::NodeComponent) -> String {
    let Some(proof) = &component.proof else { return String::new() };
    let mut text = stack::proof_note(proof);
    if let Some(old) = proof.classes.iter().find(|class| class.standing() == v1::Standing::Old) {
        let loader = if old.loader.is_empty() { "-" } else { &old.loader };
        text.push_str(&format!("; {} in loader {loader} runs old code", old.class_name));
    }
    text
}

fn state_and_digest(state: Option<&v1::ComponentState>) -> String {
    use v1::component_state::Base;
    let digest = match state.and_then(|state| state.base.as_ref()) {
        Some(Base::Release(release)) => hex(release.artifact_digest.as_ref()),
        Some(Base::Unmanaged(base)) => hex(base.digest.as_ref()),
        Some(Base::Absent(_)) | None => String::new(),
    };
    format!("{}  {digest}", component_state(state)).trim_end().to_owned()
}

fn running(component: &v1::NodeComponent) -> String {
    match component.pid {
        0 if component.run_mode == "none" => "not run by Upfleet".to_owned(),
        0 => "nothing".to_owned(),
        pid => format!("{} (pid {pid}, {})", hex(component.running_digest.as_ref()), component.run_mode),
    }
}

fn changed(component: &v1::NodeComponent) -> String {
    if component.change_time.is_none() {
        return String::new();
    }
    let by = id(&component.changer);
    let rollout = match id(&component.rollout) {
        "" => String::new(),
        rollout => format!(", rollout {rollout}"),
    };
    format!("{} by {by}{rollout}", date(component.change_time.as_ref()))
}

fn last_upgrade(component: &v1::NodeComponent) -> String {
    match component.upgrade_state() {
        v1::UpgradeState::Unspecified => String::new(),
        state => format!("{} ({})", state_name(state), id(&component.upgrade)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(version: &str, byte: u8) -> Option<v1::ComponentState> {
        let digest = v1::Digest { algorithm: 1, value: vec![byte; 32].into() };
        let release =
            v1::ReleaseRef { version: version.into(), artifact_digest: Some(digest), ..Default::default() };
        Some(v1::ComponentState { base: Some(v1::component_state::Base::Release(release)), layers: vec![] })
    }

    fn node() -> v1::Node {
        let component = v1::NodeComponent {
            component: "hello".into(),
            previous: state("1.0.0", 0xaa),
            current: state("1.1.0", 0xbb),
            kept: state("1.0.0", 0xaa).into_iter().collect(),
            healthy: true,
            change_time: Some(pbjson_types::Timestamp { seconds: 0, nanos: 0 }),
            changer: "users/anna".into(),
            rollout: "rollouts/r-1".into(),
            ..Default::default()
        };
        v1::Node {
            name: "nodes/web-01".into(),
            state: N::Active.into(),
            online: true,
            components: vec![component],
            ..Default::default()
        }
    }

    #[test]
    fn before_and_after_with_digests_who_and_when() {
        let text = node_details(&node(), 0, Paint::PLAIN);
        assert!(text.contains(&format!("  before     1.0.0  {}\n", "aa".repeat(32))), "{text}");
        assert!(text.contains(&format!("  now        1.1.0  {}\n", "bb".repeat(32))), "{text}");
        assert!(text.contains("  changed    1970-01-01 00:00:00Z by anna, rollout r-1\n"), "{text}");
        assert!(text.contains("  kept       1.0.0"), "{text}");
    }

    #[test]
    fn old_code_is_named_with_its_loader() {
        let mut node = node();
        let class = v1::ClassProof {
            class_name: "com.acme.Order".into(),
            loader: "app".into(),
            standing: v1::Standing::Old.into(),
            ..Default::default()
        };
        let mechanism = v1::Mechanism::JavaAgent.into();
        node.components[0].proof =
            Some(v1::StackProof { classes: vec![class], mechanism, ..Default::default() });
        node.components[0].drift = Some(v1::Reason { message: "old code".into(), ..Default::default() });
        let text = node_details(&node, 0, Paint::PLAIN);
        let line = "  patches    0 proved, 1 OLD, java-agent; com.acme.Order in loader app runs old code\n";
        assert!(text.contains(line) && text.contains("DRIFTED"), "{text}");
    }

    #[test]
    fn the_list_says_when_health_is_not_known() {
        let mut node = node();
        assert!(node_table(std::slice::from_ref(&node), 0, false, Paint::PLAIN).contains("healthy"));
        node.online = false;
        let text = node_table(&[node], 0, true, Paint::PLAIN);
        assert!(text.contains("unknown") && !text.contains("healthy"), "{text}");
    }
}
