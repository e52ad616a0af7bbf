//! The controller's version: what it says of itself, to people and to agents.

/// The program's version.
pub const VERSION: &str = if cfg!(feature = "next") { "0.2.0" } else { env!("CARGO_PKG_VERSION") };

#[cfg(test)]
mod tests {
    #[test]
    fn the_next_version_is_the_next_minor_one() {
        let parts: Vec<u32> =
            env!("CARGO_PKG_VERSION").split('.').map(|part| part.parse().unwrap()).collect();
        assert_eq!(parts[..2], [0, 1], "the feature `next` names the version after this one");
    }
}
