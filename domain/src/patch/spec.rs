//! A patch as its manifest describes it. Data only.

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    id::Version,
    reason::{Reason, ReasonCode},
};

/// The highest patch number.
pub const MAX_NUMBER: u32 = 999_999;

/// An issue that a patch or a base release fixes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fix {
    /// The issue, e.g. `CVE-2021-44228` or `ACME-1234`.
    pub id: String,
    /// One line for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
}

/// Which base releases a patch is for. What decides is the digests of the classes; this is what people mean.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRange {
    /// Base versions by name; any where empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub versions: Vec<Version>,
    /// The lowest base sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_sequence: Option<u64>,
    /// The highest base sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_sequence: Option<u64>,
}

impl BaseRange {
    /// Whether a base release is in the range.
    #[must_use]
    pub fn contains(&self, version: &Version, sequence: u64) -> bool {
        (self.versions.is_empty() || self.versions.contains(version))
            && self.from_sequence.is_none_or(|from| sequence >= from)
            && self.to_sequence.is_none_or(|to| sequence <= to)
    }

    /// For people: `1.4.0, 1.4.1; sequence 7 to 12`, or `any base`.
    #[must_use]
    pub fn describe(&self) -> String {
        let versions = self.versions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let sequences = match (self.from_sequence, self.to_sequence) {
            (None, None) => String::new(),
            (Some(from), None) => format!("sequence {from} or later"),
            (None, Some(to)) => format!("sequence {to} or earlier"),
            (Some(from), Some(to)) => format!("sequence {from} to {to}"),
        };
        match (versions.is_empty(), sequences.is_empty()) {
            (true, true) => "any base".to_owned(),
            (false, false) => format!("{versions}; {sequences}"),
            _ => versions + &sequences,
        }
    }

    /// Whether it leaves the base open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        *self == Self::default()
    }
}

/// One class that a patch ships.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchedClass {
    /// Its binary name, with dots: `com.acme.Order$Line`.
    pub name: String,
    /// SHA-256 of the original class files that it may replace; empty for a class that no base has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepts: Vec<Digest>,
    /// SHA-256 of the class file it was built from: one of `accepts`, or an earlier patch's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Digest>,
    /// SHA-256 of the class file that the patch ships.
    pub patched: Digest,
    /// The class file's major version, e.g. 52 for Java 8.
    pub major: u16,
}

impl PatchedClass {
    /// Whether no base has it.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.accepts.is_empty()
    }
}

/// A file in a patch that is no class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchedResource {
    /// Its path in the jar.
    pub name: String,
    /// SHA-256.
    pub digest: Digest,
}

/// Whether a patch can take effect in a running JVM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// It changes nothing but bodies of methods.
    pub possible: bool,
    /// What stands in the way, one sentence each, e.g. `com.acme.Order adds the method total()`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// The `patch` section of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchSpec {
    /// Its number: 1 to [`MAX_NUMBER`]; the higher one takes precedence.
    pub number: u32,
    /// The base releases it is for.
    #[serde(default)]
    pub base: BaseRange,
    /// What it fixes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fixes: Vec<Fix>,
    /// The classes it ships, by name. Never empty unless there are resources.
    #[serde(default)]
    pub classes: Vec<PatchedClass>,
    /// Classes that its build no longer has, though the classes that it was built from had them. They stay where they
    /// are, unused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
    /// What else it ships.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<PatchedResource>,
    /// Patches that have to be in the stack as well, by number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<u32>,
    /// Patches that it makes superfluous, by number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub supersedes: Vec<u32>,
    /// The JPMS module of its classes, where they are in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Whether it can take effect in a running JVM.
    pub live: Live,
    /// It takes effect by a restart only, whatever `live` says: its publisher says so.
    #[serde(default)]
    pub needs_restart: bool,
}

impl PatchSpec {
    /// The class of that name, if it ships it.
    #[must_use]
    pub fn class(&self, name: &str) -> Option<&PatchedClass> {
        self.classes.iter().find(|class| class.name == name)
    }

    /// Whether it can take effect in a running JVM, as its publisher says.
    ///
    /// # Errors
    /// [`ReasonCode::LiveImpossible`] with the first of what stands in the way.
    pub fn takes_live(&self) -> Result<(), Reason> {
        let problem = match (&self.live.problems[..], self.needs_restart) {
            (_, true) => "its publisher says that it needs a restart".to_owned(),
            _ if self.live.possible && self.resources.is_empty() => return Ok(()),
            ([], false) if self.live.possible => {
                "it ships files that are no classes, which the application may have read already".to_owned()
            }
            ([], false) => "it changes more than bodies of methods".to_owned(),
            ([only], false) => only.clone(),
            ([first, more @ ..], false) => format!("{first}, and {} more such changes", more.len()),
        };
        Err(Reason::new(ReasonCode::LiveImpossible).with("number", self.number).with("problem", problem))
    }

    /// The highest class-file major version in it; 0 where it has no class.
    #[must_use]
    pub fn major(&self) -> u16 {
        self.classes.iter().map(|class| class.major).max().unwrap_or(0)
    }
}
