//! Names inside an archive or a tree: which may stand there, and which never do. Knows nothing of archives.

/// The longest path below the directory, in bytes.
pub const MAX_PATH_BYTES: usize = 1024;
/// The longest name of one file or directory, in bytes: what Linux file systems take.
const MAX_NAME_BYTES: usize = 255;

/// Why a path may not stand in an archive or a manifest, or `None` where it may: relative, with `/` between plain names.
///
/// A `:` would split a class path, a backslash is a separator elsewhere, and control characters deceive whoever reads
/// a list of files.
#[must_use]
pub fn name_problem(path: &str) -> Option<&'static str> {
    if path.is_empty() {
        return Some("it has no name");
    }
    if path.len() > MAX_PATH_BYTES {
        return Some("its name is longer than 1024 bytes");
    }
    if path.starts_with('/') {
        return Some("its name is absolute");
    }
    if path.contains('\\') {
        return Some("its name holds a backslash");
    }
    if path.contains(':') {
        return Some("its name holds a `:`");
    }
    if path.chars().any(|c| c.is_control() || is_deceptive(c)) {
        return Some("its name holds a control character");
    }
    path.split('/').find_map(|name| match name {
        "" => Some("its name holds an empty part"),
        "." => Some("its name holds `.`"),
        ".." => Some("its name leaves the directory by `..`"),
        _ if name.len() > MAX_NAME_BYTES => Some("a part of its name is longer than 255 bytes"),
        _ => None,
    })
}

/// What turns the direction of a line or is not seen at all.
fn is_deceptive(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Whether a file is a byte-code cache, which programs make for themselves: Python's `__pycache__`. It is never part of a
/// release, never carried over, and no local change: one made from an old source could be taken for the new one's.
#[must_use]
pub fn is_byte_code_cache(path: &str) -> bool {
    path.split('/').any(|name| name == "__pycache__")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_may_stand_there() {
        for name in ["a", "a/b.php", ".htaccess", "a/...", "übung/naïve.lua", "a b/c", "META-INF/MANIFEST.MF"]
        {
            assert_eq!(name_problem(name), None, "{name}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_or_deceive_may_not() {
        let long = "x".repeat(256);
        let longer = "xy/".repeat(400) + "z";
        for name in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../x",
            "a/../b",
            "a/..",
            ".",
            "./a",
            "a/./b",
            "a//b",
            "a/",
            "a\\b",
            "a:b",
            "C:",
            "a\nb",
            "a\0b",
            "a\u{1b}[2J",
            "a\u{202e}b",
            "a\u{7f}",
            &long,
            &longer,
        ] {
            assert!(name_problem(name).is_some(), "{name:?}");
        }
    }

    #[test]
    fn caches_are_known_by_their_directory() {
        assert!(is_byte_code_cache("pkg/__pycache__/a.cpython-311.pyc"));
        assert!(!is_byte_code_cache("pkg/a.pyc"), "a program without its sources is shipped like that");
    }
}
