//! How spans, sizes and empty texts are written in TOML. No meaning, only notation.

/// A span such as `"1s"`, `"500ms"` or `"2m 30s"`.
pub mod span {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes it the way people do.
    pub fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*span))
    }

    /// Reads it; a bare number is refused because its unit would be a guess.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(|_| {
            D::Error::custom(format!("`{text}` is not a span; write it like \"10s\" or \"2m 30s\""))
        })
    }
}

/// A size such as `"10MiB"`, with `""` for none.
pub mod optional_size {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes it in bytes.
    pub fn serialize<S: Serializer>(size: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match size {
            Some(size) => serializer.serialize_str(&format!("{size}B")),
            None => serializer.serialize_str(""),
        }
    }

    /// Reads it.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(None);
        }
        super::parse_size(&text).map(Some).ok_or_else(|| D::Error::custom(super::size_problem(&text)))
    }
}

/// A size such as `"10MiB"`.
pub mod size {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes it in bytes.
    pub fn serialize<S: Serializer>(size: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{size}B"))
    }

    /// Reads it.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse_size(&text).ok_or_else(|| D::Error::custom(super::size_problem(&text)))
    }
}

/// A text where `""` means that nothing is set, so that a commented default file can show the key.
pub mod optional_text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// Writes the text or `""`.
    pub fn serialize<T: Serialize, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => value.serialize(serializer),
            None => serializer.serialize_str(""),
        }
    }

    /// Reads it.
    pub fn deserialize<'de, T: From<String>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok((!text.is_empty()).then(|| T::from(text)))
    }
}

fn size_problem(text: &str) -> String {
    format!("`{text}` is not a size; write it like \"512KiB\" or \"10MiB\"")
}

fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim() {
        "B" => 1,
        "kB" | "KB" => 1000,
        "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor).filter(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("10MiB"), Some(10 << 20));
        assert_eq!(parse_size("1 kB"), Some(1000));
        for text in ["", "10", "MiB", "-1MiB", "0B", "1.5MiB", "99999999999GiB", "10mib"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }
}
