//! Changes to a node's record, made on what was read and tried again where somebody else was faster.

use upfleet_domain::{
    id::NodeId,
    reason::{Reason, ReasonCode},
};

use crate::{
    failure::internal,
    store::{Change, Expected, NodeRecord, Store},
};

/// So often a change is tried again.
const ATTEMPTS: usize = 8;

/// Reads a node, lets `edit` change it and say what else goes into the same batch, and writes both.
///
/// # Errors
/// `NOT_FOUND`, whatever `edit` refuses with, or what the store says.
pub async fn edit_node<E>(store: &dyn Store, id: &NodeId, mut edit: E) -> Result<NodeRecord, Reason>
where
    E: FnMut(&mut NodeRecord) -> Result<Vec<Change>, Reason>,
{
    for _ in 0..ATTEMPTS {
        let found = store.node(id).await.map_err(internal)?;
        let mut node =
            found.ok_or_else(|| Reason::new(ReasonCode::NotFound).with("what", "node").with("name", id))?;
        let expected = Expected::Revision(node.revision);
        let mut changes = edit(&mut node)?;
        changes.insert(0, Change::PutNode { node: node.clone(), expected });
        match store.commit(changes).await {
            Ok(_) => {
                return store
                    .node(id)
                    .await
                    .map_err(internal)?
                    .ok_or_else(|| Reason::new(ReasonCode::NotFound).with("what", "node").with("name", id));
            }
            Err(error) if error.is_stale() => {}
            Err(error) => return Err(internal(error)),
        }
    }
    Err(Reason::new(ReasonCode::EtagMismatch).with("what", "node").with("name", id))
}
