//! What depends on the JVM: class-file versions, and names that belong to the platform.

use super::Context;
use crate::patch::{
    finding::{Finding, Rule},
    java_of,
};

/// Packages that no class loader but the platform's may define.
const FORBIDDEN: &str = "java.";
/// Packages that are usually the platform's: a class of theirs on the class path is not looked at.
const RESERVED: [&str; 7] =
    ["javax.", "jdk.", "sun.", "com.sun.", "jakarta.", "org.w3c.dom.", "org.xml.sax."];
/// `minor_version` of class files that use preview features.
const PREVIEW: u16 = u16::MAX;

pub(super) fn look(context: &Context<'_>, findings: &mut Vec<Finding>) {
    for (name, class) in &context.patched {
        if name.starts_with(FORBIDDEN) {
            let text = format!("{name} is a class of the platform, which no patch may define");
            findings.push(Finding::error(Rule::Platform, name, text));
        } else if !context.current.contains_key(name)
            && RESERVED.iter().any(|prefix| name.starts_with(prefix))
        {
            let text = format!(
                "{name} is not in the application and may be a class of the platform: then the patch is not looked at"
            );
            findings.push(Finding::warning(Rule::Platform, name, text));
        }
        let needed = java_of(class.major);
        if let Some(java) = context.subject.java.filter(|java| needed > *java) {
            let text = format!(
                "{name} needs Java {needed} (major version {}), the oldest JVM that the patch is for is Java {java}: \
                 compile with --release {java}",
                class.major
            );
            findings.push(Finding::error(Rule::ClassVersion, name, text));
        } else if let Some(old) = context.current.get(name).filter(|old| old.file.major < class.major) {
            let text = format!(
                "{name} needs Java {needed}, the class that it replaces Java {}: an older JVM does not load it",
                java_of(old.file.major)
            );
            findings.push(Finding::warning(Rule::ClassVersion, name, text));
        }
        if class.minor == PREVIEW && class.major > 55 {
            let text =
                format!("{name} uses preview features: only Java {needed} with --enable-preview loads it");
            findings.push(Finding::warning(Rule::ClassVersion, name, text));
        }
    }
}
