//! What a running JVM takes. The same variants were put to HotSpot 17 and 25, which gave the same answers.

use super::*;
use crate::patch::fixtures::{TILLS, class, parsed, till};

fn against_original(variant: &str) -> Vec<String> {
    differences(&parsed(till("original")), &parsed(till(variant)))
}

#[test]
fn a_changed_body_takes_effect_in_a_running_jvm() {
    assert_eq!(against_original("body"), Vec::<String>::new());
    let (old, new) = (parsed(till("original")), parsed(till("body")));
    assert!(live([(Some(&old), &new)]).possible);
}

#[test]
fn t36_a_patch_that_adds_a_lambda_is_for_a_restart_only() {
    let problems = against_original("lambda");
    assert_eq!(problems, ["shop.Till adds the method again()", "shop.Till adds the lambda lambda$again$1()"]);
    assert_eq!(
        against_original("lambda_only"),
        [
            "shop.Till adds the lambda lambda$later$1()",
            "shop.Till adds the lambda lambda$price$0()",
            "shop.Till removes the lambda lambda$later$0()",
        ]
    );
}

#[test]
fn t35_one_class_that_changes_its_shape_makes_the_whole_patch_one_for_a_restart() {
    let original = parsed(till("original"));
    let (body, field, inner) =
        (parsed(till("body")), parsed(till("field")), parsed(class!("inner/shop/Till$Lid")));
    let live = live([(Some(&original), &body), (Some(&original), &field), (None, &inner)]);
    assert!(!live.possible);
    assert_eq!(live.problems, ["shop.Till adds the field extra", "shop.Till$Lid is a new class"]);
}

#[test]
fn what_hotspot_refuses_is_named() {
    for (variant, expected) in [
        ("method", "adds the method secret()"),
        ("no_method", "removes the method later()"),
        ("field", "adds the field extra"),
        ("superclass", "has another superclass: java.lang.Thread, not java.lang.Object"),
        ("interface", "implements java.io.Serializable, not nothing"),
        ("modifier", "changes the modifiers of the method price(int)"),
        ("final_class", "has other modifiers"),
        ("constant", "changes the constant LIMIT, which a running JVM keeps"),
        ("clinit", "changes its static initialiser, which a running JVM does not run again"),
        ("inner", "adds the nest member shop.Till$Lid"),
        ("anonymous", "adds the nest member shop.Till$1"),
    ] {
        let problems = against_original(variant);
        assert!(problems.contains(&format!("shop.Till {expected}")), "{variant}: {problems:?}");
    }
    for (variant, _) in &TILLS[2..] {
        assert!(!against_original(variant).is_empty(), "{variant}");
    }
}

#[test]
fn descriptors_are_spelt_as_in_the_source() {
    for (desc, expected) in [
        ("()V", ""),
        ("(IJ[Ljava/lang/String;[[ZLA;)V", "int, long, String[], boolean[][], A"),
        ("(", "("),
        ("(Lbroken)V", "?, ?, ?, ?, ?, ?, ?"),
        ("(é)V", "?"),
    ] {
        assert_eq!(parameters(desc).join(", "), expected, "{desc}");
    }
}
