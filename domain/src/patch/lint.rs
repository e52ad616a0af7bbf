//! What would go wrong with a patch, said before it is rolled out: the patch's files against the application's.
//!
//! Pure, and never the last word: the node judges what it really has, and the JVM what it really loads.

use std::collections::BTreeMap;

use super::{
    JarContents, PatchSpec,
    classfile::ClassFile,
    finding::{Finding, Rule, Severity},
    live,
    make::{Below, Build},
};

mod constants;
mod families;
mod jars;
mod linkage;
mod platform;

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The patch's jar.
    pub patch: &'a JarContents,
    /// The patch's description, where it has one already.
    pub spec: Option<&'a PatchSpec>,
    /// The application that it is for, without patches.
    pub application: &'a Build,
    /// The patches that it is built on top of.
    pub below: &'a [Below<'a>],
    /// The Java version of the oldest JVM that it is for, where that is known.
    pub java: Option<u16>,
}

/// A class of the application or the patch, read, with where it is.
struct Class<'a> {
    file: ClassFile,
    /// The jar that has it.
    jar: &'a str,
}

/// Everything read once.
struct Context<'a> {
    subject: Subject<'a>,
    /// The patch's classes.
    patched: BTreeMap<String, ClassFile>,
    /// The classes in force below the patch: the application's, with earlier patches over them.
    current: BTreeMap<String, Class<'a>>,
}

impl Context<'_> {
    /// Whether a class comes from the patch.
    fn ships(&self, name: &str) -> bool {
        self.patched.contains_key(name)
    }

    /// The classes that stay as they are, and so still link against what the patch replaces.
    fn others(&self) -> impl Iterator<Item = (&String, &Class<'_>)> {
        self.current.iter().filter(|(name, _)| !self.ships(name))
    }

    /// Classes as the patch leaves them.
    fn after(&self, name: &str) -> Option<&ClassFile> {
        self.patched.get(name).or_else(|| self.current.get(name).map(|class| &class.file))
    }
}

/// Looks at a patch. The worst findings come first.
#[must_use]
pub fn lint(subject: &Subject<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let context = read(subject, &mut findings);
    families::look(&context, &mut findings);
    linkage::look(&context, &mut findings);
    constants::look(&context, &mut findings);
    jars::look(&context, &mut findings);
    platform::look(&context, &mut findings);
    for (name, class) in &context.patched {
        let problems = match context.current.get(name) {
            Some(old) => live::differences(&old.file, class),
            None => vec![format!("{name} is a new class")],
        };
        for problem in problems {
            let text = format!("{problem}: it takes a restart to have effect");
            findings.push(Finding::warning(Rule::Live, name, text));
        }
    }
    findings.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
    findings.dedup();
    findings
}

/// Whether any finding stops the patch.
#[must_use]
pub fn has_errors(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Error)
}

fn read<'a>(subject: &Subject<'a>, findings: &mut Vec<Finding>) -> Context<'a> {
    let mut patched = BTreeMap::new();
    for (name, entries) in subject.patch.classes() {
        let Some(entry) = entries.iter().find(|entry| entry.release.is_none()) else { continue };
        match ClassFile::parse(entry.bytes) {
            Ok(file) if file.name == name => {
                patched.insert(name, file);
            }
            Ok(file) => {
                let text =
                    format!("{} holds the class {}: no JVM would find it there", entry.path, file.name);
                findings.push(Finding::error(Rule::ClassFile, &name, text));
            }
            Err(error) => {
                findings.push(Finding::error(Rule::ClassFile, &name, format!("{}: {error}", entry.path)));
            }
        }
    }
    let mut current = BTreeMap::new();
    let mut below: Vec<&Below<'a>> = subject.below.iter().collect();
    below.sort_by_key(|patch| std::cmp::Reverse(patch.spec.number));
    // Whoever is first on the way stays.
    for jar in below.iter().map(|patch| patch.jar).chain(&subject.application.jars) {
        for (name, entries) in jar.classes() {
            if current.contains_key(&name) {
                continue;
            }
            // What the application has beside that is broken is not this patch's fault.
            if let Some(Ok(file)) = entries.first().map(|entry| ClassFile::parse(entry.bytes)) {
                current.insert(name, Class { file, jar: &jar.name });
            }
        }
    }
    Context { subject: *subject, patched, current }
}

/// Some names for a sentence: `A, B and 3 more`.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 5;
    match names.len() {
        0..=SHOWN => names.join(", "),
        count => format!("{} and {} more", names[..SHOWN].join(", "), count - SHOWN),
    }
}

#[cfg(test)]
pub(crate) mod tests;
