//! Globs of paths: `*` and `?` within a name, `**` across directories. Bounded work, whatever the pattern.

/// The longest pattern in bytes.
const MAX_PATTERN_BYTES: usize = 256;

/// Why a pattern can't be used, or `None`.
pub(super) fn problem(pattern: &str) -> Option<&'static str> {
    if pattern.len() > MAX_PATTERN_BYTES {
        return Some("it is longer than 256 bytes");
    }
    if let Some(problem) = super::name_problem(pattern) {
        return Some(problem);
    }
    let odd = pattern.split('/').any(|part| part.contains("**") && part != "**");
    odd.then_some("`**` has to stand alone between two `/`")
}

/// Whether `path` is meant by `pattern`; both are relative to the directory.
pub(super) fn matches(pattern: &str, path: &str) -> bool {
    let (pattern, path): (Vec<&str>, Vec<&str>) = (pattern.split('/').collect(), path.split('/').collect());
    table(&pattern, &path, |part| *part == "**", |part, name| within(part, name))
}

/// One name against one part of a pattern.
fn within(part: &str, name: &str) -> bool {
    let (part, name): (Vec<char>, Vec<char>) = (part.chars().collect(), name.chars().collect());
    table(&part, &name, |c| *c == '*', |c, other| *c == '?' || c == other)
}

/// Matches by a table of (pattern, text) positions, so that no pattern takes more than their product.
fn table<P, T>(pattern: &[P], text: &[T], any: impl Fn(&P) -> bool, one: impl Fn(&P, &T) -> bool) -> bool {
    let mut row: Vec<bool> = (0..=text.len()).map(|at| at == 0).collect();
    for part in pattern {
        let mut next = vec![false; text.len() + 1];
        if any(part) {
            next[0] = row[0];
            for at in 1..=text.len() {
                next[at] = next[at - 1] || row[at];
            }
        } else {
            for at in 1..=text.len() {
                next[at] = row[at - 1] && one(part, &text[at - 1]);
            }
        }
        row = next;
    }
    row[text.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stay_within_a_name_and_double_stars_do_not() {
        for (pattern, path, expected) in [
            ("local/**", "local/a", true),
            ("local/**", "local/a/b", true),
            ("local/**", "locale/a", false),
            ("*.log", "a.log", true),
            ("*.log", "a/b.log", false),
            ("**/*.log", "b.log", true),
            ("**/*.log", "a/b/c.log", true),
            ("**", "a/b", true),
            ("a/*/c", "a/b/c", true),
            ("a/*/c", "a/b/b/c", false),
            ("a/**/c", "a/c", true),
            ("conf?.ini", "conf1.ini", true),
            ("conf?.ini", "conf.ini", false),
            ("a*b*c", "a--b--c", true),
            ("a", "b", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_ends() {
        let pattern = "a*".repeat(100) + "b";
        assert!(!matches(&pattern, &"a".repeat(250)));
    }

    #[test]
    fn patterns_that_leave_are_refused() {
        for pattern in ["", "/etc/**", "../**", "a/***", "a**", "**b/c"] {
            assert!(problem(pattern).is_some(), "{pattern}");
        }
        assert_eq!(problem("**/local/*.ini"), None);
    }
}
