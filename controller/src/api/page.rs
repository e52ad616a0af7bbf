//! Pages of lists: the wire's size and token, bound to the query they came from.

use serde::Serialize;
use tonic::{Response, Status};
use upfleet_domain::reason::Reason;

use super::{Answer, refuse};
use crate::store::{Page, Rows};

/// Reads a caller's page.
pub(super) fn page<Q: Serialize>(size: u32, token: &str, query: &Q) -> Result<Page, Status> {
    Page::parse(size, token, query).map_err(refuse)
}

/// Answers with a page: its rows shown by `show`, and the token of the next.
pub(super) fn listed<T, W, R, Q: Serialize>(
    result: Result<Rows<T>, Reason>,
    query: &Q,
    show: impl Fn(&T) -> W,
    wrap: impl FnOnce(Vec<W>, String) -> R,
) -> Answer<R> {
    let rows = result.map_err(refuse)?;
    let token = rows.token(query);
    Ok(Response::new(wrap(rows.rows.iter().map(show).collect(), token)))
}
