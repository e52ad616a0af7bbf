//! The reading half of the store: nodes, identity, and the [`Store`] trait itself.

use std::collections::BTreeMap;

use async_trait::async_trait;
use tokio::sync::{broadcast, oneshot};
use upfleet_domain::{
    digest::Digest,
    id::{ComponentId, NodeId, RolloutId, UpgradeId, Version},
    jvm::Jvm,
    release::Kind,
    rollout::{NodeUpgrade, Plan, State},
    time::Time,
    upgrade::UpgradeState,
};

use super::{
    SqliteStore,
    error::{count, damaged, from_doc},
    writer::Job,
};
use crate::store::*;

/// The key of a list that is read newest first.
pub(super) fn newest_first(time: Time, id: &str) -> String {
    format!("{:020} {id}", i64::MAX.saturating_sub(time.0.max(0)))
}

/// How many rows to ask for: one more than wanted, to know whether more follow.
pub(super) fn fetch_limit(page: &Page) -> i64 {
    i64::from(page.limit) + 1
}

/// Cuts the row too many off, and says where the next page begins.
pub(super) fn cut<T>(mut rows: Vec<(String, T)>, page: &Page) -> Rows<T> {
    let limit = page.limit as usize;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = if more { rows.last().map(|(key, _)| key.clone()) } else { None };
    Rows { rows: rows.into_iter().map(|(_, row)| row).collect(), next }
}

/// Rows of documents by key, as records.
pub(super) fn parse_rows<T: serde::de::DeserializeOwned>(
    what: &'static str,
    rows: Vec<(String, String)>,
) -> Result<Vec<(String, T)>> {
    rows.into_iter()
        .map(|(key, doc)| {
            let record = from_doc(what, &key, &doc)?;
            Ok((key, record))
        })
        .collect()
}

type NodeRow = (String, i64, Option<i64>, Option<String>, String);

fn node((id, revision, last_seen, session, doc): NodeRow) -> Result<NodeRecord> {
    let mut node: NodeRecord = from_doc("node", &id, &doc)?;
    node.revision = count(revision);
    node.last_seen = last_seen.map(Time);
    node.session = session.map(|doc| from_doc("session of node", &id, &doc)).transpose()?;
    Ok(node)
}

impl SqliteStore {
    /// Reads nodes in runs of this many rows until a page is full.
    const RUN: i64 = 500;

    async fn choose_nodes(&self, filter: NodeFilter<'_>, page: &Page) -> Result<Rows<NodeRecord>> {
        let select =
            "SELECT id, revision, last_seen, session, doc FROM node WHERE id > $1 ORDER BY id LIMIT $2";
        let mut after = page.after.clone().unwrap_or_default();
        let mut chosen = Vec::new();
        let wanted = page.limit as usize + 1;
        loop {
            let rows = sqlx::query_as::<_, NodeRow>(select).bind(&after).bind(Self::RUN);
            let rows = rows.fetch_all(&self.readers).await?;
            let last_run = rows.len() < Self::RUN as usize;
            if let Some(last) = rows.last() {
                after.clone_from(&last.0);
            }
            for row in rows {
                let record = node(row)?;
                if filter(&record) {
                    chosen.push((record.id.to_string(), record));
                }
            }
            if last_run || chosen.len() >= wanted {
                return Ok(cut(chosen, page));
            }
        }
    }

    async fn read_components(&self, select: &'static str, name: &str) -> Result<Vec<ComponentRecord>> {
        let rows = sqlx::query_as::<_, (i64, String)>(select).bind(name).fetch_all(&self.readers).await?;
        let record = |(revision, doc): (i64, String)| {
            let mut record: ComponentRecord = from_doc("component", name, &doc)?;
            record.revision = count(revision);
            Ok(record)
        };
        rows.into_iter().map(record).collect()
    }

    async fn read_desired(&self, select: &'static str, name: &str) -> Result<Vec<DesiredRecord>> {
        let docs = sqlx::query_scalar::<_, String>(select).bind(name).fetch_all(&self.readers).await?;
        docs.iter().map(|doc| from_doc("desired state of", name, doc)).collect()
    }

    async fn read_meta(&self) -> Result<Meta> {
        let rows = sqlx::query_as::<_, (String, String)>("SELECT key, value FROM meta");
        let rows: BTreeMap<String, String> = rows.fetch_all(&self.readers).await?.into_iter().collect();
        let value = |key: &'static str| rows.get(key).ok_or_else(|| damaged("meta", key, "it is missing"));
        let epoch = value("epoch")?.parse().map_err(|error| damaged("meta", "epoch", error))?;
        let format = super::schema::applied(&self.readers).await?;
        Ok(Meta { epoch, cluster_id: value("cluster_id")?.clone(), format })
    }

    /// Reads one document by its primary key.
    pub(super) async fn one<T: serde::de::DeserializeOwned>(
        &self,
        what: &'static str,
        select: &'static str,
        key: &str,
    ) -> Result<Option<T>> {
        let doc = sqlx::query_scalar::<_, String>(select).bind(key).fetch_optional(&self.readers).await?;
        doc.map(|doc| from_doc(what, key, &doc)).transpose()
    }

    async fn read_certificates(
        &self,
        kind: &str,
        id: Option<&str>,
        page: &Page,
    ) -> Result<Rows<CertificateRecord>> {
        let select = "SELECT sort_key, doc FROM certificate WHERE kind = $1 AND ($2 IS NULL OR subject = $2) \
                      AND sort_key > $3 ORDER BY sort_key LIMIT $4";
        let after = page.after.as_deref().unwrap_or_default();
        let rows = sqlx::query_as(select).bind(kind).bind(id).bind(after).bind(fetch_limit(page));
        Ok(cut(parse_rows("certificate", rows.fetch_all(&self.readers).await?)?, page))
    }

    async fn read_request(&self, principal: &str, id: &str) -> Result<Option<RequestRecord>> {
        let select = "SELECT method, body, response, time FROM request WHERE principal = $1 AND id = $2";
        let row = sqlx::query_as::<_, (String, String, Vec<u8>, i64)>(select).bind(principal).bind(id);
        let Some((method, body, response, time)) = row.fetch_optional(&self.readers).await? else {
            return Ok(None);
        };
        let body = body
            .parse()
            .map_err(|source: upfleet_domain::digest::ParseDigestError| damaged("request", id, source))?;
        let (principal, id, time) = (principal.to_owned(), id.to_owned(), Time(time));
        Ok(Some(RequestRecord { principal, id, method, body, response, time }))
    }

    async fn read_audit(&self, object: Option<&str>, page: &Page) -> Result<Rows<AuditRecord>> {
        let select = "SELECT seq, time, actor, request_id, action, object, before_doc, after_doc FROM audit \
                      WHERE ($1 IS NULL OR object = $1) AND seq < $2 ORDER BY seq DESC LIMIT $3";
        let before = match &page.after {
            Some(key) => key.parse().map_err(|source| damaged("audit", key, Box::new(source)))?,
            None => i64::MAX,
        };
        type Row = (i64, i64, String, String, String, String, String, String);
        let rows = sqlx::query_as::<_, Row>(select).bind(object).bind(before).bind(fetch_limit(page));
        let mut records = Vec::new();
        for (seq, time, actor, request_id, action, object, before, after) in
            rows.fetch_all(&self.readers).await?
        {
            let key = seq.to_string();
            let before = from_doc("audit", &key, &before)?;
            let after = from_doc("audit", &key, &after)?;
            let (sequence, time) = (count(seq), Time(time));
            let record = AuditRecord { sequence, actor, request_id, action, object, before, after, time };
            records.push((key, record));
        }
        Ok(cut(records, page))
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn commit(&self, changes: Vec<Change>) -> Result<Committed> {
        let gone = || super::unavailable("write", "the store is closed");
        let (answer, result) = oneshot::channel();
        self.queue.send(Job::Batch { changes, answer }).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    fn subscribe(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }

    async fn meta(&self) -> Result<Meta> {
        self.read_meta().await
    }

    async fn probe(&self) -> Result<()> {
        self.read_meta().await?;
        let gone = || super::unavailable("write", "its writer has ended");
        let (answer, result) = oneshot::channel();
        self.queue.send(Job::Probe { answer }).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    async fn node(&self, id: &NodeId) -> Result<Option<NodeRecord>> {
        let select = "SELECT id, revision, last_seen, session, doc FROM node WHERE id = $1";
        let row = sqlx::query_as::<_, NodeRow>(select).bind(id.as_str());
        row.fetch_optional(&self.readers).await?.map(node).transpose()
    }

    async fn nodes(&self, filter: NodeFilter<'_>, page: &Page) -> Result<Rows<NodeRecord>> {
        self.choose_nodes(filter, page).await
    }

    async fn components(&self, node: &NodeId) -> Result<Vec<ComponentRecord>> {
        let select = "SELECT revision, doc FROM component WHERE node = $1 ORDER BY component";
        self.read_components(select, node.as_str()).await
    }

    async fn components_named(&self, component: &ComponentId) -> Result<Vec<ComponentRecord>> {
        let select = "SELECT revision, doc FROM component WHERE component = $1 ORDER BY node";
        self.read_components(select, component.as_str()).await
    }

    async fn each_component(
        &self,
        component: Option<&ComponentId>,
        visit: &mut (dyn FnMut(ComponentRecord) + Send),
    ) -> Result<()> {
        self.visit_components(component, visit).await
    }

    async fn component_counts(&self) -> Result<Vec<ComponentCount>> {
        self.read_component_counts().await
    }

    async fn jvms(&self, node: &NodeId) -> Result<Vec<Jvm>> {
        let jvms = self.one("JVMs of", "SELECT doc FROM jvm WHERE node = $1", node.as_str()).await?;
        Ok(jvms.unwrap_or_default())
    }

    async fn each_jvms(
        &self,
        first: Option<&NodeId>,
        visit: &mut (dyn FnMut(JvmsRecord) -> bool + Send),
    ) -> Result<()> {
        self.visit_jvms(first, visit).await
    }

    async fn history(
        &self,
        node: &NodeId,
        component: Option<&ComponentId>,
        page: &Page,
    ) -> Result<Rows<HistoryRecord>> {
        self.read_history(node, component, page).await
    }

    async fn desired(&self, node: &NodeId) -> Result<Vec<DesiredRecord>> {
        let select = "SELECT doc FROM desired WHERE node = $1 ORDER BY component";
        self.read_desired(select, node.as_str()).await
    }

    async fn desired_named(&self, component: &ComponentId) -> Result<Vec<DesiredRecord>> {
        let select = "SELECT doc FROM desired WHERE component = $1 ORDER BY node";
        self.read_desired(select, component.as_str()).await
    }

    async fn artifact(&self, digest: &Digest) -> Result<Option<ArtifactRecord>> {
        let select = "SELECT doc FROM artifact WHERE digest = $1";
        self.one("artifact", select, &digest.to_string()).await
    }

    async fn artifacts(&self, page: &Page) -> Result<Rows<ArtifactRecord>> {
        self.read_artifacts(page).await
    }

    async fn releases_naming(&self, artifact: &Digest) -> Result<Vec<String>> {
        super::read_content::releases_naming(&self.readers, artifact).await
    }

    async fn release(&self, component: &ComponentId, version: &Version) -> Result<Option<ReleaseRecord>> {
        self.read_release(component, version).await
    }

    async fn release_by_manifest(&self, manifest: &Digest) -> Result<Option<ReleaseRecord>> {
        self.read_release_by_manifest(manifest).await
    }

    async fn releases(
        &self,
        component: Option<&ComponentId>,
        kind: Option<Kind>,
        page: &Page,
    ) -> Result<Rows<ReleaseRecord>> {
        self.read_releases(component, kind, page).await
    }

    async fn release_heads(&self, component: Option<&ComponentId>) -> Result<Vec<ReleaseRecord>> {
        self.read_heads(component).await
    }

    async fn quarantine(&self, digest: &Digest) -> Result<Option<QuarantineRecord>> {
        let select = "SELECT doc FROM quarantine WHERE digest = $1";
        self.one("quarantine", select, &digest.to_string()).await
    }

    async fn digest_failures(&self, digest: &Digest) -> Result<Vec<DigestFailure>> {
        self.read_failures(digest).await
    }

    async fn certificate(&self, serial: &str) -> Result<Option<CertificateRecord>> {
        self.one("certificate", "SELECT doc FROM certificate WHERE serial = $1", serial).await
    }

    async fn certificates(
        &self,
        kind: &str,
        id: Option<&str>,
        page: &Page,
    ) -> Result<Rows<CertificateRecord>> {
        self.read_certificates(kind, id, page).await
    }

    async fn refused_serials(&self, now: Time) -> Result<Vec<String>> {
        let select = "SELECT serial FROM certificate WHERE refused AND expires > $1 ORDER BY serial";
        Ok(sqlx::query_scalar(select).bind(now.0).fetch_all(&self.readers).await?)
    }

    async fn token(&self, id: &str) -> Result<Option<TokenRecord>> {
        self.one("token", "SELECT doc FROM token WHERE id = $1", id).await
    }

    async fn tokens(&self, page: &Page) -> Result<Rows<TokenRecord>> {
        let select =
            "SELECT sort_key, doc FROM token WHERE NOT used AND sort_key > $1 ORDER BY sort_key LIMIT $2";
        let after = page.after.as_deref().unwrap_or_default();
        let rows = sqlx::query_as(select).bind(after).bind(fetch_limit(page));
        Ok(cut(parse_rows("token", rows.fetch_all(&self.readers).await?)?, page))
    }

    async fn rollout(&self, id: &RolloutId) -> Result<Option<RolloutRecord>> {
        self.read_rollout(id).await
    }

    async fn rollouts(
        &self,
        component: Option<&ComponentId>,
        states: &[State],
        page: &Page,
    ) -> Result<Rows<RolloutRecord>> {
        self.read_rollouts(component, states, page).await
    }

    async fn open_rollouts(&self) -> Result<Vec<RolloutRecord>> {
        self.read_open_rollouts().await
    }

    async fn plan(&self, rollout: &RolloutId) -> Result<Option<Plan>> {
        self.one("plan", "SELECT plan FROM rollout WHERE id = $1", rollout.as_str()).await
    }

    async fn upgrades(
        &self,
        rollout: &RolloutId,
        states: &[UpgradeState],
        page: &Page,
    ) -> Result<Rows<NodeUpgrade>> {
        self.read_upgrades(rollout, states, page).await
    }

    async fn upgrade(&self, rollout: &RolloutId, node: &NodeId) -> Result<Option<NodeUpgrade>> {
        self.read_upgrade(rollout, node).await
    }

    async fn upgrade_by_id(&self, id: &UpgradeId) -> Result<Option<(RolloutId, NodeUpgrade)>> {
        self.read_upgrade_by_id(id).await
    }

    async fn upgrades_changed_since(&self, rollout: &RolloutId, revision: u64) -> Result<Vec<NodeUpgrade>> {
        self.read_upgrades_since(rollout, revision).await
    }

    async fn upgrade_counts(&self, rollout: &RolloutId) -> Result<BTreeMap<UpgradeState, u32>> {
        self.read_counts(rollout).await
    }

    async fn events(&self, rollout: &RolloutId, after: u64, limit: u32) -> Result<Vec<EventRecord>> {
        self.read_events(rollout, after, limit).await
    }

    async fn request(&self, principal: &str, id: &str) -> Result<Option<RequestRecord>> {
        self.read_request(principal, id).await
    }

    async fn audit(&self, object: Option<&str>, page: &Page) -> Result<Rows<AuditRecord>> {
        self.read_audit(object, page).await
    }
}
