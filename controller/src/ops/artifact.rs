//! Artifacts: uploaded in parts, served by range, and deleted once no release names them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use futures_util::stream::{Stream, unfold};
use tokio_util::sync::CancellationToken;
use upfleet_domain::{
    digest::Digest,
    reason::{Reason, ReasonCode},
};

use super::{Operations, audit};
use crate::{
    auth::Principal,
    blobs::{Blob, PIECE, Upload},
    failure::internal,
    store::{ArtifactRecord, Change, Page, Rows},
};

/// An artifact with the releases that name it.
#[derive(Clone, Debug)]
pub struct ArtifactView {
    /// Its record.
    pub artifact: ArtifactRecord,
    /// The releases, as `component@version`.
    pub releases: Vec<String>,
}

/// A range of an artifact that is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The artifact.
    pub digest: Digest,
    /// The first byte.
    pub offset: u64,
    /// How many bytes; 0 means to the end.
    pub limit: u64,
    /// The size of each piece; 0 leaves it to the controller.
    pub piece: u32,
}

/// Some of an artifact's bytes.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Where they begin.
    pub offset: u64,
    /// The bytes.
    pub data: Bytes,
    /// The artifact's whole length.
    pub size: u64,
}

/// The smallest piece that can be asked for, in bytes.
const MIN_PIECE: u64 = 16 * 1024;
/// How many downloads a node may have at once: an agent has one for each component that is upgraded at the moment, and
/// tries again where it is refused.
const NODE_READERS: usize = 8;
/// How many a user may have: pipelines share the name of one.
const USER_READERS: usize = 32;
/// The first piece of a reader, in bytes.
const FIRST_PIECE: u64 = 64 * 1024;

impl Operations {
    /// Opens an upload at an offset.
    ///
    /// # Errors
    /// What the artifact store says.
    pub async fn open_upload(&self, digest: Digest, size: u64, offset: u64) -> Result<Upload, Reason> {
        self.blobs.upload(digest, size, offset).await.map_err(|error| error.reason())
    }

    /// Makes uploaded bytes visible.
    ///
    /// # Errors
    /// Where they are not what was announced, or a store refuses.
    pub async fn commit_upload(&self, principal: &Principal, upload: Upload) -> Result<ArtifactView, Reason> {
        let uploaded = upload.commit().await.map_err(|error| error.reason())?;
        let now = self.clock.now();
        let record = ArtifactRecord {
            digest: uploaded.digest,
            md5: uploaded.md5,
            size: uploaded.size,
            created: now,
            creator: principal.to_string(),
        };
        let object = format!("artifacts/{}", uploaded.digest);
        let entry = audit(&principal.to_string(), "artifact.upload", &object, now)
            .after(serde_json::json!({ "size": uploaded.size }));
        self.store.commit(vec![Change::PutArtifact(record), entry.change()]).await.map_err(internal)?;
        self.artifact(&uploaded.digest).await
    }

    /// How far an upload came, or the artifact where nothing is left to upload.
    ///
    /// # Errors
    /// What a store says.
    pub async fn upload_progress(&self, digest: Digest) -> Result<(u64, Option<ArtifactView>), Reason> {
        if let Some(record) = self.store.artifact(&digest).await.map_err(internal)?
            && self.blobs.size(digest).await.map_err(|error| error.reason())? == Some(record.size)
        {
            return Ok((record.size, Some(self.artifact_view(record).await?)));
        }
        let offset = self.blobs.upload_offset(digest).await.map_err(|error| error.reason())?;
        Ok((offset, None))
    }

    /// One artifact.
    ///
    /// # Errors
    /// `NOT_FOUND`, or what the store says.
    pub async fn artifact(&self, digest: &Digest) -> Result<ArtifactView, Reason> {
        let found = self.store.artifact(digest).await.map_err(internal)?;
        let record = found
            .ok_or_else(|| Reason::new(ReasonCode::NotFound).with("what", "artifact").with("name", digest))?;
        self.artifact_view(record).await
    }

    async fn artifact_view(&self, artifact: ArtifactRecord) -> Result<ArtifactView, Reason> {
        let releases = self.store.releases_naming(&artifact.digest).await.map_err(internal)?;
        Ok(ArtifactView { artifact, releases })
    }

    /// Artifacts, newest first.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list_artifacts(&self, page: &Page) -> Result<Rows<ArtifactView>, Reason> {
        let found = self.store.artifacts(page).await.map_err(internal)?;
        let mut rows = Vec::with_capacity(found.rows.len());
        for record in found.rows {
            rows.push(self.artifact_view(record).await?);
        }
        Ok(Rows { rows, next: found.next })
    }

    /// Deletes an artifact that no release names.
    ///
    /// # Errors
    /// `ARTIFACT_IN_USE`, `NOT_FOUND`, or what a store says.
    pub async fn delete_artifact(&self, principal: &Principal, digest: &Digest) -> Result<(), Reason> {
        let before = self.artifact(digest).await?.artifact;
        let object = format!("artifacts/{digest}");
        let entry = audit(&principal.to_string(), "artifact.delete", &object, self.clock.now())
            .before(serde_json::json!({ "size": before.size, "creator": before.creator }));
        // The record goes first: bytes without a record are collected, a record without bytes is a lie.
        self.store.commit(vec![Change::DeleteArtifact(*digest), entry.change()]).await.map_err(internal)?;
        self.blobs.delete(*digest).await.map_err(|error| error.reason())
    }

    /// Streams a range, which is read as the reader takes it. `cut` ends the reader's connection, where it takes
    /// nothing while others wait.
    ///
    /// # Errors
    /// `NOT_FOUND`, `ARTIFACT_DAMAGED`, `INVALID_ARGUMENT` for an offset beyond the end, `LIMIT_EXCEEDED` where the
    /// caller has as many downloads as it may.
    pub async fn download(
        &self,
        caller: &Principal,
        wanted: Wanted,
        cut: CancellationToken,
    ) -> Result<impl Stream<Item = Result<Piece, Reason>> + Send + use<>, Reason> {
        let limit = if matches!(caller, Principal::Node(_)) { NODE_READERS } else { USER_READERS };
        let reader = self.blobs.reader(&caller.to_string(), limit, cut).map_err(|error| error.reason())?;
        let blob = self.blobs.read(wanted.digest).await.map_err(|error| error.reason())?.read_by(reader);
        if wanted.offset > blob.size() {
            return Err(Reason::new(ReasonCode::InvalidArgument)
                .with("field", "offset")
                .with("problem", format!("the artifact has {} bytes", blob.size())));
        }
        let reading = Reading::new(blob, wanted, self.downloaded.clone());
        Ok(unfold(Some(reading), |reading| async {
            let mut reading = reading?;
            match reading.next().await {
                Ok(piece) => Some((Ok(piece?), Some(reading))),
                Err(reason) => Some((Err(reason), None)),
            }
        }))
    }
}

/// A range on its way to one reader.
struct Reading {
    blob: Blob,
    digest: Digest,
    offset: u64,
    end: u64,
    /// The next piece. It grows as pieces are taken: a reader that takes nothing holds little memory.
    piece: u64,
    largest: u64,
    counted: Arc<AtomicU64>,
}

impl Reading {
    fn new(blob: Blob, wanted: Wanted, counted: Arc<AtomicU64>) -> Self {
        let end = match wanted.limit {
            0 => blob.size(),
            limit => wanted.offset.saturating_add(limit).min(blob.size()),
        };
        let largest = match u64::from(wanted.piece) {
            0 => PIECE as u64,
            piece => piece.clamp(MIN_PIECE, PIECE as u64),
        };
        let piece = largest.min(FIRST_PIECE);
        Self { blob, digest: wanted.digest, offset: wanted.offset, end, piece, largest, counted }
    }

    async fn next(&mut self) -> Result<Option<Piece>, Reason> {
        let (offset, left) = (self.offset, self.end.saturating_sub(self.offset));
        if left == 0 {
            return Ok(None);
        }
        let read = self.blob.read_at(offset, self.piece.min(left)).await;
        let data = read.map_err(|error| error.reason())?;
        if data.is_empty() {
            return Err(Reason::new(ReasonCode::ArtifactDamaged).with("digest", self.digest));
        }
        let length = data.len() as u64;
        self.counted.fetch_add(length, Ordering::Relaxed);
        self.offset += length;
        self.piece = (self.piece * 2).min(self.largest);
        Ok(Some(Piece { offset, data, size: self.blob.size() }))
    }
}
