//! The nouns: mechanisms, JVMs as found, and the proof that a JVM gives. Data only.

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    reason::{Reason, ReasonCode},
    time::Time,
};

/// How patched classes get precedence over the application's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mechanism {
    /// Upfleet's Java agent, loaded at start: replaces a class by name and by the digest of its original bytes.
    JavaAgent,
    /// The class path, newest patch first, by an argument file.
    ClassPath,
    /// An empty jar in front whose manifest names the patches and the application: for `java -jar`.
    PathingJar,
    /// Spring Boot's `PropertiesLauncher` and its loader path.
    PropertiesLauncher,
    /// `--patch-module`.
    PatchModule,
    /// Retransformation in a JVM that was running already.
    Live,
}

impl Mechanism {
    /// As in the configuration and on the terminal.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::JavaAgent => "java-agent",
            Self::ClassPath => "class-path",
            Self::PathingJar => "pathing-jar",
            Self::PropertiesLauncher => "properties-launcher",
            Self::PatchModule => "patch-module",
            Self::Live => "live",
        }
    }
}

impl std::fmt::Display for Mechanism {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a patched class stands in a running JVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Not loaded yet; whoever loads it gets the patched bytes.
    Armed,
    /// Loaded, and the patched bytes are in force.
    Proved,
    /// Loaded with other bytes than the stack says.
    Old,
}

/// What a JVM says of one patched class in one class loader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassProof {
    /// Its binary name, with dots.
    pub class: String,
    /// The number of the patch whose bytes should be in force; 0 where the application's own should.
    pub number: u32,
    /// How it stands.
    pub standing: Standing,
    /// The class loader, e.g. `app` or `org.example.Loader@1b6d3586`; empty while it is armed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub loader: String,
    /// Where the loader says the class comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// SHA-256 of the bytes that the loader had found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<Digest>,
    /// SHA-256 of the bytes that should be in force.
    pub expected: Digest,
    /// How they got there.
    pub mechanism: Mechanism,
    /// Why it is old, or what else is to be known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub problem: String,
}

/// What a running JVM says is in force of a stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The process asked.
    pub pid: u32,
    /// How patches get into it.
    pub mechanism: Mechanism,
    /// Each patched class in each loader that has it.
    pub classes: Vec<ClassProof>,
    /// What may lead to old code although no class is old yet: a jar on the disk that is not the one open, a class cache.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alarms: Vec<Reason>,
    /// When it was asked.
    pub time: Time,
}

impl Proof {
    /// How many classes stand so.
    #[must_use]
    pub fn count(&self, standing: Standing) -> usize {
        self.classes.iter().filter(|class| class.standing == standing).count()
    }

    /// The first class that runs old code, as a reason.
    #[must_use]
    pub fn old(&self) -> Option<Reason> {
        let class = self.classes.iter().find(|class| class.standing == Standing::Old)?;
        let original = class.original.map_or_else(|| "unknown".to_owned(), |digest| digest.to_string());
        Some(
            Reason::new(ReasonCode::ClassOld)
                .with("class", &class.class)
                .with("loader", &class.loader)
                .with("actual", original)
                .with("expected", class.expected)
                .with("problem", &class.problem),
        )
    }
}

/// Whether a JVM can be attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attachable {
    /// It listens already, or will when asked.
    Yes,
    /// It can't, and why.
    No(String),
}

/// A JVM that runs on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jvm {
    /// Its process id as the node sees it.
    pub pid: u32,
    /// Its process id in its own namespace, where that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner_pid: Option<u32>,
    /// When it started.
    pub started: Time,
    /// The user it runs as.
    pub uid: u32,
    /// Where the JDK lies, in the JVM's own file system.
    pub java_home: String,
    /// The JDK's version, e.g. `17.0.15`; empty where it can't be told.
    #[serde(default)]
    pub java_version: String,
    /// Its vendor, e.g. `Eclipse Adoptium`; empty where it can't be told.
    #[serde(default)]
    pub vendor: String,
    /// The main class, module or jar, as on the command line.
    pub main: String,
    /// The class path as given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub class_path: Vec<String>,
    /// Java agents on the command line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub java_agents: Vec<String>,
    /// Whether it can be attached to.
    pub attachable: Attachable,
    /// Whether it runs in a container (another PID or mount namespace).
    #[serde(default)]
    pub container: bool,
    /// The component it belongs to, where it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
}
