//! The agent's configuration: `agent.toml`, and the fragments in `conf.d/*.toml` beside it.
//!
//! This is the boundary of what the fleet may do on a node: which components there are, which path each
//! owns, how it is run and probed. The types are plain, already checked data; nothing here touches a
//! component, and nothing that comes over the network ever ends up in them.

mod check;
mod component;
mod files;
mod itself;
mod jvm;
mod load;
mod probe;
mod socket;
mod unit;
mod units;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use upfleet_domain::id::ComponentId;

pub use component::{
    Activate, ComponentConfig, FileMode, HealthConfig, Require, RunConfig, RunMode, StopSignal,
    TimeoutsConfig,
};
pub use files::{FilesConfig, ReloadConfig, ReloadSignal, SwapMode};
pub use itself::GuardConfig;
pub use jvm::{Caches, JavaAgents, JvmConfig, MechanismChoice};
pub use load::{ConfigError, Problem, check_config};
pub use probe::{PID, ProbeConfig, ProbeKind, StatusRange};
pub use socket::{Listen, SocketConfig};

/// Where the configuration lies unless a flag says otherwise.
pub const DEFAULT_DIR: &str = "/etc/upfleet-agent";
/// The main file's name.
pub const MAIN_FILE: &str = "agent.toml";
/// The directory of fragments beside it.
pub const FRAGMENT_DIR: &str = "conf.d";

/// All that the agent is told by the files on its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Journals, identity, spool. Absolute.
    pub state_dir: PathBuf,
    /// Sockets of the shims and of the agent itself. Absolute.
    pub run_dir: PathBuf,
    /// The controller; absent until the node is enrolled.
    pub controller: Option<ControllerConfig>,
    /// How artifacts are fetched.
    pub fetch: FetchConfig,
    /// The components, in the order of the files. Names and paths are unique.
    pub components: Vec<ComponentConfig>,
}

impl Config {
    /// Reads and checks the configuration in `dir`.
    ///
    /// # Errors
    /// Every [`Problem`] that was found, not only the first.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        load::load(dir)
    }

    /// The component of that name.
    #[must_use]
    pub fn component(&self, name: &ComponentId) -> Option<&ComponentConfig> {
        self.components.iter().find(|component| component.name == *name)
    }
}

/// The controller, as `upfleet-agent enroll` writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerConfig {
    /// `host:port` of the controller's API.
    pub address: String,
    /// The name the server's certificate must carry; the address's host where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

impl ControllerConfig {
    /// The name the server's certificate must carry.
    #[must_use]
    pub fn expected_name(&self) -> &str {
        let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
        self.server_name.as_deref().unwrap_or(host.trim_start_matches('[').trim_end_matches(']'))
    }
}

/// How artifacts are fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FetchConfig {
    /// Bytes per second over all downloads of the agent; no limit where it is left out.
    #[serde(with = "units::optional_size")]
    pub rate_limit: Option<u64>,
    /// Hosts that manifests may name as sources, `host` or `*.domain`. Empty: every public host.
    pub allowed_hosts: Vec<String>,
    /// An HTTP proxy for sources, `http://host:port`.
    #[serde(with = "units::optional_text")]
    pub proxy: Option<String>,
    /// A PEM file of further certificate authorities for sources.
    #[serde(with = "units::optional_text")]
    pub extra_ca: Option<PathBuf>,
    /// Whether sources may lie on loopback addresses. For tests and development.
    pub allow_loopback: bool,
}

#[cfg(test)]
mod tests;
