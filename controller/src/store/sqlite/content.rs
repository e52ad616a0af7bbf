//! Writes artifacts, releases and quarantines.

use upfleet_domain::{
    digest::Digest,
    id::{ComponentId, Version},
};

use super::{
    batch::{Batch, exists, missing},
    error::{from_doc, to_doc},
    read::newest_first,
    read_content::{release_key, releases_naming},
};
use crate::store::{
    ArtifactRecord, Conflict, DigestFailure, Notice, QuarantineRecord, ReleaseRecord, Result, Yank,
};

pub(super) async fn put_artifact(batch: &mut Batch<'_>, record: ArtifactRecord) -> Result<()> {
    let name = record.digest.to_string();
    let insert =
        "INSERT INTO artifact (digest, sort_key, doc) VALUES ($1, $2, $3) ON CONFLICT (digest) DO NOTHING";
    let insert = sqlx::query(insert).bind(&name).bind(newest_first(record.created, &name));
    insert.bind(to_doc(&record)).execute(&mut *batch.conn).await?;
    batch.tell(Notice::Content);
    Ok(())
}

pub(super) async fn need_artifact(batch: &mut Batch<'_>, digest: Digest) -> Result<()> {
    let select = sqlx::query("SELECT digest FROM artifact WHERE digest = $1").bind(digest.to_string());
    if select.fetch_optional(&mut *batch.conn).await?.is_none() {
        return Err(missing("artifact", &digest).into());
    }
    Ok(())
}

pub(super) async fn delete_artifact(batch: &mut Batch<'_>, digest: Digest) -> Result<()> {
    let by = releases_naming(&mut *batch.conn, &digest).await?;
    if !by.is_empty() {
        return Err(Conflict::InUse { name: digest.to_string(), by }.into());
    }
    let delete = sqlx::query("DELETE FROM artifact WHERE digest = $1").bind(digest.to_string());
    if delete.execute(&mut *batch.conn).await?.rows_affected() == 0 {
        return Err(missing("artifact", &digest).into());
    }
    batch.tell(Notice::Content);
    Ok(())
}

pub(super) async fn create_release(batch: &mut Batch<'_>, record: ReleaseRecord) -> Result<()> {
    let (component, version) = (record.component.as_str(), record.version.as_str());
    let select = "SELECT digest FROM release WHERE digest = $1 OR (component = $2 AND version = $3)";
    let select = sqlx::query_scalar::<_, String>(select).bind(record.digest.to_string());
    let taken = select.bind(component).bind(version).fetch_optional(&mut *batch.conn).await?;
    if taken.is_some() {
        return Err(exists("release", &record.name()).into());
    }
    number_is_free(batch, &record).await?;
    let key = release_key(&record);
    let select = sqlx::query_scalar::<_, String>("SELECT doc FROM release WHERE sort_key = $1").bind(&key);
    if let Some(doc) = select.fetch_optional(&mut *batch.conn).await? {
        let other: ReleaseRecord = from_doc("release", &key, &doc)?;
        let (component, sequence) = (record.component, record.sequence);
        return Err(Conflict::SequenceTaken { component, sequence, version: other.version }.into());
    }
    let insert = "INSERT INTO release (digest, component, version, sort_key, manifest, doc, kind, patch_number) \
                  VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    let insert = sqlx::query(insert).bind(record.digest.to_string()).bind(component).bind(version);
    let insert = insert.bind(key).bind(&record.manifest).bind(to_doc(&record));
    let insert = insert.bind(record.kind.as_str()).bind(record.patch_number);
    insert.execute(&mut *batch.conn).await?;
    for artifact in &record.artifacts {
        let insert = "INSERT INTO release_artifact (artifact, release) VALUES ($1, $2) \
                      ON CONFLICT (artifact, release) DO NOTHING";
        let insert = sqlx::query(insert).bind(artifact.sha256.to_string()).bind(record.digest.to_string());
        insert.execute(&mut *batch.conn).await?;
    }
    batch.tell(Notice::Content);
    Ok(())
}

/// A patch number is of one release, for ever.
async fn number_is_free(batch: &mut Batch<'_>, record: &ReleaseRecord) -> Result<()> {
    let Some(number) = record.patch_number else { return Ok(()) };
    let select = "SELECT version FROM release WHERE component = $1 AND patch_number = $2";
    let select = sqlx::query_scalar::<_, String>(select).bind(record.component.as_str()).bind(number);
    let Some(version) = select.fetch_optional(&mut *batch.conn).await? else { return Ok(()) };
    let version =
        Version::new(&*version).map_err(|error| super::error::damaged("release", &version, error))?;
    Err(Conflict::NumberTaken { component: record.component.clone(), number, version }.into())
}

pub(super) async fn yank(
    batch: &mut Batch<'_>,
    component: ComponentId,
    version: Version,
    yank: Yank,
) -> Result<()> {
    let select = "SELECT doc FROM release WHERE component = $1 AND version = $2";
    let select = sqlx::query_scalar::<_, String>(select).bind(component.as_str()).bind(version.as_str());
    let name = format!("{component}@{version}");
    let doc = select.fetch_optional(&mut *batch.conn).await?.ok_or_else(|| missing("release", &name))?;
    let mut record: ReleaseRecord = from_doc("release", &name, &doc)?;
    if record.yanked.is_some() {
        return Ok(());
    }
    record.yanked = Some(yank);
    let update = sqlx::query("UPDATE release SET doc = $2 WHERE digest = $1").bind(record.digest.to_string());
    update.bind(to_doc(&record)).execute(&mut *batch.conn).await?;
    batch.tell(Notice::Content);
    Ok(())
}

pub(super) async fn record_failure(batch: &mut Batch<'_>, failure: DigestFailure) -> Result<()> {
    let upsert = "INSERT INTO digest_failure (digest, node, doc) VALUES ($1, $2, $3) \
                  ON CONFLICT (digest, node) DO UPDATE SET doc = excluded.doc";
    let upsert = sqlx::query(upsert).bind(failure.digest.to_string()).bind(failure.node.as_str());
    upsert.bind(to_doc(&failure)).execute(&mut *batch.conn).await?;
    Ok(())
}

pub(super) async fn quarantine(
    batch: &mut Batch<'_>,
    mut record: QuarantineRecord,
    renew: bool,
) -> Result<()> {
    if let Some(stored) = read_quarantine(batch, &record.digest).await? {
        if stored.lifted.is_some() && !renew {
            return Ok(());
        }
        if stored.lifted.is_none() {
            record.nodes.extend(stored.nodes);
            record.since = stored.since;
        }
    }
    write_quarantine(batch, &record).await
}

pub(super) async fn lift(batch: &mut Batch<'_>, digest: Digest, lift: Yank) -> Result<()> {
    let delete = sqlx::query("DELETE FROM digest_failure WHERE digest = $1").bind(digest.to_string());
    delete.execute(&mut *batch.conn).await?;
    match read_quarantine(batch, &digest).await? {
        Some(mut record) if record.lifted.is_none() => {
            record.lifted = Some(lift);
            write_quarantine(batch, &record).await
        }
        _ => Ok(()),
    }
}

async fn read_quarantine(batch: &mut Batch<'_>, digest: &Digest) -> Result<Option<QuarantineRecord>> {
    let select = sqlx::query_scalar::<_, String>("SELECT doc FROM quarantine WHERE digest = $1");
    let doc = select.bind(digest.to_string()).fetch_optional(&mut *batch.conn).await?;
    doc.map(|doc| from_doc("quarantine", &digest.to_string(), &doc)).transpose()
}

async fn write_quarantine(batch: &mut Batch<'_>, record: &QuarantineRecord) -> Result<()> {
    let upsert = "INSERT INTO quarantine (digest, doc) VALUES ($1, $2) \
                  ON CONFLICT (digest) DO UPDATE SET doc = excluded.doc";
    let upsert = sqlx::query(upsert).bind(record.digest.to_string()).bind(to_doc(record));
    upsert.execute(&mut *batch.conn).await?;
    batch.tell(Notice::Content);
    Ok(())
}
