//! Reads artifacts, releases and quarantines.

use sqlx::{Executor, Sqlite};
use upfleet_domain::{
    digest::Digest,
    id::{ComponentId, Version},
    release::Kind,
};

use super::{
    SqliteStore,
    error::from_doc,
    read::{cut, fetch_limit, parse_rows},
};
use crate::store::{ArtifactRecord, DigestFailure, Page, ReleaseRecord, Result, Rows};

/// Releases are listed by component, highest sequence first. A blank sorts before all that a name may hold. What a
/// patch's sequence orders is patches, so that the same one of a base is no clash.
pub(super) fn release_key(record: &ReleaseRecord) -> String {
    let suffix = if record.kind == Kind::Patch { " patch" } else { "" };
    format!("{} {:020}{suffix}", record.component, u64::MAX - record.sequence)
}

/// The releases that name an artifact.
pub(super) async fn releases_naming<'e>(
    db: impl Executor<'e, Database = Sqlite>,
    artifact: &Digest,
) -> Result<Vec<String>> {
    let select = "SELECT r.component || '@' || r.version FROM release_artifact a \
                  JOIN release r ON r.digest = a.release WHERE a.artifact = $1 ORDER BY r.sort_key";
    Ok(sqlx::query_scalar(select).bind(artifact.to_string()).fetch_all(db).await?)
}

fn release((digest, manifest, doc): (String, Vec<u8>, String)) -> Result<ReleaseRecord> {
    let mut record: ReleaseRecord = from_doc("release", &digest, &doc)?;
    record.manifest = manifest;
    Ok(record)
}

impl SqliteStore {
    pub(super) async fn read_artifacts(&self, page: &Page) -> Result<Rows<ArtifactRecord>> {
        let select = "SELECT sort_key, doc FROM artifact WHERE sort_key > $1 ORDER BY sort_key LIMIT $2";
        let after = page.after.as_deref().unwrap_or_default();
        let rows = sqlx::query_as(select).bind(after).bind(fetch_limit(page));
        Ok(cut(parse_rows("artifact", rows.fetch_all(&self.readers).await?)?, page))
    }

    pub(super) async fn read_release(
        &self,
        component: &ComponentId,
        version: &Version,
    ) -> Result<Option<ReleaseRecord>> {
        let select = "SELECT digest, manifest, doc FROM release WHERE component = $1 AND version = $2";
        let row = sqlx::query_as(select).bind(component.as_str()).bind(version.as_str());
        row.fetch_optional(&self.readers).await?.map(release).transpose()
    }

    pub(super) async fn read_release_by_manifest(&self, manifest: &Digest) -> Result<Option<ReleaseRecord>> {
        let select = "SELECT digest, manifest, doc FROM release WHERE digest = $1";
        let row = sqlx::query_as(select).bind(manifest.to_string());
        row.fetch_optional(&self.readers).await?.map(release).transpose()
    }

    pub(super) async fn read_releases(
        &self,
        component: Option<&ComponentId>,
        kind: Option<Kind>,
        page: &Page,
    ) -> Result<Rows<ReleaseRecord>> {
        let select = "SELECT sort_key, manifest, doc FROM release WHERE ($1 IS NULL OR component = $1) \
                      AND ($4 IS NULL OR kind = $4) AND sort_key > $2 ORDER BY sort_key LIMIT $3";
        let after = page.after.as_deref().unwrap_or_default();
        let rows = sqlx::query_as(select).bind(component.map(|component| component.as_str())).bind(after);
        let rows: Vec<(String, Vec<u8>, String)> =
            rows.bind(fetch_limit(page)).bind(kind.map(Kind::as_str)).fetch_all(&self.readers).await?;
        let keyed = |row: (String, Vec<u8>, String)| Ok((row.0.clone(), release(row)?));
        Ok(cut(rows.into_iter().map(keyed).collect::<Result<_>>()?, page))
    }

    pub(super) async fn read_heads(&self, component: Option<&ComponentId>) -> Result<Vec<ReleaseRecord>> {
        let select = "SELECT doc FROM release WHERE ($1 IS NULL OR component = $1) ORDER BY sort_key";
        let docs =
            sqlx::query_scalar::<_, String>(select).bind(component.map(|component| component.as_str()));
        let docs = docs.fetch_all(&self.readers).await?;
        docs.iter().map(|doc| from_doc("release", "in a list", doc)).collect()
    }

    pub(super) async fn read_failures(&self, digest: &Digest) -> Result<Vec<DigestFailure>> {
        let select = "SELECT doc FROM digest_failure WHERE digest = $1 ORDER BY node";
        let name = digest.to_string();
        let docs: Vec<String> = sqlx::query_scalar(select).bind(&name).fetch_all(&self.readers).await?;
        docs.iter().map(|doc| from_doc("failures of", &name, doc)).collect()
    }
}
