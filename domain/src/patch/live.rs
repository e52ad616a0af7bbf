//! What a running JVM takes: the differences between two builds of a class that a stock HotSpot refuses, or takes
//! without effect.
//!
//! The rules are those of `RetransformClasses`: bodies of methods may differ, and nothing else. The JVM has the last
//! word; this is said beforehand, so that a patch that can't work is not tried.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Live,
    classfile::{ACC_SYNTHETIC, ClassFile, Field, Method},
};

/// `ACC_SUPER`: set or not, it means nothing since Java 8.
const ACC_SUPER: u16 = 0x0020;
/// Names the static initialiser.
const CLINIT: &str = "<clinit>";

/// What stands in the way of each class of a patch: pairs of the class that it was built from and the patched one;
/// nothing for a class that is new.
#[must_use]
pub fn live<'a>(pairs: impl IntoIterator<Item = (Option<&'a ClassFile>, &'a ClassFile)>) -> Live {
    let mut problems = Vec::new();
    for (old, new) in pairs {
        match old {
            Some(old) => problems.extend(differences(old, new)),
            None => problems.push(format!("{} is a new class", new.name)),
        }
    }
    Live { possible: problems.is_empty(), problems }
}

/// What of `new` can't take the place of `old` in a running JVM: one sentence each, none where everything can.
#[must_use]
pub fn differences(old: &ClassFile, new: &ClassFile) -> Vec<String> {
    let mut problems = Vec::new();
    let mut say = |text: String| problems.push(format!("{} {text}", new.name));
    if old.super_class != new.super_class {
        say(format!(
            "has another superclass: {}, not {}",
            or_none(&new.super_class),
            or_none(&old.super_class)
        ));
    }
    if old.interfaces != new.interfaces {
        say(format!("implements {}, not {}", list(&new.interfaces), list(&old.interfaces)));
    }
    if (old.access ^ new.access) & !ACC_SUPER != 0 {
        say("has other modifiers".to_owned());
    }
    fields(old, new, &mut say);
    methods(old, new, &mut say);
    if old.nest_host != new.nest_host {
        say("is in the nest of another class".to_owned());
    }
    members("nest member", &old.nest_members, &new.nest_members, &mut say);
    if old.record != new.record {
        say("has other record components".to_owned());
    }
    if old.permitted != new.permitted {
        say("permits other subclasses".to_owned());
    }
    problems
}

fn fields(old: &ClassFile, new: &ClassFile, say: &mut impl FnMut(String)) {
    let key = |field: &Field| (field.name.clone(), field.desc.clone());
    let before: BTreeMap<_, _> = old.fields.iter().map(|field| (key(field), field)).collect();
    let after: BTreeMap<_, _> = new.fields.iter().map(|field| (key(field), field)).collect();
    for ((name, _), field) in &after {
        match before.get(&key(field)) {
            None => say(format!("adds the field {name}")),
            Some(was) if was.access != field.access => {
                say(format!("changes the modifiers of the field {name}"))
            }
            Some(was) if was.constant != field.constant => {
                say(format!("changes the constant {name}, which a running JVM keeps"));
            }
            Some(_) => {}
        }
    }
    for ((name, _), _) in before.iter().filter(|(key, _)| !after.contains_key(*key)) {
        say(format!("removes the field {name}"));
    }
    let order = |class: &ClassFile| class.fields.iter().map(key).collect::<Vec<_>>();
    if before.keys().eq(after.keys()) && order(old) != order(new) {
        say("declares its fields in another order".to_owned());
    }
}

fn methods(old: &ClassFile, new: &ClassFile, say: &mut impl FnMut(String)) {
    let key = |method: &Method| (method.name.clone(), method.desc.clone());
    let before: BTreeMap<_, _> = old.methods.iter().map(|method| (key(method), method)).collect();
    let after: BTreeMap<_, _> = new.methods.iter().map(|method| (key(method), method)).collect();
    for method in new.methods.iter() {
        match before.get(&key(method)) {
            None => say(format!("adds {}", describe(method))),
            Some(was) if was.access != method.access => {
                say(format!("changes the modifiers of {}", describe(method)))
            }
            Some(was) if method.name == CLINIT && was.body != method.body => {
                say("changes its static initialiser, which a running JVM does not run again".to_owned());
            }
            Some(_) => {}
        }
    }
    for method in old.methods.iter().filter(|method| !after.contains_key(&key(method))) {
        say(format!("removes {}", describe(method)));
    }
}

fn members(what: &str, old: &[String], new: &[String], say: &mut impl FnMut(String)) {
    let before: BTreeSet<_> = old.iter().collect();
    let after: BTreeSet<_> = new.iter().collect();
    for name in after.difference(&before) {
        say(format!("adds the {what} {name}"));
    }
    for name in before.difference(&after) {
        say(format!("removes the {what} {name}"));
    }
}

/// A method as people know it.
pub(super) fn describe(method: &Method) -> String {
    let parameters = parameters(&method.desc).join(", ");
    match method.name.as_str() {
        CLINIT => "a static initialiser".to_owned(),
        "<init>" => format!("the constructor ({parameters})"),
        // Its name has a number that the next compilation may give to another.
        name if name.starts_with("lambda$") && method.access & ACC_SYNTHETIC != 0 => {
            format!("the lambda {name}({parameters})")
        }
        name => format!("the method {name}({parameters})"),
    }
}

/// The simple names of a descriptor's parameters; what is no descriptor is shown as it is.
pub(super) fn parameters(desc: &str) -> Vec<String> {
    let Some((inner, _)) = desc.strip_prefix('(').and_then(|rest| rest.split_once(')')) else {
        return vec![desc.to_owned()];
    };
    let mut names = Vec::new();
    let mut rest = inner;
    while !rest.is_empty() {
        let element = rest.trim_start_matches('[');
        let arrays = rest.len() - element.len();
        let (name, tail) = match element.strip_prefix('L').and_then(|class| class.split_once(';')) {
            Some((class, tail)) => (class.rsplit('/').next().unwrap_or(class).to_owned(), tail),
            None => (primitive(element.chars().next()), element.get(1..).unwrap_or("")),
        };
        names.push(name + &"[]".repeat(arrays));
        rest = tail;
    }
    names
}

fn primitive(letter: Option<char>) -> String {
    match letter {
        Some('B') => "byte",
        Some('C') => "char",
        Some('D') => "double",
        Some('F') => "float",
        Some('I') => "int",
        Some('J') => "long",
        Some('S') => "short",
        Some('Z') => "boolean",
        _ => "?",
    }
    .to_owned()
}

fn or_none(name: &Option<String>) -> &str {
    name.as_deref().unwrap_or("none")
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests;
