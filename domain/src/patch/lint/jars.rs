//! What depends on jars: service files, entries for later Java versions, modules, signers, seals.

use std::collections::BTreeSet;

use super::Context;
use crate::patch::{
    JarContents,
    finding::{Finding, Rule},
    package, unversioned,
};

/// Files of which a program reads every copy on the class path.
fn all_copies_count(path: &str) -> bool {
    (path.starts_with("META-INF/services/") && !path.ends_with('/'))
        || path == "META-INF/spring.factories"
        || (path.starts_with("META-INF/spring/") && path.ends_with(".imports"))
        || path == "META-INF/spring.handlers"
        || path == "META-INF/spring.schemas"
}

pub(super) fn look(context: &Context<'_>, findings: &mut Vec<Finding>) {
    let patch = context.subject.patch;
    for path in patch.entries.keys() {
        services(context, path, findings);
        if path == "module-info.class" || path.ends_with("/module-info.class") {
            let text = "a module's description can't be patched: leave it out, or ship a whole release";
            findings.push(Finding::error(Rule::ModuleInfo, path, text));
        }
    }
    multi_release(context, findings);
    let packages: BTreeSet<&str> = context.patched.keys().map(|name| package(name)).collect();
    for jar in &context.subject.application.jars {
        let own: BTreeSet<String> = jar.classes().into_keys().map(|name| package(&name).to_owned()).collect();
        for package in packages.iter().filter(|package| own.contains(**package)) {
            guarded(patch, jar, package, findings);
        }
    }
}

fn services(context: &Context<'_>, path: &str, findings: &mut Vec<Finding>) {
    if !all_copies_count(path) {
        return;
    }
    let holders: Vec<&str> = context
        .subject
        .application
        .jars
        .iter()
        .filter(|jar| jar.entries.keys().any(|own| own == path || own.ends_with(&format!("classes/{path}"))))
        .map(|jar| jar.name.as_str())
        .collect();
    let text = match holders.first() {
        Some(first) => format!(
            "{path} is in {first} as well, and programs read every copy: what both name is there twice, and what the \
             patch leaves out stays"
        ),
        None => format!("{path} adds to what programs find: they read every copy on the class path"),
    };
    findings.push(Finding::warning(Rule::ServiceDoubled, path, text));
}

fn multi_release(context: &Context<'_>, findings: &mut Vec<Finding>) {
    let patch = context.subject.patch;
    let declared = patch.manifest().is_multi_release();
    for path in patch.entries.keys() {
        let Some((plain, release)) = unversioned(path) else { continue };
        let text = match declared {
            false => format!(
                "{path} is without effect, as the patch's manifest does not say `Multi-Release: true`: put it at {plain}"
            ),
            true => format!(
                "{path} would count from Java {release} on only, and not at all under --patch-module: put it at {plain}, \
                 where it takes precedence for all"
            ),
        };
        findings.push(Finding::error(Rule::MultiRelease, path, text));
    }
    for jar in &context.subject.application.jars {
        if !jar.manifest().is_multi_release() {
            continue;
        }
        for (name, entries) in jar.classes().into_iter().filter(|(name, _)| context.ships(name)) {
            let accepts = context.subject.spec.and_then(|spec| spec.class(&name)).map(|class| &class.accepts);
            for entry in &entries {
                let Some(release) = entry.release else { continue };
                let digest = crate::digest::Digest::of(entry.bytes);
                if accepts.is_some_and(|accepts| !accepts.contains(&digest)) {
                    let text = format!(
                        "from Java {release} on, {} runs {} and not the plain entry, and the patch does not accept it as \
                         original: it would have no effect there",
                        jar.name, entry.path
                    );
                    findings.push(Finding::error(Rule::MultiRelease, &name, text));
                } else {
                    let text = format!(
                        "{} has {} for Java {release} and later: the patch's class takes the place of that one, too",
                        jar.name, entry.path
                    );
                    findings.push(Finding::warning(Rule::MultiRelease, &name, text));
                }
            }
        }
    }
}

fn guarded(patch: &JarContents, jar: &JarContents, package: &str, findings: &mut Vec<Finding>) {
    let named = |signers: Vec<String>| match signers.is_empty() {
        true => "nobody".to_owned(),
        false => signers.join(" and "),
    };
    let (theirs, ours) = (jar.signers(), patch.signers());
    if theirs != ours {
        let text = format!(
            "the package {package} of {} is signed by {}, the patch by {}: only the Java agent and --patch-module can \
             apply it, unless it is signed with the same certificate",
            jar.name,
            named(theirs),
            named(ours)
        );
        findings.push(Finding::warning(Rule::Signed, package, text));
    }
    if jar.manifest().seals(package) {
        let text = format!(
            "{} seals the package {package}: a patch beside it on the class path is refused by the JVM; only the Java \
             agent can apply it",
            jar.name
        );
        findings.push(Finding::warning(Rule::Sealed, package, text));
    }
}
