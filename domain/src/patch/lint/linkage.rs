//! Members that other classes link against, and that are not there any more.

use std::collections::{BTreeMap, BTreeSet};

use super::{Context, list};
use crate::patch::{
    classfile::{
        ACC_ABSTRACT, ACC_FINAL, ACC_PRIVATE, ACC_PROTECTED, ACC_PUBLIC, ACC_STATIC, ClassFile, MemberRef,
    },
    family,
    finding::{Finding, Rule},
    live, package,
};

/// How far superclasses and interfaces are followed: a circle of them ends here.
const MAX_ANCESTORS: usize = 200;

pub(super) fn look(context: &Context<'_>, findings: &mut Vec<Finding>) {
    let mut broken: BTreeMap<&MemberRef, Vec<String>> = BTreeMap::new();
    let affected = affected(context);
    for (caller, class) in context.others() {
        for reference in
            class.file.references.iter().filter(|reference| affected.contains(reference.owner.as_str()))
        {
            // What was broken before is not the patch's fault.
            let lost = linked(context, reference, caller, true) && !linked(context, reference, caller, false);
            if lost || turned_static(context, reference) {
                broken.entry(reference).or_default().push(caller.clone());
            }
        }
    }
    for (reference, callers) in broken {
        let text = format!(
            "{} of {} is used by {}, and the patch no longer has it as it was: they would fail when they use it",
            describe(reference),
            reference.owner,
            list(&callers)
        );
        findings.push(Finding::error(Rule::Linkage, &reference.owner, text));
    }
    outward(context, findings);
    heirs(context, findings);
}

/// The patch's classes and whatever extends or implements them, however far down: a member that is looked up in one of
/// these may be found in a class that the patch replaces.
fn affected<'a>(context: &'a Context<'_>) -> BTreeSet<&'a str> {
    let mut heirs: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, class) in &context.current {
        for parent in class.file.super_class.iter().chain(&class.file.interfaces) {
            heirs.entry(parent).or_default().push(name);
        }
    }
    let mut affected = BTreeSet::new();
    let mut waiting: Vec<&str> = context.patched.keys().map(String::as_str).collect();
    while let Some(name) = waiting.pop() {
        if affected.insert(name) {
            waiting.extend(heirs.get(name).into_iter().flatten());
        }
    }
    affected
}

/// Classes that extend or implement what the patch replaces, and that no longer can.
fn heirs(context: &Context<'_>, findings: &mut Vec<Finding>) {
    for (name, heir) in context.others() {
        let parents = heir.file.super_class.iter().chain(&heir.file.interfaces);
        for parent in parents.filter_map(|parent| context.patched.get(parent)) {
            let old = context.current.get(&parent.name).map(|class| &class.file);
            if parent.access & ACC_FINAL != 0 && old.is_some_and(|old| old.access & ACC_FINAL == 0) {
                let text = format!("{} is final in the patch, and {name} extends it", parent.name);
                findings.push(Finding::error(Rule::Linkage, &parent.name, text));
            }
            if heir.file.access & ACC_ABSTRACT != 0 {
                continue;
            }
            let demanded = parent.methods.iter().filter(|method| method.access & ACC_ABSTRACT != 0);
            for method in demanded {
                let was = old.and_then(|old| old.method(&method.name, &method.desc));
                let before = was.is_some_and(|was| was.access & ACC_ABSTRACT != 0);
                if !before && heir.file.method(&method.name, &method.desc).is_none() {
                    let text = format!(
                        "{} demands {}, which {name} does not have: calls would fail",
                        parent.name,
                        live::describe(method)
                    );
                    findings.push(Finding::error(Rule::Linkage, &parent.name, text));
                }
            }
        }
    }
}

/// What the patch's own classes link against in classes that stay as they are.
fn outward(context: &Context<'_>, findings: &mut Vec<Finding>) {
    for (name, class) in &context.patched {
        for reference in &class.references {
            let outside = !context.ships(&reference.owner) && context.current.contains_key(&reference.owner);
            if outside && !linked(context, reference, name, false) {
                let text = format!(
                    "{name} uses {} of {}, which neither the patch nor the application has",
                    describe(reference),
                    reference.owner
                );
                findings.push(Finding::error(Rule::Linkage, name, text));
            }
        }
    }
}

fn describe(reference: &MemberRef) -> String {
    if reference.desc.starts_with('(') {
        format!("{}({})", reference.name, live::parameters(&reference.desc).join(", "))
    } else {
        reference.name.clone()
    }
}

/// Whether a reference finds its member, before or after the patch. Where the search leaves the classes that are
/// known, e.g. to the platform's, it counts as found.
fn linked(context: &Context<'_>, reference: &MemberRef, caller: &str, before: bool) -> bool {
    let class = |name: &str| match before {
        true => context.current.get(name).map(|class| &class.file),
        false => context.after(name),
    };
    let mut waiting = vec![reference.owner.clone()];
    let mut seen = BTreeSet::new();
    while let Some(name) = waiting.pop() {
        if seen.len() > MAX_ANCESTORS || !seen.insert(name.clone()) {
            continue;
        }
        let Some(file) = class(&name) else {
            if known_to_be_bare(&name, reference) {
                continue;
            }
            return true;
        };
        if let Some(access) = declared(file, reference) {
            return reachable(access, &name, caller);
        }
        waiting.extend(file.super_class.clone());
        waiting.extend(file.interfaces.iter().cloned());
    }
    false
}

/// The members of `java.lang.Object`, which every search ends in.
fn known_to_be_bare(name: &str, reference: &MemberRef) -> bool {
    const OBJECT: [&str; 11] = [
        "equals",
        "hashCode",
        "toString",
        "getClass",
        "notify",
        "notifyAll",
        "wait",
        "clone",
        "finalize",
        "<init>",
        "registerNatives",
    ];
    name == "java.lang.Object" && !OBJECT.contains(&reference.name.as_str())
}

/// Whether a member's modifiers let a class use it. What is protected is for subclasses, which is not looked into.
fn reachable(access: u16, owner: &str, caller: &str) -> bool {
    if access & ACC_PRIVATE != 0 {
        return family(caller) == family(owner);
    }
    access & (ACC_PUBLIC | ACC_PROTECTED) != 0 || package(caller) == package(owner)
}

/// The modifiers of a member that a class declares itself.
fn declared(file: &ClassFile, reference: &MemberRef) -> Option<u16> {
    if reference.desc.starts_with('(') {
        file.method(&reference.name, &reference.desc).map(|method| method.access)
    } else {
        file.field(&reference.name, &reference.desc).map(|field| field.access)
    }
}

/// Whether a member changed between belonging to the class and to its instances: either way its callers fail.
fn turned_static(context: &Context<'_>, reference: &MemberRef) -> bool {
    let before = context.current.get(&reference.owner).and_then(|class| declared(&class.file, reference));
    let after = context.patched.get(&reference.owner).and_then(|file| declared(file, reference));
    matches!((before, after), (Some(before), Some(after)) if (before ^ after) & ACC_STATIC != 0)
}
