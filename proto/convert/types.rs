//! The nouns that several services share: digests, times, platforms, states and reasons.

use std::time::Duration;

use upfleet_domain::{
    digest::{Digest, Md5Digest},
    patch::{Fix, MAX_NUMBER},
    reason::{Reason, ReasonCode},
    release::Platform,
    state::{Base, ComponentState, Layer, ReleaseRef},
    time::Time,
    upgrade::{Evidence, Outcome, Phase, UpgradeState, interruption::Interruption},
};

use super::{Result, all, each, field, invalid, optional, parse, required};
use crate::v1;

/// A point in time for the wire.
#[must_use]
pub fn timestamp(time: Time) -> pbjson_types::Timestamp {
    let nanos = i32::try_from(time.0.rem_euclid(1000) * 1_000_000).expect("less than a second");
    pbjson_types::Timestamp { seconds: time.0.div_euclid(1000), nanos }
}

/// A point in time from the wire, rounded down to milliseconds; saturates.
#[must_use]
pub fn time(timestamp: &pbjson_types::Timestamp) -> Time {
    Time(timestamp.seconds.saturating_mul(1000).saturating_add(i64::from(timestamp.nanos / 1_000_000)))
}

/// A span for the wire; saturates.
#[must_use]
pub fn duration(span: Duration) -> pbjson_types::Duration {
    let seconds = i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    pbjson_types::Duration { seconds, nanos: i32::try_from(span.subsec_nanos()).expect("less than a second") }
}

/// A span from the wire.
///
/// # Errors
/// Where it is negative.
pub fn span(duration: &pbjson_types::Duration, field: &str) -> Result<Duration> {
    let negative = |_| invalid(field, "it is negative");
    let seconds = u64::try_from(duration.seconds).map_err(negative)?;
    let nanos = u32::try_from(duration.nanos).map_err(negative)?;
    Ok(Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanos.into())))
}

impl From<&Digest> for v1::Digest {
    fn from(digest: &Digest) -> Self {
        let value = digest.0.to_vec().into();
        Self { algorithm: v1::DigestAlgorithm::Sha256.into(), value }
    }
}

impl From<&Md5Digest> for v1::Digest {
    fn from(digest: &Md5Digest) -> Self {
        let value = digest.0.to_vec().into();
        Self { algorithm: v1::DigestAlgorithm::Md5.into(), value }
    }
}

impl TryFrom<v1::Digest> for Digest {
    type Error = Reason;

    fn try_from(wire: v1::Digest) -> Result<Self> {
        if wire.algorithm() != v1::DigestAlgorithm::Sha256 {
            return Err(invalid("algorithm", "it must be SHA-256"));
        }
        Self::from_slice(&wire.value).ok_or_else(|| invalid("value", "SHA-256 has 32 bytes"))
    }
}

impl TryFrom<v1::Digest> for Md5Digest {
    type Error = Reason;

    fn try_from(wire: v1::Digest) -> Result<Self> {
        if wire.algorithm() != v1::DigestAlgorithm::Md5 {
            return Err(invalid("algorithm", "it must be MD5"));
        }
        Self::from_slice(&wire.value).ok_or_else(|| invalid("value", "MD5 has 16 bytes"))
    }
}

impl From<&Platform> for v1::Platform {
    fn from(platform: &Platform) -> Self {
        Self { os: platform.os.clone(), arch: platform.arch.clone() }
    }
}

impl TryFrom<v1::Platform> for Platform {
    type Error = Reason;

    fn try_from(wire: v1::Platform) -> Result<Self> {
        for (text, name) in [(&wire.os, "os"), (&wire.arch, "arch")] {
            if text.is_empty()
                || text.len() > 32
                || !text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            {
                return Err(invalid(name, "use 1 to 32 letters, digits or `_`"));
            }
        }
        Ok(Self { os: wire.os, arch: wire.arch })
    }
}

impl From<&ReleaseRef> for v1::ReleaseRef {
    fn from(release: &ReleaseRef) -> Self {
        Self {
            component: release.component.to_string(),
            version: release.version.to_string(),
            sequence: release.sequence,
            manifest_digest: Some((&release.manifest).into()),
            artifact_digest: Some((&release.artifact).into()),
        }
    }
}

impl TryFrom<v1::ReleaseRef> for ReleaseRef {
    type Error = Reason;

    fn try_from(wire: v1::ReleaseRef) -> Result<Self> {
        Ok(Self {
            component: parse(&wire.component, "component")?,
            version: parse(&wire.version, "version")?,
            sequence: wire.sequence,
            manifest: field(wire.manifest_digest, "manifest_digest")?,
            artifact: field(wire.artifact_digest, "artifact_digest")?,
        })
    }
}

impl From<&Fix> for v1::Fix {
    fn from(fix: &Fix) -> Self {
        Self { id: fix.id.clone(), text: fix.text.clone() }
    }
}

impl From<&Layer> for v1::Layer {
    fn from(layer: &Layer) -> Self {
        Self {
            number: layer.number,
            release: Some((&layer.release).into()),
            retired: layer.retired,
            contains: layer.contains.clone(),
        }
    }
}

impl TryFrom<v1::Layer> for Layer {
    type Error = Reason;

    fn try_from(wire: v1::Layer) -> Result<Self> {
        if wire.number == 0 || wire.number > MAX_NUMBER {
            return Err(invalid("number", format!("patch numbers are 1 to {MAX_NUMBER}")));
        }
        Ok(Self {
            number: wire.number,
            release: field(wire.release, "release")?,
            retired: wire.retired,
            contains: wire.contains,
        })
    }
}

impl From<&ComponentState> for v1::ComponentState {
    fn from(state: &ComponentState) -> Self {
        use v1::component_state::Base as Wire;
        let base = match &state.base {
            Base::Absent => Wire::Absent(v1::AbsentBase {}),
            Base::Release(release) => Wire::Release(release.into()),
            Base::Unmanaged { digest } => Wire::Unmanaged(v1::UnmanagedBase { digest: Some(digest.into()) }),
        };
        Self { base: Some(base), layers: all(&state.layers) }
    }
}

impl TryFrom<v1::ComponentState> for ComponentState {
    type Error = Reason;

    fn try_from(wire: v1::ComponentState) -> Result<Self> {
        use v1::component_state::Base as Wire;
        let base = match required(wire.base, "base")? {
            Wire::Absent(_) => Base::Absent,
            Wire::Release(release) => Base::Release(field(Some(release), "release")?),
            Wire::Unmanaged(unmanaged) => {
                Base::Unmanaged { digest: field(unmanaged.digest, "unmanaged.digest")? }
            }
        };
        Ok(Self { base, layers: each(wire.layers, "layers")? })
    }
}

impl From<&Reason> for v1::Reason {
    fn from(reason: &Reason) -> Self {
        Self {
            code: reason.code.to_string(),
            message: reason.message(),
            metadata: reason.metadata.clone(),
            since_time: reason.since.map(timestamp),
            deadline_time: reason.deadline.map(timestamp),
            next_actor: reason.code.actor().as_str().to_owned(),
        }
    }
}

impl TryFrom<v1::Reason> for Reason {
    type Error = Reason;

    /// A code of a later version becomes [`ReasonCode::Other`], which keeps the sentence: a peer that is newer
    /// must not make a report unreadable.
    fn try_from(wire: v1::Reason) -> Result<Self> {
        if wire.code.is_empty() {
            return Err(invalid("code", "it is required"));
        }
        let mut reason = match wire.code.parse::<ReasonCode>() {
            Ok(code) => Self { metadata: wire.metadata, ..Self::new(code) },
            Err(()) => Self { metadata: wire.metadata, ..Self::new(ReasonCode::Other) }
                .with("code", &wire.code)
                .with("message", &wire.message),
        };
        reason.since = wire.since_time.as_ref().map(time);
        reason.deadline = wire.deadline_time.as_ref().map(time);
        Ok(reason)
    }
}

impl From<UpgradeState> for v1::UpgradeState {
    fn from(state: UpgradeState) -> Self {
        let name = format!("UPGRADE_STATE_{}", state.as_str());
        Self::from_str_name(&name).expect("a test walks all phases and outcomes")
    }
}

/// An upgrade's state from the wire.
///
/// # Errors
/// Where the number is unset or of a later version.
pub fn upgrade_state(wire: i32, field: &str) -> Result<UpgradeState> {
    let unknown = || invalid(field, format!("{wire} is no state of an upgrade"));
    let name = v1::UpgradeState::try_from(wire).map_err(|_| unknown())?.as_str_name();
    let name = name.trim_start_matches("UPGRADE_STATE_");
    let phase =
        Phase::ALL.iter().find(|phase| phase.as_str() == name).map(|phase| UpgradeState::Active(*phase));
    let outcome = || Outcome::ALL.iter().find(|o| o.as_str() == name).map(|o| UpgradeState::Ended(*o));
    phase.or_else(outcome).ok_or_else(unknown)
}

impl From<&Interruption> for v1::Interruption {
    fn from(interruption: &Interruption) -> Self {
        Self {
            handed_over: interruption.handed_over,
            down: Some(duration(interruption.down())),
            why: interruption.why.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<v1::Interruption> for Interruption {
    type Error = Reason;

    fn try_from(wire: v1::Interruption) -> Result<Self> {
        let down = wire.down.map_or(Ok(Duration::ZERO), |down| span(&down, "down"))?;
        Ok(Self {
            handed_over: wire.handed_over,
            down_ms: u64::try_from(down.as_millis()).unwrap_or(u64::MAX),
            why: optional(wire.why, "why")?,
        })
    }
}

impl From<&Evidence> for v1::Evidence {
    fn from(evidence: &Evidence) -> Self {
        Self {
            exit: evidence.exit.clone(),
            lines: evidence.lines.clone(),
            probe_results: evidence.probe_results.clone(),
        }
    }
}

impl From<v1::Evidence> for Evidence {
    fn from(wire: v1::Evidence) -> Self {
        Self { exit: wire.exit, lines: wire.lines, probe_results: wire.probe_results }
    }
}
