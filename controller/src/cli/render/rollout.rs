//! Rollouts: what is known of one while it is watched, its counts, and how it ended.

use std::collections::BTreeMap;

use upfleet_api::v1::{self, UpgradeState as U, rollout::State as S, wave::State as W};
use upfleet_domain::rollout::State;

use super::{Paint, Table, component_state, date, duration, id, reason, safe, since, text};
use crate::exit::Exit;

/// What is known of a rollout: the last word on it and on each of its upgrades.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The rollout.
    pub rollout: v1::Rollout,
    /// Its upgrades by node.
    pub upgrades: BTreeMap<String, v1::Upgrade>,
    /// The rollout that puts its nodes back, once there is one.
    pub revert: Option<Box<Model>>,
}

/// How many nodes are where. A node is counted once; an unreachable one as unreachable only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Done.
    pub ok: usize,
    /// Something is under way on them.
    pub busy: usize,
    /// Their turn has not come.
    pub wait: usize,
    /// Silent.
    pub unreachable: usize,
    /// Failed, put back or not.
    pub failed: usize,
    /// Left out on the way: skipped, cancelled, superseded.
    pub left_out: usize,
}

/// Where an upgrade counts, reachability aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ok,
    Busy,
    Wait,
    Failed,
    LeftOut,
}

pub(super) fn kind(upgrade: &v1::Upgrade) -> Kind {
    // What was found to run something else afterwards is no success, whatever was recorded.
    let drifted = upgrade.reason.as_ref().is_some_and(|reason| reason.code == "DRIFTED");
    match upgrade.state() {
        U::Succeeded | U::AlreadyCurrent if drifted => Kind::Failed,
        U::Succeeded | U::AlreadyCurrent => Kind::Ok,
        U::FailedUnchanged | U::RolledBack | U::RollbackFailed | U::Refused | U::Expired => Kind::Failed,
        U::Cancelled | U::Superseded | U::Skipped => Kind::LeftOut,
        U::Unspecified | U::Pending => Kind::Wait,
        U::Preflight
        | U::Fetching
        | U::Verifying
        | U::Staged
        | U::Activating
        | U::Probing
        | U::Committing
        | U::RollingBack => Kind::Busy,
    }
}

impl Model {
    /// Takes a change in.
    pub fn apply(&mut self, change: &v1::WatchRolloutResponse) {
        use v1::watch_rollout_response::Change;
        match &change.change {
            Some(Change::Rollout(rollout)) => self.rollout = rollout.clone(),
            Some(Change::Upgrade(upgrade)) => {
                self.upgrades.insert(id(&upgrade.node).to_owned(), upgrade.clone());
            }
            None => {}
        }
        self.rollout.revision = self.rollout.revision.max(change.revision);
    }

    /// How many nodes are where.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for upgrade in self.upgrades.values() {
            let ended = !matches!(kind(upgrade), Kind::Busy | Kind::Wait);
            let place = match kind(upgrade) {
                _ if upgrade.unreachable && !ended => &mut counts.unreachable,
                Kind::Ok => &mut counts.ok,
                Kind::Busy => &mut counts.busy,
                Kind::Wait => &mut counts.wait,
                Kind::Failed => &mut counts.failed,
                Kind::LeftOut => &mut counts.left_out,
            };
            *place += 1;
        }
        counts
    }

    /// Whether every failed node is back on, or still on, its old state.
    #[must_use]
    pub fn all_put_back(&self) -> bool {
        let lost = |upgrade: &v1::Upgrade| {
            upgrade.state() == U::RollbackFailed
                || (kind(upgrade) == Kind::Failed
                    && matches!(upgrade.state(), U::Succeeded | U::AlreadyCurrent))
        };
        !self.upgrades.values().any(lost)
    }

    /// How waiting for it ends now, if it does. A rollout that rests ends it only once its nodes rest too.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        let state = state(&self.rollout);
        let resting = self.counts().busy == 0;
        let exit = Exit::of_rollout(state, self.all_put_back());
        match state {
            State::Halted | State::Paused if !self.at_rest() => None,
            State::Running if resting && self.waiting_wave().is_some() => Some(Exit::Waiting),
            _ => exit,
        }
    }

    /// Whether no node does anything: those that are held before a step wait for a person.
    fn at_rest(&self) -> bool {
        self.upgrades.values().all(|upgrade| {
            let held = upgrade.reason.as_ref().is_some_and(|reason| reason.code == "HELD_BEFORE");
            upgrade.unreachable || held || kind(upgrade) != Kind::Busy
        })
    }

    /// The wave that waits for a person.
    #[must_use]
    pub fn waiting_wave(&self) -> Option<&v1::Wave> {
        self.rollout.waves.iter().find(|wave| wave.state() == W::AwaitingApproval)
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        state(&self.rollout).is_terminal()
    }
}

/// The domain's word for a rollout's state; what this version does not know counts as running.
pub(super) fn state(rollout: &v1::Rollout) -> State {
    match rollout.state() {
        S::Planned => State::Planned,
        S::AwaitingApproval => State::AwaitingApproval,
        S::Unspecified | S::Running => State::Running,
        S::Paused => State::Paused,
        S::Halted => State::Halted,
        S::Cancelling => State::Cancelling,
        S::Reverting => State::Reverting,
        S::Succeeded => State::Succeeded,
        S::SucceededWithFailures => State::SucceededWithFailures,
        S::Cancelled => State::Cancelled,
        S::Reverted => State::Reverted,
        S::RevertFailed => State::RevertFailed,
    }
}

/// What a rollout changes: `hello -> 1.1.0`, `hello back to its previous state`.
pub(super) fn change(rollout: &v1::Rollout) -> String {
    use v1::{restore_change::Target, rollout_spec::Change};
    let Some(spec) = &rollout.spec else { return String::new() };
    let version = |release: &str| id(release).rsplit('@').next().unwrap_or_default().to_owned();
    let to = match &spec.change {
        Some(Change::Install(install)) => format!("-> {}", version(&install.release)),
        Some(Change::Restore(restore)) => match &restore.target {
            Some(Target::Release(release)) => format!("back to {}", version(release)),
            Some(Target::BeforeRollout(rollout)) => format!("back to before {}", id(rollout)),
            Some(Target::Previous(_)) | None => "back to its previous state".to_owned(),
        },
        Some(Change::BaseWithStack(base)) => {
            format!("-> {}{}", version(&base.release), super::stack::named(&base.apply, " with "))
        }
        Some(Change::Stack(stack)) => super::stack::ordered(stack),
        None => String::new(),
    };
    format!("{} {to}", spec.component)
}

/// The list of rollouts.
#[must_use]
pub fn rollout_table(rollouts: &[v1::Rollout], now: i64, wide: bool, paint: Paint) -> String {
    let mut headings = vec!["ROLLOUT", "CHANGE", "STATE", "NODES", "CREATED", "BY", "MESSAGE"];
    if wide {
        headings.extend(["REVERTS", "PLAN"]);
    }
    let mut table =
        Table::new(&headings, "No rollouts yet. Begin with: upfleet plan --release COMPONENT@VERSION");
    for rollout in rollouts {
        let done = rollout.upgrade_counts.get("SUCCEEDED").unwrap_or(&0)
            + rollout.upgrade_counts.get("ALREADY_CURRENT").unwrap_or(&0);
        let all: u32 = rollout.upgrade_counts.values().sum();
        let mut row = vec![
            id(&rollout.name).to_owned(),
            change(rollout),
            painted_state(rollout, paint),
            format!("{done}/{all}"),
            since(rollout.create_time.as_ref(), now),
            id(&rollout.creator).to_owned(),
            rollout.message.clone(),
        ];
        if wide {
            row.push(id(&rollout.reverts).to_owned());
            row.push(rollout.plan_digest.chars().take(12).collect());
        }
        table.row(row);
    }
    table.text(paint)
}

pub(super) fn painted_state(rollout: &v1::Rollout, paint: Paint) -> String {
    let state = state(rollout);
    let text = state.as_str();
    match state {
        State::Succeeded => paint.good(text),
        State::Halted | State::RevertFailed => paint.bad(text),
        State::Paused
        | State::AwaitingApproval
        | State::SucceededWithFailures
        | State::Reverted
        | State::Cancelled => paint.warn(text),
        State::Planned => text.to_owned(),
        State::Running | State::Cancelling | State::Reverting => paint.busy(text),
    }
}

/// One rollout at length, below its tree.
#[must_use]
pub fn rollout_details(rollout: &v1::Rollout, now: i64, paint: Paint) -> String {
    let selector = rollout.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
    let mut lines = vec![
        ("rollout", paint.bold(id(&rollout.name))),
        ("state", painted_state(rollout, paint)),
        ("why", reason(rollout.reason.as_ref(), now)),
        ("nodes", selector),
        ("message", rollout.message.clone()),
        ("created", format!("{} by {}", date(rollout.create_time.as_ref()), id(&rollout.creator))),
        ("started", rollout.start_time.as_ref().map(|time| date(Some(time))).unwrap_or_default()),
        ("ended", rollout.end_time.as_ref().map(|time| date(Some(time))).unwrap_or_default()),
        ("last act by", id(&rollout.last_actor).to_owned()),
        ("puts back", id(&rollout.reverts).to_owned()),
        ("put back by", id(&rollout.reverted_by).to_owned()),
        ("plan", rollout.plan_digest.clone()),
    ];
    lines.retain(|(_, value)| !value.is_empty());
    lines.iter().map(|(key, value)| format!("{key:<12} {value}\n")).collect()
}

/// How it ended, or what it waits for, and what to do next.
#[must_use]
pub fn summary(model: &Model, exit: Exit, now: i64, paint: Paint) -> String {
    let rollout = &model.rollout;
    let name = id(&rollout.name);
    let mark = match exit {
        Exit::Success => paint.good("✔"),
        Exit::Waiting | Exit::WithFailures | Exit::Cancelled | Exit::TimedOut => paint.warn("!"),
        _ => paint.bad("✖"),
    };
    let why = match model.waiting_wave() {
        Some(wave) if exit == Exit::Waiting => reason(wave.reason.as_ref(), now),
        _ => reason(rollout.reason.as_ref(), now),
    };
    let word = state(rollout).as_str().to_ascii_lowercase().replace('_', " ");
    // `paused: paused by anna` would say it twice.
    let why = match why.strip_prefix(&word) {
        Some(rest) => rest.to_owned(),
        None => format!(": {why}"),
    };
    let mut text = format!("{mark} {name} {}{why}{}\n", paint.bold(word), took(rollout));
    for node in failed_lines(model, &why, paint) {
        text.push_str(&node);
    }
    for next in next_commands(model, exit) {
        text.push_str(&format!("  next: {next}\n"));
    }
    if exit != Exit::Success {
        text.push_str(&paint.dim(format!("  [exit {}: {}]", exit.code(), exit.meaning())));
        text.push('\n');
    }
    text
}

fn took(rollout: &v1::Rollout) -> String {
    match (&rollout.start_time, &rollout.end_time) {
        (Some(start), Some(end)) => format!(", {}", duration(end.seconds - start.seconds)),
        _ => String::new(),
    }
}

/// The failed nodes, alike ones together: at most five kinds.
fn failed_lines(model: &Model, told: &str, paint: Paint) -> Vec<String> {
    let mut groups: BTreeMap<(U, String), Vec<&v1::Upgrade>> = BTreeMap::new();
    for upgrade in model.upgrades.values().filter(|upgrade| kind(upgrade) == Kind::Failed) {
        let code = upgrade.reason.as_ref().map(|reason| reason.code.clone()).unwrap_or_default();
        groups.entry((upgrade.state(), code)).or_default().push(upgrade);
    }
    let mut lines = Vec::new();
    for ((state, _), alike) in groups.iter().take(5) {
        let nodes: Vec<&str> = alike.iter().take(5).map(|upgrade| id(&upgrade.node)).collect();
        let more = if alike.len() > nodes.len() {
            format!(" and {} more", alike.len() - nodes.len())
        } else {
            String::new()
        };
        let first = alike[0];
        let why = reason(first.reason.as_ref(), 0);
        // The rollout's own reason often tells the first node's already.
        let why = if why.is_empty() || told.contains(&why) { String::new() } else { format!(": {why}") };
        let safe = *state != U::RollbackFailed;
        let word = text::state_word(*state);
        let word = if safe { paint.warn(word) } else { paint.bad(word) };
        lines.push(format!("  {}{more} {word}{why}\n", nodes.join(", ")));
        if let Some(evidence) = &first.evidence {
            lines.extend(evidence_lines(evidence, id(&first.node), paint));
        }
        if *state == U::RolledBack || *state == U::FailedUnchanged {
            lines.push(format!("    runs {}\n", component_state(first.from.as_ref())));
        }
    }
    lines
}

fn evidence_lines(evidence: &v1::Evidence, node: &str, paint: Paint) -> Vec<String> {
    const SHOWN: usize = 5;
    /// What the agent says of a process that had not ended.
    const STILL_RUNS: &str = "runs";
    let mut lines = Vec::new();
    if !evidence.exit.is_empty() && evidence.exit != STILL_RUNS {
        lines.push(format!("    {node} ended with {}\n", evidence.exit));
    }
    let skip = evidence.lines.len().saturating_sub(SHOWN);
    for line in &evidence.lines[skip..] {
        lines.push(format!("    {}\n", paint.dim(format!("| {}", safe(line)))));
    }
    lines
}

fn next_commands(model: &Model, exit: Exit) -> Vec<String> {
    let name = id(&model.rollout.name);
    let state = state(&model.rollout);
    match (exit, state) {
        (Exit::Waiting, State::Paused) => vec![format!("upfleet rollout resume {name}")],
        (Exit::Waiting, _) => vec![format!("upfleet rollout approve {name}")],
        (Exit::TimedOut, _) => vec![format!("upfleet rollout watch {name}")],
        (_, State::Halted) => vec![
            format!("upfleet rollout upgrades {name} -o wide"),
            format!("upfleet rollout resume {name} --failed retry|skip|revert"),
            format!("upfleet rollout cancel {name}"),
        ],
        (_, State::SucceededWithFailures) => vec![format!("upfleet rollout retry {name}")],
        (Exit::NeedsPerson, _) => vec!["log in to those nodes: upfleet-agent status".to_owned()],
        _ => Vec::new(),
    }
}

#[cfg(test)]
pub(super) mod tests;
