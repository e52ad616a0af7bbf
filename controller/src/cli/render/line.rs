//! One line per change, for logs and CI: a time, then `key=value`; values with spaces are quoted.

use upfleet_api::v1;

use super::{clock, component_state, id, rollout, text::state_name};

/// The line of an upgrade's change; `None` where its state did not change and `verbose` is not set.
#[must_use]
pub fn upgrade_line(
    upgrade: &v1::Upgrade,
    previous: v1::UpgradeState,
    time: Option<&pbjson_types::Timestamp>,
    verbose: bool,
) -> Option<String> {
    let state = upgrade.state();
    let changed = previous != state;
    if !changed && !verbose {
        return None;
    }
    let mut line = Line::new(time);
    line.add("wave", upgrade.wave);
    line.add("node", id(&upgrade.node));
    if changed && previous != v1::UpgradeState::Unspecified {
        line.add("state", format!("{}->{}", state_name(previous), state_name(state)));
    } else {
        line.add("state", state_name(state));
    }
    if upgrade.attempt > 1 {
        line.add("attempt", upgrade.attempt);
    }
    if upgrade.unreachable {
        line.add("unreachable", true);
    }
    if upgrade.end_time.is_some() || state == v1::UpgradeState::Preflight {
        line.add("from", component_state(upgrade.from.as_ref()));
        line.add("to", component_state(upgrade.to.as_ref()));
    }
    if let (Some(start), Some(end)) = (&upgrade.start_time, &upgrade.end_time) {
        let millis = (end.seconds - start.seconds) * 1000 + i64::from((end.nanos - start.nanos) / 1_000_000);
        line.add("t", format!("{}.{}s", millis.max(0) / 1000, millis.max(0) % 1000 / 100));
    }
    if let Some(proof) =
        upgrade.proof.as_ref().filter(|proof| upgrade.end_time.is_some() && !proof.classes.is_empty())
    {
        let counts = super::stack::counts(proof, None);
        line.add("proved", counts.proved);
        line.add("armed", counts.armed);
        line.add("old", counts.old);
        line.add("mechanism", super::stack::mechanism(proof.mechanism()));
    }
    if !upgrade.reload.is_empty() {
        line.add("reload", upgrade.reload.trim_end());
    }
    if let Some(interruption) = &upgrade.interruption {
        line.add("handed_over", interruption.handed_over);
        line.add("down", super::stack::down(interruption));
    }
    line.reason(upgrade.reason.as_ref());
    Some(line.0)
}

/// The line of a rollout's change: the rollout's state and its waves', where they differ from `before`.
#[must_use]
pub fn rollout_line(
    now: &v1::Rollout,
    before: &v1::Rollout,
    time: Option<&pbjson_types::Timestamp>,
) -> Vec<String> {
    let mut lines = Vec::new();
    for wave in &now.waves {
        let old = before.waves.iter().find(|old| old.number == wave.number);
        let pending = wave.state() == v1::wave::State::Pending;
        if old.is_some_and(|old| old.state == wave.state) || (old.is_none() && pending) {
            continue;
        }
        let mut line = Line::new(time);
        line.add("wave", wave.number);
        line.add("state", wave.state().as_str_name().trim_start_matches("STATE_"));
        line.add("done", format!("{}/{}", wave.done_count, wave.node_count));
        line.reason(wave.reason.as_ref());
        lines.push(line.0);
    }
    if now.state != before.state {
        let mut line = Line::new(time);
        line.add("rollout", id(&now.name));
        line.add("state", rollout::state(now));
        if !now.reverted_by.is_empty() {
            line.add("reverted_by", id(&now.reverted_by));
        }
        line.reason(now.reason.as_ref());
        lines.push(line.0);
    }
    lines
}

struct Line(String);

impl Line {
    fn new(time: Option<&pbjson_types::Timestamp>) -> Self {
        Self(clock(time))
    }

    fn add(&mut self, key: &str, value: impl ToString) {
        let value = value.to_string();
        let plain = !value.is_empty() && !value.contains([' ', '"', '=', '\n']);
        let value = if plain { value } else { format!("{value:?}") };
        self.0.push_str(&format!(" {key}={value}"));
    }

    fn reason(&mut self, reason: Option<&v1::Reason>) {
        if let Some(reason) = reason {
            self.add("reason", &reason.code);
            self.add("why", &reason.message);
        }
    }
}

#[cfg(test)]
mod tests {
    use v1::UpgradeState as U;

    use super::*;

    fn time(seconds: i64) -> Option<pbjson_types::Timestamp> {
        Some(pbjson_types::Timestamp { seconds, nanos: 0 })
    }

    #[test]
    fn an_upgrade_has_a_line_per_change_of_state() {
        let upgrade = v1::Upgrade {
            node: "nodes/web-01".into(),
            wave: 1,
            state: U::Succeeded.into(),
            start_time: time(0),
            end_time: Some(pbjson_types::Timestamp { seconds: 1, nanos: 400_000_000 }),
            reason: Some(v1::Reason {
                code: "HEALTHY".into(),
                message: "healthy; runs 9f".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(
            upgrade_line(&upgrade, U::Committing, time(37862).as_ref(), false).unwrap(),
            "10:31:02Z wave=1 node=web-01 state=COMMITTING->SUCCEEDED from=- to=- t=1.4s reason=HEALTHY why=\"healthy; runs 9f\""
        );
        assert_eq!(upgrade_line(&upgrade, U::Succeeded, None, false), None);
    }

    #[test]
    fn a_rollout_has_lines_for_what_differs() {
        let wave = |state: v1::wave::State| v1::Wave {
            number: 1,
            node_count: 2,
            state: state.into(),
            ..Default::default()
        };
        let before = v1::Rollout {
            name: "rollouts/r-1".into(),
            state: v1::rollout::State::Planned.into(),
            waves: vec![wave(v1::wave::State::Pending)],
            ..Default::default()
        };
        let mut now = before.clone();
        assert!(rollout_line(&now, &before, None).is_empty());
        now.state = v1::rollout::State::Running.into();
        now.waves = vec![wave(v1::wave::State::Running)];
        assert_eq!(
            rollout_line(&now, &before, time(37862).as_ref()),
            ["10:31:02Z wave=1 state=RUNNING done=0/2", "10:31:02Z rollout=r-1 state=RUNNING"]
        );
    }
}
