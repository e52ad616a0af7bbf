//! A node's judgement, case by case.

use super::*;
use crate::patch::stack::tests::{class, known, patch, stack};

fn original(source: &str, bytes: &str) -> Original {
    Original { source: source.into(), digest: Digest::of(bytes.as_bytes()), release: None }
}

fn application(classes: &[(&str, &str)]) -> Application {
    Application {
        java: Some(17),
        classes: classes
            .iter()
            .map(|(name, bytes)| ((*name).into(), vec![original("app.jar", bytes)]))
            .collect(),
        ..Application::default()
    }
}

fn answer(
    specs: &[PatchSpec],
    application: &Application,
    mechanism: Mechanism,
) -> Result<Vec<Reason>, Reason> {
    judge(&stack(specs), &known(specs), None, application, mechanism)
}

fn refusal(specs: &[PatchSpec], application: &Application, mechanism: Mechanism) -> Reason {
    answer(specs, application, mechanism).unwrap_err()
}

#[test]
fn what_fits_passes() {
    let specs = [patch(1, &[class("a.C", "c0|x0", "c0", "c1"), class("a.New", "", "", "n1")])];
    for bytes in ["c0", "x0"] {
        assert_eq!(answer(&specs, &application(&[("a.C", bytes)]), Mechanism::JavaAgent).unwrap(), []);
    }
}

#[test]
fn t05_class_files_newer_than_the_jvm_are_refused() {
    let mut spec = patch(1, &[class("a.C", "c0", "c0", "c1")]);
    spec.classes[0].major = 69;
    let reason = refusal(&[spec], &application(&[("a.C", "c0")]), Mechanism::JavaAgent);
    assert_eq!(reason.code, ReasonCode::ClassVersion);
}

#[test]
fn t06_another_original_is_refused_with_both_digests() {
    let specs = [patch(1, &[class("a.C", "c0", "c0", "c1")])];
    let reason = refusal(&specs, &application(&[("a.C", "other")]), Mechanism::JavaAgent);
    assert_eq!(reason.code, ReasonCode::BaseMismatch);
    let text = reason.message();
    for part in [Digest::of(b"c0").to_string(), format!("{} in app.jar", Digest::of(b"other"))] {
        assert!(text.contains(&part), "{text}");
    }
    let reason = refusal(&specs, &application(&[]), Mechanism::JavaAgent);
    assert_eq!(reason.code, ReasonCode::ClassNotFound);
    let added = [patch(1, &[class("a.New", "", "", "n1")])];
    let reason = refusal(&added, &application(&[("a.New", "there")]), Mechanism::JavaAgent);
    assert_eq!(reason.code, ReasonCode::BaseMismatch);
}

#[test]
fn t08_a_class_without_the_inner_class_that_the_application_has_is_refused() {
    let specs = [patch(1, &[class("a.H", "h0", "h0", "h1")])];
    let app = application(&[("a.H", "h0"), ("a.H$1", "i0"), ("a.Hotel", "x")]);
    let reason = refusal(&specs, &app, Mechanism::JavaAgent);
    assert_eq!(reason.message(), "patch 1 ships a.H without a.H$1, which then comes from the application");
    // A patch above that ships both hides it.
    let both = patch(2, &[class("a.H", "h0", "h1", "h2"), class("a.H$1", "i0", "i0", "i2")]);
    assert!(answer(&[specs[0].clone(), both], &app, Mechanism::JavaAgent).is_ok());
}

#[test]
fn a_class_that_a_lower_patch_brought_may_be_replaced() {
    let specs = [patch(1, &[class("a.New", "", "", "n1")]), patch(2, &[class("a.New", "", "n1", "n2")])];
    assert!(answer(&specs, &application(&[]), Mechanism::JavaAgent).is_ok());
}

#[test]
fn t16_signed_packages_take_only_the_same_signers_beside_them() {
    let specs = [patch(1, &[class("a.C", "c0", "c0", "c1")])];
    let mut app = application(&[("a.C", "c0")]);
    let signers = vec!["CN=Acme".to_owned()];
    app.packages.insert(
        "a".into(),
        vec![PackageFact { source: "app.jar".into(), signers: signers.clone(), sealed: false }],
    );
    for mechanism in [Mechanism::ClassPath, Mechanism::PathingJar, Mechanism::PropertiesLauncher] {
        let reason = refusal(&specs, &app, mechanism);
        assert_eq!(reason.message(), "a.C is in a package signed by CN=Acme, the patch is signed by nobody");
    }
    assert!(answer(&specs, &app, Mechanism::JavaAgent).is_ok());
    app.patch_signers.insert(1, signers);
    assert!(answer(&specs, &app, Mechanism::ClassPath).is_ok());
}

#[test]
fn t17_sealed_packages_are_for_the_java_agent() {
    let specs = [patch(1, &[class("a.C", "c0", "c0", "c1")])];
    let mut app = application(&[("a.C", "c0")]);
    app.packages
        .insert("a".into(), vec![PackageFact { source: "app.jar".into(), signers: vec![], sealed: true }]);
    let reason = refusal(&specs, &app, Mechanism::ClassPath);
    assert_eq!(reason.message(), "a.C is in a package that app.jar seals");
    assert!(answer(&specs, &app, Mechanism::JavaAgent).is_ok());
}

#[test]
fn t18_the_entry_that_this_java_reads_decides() {
    let specs = [patch(1, &[class("a.C", "plain", "plain", "c1")])];
    let mut app = application(&[("a.C", "plain")]);
    let newer = Original { release: Some(11), ..original("app.jar", "newer") };
    app.classes.get_mut("a.C").unwrap().push(newer);
    let reason = refusal(&specs, &app, Mechanism::JavaAgent);
    assert!(reason.message().ends_with("in app.jar for Java 11 and later"), "{reason}");
    app.java = Some(8);
    assert!(answer(&specs, &app, Mechanism::JavaAgent).is_ok());
    app.java = None;
    assert!(answer(&specs, &app, Mechanism::JavaAgent).is_err());
}

#[test]
fn t19_entries_for_later_java_versions_are_not_for_patch_module() {
    let mut spec = patch(1, &[class("a.C", "c0", "c0", "c1")]);
    spec.module = Some("shop".into());
    let name = "META-INF/versions/11/a/C.class".to_owned();
    spec.resources.push(crate::patch::PatchedResource { name, digest: Digest::of(b"") });
    let app = application(&[("a.C", "c0")]);
    let reason = refusal(&[spec.clone()], &app, Mechanism::PatchModule);
    assert_eq!(reason.code, ReasonCode::MechanismUnfit);
}

#[test]
fn t20_the_module_is_the_application_s() {
    let mut spec = patch(1, &[class("a.C", "c0", "c0", "c1")]);
    spec.module = Some("shop".into());
    let mut app = application(&[("a.C", "c0")]);
    app.module = Some("store".into());
    let reason = refusal(&[spec.clone()], &app, Mechanism::PatchModule);
    assert!(reason.message().contains("patch 1 is for module shop, the application's is store"), "{reason}");
    app.module = Some("shop".into());
    assert!(answer(&[spec], &app, Mechanism::PatchModule).is_ok());
}

#[test]
fn another_copy_elsewhere_is_told() {
    let specs = [patch(1, &[class("a.C", "c0", "c0", "c1")])];
    let mut app = application(&[("a.C", "c0")]);
    app.classes.get_mut("a.C").unwrap().push(original("old.jar", "c9"));
    let notes = answer(&specs, &app, Mechanism::JavaAgent).unwrap();
    assert_eq!((notes[0].code, notes[0].metadata["source"].as_str()), (ReasonCode::ClassTwice, "old.jar"));
}

#[test]
fn a_node_looks_for_whole_families() {
    let specs = [patch(1, &[class("a.H$1", "h0", "h0", "h1")])];
    let wanted = wanted(&stack(&specs), &known(&specs));
    assert!(wanted.class("a.H") && wanted.class("a.H$2") && !wanted.class("a.Hotel"));
    assert!(wanted.packages.contains("a"));
}
