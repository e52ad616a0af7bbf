//! The files of a stack set, and the launch that uses them. Says what is to be written and run; writes and runs
//! nothing.

use std::path::Path;

use upfleet_domain::{
    digest::Digest,
    jvm::{
        Mechanism, manifest,
        mechanism::{Choice, Facts, Start},
        rewrite::{self, SetPaths},
    },
    patch::class_path_of,
    reason::{Reason, ReasonCode},
    state::{Layer, stack_digest},
};

use super::{
    originals::class_of,
    request::{LayerView, Operation, Request, StackView},
};
use crate::{
    exec::{
        Place, jar,
        stack::{Content, Current, SetFile, SetFiles, jar_name},
    },
    supervise::{Input, Launch},
};

/// Upfleet's Java agent in a set.
pub const AGENT: &str = "upfleet-java-agent.jar";
/// What the Java agent is told.
pub const REQUEST: &str = "patches.request";
/// The argument file.
pub const ARGUMENTS: &str = "java.args";
/// The jar in front, for `java -jar`.
pub const PATHING: &str = "pathing.jar";
/// Classes that no base has, for the Java agent.
const ADDITIONS: &str = "additions.jar";

/// What a set is made from.
pub struct Recipe<'a> {
    /// Where the component lies.
    pub place: &'a Place,
    /// How its JVM is started.
    pub facts: &'a Facts,
    /// How patches get in.
    pub choice: &'a Choice,
    /// The jar that `java -jar` runs. Absolute.
    pub main_jar: Option<&'a Path>,
    /// The application's class path where no command says it.
    pub class_path: Vec<String>,
    /// The bytes of Upfleet's Java agent.
    pub agent: &'a [u8],
}

impl Recipe<'_> {
    /// The set of a stack. The patches' jars have to lie where `view` says.
    ///
    /// # Errors
    /// Where a jar can't be read or a path can't be written down.
    pub fn set(&self, layers: &[Layer], view: &StackView) -> Result<SetFiles, Reason> {
        SetFiles::new(self.place, layers, self.choice.mechanism, |dir| self.files(dir, view))
    }

    fn files(&self, dir: &Path, view: &StackView) -> Result<Vec<SetFile>, Reason> {
        let active = || view.layers.iter().filter(|layer| !layer.retired);
        let link = |layer: &LayerView| SetFile {
            name: jar_name(layer.number, &layer.sha256),
            content: Content::Version(layer.sha256),
        };
        let mut files: Vec<SetFile> = active().map(link).collect();
        let mut add = |name: &str, bytes: Vec<u8>| {
            files.push(SetFile { name: name.to_owned(), content: Content::Bytes(bytes) });
        };
        if self.choice.mechanism == Mechanism::JavaAgent {
            add(AGENT, self.agent.to_vec());
            let additions = additions(view)?;
            add(REQUEST, self.request(dir, view, additions.is_some())?.into_bytes());
            if let Some(bytes) = additions {
                add(ADDITIONS, bytes);
            }
        }
        let named: Vec<(u32, Digest)> = active().map(|layer| (layer.number, layer.sha256)).collect();
        if self.choice.mechanism == Mechanism::PathingJar {
            add(PATHING, self.pathing(&named)?);
        }
        let paths = paths(dir, named, self.class_path.clone());
        let options = rewrite::options(&self.facts.start, self.choice, self.facts.java, &paths);
        add(ARGUMENTS, rewrite::argument_file(&options).into_bytes());
        Ok(files)
    }

    fn request(&self, dir: &Path, view: &StackView, additions: bool) -> Result<String, Reason> {
        let mut own = view.clone();
        for layer in &mut own.layers {
            layer.jar = dir.join(jar_name(layer.number, &layer.sha256));
        }
        let (agent, journal, additions_jar) = (dir.join(AGENT), self.place.journal(), dir.join(ADDITIONS));
        let request = Request {
            operation: Operation::Start,
            mechanism: Mechanism::JavaAgent,
            agent: &agent,
            report: None,
            journal: Some(&journal),
            additions: additions.then_some(additions_jar.as_path()),
        };
        request.render(&own)
    }

    /// An empty jar whose class path is the patches and then the application.
    fn pathing(&self, named: &[(u32, Digest)]) -> Result<Vec<u8>, Reason> {
        let unfit = |problem: &str| {
            let reason = Reason::new(ReasonCode::MechanismUnfit).with("mechanism", Mechanism::PathingJar);
            reason.with("problem", problem)
        };
        let jar = self.facts.jar.as_ref().ok_or_else(|| unfit("the application's jar can't be read"))?;
        let main = self.main_jar.ok_or_else(|| unfit("the command runs no jar"))?;
        let mut urls: Vec<String> = named.iter().map(|(number, digest)| jar_name(*number, digest)).collect();
        // Relative to this jar: some versions of Java take no other URLs there.
        let stacks = self.place.stacks();
        let up = "../".repeat(stacks.components().count());
        urls.push(format!("{up}{}", manifest::url_path(&main.to_string_lossy()).trim_start_matches('/')));
        let class_path = urls.join(" ");
        let mut attributes = vec![
            ("Class-Path", class_path.as_str()),
            ("Main-Class", jar.main_class.as_deref().unwrap_or_default()),
        ];
        attributes.extend(jar.launcher.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        jar::write(&manifest::write(&attributes), &[]).map_err(|error| unfit(&error.to_string()))
    }
}

/// A jar of the classes in force that no base has; `None` where there are none.
fn additions(view: &StackView) -> Result<Option<Vec<u8>>, Reason> {
    let mut entries = Vec::new();
    for class in view.additions() {
        let layer = view.layers.iter().find(|layer| layer.number == class.number && !layer.retired);
        let Some(layer) = layer else { continue };
        let broken = |error: std::io::Error| {
            let reason = Reason::new(ReasonCode::StageFailed).with("operation", "read");
            reason.with("path", layer.jar.display()).with("problem", error)
        };
        entries.push((class_path_of(&class.name), class_of(&layer.jar, &class.name).map_err(broken)?));
    }
    if entries.is_empty() {
        return Ok(None);
    }
    let bytes = jar::write(&manifest::write(&[]), &entries);
    bytes.map(Some).map_err(|error| Reason::new(ReasonCode::PatchInvalid).with("problem", error))
}

fn paths(dir: &Path, named: Vec<(u32, Digest)>, class_path: Vec<String>) -> SetPaths {
    let at = |name: &str| dir.join(name).display().to_string();
    SetPaths {
        jars: named.into_iter().map(|(number, digest)| at(&jar_name(number, &digest))).collect(),
        agent: at(AGENT),
        request: at(REQUEST),
        arguments: at(ARGUMENTS),
        pathing: at(PATHING),
        class_path,
    }
}

/// The launch that starts with the set `current` in force.
///
/// # Errors
/// Where the operator's command does not permit it.
pub fn patched(
    base: Launch,
    facts: &Facts,
    choice: &Choice,
    current: &Current,
    class_path: Vec<String>,
    variable: &str,
) -> Result<Launch, Reason> {
    let active = current.layers.iter().filter(|layer| !layer.retired);
    let named = active.map(|layer| (layer.number, layer.release.artifact)).collect();
    let paths = paths(&current.dir, named, class_path);
    let given = rewrite::Command { argv: base.argv, env: base.env };
    let command = match facts.start {
        // Nothing of Upfleet's runs it.
        Start::Elsewhere => given,
        _ => rewrite::rewrite(given, &facts.start, choice, facts.java, &paths, variable)?,
    };
    let input = |(name, digest): &(String, Digest)| Input { path: current.dir.join(name), digest: *digest };
    Ok(Launch {
        argv: command.argv,
        env: command.env,
        inputs: current.files.iter().map(input).collect(),
        stack: stack_digest(&current.layers),
        ..base
    })
}
