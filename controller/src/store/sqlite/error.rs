//! Sorts what SQLite says into what a caller can do about it.

use serde::{Serialize, de::DeserializeOwned};

use crate::store::StoreError;

/// SQLite's primary result codes for a store that is away and may come back: busy, locked, no memory,
/// read-only, input/output, full, can't open.
const AWAY: [i64; 7] = [5, 6, 7, 8, 10, 13, 14];

/// Those for a damaged file: corrupt, not a database.
const BROKEN: [i64; 2] = [11, 26];

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|database| database.code()?.parse::<i64>().ok());
        let is = |codes: &[i64]| code.is_some_and(|code| codes.contains(&(code & 0xff)));
        if is(&BROKEN) {
            return Self::Broken { problem: error.to_string() };
        }
        let away = match &error {
            sqlx::Error::Database(_) => is(&AWAY),
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            _ => false,
        };
        if away {
            return Self::Unavailable { operation: "access", problem: error.to_string() };
        }
        Self::Internal { operation: "access", source: Box::new(error) }
    }
}

/// What a later version may add to a document, for tests of two versions together.
#[cfg(feature = "next")]
#[derive(Serialize)]
struct Later<'a, T> {
    #[serde(flatten)]
    value: &'a T,
    added_later: u32,
}

/// Writes a row's document.
pub(super) fn to_doc<T: Serialize>(value: &T) -> String {
    #[cfg(feature = "next")]
    if let Ok(later) = serde_json::to_string(&Later { value, added_later: 7 }) {
        return later;
    }
    serde_json::to_string(value).expect("records have string keys and finite numbers")
}

/// Reads a row's document.
pub(super) fn from_doc<T: DeserializeOwned>(
    what: &'static str,
    name: &str,
    doc: &str,
) -> Result<T, StoreError> {
    serde_json::from_str(doc).map_err(|source| damaged(what, name, source))
}

/// A row that can't be read.
pub(super) fn damaged(
    what: &'static str,
    name: &str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StoreError {
    StoreError::Damaged { what, name: name.to_owned(), source: source.into() }
}

/// A count as the database keeps it. Counts begin at 0 and grow by one, so that the bound is never met.
pub(super) fn int(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A count as it is read.
pub(super) fn count(int: i64) -> u64 {
    u64::try_from(int).unwrap_or(0)
}
