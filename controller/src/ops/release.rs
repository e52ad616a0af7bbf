//! Releases: published as verbatim bytes, yanked, and taken out of quarantine.

use upfleet_domain::{
    digest::Digest,
    id::{ComponentId, Version},
    reason::{Reason, ReasonCode},
    release::{ArtifactRef, Kind, parse_manifest},
};

use super::{Once, Operations, audit, once};
use crate::{
    auth::Principal,
    failure::internal,
    store::{Change, Page, ReleaseRecord, Rows, Yank},
};

/// The most and the largest signatures that are kept beside a manifest.
const MAX_SIGNATURES: usize = 16;
const MAX_SIGNATURE_BYTES: usize = 16 * 1024;

/// A release with what is shown of it.
#[derive(Clone, Debug)]
pub struct ReleaseView {
    /// Its record.
    pub release: ReleaseRecord,
    /// Its artifacts that are quarantined.
    pub quarantined: Vec<Digest>,
}

fn missing(component: &ComponentId, version: &Version) -> Reason {
    let name = format!("{component}@{version}");
    Reason::new(ReasonCode::NotFound).with("what", "release").with("name", name)
}

impl Operations {
    /// Publishes a manifest as it is.
    ///
    /// # Errors
    /// `MANIFEST_INVALID`, `ARTIFACT_MISSING`, `ALREADY_EXISTS`, `SEQUENCE_TAKEN`, `NUMBER_TAKEN`, or what the store
    /// says.
    pub async fn create_release(
        &self,
        principal: &Principal,
        manifest: Vec<u8>,
        signatures: Vec<Vec<u8>>,
        validate_only: bool,
        once: Option<&Once>,
    ) -> Result<ReleaseView, Reason> {
        if signatures.len() > MAX_SIGNATURES || signatures.iter().any(|s| s.len() > MAX_SIGNATURE_BYTES) {
            return Err(Reason::new(ReasonCode::LimitExceeded)
                .with("what", "the signatures")
                .with("limit", "16 of 16 KiB each"));
        }
        let parsed = parse_manifest(&manifest)?;
        if let Some(once) = once
            && let Some(first) = once.replay::<(ComponentId, Version)>(self.store.as_ref(), principal).await?
        {
            return self.release(&first.0, &first.1).await;
        }
        for artifact in &parsed.artifacts {
            self.available(artifact).await?;
        }
        let now = self.clock.now();
        let record = ReleaseRecord {
            component: parsed.component.clone(),
            version: parsed.version.clone(),
            sequence: parsed.sequence,
            digest: Digest::of(&manifest),
            manifest,
            signatures,
            kind: parsed.kind,
            patch_number: parsed.patch.as_ref().map(|patch| patch.number),
            fixes: parsed.patch.map_or(parsed.fixes, |patch| patch.fixes),
            notes: parsed.notes,
            artifacts: parsed.artifacts,
            created: now,
            creator: principal.to_string(),
            yanked: None,
        };
        if validate_only {
            self.could_create(&record).await?;
            return self.release_view(record).await;
        }
        let object = format!("releases/{}", record.name());
        let entry = audit(&principal.to_string(), "release.create", &object, now)
            .after(serde_json::json!({
                "sequence": record.sequence, "manifest": record.digest, "kind": record.kind, "patch": record.patch_number,
            }))
            .request(once);
        let mut changes = vec![Change::CreateRelease(record.clone()), entry.change()];
        // Somebody may delete one at this moment; without a source its bytes could then be had nowhere.
        let stored = record.artifacts.iter().filter(|artifact| artifact.sources.is_empty());
        changes.extend(stored.map(|artifact| Change::NeedArtifact(artifact.sha256)));
        let name = (parsed.component, parsed.version);
        if let Some(once) = once {
            changes.push(once.change(principal, &name, now)?);
        }
        let committed = self.store.commit(changes).await.map_err(internal)?;
        if let Some(first) = committed.replayed {
            let first: (ComponentId, Version) = once::answer(&first)?;
            return self.release(&first.0, &first.1).await;
        }
        self.release(&name.0, &name.1).await
    }

    /// Whether an artifact's bytes can be had: from here, or from a source that the manifest names.
    async fn available(&self, artifact: &ArtifactRef) -> Result<(), Reason> {
        match self.store.artifact(&artifact.sha256).await.map_err(internal)? {
            Some(stored) if stored.size != artifact.size => {
                Err(Reason::new(ReasonCode::ArtifactSizeMismatch)
                    .with("expected", artifact.size)
                    .with("actual", stored.size))
            }
            Some(_) => Ok(()),
            None if artifact.sources.is_empty() => {
                Err(Reason::new(ReasonCode::ArtifactMissing).with("digest", artifact.sha256))
            }
            None => Ok(()),
        }
    }

    /// What the store would say to the release, for `validate_only`.
    async fn could_create(&self, record: &ReleaseRecord) -> Result<(), Reason> {
        let known = self.store.release_heads(Some(&record.component)).await.map_err(internal)?;
        for other in known {
            if other.version == record.version {
                return Err(Reason::new(ReasonCode::AlreadyExists)
                    .with("what", "release")
                    .with("name", record.name()));
            }
            if let Some(number) = record.patch_number.filter(|number| other.patch_number == Some(*number)) {
                return Err(Reason::new(ReasonCode::NumberTaken)
                    .with("component", &record.component)
                    .with("number", number)
                    .with("release", other.name()));
            }
            let alike = (other.kind == Kind::Patch) == (record.kind == Kind::Patch);
            if alike && other.sequence == record.sequence {
                return Err(Reason::new(ReasonCode::SequenceTaken)
                    .with("component", &record.component)
                    .with("sequence", record.sequence)
                    .with("version", other.version));
            }
        }
        Ok(())
    }

    /// One release.
    ///
    /// # Errors
    /// `NOT_FOUND`, or what the store says.
    pub async fn release(&self, component: &ComponentId, version: &Version) -> Result<ReleaseView, Reason> {
        let found = self.store.release(component, version).await.map_err(internal)?;
        self.release_view(found.ok_or_else(|| missing(component, version))?).await
    }

    async fn release_view(&self, release: ReleaseRecord) -> Result<ReleaseView, Reason> {
        let mut quarantined = Vec::new();
        for artifact in &release.artifacts {
            let found = self.store.quarantine(&artifact.sha256).await.map_err(internal)?;
            if found.is_some_and(|quarantine| quarantine.lifted.is_none()) {
                quarantined.push(artifact.sha256);
            }
        }
        Ok(ReleaseView { release, quarantined })
    }

    /// Releases, by component and highest sequence first; only of a kind where given.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list_releases(
        &self,
        component: Option<&ComponentId>,
        kind: Option<Kind>,
        page: &Page,
    ) -> Result<Rows<ReleaseView>, Reason> {
        let found = self.store.releases(component, kind, page).await.map_err(internal)?;
        let mut rows = Vec::with_capacity(found.rows.len());
        for release in found.rows {
            rows.push(self.release_view(release).await?);
        }
        Ok(Rows { rows, next: found.next })
    }

    /// Forbids new rollouts of a release.
    ///
    /// # Errors
    /// `NOT_FOUND`, or what the store says.
    pub async fn yank_release(
        &self,
        principal: &Principal,
        component: &ComponentId,
        version: &Version,
        message: &str,
        once: Option<&Once>,
    ) -> Result<ReleaseView, Reason> {
        let before = self.release(component, version).await?;
        let now = self.clock.now();
        let yank = Yank { time: now, actor: principal.to_string(), message: message.to_owned() };
        let entry =
            audit(&principal.to_string(), "release.yank", &format!("releases/{component}@{version}"), now)
                .before(serde_json::json!({ "yanked": before.release.yanked }))
                .after(serde_json::json!({ "yanked": yank }))
                .request(once);
        let (component, version) = (component.clone(), version.clone());
        let name = (component.clone(), version.clone());
        let mut changes = vec![Change::YankRelease { component, version, yank }, entry.change()];
        if let Some(once) = once {
            changes.push(once.change(principal, &name, now)?);
        }
        self.store.commit(changes).await.map_err(internal)?;
        self.release(&name.0, &name.1).await
    }

    /// Lifts the quarantine of a release's artifacts.
    ///
    /// # Errors
    /// `NOT_FOUND`, or what the store says.
    pub async fn unquarantine_release(
        &self,
        principal: &Principal,
        component: &ComponentId,
        version: &Version,
        message: &str,
        once: Option<&Once>,
    ) -> Result<ReleaseView, Reason> {
        let before = self.release(component, version).await?;
        let now = self.clock.now();
        let lift = Yank { time: now, actor: principal.to_string(), message: message.to_owned() };
        let object = format!("releases/{component}@{version}");
        let entry = audit(&principal.to_string(), "release.unquarantine", &object, now)
            .before(serde_json::json!({ "quarantined": before.quarantined }))
            .after(serde_json::json!({ "quarantined": [], "message": message }))
            .request(once);
        let lifted = before.release.artifacts.iter();
        let mut changes: Vec<Change> = lifted
            .map(|artifact| Change::LiftQuarantine { digest: artifact.sha256, lift: lift.clone() })
            .collect();
        changes.push(entry.change());
        if let Some(once) = once {
            changes.push(once.change(principal, &(component, version), now)?);
        }
        self.store.commit(changes).await.map_err(internal)?;
        self.release(component, version).await
    }
}
