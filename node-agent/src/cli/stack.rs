//! `upfleet-agent stack`: the patch stacks of this node, and what the running JVMs say of them.

use clap::Args;
use upfleet_domain::{
    id::ComponentId,
    jvm::{Mechanism, Proof, Standing},
    release::VerifiedRelease,
    state::{ComponentState, Layer},
    time::Time,
};

use super::{
    Done, Exit, Failure, Global, Output,
    render::{columns, span},
    status,
};
use crate::{component::known_releases, local::ComponentStatus, transport::now};

#[derive(Debug, Args)]
pub(super) struct Show {
    /// Only this component's
    component: Option<ComponentId>,
    /// How it is shown
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

impl Show {
    pub(super) fn run(self, global: &Global) -> Done {
        let config = super::load(global)?;
        let mut components = status::gather(&config)?.components;
        match &self.component {
            Some(wanted) => components.retain(|found| found.inventory.component == *wanted),
            None => components
                .retain(|found| found.inventory.patchable || !found.inventory.current.layers.is_empty()),
        }
        if let (Some(wanted), true) = (&self.component, components.is_empty()) {
            let error = anyhow::anyhow!("nothing is known of `{wanted}`");
            return Err(Failure::new(Exit::Refused, error).hint("upfleet-agent status lists the components"));
        }
        if self.output == Output::Json {
            println!("{}", serde_json::to_string_pretty(&components)?);
            return Ok(Exit::Done);
        }
        if components.is_empty() {
            println!("No component takes patches: give one a [component.jvm] in the configuration.");
        }
        for found in &components {
            let releases = known_releases(&config.state_dir, &found.inventory.component);
            print!("{}", shown(found, &releases, now()));
        }
        Ok(Exit::Done)
    }
}

fn shown(found: &ComponentStatus, releases: &[VerifiedRelease], now: Time) -> String {
    let inventory = &found.inventory;
    // Without patches a JVM has nothing to prove, unless it still runs what was taken off.
    let bare = inventory.current.layers.is_empty();
    let proof = inventory.proof.as_ref().filter(|proof| !bare || !proof.classes.is_empty());
    let known = match proof {
        Some(proof) => {
            format!("{}, pid {}, asked {} ago", proof.mechanism, proof.pid, span(now.since(proof.time)))
        }
        None if bare => "no patches".to_owned(),
        None => "the JVM has not said what is in force".to_owned(),
    };
    let mut text = format!("{}  {}  {known}\n", inventory.component, inventory.current);
    let mut rows: Vec<Vec<String>> =
        inventory.current.layers.iter().map(|layer| row(layer, proof, releases)).collect();
    let base = ComponentState { base: inventory.current.base.clone(), layers: Vec::new() };
    rows.push(vec!["  base".to_owned(), base.to_string(), "installed".to_owned()]);
    let headings = ["  NUMBER", "RELEASE", "STATE", "FIXES", "PROVED", "ARMED", "OLD", "MECHANISM"];
    text.push_str(&columns(&headings, rows));
    let old = proof.and_then(Proof::old);
    let alarms = proof.iter().flat_map(|proof| &proof.alarms).chain(&inventory.alarms);
    for note in old.iter().chain(&inventory.drift).chain(alarms) {
        text.push_str(&format!("  ! {note}\n"));
    }
    text
}

fn row(layer: &Layer, proof: Option<&Proof>, releases: &[VerifiedRelease]) -> Vec<String> {
    let manifest = releases.iter().find(|release| release.digest() == layer.release.manifest);
    let fixes = manifest
        .and_then(|release| release.manifest().patch.as_ref())
        .map(|patch| patch.fixes.iter().map(|fix| fix.id.as_str()).collect::<Vec<_>>().join(", "));
    let mut state = if layer.retired { "retired" } else { "active" }.to_owned();
    if !layer.contains.is_empty() {
        let numbers: Vec<String> = layer.contains.iter().map(ToString::to_string).collect();
        state.push_str(&format!(", contains {}", numbers.join(",")));
    }
    let mut row = vec![
        format!("  {}", layer.number),
        layer.release.version.to_string(),
        state,
        fixes.unwrap_or_default(),
    ];
    let Some(proof) = proof.filter(|_| !layer.retired) else {
        row.extend(["-", "-", "-", "-"].map(str::to_owned));
        return row;
    };
    let own = || proof.classes.iter().filter(|class| class.number == layer.number);
    let count = |standing| own().filter(|class| class.standing == standing).count().to_string();
    row.extend([Standing::Proved, Standing::Armed, Standing::Old].map(count));
    let by: Mechanism = own().next().map_or(proof.mechanism, |class| class.mechanism);
    row.push(by.to_string());
    row
}
