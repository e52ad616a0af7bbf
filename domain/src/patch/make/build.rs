//! Builds of an application, and the classes that a patch is built from.

use std::collections::BTreeMap;

use crate::{
    digest::Digest,
    patch::{ClassEntry, JarContents, PatchSpec},
};

/// One build of the application: its jars in the order in which the JVM looks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Build {
    /// The jars and directories.
    pub jars: Vec<JarContents>,
}

/// A patch that the new one is built on top of.
#[derive(Clone, Copy, Debug)]
pub struct Below<'a> {
    /// Its description.
    pub spec: &'a PatchSpec,
    /// Its jar.
    pub jar: &'a JarContents,
}

impl Build {
    /// For each class every entry there is, in the order in which the JVM looks.
    #[must_use]
    pub fn classes(&self) -> BTreeMap<String, Vec<ClassEntry<'_>>> {
        let mut all: BTreeMap<String, Vec<ClassEntry<'_>>> = BTreeMap::new();
        for jar in &self.jars {
            for (name, entries) in jar.classes() {
                all.entry(name).or_default().extend(entries);
            }
        }
        all
    }

    /// The class that is first, by its plain entry where it has one.
    #[must_use]
    pub fn first(&self) -> BTreeMap<String, &[u8]> {
        let classes = self.classes().into_iter();
        classes.filter_map(|(name, entries)| Some((name, entries.first()?.bytes))).collect()
    }
}

/// What patched classes are compared with: the first base with the stack on it; and what they may replace: the
/// originals of every base.
pub(super) struct Parents<'a> {
    /// By name, the bytes in force below the new patch.
    current: BTreeMap<String, &'a [u8]>,
    originals: BTreeMap<String, Vec<Digest>>,
}

impl<'a> Parents<'a> {
    /// `every_release`: classes may replace entries for later Java versions as well, not only the plain ones.
    pub(super) fn new(bases: &'a [Build], below: &[Below<'a>], every_release: bool) -> Self {
        let mut current = bases.first().map(Build::first).unwrap_or_default();
        let mut originals: BTreeMap<String, Vec<Digest>> = BTreeMap::new();
        for (name, entries) in bases.iter().flat_map(Build::classes) {
            let first = entries.first().map(|entry| entry.release);
            let may = |entry: &&ClassEntry<'_>| every_release || Some(entry.release) == first;
            originals
                .entry(name)
                .or_default()
                .extend(entries.iter().filter(may).map(|entry| Digest::of(entry.bytes)));
        }
        for digests in originals.values_mut() {
            digests.sort_unstable();
            digests.dedup();
        }
        let mut below: Vec<&Below<'a>> = below.iter().collect();
        below.sort_by_key(|patch| patch.spec.number);
        for patch in below {
            for (name, entries) in patch.jar.classes() {
                if let (Some(entry), Some(_)) = (entries.first(), patch.spec.class(&name)) {
                    current.insert(name, entry.bytes);
                }
            }
        }
        Self { current, originals }
    }

    pub(super) fn of(&self, name: &str) -> Option<&'a [u8]> {
        self.current.get(name).copied()
    }

    pub(super) fn originals(&self, name: &str) -> Vec<Digest> {
        self.originals.get(name).cloned().unwrap_or_default()
    }

    /// Every class there is, by name.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.current.keys()
    }
}
