//! A plan: waves, what changes, the gate before each, who is left out and why.

use std::collections::BTreeMap;

use upfleet_api::v1;

use super::{Paint, Table, component_state, duration, id, stack};

/// The table of a plan. `wide` lists each node left out.
#[must_use]
pub fn plan(context: &str, spec: &v1::RolloutSpec, plan: &v1::Plan, wide: bool, paint: Paint) -> String {
    let rollout = v1::Rollout { spec: Some(spec.clone()), ..Default::default() };
    let digest: String = plan.plan_digest.chars().take(12).collect();
    let mut text = format!(
        "Context {}   {}   {} nodes   at most {} unavailable   plan {digest}\n",
        paint.bold(context),
        paint.bold(super::rollout::change(&rollout)),
        plan.upgrades.len(),
        plan.max_unavailable,
    );
    let mut table = Table::new(&["  WAVE", "NODES", "CHANGE", "GATE"], "  nothing to change\n");
    for wave in plan.waves.iter().filter(|wave| !wave.nodes.is_empty()) {
        let name = if wave.number == 1 { "  1 canary".to_owned() } else { format!("  {}", wave.number) };
        table.row([name, format!("{:>5}", wave.nodes.len()), changes(plan, wave.number), gate(wave)]);
    }
    text.push_str(&table.text(paint));
    text.push_str(&excluded(plan, wide));
    for warning in &plan.warnings {
        text.push_str(&format!("  {} {warning}\n", paint.warn("!")));
    }
    text
}

/// What changes in a wave: `1.0.7 -> 1.0.8 (23), 1.0.5 -> 1.0.8 (1)`.
fn changes(plan: &v1::Plan, wave: u32) -> String {
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for upgrade in plan.upgrades.iter().filter(|upgrade| upgrade.wave == wave) {
        let to = component_state(upgrade.to.as_ref());
        let notes = stack::notes(upgrade.from.as_ref(), upgrade.to.as_ref());
        let key = (component_state(upgrade.from.as_ref()), format!("{to}{notes}"));
        *counts.entry(key).or_default() += 1;
    }
    let alone = counts.len() == 1;
    let shown = counts.into_iter().map(|((from, to), count)| {
        if alone { format!("{from} -> {to}") } else { format!("{from} -> {to} ({count})") }
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn gate(wave: &v1::PlannedWave) -> String {
    let mut parts = Vec::new();
    if let Some(spec) = &wave.spec {
        if spec.approval {
            parts.push("approval before".to_owned());
        }
        if let Some(bake) = spec.bake.as_ref().filter(|bake| bake.seconds > 0 || bake.nanos > 0) {
            parts.push(format!("bake {}", duration(bake.seconds)));
        }
    }
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}

fn excluded(plan: &v1::Plan, wide: bool) -> String {
    if plan.excluded.is_empty() {
        return String::new();
    }
    let mut causes: BTreeMap<String, usize> = BTreeMap::new();
    let why = |node: &v1::ExcludedNode| {
        node.reason.as_ref().map(|reason| reason.message.clone()).unwrap_or_default()
    };
    for node in &plan.excluded {
        *causes.entry(why(node)).or_default() += 1;
    }
    let parts: Vec<String> = causes.into_iter().map(|(cause, count)| format!("{cause} ({count})")).collect();
    let hint = if wide { "" } else { "     (-o wide lists them)" };
    let mut text = format!("  left out {:>3}  {}{hint}\n", plan.excluded.len(), parts.join(" · "));
    if wide {
        for node in &plan.excluded {
            text.push_str(&format!("    {}: {}\n", id(&node.node), why(node)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(version: &str) -> Option<v1::ComponentState> {
        let release = v1::ReleaseRef { version: version.into(), ..Default::default() };
        Some(v1::ComponentState { base: Some(v1::component_state::Base::Release(release)), layers: vec![] })
    }

    #[test]
    fn a_plan_as_people_see_it() {
        let upgrade = |node: &str, from: &str, wave| v1::PlannedUpgrade {
            node: format!("nodes/{node}"),
            from: release(from),
            to: release("1.0.8"),
            wave,
            online: true,
        };
        let wave = |number, nodes: &[&str], approval| v1::PlannedWave {
            number,
            nodes: nodes.iter().map(|node| format!("nodes/{node}")).collect(),
            spec: Some(v1::WaveSpec { approval, ..Default::default() }),
        };
        let planned = v1::Plan {
            waves: vec![wave(1, &["a"], false), wave(2, &["b", "c"], true)],
            upgrades: vec![upgrade("a", "1.0.7", 1), upgrade("b", "1.0.7", 2), upgrade("c", "1.0.5", 2)],
            excluded: vec![v1::ExcludedNode {
                node: "nodes/d".into(),
                reason: Some(v1::Reason { message: "cordoned".into(), ..Default::default() }),
            }],
            plan_digest: "91c2f3a4b5d6e7".into(),
            warnings: vec!["b is not connected".into()],
            max_unavailable: 1,
        };
        let install = v1::InstallChange { release: "releases/payments@1.0.8".into(), ..Default::default() };
        let spec = v1::RolloutSpec {
            component: "payments".into(),
            change: Some(v1::rollout_spec::Change::Install(install)),
            ..Default::default()
        };
        assert_eq!(
            plan("prod", &spec, &planned, false, Paint::PLAIN),
            "Context prod   payments -> 1.0.8   3 nodes   at most 1 unavailable   plan 91c2f3a4b5d6\n\
             \x20 WAVE      NODES  CHANGE                                  GATE\n\
             \x20 1 canary      1  1.0.7 -> 1.0.8                          -\n\
             \x20 2             2  1.0.5 -> 1.0.8 (1), 1.0.7 -> 1.0.8 (1)  approval before\n\
             \x20 left out   1  cordoned (1)     (-o wide lists them)\n\
             \x20 ! b is not connected\n"
        );
    }
}
