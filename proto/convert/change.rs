//! What a rollout changes: both ways, with the limits that `rollout.proto` words.
//!
//! Releases are named `releases/COMPONENT@VERSION` on the wire; here the component is checked and dropped, as a
//! change is of one component.

use std::collections::BTreeSet;

use upfleet_domain::{
    id::{ComponentId, Version},
    patch::MAX_NUMBER,
    rollout::{Change, Restore, StackChange},
};
use v1::{restore_change::Target, rollout_spec::Change as Wire};

use super::{Result, invalid, parse, required, rollout::named, within};
use crate::v1;

/// The most patches that one change puts on or takes off.
const MAX_PATCHES: usize = 100;
/// The most fixes that one change may lose, and the longest id of one in bytes.
const MAX_FIXES: usize = 1000;
const MAX_FIX_BYTES: usize = 200;

pub(super) fn to_wire(change: &Change, component: &ComponentId) -> Wire {
    let release = |version: &Version| format!("releases/{component}@{version}");
    match change {
        Change::Install { version, allow_downgrade, allow_failed_digest } => {
            Wire::Install(v1::InstallChange {
                release: release(version),
                allow_downgrade: *allow_downgrade,
                allow_failed_digest: *allow_failed_digest,
            })
        }
        Change::Stack(change) => Wire::Stack(v1::StackChange {
            apply: change.apply.iter().map(release).collect(),
            remove: change.remove.clone(),
            to_number: change.to_number.unwrap_or(0),
            none: change.none,
            live: change.live,
            contained: change.contained,
            allow_failed_digest: change.allow_failed_digest,
        }),
        Change::BaseWithStack { version, apply, waive_fixes, allow_downgrade, allow_failed_digest } => {
            Wire::BaseWithStack(v1::BaseWithStackChange {
                release: release(version),
                apply: apply.iter().map(release).collect(),
                waive_fixes: waive_fixes.clone(),
                allow_downgrade: *allow_downgrade,
                allow_failed_digest: *allow_failed_digest,
            })
        }
        Change::Restore(restore) => {
            let target = match restore {
                Restore::Previous => Target::Previous(v1::PreviousState {}),
                Restore::Release(version) => Target::Release(release(version)),
                Restore::BeforeRollout(rollout) => Target::BeforeRollout(format!("rollouts/{rollout}")),
            };
            Wire::Restore(v1::RestoreChange { target: Some(target) })
        }
    }
}

pub(super) fn from_wire(wire: Wire, component: &ComponentId) -> Result<Change> {
    match wire {
        Wire::Install(install) => Ok(Change::Install {
            version: version(component, &install.release, "install.release")?,
            allow_downgrade: install.allow_downgrade,
            allow_failed_digest: install.allow_failed_digest,
        }),
        Wire::Stack(change) => within("stack", stack(change, component)).map(Change::Stack),
        Wire::BaseWithStack(change) => within("base_with_stack", base_with_stack(change, component)),
        Wire::Restore(restore) => Ok(Change::Restore(match required(restore.target, "restore.target")? {
            Target::Previous(_) => Restore::Previous,
            Target::Release(release) => Restore::Release(version(component, &release, "restore.release")?),
            Target::BeforeRollout(rollout) => {
                Restore::BeforeRollout(named(&rollout, "rollouts", "restore.before_rollout")?)
            }
        })),
    }
}

fn version(component: &ComponentId, release: &str, path: &str) -> Result<Version> {
    let text: String = named(release, "releases", path)?;
    match text.split_once('@') {
        Some((of, version)) if of == component.as_str() => parse(version, path),
        Some((of, _)) => Err(invalid(path, format!("it is a release of `{of}`, not of `{component}`"))),
        None => Err(invalid(path, "it is not of the form `releases/COMPONENT@VERSION`")),
    }
}

fn versions(component: &ComponentId, releases: &[String]) -> Result<Vec<Version>> {
    if releases.len() > MAX_PATCHES {
        return Err(invalid("apply", format!("more than {MAX_PATCHES}")));
    }
    let mut found: Vec<Version> = Vec::new();
    for (index, release) in releases.iter().enumerate() {
        let path = format!("apply[{index}]");
        let version = version(component, release, &path)?;
        if found.contains(&version) {
            return Err(invalid(&path, format!("`{release}` is named twice")));
        }
        found.push(version);
    }
    Ok(found)
}

fn stack(wire: v1::StackChange, component: &ComponentId) -> Result<StackChange> {
    let removals =
        [!wire.remove.is_empty(), wire.to_number != 0, wire.none].into_iter().filter(|set| *set).count();
    if removals > 1 {
        return Err(invalid("", "it takes one of remove, to_number and none"));
    }
    if removals == 0 && wire.apply.is_empty() {
        return Err(invalid("", "it says neither what to put on nor what to take off"));
    }
    if wire.remove.len() > MAX_PATCHES {
        return Err(invalid("remove", format!("more than {MAX_PATCHES}")));
    }
    let mut seen = BTreeSet::new();
    for (index, number) in wire.remove.iter().enumerate() {
        if *number == 0 || *number > MAX_NUMBER || !seen.insert(number) {
            let problem = format!("{number} is named twice or is no patch number, 1 to {MAX_NUMBER}");
            return Err(invalid(&format!("remove[{index}]"), problem));
        }
    }
    Ok(StackChange {
        apply: versions(component, &wire.apply)?,
        remove: wire.remove,
        to_number: (wire.to_number != 0).then_some(wire.to_number),
        none: wire.none,
        live: wire.live,
        contained: wire.contained,
        allow_failed_digest: wire.allow_failed_digest,
    })
}

fn base_with_stack(wire: v1::BaseWithStackChange, component: &ComponentId) -> Result<Change> {
    if wire.waive_fixes.len() > MAX_FIXES || wire.waive_fixes.iter().any(|fix| fix.len() > MAX_FIX_BYTES) {
        let problem = format!("more than {MAX_FIXES}, or one longer than {MAX_FIX_BYTES} bytes");
        return Err(invalid("waive_fixes", problem));
    }
    Ok(Change::BaseWithStack {
        version: version(component, &wire.release, "release")?,
        apply: versions(component, &wire.apply)?,
        waive_fixes: wire.waive_fixes,
        allow_downgrade: wire.allow_downgrade,
        allow_failed_digest: wire.allow_failed_digest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> ComponentId {
        "web".parse().unwrap()
    }

    #[test]
    fn stacks_come_back_as_they_went() {
        let apply = vec!["releases/web@p2".to_owned(), "releases/web@p1".to_owned()];
        for wire in [
            Wire::Stack(v1::StackChange { apply: apply.clone(), live: true, ..Default::default() }),
            Wire::Stack(v1::StackChange { apply: apply.clone(), none: true, ..Default::default() }),
            Wire::Stack(v1::StackChange { to_number: 9, contained: true, ..Default::default() }),
            Wire::Stack(v1::StackChange { remove: vec![3, 2], ..Default::default() }),
            Wire::BaseWithStack(v1::BaseWithStackChange {
                release: "releases/web@2".into(),
                apply,
                waive_fixes: vec!["CVE-1".into()],
                ..Default::default()
            }),
        ] {
            let domain = from_wire(wire.clone(), &web()).unwrap();
            assert_eq!(to_wire(&domain, &web()), wire);
        }
    }

    #[test]
    fn a_stack_change_says_one_thing_and_says_it_once() {
        let check = |expected: &str, change: v1::StackChange| {
            let reason = from_wire(Wire::Stack(change), &web()).unwrap_err();
            assert_eq!(reason.metadata["field"], expected, "{reason}");
        };
        let web = || "releases/web@p1".to_owned();
        check("stack", v1::StackChange::default());
        check("stack", v1::StackChange { live: true, ..Default::default() });
        check("stack", v1::StackChange { none: true, to_number: 1, ..Default::default() });
        check("stack.remove[1]", v1::StackChange { remove: vec![1, 1], ..Default::default() });
        check("stack.remove[0]", v1::StackChange { remove: vec![0], ..Default::default() });
        check("stack.apply[1]", v1::StackChange { apply: vec![web(), web()], ..Default::default() });
        let other = "releases/other@p1".to_owned();
        check("stack.apply[0]", v1::StackChange { apply: vec![other], ..Default::default() });
    }
}
