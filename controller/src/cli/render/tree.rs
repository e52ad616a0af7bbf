//! The live tree: the rollout, its waves, and the nodes in which something happens.

use upfleet_api::v1::{self, UpgradeState as U, wave::State as W};

use super::{
    Model, Paint, bytes, component_state, duration, id, reason,
    rollout::{self, Kind, kind},
    safe, stack,
    table::{cut, width},
    text::state_name,
};

/// Waves of at most so many nodes show every node, larger ones only those that are not done.
const SMALL_WAVE: usize = 12;
/// So many columns a wave's bar takes.
const BAR: usize = 15;

/// The tree in at most `height` lines of `columns` columns.
#[must_use]
pub fn tree(model: &Model, now: i64, columns: usize, height: usize, paint: Paint) -> String {
    let mut lines = vec![head(model, now, paint)];
    let waves = &model.rollout.waves;
    // Every wave keeps its line; the nodes share what room is left, active waves first.
    let fixed = 1 + waves.len() + usize::from(model.revert.is_some()) * 4;
    let mut room = height.saturating_sub(fixed);
    for (index, wave) in waves.iter().enumerate() {
        let last = index + 1 == waves.len();
        lines.push(wave_line(wave, last, model.is_terminal(), paint));
        let nodes = shown_nodes(model, wave);
        let fits = if nodes.len() <= room { nodes.len() } else { room.saturating_sub(1) };
        let bar = if last { "   " } else { "│  " };
        let name_width = nodes.iter().map(|upgrade| width(id(&upgrade.node))).max().unwrap_or(0);
        for (place, upgrade) in nodes.iter().take(fits).enumerate() {
            let corner = if place + 1 == nodes.len() { "└─" } else { "├─" };
            lines.push(format!(
                "{}{}",
                paint.dim(format!("{bar}{corner}")),
                node_line(upgrade, name_width, now, paint)
            ));
        }
        if fits < nodes.len() && room > 0 {
            lines.push(paint.dim(format!("{bar}└─ … {} more", nodes.len() - fits)));
        }
        room = room.saturating_sub(nodes.len().min(fits + 1));
    }
    if let Some(revert) = &model.revert {
        let linked = tree(revert, now, columns, height.saturating_sub(lines.len()).max(4), paint);
        lines.extend(linked.lines().map(str::to_owned));
    }
    lines.iter().map(|line| format!("{}\n", cut(line, columns))).collect()
}

fn head(model: &Model, now: i64, paint: Paint) -> String {
    let rollout = &model.rollout;
    let counts = model.counts();
    let end = rollout.end_time.as_ref().map_or(now, |time| time.seconds);
    let clock = rollout.start_time.as_ref().map(|start| duration(end - start.seconds)).unwrap_or_default();
    let mut parts =
        vec![format!("ok {}", counts.ok), format!("busy {}", counts.busy), format!("wait {}", counts.wait)];
    if counts.unreachable > 0 {
        parts.push(paint.warn(format!("unreachable {}", counts.unreachable)));
    }
    let failed = format!("failed {} (budget {})", counts.failed, budget(rollout));
    parts.push(if counts.failed > 0 { paint.bad(failed) } else { failed });
    if counts.left_out > 0 {
        parts.push(format!("left out {}", counts.left_out));
    }
    let name = id(&rollout.name);
    format!(
        "{} {}  {}   {}   {clock}   {}",
        paint.busy("⟳"),
        paint.bold(name),
        rollout::change(rollout),
        rollout::painted_state(rollout, paint),
        parts.join(" · "),
    )
}

/// The failures that are borne, all causes together.
fn budget(rollout: &v1::Rollout) -> String {
    use v1::node_count::Value;
    let budgets =
        rollout.spec.as_ref().and_then(|spec| spec.policy.as_ref()).map(|policy| &policy.failure_budgets);
    let limits: Vec<Value> = budgets.into_iter().flatten().filter_map(|b| b.limit.as_ref()?.value).collect();
    let counts: u32 =
        limits.iter().map(|limit| if let Value::Count(count) = limit { *count } else { 0 }).sum();
    let percents = limits.iter().filter_map(|limit| match limit {
        Value::Percent(percent) => Some(format!("{percent}%")),
        Value::Count(_) => None,
    });
    let mut parts: Vec<String> = percents.collect();
    if counts > 0 || parts.is_empty() {
        parts.insert(0, counts.to_string());
    }
    parts.join(" + ")
}

fn wave_line(wave: &v1::Wave, last: bool, over: bool, paint: Paint) -> String {
    let corner = paint.dim(if last { "└─" } else { "├─" });
    let (done, all) = (wave.done_count as usize, wave.node_count as usize);
    let name = if wave.number == 1 { "1 canary".to_owned() } else { format!("{} wave", wave.number) };
    let mark = match wave.state() {
        W::Succeeded => paint.good("✔"),
        W::Failed => paint.bad("✖"),
        // A wave that its rollout ended in the middle of keeps the state it was in.
        _ if over => paint.dim("-"),
        W::AwaitingApproval => paint.warn("?"),
        W::Running | W::Baking => paint.busy("◌"),
        W::Pending | W::Unspecified => paint.dim("·"),
    };
    let mut line = format!("{corner}{mark} {name:<9} {:>7}", format!("{done}/{all}"));
    if matches!(wave.state(), W::Running | W::Baking) && all > 0 && !over {
        let full = BAR * done.min(all) / all;
        line.push_str(&format!("  {}{}", paint.good("█".repeat(full)), paint.dim("▒".repeat(BAR - full))));
    }
    let notes: Vec<String> = wave_notes(wave).into_iter().filter(|note| !note.is_empty()).collect();
    if !notes.is_empty() {
        line.push_str(&format!("  {}", notes.join(" · ")));
    }
    line
}

fn wave_notes(wave: &v1::Wave) -> Vec<String> {
    let approved = match id(&wave.approver) {
        "" => String::new(),
        approver => format!("approved by {approver}"),
    };
    let why = match wave.state() {
        W::AwaitingApproval | W::Failed => {
            wave.reason.as_ref().map(|reason| reason.message.clone()).unwrap_or_default()
        }
        W::Baking => "baking".to_owned(),
        _ => String::new(),
    };
    vec![why, approved]
}

/// The nodes of a wave that are worth a line, those that need attention first.
fn shown_nodes<'a>(model: &'a Model, wave: &v1::Wave) -> Vec<&'a v1::Upgrade> {
    let nodes: Vec<&v1::Upgrade> =
        model.upgrades.values().filter(|upgrade| upgrade.wave == wave.number).collect();
    let pending = wave.state() == W::Pending;
    let small = nodes.len() <= SMALL_WAVE && !pending;
    let worth = |upgrade: &&v1::Upgrade| match kind(upgrade) {
        Kind::Busy | Kind::Failed => true,
        Kind::Ok | Kind::LeftOut => small,
        Kind::Wait => small || (upgrade.unreachable && !pending),
    };
    let mut shown: Vec<&v1::Upgrade> = nodes.into_iter().filter(worth).collect();
    if !small {
        shown.sort_by_key(|upgrade| (kind(upgrade) != Kind::Failed, !upgrade.unreachable));
    }
    shown
}

fn node_line(upgrade: &v1::Upgrade, name_width: usize, now: i64, paint: Paint) -> String {
    let node = id(&upgrade.node);
    let state = upgrade.state();
    let word = format!("{:<16}", state_name(state));
    let (mark, word) = match kind(upgrade) {
        _ if upgrade.unreachable && kind(upgrade) != Kind::Ok => (paint.warn("?"), paint.warn(word)),
        Kind::Ok => (paint.good("✔"), paint.good(word)),
        Kind::Busy if state == U::RollingBack => (paint.warn("↩"), paint.warn(word)),
        Kind::Busy => (paint.busy("◌"), paint.busy(word)),
        Kind::Wait => (paint.dim("·"), paint.dim(word)),
        Kind::Failed => (paint.bad("✖"), paint.bad(word)),
        Kind::LeftOut => (paint.dim("-"), paint.dim(word)),
    };
    format!("{mark} {node:<name_width$}  {word} {}", detail(upgrade, now))
}

fn detail(upgrade: &v1::Upgrade, now: i64) -> String {
    let states =
        format!("{} -> {}", component_state(upgrade.from.as_ref()), component_state(upgrade.to.as_ref()));
    let why = reason(upgrade.reason.as_ref(), now);
    let text = match upgrade.state() {
        U::Succeeded if kind(upgrade) == Kind::Ok => ended(upgrade, states),
        U::Fetching if upgrade.total_bytes > 0 && upgrade.fetched_bytes > 0 => {
            let percent = upgrade.fetched_bytes.min(upgrade.total_bytes) * 100 / upgrade.total_bytes;
            format!("{percent}%  {} of {}", bytes(upgrade.fetched_bytes), bytes(upgrade.total_bytes))
        }
        _ => why,
    };
    if upgrade.unreachable { format!("unreachable  {text}") } else { text }
}

/// The change, and what the node itself says of it: the classes in force, the answer to the reload.
fn ended(upgrade: &v1::Upgrade, mut text: String) -> String {
    // Without patches there is nothing to prove.
    if let Some(proof) = upgrade.proof.as_ref().filter(|proof| !proof.classes.is_empty()) {
        text.push_str(&format!("  {}", stack::proof_note(proof)));
    }
    if !upgrade.reload.is_empty() {
        text.push_str(&format!("  reload: {}", safe(upgrade.reload.trim_end())));
    }
    if let Some(interruption) = &upgrade.interruption {
        text.push_str(&format!("  {}", stack::interruption_note(interruption)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{
        super::rollout::tests::{model, upgrade},
        *,
    };

    fn example() -> Model {
        let mut fetching = upgrade("web-07", 2, U::Fetching);
        fetching.fetched_bytes = 61;
        fetching.total_bytes = 100;
        let mut failed = upgrade("web-19", 2, U::RolledBack);
        failed.reason = Some(v1::Reason { message: "1.0.0 runs again".into(), ..Default::default() });
        let mut silent = upgrade("web-22", 2, U::Pending);
        silent.unreachable = true;
        let mut m = model(
            v1::rollout::State::Running,
            vec![
                upgrade("web-01", 1, U::Succeeded),
                fetching,
                failed,
                silent,
                upgrade("web-30", 3, U::Pending),
            ],
        );
        let wave = |number, state: W, done, all| v1::Wave {
            number,
            state: state.into(),
            done_count: done,
            node_count: all,
            ..Default::default()
        };
        m.rollout.waves =
            vec![wave(1, W::Succeeded, 1, 1), wave(2, W::Running, 1, 3), wave(3, W::Pending, 0, 1)];
        m
    }

    #[test]
    fn the_tree_as_people_see_it() {
        assert_eq!(
            tree(&example(), 0, 100, 40, Paint::PLAIN),
            "⟳ r-1  hello -> 1.1.0   RUNNING      ok 1 · busy 1 · wait 1 · unreachable 1 · failed 1 (budget 0)\n\
             ├─✔ 1 canary      1/1\n\
             │  └─✔ web-01  SUCCEEDED        - -> -\n\
             ├─◌ 2 wave        1/3  █████▒▒▒▒▒▒▒▒▒▒\n\
             │  ├─◌ web-07  FETCHING         61%  61 B of 100 B\n\
             │  ├─✖ web-19  ROLLED_BACK      1.0.0 runs again\n\
             │  └─? web-22  PENDING          unreachable  \n\
             └─· 3 wave        0/1\n"
        );
    }

    #[test]
    fn the_tree_fits_the_terminal() {
        let text = tree(&example(), 0, 30, 6, Paint::COLORED);
        assert!(text.lines().count() <= 6, "{text}");
        assert!(text.lines().all(|line| width(line) <= 30), "{text}");
    }
}
