//! What has changed between two plans, in words.

use std::collections::BTreeMap;

use crate::{
    id::NodeId,
    rollout::{Plan, PlannedUpgrade},
};

/// At most so many differences are told one by one; a person reads no more.
const TOLD: usize = 5;

/// What `new` does otherwise than `old`; empty where both do the same.
#[must_use]
pub fn difference(old: &Plan, new: &Plan) -> String {
    if old.digest == new.digest {
        return String::new();
    }
    let by_node = |plan: &'_ Plan| -> BTreeMap<NodeId, PlannedUpgrade> {
        plan.upgrades.iter().map(|upgrade| (upgrade.node.clone(), upgrade.clone())).collect()
    };
    let (before, after) = (by_node(old), by_node(new));
    let mut told = Vec::new();
    for (node, upgrade) in &before {
        match after.get(node) {
            None => told.push(gone(node, new)),
            Some(now) if now.from != upgrade.from => {
                told.push(format!("{node} runs {}, not {}", now.from, upgrade.from));
            }
            Some(now) if now.to != upgrade.to => {
                told.push(format!("{node} would get {}, not {}", now.to, upgrade.to));
            }
            Some(now) if now.wave != upgrade.wave => {
                told.push(format!("{node} is in wave {}, not {}", now.wave + 1, upgrade.wave + 1));
            }
            Some(_) => {}
        }
    }
    told.extend(after.keys().filter(|node| !before.contains_key(node)).map(|node| format!("{node} is new")));
    if old.max_unavailable != new.max_unavailable {
        told.push(format!(
            "{} nodes may be unavailable at once, not {}",
            new.max_unavailable, old.max_unavailable
        ));
    }
    if told.is_empty() {
        told.push("another change, policy or seed was asked for".to_owned());
    }
    let more = told.len().saturating_sub(TOLD);
    told.truncate(TOLD);
    let told = told.join("; ");
    if more == 0 { told } else { format!("{told}; and {more} more") }
}

fn gone(node: &NodeId, new: &Plan) -> String {
    match new.excluded.iter().find(|(excluded, _)| excluded == node) {
        Some((_, reason)) => format!("{node} is left out: {reason}"),
        None => format!("{node} is gone"),
    }
}
