//! Patch stacks: what is in force on a node, what the running JVM says of it, and how a change reads.

use upfleet_api::v1::{self, Standing as S, component_state::Base};

use super::{Paint, Table, clock, component_state, date, id, reason, short, since, text::state_name};

/// How many patched classes stand how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Loaded, and the patched bytes are in force.
    pub proved: usize,
    /// Not loaded yet.
    pub armed: usize,
    /// Loaded with other bytes.
    pub old: usize,
}

/// The classes of a proof; those of one patch where `number` says which.
pub(super) fn counts(proof: &v1::StackProof, number: Option<u32>) -> Counts {
    let mut counts = Counts::default();
    for class in proof.classes.iter().filter(|class| number.is_none_or(|number| class.number == number)) {
        match class.standing() {
            S::Proved => counts.proved += 1,
            S::Armed => counts.armed += 1,
            S::Old => counts.old += 1,
            S::Unspecified => {}
        }
    }
    counts
}

/// A mechanism as the configuration names it.
pub(super) fn mechanism(mechanism: v1::Mechanism) -> String {
    match mechanism {
        v1::Mechanism::Unspecified => "-".to_owned(),
        known => known.as_str_name().trim_start_matches("MECHANISM_").to_ascii_lowercase().replace('_', "-"),
    }
}

/// What a JVM says, in a few words: `12 proved, 3 armed, java-agent`.
pub(super) fn proof_note(proof: &v1::StackProof) -> String {
    let Counts { proved, armed, old } = counts(proof, None);
    let mut parts = vec![format!("{proved} proved")];
    if armed > 0 {
        parts.push(format!("{armed} armed"));
    }
    if old > 0 {
        parts.push(format!("{old} OLD"));
    }
    parts.push(mechanism(proof.mechanism()));
    parts.join(", ")
}

/// What a node's JVM said of each patched class at the end of an upgrade, and what the reload answered.
#[must_use]
pub fn proof(upgrade: &v1::Upgrade) -> String {
    let mut text = String::new();
    let node = id(&upgrade.node);
    if let Some(proof) = &upgrade.proof {
        text.push_str(&format!("\n{node}: {}, pid {}\n", proof_note(proof), proof.pid));
        let mut table =
            Table::new(&["  CLASS", "PATCH", "STANDS", "LOADER", "ORIGINAL", "MECHANISM", "SOURCE"], "");
        for class in &proof.classes {
            table.row([
                format!("  {}", class.class_name),
                if class.number == 0 { "base".to_owned() } else { class.number.to_string() },
                class.standing().as_str_name().trim_start_matches("STANDING_").to_ascii_lowercase(),
                if class.loader.is_empty() { "-".to_owned() } else { class.loader.clone() },
                short(class.original_digest.as_ref()),
                mechanism(class.mechanism()),
                class.source.clone(),
            ]);
        }
        text.push_str(&table.text(Paint::PLAIN));
    }
    if !upgrade.reload.is_empty() {
        text.push_str(&format!("\n{node}: the reload answered: {}\n", upgrade.reload.trim_end()));
    }
    if let Some(interruption) = &upgrade.interruption {
        text.push_str(&format!("\n{node}: {}\n", interruption_note(interruption)));
        if let Some(why) = &interruption.why {
            text.push_str(&format!("  {}\n", why.message));
        }
    }
    text
}

/// How long nothing answered, e.g. `1.24s`.
#[must_use]
pub fn down(interruption: &v1::Interruption) -> String {
    let down = interruption.down.unwrap_or_default();
    format!("{}.{:03}s", down.seconds, down.nanos / 1_000_000)
}

/// What an upgrade cost, in a few words.
#[must_use]
pub fn interruption_note(interruption: &v1::Interruption) -> String {
    match interruption.handed_over {
        true if down(interruption) == "0.000s" => "handed over, down 0s".to_owned(),
        true => format!("handed over, down {}", down(interruption)),
        false => format!("stopped and started, down {}", down(interruption)),
    }
}

/// The versions of patch releases after `word`, nothing where there are none.
pub(super) fn named(releases: &[String], word: &str) -> String {
    let versions: Vec<&str> =
        releases.iter().map(|release| id(release).rsplit('@').next().unwrap_or_default()).collect();
    if versions.is_empty() { String::new() } else { format!("{word}{}", versions.join(",")) }
}

/// What is ordered of a stack: `+p10 -9 live`.
pub(super) fn ordered(change: &v1::StackChange) -> String {
    let mut words = Vec::new();
    if change.none {
        words.push("without patches".to_owned());
    }
    if change.to_number > 0 {
        words.push(format!("back to patch {}", change.to_number));
    }
    for release in &change.apply {
        words.push(named(std::slice::from_ref(release), "+"));
    }
    words.extend(change.remove.iter().map(|number| format!("-p{number}")));
    if change.live {
        words.push("live".to_owned());
    }
    words.join(" ")
}

/// What a change of the stack brings beside what goes on and off: ` (9 retires)`, ` (8 comes back)`.
pub(super) fn notes(from: Option<&v1::ComponentState>, to: Option<&v1::ComponentState>) -> String {
    let layers = |state: Option<&v1::ComponentState>| state.map(|s| s.layers.clone()).unwrap_or_default();
    let (from, to) = (layers(from), layers(to));
    let before = |number: u32| from.iter().find(|layer| layer.number == number);
    let mut notes = Vec::new();
    for layer in &to {
        let was = before(layer.number);
        if layer.retired && was.is_none_or(|was| !was.retired) {
            notes.push(format!("{} retires", layer.number));
        }
        if !layer.retired && was.is_some_and(|was| was.retired) {
            notes.push(format!("{} comes back", layer.number));
        }
        let known = was.map(|was| &was.contains[..]).unwrap_or_default();
        for contained in layer.contains.iter().filter(|number| !known.contains(number)) {
            notes.push(format!("{contained} stays contained in {}", layer.number));
        }
    }
    if notes.is_empty() { String::new() } else { format!(" ({})", notes.join(", ")) }
}

/// A component's stack as it stands on a node: newest patch first, the base last, then what deserves a look.
///
/// `releases` are the patch releases of the component, for what they fix.
#[must_use]
pub fn stack_table(
    node: &v1::Node,
    component: &v1::NodeComponent,
    releases: &[v1::Release],
    now: i64,
    paint: Paint,
) -> String {
    let proof = component.proof.as_ref();
    let mut text = format!(
        "{}  {}  {}  {}\n",
        paint.bold(id(&node.name)),
        component.component,
        component_state(component.current.as_ref()),
        asked(node, component, now, paint),
    );
    let mut table =
        Table::new(&["  NUMBER", "RELEASE", "STATE", "FIXES", "PROVED", "ARMED", "OLD", "MECHANISM"], "");
    for layer in component.current.iter().flat_map(|state| &state.layers) {
        table.row(layer_row(&component.component, layer, proof, releases, paint));
    }
    table.row(base_row(component));
    text.push_str(&table.text(paint));
    for old in proof.iter().flat_map(|proof| &proof.classes).filter(|class| class.standing() == S::Old) {
        let loader = if old.loader.is_empty() { "-" } else { &old.loader };
        let problem = if old.problem.is_empty() { String::new() } else { format!(": {}", old.problem) };
        let line = format!("{} in loader {loader} runs old code{problem}", old.class_name);
        text.push_str(&format!("  {} {line}\n", paint.bad("!")));
    }
    if let Some(drift) = &component.drift {
        text.push_str(&format!("  {} DRIFTED: {}\n", paint.bad("!"), reason(Some(drift), now)));
    }
    for alarm in proof.iter().flat_map(|proof| &proof.alarms).chain(&component.alarms) {
        text.push_str(&format!("  {} {}\n", paint.warn("!"), reason(Some(alarm), now)));
    }
    text
}

/// How it is known: which process was asked, and when.
fn asked(node: &v1::Node, component: &v1::NodeComponent, now: i64, paint: Paint) -> String {
    let bare = component.current.iter().all(|state| state.layers.is_empty());
    // Without patches a JVM has nothing to prove, unless it still runs what was taken off.
    let known = match component.proof.as_ref().filter(|proof| !bare || !proof.classes.is_empty()) {
        Some(proof) => format!(
            "{}, pid {}, asked {}",
            mechanism(proof.mechanism()),
            proof.pid,
            since(proof.time.as_ref(), now)
        ),
        None if !component.patchable => "takes no patches".to_owned(),
        None if bare => "no patches".to_owned(),
        None => paint.warn("the JVM has not said what is in force"),
    };
    if node.online {
        return known;
    }
    format!("{known}; {}", paint.warn(format!("last seen {}", since(node.last_seen_time.as_ref(), now))))
}

fn layer_row(
    component: &str,
    layer: &v1::Layer,
    proof: Option<&v1::StackProof>,
    releases: &[v1::Release],
    paint: Paint,
) -> Vec<String> {
    let version = layer.release.as_ref().map(|release| release.version.clone()).unwrap_or_default();
    let name = format!("releases/{component}@{version}");
    let fixes = releases.iter().find(|release| release.name == name).map(fixes).unwrap_or_default();
    let mut state = if layer.retired { paint.dim("retired") } else { paint.good("active") };
    if !layer.contains.is_empty() {
        let numbers: Vec<String> = layer.contains.iter().map(ToString::to_string).collect();
        state.push_str(&format!(", contains {}", numbers.join(",")));
    }
    let mut row = vec![format!("  {}", layer.number), version, state, fixes];
    match proof.filter(|_| !layer.retired) {
        Some(proof) => {
            let Counts { proved, armed, old } = counts(proof, Some(layer.number));
            let old = if old > 0 { paint.bad(old.to_string()) } else { "0".to_owned() };
            let by = proof.classes.iter().find(|class| class.number == layer.number);
            let by = by.map_or_else(|| proof.mechanism(), v1::ClassProof::mechanism);
            row.extend([proved.to_string(), armed.to_string(), old, mechanism(by)]);
        }
        None => row.extend(["-", "-", "-", "-"].map(str::to_owned)),
    }
    row
}

fn base_row(component: &v1::NodeComponent) -> Vec<String> {
    let bare = v1::ComponentState {
        base: component.current.as_ref().and_then(|state| state.base.clone()),
        layers: Vec::new(),
    };
    let state = match &bare.base {
        Some(Base::Release(_)) => "installed",
        Some(Base::Unmanaged(_)) => "adopted",
        Some(Base::Absent(_)) | None => "-",
    };
    vec!["  base".to_owned(), component_state(Some(&bare)), state.to_owned()]
}

/// What a release fixes: `CVE-2021-44228, ACME-7`.
pub(super) fn fixes(release: &v1::Release) -> String {
    release.fixes.iter().map(|fix| fix.id.as_str()).collect::<Vec<_>>().join(", ")
}

/// What happened to a node's components, newest first: also what was rolled back.
#[must_use]
pub fn history_table(entries: &[v1::NodeHistoryEntry], now: i64, paint: Paint) -> String {
    let mut table = Table::new(
        &["ENDED", "COMPONENT", "FROM", "TO", "STATE", "BY", "ROLLOUT", "WHY"],
        "Nothing has happened yet.",
    );
    for entry in entries {
        let today = entry.time.as_ref().is_some_and(|time| time.seconds / 86_400 == now / 86_400);
        let when = if today { clock(entry.time.as_ref()) } else { date(entry.time.as_ref()) };
        let notes = notes(entry.from.as_ref(), entry.to.as_ref());
        let state = match entry.state() {
            v1::UpgradeState::Succeeded => paint.good("SUCCEEDED"),
            v1::UpgradeState::RollbackFailed => paint.bad("ROLLBACK_FAILED"),
            other => paint.warn(state_name(other)),
        };
        table.row([
            when,
            entry.component.clone(),
            component_state(entry.from.as_ref()),
            format!("{}{notes}", component_state(entry.to.as_ref())),
            state,
            id(&entry.actor).to_owned(),
            if entry.rollout.is_empty() { "-".to_owned() } else { id(&entry.rollout).to_owned() },
            reason(entry.reason.as_ref(), now),
        ]);
    }
    table.text(paint)
}

#[cfg(test)]
pub(super) mod tests;
