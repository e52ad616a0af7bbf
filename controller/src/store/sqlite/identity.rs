//! Writes certificates, tokens, answers to requests, the audit and the epoch.

use upfleet_domain::{digest::Digest, id::NodeId, time::Time};

use super::{
    batch::{Batch, exists, missing, stale},
    error::{from_doc, to_doc},
    read::newest_first,
};
use crate::store::{AuditRecord, CertificateRecord, Conflict, Notice, RequestRecord, Result, TokenRecord};

pub(super) async fn create_certificate(batch: &mut Batch<'_>, record: CertificateRecord) -> Result<()> {
    let insert = "INSERT INTO certificate (serial, kind, subject, expires, refused, sort_key, doc) \
                  VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (serial) DO NOTHING";
    let insert = sqlx::query(insert)
        .bind(&record.serial)
        .bind(record.subject.kind())
        .bind(record.subject.id())
        .bind(record.expires.0)
        .bind(record.revoked.is_some() || record.suspended)
        .bind(newest_first(record.issued, &record.serial))
        .bind(to_doc(&record));
    if insert.execute(&mut *batch.conn).await?.rows_affected() == 0 {
        return Err(exists("certificate", &record.serial).into());
    }
    batch.tell(Notice::Certificates);
    Ok(())
}

pub(super) async fn revoke(batch: &mut Batch<'_>, serials: &[String], time: Time) -> Result<()> {
    for serial in serials {
        let select = sqlx::query_scalar::<_, String>("SELECT doc FROM certificate WHERE serial = $1");
        let Some(doc) = select.bind(serial).fetch_optional(&mut *batch.conn).await? else { continue };
        let mut record: CertificateRecord = from_doc("certificate", serial, &doc)?;
        if record.revoked.is_none() {
            record.revoked = Some(time);
            write_certificate(batch, &record).await?;
        }
    }
    Ok(())
}

pub(super) async fn revoke_node(batch: &mut Batch<'_>, node: &NodeId, time: Time) -> Result<()> {
    for mut record in of_node(batch, node).await? {
        if record.revoked.is_none() {
            record.revoked = Some(time);
            write_certificate(batch, &record).await?;
        }
    }
    Ok(())
}

async fn of_node(batch: &mut Batch<'_>, node: &NodeId) -> Result<Vec<CertificateRecord>> {
    let select = "SELECT doc FROM certificate WHERE kind = 'node' AND subject = $1";
    let docs = sqlx::query_scalar::<_, String>(select).bind(node.as_str());
    let docs = docs.fetch_all(&mut *batch.conn).await?;
    docs.iter().map(|doc| from_doc("certificate of node", node.as_str(), doc)).collect()
}

pub(super) async fn suspend(batch: &mut Batch<'_>, node: &NodeId, suspended: bool) -> Result<()> {
    for mut record in of_node(batch, node).await? {
        if record.suspended != suspended {
            record.suspended = suspended;
            write_certificate(batch, &record).await?;
        }
    }
    Ok(())
}

async fn write_certificate(batch: &mut Batch<'_>, record: &CertificateRecord) -> Result<()> {
    let update = "UPDATE certificate SET refused = $2, doc = $3 WHERE serial = $1";
    let update = sqlx::query(update).bind(&record.serial).bind(record.revoked.is_some() || record.suspended);
    update.bind(to_doc(record)).execute(&mut *batch.conn).await?;
    batch.tell(Notice::Certificates);
    Ok(())
}

pub(super) async fn create_token(batch: &mut Batch<'_>, record: TokenRecord) -> Result<()> {
    let insert =
        "INSERT INTO token (id, used, sort_key, doc) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING";
    let insert = sqlx::query(insert)
        .bind(&record.id)
        .bind(record.used_by.is_some())
        .bind(newest_first(record.created, &record.id))
        .bind(to_doc(&record));
    if insert.execute(&mut *batch.conn).await?.rows_affected() == 0 {
        return Err(exists("token", &record.id).into());
    }
    Ok(())
}

pub(super) async fn use_token(
    batch: &mut Batch<'_>,
    id: String,
    secret_hash: Digest,
    node: NodeId,
    time: Time,
) -> Result<()> {
    let select = sqlx::query_scalar::<_, String>("SELECT doc FROM token WHERE id = $1").bind(&id);
    let Some(doc) = select.fetch_optional(&mut *batch.conn).await? else {
        return Err(Conflict::Token { id }.into());
    };
    let mut record: TokenRecord = from_doc("token", &id, &doc)?;
    let other_node = record.node.as_ref().is_some_and(|wanted| *wanted != node);
    if record.used_by.is_some() || record.expires <= time || record.secret_hash != secret_hash || other_node {
        return Err(Conflict::Token { id }.into());
    }
    record.used_by = Some(node);
    let update = sqlx::query("UPDATE token SET used = $2, doc = $3 WHERE id = $1").bind(&id).bind(true);
    update.bind(to_doc(&record)).execute(&mut *batch.conn).await?;
    Ok(())
}

pub(super) async fn revoke_token(batch: &mut Batch<'_>, id: String) -> Result<()> {
    let delete = sqlx::query("DELETE FROM token WHERE id = $1").bind(&id);
    if delete.execute(&mut *batch.conn).await?.rows_affected() == 0 {
        return Err(missing("token", &id).into());
    }
    Ok(())
}

/// The first answer to a request, where it was answered before.
pub(super) async fn replay(batch: &mut Batch<'_>, request: &RequestRecord) -> Result<Option<Vec<u8>>> {
    let select = "SELECT method, body, response FROM request WHERE principal = $1 AND id = $2";
    let select = sqlx::query_as::<_, (String, String, Vec<u8>)>(select).bind(&request.principal);
    let Some((method, body, response)) = select.bind(&request.id).fetch_optional(&mut *batch.conn).await?
    else {
        return Ok(None);
    };
    if method != request.method || body != request.body.to_string() {
        return Err(Conflict::RequestReused { request_id: request.id.clone() }.into());
    }
    Ok(Some(response))
}

pub(super) async fn store_request(batch: &mut Batch<'_>, record: RequestRecord) -> Result<()> {
    let insert = "INSERT INTO request (principal, id, method, body, response, time) \
                  VALUES ($1, $2, $3, $4, $5, $6)";
    let insert = sqlx::query(insert).bind(record.principal).bind(record.id).bind(record.method);
    let insert = insert.bind(record.body.to_string()).bind(record.response).bind(record.time.0);
    insert.execute(&mut *batch.conn).await?;
    Ok(())
}

pub(super) async fn prune_requests(batch: &mut Batch<'_>, before: Time) -> Result<()> {
    let delete = sqlx::query("DELETE FROM request WHERE time < $1").bind(before.0);
    delete.execute(&mut *batch.conn).await?;
    Ok(())
}

pub(super) async fn audit(batch: &mut Batch<'_>, record: AuditRecord) -> Result<()> {
    let insert = "INSERT INTO audit (seq, time, actor, request_id, action, object, before_doc, after_doc) \
                  SELECT COALESCE(MAX(seq), 0) + 1, $1, $2, $3, $4, $5, $6, $7 FROM audit";
    let insert = sqlx::query(insert)
        .bind(record.time.0)
        .bind(record.actor)
        .bind(record.request_id)
        .bind(record.action)
        .bind(record.object)
        .bind(to_doc(&record.before))
        .bind(to_doc(&record.after));
    insert.execute(&mut *batch.conn).await?;
    Ok(())
}

pub(super) async fn raise_epoch(batch: &mut Batch<'_>, from: u64) -> Result<()> {
    let update = "UPDATE meta SET value = $2 WHERE key = 'epoch' AND value = $1";
    let update = sqlx::query(update).bind(from.to_string()).bind((from + 1).to_string());
    if update.execute(&mut *batch.conn).await?.rows_affected() == 0 {
        return Err(stale("epoch", &from).into());
    }
    Ok(())
}
