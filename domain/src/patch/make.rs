//! Making a patch: from classes somebody compiled, or from the difference between two builds of the application.
//!
//! Pure: builds come in as names and bytes, the patch goes out as its description and the files of its jar.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    BaseRange, Fix, JarContents, PatchSpec, PatchedClass, PatchedResource, class_path_of,
    classfile::ClassFile,
    family,
    finding::{Finding, Rule},
    live,
};
use crate::{
    digest::Digest,
    reason::{Reason, ReasonCode},
};

mod build;
mod choose;

pub use build::{Below, Build};

/// What a person says of a patch; the rest is found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipe {
    /// Its number.
    pub number: u32,
    /// The base releases it is for.
    pub base: BaseRange,
    /// What it fixes.
    pub fixes: Vec<Fix>,
    /// Patches that have to be in the stack as well.
    pub requires: Vec<u32>,
    /// Patches that it makes superfluous.
    pub supersedes: Vec<u32>,
    /// The JPMS module of its classes.
    pub module: Option<String>,
    /// It takes effect by a restart only.
    pub needs_restart: bool,
    /// Of a difference: the files that are no classes go along where they differ.
    pub resources: bool,
    /// Of a difference: classes that differ in debug information only stay out, unless their family is in.
    pub leave_out_debug_only: bool,
}

/// Where the patch's files come from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Exactly these classes and files.
    Classes(&'a JarContents),
    /// What of this build differs from the first base with its stack: whole families, and classes that are new.
    Difference(&'a Build),
}

/// A patch that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its description.
    pub spec: PatchSpec,
    /// The files of its jar, by path.
    pub entries: BTreeMap<String, Vec<u8>>,
    /// What was noticed while making it. [`super::lint`] says more.
    pub findings: Vec<Finding>,
}

/// Makes a patch for `bases`, of which the first is the one it was built from, on top of the patches in `below`.
///
/// # Errors
/// [`ReasonCode::PatchInvalid`] where nothing differs, or a file is no class file or lies in the wrong place.
pub fn make(
    recipe: &Recipe,
    source: Source<'_>,
    bases: &[Build],
    below: &[Below<'_>],
) -> Result<Made, Reason> {
    // The plain class of a build may be for Java 8 and fail on a later one, so that it takes the place of no other.
    // Whoever gives a class by itself means it.
    let parents = build::Parents::new(bases, below, matches!(source, Source::Classes(_)));
    let chosen = match source {
        Source::Classes(jar) => choose::given(jar, &parents)?,
        Source::Difference(new) => choose::difference(new, bases, &parents, recipe)?,
    };
    let mut findings = chosen.findings;
    let mut classes = Vec::new();
    let mut pairs = Vec::new();
    for (name, bytes) in &chosen.classes {
        let file = parse(name, bytes)?;
        let parent = parents.of(name);
        let old = parent.and_then(|parent| ClassFile::parse(parent).ok());
        classes.push(PatchedClass {
            name: name.clone(),
            accepts: parents.originals(name),
            parent: parent.map(Digest::of),
            patched: Digest::of(bytes),
            major: file.major,
        });
        pairs.push((old, file));
    }
    debug_only(&pairs, &mut findings);
    let removed = choose::removed(&chosen.classes, &pairs, &parents, source, &mut findings);
    let live = live::live(pairs.iter().map(|(old, new)| (old.as_ref(), new)));
    let resources = chosen
        .resources
        .iter()
        .map(|(name, bytes)| PatchedResource { name: name.clone(), digest: Digest::of(bytes) });
    let spec = PatchSpec {
        number: recipe.number,
        base: recipe.base.clone(),
        fixes: recipe.fixes.clone(),
        classes,
        removed,
        resources: resources.collect(),
        requires: recipe.requires.clone(),
        supersedes: recipe.supersedes.clone(),
        module: recipe.module.clone(),
        live,
        needs_restart: recipe.needs_restart,
    };
    if spec.classes.is_empty() && spec.resources.is_empty() {
        return Err(invalid("nothing differs, so there is nothing to patch"));
    }
    let paths = chosen.classes.into_iter().map(|(name, bytes)| (class_path_of(&name), bytes.to_vec()));
    let entries =
        paths.chain(chosen.resources.into_iter().map(|(name, bytes)| (name, bytes.to_vec()))).collect();
    Ok(Made { spec, entries, findings })
}

/// Families in which nothing but debug information differs: there may be no reason to ship them.
fn debug_only(pairs: &[(Option<ClassFile>, ClassFile)], findings: &mut Vec<Finding>) {
    let mut same: BTreeMap<&str, bool> = BTreeMap::new();
    for (old, new) in pairs {
        let alike = old.as_ref().is_some_and(|old| old.same_but_for_debug(new));
        *same.entry(family(&new.name)).or_insert(true) &= alike;
    }
    for (name, _) in same.into_iter().filter(|(_, alike)| *alike) {
        let text = format!("{name} differs from what it was built from in debug information only, if at all");
        findings.push(Finding::warning(Rule::DebugOnly, name, text));
    }
}

/// Reads a class that goes into a patch, and checks that it is what its path says.
fn parse(name: &str, bytes: &[u8]) -> Result<ClassFile, Reason> {
    let file = ClassFile::parse(bytes).map_err(|error| invalid(format!("{name}: {error}")))?;
    if file.name != name {
        return Err(invalid(format!("the class at {} is {}", class_path_of(name), file.name)));
    }
    Ok(file)
}

fn invalid(problem: impl std::fmt::Display) -> Reason {
    Reason::new(ReasonCode::PatchInvalid).with("problem", problem)
}

/// Families that some of these classes belong to.
fn families<'a>(names: impl IntoIterator<Item = &'a String>) -> BTreeSet<&'a str> {
    names.into_iter().map(|name| family(name)).collect()
}

#[cfg(test)]
mod tests;
