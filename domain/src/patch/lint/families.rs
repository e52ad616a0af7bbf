//! Classes that no base has, and families of inner classes that are shipped in part.

use std::collections::BTreeSet;

use super::Context;
use crate::patch::{
    family,
    finding::{Finding, Rule},
};

pub(super) fn look(context: &Context<'_>, findings: &mut Vec<Finding>) {
    not_in_base(context, findings);
    split(context, findings);
}

/// A class that the description says to replace one, or whose family is there without it while nothing says it is new.
fn not_in_base(context: &Context<'_>, findings: &mut Vec<Finding>) {
    for name in context.patched.keys() {
        if context.current.contains_key(name) {
            continue;
        }
        let meant = context.subject.spec.and_then(|spec| spec.class(name)).map(|class| !class.is_new());
        if meant == Some(true) {
            let text = format!("the patch replaces {name}, which the application does not have");
            findings.push(Finding::error(Rule::NotInBase, name, text));
            continue;
        }
        let used = context.patched.iter().any(|(other, class)| other != name && class.classes.contains(name));
        if !used {
            let text = format!(
                "{name} is new, and no other class of the patch uses it: if it should replace one, its package is wrong"
            );
            findings.push(Finding::warning(Rule::NotInBase, name, text));
        }
    }
}

fn split(context: &Context<'_>, findings: &mut Vec<Finding>) {
    let removed = |name: &String| context.subject.spec.is_some_and(|spec| spec.removed.contains(name));
    let families: BTreeSet<&str> = context.patched.keys().map(|name| family(name)).collect();
    for (name, class) in &context.current {
        if !families.contains(family(name)) || context.ships(name) || removed(name) {
            continue;
        }
        // A member that nothing names any more is left over from the old build.
        let named = context.patched.values().any(|shipped| shipped.classes.contains(name));
        let whole = context.ships(family(name));
        if !named && whole {
            continue;
        }
        let text = format!(
            "the patch ships classes of {} without {name}, which then comes from {}: compile and ship the whole family",
            family(name),
            class.jar
        );
        findings.push(Finding::error(Rule::SplitFamily, name, text));
    }
}
