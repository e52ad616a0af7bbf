//! Rules about Cargo files: every dependency is declared once and used, every package inherits the lints.

use std::{collections::BTreeSet, fs};

use crate::{none, root};

const MEMBERS: [&str; 5] = [".", "domain", "controller", "node-agent", "bench"];

fn manifest(member: &str) -> toml::Table {
    fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap().parse().unwrap()
}

fn names(table: &toml::Table, key: &str) -> BTreeSet<String> {
    table
        .get(key)
        .and_then(toml::Value::as_table)
        .map(|table| table.keys().cloned().collect())
        .unwrap_or_default()
}

#[test]
fn dependencies_are_declared_once_and_used() {
    let root = manifest(".");
    let workspace = root["workspace"].as_table().unwrap();
    let mut unused = names(workspace, "dependencies");
    let mut faults = Vec::new();
    for member in MEMBERS {
        let table = manifest(member);
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for name in names(&table, kind) {
                unused.remove(&name);
                let entry = &table[kind][&name];
                let inherits = entry.get("workspace").and_then(toml::Value::as_bool) == Some(true);
                if !inherits {
                    faults.push(format!("{member}/Cargo.toml: `{name}` does not say `workspace = true`"));
                }
            }
        }
    }
    faults.extend(
        unused.into_iter().map(|name| format!("[workspace.dependencies] `{name}` is used by no member")),
    );
    none("each dependency stands in [workspace.dependencies], and is used", &faults);
}

#[test]
fn packages_inherit_the_house() {
    let mut faults = Vec::new();
    for member in MEMBERS {
        let table = manifest(member);
        if table.get("lints").and_then(|lints| lints.get("workspace")).is_none() {
            faults.push(format!("{member}/Cargo.toml: [lints] workspace = true"));
        }
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            if table["package"].get(key).and_then(|value| value.get("workspace")).is_none() {
                faults.push(format!("{member}/Cargo.toml: {key}.workspace = true"));
            }
        }
    }
    none("each package inherits version, edition, licence and lints", &faults);
}

#[test]
fn the_domain_depends_on_nothing_that_acts() {
    let allowed = ["serde", "serde_json", "sha2", "thiserror"];
    let faults: Vec<_> = names(&manifest("domain"), "dependencies")
        .into_iter()
        .filter(|name| !allowed.contains(&name.as_str()))
        .collect();
    none("domain's dependencies are data types and hashes", &faults);
}

/// The example is built with what the workspace has, and copied with what its own manifest says.
#[test]
fn the_example_names_what_it_is_tested_with() {
    let workspace = manifest(".");
    let ours = &workspace["workspace"]["dependencies"];
    let example = manifest("examples/handover/rust");
    let version = |entry: &toml::Value| entry.get("version").unwrap_or(entry).as_str().map(str::to_owned);
    let mut faults = Vec::new();
    for name in names(&example, "dependencies") {
        let said = version(&example["dependencies"][&name]);
        if ours.get(&name).and_then(version) != said {
            faults
                .push(format!("examples/handover/rust/Cargo.toml: `{name}` {said:?} is not the workspace's"));
        }
    }
    none("the example's dependencies are the workspace's", &faults);
}
