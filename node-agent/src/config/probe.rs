//! One probe as it is configured. How each is carried out is in `crate::probe`.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::units::span;

/// What stands for the id of the process that is judged, in the command of an exec probe.
pub const PID: &str = "{pid}";

/// A `[[component.probe]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Flat")]
pub struct ProbeConfig {
    /// What is asked.
    #[serde(flatten)]
    pub kind: ProbeKind,
    /// From the end of one try to the beginning of the next.
    #[serde(with = "span")]
    pub interval: Duration,
    /// How long one try may take.
    #[serde(with = "span")]
    pub timeout: Duration,
    /// How many tries in a row have to pass: 1 or more.
    pub successes: u32,
    /// How many tries in a row have to fail: 1 or more.
    pub failures: u32,
}

impl ProbeConfig {
    /// A probe of that kind with the usual timing.
    #[must_use]
    pub fn new(kind: ProbeKind) -> Self {
        Self {
            kind,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(2),
            successes: 2,
            failures: 3,
        }
    }
}

/// What a probe asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ProbeKind {
    /// The process is up.
    Process,
    /// Its unit is active, and is not restarted again and again.
    Systemd,
    /// The process itself has said `READY=1`, and has not said `STOPPING=1`.
    Notify,
    /// A program ends with status 0.
    Exec {
        /// Program and arguments, no shell; `{path}` stands for the component's path, `{pid}` for the process that is
        /// judged.
        command: Vec<String>,
    },
    /// An HTTP GET answers as expected.
    Http {
        /// `http://host:port/path`; neither redirects nor proxies are followed.
        url: String,
        /// The status codes that pass.
        expect: StatusRange,
        /// A text the answer's first 64 KiB have to hold.
        #[serde(skip_serializing_if = "Option::is_none")]
        body_contains: Option<String>,
    },
    /// A TCP connection is accepted.
    Tcp {
        /// `host:port`.
        address: String,
    },
    /// `grpc.health.v1.Health/Check` answers SERVING, over plaintext HTTP/2.
    Grpc {
        /// `host:port`.
        address: String,
        /// The service asked for; empty for the server as a whole.
        service: String,
    },
}

impl ProbeKind {
    /// As in the file.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Systemd => "systemd",
            Self::Notify => "notify",
            Self::Exec { .. } => "exec",
            Self::Http { .. } => "http",
            Self::Tcp { .. } => "tcp",
            Self::Grpc { .. } => "grpc",
        }
    }
}

/// HTTP status codes, written `"200"` or `"200-299"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRange {
    /// The first that passes.
    pub from: u16,
    /// The last that passes.
    pub to: u16,
}

impl Default for StatusRange {
    /// `200-299`.
    fn default() -> Self {
        Self { from: 200, to: 299 }
    }
}

impl StatusRange {
    /// Whether `code` passes.
    #[must_use]
    pub fn contains(self, code: u16) -> bool {
        (self.from..=self.to).contains(&code)
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.from == self.to { write!(f, "{}", self.from) } else { write!(f, "{}-{}", self.from, self.to) }
    }
}

impl Serialize for StatusRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (from, to) = text.split_once('-').unwrap_or((&text, &text));
        match (from.trim().parse::<u16>(), to.trim().parse::<u16>()) {
            (Ok(from), Ok(to)) if 100 <= from && from <= to && to <= 599 => Ok(Self { from, to }),
            _ => Err(D::Error::custom(format!(
                "`{text}` is not a range of HTTP status codes; write it like \"200\" or \"200-299\""
            ))),
        }
    }
}

/// The table as it is written. One flat struct, because only so can a wrong key be named as wrong.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Flat {
    r#type: Type,
    command: Option<Vec<String>>,
    url: Option<String>,
    expect: Option<StatusRange>,
    body_contains: Option<String>,
    address: Option<String>,
    service: Option<String>,
    #[serde(default, with = "optional_span")]
    interval: Option<Duration>,
    #[serde(default, with = "optional_span")]
    timeout: Option<Duration>,
    successes: Option<u32>,
    failures: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Type {
    Process,
    Systemd,
    Notify,
    Exec,
    Http,
    Tcp,
    Grpc,
}

mod optional_span {
    use super::{Deserializer, Duration, span};

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        span::deserialize(deserializer).map(Some)
    }
}

impl TryFrom<Flat> for ProbeConfig {
    type Error = String;

    fn try_from(mut flat: Flat) -> Result<Self, String> {
        let kind = match flat.r#type {
            Type::Process => ProbeKind::Process,
            Type::Systemd => ProbeKind::Systemd,
            Type::Notify => ProbeKind::Notify,
            Type::Exec => ProbeKind::Exec { command: needed(flat.command.take(), "exec", "command")? },
            Type::Http => ProbeKind::Http {
                url: needed(flat.url.take(), "http", "url")?,
                expect: flat.expect.take().unwrap_or_default(),
                body_contains: flat.body_contains.take(),
            },
            Type::Tcp => ProbeKind::Tcp { address: needed(flat.address.take(), "tcp", "address")? },
            Type::Grpc => ProbeKind::Grpc {
                address: needed(flat.address.take(), "grpc", "address")?,
                service: flat.service.take().unwrap_or_default(),
            },
        };
        flat.refuse_the_rest(&kind)?;
        let usual = Self::new(kind);
        Ok(Self {
            interval: flat.interval.unwrap_or(usual.interval),
            timeout: flat.timeout.unwrap_or(usual.timeout),
            successes: flat.successes.unwrap_or(usual.successes),
            failures: flat.failures.unwrap_or(usual.failures),
            kind: usual.kind,
        })
    }
}

impl Flat {
    /// Whatever was not taken by the probe's kind does not belong to it.
    fn refuse_the_rest(&self, kind: &ProbeKind) -> Result<(), String> {
        let rest = [
            ("command", self.command.is_some()),
            ("url", self.url.is_some()),
            ("expect", self.expect.is_some()),
            ("body_contains", self.body_contains.is_some()),
            ("address", self.address.is_some()),
            ("service", self.service.is_some()),
        ];
        match rest.iter().find(|(_, set)| *set) {
            Some((key, _)) => Err(format!("`{key}` does not belong to a probe of type `{}`", kind.name())),
            None => Ok(()),
        }
    }
}

fn needed<T>(value: Option<T>, kind: &str, key: &str) -> Result<T, String> {
    value.ok_or_else(|| format!("a probe of type `{kind}` needs `{key}`"))
}
