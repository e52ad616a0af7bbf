//! Names of classes: which are valid, which belong together, and which Java a class file needs.

/// The longest binary name, in bytes, that a patch may ship.
pub const MAX_NAME: usize = 1024;

/// The class that a class was compiled with: what stands before the first `$` of its simple name.
/// `com.acme.Order$Line$1` belongs to `com.acme.Order`.
#[must_use]
pub fn family(name: &str) -> &str {
    let simple = name.rfind('.').map_or(0, |dot| dot + 1);
    // A name that begins with `$` is somebody's own, not a member of a class without a name.
    let start = simple + name[simple..].len() - name[simple..].trim_start_matches('$').len();
    name[start..].find('$').map_or(name, |at| &name[..start + at])
}

/// The package of a class; empty for the unnamed one.
#[must_use]
pub fn package(name: &str) -> &str {
    name.rfind('.').map_or("", |dot| &name[..dot])
}

/// The Java version that reads class files of a major version: 52 is Java 8.
#[must_use]
pub fn java_of(major: u16) -> u16 {
    major.saturating_sub(44)
}

/// Whether a text is a binary name with dots, such as `com.acme.Order$Line`, that is safe as a path in a jar.
#[must_use]
pub fn is_binary_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && !name.is_empty()
        && name.split('.').all(|part| {
            !part.is_empty()
                && part
                    .chars()
                    .all(|c| !matches!(c, '/' | '\\' | ';' | '[' | ':' | '<' | '>') && !c.is_control())
        })
}

/// The path of a class in a jar: `com/acme/Order$Line.class`.
#[must_use]
pub fn class_path_of(name: &str) -> String {
    format!("{}.class", name.replace('.', "/"))
}

/// The class at a path below the root of a jar or directory; `None` for what is no class, for `module-info` and
/// `package-info`, and for anything below `META-INF`.
#[must_use]
pub fn class_at(path: &str) -> Option<String> {
    let stem = path.strip_suffix(".class")?;
    let last = stem.rsplit('/').next().unwrap_or(stem);
    if stem.starts_with("META-INF/") || last == "module-info" || last == "package-info" || stem.contains('.')
    {
        return None;
    }
    let name = stem.replace('/', ".");
    is_binary_name(&name).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_told_by_the_first_dollar_within_a_simple_name() {
        for (name, expected) in [
            ("Order", "Order"),
            ("Order$1", "Order"),
            ("a.b.Order$Line$2", "a.b.Order"),
            ("a.$b.Order", "a.$b.Order"),
            ("a.$Proxy12", "a.$Proxy12"),
            ("a.$$Gen$1", "a.$$Gen"),
            ("a.Order$", "a.Order"),
            ("$", "$"),
        ] {
            assert_eq!(family(name), expected, "{name}");
        }
    }

    #[test]
    fn names_that_could_leave_a_jar_are_no_names() {
        for name in ["", ".", "a..b", "a/b", "..", "a.", "a:b", "a;b", "a\nb", "a\\b", "[a"] {
            assert!(!is_binary_name(name), "{name:?}");
        }
        for name in ["A", "com.acme.Order$Line", "ünï.Çode", "a.b-c", "Outer$1Local"] {
            assert!(is_binary_name(name), "{name}");
        }
    }

    #[test]
    fn paths_and_names_are_each_other() {
        assert_eq!(class_at("com/acme/A$1.class").as_deref(), Some("com.acme.A$1"));
        assert_eq!(class_path_of("com.acme.A$1"), "com/acme/A$1.class");
        for path in [
            "a/b.txt",
            "module-info.class",
            "a/package-info.class",
            "META-INF/versions/9/A.class",
            "../A.class",
        ] {
            assert_eq!(class_at(path), None, "{path}");
        }
    }
}
