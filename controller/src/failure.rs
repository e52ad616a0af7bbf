//! Failures as callers see them: the store's own reasons, or `INTERNAL` with the id of the log line.

use upfleet_domain::reason::{Reason, ReasonCode};

use crate::store::StoreError;

/// The reason to answer with. What is ours goes to the log with an id, and only the id to the caller.
#[must_use]
pub fn internal(error: StoreError) -> Reason {
    error.reason().unwrap_or_else(|| unexpected(&error))
}

/// `INTERNAL`, with the error and its causes in the log under the id that the caller gets.
#[must_use]
pub fn unexpected(error: &(dyn std::error::Error + 'static)) -> Reason {
    let log_id = uuid::Uuid::new_v4().simple().to_string();
    tracing::error!(log_id, error = chain(error), "the controller failed");
    Reason::new(ReasonCode::Internal).with("log_id", log_id)
}

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
