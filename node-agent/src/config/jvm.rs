//! `[component.jvm]`: how patches may get into a component's JVM. Types and their defaults only; what may not be
//! combined is in `check.rs`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use upfleet_domain::jvm::Mechanism;

/// The environment variable that java reads further options from, since Java 9.
const OPTIONS_VARIABLE: &str = "JDK_JAVA_OPTIONS";

/// Which mechanism the operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MechanismChoice {
    /// The one that fits how the JVM is started.
    #[default]
    Auto,
    /// Upfleet's Java agent, loaded at start.
    JavaAgent,
    /// The class path by an argument file.
    ClassPath,
    /// An empty jar in front whose manifest names the patches and the application.
    PathingJar,
    /// Spring Boot's `PropertiesLauncher`.
    PropertiesLauncher,
    /// `--patch-module`.
    PatchModule,
}

impl MechanismChoice {
    /// The mechanism; `None` for the one that fits.
    #[must_use]
    pub fn mechanism(self) -> Option<Mechanism> {
        match self {
            Self::Auto => None,
            Self::JavaAgent => Some(Mechanism::JavaAgent),
            Self::ClassPath => Some(Mechanism::ClassPath),
            Self::PathingJar => Some(Mechanism::PathingJar),
            Self::PropertiesLauncher => Some(Mechanism::PropertiesLauncher),
            Self::PatchModule => Some(Mechanism::PatchModule),
        }
    }
}

/// Whether Java agents may be used in a JVM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JavaAgents {
    /// At its start and while it runs.
    #[default]
    Allowed,
    /// Never; what is in force is then told by open files and look-ups.
    Forbidden,
}

/// What to do about options that let a JVM run classes from a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Caches {
    /// A patch is refused.
    #[default]
    Refuse,
    /// They are left out while the component is patched.
    Strip,
}

/// `[component.jvm]`. Where it is present, the component takes patches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JvmConfig {
    /// How patched classes get precedence.
    pub mechanism: MechanismChoice,
    /// Whether Java agents may be used.
    pub java_agents: JavaAgents,
    /// Whether a running JVM may be patched.
    pub live: bool,
    /// The module of the patched classes, for `--patch-module`, where the command does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// What to do about class caches.
    pub caches: Caches,
    /// For commands that are scripts: the variable that options for java go to. Appended, never replaced.
    pub options_variable: String,
    /// Jars and directories of the application's class path that the command does not say. Absolute.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub class_path: Vec<PathBuf>,
}

impl Default for JvmConfig {
    fn default() -> Self {
        Self {
            mechanism: MechanismChoice::Auto,
            java_agents: JavaAgents::Allowed,
            live: true,
            module: None,
            caches: Caches::Refuse,
            options_variable: OPTIONS_VARIABLE.to_owned(),
            class_path: Vec::new(),
        }
    }
}
