//! Resource names on the wire, e.g. `nodes/web-01`, and the ids in them.

use std::{fmt::Display, str::FromStr};

use upfleet_api::convert::{invalid, parse};
use upfleet_domain::{
    id::{ComponentId, Version},
    reason::Reason,
};

/// The id in a name of a collection.
pub(super) fn id<T: FromStr<Err: Display>>(name: &str, collection: &str, field: &str) -> Result<T, Reason> {
    let bare = name.strip_prefix(collection).and_then(|rest| rest.strip_prefix('/'));
    let bare = bare.ok_or_else(|| invalid(field, format!("`{name}` is not of the form `{collection}/…`")))?;
    parse(bare, field)
}

/// Component and version in the name of a release.
pub(super) fn release(name: &str, field: &str) -> Result<(ComponentId, Version), Reason> {
    let bare: String = id(name, "releases", field)?;
    let (component, version) = bare
        .split_once('@')
        .ok_or_else(|| invalid(field, format!("`{name}` is not of the form `releases/COMPONENT@VERSION`")))?;
    Ok((parse(component, field)?, parse(version, field)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use upfleet_domain::id::NodeId;

    #[test]
    fn names_give_their_ids() {
        assert_eq!(id::<NodeId>("nodes/web-01", "nodes", "name").unwrap().as_str(), "web-01");
        let (component, version) = release("releases/hello@1.1.0+x", "name").unwrap();
        assert_eq!((component.as_str(), version.as_str()), ("hello", "1.1.0+x"));
    }

    #[test]
    fn other_texts_are_refused_with_the_field() {
        for bad in ["web-01", "nodes/", "nodes/../x", "node/web-01", "nodes/a/b", ""] {
            let reason = id::<NodeId>(bad, "nodes", "name").unwrap_err();
            assert_eq!(reason.metadata["field"], "name", "{bad}");
        }
        for bad in ["releases/hello", "releases/@1", "releases/hello@", "hello@1"] {
            assert!(release(bad, "name").is_err(), "{bad}");
        }
    }
}
