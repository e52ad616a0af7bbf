//! Jars and directories as somebody else has read them: names and bytes, and what the manifest says.

use std::collections::BTreeMap;

use super::{class_at, package};

/// Where archives of web and Spring Boot applications keep their own classes.
const ROOTS: [&str; 2] = ["BOOT-INF/classes/", "WEB-INF/classes/"];

/// The files of a jar or of a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JarContents {
    /// For people: `app.jar`, or `app.jar!/BOOT-INF/lib/core.jar` for one inside another.
    pub name: String,
    /// By path, with `/`. Nested jars are `JarContents` of their own.
    pub entries: BTreeMap<String, Vec<u8>>,
}

/// A class file in a jar.
#[derive(Clone, Copy, Debug)]
pub struct ClassEntry<'a> {
    /// Its path.
    pub path: &'a str,
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Of an entry below `META-INF/versions/N`: `N`.
    pub release: Option<u16>,
}

impl JarContents {
    /// Its classes by the names that their paths give them: the plain entry first, then those for later Java versions,
    /// lowest first.
    #[must_use]
    pub fn classes(&self) -> BTreeMap<String, Vec<ClassEntry<'_>>> {
        let mut classes: BTreeMap<String, Vec<ClassEntry<'_>>> = BTreeMap::new();
        for (path, bytes) in &self.entries {
            let (plain, release) =
                unversioned(path).map_or((path.as_str(), None), |(rest, n)| (rest, Some(n)));
            let plain = ROOTS.iter().find_map(|root| plain.strip_prefix(root)).unwrap_or(plain);
            if let Some(name) = class_at(plain) {
                classes.entry(name).or_default().push(ClassEntry { path, bytes, release });
            }
        }
        for entries in classes.values_mut() {
            entries.sort_by_key(|entry| entry.release);
        }
        classes
    }

    /// Its manifest; an empty one where it has none.
    #[must_use]
    pub fn manifest(&self) -> JarManifest {
        self.entries.get("META-INF/MANIFEST.MF").map(|bytes| JarManifest::parse(bytes)).unwrap_or_default()
    }

    /// The names of its signature files: who signed it, as the jar itself calls them. Empty where nobody did.
    #[must_use]
    pub fn signers(&self) -> Vec<String> {
        let signer = |path: &String| {
            let name = path.strip_prefix("META-INF/")?;
            let stem = name.strip_suffix(".SF").or_else(|| name.strip_suffix(".sf"))?;
            (!stem.contains('/')).then(|| stem.to_owned())
        };
        self.entries.keys().filter_map(signer).collect()
    }

    /// Whether it has classes of a package.
    #[must_use]
    pub fn has_package(&self, name: &str) -> bool {
        self.classes().keys().any(|class| package(class) == name)
    }
}

/// Splits `META-INF/versions/11/a/B.class` into `a/B.class` and 11.
#[must_use]
pub fn unversioned(path: &str) -> Option<(&str, u16)> {
    let (number, rest) = path.strip_prefix("META-INF/versions/")?.split_once('/')?;
    Some((rest, number.parse().ok()?))
}

/// A jar's manifest: attributes of the whole, and of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JarManifest {
    /// The main attributes, names in lower case.
    pub main: BTreeMap<String, String>,
    /// The attributes of each path, e.g. a package's with `/` at the end.
    pub sections: BTreeMap<String, BTreeMap<String, String>>,
}

impl JarManifest {
    /// Reads it. What is no attribute is passed over, as a JVM would rather refuse it than read it otherwise.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n").replace('\r', "\n");
        // A line that begins with a space goes on the one before.
        let text = text.replace("\n ", "");
        let mut manifest = Self::default();
        let mut blocks = text.split("\n\n").map(attributes);
        manifest.main = blocks.next().unwrap_or_default();
        for mut block in blocks {
            if let Some(name) = block.remove("name") {
                manifest.sections.insert(name, block);
            }
        }
        manifest
    }

    /// Whether entries below `META-INF/versions` count.
    #[must_use]
    pub fn is_multi_release(&self) -> bool {
        is_true(self.main.get("multi-release"))
    }

    /// Whether it seals a package: no other jar may have classes of it.
    #[must_use]
    pub fn seals(&self, package: &str) -> bool {
        let section = self.sections.get(&format!("{}/", package.replace('.', "/")));
        is_true(section.and_then(|section| section.get("sealed")).or_else(|| self.main.get("sealed")))
    }
}

fn attributes(block: &str) -> BTreeMap<String, String> {
    let pairs = block.lines().filter_map(|line| line.split_once(": "));
    pairs.map(|(name, value)| (name.to_ascii_lowercase(), value.trim_end().to_owned())).collect()
}

fn is_true(value: Option<&String>) -> bool {
    value.is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_read_with_its_sections_and_long_lines() {
        let manifest = JarManifest::parse(
            b"Manifest-Version: 1.0\r\nMulti-Release: true\r\nClass-Path: lib/a-very-long\r\n -name.jar lib/b.jar\r\n\r\n\
            Name: com/acme/\r\nSealed: true\r\n\r\nName: com/acme/open/\r\nSealed: false\r\n",
        );
        assert!(manifest.is_multi_release());
        assert_eq!(manifest.main["class-path"], "lib/a-very-long-name.jar lib/b.jar");
        assert!(manifest.seals("com.acme") && !manifest.seals("com.acme.open") && !manifest.seals("org"));
        assert!(JarManifest::parse(b"Sealed: TRUE\n\nName: a/\nSealed: false\n").seals("b"));
        assert!(!JarManifest::parse(b"").is_multi_release());
    }

    #[test]
    fn classes_are_found_where_archives_keep_them() {
        let paths = [
            "com/acme/A.class",
            "META-INF/versions/9/com/acme/A.class",
            "META-INF/versions/11/com/acme/A.class",
            "BOOT-INF/classes/com/acme/B.class",
            "module-info.class",
            "a.txt",
            "META-INF/X.SF",
        ];
        let entries = paths.iter().map(|path| ((*path).to_owned(), Vec::new())).collect();
        let jar = JarContents { name: "app.jar".into(), entries };
        let classes = jar.classes();
        let releases: Vec<_> = classes["com.acme.A"].iter().map(|entry| entry.release).collect();
        assert_eq!(releases, [None, Some(9), Some(11)]);
        assert_eq!(classes["com.acme.B"][0].path, "BOOT-INF/classes/com/acme/B.class");
        assert_eq!(classes.len(), 2);
        assert_eq!(jar.signers(), ["X"]);
        assert!(jar.has_package("com.acme") && !jar.has_package("com"));
    }
}
