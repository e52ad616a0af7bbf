//! One component: what it is, how it is run, when it counts as healthy, how long each phase may take.
//!
//! Types and their defaults only; what may not be combined is in `check.rs`.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use upfleet_domain::{id::ComponentId, release::Kind};

use super::{
    files::{FilesConfig, ReloadConfig},
    itself::GuardConfig,
    jvm::JvmConfig,
    probe::ProbeConfig,
    socket::SocketConfig,
    units::{optional_size, size, span},
};

/// A `[[component]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComponentConfig {
    /// The name releases use.
    pub name: ComponentId,
    /// The file it owns, or the directory where `kind` is `files`. Absolute.
    pub path: PathBuf,
    /// The kind of release it takes.
    #[serde(default = "binary")]
    pub kind: Kind,
    /// How many earlier complete states are kept beside the current one: 1 to 100.
    #[serde(default = "three")]
    pub keep: u32,
    /// Whether an order may take it to a lower sequence.
    #[serde(default)]
    pub allow_downgrade: bool,
    /// Whether a person at the node may apply releases from a file, by `upfleet-agent apply`.
    #[serde(default)]
    pub allow_local_apply: bool,
    /// Components that may not be upgraded at the same time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclusive_with: Vec<ComponentId>,
    /// Permissions of a first install; later ones keep those of the file that is there.
    #[serde(default)]
    pub mode: FileMode,
    /// Owner of a first install, by name or number; the agent's own user where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Group of a first install, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// How its directory is switched; only where `kind` is `files`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<FilesConfig>,
    /// How those who use its files are told that they have changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload: Option<ReloadConfig>,
    /// How it is run.
    #[serde(default)]
    pub run: RunConfig,
    /// What a new version is given until it has to have reported; only where `kind` is `agent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardConfig>,
    /// How patches get into its JVM; without this it takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jvm: Option<JvmConfig>,
    /// How it is probed. Empty: a supervised component has to stay up, a file has nothing to prove.
    #[serde(default, rename = "probe", skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<ProbeConfig>,
    /// When it counts as healthy.
    #[serde(default)]
    pub health: HealthConfig,
    /// How long each phase of an upgrade may take.
    #[serde(default)]
    pub timeouts: TimeoutsConfig,
}

fn binary() -> Kind {
    Kind::Binary
}

fn three() -> u32 {
    3
}

/// Permission bits, written as an octal text such as `"0755"`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FileMode(pub u32);

impl Default for FileMode {
    /// `0755`.
    fn default() -> Self {
        Self(0o755)
    }
}

impl fmt::Debug for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl Serialize for FileMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:?}"))
    }
}

impl<'de> Deserialize<'de> for FileMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // Set-user-id and its like are refused: a release must not be able to become root by its mode.
        let octal = (3..=4).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if octal && mode <= 0o777 => Ok(Self(mode)),
            _ => Err(D::Error::custom(format!(
                "`{text}` is not a file mode; write it in octal between \"0000\" and \"0777\", like \"0755\""
            ))),
        }
    }
}

/// Who runs the component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunMode {
    /// The agent, through a shim.
    Supervised,
    /// systemd, by a unit of the operator's.
    Systemd,
    /// Nobody: a file that others read.
    #[default]
    None,
}

impl RunMode {
    /// As in the file, in the inventory and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Supervised => "supervised",
            Self::Systemd => "systemd",
            Self::None => "none",
        }
    }
}

/// How a new version takes effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Activate {
    /// The old process is stopped, then the new one is started.
    #[default]
    StopThenStart,
    /// The new process is started beside the old one, on the same sockets; the old one ends once the new one is
    /// healthy.
    Handover,
}

/// A signal that asks a process to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each is the signal it names")]
pub enum StopSignal {
    #[default]
    #[serde(rename = "SIGTERM")]
    Term,
    #[serde(rename = "SIGINT")]
    Int,
    #[serde(rename = "SIGQUIT")]
    Quit,
    #[serde(rename = "SIGHUP")]
    Hup,
    #[serde(rename = "SIGUSR1")]
    Usr1,
    #[serde(rename = "SIGUSR2")]
    Usr2,
    #[serde(rename = "SIGKILL")]
    Kill,
}

impl StopSignal {
    /// The kernel's.
    #[must_use]
    pub fn signal(self) -> Signal {
        match self {
            Self::Term => Signal::TERM,
            Self::Int => Signal::INT,
            Self::Quit => Signal::QUIT,
            Self::Hup => Signal::HUP,
            Self::Usr1 => Signal::USR1,
            Self::Usr2 => Signal::USR2,
            Self::Kill => Signal::KILL,
        }
    }
}

/// Where units and their drop-ins of this machine lie, those that outlast a reboot.
const DROP_IN_DIR: &str = "/etc/systemd/system";

fn is_usual_drop_in_dir(dir: &Path) -> bool {
    dir.as_os_str() == DROP_IN_DIR
}

/// `[component.run]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Who runs it.
    pub mode: RunMode,
    /// The unit that runs it, e.g. `shop.service` or `shop@a.service`; only where `mode` is `systemd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Where the drop-in of a patched JVM's unit is written; only where `mode` is `systemd`.
    #[serde(skip_serializing_if = "is_usual_drop_in_dir")]
    pub drop_in_dir: PathBuf,
    /// Program and arguments, no shell; `{path}` stands for the component's path. Empty: the path alone.
    pub command: Vec<String>,
    /// Environment, added to a small fixed one (`PATH`, `HOME`, `LANG`, `TZ`).
    pub env: BTreeMap<String, String>,
    /// Working directory; `/` where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<PathBuf>,
    /// Asks the process to end.
    pub stop_signal: StopSignal,
    /// How long it may take to end before it is killed.
    #[serde(with = "span")]
    pub stop_timeout: Duration,
    /// How a new version takes effect.
    pub activate: Activate,
    /// Asks the old process of a handover to finish what it has begun and to end; `stop_signal` where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_signal: Option<StopSignal>,
    /// How long it may take to, before it is killed.
    #[serde(with = "span")]
    pub drain_timeout: Duration,
    /// The wait before the first restart of a process that ended by itself; doubles from there.
    #[serde(with = "span")]
    pub restart_delay: Duration,
    /// The longest wait before a restart.
    #[serde(with = "span")]
    pub restart_delay_max: Duration,
    /// The size at which the log of the component's output is rotated; one older file is kept.
    #[serde(with = "size")]
    pub log_size: u64,
    /// How much memory of its own the process, and each that it starts, may have. Beyond it the process's next
    /// request for memory is refused.
    #[serde(with = "optional_size")]
    pub memory_max: Option<u64>,
    /// Listening sockets that are opened for it and outlive its processes; only where `mode` is `supervised`.
    #[serde(rename = "socket", skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<SocketConfig>,
}

impl RunConfig {
    /// Asks the old process of a handover to finish what it has begun.
    #[must_use]
    pub fn drain_signal(&self) -> StopSignal {
        self.drain_signal.unwrap_or(self.stop_signal)
    }
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            mode: RunMode::None,
            unit: None,
            drop_in_dir: DROP_IN_DIR.into(),
            command: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
            stop_signal: StopSignal::Term,
            stop_timeout: Duration::from_secs(10),
            activate: Activate::StopThenStart,
            drain_signal: None,
            drain_timeout: Duration::from_secs(30),
            restart_delay: Duration::from_millis(250),
            restart_delay_max: Duration::from_secs(30),
            log_size: 10 << 20,
            memory_max: None,
            sockets: Vec::new(),
        }
    }
}

/// How the results of several probes are put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Require {
    /// Every probe has to pass.
    #[default]
    All,
    /// One probe that passes is enough.
    Any,
}

/// `[component.health]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthConfig {
    /// How long a new version is watched once its probes have passed.
    #[serde(with = "span")]
    pub soak: Duration,
    /// How long a new version may take until its probes pass.
    #[serde(with = "span")]
    pub start_deadline: Duration,
    /// Whether an upgrade is refused while the version in place is unhealthy. Off: a broken node may be
    /// mended by an upgrade, at the price that a broken release and a broken node look alike.
    pub require_healthy_baseline: bool,
    /// How the results of several probes are put together.
    pub require: Require,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            soak: Duration::from_secs(10),
            start_deadline: Duration::from_secs(60),
            require_healthy_baseline: true,
            require: Require::All,
        }
    }
}

/// `[component.timeouts]`: how long each phase may take before the upgrade fails or turns back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimeoutsConfig {
    /// PREFLIGHT, with its baseline probe.
    #[serde(with = "span")]
    pub preflight: Duration,
    /// FETCHING, with its retries.
    #[serde(with = "span")]
    pub fetch: Duration,
    /// VERIFYING.
    #[serde(with = "span")]
    pub verify: Duration,
    /// ACTIVATING; has to be longer than `run.stop_timeout`.
    #[serde(with = "span")]
    pub activate: Duration,
    /// ROLLING_BACK until the old process runs; has to be longer than `run.stop_timeout`.
    #[serde(with = "span")]
    pub rollback: Duration,
}

impl Default for TimeoutsConfig {
    fn default() -> Self {
        Self {
            preflight: Duration::from_secs(60),
            fetch: Duration::from_secs(60 * 60),
            verify: Duration::from_secs(10 * 60),
            activate: Duration::from_secs(2 * 60),
            rollback: Duration::from_secs(5 * 60),
        }
    }
}
