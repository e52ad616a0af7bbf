//! Class files for tests, compiled from the sources beside them by `fixtures/build.sh`.

use super::classfile::ClassFile;

/// The bytes of a class file below `fixtures/`.
macro_rules! class {
    ($path:literal) => {{
        let bytes: &'static [u8] =
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/patch/fixtures/", $path, ".class"));
        bytes
    }};
}
pub(crate) use class;

/// Variants of `shop.Till`, by what each changes.
pub(crate) const TILLS: [(&str, &[u8]); 15] = [
    ("original", class!("original/shop/Till")),
    ("body", class!("body/shop/Till")),
    ("lambda", class!("lambda/shop/Till")),
    ("lambda_only", class!("lambda_only/shop/Till")),
    ("method", class!("method/shop/Till")),
    ("no_method", class!("no_method/shop/Till")),
    ("field", class!("field/shop/Till")),
    ("superclass", class!("superclass/shop/Till")),
    ("interface", class!("interface/shop/Till")),
    ("modifier", class!("modifier/shop/Till")),
    ("final_class", class!("final_class/shop/Till")),
    ("constant", class!("constant/shop/Till")),
    ("clinit", class!("clinit/shop/Till")),
    ("inner", class!("inner/shop/Till")),
    ("anonymous", class!("anonymous/shop/Till")),
];

/// Classes of newer Java versions, and others that hold what `Till` does not.
pub(crate) const OTHERS: [&[u8]; 8] = [
    class!("modern/modern/Modern"),
    class!("modern/modern/Modern$Kind"),
    class!("modern/modern/Modern$Kind$1"),
    class!("modern/modern/Modern$Marks"),
    class!("modern/modern/Modern$Point"),
    class!("original/shop/Till$Drawer"),
    class!("plain/shop/Till"),
    class!("app/app/User"),
];

/// A variant of `shop.Till`.
pub(crate) fn till(variant: &str) -> &'static [u8] {
    TILLS.iter().find(|(name, _)| *name == variant).expect("there is such a fixture").1
}

/// The same, read.
pub(crate) fn parsed(bytes: &[u8]) -> ClassFile {
    ClassFile::parse(bytes).expect("fixtures are valid")
}
