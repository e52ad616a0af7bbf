//! One patch at length: what it fixes, its classes, what it is built on, whether it can be applied live.

use upfleet_api::v1;
use upfleet_domain::patch::{
    BaseRange, PatchSpec, PatchedClass,
    finding::{Finding, Severity},
};

use super::{Paint, bytes, date, hex, id};

/// So many classes are listed before the rest is counted.
const SHOWN: usize = 40;

/// A published patch: release, counts over the fleet, then what is in it.
#[must_use]
pub fn patch_details(
    release: &v1::Release,
    spec: &PatchSpec,
    count: Option<&v1::PatchCount>,
    paint: Paint,
) -> String {
    let reference = release.r#ref.clone().unwrap_or_default();
    let artifact = release.artifacts.first();
    let mut lines = vec![
        ("patch", paint.bold(id(&release.name))),
        ("manifest", hex(reference.manifest_digest.as_ref())),
        ("artifact", artifact.map(|a| hex(a.digest.as_ref())).unwrap_or_default()),
        ("size", artifact.map(|a| bytes(a.size_bytes)).unwrap_or_default()),
        ("created", format!("{} by {}", date(release.create_time.as_ref()), id(&release.creator))),
        ("notes", release.notes.clone()),
    ];
    if let Some(count) = count {
        lines.push((
            "nodes",
            format!(
                "active {} · proved {} · retired {} · of {}",
                count.active, count.proved, count.retired, count.nodes
            ),
        ));
    }
    lines.retain(|(_, value)| !value.is_empty());
    let head: String = lines.iter().map(|(key, value)| format!("{key:<12} {value}\n")).collect();
    head + &patch_contents(spec, paint)
}

/// What is in a patch.
#[must_use]
pub fn patch_contents(spec: &PatchSpec, paint: Paint) -> String {
    let numbers = |numbers: &[u32]| numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut lines = vec![
        ("number", spec.number.to_string()),
        ("base", base(&spec.base)),
        ("requires", numbers(&spec.requires)),
        ("supersedes", numbers(&spec.supersedes)),
        ("module", spec.module.clone().unwrap_or_default()),
        ("java", java(spec.major())),
        ("live", live(spec, paint)),
    ];
    lines.retain(|(_, value)| !value.is_empty());
    let mut text: String = lines.iter().map(|(key, value)| format!("{key:<12} {value}\n")).collect();
    if !spec.needs_restart {
        for problem in &spec.live.problems {
            text.push_str(&format!("{:<12} {problem}\n", ""));
        }
    }
    let mut list = |key: &str, items: Vec<String>| {
        for (index, item) in items.iter().take(SHOWN).enumerate() {
            text.push_str(format!("{:<12} {item}", if index == 0 { key } else { "" }).trim_end());
            text.push('\n');
        }
        if items.len() > SHOWN {
            text.push_str(&format!("{:<12} and {} more\n", "", items.len() - SHOWN));
        }
    };
    list(
        "fixes",
        spec.fixes.iter().map(|fix| format!("{}  {}", fix.id, fix.text).trim_end().to_owned()).collect(),
    );
    list("classes", spec.classes.iter().map(class).collect());
    list("left over", spec.removed.clone());
    list("resources", spec.resources.iter().map(|resource| resource.name.clone()).collect());
    text
}

/// What was found wrong or odd with a patch, what would not work first.
#[must_use]
pub fn findings(findings: &[Finding], paint: Paint) -> String {
    if findings.is_empty() {
        return format!("{:<12} no findings\n", "lint");
    }
    let mut text = String::new();
    for (index, finding) in findings.iter().enumerate() {
        let key = if index == 0 { "lint" } else { "" };
        let word = match finding.severity {
            Severity::Error => paint.bad("error"),
            Severity::Warning => paint.warn("warning"),
        };
        text.push_str(&format!("{key:<12} {word} {}: {}\n", finding.rule, finding.text));
    }
    text
}

fn base(base: &BaseRange) -> String {
    let mut parts: Vec<String> = base.versions.iter().map(ToString::to_string).collect();
    match (base.from_sequence, base.to_sequence) {
        (None, None) => {}
        (Some(from), None) => parts.push(format!("from sequence {from}")),
        (None, Some(to)) => parts.push(format!("up to sequence {to}")),
        (Some(from), Some(to)) => parts.push(format!("sequence {from} to {to}")),
    }
    if parts.is_empty() { "any whose classes are the accepted ones".to_owned() } else { parts.join(", ") }
}

/// The oldest Java that reads a class file's major version.
fn java(major: u16) -> String {
    match major {
        0 => String::new(),
        1..=48 => "any".to_owned(),
        major => format!("{} or later", major - 44),
    }
}

fn live(spec: &PatchSpec, paint: Paint) -> String {
    match (spec.needs_restart, spec.live.possible) {
        (true, _) => paint.warn("no: its publisher says that it needs a restart"),
        (false, true) => paint.good("yes: it changes bodies of methods only"),
        (false, false) => paint.warn("no: it takes effect with a restart"),
    }
}

fn class(class: &PatchedClass) -> String {
    let from = match (class.is_new(), &class.parent) {
        (true, None) => "new".to_owned(),
        (_, Some(parent)) if !class.accepts.contains(parent) => {
            format!("built on a patch, {}", parent.short())
        }
        _ => class.accepts.iter().map(|digest| digest.short()).collect::<Vec<_>>().join(" or "),
    };
    format!("{}  {from} -> {}", class.name, class.patched.short())
}

#[cfg(test)]
mod tests {
    use upfleet_domain::{
        digest::Digest,
        patch::{Fix, Live},
    };

    use super::*;

    #[test]
    fn what_is_in_a_patch() {
        let class = |name: &str, accepts: &[&[u8]], parent: Option<&[u8]>| PatchedClass {
            name: name.into(),
            accepts: accepts.iter().map(|bytes| Digest::of(bytes)).collect(),
            parent: parent.map(Digest::of),
            patched: Digest::of(b"new"),
            major: 52,
        };
        let mut spec = PatchSpec {
            number: 10,
            base: BaseRange { versions: vec!["2.14.1".parse().unwrap()], ..Default::default() },
            fixes: vec![Fix { id: "CVE-2021-44228".into(), text: "JNDI look-ups are off".into() }],
            classes: vec![
                class("com.acme.Order", &[b"a"], Some(b"a")),
                class("com.acme.Tax", &[b"a"], Some(b"patch 9")),
                class("com.acme.New", &[], None),
            ],
            removed: vec![],
            resources: vec![],
            requires: vec![],
            supersedes: vec![9],
            module: None,
            live: Live { possible: false, problems: vec!["com.acme.Order adds the method total()".into()] },
            needs_restart: false,
        };
        assert_eq!(
            patch_contents(&spec, Paint::PLAIN),
            "\
number       10
base         2.14.1
supersedes   9
java         8 or later
live         no: it takes effect with a restart
             com.acme.Order adds the method total()
fixes        CVE-2021-44228  JNDI look-ups are off
classes      com.acme.Order  ca978112ca1b -> 11507a0e2f5e
             com.acme.Tax  built on a patch, 99f50d1c2c0a -> 11507a0e2f5e
             com.acme.New  new -> 11507a0e2f5e
"
            .replace("99f50d1c2c0a", &Digest::of(b"patch 9").short())
        );
        spec.needs_restart = true;
        assert!(patch_contents(&spec, Paint::PLAIN).contains("needs a restart"));
    }
}
