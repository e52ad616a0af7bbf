//! Which components are being upgraded, for those that are configured not to be so at the same time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;
use upfleet_domain::id::ComponentId;

/// Shared by all actors. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Exclusives(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Who is upgraded, and what may not be at the same time.
    held: Mutex<BTreeMap<ComponentId, Vec<ComponentId>>>,
    released: Notify,
}

impl Exclusives {
    /// Takes the right to upgrade `component`, or says which component stands in the way.
    pub(super) fn claim(&self, component: &ComponentId, others: &[ComponentId]) -> Result<(), ComponentId> {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        let clashes = |(holder, theirs): (&ComponentId, &Vec<ComponentId>)| {
            (holder != component && (others.contains(holder) || theirs.contains(component)))
                .then(|| holder.clone())
        };
        match held.iter().find_map(clashes) {
            Some(holder) => Err(holder),
            None => {
                held.insert(component.clone(), others.to_vec());
                Ok(())
            }
        }
    }

    /// Takes it whoever holds it: the upgrade was under way before a crash.
    pub(super) fn take(&self, component: &ComponentId, others: &[ComponentId]) {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.insert(component.clone(), others.to_vec());
    }

    /// Gives it back.
    pub(super) fn release(&self, component: &ComponentId) {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner).remove(component);
        self.0.released.notify_waiters();
    }

    /// Waits until somebody has given it back.
    pub(super) async fn released(&self) {
        self.0.released.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_side_may_name_the_other() {
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let rights = Exclusives::default();
        rights.claim(&a, std::slice::from_ref(&b)).unwrap();
        assert_eq!(rights.claim(&b, &[]), Err(a.clone()));
        rights.claim(&a, &[]).expect("one's own right is no obstacle");
        rights.release(&a);
        rights.claim(&b, &[]).unwrap();
    }
}
