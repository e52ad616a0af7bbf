//! What an agent says of a stack before it touches anything: the stack against what the application's files hold.
//!
//! Pure: whoever reads the files hands over what it found. Whether a mechanism fits the application at all is decided
//! in [`crate::jvm`].

use std::collections::BTreeMap;

use super::{
    PatchSpec, PatchedClass, family, package,
    stack::{Ground, Known, check},
};
use crate::{
    digest::Digest,
    jvm::Mechanism,
    reason::{Reason, ReasonCode},
    state::{Layer, ReleaseRef},
};

mod families;
mod packages;

/// One place where the application has a class, in the order in which the JVM looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Original {
    /// The jar or directory, nested ones with `!/`: `app.jar!/BOOT-INF/lib/core.jar`.
    pub source: String,
    /// SHA-256 of the class file.
    pub digest: Digest,
    /// Of an entry below `META-INF/versions/N` in a multi-release jar: `N`.
    pub release: Option<u16>,
}

/// What a jar says of a package that it has classes of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageFact {
    /// The jar.
    pub source: String,
    /// Who signed its classes: one line per certificate, sorted; empty where nobody did.
    pub signers: Vec<String>,
    /// Its manifest seals the package.
    pub sealed: bool,
}

/// What a node found of the application.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Application {
    /// The Java version of the JVM that runs it: 8, 11, 17 …; `None` where it can't be told.
    pub java: Option<u16>,
    /// The application's own module, where it runs on the module path.
    pub module: Option<String>,
    /// By binary name, every class of every family that the stack touches, wherever it is found.
    pub classes: BTreeMap<String, Vec<Original>>,
    /// By package, what the jars say that have it. Only for the packages that the stack touches.
    pub packages: BTreeMap<String, Vec<PackageFact>>,
    /// By patch number, who signed the patch's jar; nobody where it is missing.
    pub patch_signers: BTreeMap<u32, Vec<String>>,
}

/// Judges a stack on a node. The answer is information; every `Err` stops the change before anything is touched.
///
/// # Errors
/// What [`check`] finds, and [`ReasonCode::BaseMismatch`], [`ReasonCode::ClassNotFound`],
/// [`ReasonCode::SplitFamily`], [`ReasonCode::SignerMismatch`], [`ReasonCode::PackageSealed`],
/// [`ReasonCode::MechanismUnfit`]; the first that holds.
pub fn judge(
    layers: &[Layer],
    known: &Known,
    base: Option<&ReleaseRef>,
    application: &Application,
    mechanism: Mechanism,
) -> Result<Vec<Reason>, Reason> {
    let ground = Ground { base, java: application.java };
    let mut notes = check(layers, known, &ground)?;
    for layer in layers.iter().filter(|layer| !layer.retired) {
        let Some(spec) = known.get(&layer.release.manifest) else { continue };
        for class in &spec.classes {
            originals(spec, class, layers, known, application)?;
            notes.extend(copies(spec, class, application));
        }
        families::whole(spec, layers, known, application)?;
        packages::permit(spec, application, mechanism)?;
        if mechanism == Mechanism::PatchModule {
            module(spec, application)?;
        }
    }
    Ok(notes)
}

/// The class is where the patch expects it, with bytes that it accepts; one that no base has is nowhere.
fn originals(
    spec: &PatchSpec,
    class: &PatchedClass,
    layers: &[Layer],
    known: &Known,
    application: &Application,
) -> Result<(), Reason> {
    let found = first(application, &class.name);
    let mismatch = |expected: String, actual: String| {
        Reason::new(ReasonCode::BaseMismatch)
            .with("number", spec.number)
            .with("class", &class.name)
            .with("expected", expected)
            .with("actual", actual)
    };
    match found {
        None if class.is_new() => Ok(()),
        // A lower patch may bring the class that this one replaces.
        None if brought(spec, &class.name, layers, known) => Ok(()),
        None => {
            Err(Reason::new(ReasonCode::ClassNotFound).with("number", spec.number).with("class", &class.name))
        }
        Some(original) if class.accepts.contains(&original.digest) => Ok(()),
        Some(original) if class.is_new() => {
            Err(mismatch("none, as it adds that class".to_owned(), place(original)))
        }
        Some(original) => {
            let expected: Vec<String> = class.accepts.iter().map(ToString::to_string).collect();
            Err(mismatch(expected.join(" or "), place(original)))
        }
    }
}

fn place(original: &Original) -> String {
    match original.release {
        Some(release) => format!("{} in {} for Java {release} and later", original.digest, original.source),
        None => format!("{} in {}", original.digest, original.source),
    }
}

fn brought(spec: &PatchSpec, name: &str, layers: &[Layer], known: &Known) -> bool {
    layers
        .iter()
        .filter(|layer| layer.number < spec.number && !layer.retired)
        .filter_map(|layer| known.get(&layer.release.manifest))
        .any(|lower| lower.class(name).is_some_and(PatchedClass::is_new))
}

/// The entry that a JVM of the application's version finds first: of the first place the highest version it reads.
fn first<'a>(application: &'a Application, name: &str) -> Option<&'a Original> {
    let all = application.classes.get(name)?;
    let source = &all.iter().find(|original| readable(application, original))?.source;
    all.iter()
        .filter(|original| original.source == *source && readable(application, original))
        .max_by_key(|original| original.release.unwrap_or(0))
}

fn readable(application: &Application, original: &Original) -> bool {
    // Java 8 knows nothing of versions. Where the version is not known, the newest entry is what a JVM will read.
    original.release.is_none_or(|release| application.java.is_none_or(|java| java >= 9 && release <= java))
}

/// Copies elsewhere with other bytes: another class loader may find them first, and they would run unpatched.
fn copies(spec: &PatchSpec, class: &PatchedClass, application: &Application) -> Option<Reason> {
    let first = first(application, &class.name)?;
    let other = application.classes.get(&class.name)?.iter().find(|original| {
        original.source != first.source
            && readable(application, original)
            && !class.accepts.contains(&original.digest)
    })?;
    Some(
        Reason::new(ReasonCode::ClassTwice)
            .with("class", &class.name)
            .with("source", &other.source)
            .with("actual", other.digest)
            .with("number", spec.number),
    )
}

/// `--patch-module` takes a module's name on trust, and entries for later Java versions not at all.
fn module(spec: &PatchSpec, application: &Application) -> Result<(), Reason> {
    let unfit = |problem: String| {
        Err(Reason::new(ReasonCode::MechanismUnfit)
            .with("mechanism", Mechanism::PatchModule)
            .with("problem", problem))
    };
    match (&spec.module, &application.module) {
        (Some(wanted), Some(actual)) if wanted != actual => {
            return unfit(format!(
                "patch {} is for module {wanted}, the application's is {actual}",
                spec.number
            ));
        }
        (None, None) => return unfit("the name of the module is not known".to_owned()),
        _ => {}
    }
    match spec.resources.iter().find(|resource| resource.name.starts_with("META-INF/versions/")) {
        Some(resource) => unfit(format!("{} of patch {} would not be looked at", resource.name, spec.number)),
        None => Ok(()),
    }
}

/// Every class that a node has to look for, to judge a stack: those that are shipped, and by their outermost class the
/// families whose other members matter. The second are names of families, not of classes.
#[must_use]
pub fn wanted(layers: &[Layer], known: &Known) -> Wanted {
    let mut wanted = Wanted::default();
    for spec in layers.iter().filter_map(|layer| known.get(&layer.release.manifest)) {
        for class in &spec.classes {
            wanted.families.insert(family(&class.name).to_owned());
            wanted.packages.insert(package(&class.name).to_owned());
        }
    }
    wanted
}

/// What to look for in the application's files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Outermost classes: each class for which [`family`] gives one of these is wanted.
    pub families: std::collections::BTreeSet<String>,
    /// Packages whose signers and seals are wanted.
    pub packages: std::collections::BTreeSet<String>,
}

impl Wanted {
    /// Whether a class is to be looked at.
    #[must_use]
    pub fn class(&self, name: &str) -> bool {
        self.families.contains(family(name))
    }
}

#[cfg(test)]
mod tests;
