//! Conversion between wire types and domain types.
//!
//! Domain to wire never fails. Wire to domain fails with an `INVALID_ARGUMENT` reason that names the field by
//! its path, e.g. `report.current.release.manifest_digest`. Nothing here fills in defaults that decide something.

pub mod agent;
mod change;
pub mod jvm;
pub mod rollout;
pub mod types;

pub use agent::{ManifestBytes, Order};
pub use types::{duration, span, time, timestamp, upgrade_state};

use upfleet_domain::reason::{Reason, ReasonCode};

/// What converting from the wire gives.
pub type Result<T> = std::result::Result<T, Reason>;

/// The reason for a field that is not valid.
#[must_use]
pub fn invalid(field: &str, problem: impl std::fmt::Display) -> Reason {
    Reason::new(ReasonCode::InvalidArgument).with("field", field).with("problem", problem)
}

/// A required message field.
///
/// # Errors
/// Where it is unset.
pub fn required<T>(value: Option<T>, field: &str) -> Result<T> {
    value.ok_or_else(|| invalid(field, "it is required"))
}

/// A name or id of one of the domain's types.
///
/// # Errors
/// Where the text is no valid one.
pub fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str, field: &str) -> Result<T> {
    if text.is_empty() {
        return Err(invalid(field, "it is required"));
    }
    text.parse().map_err(|error| invalid(field, error))
}

/// As [`parse`], but an empty text is `None`.
///
/// # Errors
/// Where the text is no valid one.
pub fn parse_optional<T: std::str::FromStr<Err: std::fmt::Display>>(
    text: &str,
    field: &str,
) -> Result<Option<T>> {
    if text.is_empty() { Ok(None) } else { parse(text, field).map(Some) }
}

/// Converts a required message field, and puts the field before the path of what is wrong in it.
///
/// # Errors
/// Where it is unset or not valid.
pub fn field<W, D: TryFrom<W, Error = Reason>>(value: Option<W>, field: &str) -> Result<D> {
    within(field, required(value, field)?.try_into())
}

/// As [`field`], but an unset field is `None`.
///
/// # Errors
/// Where it is set and not valid.
pub fn optional<W, D: TryFrom<W, Error = Reason>>(value: Option<W>, field: &str) -> Result<Option<D>> {
    value.map(|value| within(field, value.try_into())).transpose()
}

/// Converts each element of a repeated field.
///
/// # Errors
/// Where one is not valid; the path names its index.
pub fn each<W, D: TryFrom<W, Error = Reason>>(values: Vec<W>, field: &str) -> Result<Vec<D>> {
    let convert = |(index, value): (usize, W)| within(&format!("{field}[{index}]"), value.try_into());
    values.into_iter().enumerate().map(convert).collect()
}

/// Puts `outer` before the path in a failure.
///
/// # Errors
/// Those of `result`.
pub fn within<T>(outer: &str, result: Result<T>) -> Result<T> {
    result.map_err(|mut reason| {
        let path = match reason.metadata.get("field").map(String::as_str) {
            None | Some("") => outer.to_owned(),
            Some(inner) => format!("{outer}.{inner}"),
        };
        reason.metadata.insert("field".to_owned(), path);
        reason
    })
}

/// Converts each element for the wire.
pub fn all<'a, D: 'a, W: From<&'a D>>(values: impl IntoIterator<Item = &'a D>) -> Vec<W> {
    values.into_iter().map(W::from).collect()
}

#[cfg(test)]
mod tests;
