//! Where the application has the classes that a stack touches: every place on its class path and module path, in the
//! order in which the JVM looks, with the digests of the bytes, and what the jars say of the packages.
//!
//! Looks into jars, directories, fat jars with nested ones, and multi-release entries. Runs and unpacks nothing.

mod signers;

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

pub use signers::signers;
use upfleet_domain::{
    digest::Digest,
    jvm::manifest::{class_path, path_of_url},
    patch::{
        class_at, class_path_of,
        judge::{Application, Original, PackageFact, Wanted},
        package,
    },
};

use crate::exec::jar::Jar;

/// How deep jars lie in jars.
const NESTED: u32 = 2;
/// Where fat jars and web archives keep classes, in the order in which their loaders look.
const CLASS_ROOTS: [&str; 2] = ["BOOT-INF/classes/", "WEB-INF/classes/"];
/// Where they keep jars.
const LIBRARY_ROOTS: [&str; 3] = ["BOOT-INF/lib/", "WEB-INF/lib/", "WEB-INF/lib-provided/"];

/// Looks for what is wanted at these places, jars and directories in order, and adds it to `application`. What can't
/// be read is passed over, as java does with what is not there.
pub fn look(places: &[PathBuf], wanted: &Wanted, application: &mut Application) {
    let mut scan = Scan { wanted, application, seen: BTreeSet::new() };
    for place in places {
        scan.place(place);
    }
}

/// The places that the entries of a class path name: wildcards written out, relative ones below `cwd`.
#[must_use]
pub fn places(entries: &[String], cwd: &Path) -> Vec<PathBuf> {
    let mut places = Vec::new();
    for entry in entries {
        match entry.strip_suffix('*').filter(|dir| dir.is_empty() || dir.ends_with('/')) {
            Some(dir) => places.extend(jars_of(&cwd.join(dir))),
            None => places.push(cwd.join(entry)),
        }
    }
    places
}

/// The places of a module path: jars, and directories of jars or of modules.
#[must_use]
pub fn module_places(entries: &[String], cwd: &Path) -> Vec<PathBuf> {
    let mut places = Vec::new();
    for entry in entries.iter().map(|entry| cwd.join(entry)) {
        if entry.is_file() || entry.join("module-info.class").exists() {
            places.push(entry);
            continue;
        }
        places.extend(jars_of(&entry));
        let modules = fs::read_dir(&entry).into_iter().flatten().filter_map(Result::ok).map(|e| e.path());
        let mut modules: Vec<_> = modules.filter(|dir| dir.join("module-info.class").exists()).collect();
        modules.sort();
        places.extend(modules);
    }
    places
}

fn jars_of(dir: &Path) -> Vec<PathBuf> {
    let is_jar = |path: &PathBuf| path.extension().is_some_and(|end| end == "jar" || end == "JAR");
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let mut jars: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_jar).collect();
    jars.sort();
    jars
}

struct Scan<'a> {
    wanted: &'a Wanted,
    application: &'a mut Application,
    seen: BTreeSet<PathBuf>,
}

impl Scan<'_> {
    fn place(&mut self, place: &Path) {
        let canonical = fs::canonicalize(place).unwrap_or_else(|_| place.to_owned());
        if !self.seen.insert(canonical) {
            return;
        }
        if place.is_dir() {
            self.directory(place);
        } else if let Ok(mut jar) = Jar::open(place) {
            self.jar(&mut jar, &place.display().to_string(), NESTED);
            let further = jar.manifest().main("Class-Path").map(class_path).unwrap_or_default();
            let base = place.parent().unwrap_or(Path::new("/"));
            for path in further.iter().filter_map(|url| path_of_url(url)) {
                self.place(&base.join(path));
            }
        }
    }

    /// A directory of classes, or an unpacked web archive or fat jar.
    fn directory(&mut self, dir: &Path) {
        for root in std::iter::once("").chain(CLASS_ROOTS) {
            let root = dir.join(root);
            for package in self.wanted.packages.clone() {
                let path = root.join(package.replace('.', "/"));
                let entries = fs::read_dir(&path).into_iter().flatten().filter_map(Result::ok);
                let mut names: Vec<_> =
                    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
                names.sort();
                for name in names {
                    let Some(class) = class_at(&name).map(|simple| join(&package, &simple)) else { continue };
                    if self.wanted.class(&class)
                        && let Ok(bytes) = fs::read(path.join(&name))
                    {
                        self.found(class, &root.display().to_string(), &bytes, None);
                    }
                }
            }
        }
        for root in LIBRARY_ROOTS {
            for jar in jars_of(&dir.join(root)) {
                self.place(&jar);
            }
        }
    }

    fn jar(&mut self, jar: &mut Jar, source: &str, depth: u32) {
        let names = jar.names();
        self.roots(jar, &names, source);
        self.packages(jar, &names, source);
        if depth == 0 {
            return;
        }
        let nested = |name: &&String| {
            name.ends_with(".jar") && LIBRARY_ROOTS.iter().any(|root| name.starts_with(root))
        };
        let mut libraries: Vec<&String> = names.iter().filter(nested).collect();
        let index = jar.read_all("BOOT-INF/classpath.idx").map(|bytes| index(&bytes)).unwrap_or_default();
        let rank = |name: &String| index.iter().position(|listed| listed == name).unwrap_or(usize::MAX);
        libraries.sort_by_key(|name| rank(name));
        for name in libraries {
            let inner = jar.read_all(name).and_then(Jar::nested);
            if let Ok(mut inner) = inner {
                self.jar(&mut inner, &format!("{source}!/{name}"), depth - 1);
            }
        }
    }

    /// Classes at the root, for later Java versions, and where fat jars keep them.
    fn roots(&mut self, jar: &mut Jar, names: &[String], source: &str) {
        let multi = jar.manifest().is_multi_release();
        for root in std::iter::once("").chain(CLASS_ROOTS) {
            for name in names {
                let Some(path) = name.strip_prefix(root) else { continue };
                let (path, release) =
                    match path.strip_prefix("META-INF/versions/").filter(|_| root.is_empty()) {
                        Some(versioned) if multi => match versioned.split_once('/') {
                            Some((release, path)) => (path, release.parse().ok()),
                            None => continue,
                        },
                        Some(_) => continue,
                        None => (path, None),
                    };
                let Some(class) = class_at(path).filter(|class| self.wanted.class(class)) else { continue };
                if let Ok(bytes) = jar.read_all(name) {
                    let place = if root.is_empty() { source.to_owned() } else { format!("{source}!/{root}") };
                    self.found(class, &place, &bytes, release);
                }
            }
        }
    }

    /// Who signed each wanted package, and whether it is sealed.
    fn packages(&mut self, jar: &mut Jar, names: &[String], source: &str) {
        let mut signed = None;
        for package in self.wanted.packages.clone() {
            let within =
                |name: &&String| class_at(name).is_some_and(|class| self::package(&class) == package);
            let Some(class) = names.iter().find(within) else { continue };
            let own = jar.manifest().has_digest(class);
            let sealed = jar.manifest().seals(&package);
            let all = signed.get_or_insert_with(|| signers(jar)).clone();
            let fact = PackageFact {
                source: source.to_owned(),
                signers: if own { all } else { Vec::new() },
                sealed,
            };
            self.application.packages.entry(package).or_default().push(fact);
        }
    }

    fn found(&mut self, class: String, source: &str, bytes: &[u8], release: Option<u16>) {
        let original = Original { source: source.to_owned(), digest: Digest::of(bytes), release };
        self.application.classes.entry(class).or_default().push(original);
    }
}

fn join(package: &str, simple: &str) -> String {
    if package.is_empty() { simple.to_owned() } else { format!("{package}.{simple}") }
}

/// The jars that `classpath.idx` of a fat jar lists, in order: lines such as `- "BOOT-INF/lib/a.jar"`.
fn index(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let name = |line: &str| Some(line.trim().strip_prefix("- ")?.trim_matches('"').to_owned());
    text.lines().filter_map(name).collect()
}

/// The bytes of a class in a patch's jar.
///
/// # Errors
/// Where it is not there.
pub fn class_of(jar: &Path, name: &str) -> io::Result<Vec<u8>> {
    Jar::open(jar)?.read_all(&class_path_of(name))
}

#[cfg(test)]
mod tests;
