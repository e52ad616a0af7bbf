//! What is to be said of a patch before it is rolled out.

use std::fmt;

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing.
    Warning,
    /// It would not work.
    Error,
}

/// What was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Rule {
    /// A file that is no class file, or lies where its name does not belong.
    ClassFile,
    /// A class that should replace one, where no base has it.
    NotInBase,
    /// A class without the inner classes that it was compiled with, or the other way round.
    SplitFamily,
    /// A member that other classes link against, and that the patch removes or changes.
    Linkage,
    /// A compile-time constant that other classes hold a copy of.
    InlinedConstant,
    /// A file of which all copies on the class path count.
    ServiceDoubled,
    /// Entries for later Java versions.
    MultiRelease,
    /// A module's description.
    ModuleInfo,
    /// A package of signed classes.
    Signed,
    /// A sealed package.
    Sealed,
    /// Class files that the target JVM does not read.
    ClassVersion,
    /// A class of the platform itself.
    Platform,
    /// Nothing but debug information differs.
    DebugOnly,
    /// A class that the new build no longer has.
    Removed,
    /// A file that differs and is not in the patch.
    Resource,
    /// Something that a running JVM would not take.
    Live,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked for.
    pub rule: Rule,
    /// The class or file that it is about.
    pub subject: String,
    /// A sentence for people, which says what to do where something can be done.
    pub text: String,
}

impl Finding {
    /// One that stops the patch.
    #[must_use]
    pub fn error(rule: Rule, subject: &str, text: impl Into<String>) -> Self {
        Self { severity: Severity::Error, rule, subject: subject.to_owned(), text: text.into() }
    }

    /// One to think about.
    #[must_use]
    pub fn warning(rule: Rule, subject: &str, text: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, rule, subject: subject.to_owned(), text: text.into() }
    }
}

impl Rule {
    /// As on the terminal and in JSON, e.g. `SPLIT_FAMILY`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClassFile => "CLASS_FILE",
            Self::NotInBase => "NOT_IN_BASE",
            Self::SplitFamily => "SPLIT_FAMILY",
            Self::Linkage => "LINKAGE",
            Self::InlinedConstant => "INLINED_CONSTANT",
            Self::ServiceDoubled => "SERVICE_DOUBLED",
            Self::MultiRelease => "MULTI_RELEASE",
            Self::ModuleInfo => "MODULE_INFO",
            Self::Signed => "SIGNED",
            Self::Sealed => "SEALED",
            Self::ClassVersion => "CLASS_VERSION",
            Self::Platform => "PLATFORM",
            Self::DebugOnly => "DEBUG_ONLY",
            Self::Removed => "REMOVED",
            Self::Resource => "RESOURCE",
            Self::Live => "LIVE",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
