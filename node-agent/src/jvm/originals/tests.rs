//! Jars, directories, fat jars and later versions, made here.

use super::*;
use crate::exec::jar;

fn zip(entries: &[(&str, &str)]) -> Vec<u8> {
    let manifest = entries.iter().find(|(name, _)| *name == jar::MANIFEST).map_or("\r\n", |(_, text)| text);
    let rest: Vec<_> = entries
        .iter()
        .filter(|(name, _)| *name != jar::MANIFEST)
        .map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()))
        .collect();
    jar::write(manifest, &rest).unwrap()
}

fn wanted() -> Wanted {
    Wanted { families: ["a.B".to_owned()].into(), packages: ["a".to_owned()].into() }
}

fn looked(places: &[PathBuf]) -> Application {
    let mut application = Application::default();
    look(places, &wanted(), &mut application);
    application
}

fn of(application: &Application, class: &str) -> Vec<(String, Digest, Option<u16>)> {
    let found = application.classes.get(class).cloned().unwrap_or_default();
    let short = |source: String| source.rsplit("/t/").next().unwrap_or_default().to_owned();
    found.into_iter().map(|o| (short(o.source), o.digest, o.release)).collect()
}

fn expect(source: &str, text: &str, release: Option<u16>) -> (String, Digest, Option<u16>) {
    (source.to_owned(), Digest::of(text.as_bytes()), release)
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("t")).unwrap();
        Self(dir)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join("t").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }
}

#[test]
fn every_place_is_found_in_order_with_its_versions() {
    let dir = Dir::new();
    dir.put("classes/a/B.class", b"in a directory");
    dir.put("classes/a/C.class", b"another family");
    let versions = "Multi-Release: true\r\nClass-Path: more/c%20d.jar gone.jar\r\n\r\n";
    let jar = dir.put(
        "b.jar",
        &zip(&[
            (jar::MANIFEST, versions),
            ("a/B.class", "base"),
            ("a/B$1.class", "inner"),
            ("META-INF/versions/11/a/B.class", "eleven"),
        ]),
    );
    dir.put("more/c d.jar", &zip(&[("META-INF/versions/11/a/B.class", "inert"), ("a/B.class", "further")]));
    let classes = dir.0.path().join("t/classes");
    let found = looked(&[classes, jar.clone(), jar]);
    let at = |source: &str, text: &str| expect(source, text, None);
    assert_eq!(
        of(&found, "a.B"),
        [
            at("classes/", "in a directory"),
            at("b.jar", "base"),
            expect("b.jar", "eleven", Some(11)),
            at("more/c d.jar", "further"),
        ]
    );
    assert_eq!(of(&found, "a.B$1"), [at("b.jar", "inner")]);
    assert_eq!(found.classes.len(), 2);
}

#[test]
fn fat_jars_are_looked_into_in_the_order_of_their_loader() {
    let dir = Dir::new();
    let inner = |text: &str| zip(&[("a/B.class", text)]);
    let entries = vec![
        ("BOOT-INF/lib/y.jar".to_owned(), inner("y")),
        ("BOOT-INF/lib/z.jar".to_owned(), inner("z")),
        ("BOOT-INF/classes/a/B.class".to_owned(), b"own".to_vec()),
        (
            "BOOT-INF/classpath.idx".to_owned(),
            b"- \"BOOT-INF/lib/z.jar\"\n- \"BOOT-INF/lib/y.jar\"\n".to_vec(),
        ),
    ];
    let fat = dir.put("fat.jar", &jar::write("\r\n", &entries).unwrap());
    let found = of(&looked(&[fat]), "a.B");
    let at = |source: &str, text: &str| expect(source, text, None);
    assert_eq!(
        found,
        [
            at("fat.jar!/BOOT-INF/classes/", "own"),
            at("fat.jar!/BOOT-INF/lib/z.jar", "z"),
            at("fat.jar!/BOOT-INF/lib/y.jar", "y"),
        ]
    );
}

#[test]
fn seals_and_wildcards() {
    let dir = Dir::new();
    dir.put("lib/2.jar", &zip(&[(jar::MANIFEST, "Sealed: true\r\n\r\n"), ("a/X.class", "x")]));
    dir.put("lib/1.jar", &zip(&[("a/B.class", "one")]));
    dir.put("lib/no.txt", b"");
    let places = places(&["lib/*".to_owned(), "gone.jar".to_owned()], &dir.0.path().join("t"));
    assert_eq!(places.len(), 3);
    let found = looked(&places);
    let sealed: Vec<bool> = found.packages["a"].iter().map(|fact| fact.sealed).collect();
    assert_eq!(sealed, [false, true]);
    assert!(found.packages["a"].iter().all(|fact| fact.signers.is_empty()));
}
