//! Patches made from classes and from differences, on real class files.

use super::*;
use crate::patch::{
    check_spec,
    fixtures::{class, till},
    lint::tests::writer::{Writer, jar},
};

const TILL: &str = "shop/Till.class";
const DRAWER: &str = "shop/Till$Drawer.class";

fn build(entries: &[(&str, &[u8])]) -> Build {
    Build { jars: vec![jar("app.jar", entries)] }
}

fn shop(variant: &str) -> Build {
    let other = Writer::new("shop/Other").bytes();
    build(&[
        (TILL, till(variant)),
        (DRAWER, class!("original/shop/Till$Drawer")),
        ("shop/Other.class", &other),
        ("shop.properties", variant.as_bytes()),
    ])
}

fn recipe(number: u32) -> Recipe {
    Recipe { number, ..Recipe::default() }
}

fn names(made: &Made) -> Vec<&str> {
    made.spec.classes.iter().map(|class| class.name.as_str()).collect()
}

fn problem(answer: Result<Made, Reason>) -> String {
    answer.unwrap_err().message()
}

#[test]
fn a_difference_is_the_families_that_changed() {
    let made = make(&recipe(3), Source::Difference(&shop("body")), &[shop("original")], &[]).unwrap();
    assert_eq!(names(&made), ["shop.Till", "shop.Till$Drawer"]);
    let class = &made.spec.classes[0];
    assert_eq!(class.accepts, [Digest::of(till("original"))]);
    assert_eq!(class.parent, Some(Digest::of(till("original"))));
    assert_eq!((class.patched, class.major), (Digest::of(till("body")), 55));
    assert!(made.spec.live.possible);
    assert_eq!(made.entries.keys().collect::<Vec<_>>(), [DRAWER, TILL]);
    assert_eq!(check_spec(&made.spec), Ok(()));
    // What is no class is told, and goes along where that is wanted.
    assert_eq!(made.findings.len(), 1);
    assert!(made.findings[0].text.starts_with("shop.properties differs"));
    let with = Recipe { resources: true, ..recipe(3) };
    let made = make(&with, Source::Difference(&shop("body")), &[shop("original")], &[]).unwrap();
    assert_eq!(made.spec.resources[0].name, "shop.properties");
    assert_eq!(check_spec(&made.spec), Ok(()));
}

#[test]
fn what_a_running_jvm_refuses_is_in_the_description() {
    let made = make(&recipe(3), Source::Difference(&shop("lambda")), &[shop("original")], &[]).unwrap();
    assert!(!made.spec.live.possible);
    assert!(made.spec.live.problems[0].contains("adds the method again()"));
    assert_eq!(check_spec(&made.spec), Ok(()));
}

#[test]
fn several_bases_are_accepted_and_the_first_is_built_from() {
    let bases = [shop("original"), shop("constant")];
    let made = make(&recipe(3), Source::Difference(&shop("body")), &bases, &[]).unwrap();
    let mut both = [Digest::of(till("original")), Digest::of(till("constant"))];
    both.sort_unstable();
    assert_eq!(made.spec.classes[0].accepts, both);
    assert_eq!(made.spec.classes[0].parent, Some(Digest::of(till("original"))));
}

#[test]
fn a_patch_on_a_stack_has_the_stack_s_classes_as_parents() {
    let first = make(&recipe(1), Source::Difference(&shop("body")), &[shop("original")], &[]).unwrap();
    let below_jar = JarContents { name: "p1.jar".into(), entries: first.entries.clone() };
    let below = [Below { spec: &first.spec, jar: &below_jar }];
    let second = make(&recipe(2), Source::Difference(&shop("clinit")), &[shop("original")], &below).unwrap();
    let class = &second.spec.classes[0];
    assert_eq!(class.accepts, [Digest::of(till("original"))]);
    assert_eq!(class.parent, Some(Digest::of(till("body"))));
    // The build that the stack amounts to already has nothing to patch.
    let nothing = make(&recipe(2), Source::Difference(&shop("body")), &[shop("original")], &below);
    assert!(problem(nothing).contains("nothing differs"));
}

#[test]
fn line_numbers_alone_are_told() {
    let lower = build(&[(TILL, class!("lower/shop/Till")), (DRAWER, class!("original/shop/Till$Drawer"))]);
    let base = build(&[(TILL, till("original")), (DRAWER, class!("original/shop/Till$Drawer"))]);
    let made = make(&recipe(1), Source::Difference(&lower), std::slice::from_ref(&base), &[]).unwrap();
    assert_eq!(
        made.findings[0].text,
        "shop.Till differs from what it was built from in debug information only, if at all"
    );
    let without = Recipe { leave_out_debug_only: true, ..recipe(1) };
    assert!(problem(make(&without, Source::Difference(&lower), &[base], &[])).contains("nothing differs"));
}

#[test]
fn inner_classes_that_a_build_no_longer_has_are_named() {
    let base = build(&[
        (TILL, till("anonymous")),
        (DRAWER, class!("original/shop/Till$Drawer")),
        ("shop/Till$1.class", class!("anonymous/shop/Till$1")),
    ]);
    let new = build(&[(TILL, till("body")), (DRAWER, class!("original/shop/Till$Drawer"))]);
    let difference = make(&recipe(1), Source::Difference(&new), std::slice::from_ref(&base), &[]).unwrap();
    let classes = make(&recipe(1), Source::Classes(&new.jars[0]), &[base], &[]).unwrap();
    for made in [difference, classes] {
        assert_eq!(made.spec.removed, ["shop.Till$1"]);
        assert_eq!(made.findings[0].rule, Rule::Removed);
        assert_eq!(check_spec(&made.spec), Ok(()));
    }
}

#[test]
fn given_classes_are_taken_as_they_are() {
    let extra = Writer::new("shop/Extra").bytes();
    let given = jar(
        "classes",
        &[
            (TILL, till("body")),
            (DRAWER, class!("original/shop/Till$Drawer")),
            ("shop/Extra.class", &extra),
            ("messages.txt", b"hello"),
            ("META-INF/MANIFEST.MF", b"Manifest-Version: 1.0\n"),
        ],
    );
    let made = make(&recipe(1), Source::Classes(&given), &[shop("original")], &[]).unwrap();
    assert_eq!(names(&made), ["shop.Extra", "shop.Till", "shop.Till$Drawer"]);
    assert!(made.spec.classes[0].is_new());
    assert_eq!(made.spec.live.problems, ["shop.Extra is a new class"]);
    assert_eq!(made.spec.resources.len(), 1);
    assert_eq!(check_spec(&made.spec), Ok(()));
}

#[test]
fn what_is_no_class_or_in_the_wrong_place_is_refused() {
    let elsewhere = Writer::new("a/B").bytes();
    for (path, bytes, expected) in [
        ("a/C.class", &elsewhere[..], "the class at a/C.class is a.B"),
        ("a/C.class", b"text", "a.C: not a valid class file"),
        ("module-info.class", b"", "leave module-info.class out"),
        ("META-INF/versions/9/a/B.class", &elsewhere, "for some Java versions only"),
        ("a/../B.class", &elsewhere, "no path of a class"),
    ] {
        let given = jar("classes", &[(path, bytes)]);
        let problem = problem(make(&recipe(1), Source::Classes(&given), &[], &[]));
        assert!(problem.contains(expected), "{problem}");
    }
}
