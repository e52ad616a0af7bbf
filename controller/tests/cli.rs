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
    for noun in ["context", "artifact", "release", "node", "token", "user", "plan", "rollout", "dev", "serve"]
    {
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
