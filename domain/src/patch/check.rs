//! Whether the `patch` section of a manifest can be obeyed. Everything that reads a manifest goes through it.

use std::collections::BTreeSet;

use super::{Fix, MAX_NUMBER, PatchSpec, is_binary_name};

/// The longest id of a fix, in bytes.
pub const MAX_FIX_ID: usize = 63;
/// The longest text of a fix, a problem or a path, in bytes.
pub const MAX_TEXT: usize = 500;
/// The most classes, resources or fixes of one patch.
pub const MAX_ENTRIES: usize = 10_000;
/// The most originals that one class accepts.
pub const MAX_ACCEPTS: usize = 256;
/// The most numbers in `requires` or `supersedes`.
const MAX_NUMBERS: usize = 1000;

/// Checks a `patch` section.
///
/// # Errors
/// What is wrong, as a sentence's end.
pub fn check_spec(spec: &PatchSpec) -> Result<(), String> {
    if spec.number == 0 || spec.number > MAX_NUMBER {
        return Err(format!("patch number {} is not between 1 and {MAX_NUMBER}", spec.number));
    }
    if spec.classes.is_empty() && spec.resources.is_empty() {
        return Err("the patch has neither classes nor other files".to_owned());
    }
    check_fixes(&spec.fixes)?;
    base(spec)?;
    classes(spec)?;
    resources(spec)?;
    numbers(spec)?;
    if let Some(module) = spec.module.as_deref().filter(|module| !is_binary_name(module)) {
        return Err(format!("`{}` is no name of a module", module.escape_debug()));
    }
    let live = &spec.live;
    if live.possible != live.problems.is_empty() {
        return Err("`live` says that it is possible and what stands in the way, or neither".to_owned());
    }
    limit("problems of `live`", live.problems.len())?;
    match live.problems.iter().find(|text| !is_text(text)) {
        Some(_) => Err(format!("a problem of `live` is not one line of 1 to {MAX_TEXT} bytes")),
        None => Ok(()),
    }
}

/// Checks a list of fixes, of a patch or of a base.
///
/// # Errors
/// What is wrong.
pub fn check_fixes(fixes: &[Fix]) -> Result<(), String> {
    limit("fixes", fixes.len())?;
    let mut seen = BTreeSet::new();
    for fix in fixes {
        let valid = |c: char| c.is_ascii_alphanumeric() || "._-:/#".contains(c);
        if fix.id.is_empty() || fix.id.len() > MAX_FIX_ID || !fix.id.chars().all(valid) {
            return Err(format!(
                "`{}` is no id of a fix: use 1 to {MAX_FIX_ID} letters, digits, `.`, `_`, `-`, `:`, `/`, `#`",
                fix.id.escape_debug()
            ));
        }
        if !fix.text.is_empty() && !is_text(&fix.text) {
            return Err(format!("the text of fix {} is not one line of at most {MAX_TEXT} bytes", fix.id));
        }
        if !seen.insert(&fix.id) {
            return Err(format!("fix {} is there twice", fix.id));
        }
    }
    Ok(())
}

fn is_text(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_TEXT && !text.chars().any(char::is_control)
}

fn limit(what: &str, count: usize) -> Result<(), String> {
    if count > MAX_ENTRIES { Err(format!("{count} {what}, at most {MAX_ENTRIES} are read")) } else { Ok(()) }
}

fn base(spec: &PatchSpec) -> Result<(), String> {
    match (spec.base.from_sequence, spec.base.to_sequence) {
        (Some(from), Some(to)) if from > to => {
            Err(format!("no base has a sequence from {from} to {to}: the first is the higher one"))
        }
        _ => limit("base versions", spec.base.versions.len()),
    }
}

fn classes(spec: &PatchSpec) -> Result<(), String> {
    limit("classes", spec.classes.len() + spec.removed.len())?;
    sorted("classes", spec.classes.iter().map(|class| &class.name))?;
    sorted("removed classes", spec.removed.iter())?;
    for class in &spec.classes {
        let name = &class.name;
        if class.major < super::classfile::MIN_MAJOR {
            return Err(format!("{name} has major version {}, which no class file has", class.major));
        }
        if class.accepts.len() > MAX_ACCEPTS {
            return Err(format!("{name} accepts more than {MAX_ACCEPTS} originals"));
        }
        if class.accepts.iter().collect::<BTreeSet<_>>().len() != class.accepts.len() {
            return Err(format!("{name} accepts an original twice"));
        }
        if !class.accepts.is_empty() && class.parent.is_none() {
            return Err(format!(
                "{name} replaces a class, but does not say which one it was built from (`parent`)"
            ));
        }
        if spec.removed.contains(name) {
            return Err(format!("{name} is both shipped and removed"));
        }
    }
    Ok(())
}

/// Valid names in order, none twice: two manifests of the same patch then look the same.
fn sorted<'a>(what: &str, names: impl Iterator<Item = &'a String>) -> Result<(), String> {
    let mut before: Option<&String> = None;
    for name in names {
        if !is_binary_name(name) {
            return Err(format!("`{}` is no binary name of a class", name.escape_debug()));
        }
        match before {
            Some(last) if last == name => return Err(format!("{name} is twice among the {what}")),
            Some(last) if last > name => {
                return Err(format!("the {what} are not sorted: {name} comes after {last}"));
            }
            _ => before = Some(name),
        }
    }
    Ok(())
}

fn resources(spec: &PatchSpec) -> Result<(), String> {
    limit("other files", spec.resources.len())?;
    let mut seen = BTreeSet::new();
    for resource in &spec.resources {
        let name = &resource.name;
        let parts_are_names = name.split('/').all(|part| !matches!(part, "" | "." | ".."));
        let bad = |c: char| c.is_control() || matches!(c, '\\' | ':');
        if name.len() > MAX_TEXT || !parts_are_names || name.contains(bad) {
            return Err(format!("`{}` is no path in a jar", name.escape_debug()));
        }
        if name.ends_with(".class") || name.starts_with("META-INF/versions/") {
            return Err(format!(
                "{name} is not for a patch: classes go to their plain paths, and are named as classes"
            ));
        }
        if !seen.insert(name) {
            return Err(format!("{name} is there twice"));
        }
    }
    Ok(())
}

fn numbers(spec: &PatchSpec) -> Result<(), String> {
    for (what, numbers) in [("requires", &spec.requires), ("supersedes", &spec.supersedes)] {
        if numbers.len() > MAX_NUMBERS {
            return Err(format!("`{what}` has {} numbers, at most {MAX_NUMBERS} are read", numbers.len()));
        }
        if let Some(number) = numbers.iter().find(|number| **number == 0 || **number > MAX_NUMBER) {
            return Err(format!("{number} in `{what}` is not between 1 and {MAX_NUMBER}"));
        }
        if numbers.contains(&spec.number) {
            return Err(format!("patch {} is in its own `{what}`", spec.number));
        }
    }
    match spec.supersedes.iter().find(|number| **number > spec.number) {
        Some(number) => Err(format!(
            "patch {} can't supersede patch {number}, which has the higher number and so takes precedence",
            spec.number
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::stack::tests::{class, patch};

    fn check(edit: impl FnOnce(&mut PatchSpec)) -> String {
        let mut spec = patch(7, &[class("a.B", "b0", "b0", "b1"), class("a.C", "c0", "c0", "c1")]);
        edit(&mut spec);
        check_spec(&spec).err().unwrap_or_default()
    }

    #[test]
    fn a_valid_section_passes() {
        assert_eq!(check(|_| {}), "");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (problem, expected) in [
            (check(|s| s.number = 0), "number 0 is not between"),
            (check(|s| s.number = 1_000_000), "not between 1 and 999999"),
            (check(|s| s.classes.clear()), "neither classes nor other files"),
            (check(|s| s.classes.reverse()), "are not sorted: a.B comes after a.C"),
            (check(|s| s.classes[1] = s.classes[0].clone()), "a.B is twice among the classes"),
            (check(|s| s.classes[0].name = "../a".into()), "`../a` is no binary name"),
            (check(|s| s.classes[0].name = "a\n".into()), "`a\\n` is no binary name"),
            (check(|s| s.classes[0].major = 3), "a.B has major version 3"),
            (check(|s| s.classes[0].parent = None), "does not say which one it was built from"),
            (check(|s| s.classes[0].accepts = vec![s.classes[0].patched; 2]), "accepts an original twice"),
            (check(|s| s.removed.push("a.B".into())), "both shipped and removed"),
            (check(|s| s.requires.push(7)), "in its own `requires`"),
            (check(|s| s.supersedes.push(0)), "0 in `supersedes`"),
            (check(|s| s.supersedes.push(9)), "can't supersede patch 9"),
            (check(|s| s.module = Some("a b\u{7}".into())), "no name of a module"),
            (check(|s| s.live.possible = true), "neither"),
            (check(|s| s.live.problems = vec!["a\nb".into()]), "not one line"),
            (check(|s| s.fixes = vec![Fix { id: "A 1".into(), text: String::new() }]), "no id of a fix"),
            (check(|s| s.fixes = vec![Fix { id: "A".into(), text: "a\u{1b}".into() }]), "not one line"),
            (check(|s| s.fixes = vec![Fix { id: "A".into(), text: String::new() }; 2]), "there twice"),
            (check(|s| (s.base.from_sequence, s.base.to_sequence) = (Some(3), Some(2))), "from 3 to 2"),
        ] {
            assert!(problem.contains(expected), "{problem:?}, not {expected:?}");
        }
        for name in ["/etc/x", "a/../b", "a//b", "", "C:/x", "a\\b", "a/b.class", "META-INF/versions/9/a.txt"]
        {
            let resource =
                crate::patch::PatchedResource { name: name.into(), digest: crate::digest::Digest::of(b"") };
            assert!(!check(|s| s.resources.push(resource)).is_empty(), "{name}");
        }
    }
}
