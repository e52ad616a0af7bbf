//! Records of changes: who, what, before, after.

use upfleet_domain::time::Time;

use crate::store::{AuditRecord, Change};

/// A record in the making.
#[derive(Clone, Debug)]
pub struct Audit(AuditRecord);

/// A record that `actor` did `action` to `object`.
#[must_use]
pub fn audit(actor: &str, action: &str, object: &str, time: Time) -> Audit {
    Audit(AuditRecord {
        sequence: 0,
        actor: actor.to_owned(),
        request_id: String::new(),
        action: action.to_owned(),
        object: object.to_owned(),
        before: serde_json::Value::Null,
        after: serde_json::Value::Null,
        time,
    })
}

impl Audit {
    /// What it was.
    #[must_use]
    pub fn before(mut self, value: serde_json::Value) -> Self {
        self.0.before = value;
        self
    }

    /// What it is now.
    #[must_use]
    pub fn after(mut self, value: serde_json::Value) -> Self {
        self.0.after = value;
        self
    }

    /// The request's id.
    #[must_use]
    pub fn request(mut self, once: Option<&super::Once>) -> Self {
        self.0.request_id = once.map(|once| once.id.clone()).unwrap_or_default();
        self
    }

    /// As a change, for the batch that does it.
    #[must_use]
    pub fn change(self) -> Change {
        Change::Audit(self.0)
    }
}
