//! Making patches, offline: `patch build` and `patch lint`. What a patch is and what is wrong with it the domain says;
//! here files are read and written.
//!
//! ```text
//! $ upfleet patch build --component payments --number 10 --from payments-2.14.1.jar --to payments-fixed.jar \
//!     --fix CVE-2021-44228='JNDI look-ups are off' --base-version 2.14.1 --out patch10.upfleet
//! payments@p10 in patch10.upfleet
//! number       10
//! base         2.14.1
//! java         8 or later
//! live         yes: it changes bodies of methods only
//! fixes        CVE-2021-44228  JNDI look-ups are off
//! classes      com.acme.JndiLookup  03e0b2f6a1c5 -> 9f2c6d1be0a4
//! size         1.9 KiB, 0.1% of payments-2.14.1.jar (1.7 MiB)
//! lint         no findings
//! next: upfleet patch publish patch10.upfleet
//! ```

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use clap::{ArgGroup, Args};
use serde::Serialize;
use upfleet_domain::{
    id::{ComponentId, Version},
    patch::{
        BaseRange, Fix, JarContents, PatchSpec,
        finding::{Finding, Rule, Severity},
        lint::{Subject, lint as judge},
        make::{Below, Build, Made, Recipe, Source, make},
    },
    release::{FORMAT, Kind, Manifest, Platform, parse_manifest},
};

use super::super::{
    app::App,
    change::number,
    failure::{Failure, Result},
    file, jar, release,
    render::{Paint, bytes, findings, patch_contents},
};
use crate::exit::Exit;

/// The name of the manifest in a patch's directory.
pub(super) const MANIFEST: &str = "manifest.json";
/// Sequences of patches lie above those of bases: a component's sequences are all different, and what orders patches
/// is their number.
const SEQUENCES: u64 = 1_000_000_000;

/// What a patch is made from.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("content").required(true).args(["classes", "jar", "to"])))]
pub(crate) struct BuildArgs {
    /// The component.
    #[arg(long, value_name = "NAME")]
    component: ComponentId,
    /// The patch's number; the higher one takes precedence.
    #[arg(long, value_name = "N", value_parser = number)]
    number: u32,
    /// A directory with exactly the classes of the patch.
    #[arg(long, value_name = "DIR", requires = "base")]
    classes: Option<PathBuf>,
    /// A jar with exactly the classes of the patch.
    #[arg(long, value_name = "FILE", requires = "base")]
    jar: Option<PathBuf>,
    /// The old build: what it has otherwise in the new one is the patch. A jar, also with jars in it, a directory, or
    /// several with `:` between.
    #[arg(long, value_name = "OLD", requires = "to", conflicts_with = "base")]
    from: Option<PathBuf>,
    /// The new build.
    #[arg(long, value_name = "NEW", requires = "from")]
    to: Option<PathBuf>,
    /// A build that the patch is for, as `--from`; the first is the one it was built from, more may be given.
    #[arg(long, value_name = "OLD")]
    base: Vec<PathBuf>,
    /// A patch that this one is built on: the directory that `patch build` made; may be given several times.
    #[arg(long, value_name = "DIR")]
    on: Vec<PathBuf>,
    /// An issue that it fixes, `ID` or `ID=TEXT`; may be given several times.
    #[arg(long, value_name = "ID[=TEXT]", value_parser = release::fix)]
    fix: Vec<Fix>,
    /// A patch that has to be in the stack as well.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = number)]
    requires: Vec<u32>,
    /// A patch that it makes superfluous.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = number)]
    supersedes: Vec<u32>,
    /// A base version that it is for; any whose classes fit where not given.
    #[arg(long, value_name = "VERSION", value_delimiter = ',')]
    base_version: Vec<Version>,
    /// The lowest sequence of a base that it is for.
    #[arg(long, value_name = "N")]
    from_sequence: Option<u64>,
    /// The highest sequence of a base that it is for.
    #[arg(long, value_name = "N")]
    to_sequence: Option<u64>,
    /// The JPMS module of its classes.
    #[arg(long, value_name = "NAME")]
    module: Option<String>,
    /// Take effect by a restart only, whatever the classes would permit.
    #[arg(long)]
    needs_restart: bool,
    /// With `--from`: take files along that are no classes and differ.
    #[arg(long, requires = "from")]
    resources: bool,
    /// With `--from`: take classes along that differ in debug information only.
    #[arg(long, requires = "from")]
    debug_only: bool,
    /// What changed, for people.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    notes: String,
    /// The Java version of the JVMs that it is for, e.g. `8`: newer class files are then a mistake.
    #[arg(long, value_name = "N")]
    java: Option<u16>,
    /// Write it although something was found that would not work.
    #[arg(long)]
    force: bool,
    /// The directory to make, e.g. `patch10.upfleet`.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// What is to be judged.
#[derive(Args, Debug)]
pub(crate) struct LintArgs {
    /// A directory that `patch build` made, or a jar or directory of classes.
    patch: PathBuf,
    /// A build that it is for: a jar, also with jars in it, a directory, or several with `:` between.
    #[arg(long, required = true, value_name = "OLD")]
    base: Vec<PathBuf>,
    /// A patch of the stack that it goes on, as `patch build` made it; may be given several times.
    #[arg(long, value_name = "DIR")]
    on: Vec<PathBuf>,
    /// The Java version of the JVMs that it is for, e.g. `8`.
    #[arg(long, value_name = "N")]
    java: Option<u16>,
    /// Exit with 10 where there are warnings.
    #[arg(long)]
    detailed_exitcode: bool,
}

/// A patch's directory, read.
pub(super) struct Stored {
    /// Its manifest, byte for byte.
    pub bytes: Vec<u8>,
    /// What that says.
    pub manifest: Manifest,
    /// Its `patch` section.
    pub spec: PatchSpec,
    /// The jar's path.
    pub jar: PathBuf,
}

/// Reads what `patch build` made, and checks that the jar is the one of the manifest.
pub(super) fn stored(dir: &Path) -> Result<Stored> {
    let path = dir.join(MANIFEST);
    let bytes = fs::read(&path).map_err(|error| {
        Failure::io("read", &path, &error).hint("name the directory that `upfleet patch build` made")
    })?;
    let manifest = parse_manifest(&bytes).map_err(|reason| Failure::of_reason(&reason))?;
    let Some(spec) = manifest.patch.clone() else {
        return Err(Failure::usage(format!("`{}` describes no patch", path.display())));
    };
    let jar = dir.join(jar_name(&manifest.component, &manifest.version));
    let facts = file::facts(&jar)?;
    let expected = manifest.artifacts.first().map(|artifact| artifact.sha256);
    if expected != Some(facts.sha256) {
        let mut failure = Failure::usage(format!("`{}` is not the jar of the manifest", jar.display()));
        let expected = expected.map(|digest| digest.to_string()).unwrap_or_default();
        failure.values = vec![("expected".into(), expected), ("got".into(), facts.sha256.to_string())];
        return Err(failure);
    }
    Ok(Stored { bytes, manifest, spec, jar })
}

fn jar_name(component: &ComponentId, version: &Version) -> String {
    format!("{component}-{version}.jar")
}

/// The stack that a patch goes on.
struct Stack(Vec<(PatchSpec, JarContents)>);

impl Stack {
    fn read(dirs: &[PathBuf]) -> Result<Self> {
        let one = |dir: &PathBuf| {
            let stored = stored(dir)?;
            Ok((stored.spec, single(&stored.jar)?))
        };
        dirs.iter().map(one).collect::<Result<_>>().map(Self)
    }

    fn below(&self) -> Vec<Below<'_>> {
        self.0.iter().map(|(spec, jar)| Below { spec, jar }).collect()
    }
}

/// A jar or directory whose nested jars are no part of the patch.
fn single(path: &Path) -> Result<JarContents> {
    jar::read(path)?.into_iter().next().ok_or_else(|| Failure::usage("there is nothing in it"))
}

fn builds(paths: &[PathBuf]) -> Result<Vec<Build>> {
    paths.iter().map(|path| Ok(Build { jars: jar::class_path(path)? })).collect()
}

/// What `patch build -o json` prints.
#[derive(Serialize)]
struct Built<'a> {
    directory: &'a Path,
    manifest: &'a Manifest,
    size: u64,
    full_size: u64,
    findings: &'a [Finding],
}

pub(super) fn build(app: &App, args: &BuildArgs) -> Result<Exit> {
    if args.out.exists() {
        return Err(Failure::usage(format!("`{}` exists", args.out.display())).hint(
            "a patch that was given to somebody never changes: choose another --out, and another number",
        ));
    }
    let base_paths: Vec<PathBuf> = args.from.iter().chain(&args.base).cloned().collect();
    let bases = builds(&base_paths)?;
    let stack = Stack::read(&args.on)?;
    let below = stack.below();
    let made = content(args, &bases, &below)?;
    let linted = lint_made(&made, &bases, &below, args.java);
    let jar = jar::write(&made.entries)?;
    let manifest = manifest(args, &made.spec, &jar)?;
    // What can't take effect live is said with the contents already.
    let others: Vec<Finding> = linted.iter().filter(|finding| finding.rule != Rule::Live).cloned().collect();
    if linted.iter().any(|finding| finding.severity == Severity::Error) && !args.force {
        let mut failure = Failure::usage("the patch would not work, nothing was written");
        failure.causes =
            linted.iter().filter(|f| f.severity == Severity::Error).map(|f| f.text.clone()).collect();
        failure.reason = Some("PATCH_INVALID".into());
        return Err(failure.hint("--force writes it all the same"));
    }
    write(&args.out, &manifest, &jar)?;
    let full_size = full_size(&base_paths);
    let built = Built {
        directory: &args.out,
        manifest: &manifest,
        size: jar.len() as u64,
        full_size,
        findings: &linted,
    };
    app.show(&built, |paint| {
        let out = args.out.display();
        let mut text = format!("{}@{} in {out}\n", manifest.component, manifest.version);
        text.push_str(&patch_contents(&made.spec, paint));
        text.push_str(&size_line(jar.len() as u64, full_size, base_paths.first()));
        text.push_str(&findings(&others, paint));
        text.push_str(&paint.dim(format!("next: upfleet patch publish {out}\n")));
        text
    });
    Ok(Exit::Success)
}

fn content(args: &BuildArgs, bases: &[Build], below: &[Below<'_>]) -> Result<Made> {
    let recipe = Recipe {
        number: args.number,
        base: BaseRange {
            versions: args.base_version.clone(),
            from_sequence: args.from_sequence,
            to_sequence: args.to_sequence,
        },
        fixes: args.fix.clone(),
        requires: args.requires.clone(),
        supersedes: args.supersedes.clone(),
        module: args.module.clone(),
        needs_restart: args.needs_restart,
        resources: args.resources,
        leave_out_debug_only: !args.debug_only,
    };
    let made = match (&args.to, args.classes.as_ref().or(args.jar.as_ref())) {
        (Some(new), _) => {
            make(&recipe, Source::Difference(&Build { jars: jar::class_path(new)? }), bases, below)
        }
        (None, Some(classes)) => make(&recipe, Source::Classes(&given(classes)?), bases, below),
        (None, None) => return Err(Failure::usage("nothing says what is in the patch")),
    };
    made.map_err(|reason| Failure::of_reason(&reason))
}

/// The files of a patch as somebody put them together; a jar's own manifest says nothing of the patch unless it makes
/// it a multi-release jar.
fn given(path: &Path) -> Result<JarContents> {
    let mut jar = single(path)?;
    if !jar.manifest().is_multi_release() {
        jar.entries.remove("META-INF/MANIFEST.MF");
    }
    Ok(jar)
}

/// What was noticed while making it, and what the rules say against each build that it is for; the worst first.
fn lint_made(made: &Made, bases: &[Build], below: &[Below<'_>], java: Option<u16>) -> Vec<Finding> {
    let patch = JarContents { name: "the patch".to_owned(), entries: made.entries.clone() };
    let mut all = made.findings.clone();
    for application in bases {
        all.extend(judge(&Subject { patch: &patch, spec: Some(&made.spec), application, below, java }));
    }
    all.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
    all.dedup();
    all
}

fn manifest(args: &BuildArgs, spec: &PatchSpec, jar: &[u8]) -> Result<Manifest> {
    let facts = file::of_bytes(jar);
    let version: Version = format!("p{}", args.number).parse().expect("a number makes a version");
    let platform = Platform { os: "linux".to_owned(), arch: "any".to_owned() };
    let manifest = Manifest {
        format: FORMAT,
        component: args.component.clone(),
        version,
        sequence: SEQUENCES + u64::from(args.number),
        kind: Kind::Patch,
        notes: args.notes.clone(),
        artifacts: vec![release::reference(platform, &facts, &[])],
        fixes: Vec::new(),
        patch: Some(spec.clone()),
        files: None,
    };
    // What a node would refuse is said here.
    parse_manifest(&manifest.to_bytes()).map_err(|reason| Failure::of_reason(&reason))
}

/// Makes the directory under another name and renames it: nobody meets half a patch.
fn write(out: &Path, manifest: &Manifest, jar: &[u8]) -> Result<()> {
    let failed = |error: std::io::Error| Failure::io("write", out, &error);
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let aside = tempfile::tempdir_in(parent).map_err(failed)?;
    let dir = aside.path().join("patch");
    fs::create_dir(&dir).map_err(failed)?;
    fs::write(dir.join(jar_name(&manifest.component, &manifest.version)), jar).map_err(failed)?;
    fs::write(dir.join(MANIFEST), manifest.to_bytes()).map_err(failed)?;
    fs::rename(&dir, out).map_err(failed)
}

/// The bytes of the jars of the first base; 0 for directories.
fn full_size(bases: &[PathBuf]) -> u64 {
    let parts = bases.first().map(std::env::split_paths).into_iter().flatten();
    parts
        .filter_map(|part| fs::metadata(part).ok())
        .filter(fs::Metadata::is_file)
        .map(|file| file.len())
        .sum()
}

fn size_line(size: u64, full: u64, base: Option<&PathBuf>) -> String {
    let Some(name) = base.filter(|_| full > 0).and_then(|base| base.file_name()) else {
        return format!("{:<12} {}\n", "size", bytes(size));
    };
    let percent = size as f64 * 100.0 / full as f64;
    let share = format!("{percent:.1}% of {} ({})", name.to_string_lossy(), bytes(full));
    format!("{:<12} {}, {share}\n", "size", bytes(size))
}

/// What `patch lint -o json` prints.
#[derive(Serialize)]
struct Linted<'a> {
    findings: &'a [Finding],
}

pub(super) fn lint(app: &App, args: &LintArgs) -> Result<Exit> {
    let bases = builds(&args.base)?;
    let stack = Stack::read(&args.on)?;
    let below = stack.below();
    let made = if args.patch.join(MANIFEST).exists() {
        let stored = stored(&args.patch)?;
        let mut entries: BTreeMap<String, Vec<u8>> = single(&stored.jar)?.entries;
        entries.retain(|path, _| path != "META-INF/MANIFEST.MF");
        Made { spec: stored.spec, entries, findings: Vec::new() }
    } else {
        // The number says nothing about what is found: the patch goes on top of the stack.
        let top = stack.0.iter().map(|(spec, _)| spec.number).max().unwrap_or(0);
        let recipe = Recipe { number: top + 1, ..Recipe::default() };
        make(&recipe, Source::Classes(&given(&args.patch)?), &bases, &below)
            .map_err(|reason| Failure::of_reason(&reason))?
    };
    let found = lint_made(&made, &bases, &below, args.java);
    app.show(&Linted { findings: &found }, |paint: Paint| findings(&found, paint));
    Ok(match found.iter().map(|finding| finding.severity).max() {
        Some(Severity::Error) => Exit::Usage,
        Some(Severity::Warning) if args.detailed_exitcode => Exit::Changes,
        Some(Severity::Warning) | None => Exit::Success,
    })
}
