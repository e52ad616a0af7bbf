//! Pages of a list: tokens that are bound to the query they came from.

use serde::Serialize;
use upfleet_domain::{
    digest::Digest,
    reason::{Reason, ReasonCode},
};

/// Used where a caller asks for no size.
pub const DEFAULT_PAGE: u32 = 50;
/// The largest page.
pub const MAX_PAGE: u32 = 1000;

/// Which part of a list is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Only rows after this key; `None` for the first page.
    pub after: Option<String>,
    /// At most this many rows.
    pub limit: u32,
}

impl Page {
    /// Everything at once: for the controller's own loops, not for callers.
    pub const ALL: Self = Self { after: None, limit: u32::MAX };

    /// The first `limit` rows.
    #[must_use]
    pub fn first(limit: u32) -> Self {
        Self { after: None, limit }
    }

    /// Reads a caller's page size and token. `query` is all that selects rows, without size and token.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` where the token is none, or came from another query.
    pub fn parse<Q: Serialize>(size: u32, token: &str, query: &Q) -> Result<Self, Reason> {
        let limit = if size == 0 { DEFAULT_PAGE } else { size.min(MAX_PAGE) };
        if token.is_empty() {
            return Ok(Self { after: None, limit });
        }
        let problem = |problem| {
            Reason::new(ReasonCode::InvalidArgument).with("field", "page_token").with("problem", problem)
        };
        let (bound, key) = token.split_once('.').ok_or_else(|| problem("it is no page token"))?;
        if bound != fingerprint(query) {
            return Err(problem("it belongs to another query"));
        }
        let after = unhex(key).ok_or_else(|| problem("it is no page token"))?;
        Ok(Self { after: Some(after), limit })
    }
}

/// Some rows, and where the next ones begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// The key of the last row; `None` where no rows follow.
    pub next: Option<String>,
}

impl<T> Rows<T> {
    /// The token for the next page, empty on the last.
    #[must_use]
    pub fn token<Q: Serialize>(&self, query: &Q) -> String {
        let hex = |key: &String| key.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
        self.next.as_ref().map(|key| format!("{}.{}", fingerprint(query), hex(key))).unwrap_or_default()
    }
}

fn fingerprint<Q: Serialize>(query: &Q) -> String {
    let bytes = serde_json::to_vec(query).expect("a query is plain data with string keys");
    Digest::of(&bytes).short()
}

fn unhex(text: &str) -> Option<String> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let digits = digits?;
    if digits.len() % 2 != 0 {
        return None;
    }
    String::from_utf8(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_on_within_its_query_only() {
        let rows = Rows { rows: vec![1], next: Some("web-01/ä".to_owned()) };
        let token = rows.token(&("env=prod", 7));
        assert_eq!(Page::parse(5, &token, &("env=prod", 7)).unwrap().after.as_deref(), Some("web-01/ä"));
        for (token, query) in [(token.as_str(), "env=dev"), ("x", "env=prod"), ("a.b", "env=prod")] {
            let reason = Page::parse(5, token, &(query, 7)).unwrap_err();
            assert_eq!(reason.code, ReasonCode::InvalidArgument, "{token}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        for (size, limit) in [(0, DEFAULT_PAGE), (7, 7), (1_000_000, MAX_PAGE)] {
            assert_eq!(Page::parse(size, "", &()).unwrap().limit, limit);
        }
    }
}
