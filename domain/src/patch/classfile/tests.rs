//! Real class files, damaged class files, and class files made to do harm.

use proptest::prelude::*;

use super::*;
use crate::patch::fixtures::{OTHERS, TILLS, class, parsed, till};

#[test]
fn a_class_is_read_as_javap_shows_it() {
    let till = parsed(till("original"));
    assert_eq!((till.name.as_str(), till.major), ("shop.Till", 55));
    assert_eq!(till.super_class.as_deref(), Some("java.lang.Object"));
    let limit = till.field("LIMIT", "I").unwrap();
    assert_eq!(limit.constant, Some(Constant::Int(100)));
    assert_eq!(limit.access & (ACC_STATIC | ACC_FINAL), ACC_STATIC | ACC_FINAL);
    let names: Vec<_> = till.methods.iter().map(|method| method.name.as_str()).collect();
    assert_eq!(names, ["<init>", "price", "rate", "spare", "later", "lambda$later$0", "<clinit>"]);
    assert!(till.methods.iter().all(|method| method.body.is_some()));
    assert!(till.references.contains(&MemberRef {
        owner: "java.util.List".into(),
        name: "iterator".into(),
        desc: "()Ljava/util/Iterator;".into(),
    }));
    assert_eq!(till.nest_members, ["shop.Till$Drawer"]);
    assert!(
        till.inner
            .iter()
            .any(|inner| inner.name == "shop.Till$Drawer" && inner.outer.as_deref() == Some("shop.Till"))
    );
    for constant in [Constant::Long(1_234_567_890_123), Constant::Text("closed".into()), Constant::Int(2)] {
        assert!(till.constants.contains(&constant), "{constant:?}");
    }
}

#[test]
fn records_sealed_interfaces_and_annotations_are_read() {
    let point = parsed(class!("modern/modern/Modern$Point"));
    assert_eq!(point.record.unwrap(), ["x I", "names Ljava/util/List; Ljava/util/List<Ljava/lang/String;>;"]);
    assert_eq!(point.nest_host.as_deref(), Some("modern.Modern"));
    let modern = parsed(class!("modern/modern/Modern"));
    assert_eq!(modern.major, 61);
    assert_eq!(modern.permitted.unwrap(), ["modern.Modern$Kind", "modern.Modern$Point"]);
    let kind = parsed(class!("modern/modern/Modern$Kind$1"));
    assert!(kind.constants.contains(&Constant::Text("two\u{1}1.52.5".into())), "{:?}", kind.constants);
}

#[test]
fn code_has_the_same_digest_whatever_the_debug_information() {
    let original = parsed(till("original"));
    for other in [class!("lower/shop/Till"), class!("plain/shop/Till")] {
        assert_ne!(till("original"), other);
        assert!(original.same_but_for_debug(&parsed(other)));
    }
    for (name, bytes) in &TILLS[1..] {
        assert!(!original.same_but_for_debug(&parsed(bytes)), "{name}");
    }
    let body = parsed(till("body"));
    let changed: Vec<_> = original
        .methods
        .iter()
        .filter(|method| body.method(&method.name, &method.desc).unwrap().body != method.body)
        .map(|method| method.name.as_str())
        .collect();
    assert_eq!(changed, ["price"]);
}

#[test]
fn what_is_no_class_file_is_said_so() {
    for (bytes, problem) in [
        (&b""[..], "ends too early"),
        (b"PK\x03\x04....", "CAFEBABE"),
        (&till("original")[..500], "ends too early"),
        (&[till("original"), &[0]].concat(), "something follows its end"),
        (b"\xCA\xFE\xBA\xBE\0\0\0\x2c", "older than Java 1.1"),
        (b"\xCA\xFE\xBA\xBE\0\0\0\x34\0\0", "no slot 0"),
        (b"\xCA\xFE\xBA\xBE\0\0\0\x34\0\x02\x02", "unknown tag"),
        (b"\xCA\xFE\xBA\xBE\0\0\0\x34\0\x02\x05\0\0\0\0\0\0\0\0", "two slots"),
    ] {
        let error = ClassFile::parse(bytes).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}, not {problem}");
    }
}

#[test]
fn a_truncated_class_never_passes() {
    for bytes in TILLS.iter().map(|(_, bytes)| *bytes).chain(OTHERS) {
        for length in 0..bytes.len() {
            assert!(ClassFile::parse(&bytes[..length]).is_err(), "{length}");
        }
    }
}

#[test]
fn constants_that_refer_to_each_other_end() {
    // A `Dynamic` constant whose bootstrap method has the constant itself as argument, many times over.
    let mut bytes = b"\xCA\xFE\xBA\xBE\0\0\0\x41".to_vec();
    let utf8 = |text: &str| [&[1, 0, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let mut pool: Vec<Vec<u8>> =
        vec![utf8("A"), vec![7, 0, 1], utf8("Code"), utf8("BootstrapMethods"), utf8("()V")];
    pool.push(vec![12, 0, 1, 0, 5]);
    pool.push(vec![17, 0, 0, 0, 6]);
    pool.push(vec![15, 6, 0, 7]);
    bytes.extend(u16::try_from(pool.len() + 1).unwrap().to_be_bytes());
    bytes.extend(pool.concat());
    bytes.extend([0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1]);
    let code = [0, 1, 0, 1, 0, 0, 0, 2, 0x12, 7, 0, 0, 0, 0];
    bytes.extend([0, 1, 0, 1, 0, 5, 0, 1, 0, 3, 0, 0, 0, code.len() as u8]);
    bytes.extend(code);
    let arguments = [0, 7].repeat(500);
    let bootstraps = [&[0, 1, 0, 8, 1, 0xF4][..], &arguments].concat();
    bytes.extend([0, 1, 0, 4]);
    bytes.extend(u32::try_from(bootstraps.len()).unwrap().to_be_bytes());
    bytes.extend(bootstraps);
    let error = ClassFile::parse(&bytes).unwrap_err();
    assert_eq!(error.problem, "constants refer to each other too deeply");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Real files with some bytes changed: an answer, never a panic, never an endless walk.
    #[test]
    fn mutations_are_answered(
        which in 0..TILLS.len() + OTHERS.len(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let all: Vec<&[u8]> = TILLS.iter().map(|(_, bytes)| *bytes).chain(OTHERS).collect();
        let mut bytes = all[which].to_vec();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = ClassFile::parse(&bytes);
    }
}
