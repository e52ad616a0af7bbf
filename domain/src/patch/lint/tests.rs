//! The cases of the acceptance list that can be told from files alone.

use super::*;
use crate::{
    digest::Digest,
    patch::{
        fixtures::{class, till},
        make::{Recipe, Source, make},
    },
};

pub(crate) mod writer;

use writer::{Writer, jar};

fn build(entries: &[(&str, &[u8])]) -> Build {
    Build { jars: vec![jar("app.jar", entries)] }
}

fn look(patch: &JarContents, application: &Build) -> Vec<Finding> {
    lint(&Subject { patch, spec: None, application, below: &[], java: None })
}

/// The findings of a rule, as texts.
fn of(findings: &[Finding], rule: Rule) -> Vec<&str> {
    findings.iter().filter(|finding| finding.rule == rule).map(|finding| finding.text.as_str()).collect()
}

const TILL: &str = "shop/Till.class";
const DRAWER: &str = "shop/Till$Drawer.class";

#[test]
fn a_fix_of_a_body_has_nothing_to_be_said_of_it() {
    let drawer = class!("original/shop/Till$Drawer");
    let application = build(&[(TILL, till("original")), (DRAWER, drawer)]);
    let patch = jar("p.jar", &[(TILL, till("body")), (DRAWER, drawer)]);
    assert_eq!(look(&patch, &application), []);
}

#[test]
fn t08_a_family_that_is_shipped_in_part_is_an_error() {
    let drawer = class!("original/shop/Till$Drawer");
    let application = build(&[(TILL, till("original")), (DRAWER, drawer)]);
    let findings = look(&jar("p.jar", &[(TILL, till("body"))]), &application);
    assert_eq!(
        of(&findings, Rule::SplitFamily),
        [
            "the patch ships classes of shop.Till without shop.Till$Drawer, which then comes from app.jar: compile and ship \
          the whole family"
        ]
    );
    assert!(has_errors(&findings));
    // An inner class alone is no better.
    assert!(has_errors(&look(&jar("p.jar", &[(DRAWER, drawer)]), &application)));
}

#[test]
fn t10_a_method_that_others_use_is_missed_by_name() {
    let before = Writer::new("app/Prices").method(1, "of", "(I)I").method(1, "spare", "()V").bytes();
    let after = Writer::new("app/Prices").method(1, "of", "(J)J").bytes();
    let user = Writer::new("app/Shop").calls("app/Prices", "of", "(I)I").bytes();
    let heir = Writer::new("app/Sale").extends("app/Prices").calls("app/Sale", "of", "(I)I").bytes();
    let application =
        build(&[("app/Prices.class", &before), ("app/Shop.class", &user), ("app/Sale.class", &heir)]);
    let patch = |bytes: &[u8]| jar("p.jar", &[("app/Prices.class", bytes)]);
    assert_eq!(
        of(&look(&patch(&after), &application), Rule::Linkage),
        [
            "of(int) of app.Prices is used by app.Shop, and the patch no longer has it as it was: they would fail when \
             they use it",
            "of(int) of app.Sale is used by app.Sale, and the patch no longer has it as it was: they would fail when they \
             use it",
        ]
    );
    for (access, expected) in [(2, 2), (9, 1), (0, 0), (1, 0)] {
        let changed = Writer::new("app/Prices").method(access, "of", "(I)I").bytes();
        let findings = look(&patch(&changed), &application);
        assert_eq!(of(&findings, Rule::Linkage).len(), expected, "{access}: {findings:?}");
    }
    // Where the callers go along, there is nothing to miss.
    let (shop, sale) =
        (Writer::new("app/Shop").bytes(), Writer::new("app/Sale").extends("app/Prices").bytes());
    let all =
        jar("p.jar", &[("app/Prices.class", &after), ("app/Shop.class", &shop), ("app/Sale.class", &sale)]);
    assert_eq!(of(&look(&all, &application), Rule::Linkage), Vec::<&str>::new());
}

#[test]
fn t10_what_the_patch_uses_has_to_be_there() {
    let prices = Writer::new("app/Prices").method(1, "of", "(I)I").bytes();
    let application =
        build(&[("app/Prices.class", &prices), ("app/Shop.class", &Writer::new("app/Shop").bytes())]);
    let shop = Writer::new("app/Shop")
        .calls("app/Prices", "later", "()V")
        .calls("java/util/List", "x", "()V")
        .bytes();
    let findings = look(&jar("p.jar", &[("app/Shop.class", &shop)]), &application);
    assert_eq!(
        of(&findings, Rule::Linkage),
        ["app.Shop uses later() of app.Prices, which neither the patch nor the application has"]
    );
}

#[test]
fn t10_heirs_are_looked_at() {
    let before = Writer::new("app/Rule").access(0x0601).bytes();
    let after = Writer::new("app/Rule").access(0x0601).method(0x0401, "apply", "()V").bytes();
    let heir = Writer::new("app/Impl").implements("app/Rule").bytes();
    let application = build(&[("app/Rule.class", &before), ("app/Impl.class", &heir)]);
    let findings = look(&jar("p.jar", &[("app/Rule.class", &after)]), &application);
    assert_eq!(
        of(&findings, Rule::Linkage),
        ["app.Rule demands the method apply(), which app.Impl does not have: calls would fail"]
    );
}

#[test]
fn t11_copies_of_a_constant_are_listed() {
    let application = build(&[
        ("app/Limits.class", class!("app/app/Limits")),
        ("app/User.class", class!("app/app/User")),
        ("app/Bystander.class", class!("app/app/Bystander")),
    ]);
    let changed = Writer::new("app/Limits").constant("MAX", 54322).method(9, "twice", "(I)I").bytes();
    let findings = look(&jar("p.jar", &[("app/Limits.class", &changed)]), &application);
    assert_eq!(
        of(&findings, Rule::InlinedConstant),
        [
            "the constant app.Limits.MAX has another value, of which compilers leave copies: app.User may hold the old one \
          and should be compiled and shipped again"
        ]
    );
    assert!(!has_errors(&findings), "{findings:?}");
}

#[test]
fn t12_services_are_doubled() {
    let service = "META-INF/services/app.Rule";
    let application = build(&[(service, b"app.Old\n")]);
    let findings =
        look(&jar("p.jar", &[(service, b"app.New\n"), ("META-INF/spring.factories", b"x=y")]), &application);
    let texts = of(&findings, Rule::ServiceDoubled);
    assert!(texts[0].starts_with("META-INF/services/app.Rule is in app.jar as well"), "{texts:?}");
    assert!(texts[1].starts_with("META-INF/spring.factories adds"), "{texts:?}");
}

#[test]
fn t16_t17_signed_and_sealed_packages_are_told() {
    let drawer = class!("original/shop/Till$Drawer");
    let application = build(&[
        ("META-INF/MANIFEST.MF", b"Manifest-Version: 1.0\nSealed: true\n"),
        ("META-INF/ACME.SF", b""),
        (TILL, till("original")),
        (DRAWER, drawer),
    ]);
    let findings = look(&jar("p.jar", &[(TILL, till("body")), (DRAWER, drawer)]), &application);
    assert!(
        of(&findings, Rule::Signed)[0].contains("is signed by ACME, the patch by nobody"),
        "{findings:?}"
    );
    assert!(of(&findings, Rule::Sealed)[0].starts_with("app.jar seals the package shop"), "{findings:?}");
}

#[test]
fn t18_an_entry_for_a_later_java_hides_the_plain_one() {
    let plain = Writer::new("a/C").bytes();
    let newer = Writer::new("a/C").method(1, "more", "()V").bytes();
    let versioned = "META-INF/versions/11/a/C.class";
    let header: &[u8] = b"Multi-Release: true\n";
    let application = build(&[("META-INF/MANIFEST.MF", header), ("a/C.class", &plain), (versioned, &newer)]);
    let fixed = Writer::new("a/C").constant("X", 1).bytes();
    let changed = build(&[("META-INF/MANIFEST.MF", header), ("a/C.class", &fixed), (versioned, &newer)]);
    // The change would be without effect from Java 11 on, inside the jar as well as in a patch.
    let recipe = Recipe { number: 1, ..Recipe::default() };
    let bases = std::slice::from_ref(&application);
    let made = make(&recipe, Source::Difference(&changed), bases, &[]).unwrap();
    assert!(
        of(&made.findings, Rule::MultiRelease)[0].contains("would have an effect"),
        "{:?}",
        made.findings
    );
    assert_eq!(made.spec.classes[0].accepts, [Digest::of(&plain)]);
    let spec = made.spec;
    let jar = jar("p.jar", &[("a/C.class", &fixed)]);
    let subject =
        Subject { patch: &jar, spec: Some(&spec), application: &application, below: &[], java: None };
    let findings = lint(&subject);
    assert!(
        of(&findings, Rule::MultiRelease)[0].starts_with("from Java 11 on, app.jar runs"),
        "{findings:?}"
    );
    assert!(has_errors(&findings));
    // Given by itself, the class takes the place of both.
    let made = make(&recipe, Source::Classes(&jar), bases, &[]).unwrap();
    assert_eq!(made.spec.classes[0].accepts.len(), 2);
    let findings = lint(&Subject { spec: Some(&made.spec), ..subject });
    assert!(!has_errors(&findings), "{findings:?}");
    assert!(
        of(&findings, Rule::MultiRelease)[0].contains("takes the place of that one, too"),
        "{findings:?}"
    );
    // What changed for later Java versions only is not in a patch.
    let later = build(&[("META-INF/MANIFEST.MF", header), ("a/C.class", &plain), (versioned, &fixed)]);
    let extra = Writer::new("a/D").bytes();
    let later =
        Build { jars: vec![later.jars[0].clone(), super::tests::jar("d.jar", &[("a/D.class", &extra)])] };
    let made = make(&recipe, Source::Difference(&later), bases, &[]).unwrap();
    assert!(of(&made.findings, Rule::MultiRelease)[0].contains("is not in the patch"), "{:?}", made.findings);
}

#[test]
fn t19_versioned_entries_in_a_patch_are_refused() {
    let class = Writer::new("a/C").bytes();
    let versioned = "META-INF/versions/11/a/C.class";
    for (header, expected) in [
        (&b""[..], "does not say `Multi-Release: true`"),
        (b"Multi-Release: true\n", "not at all under --patch-module"),
    ] {
        let patch = jar("p.jar", &[("META-INF/MANIFEST.MF", header), (versioned, &class)]);
        let findings = look(&patch, &Build::default());
        assert!(of(&findings, Rule::MultiRelease)[0].contains(expected), "{findings:?}");
        assert!(has_errors(&findings));
        let recipe = Recipe { number: 1, ..Recipe::default() };
        assert!(make(&recipe, Source::Classes(&patch), &[], &[]).is_err());
    }
}

#[test]
fn t05_and_what_else_a_jvm_would_not_load() {
    let drawer = class!("original/shop/Till$Drawer");
    let patch = jar(
        "p.jar",
        &[
            (TILL, till("body")),
            (DRAWER, drawer),
            ("module-info.class", b"x"),
            ("java/lang/Extra.class", &Writer::new("java/lang/Extra").bytes()),
            ("wrong/Place.class", &Writer::new("right/Place").bytes()),
            ("not/A.class", b"text"),
        ],
    );
    let application = build(&[(TILL, till("original")), (DRAWER, drawer)]);
    let subject = Subject { patch: &patch, spec: None, application: &application, below: &[], java: Some(8) };
    let findings = lint(&subject);
    assert!(of(&findings, Rule::ClassVersion)[0].starts_with("shop.Till needs Java 11 (major version 55)"));
    assert_eq!(
        of(&findings, Rule::Platform),
        ["java.lang.Extra is a class of the platform, which no patch may define"]
    );
    assert_eq!(of(&findings, Rule::ModuleInfo).len(), 1);
    assert_eq!(of(&findings, Rule::ClassFile).len(), 2);
}

#[test]
fn live_problems_are_warnings() {
    let drawer = class!("original/shop/Till$Drawer");
    let application = build(&[(TILL, till("original")), (DRAWER, drawer)]);
    let findings = look(&jar("p.jar", &[(TILL, till("field")), (DRAWER, drawer)]), &application);
    assert_eq!(
        of(&findings, Rule::Live),
        ["shop.Till adds the field extra: it takes a restart to have effect"]
    );
    assert!(!has_errors(&findings));
}
