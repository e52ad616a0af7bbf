//! Stacks of patches made of compiled classes, and requests for the Java agent.

use std::{
    fs,
    path::{Path, PathBuf},
};

use upfleet_agent::{
    exec::jar::{Jar, write},
    jvm::{
        java,
        request::{Effective, LayerView, Operation, Request, StackView},
    },
};
use upfleet_domain::{
    digest::Digest,
    jvm::{ClassProof, Mechanism, Proof, Standing},
    patch::{BaseRange, Live, PatchSpec, PatchedClass},
};

use crate::support::jar;

/// The class files below `dir`, as (binary name, bytes), by name.
pub fn classes(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = vec![];
    let mut left = vec![dir.to_owned()];
    while let Some(at) = left.pop() {
        for entry in fs::read_dir(at).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|end| end == "class") {
                let name = path.strip_prefix(dir).unwrap().with_extension("");
                found.push((name.to_str().unwrap().replace('/', "."), fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// The patch that turns the classes of `base` into those of `changed`: what differs, and what is new.
pub fn patch(number: u32, base: &Path, changed: &Path) -> LayerView {
    let originals = classes(base);
    let dir = tempfile::tempdir().unwrap().keep();
    let mut listed = vec![];
    for (name, bytes) in classes(changed) {
        let original = originals.iter().find(|(known, _)| *known == name).map(|(_, bytes)| bytes);
        if original == Some(&bytes) {
            continue;
        }
        let path = dir.join(name.replace('.', "/")).with_extension("class");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &bytes).unwrap();
        let accepts: Vec<_> = original.iter().map(|bytes| Digest::of(bytes)).collect();
        let parent = accepts.first().copied();
        listed.push(PatchedClass { name, accepts, parent, patched: Digest::of(&bytes), major: 52 });
    }
    assert!(!listed.is_empty(), "nothing differs");
    let jar = jar(&dir, "Created-By: test\n");
    fs::remove_dir_all(dir).unwrap();
    let sha256 = Digest::of(&fs::read(&jar).unwrap());
    LayerView { number, jar, sha256, spec: spec(number, listed), retired: false }
}

fn spec(number: u32, classes: Vec<PatchedClass>) -> PatchSpec {
    PatchSpec {
        number,
        base: BaseRange::default(),
        fixes: vec![],
        classes,
        removed: vec![],
        resources: vec![],
        requires: vec![],
        supersedes: vec![],
        module: None,
        live: Live { possible: true, problems: vec![] },
        needs_restart: false,
    }
}

/// A stack of these layers, named by what is in it.
pub fn stack(layers: &[&LayerView], gone: &[&LayerView]) -> StackView {
    let views = |layers: &[&LayerView]| layers.iter().map(|layer| (*layer).clone()).collect::<Vec<_>>();
    let named = format!("{:?}", layers.iter().map(|layer| (layer.number, layer.sha256)).collect::<Vec<_>>());
    StackView { set: Digest::of(named.as_bytes()), layers: views(layers), gone: views(gone) }
}

/// What a JVM that starts with patches refers to.
pub struct StackSet {
    dir: tempfile::TempDir,
    /// The option for java.
    pub option: String,
}

impl StackSet {
    /// For the Java agent at load time.
    pub fn new(stack: &StackView) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let agent = dir.path().join(java::JAR_NAME);
        fs::write(&agent, java::JAR).unwrap();
        fs::create_dir(dir.path().join("journal")).unwrap();
        let additions = additions(stack, dir.path());
        let request = Request {
            operation: Operation::Start,
            mechanism: Mechanism::JavaAgent,
            agent: &agent,
            report: Some(&dir.path().join("report")),
            journal: Some(&dir.path().join("journal")),
            additions: additions.as_deref(),
        };
        let text = request.render(stack).unwrap();
        fs::write(dir.path().join("patches.request"), text).unwrap();
        let option = format!("-javaagent:{}={}/patches.request", agent.display(), dir.path().display());
        Self { dir, option }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where its JVMs keep their journals.
    pub fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    /// What the agent answered at the start.
    pub fn report(&self) -> String {
        fs::read_to_string(self.dir.path().join("report")).unwrap()
    }
}

fn additions(stack: &StackView, dir: &Path) -> Option<PathBuf> {
    let added = stack.additions();
    if added.is_empty() {
        return None;
    }
    let entry = |class: &Effective| {
        let layer = stack.layers.iter().find(|layer| layer.number == class.number).unwrap();
        let name = format!("{}.class", class.name.replace('.', "/"));
        let bytes = Jar::open(&layer.jar).unwrap().read_all(&name).unwrap();
        (name, bytes)
    };
    let entries: Vec<_> = added.iter().map(entry).collect();
    let path = dir.join("additions.jar");
    fs::write(&path, write("Manifest-Version: 1.0\r\n\r\n", &entries).unwrap()).unwrap();
    Some(path)
}

/// How each class stands, as (class, standing), one per loader, by name.
pub fn standings(proof: &Proof) -> Vec<(String, Standing)> {
    let mut standings: Vec<_> =
        proof.classes.iter().map(|class| (class.class.clone(), class.standing)).collect();
    standings.sort();
    standings
}

/// The proofs of one class.
pub fn of<'a>(proof: &'a Proof, class: &str) -> Vec<&'a ClassProof> {
    proof.classes.iter().filter(|proof| proof.class == class).collect()
}
