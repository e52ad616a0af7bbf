//! `upfleet-agent history`: what happened to components, from what the agent wrote down; it need not run.

use clap::Args;
use upfleet_domain::{
    id::ComponentId,
    upgrade::{history::Entry, interruption::Interruption},
};

use super::{
    Done, Exit, Failure, Global, Output,
    render::{columns, date},
};
use crate::component::history::History;

#[derive(Debug, Args)]
pub(super) struct Show {
    /// Only this component's
    component: Option<ComponentId>,
    /// How it is shown
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

#[derive(serde::Serialize)]
struct Told {
    component: ComponentId,
    #[serde(flatten)]
    entry: Entry,
}

impl Show {
    pub(super) fn run(self, global: &Global) -> Done {
        let config = super::load(global)?;
        let wanted = |name: &ComponentId| self.component.as_ref().is_none_or(|wanted| wanted == name);
        let names: Vec<ComponentId> =
            config.components.into_iter().map(|component| component.name).filter(wanted).collect();
        if let (Some(component), true) = (&self.component, names.is_empty()) {
            let error = anyhow::anyhow!("`{component}` is not in the agent's configuration");
            return Err(Failure::new(Exit::Refused, error).hint("upfleet-agent status lists the components"));
        }
        let mut all = Vec::new();
        for component in names {
            let entries = History::new(&config.state_dir, &component).read()?;
            all.extend(entries.into_iter().map(|entry| Told { component: component.clone(), entry }));
        }
        all.sort_by_key(|told| std::cmp::Reverse(told.entry.time));
        match self.output {
            Output::Json => println!("{}", serde_json::to_string_pretty(&all)?),
            Output::Table => print!("{}", table(&all)),
        }
        Ok(Exit::Done)
    }
}

/// Newest first.
fn table(all: &[Told]) -> String {
    if all.is_empty() {
        return "Nothing has happened yet.\n".to_owned();
    }
    let row = |told: &Told| {
        let entry = &told.entry;
        let by = if entry.actor.is_empty() { "-" } else { &entry.actor };
        vec![
            date(entry.time),
            told.component.to_string(),
            entry.from.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            entry.to.to_string(),
            entry.outcome.to_string(),
            by.to_owned(),
            entry.rollout.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            entry.interruption.as_ref().map_or_else(|| "-".to_owned(), cost),
            entry.reason.message(),
        ]
    };
    let headings = ["ENDED", "COMPONENT", "FROM", "TO", "STATE", "BY", "ROLLOUT", "DOWN", "WHY"];
    columns(&headings, all.iter().map(row).collect())
}

/// How long nothing answered.
fn cost(interruption: &Interruption) -> String {
    let down = humantime::format_duration(interruption.down());
    if interruption.handed_over { format!("{down}, handed over") } else { down.to_string() }
}

#[cfg(test)]
mod tests {
    use upfleet_domain::{
        digest::Digest,
        reason::{Reason, ReasonCode},
        state::ComponentState,
        time::Time,
        upgrade::Outcome,
    };

    use super::*;

    #[test]
    fn what_happened_newest_first() {
        let entry = Entry {
            time: Time(1_795_429_862_000),
            outcome: Outcome::RolledBack,
            reason: Reason::new(ReasonCode::LocalApply).with("message", "CHG-1 (user 0)"),
            from: Some(ComponentState::absent()),
            to: ComponentState::unmanaged(Digest::of(b"x")),
            current: ComponentState::absent(),
            live: false,
            interruption: Some(Interruption { handed_over: true, down_ms: 0, why: None }),
            actor: "local".into(),
            rollout: None,
            upgrade: None,
        };
        let told = Told { component: "web".parse().unwrap(), entry };
        assert_eq!(
            table(&[told]),
            "\
ENDED                 COMPONENT  FROM    TO                      STATE        BY     ROLLOUT  DOWN             WHY
2026-11-23 10:31:02Z  web        absent  unmanaged@2d711642b726  ROLLED_BACK  local  -        0s, handed over  changed on the node itself: CHG-1 (user 0)
"
        );
        assert!(table(&[]).contains("Nothing"));
    }
}
