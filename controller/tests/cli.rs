//! The command line as a person or a script meets it: the real executable, without a controller.

#![expect(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

/// Runs `upfleet` with a home of its own.
fn upfleet(home: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_upfleet"))
        .args(arguments)
        .env_remove("UPFLEET_CONTEXT")
        .env_remove("NO_COLOR")
        .env("UPFLEET_CONFIG", home.join("config.toml"))
        .output()
        .expect("the executable was built with this test")
}

fn check(home: &Path, arguments: &[&str], code: i32) -> (String, String) {
    let output = upfleet(home, arguments);
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{stdout}\n{stderr}");
    (stdout, stderr)
}

/// A context that leads to a port where nobody listens.
fn add_context(home: &Path, name: &str, extra: &[&str]) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let cert = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
    fs::write(home.join("ca.pem"), &cert).unwrap();
    fs::write(home.join("key.pem"), key.serialize_pem()).unwrap();
    let file = |name: &str| home.join(name).display().to_string();
    let (ca, key) = (file("ca.pem"), file("key.pem"));
    let mut arguments =
        vec!["context", "add", name, "--address", "127.0.0.1:1", "--server-name", "localhost"];
    arguments.extend(["--ca", &ca, "--cert", &ca, "--key", &key]);
    arguments.extend(extra);
    check(home, &arguments, 0);
}

#[test]
fn help_and_version_need_nothing() {
    let home = tempfile::tempdir().unwrap();
    let (help, _) = check(home.path(), &["--help"], 0);
    for noun in [
        "context", "artifact", "release", "node", "patch", "token", "user", "plan", "rollout", "dev", "serve",
    ] {
        assert!(help.contains(noun), "{noun} is missing in:\n{help}");
    }
    let (version, _) = check(home.path(), &["version"], 0);
    assert!(version.starts_with("upfleet "), "{version}");
    let (codes, _) = check(home.path(), &["help", "exit-codes"], 0);
    assert!(codes.contains("| 77 |"), "{codes}");
}

#[test]
fn what_is_not_valid_exits_with_2() {
    let home = tempfile::tempdir().unwrap();
    check(home.path(), &["no-such-noun"], 2);
    check(home.path(), &["rollout", "start", "--release", "hello@1", "--wave", "200%"], 2);
    check(home.path(), &["dev", "--agents", "0"], 2);
    let (_, error) = check(home.path(), &["plan"], 2);
    assert!(error.contains("error: nothing to change") && error.contains("hint:"), "{error}");
}

#[test]
fn without_a_context_it_says_how_to_get_one() {
    let home = tempfile::tempdir().unwrap();
    let (_, error) = check(home.path(), &["node", "list"], 2);
    assert!(error.contains("no context is selected") && error.contains("upfleet dev"), "{error}");
    let (_, error) = check(home.path(), &["node", "list", "--context", "prod"], 2);
    assert!(error.contains("there is no context `prod`"), "{error}");
}

#[test]
fn a_controller_that_is_away_exits_with_69() {
    let home = tempfile::tempdir().unwrap();
    add_context(home.path(), "away", &[]);
    for arguments in [&["node", "list"][..], &["rollout", "list"], &["plan", "--release", "hello@1.1.0"]] {
        let (out, error) = check(home.path(), arguments, 69);
        assert_eq!(out, "");
        assert!(error.contains("could not reach the controller at 127.0.0.1:1"), "{error}");
        assert!(error.contains("Connection refused"), "{error}");
    }
}

#[test]
fn a_protected_context_is_not_changed_by_accident() {
    let home = tempfile::tempdir().unwrap();
    add_context(home.path(), "prod", &["--protect"]);
    let (_, error) = check(home.path(), &["node", "cordon", "web-01"], 2);
    assert!(error.contains("context `prod` is protected") && error.contains("--confirm prod"), "{error}");
    check(home.path(), &["node", "cordon", "web-01", "--confirm", "other"], 2);
    // Confirmed, it gets as far as the controller that is not there; reading needs no confirmation.
    check(home.path(), &["node", "cordon", "web-01", "--confirm", "prod"], 69);
    check(home.path(), &["node", "show", "web-01"], 69);
}

#[test]
fn contexts_are_kept() {
    let home = tempfile::tempdir().unwrap();
    let (empty, _) = check(home.path(), &["context", "list"], 0);
    assert!(empty.starts_with("No contexts"), "{empty}");
    add_context(home.path(), "a", &[]);
    add_context(home.path(), "b", &["--use"]);
    let (json, _) = check(home.path(), &["context", "list", "-o", "json"], 0);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["contexts"][1]["name"], "b");
    assert_eq!(json["contexts"][1]["selected"], true);
    check(home.path(), &["context", "use", "a"], 0);
    let (_, error) = check(home.path(), &["context", "remove", "b"], 2);
    assert!(error.contains("add --yes"), "{error}");
    check(home.path(), &["context", "remove", "b", "--yes"], 0);
    let (list, _) = check(home.path(), &["context", "list"], 0);
    assert!(!list.contains(" b "), "{list}");
}

#[test]
fn colours_are_for_terminals_and_those_who_ask() {
    let home = tempfile::tempdir().unwrap();
    let (_, plain) = check(home.path(), &["node", "list"], 2);
    assert!(!plain.contains('\x1b'), "{plain:?}");
    let (_, painted) = check(home.path(), &["node", "list", "--color", "always"], 2);
    assert!(painted.contains("\x1b[31merror:"), "{painted:?}");
}

#[test]
fn each_shell_gets_a_completion_script() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let (script, _) = check(home.path(), &["completion", shell], 0);
        assert!(script.contains("rollout"), "{shell}");
    }
}

/// A class file `name` with one method, `int f()`, that returns `value`.
fn class(name: &str, value: u8) -> Vec<u8> {
    let mut bytes = vec![0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, 52, 0, 8];
    let mut utf8 = |text: &str| {
        bytes.extend([1, 0, u8::try_from(text.len()).unwrap()]);
        bytes.extend(text.as_bytes());
    };
    // 1: this, 2: super, 3: method, 4: its type, 5: attribute.
    for text in [name, "java/lang/Object", "f", "()I", "Code"] {
        utf8(text);
    }
    bytes.extend([7, 0, 1, 7, 0, 2]);
    // Public class 6 extends 7, no interfaces, no fields, one public method 3 of type 4 with a body of two bytes.
    bytes.extend([0, 0x21, 0, 6, 0, 7, 0, 0, 0, 0, 0, 1, 0, 1, 0, 3, 0, 4, 0, 1, 0, 5, 0, 0, 0, 14]);
    bytes.extend([0, 1, 0, 1, 0, 0, 0, 2, 3 + value, 0xac, 0, 0, 0, 0, 0, 0]);
    bytes
}

/// A directory of classes.
fn classes(home: &Path, dir: &str, values: &[(&str, u8)]) -> String {
    let dir = home.join(dir);
    for (name, value) in values {
        let path = dir.join(format!("{name}.class"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, class(name, *value)).unwrap();
    }
    dir.display().to_string()
}

#[test]
fn a_patch_is_built_from_the_difference_of_two_builds_without_a_controller() {
    let home = tempfile::tempdir().unwrap();
    let old = classes(home.path(), "old", &[("com/acme/Order", 1), ("com/acme/Tax", 1)]);
    let new = classes(home.path(), "new", &[("com/acme/Order", 2), ("com/acme/Tax", 1)]);
    let build = |out: &str, extra: &[&str], code: i32| {
        let out = home.path().join(out).display().to_string();
        let mut arguments = vec!["patch", "build", "--component", "payments", "--number", "10"];
        arguments.extend(["--from", &old, "--to", &new, "--fix", "CVE-1=no more look-ups", "--out", &out]);
        arguments.extend(extra);
        check(home.path(), &arguments, code)
    };
    let (text, _) = build("patch10.upfleet", &["--base-version", "2.14.1", "--supersedes", "9"], 0);
    for line in [
        "payments@p10 in ",
        "number       10\n",
        "base         2.14.1\n",
        "supersedes   9\n",
        "java         8 or later\n",
        "live         yes: it changes bodies of methods only\n",
        "fixes        CVE-1  no more look-ups\n",
        "classes      com.acme.Order  ",
        "next: upfleet patch publish ",
    ] {
        assert!(text.contains(line), "{line:?} is missing in:\n{text}");
    }
    assert!(!text.contains("com.acme.Tax"), "{text}");
    // Equal builds make equal bytes.
    build("again.upfleet", &["--base-version", "2.14.1", "--supersedes", "9"], 0);
    for name in ["manifest.json", "payments-p10.jar"] {
        let read = |dir: &str| fs::read(home.path().join(dir).join(name)).unwrap();
        assert_eq!(read("patch10.upfleet"), read("again.upfleet"), "{name}");
    }
    // What exists is not written over.
    let (_, error) = build("again.upfleet", &[], 2);
    assert!(error.contains("exists"), "{error}");
    let (json, _) = build("json.upfleet", &["-o", "json"], 0);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["manifest"]["patch"]["classes"][0]["name"], "com.acme.Order");
    assert_eq!(json["manifest"]["version"], "p10");
}

#[test]
fn a_patch_is_built_on_another_one_and_linted() {
    let home = tempfile::tempdir().unwrap();
    let base = classes(home.path(), "base", &[("com/acme/Order", 1)]);
    let (nine, ten) = (
        classes(home.path(), "9", &[("com/acme/Order", 2)]),
        classes(home.path(), "10", &[("com/acme/Order", 3)]),
    );
    let out = |name: &str| home.path().join(name).display().to_string();
    let common = ["patch", "build", "--component", "app", "--base", &base];
    let (on, top) = (out("patch9"), out("patch10"));
    let first = ["--number", "9", "--classes", &nine, "--out", &on];
    check(home.path(), &[&common[..], &first].concat(), 0);
    let second = ["--number", "10", "--classes", &ten, "--on", &on, "--out", &top];
    let (text, _) = check(home.path(), &[&common[..], &second].concat(), 0);
    assert!(text.contains("com.acme.Order  built on a patch, "), "{text}");
    let (text, _) = check(home.path(), &["patch", "lint", &top, "--base", &base, "--on", &on], 0);
    assert!(text.contains("lint  "), "{text}");
    // A class file in the wrong place, and a jar that is not the manifest's.
    let wrong = home.path().join("wrong/com/acme");
    fs::create_dir_all(&wrong).unwrap();
    fs::write(wrong.join("Tax.class"), class("com/acme/Order", 1)).unwrap();
    let wrong = out("wrong");
    let (_, error) = check(home.path(), &["patch", "lint", &wrong, "--base", &base], 2);
    assert!(error.contains("com.acme.Order"), "{error}");
    fs::write(home.path().join("patch10/app-p10.jar"), b"PK").unwrap();
    let (_, error) = check(home.path(), &["patch", "publish", &top], 2);
    assert!(error.contains("is not the jar of the manifest") && error.contains("expected"), "{error}");
}

#[test]
fn what_only_a_controller_knows_is_asked_of_it() {
    let home = tempfile::tempdir().unwrap();
    add_context(home.path(), "away", &[]);
    for arguments in [
        &["patch", "list"][..],
        &["patch", "stack", "web-01", "--history"],
        &["patch", "diff", "web-01", "web-02"],
        &["patch", "fixes", "CVE-1", "--lacking"],
        &["node", "jvms", "--all", "--java", "17"],
        &["plan", "--patch", "app@p10", "--live"],
        &["release", "export", "app@1.2", "app@p10", "x.bundle"],
    ] {
        check(home.path(), arguments, 69);
    }
    // Without a place to look, nothing is listed.
    check(home.path(), &["node", "jvms"], 2);
    check(home.path(), &["release", "create", "app@1", "--kind", "files"], 2);
    let (_, error) = check(home.path(), &["release", "import", "/etc/hostname"], 2);
    assert!(error.contains("ARCHIVE_HOSTILE"), "{error}");
}
