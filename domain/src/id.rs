//! Validated names. A value of these types is safe in a path, an argument or a log line.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize};

/// A text that is no valid name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a valid {what}: use 1 to {max} letters, digits, `.`, `_`, `-`{extra}, beginning with a letter or digit"
)]
pub struct ParseIdError {
    text: String,
    what: &'static str,
    max: usize,
    extra: &'static str,
}

fn valid(text: &str, max: usize, extra: &str) -> bool {
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    let rest = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c) || extra.contains(c);
    first && text.len() <= max && text.chars().all(rest)
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal, $extra:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Checks `text`.
            ///
            /// # Errors
            /// Where it is empty, too long, or holds other characters than the type permits.
            pub fn new(text: impl Into<String>) -> Result<Self, ParseIdError> {
                let text = text.into();
                if valid(&text, $max, $extra) {
                    Ok(Self(text))
                } else {
                    let extra = if $extra.is_empty() { "" } else { concat!(" or `", $extra, "`") };
                    Err(ParseIdError { text, what: $what, max: $max, extra })
                }
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::new(text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

id_type! {
    /// A node's name, e.g. `web-01`; unique in a fleet.
    NodeId, "node name", 63, ""
}
id_type! {
    /// A component's name, e.g. `payments`.
    ComponentId, "component name", 63, ""
}
id_type! {
    /// A version as people see it, e.g. `1.4.2`. Nothing is ordered by it; `sequence` orders.
    Version, "version", 63, "+"
}
id_type! {
    /// A rollout's id, e.g. `r-7f3k2m`.
    RolloutId, "rollout id", 63, ""
}
id_type! {
    /// The id of one attempt to upgrade one component of one node.
    UpgradeId, "upgrade id", 127, ""
}
id_type! {
    /// A user's name, e.g. `anna` or `ci@build`.
    UserId, "user name", 63, "@"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_could_be_a_path_an_option_or_a_command() {
        for text in ["", "..", "../x", "-rf", "a/b", "a b", "a;b", "$(x)", "a\nb", "é", ".hidden"] {
            assert!(ComponentId::new(text).is_err(), "{text:?}");
        }
        assert!(ComponentId::new("a".repeat(64)).is_err());
    }

    #[test]
    fn takes_usual_names() {
        for text in ["web-01", "payments", "a.b_c", "0"] {
            assert!(NodeId::new(text).is_ok(), "{text}");
        }
        assert!(Version::new("1.4.2+build.7").is_ok());
        assert!(UserId::new("ci@build").is_ok());
    }
}
