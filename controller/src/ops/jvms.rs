//! The JVMs of the fleet, and what became of a node's components.

use upfleet_domain::{
    id::{ComponentId, NodeId},
    jvm::Jvm,
    labels::Selector,
    reason::{Reason, ReasonCode},
};

use super::{Operations, fixes::cut};
use crate::{
    failure::internal,
    store::{HistoryRecord, JvmsRecord, Page, Rows},
};

/// Which JVMs are asked for.
#[derive(Clone, Debug)]
pub struct JvmQuestion {
    /// Of which nodes.
    pub selector: Selector,
    /// Only those whose version begins so; any where empty.
    pub version: String,
    /// Only those with this text in main class, jar or class path; any where empty.
    pub contains: String,
    /// Only those that belong to no component.
    pub unmanaged: bool,
}

/// A JVM and its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JvmView {
    /// The node.
    pub node: NodeId,
    /// The JVM.
    pub jvm: Jvm,
}

impl JvmQuestion {
    fn wants(&self, jvm: &Jvm) -> bool {
        let text = |text: &String| text.contains(&self.contains);
        (!self.unmanaged || jvm.component.is_none())
            && is_version(&jvm.java_version, &self.version)
            && (self.contains.is_empty() || text(&jvm.main) || jvm.class_path.iter().any(text))
    }
}

/// Whether a Java version begins with `wanted`, part by part: `17` is 17.0.15 and not 170; `8` is 1.8.0_392.
fn is_version(version: &str, wanted: &str) -> bool {
    let begins = |version: &str| {
        let rest = version.strip_prefix(wanted);
        rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
    };
    wanted.is_empty() || begins(version) || version.strip_prefix("1.").is_some_and(begins)
}

impl Operations {
    /// JVMs, by node and process id.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` where the page begins nowhere, or what the store says.
    pub async fn list_jvms(&self, question: &JvmQuestion, page: &Page) -> Result<Rows<JvmView>, Reason> {
        let from = page.after.as_deref().map(place).transpose()?;
        let nodes = self.chosen(&question.selector).await?;
        let mut rows = Vec::new();
        let mut visit = |record: JvmsRecord| {
            if nodes.contains_key(&record.node) {
                for jvm in record.jvms.into_iter().filter(|jvm| question.wants(jvm)) {
                    let seen =
                        from.as_ref().is_some_and(|(node, pid)| *node == record.node && jvm.pid <= *pid);
                    if !seen {
                        rows.push((
                            format!("{} {}", record.node, jvm.pid),
                            JvmView { node: record.node.clone(), jvm },
                        ));
                    }
                }
            }
            rows.len() <= page.limit as usize
        };
        let first = from.as_ref().map(|(node, _)| node);
        self.store.each_jvms(first, &mut visit).await.map_err(internal)?;
        Ok(cut(rows, page))
    }

    /// What became of a node's components, newest first.
    ///
    /// # Errors
    /// `NOT_FOUND` where there is no such node, or what the store says.
    pub async fn node_history(
        &self,
        node: &NodeId,
        component: Option<&ComponentId>,
        page: &Page,
    ) -> Result<Rows<HistoryRecord>, Reason> {
        if self.store.node(node).await.map_err(internal)?.is_none() {
            return Err(Reason::new(ReasonCode::NotFound).with("what", "node").with("name", node));
        }
        self.store.history(node, component, page).await.map_err(internal)
    }
}

/// Where a page begins.
fn place(key: &str) -> Result<(NodeId, u32), Reason> {
    let place = key.split_once(' ').and_then(|(node, pid)| Some((node.parse().ok()?, pid.parse().ok()?)));
    place.ok_or_else(|| {
        Reason::new(ReasonCode::InvalidArgument)
            .with("field", "page_token")
            .with("problem", "it is no page token")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_part_by_part() {
        for (version, wanted, fits) in [
            ("17.0.15", "17", true),
            ("17.0.15", "17.0.15", true),
            ("17.0.15", "17.0.1", false),
            ("17.0.15", "1", false),
            ("1.8.0_392", "1.8", true),
            ("1.8.0_392", "8", true),
            ("25", "25", true),
            ("", "17", false),
            ("", "", true),
        ] {
            assert_eq!(is_version(version, wanted), fits, "{version} for {wanted}");
        }
    }
}
