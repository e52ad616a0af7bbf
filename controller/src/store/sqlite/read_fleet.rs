//! Reads what the whole fleet runs, in runs of rows, and what became of one node.

use upfleet_domain::id::{ComponentId, NodeId};

use super::{
    SqliteStore,
    error::{count, damaged, from_doc},
    read::{cut, fetch_limit, parse_rows},
};
use crate::store::{ComponentCount, ComponentRecord, HistoryRecord, JvmsRecord, Page, Result, Rows};

/// So many rows are read at once where all of a table are looked at.
const RUN: i64 = 500;

impl SqliteStore {
    pub(super) async fn visit_components(
        &self,
        component: Option<&ComponentId>,
        visit: &mut (dyn FnMut(ComponentRecord) + Send),
    ) -> Result<()> {
        let one = "SELECT node, component, revision, doc FROM component \
                   WHERE component = $4 AND node > $1 ORDER BY node LIMIT $3";
        let all = "SELECT node, component, revision, doc FROM component \
                   WHERE node > $1 OR (node = $1 AND component > $2) ORDER BY node, component LIMIT $3";
        let (mut node, mut name) = (String::new(), String::new());
        loop {
            type Row = (String, String, i64, String);
            let rows = match component {
                Some(component) => {
                    let rows = sqlx::query_as::<_, Row>(one).bind(&node).bind(&name).bind(RUN);
                    rows.bind(component.as_str()).fetch_all(&self.readers).await?
                }
                None => {
                    let rows = sqlx::query_as::<_, Row>(all).bind(&node).bind(&name).bind(RUN);
                    rows.fetch_all(&self.readers).await?
                }
            };
            let last = rows.len() < RUN as usize;
            if let Some(row) = rows.last() {
                (node, name) = (row.0.clone(), row.1.clone());
            }
            for (node, _, revision, doc) in rows {
                let mut record: ComponentRecord = from_doc("component of", &node, &doc)?;
                record.revision = count(revision);
                visit(record);
            }
            if last {
                return Ok(());
            }
        }
    }

    pub(super) async fn read_component_counts(&self) -> Result<Vec<ComponentCount>> {
        let select = "SELECT component, SUM(CASE WHEN drifted THEN 1 ELSE 0 END), \
                      SUM(CASE WHEN alarmed THEN 1 ELSE 0 END), SUM(old_classes) FROM component \
                      WHERE drifted OR alarmed OR old_classes > 0 GROUP BY component ORDER BY component";
        let rows = sqlx::query_as::<_, (String, i64, i64, i64)>(select).fetch_all(&self.readers).await?;
        let record = |(component, drifted, alarmed, old)| ComponentCount {
            component,
            drifted: count(drifted),
            alarmed: count(alarmed),
            old_classes: count(old),
        };
        Ok(rows.into_iter().map(record).collect())
    }

    pub(super) async fn visit_jvms(
        &self,
        first: Option<&NodeId>,
        visit: &mut (dyn FnMut(JvmsRecord) -> bool + Send),
    ) -> Result<()> {
        let select = "SELECT node, doc FROM jvm WHERE node >= $1 ORDER BY node LIMIT $2";
        let mut first = first.map(ToString::to_string).unwrap_or_default();
        loop {
            let rows = sqlx::query_as::<_, (String, String)>(select).bind(&first).bind(RUN);
            let rows = rows.fetch_all(&self.readers).await?;
            let last = rows.len() < RUN as usize;
            if let Some(row) = rows.last() {
                // A blank sorts before all that a name may hold.
                first = format!("{} ", row.0);
            }
            for (node, doc) in rows {
                let jvms = from_doc("JVMs of", &node, &doc)?;
                let node = NodeId::new(&*node).map_err(|source| damaged("node", &node, source))?;
                if !visit(JvmsRecord { node, jvms }) {
                    return Ok(());
                }
            }
            if last {
                return Ok(());
            }
        }
    }

    pub(super) async fn read_history(
        &self,
        node: &NodeId,
        component: Option<&ComponentId>,
        page: &Page,
    ) -> Result<Rows<HistoryRecord>> {
        let select = "SELECT sort_key, doc FROM history WHERE node = $1 AND ($2 IS NULL OR component = $2) \
                      AND sort_key > $3 ORDER BY sort_key LIMIT $4";
        let rows = sqlx::query_as(select)
            .bind(node.as_str())
            .bind(component.map(|component| component.as_str()))
            .bind(page.after.as_deref().unwrap_or_default())
            .bind(fetch_limit(page));
        Ok(cut(parse_rows("history", rows.fetch_all(&self.readers).await?)?, page))
    }
}
