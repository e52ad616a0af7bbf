//! Which files go into a patch.

use std::collections::{BTreeMap, BTreeSet};

use super::{Build, Recipe, Source, build::Parents, families, invalid};
use crate::{
    patch::{
        JarContents, class_at,
        classfile::ClassFile,
        family,
        finding::{Finding, Rule},
        unversioned,
    },
    reason::Reason,
};

/// The files of a patch, by class name and by path.
#[derive(Default)]
pub(super) struct Chosen<'a> {
    pub(super) classes: BTreeMap<String, &'a [u8]>,
    pub(super) resources: BTreeMap<String, &'a [u8]>,
    pub(super) findings: Vec<Finding>,
}

/// Everything in a directory or jar.
pub(super) fn given<'a>(jar: &'a JarContents, parents: &Parents<'_>) -> Result<Chosen<'a>, Reason> {
    let mut chosen = Chosen::default();
    for (path, bytes) in &jar.entries {
        if unversioned(path).is_some() {
            return Err(invalid(format!(
                "{path} is for some Java versions only: put the class at its plain path, where it takes precedence for all"
            )));
        }
        if path == "module-info.class" {
            return Err(invalid("a module's description can't be patched: leave module-info.class out"));
        }
        if let Some(name) = class_at(path) {
            chosen.classes.insert(name, bytes);
        } else if path.ends_with(".class") {
            return Err(invalid(format!("{path} is no path of a class")));
        } else if !own_file(path) {
            chosen.resources.insert(path.clone(), bytes);
        }
    }
    for name in chosen.classes.keys().filter(|name| parents.of(name).is_none()) {
        let relative = parents.names().any(|other| family(other) == family(name));
        if !relative && family(name) == name {
            let text =
                format!("{name} is in no base: it is added, where a path in the directory is not wrong");
            chosen.findings.push(Finding::warning(Rule::NotInBase, name, text));
        }
    }
    Ok(chosen)
}

/// What describes a jar and is made anew for each.
fn own_file(path: &str) -> bool {
    let signature = [".SF", ".RSA", ".DSA", ".EC"].iter().any(|end| path.to_ascii_uppercase().ends_with(end));
    path == "META-INF/MANIFEST.MF"
        || path == "META-INF/INDEX.LIST"
        || (path.starts_with("META-INF/") && signature)
        || path.ends_with('/')
}

/// What of a new build differs.
pub(super) fn difference<'a>(
    new: &'a Build,
    bases: &[Build],
    parents: &Parents<'_>,
    recipe: &Recipe,
) -> Result<Chosen<'a>, Reason> {
    let mut chosen = Chosen::default();
    let built = new.first();
    let mut changed = BTreeSet::new();
    for (name, bytes) in &built {
        let parent = parents.of(name);
        if parent == Some(bytes) {
            continue;
        }
        let debug_only = recipe.leave_out_debug_only && parent.is_some_and(|parent| same_code(parent, bytes));
        if !debug_only {
            changed.insert(name.clone());
        }
    }
    let families = families(&changed);
    chosen.classes = built.into_iter().filter(|(name, _)| families.contains(family(name))).collect();
    versioned(new, bases, &mut chosen);
    let old: BTreeMap<&String, &Vec<u8>> = bases.first().map(files).unwrap_or_default();
    for (path, bytes) in files(new) {
        if old.get(path) == Some(&bytes) {
            continue;
        }
        if recipe.resources {
            chosen.resources.insert(path.clone(), bytes);
        } else {
            let text = format!(
                "{path} differs and is not in the patch: say that files which are no classes go along"
            );
            chosen.findings.push(Finding::warning(Rule::Resource, path, text));
        }
    }
    Ok(chosen)
}

fn same_code(old: &[u8], new: &[u8]) -> bool {
    match (ClassFile::parse(old), ClassFile::parse(new)) {
        (Ok(old), Ok(new)) => old.same_but_for_debug(&new),
        _ => false,
    }
}

/// The files of a build that are neither classes nor made anew for each jar.
fn files(build: &Build) -> BTreeMap<&String, &Vec<u8>> {
    let all = build.jars.iter().rev().flat_map(|jar| &jar.entries);
    all.filter(|(path, _)| !path.ends_with(".class") && !path.ends_with(".jar") && !own_file(path)).collect()
}

/// Classes with entries for later Java versions: a patch has one class for all, and takes the plain one.
fn versioned(new: &Build, bases: &[Build], chosen: &mut Chosen<'_>) {
    let Some(old) = bases.first().map(Build::classes) else { return };
    for (name, entries) in new.classes() {
        let Some(before) = old.get(&name) else { continue };
        for entry in &entries {
            let Some(release) = entry.release else { continue };
            let Some(was) = before.iter().find(|was| was.release == entry.release) else { continue };
            let same = was.bytes == entry.bytes || same_code(was.bytes, entry.bytes);
            if same && chosen.classes.contains_key(&name) {
                let text = format!(
                    "the plain entry of {name} was changed, but {} was not: from Java {release} on, neither the new jar \
                     nor the patch would have an effect, unless the class is given by itself",
                    entry.path
                );
                chosen.findings.push(Finding::warning(Rule::MultiRelease, &name, text));
            } else if !same {
                let text =
                    format!("{} differs and is not in the patch: give the class by itself", entry.path);
                chosen.findings.push(Finding::error(Rule::MultiRelease, &name, text));
            }
        }
    }
}

/// Members of the patch's families that are there below, and that the patch has no need of.
///
/// In a difference that is what the new build no longer has. Where classes were given, it is what none of them names;
/// what one does name and nobody gave splits the family, which [`crate::patch::lint`] says.
pub(super) fn removed(
    classes: &BTreeMap<String, &[u8]>,
    pairs: &[(Option<ClassFile>, ClassFile)],
    parents: &Parents<'_>,
    source: Source<'_>,
    findings: &mut Vec<Finding>,
) -> Vec<String> {
    let families = families(classes.keys());
    let mut removed = Vec::new();
    for name in parents.names() {
        if !families.contains(family(name)) || classes.contains_key(name) {
            continue;
        }
        // Its outermost class is the family: without it, nothing says that the rest is complete.
        let named = pairs.iter().any(|(_, class)| class.classes.contains(name));
        if matches!(source, Source::Classes(_)) && (named || !classes.contains_key(family(name))) {
            continue;
        }
        let text = format!(
            "{name} is no longer there: the old one stays where it is, and nothing in the patch uses it"
        );
        findings.push(Finding::warning(Rule::Removed, name, text));
        removed.push(name.clone());
    }
    removed
}
