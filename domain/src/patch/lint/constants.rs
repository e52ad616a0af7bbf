//! Compile-time constants that changed: who was compiled against them holds a copy.

use super::{Context, list};
use crate::patch::{
    classfile::{ACC_PRIVATE, ClassFile, Constant, Field},
    finding::{Finding, Rule},
    package,
};

pub(super) fn look(context: &Context<'_>, findings: &mut Vec<Finding>) {
    for (name, class) in &context.patched {
        let Some(old) = context.current.get(name) else { continue };
        for field in old.file.fields.iter().filter(|field| field.access & ACC_PRIVATE == 0) {
            let (Some(before), Some(after)) = (&field.constant, class.field(&field.name, &field.desc)) else {
                continue;
            };
            if after.constant.as_ref() == Some(before) {
                continue;
            }
            let holders: Vec<String> = context
                .others()
                .filter(|(other, holder)| may_hold(name, before, other, &holder.file))
                .map(|(other, _)| other.clone())
                .collect();
            findings.push(Finding::warning(Rule::InlinedConstant, name, text(name, field, &holders)));
        }
    }
}

/// A compiler leaves no trace of where a constant came from. A value that hardly occurs by chance is trace enough; of
/// a common one, whoever otherwise uses the class or stands in its package may have it from there.
fn may_hold(owner: &str, value: &Constant, name: &str, holder: &ClassFile) -> bool {
    if !holder.constants.contains(value) {
        return false;
    }
    let telling = match value {
        Constant::Int(number) => !(-128..=1024).contains(number),
        Constant::Long(number) => !(-128..=1024).contains(number),
        Constant::Float(_) | Constant::Double(_) => false,
        Constant::Text(text) => text.len() >= 4,
    };
    telling || holder.classes.contains(owner) || package(owner) == package(name)
}

fn text(owner: &str, field: &Field, holders: &[String]) -> String {
    let constant = format!("the constant {owner}.{} has another value", field.name);
    match holders {
        [] => format!("{constant}; no other class was found that holds a copy of the old one"),
        _ => format!(
            "{constant}, of which compilers leave copies: {} may hold the old one and should be compiled and shipped again",
            list(holders)
        ),
    }
}
