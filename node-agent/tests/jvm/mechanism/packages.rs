//! Signed and sealed packages, and entries for later Java versions.

use upfleet_agent::exec::jar;
use upfleet_domain::{patch::class_path_of, reason::ReasonCode, state::Layer};

use super::{
    App,
    app::{Shipped, class_bytes, classes, said, tool},
};
use crate::support::{Jdk, each_jdk, newest_jdk};

const CLASS_PATH: &str = "mechanism = \"class-path\"\njava_agents = \"forbidden\"";
const COMMAND: &str = "{java} -cp {path} demo.Main";

fn patched<'a>(jdk: &'a Jdk, jvm: &str, manifest: &str) -> (App<'a>, Layer) {
    let mut app = App::new(jdk, COMMAND, jvm);
    app.install(&classes(jdk, "888888"), manifest);
    let patch = app.greeting_patch(1, "888888", None, "PATCH1");
    (app, patch)
}

/// T17: a sealed package takes no class from another jar; the Java agent gets in.
#[test]
fn sealed_packages_are_for_the_java_agent() {
    each_jdk("mechanism::sealed_packages_are_for_the_java_agent", |jdk| {
        let sealed = "Sealed: true\r\n\r\n";
        let (app, patch) = patched(jdk, CLASS_PATH, sealed);
        let reason = app.fit(&[patch]).unwrap_err();
        assert_eq!(reason.code, ReasonCode::PackageSealed, "{reason}");
        let (app, patch) = patched(jdk, "", sealed);
        assert!(app.says(&[patch]).starts_with("value=PATCH1"));
    });
}

/// T16: a signed package takes only classes of the same signers; the Java agent gets in.
#[test]
fn signed_packages_are_for_their_signers_or_the_java_agent() {
    let Some(jdk) = newest_jdk("mechanism::signed_packages_are_for_their_signers_or_the_java_agent") else {
        return;
    };
    let keys = tempfile::tempdir().unwrap();
    let store = keys.path().join("keys").display().to_string();
    for alias in ["acme", "other"] {
        let name = format!("CN={alias}, O=Example");
        let arguments =
            ["-genkeypair", "-keyalg", "EC", "-storepass", "secret1", "-validity", "1", "-keystore"];
        tool(jdk, "keytool", &[&arguments[..], &[&store, "-alias", alias, "-dname", &name]].concat());
    }
    let sign = |jar: &str, alias: &str| {
        tool(jdk, "jarsigner", &["-keystore", &store, "-storepass", "secret1", jar, alias]);
    };
    let signed = |jvm: &str, by: Option<&str>| {
        let (mut app, mut patch) = patched(jdk, jvm, "\r\n");
        sign(&app.config.path.display().to_string(), "acme");
        if let Some(alias) = by {
            let path = keys.path().join("p.jar");
            let spec = app.known[&patch.release.manifest].clone();
            std::fs::copy(app.patcher.place().version(&patch.release.artifact), &path).unwrap();
            sign(&path.display().to_string(), alias);
            patch = app.stage(spec, &std::fs::read(&path).unwrap());
        }
        (app, patch)
    };
    for by in [None, Some("other")] {
        let (app, patch) = signed(CLASS_PATH, by);
        let reason = app.fit(std::slice::from_ref(&patch)).unwrap_err();
        assert_eq!(reason.code, ReasonCode::SignerMismatch, "{reason}");
        let text = reason.message();
        assert!(text.contains("CN=acme") && text.contains(by.map_or("nobody", |_| "CN=other")), "{text}");
        // What java would have said, at some moment of its run.
        app.switch(std::slice::from_ref(&patch));
        let launch = app.patcher.launch(app.base(), &[patch]).unwrap();
        let forced = super::app::output(&launch);
        assert!(String::from_utf8_lossy(&forced.stderr).contains("SecurityException"), "{forced:?}");
        let (app, patch) = signed("", by);
        assert!(app.says(&[patch]).starts_with("value=PATCH1"));
    }
    let (app, patch) = signed(CLASS_PATH, Some("acme"));
    assert!(app.says(&[patch]).starts_with("value=PATCH1"), "signed by the same");
}

/// T18 and T19: what a JVM of that version really reads is what has to be accepted, and is replaced.
#[test]
fn entries_for_later_versions_are_told_apart() {
    each_jdk("mechanism::entries_for_later_versions_are_told_apart", |jdk| {
        let (base, later) = (classes(jdk, "888888"), classes(jdk, "NINE"));
        let mut entries = super::app::entries(&base);
        let bytes = class_bytes(&later, "demo.Greeter");
        entries.push(("META-INF/versions/9/demo/Greeter.class".to_owned(), bytes.clone()));
        let multi = jar::write("Multi-Release: true\r\n\r\n", &entries).unwrap();
        let modern = jdk.feature >= 9;
        let value = if modern { "NINE" } else { "888888" };
        for jvm in ["", CLASS_PATH] {
            let mut app = App::new(jdk, COMMAND, jvm);
            app.install_jar(&multi);
            assert!(said(&app.base()).starts_with(&format!("value={value}")));
            let read = class_bytes(&classes(jdk, value), "demo.Greeter");
            let patched = class_bytes(&classes(jdk, "PATCH1"), "demo.Greeter");
            let right = app.patch(1, &[Shipped::over("demo.Greeter", &read, patched.clone())]);
            assert!(app.says(&[right]).starts_with("value=PATCH1"), "{jvm}");
            // For the entry that this JVM does not read.
            let other = if modern { "888888" } else { "NINE" };
            let unread = class_bytes(&classes(jdk, other), "demo.Greeter");
            let wrong = app.patch(2, &[Shipped::over("demo.Greeter", &unread, patched)]);
            assert_eq!(app.fit(&[wrong]).unwrap_err().code, ReasonCode::BaseMismatch);
        }
        let mut app = App::new(jdk, COMMAND, CLASS_PATH);
        app.install(&base, "\r\n");
        let entry = "META-INF/versions/9/demo/Greeter.class";
        let spec = serde_json::from_str(&format!(
            "{{\"number\":3,\"live\":{{\"possible\":false}},\"resources\":[{{\"name\":\"{entry}\",\"digest\":\"{}\"}}]}}",
            upfleet_domain::digest::Digest::of(&bytes)
        ));
        let inert = jar::write("\r\n", &[(entry.to_owned(), bytes)]).unwrap();
        let layer = app.stage(spec.unwrap(), &inert);
        let reason = app.fit(&[layer]).unwrap_err();
        assert!(reason.message().contains("Multi-Release"), "{reason}");
        assert_eq!(class_path_of("demo.Greeter"), "demo/Greeter.class");
    });
}
