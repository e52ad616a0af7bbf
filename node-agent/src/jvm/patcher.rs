//! What the actor of a component asks of everything about JVMs: does a stack fit, which files put it in force, how is
//! the process started with them, which process is it, what does it say.
//! Blocks, but for what a running JVM is asked; decides nothing about upgrades.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use upfleet_domain::{
    jvm::{
        Attachable, Jvm, Mechanism, Proof,
        command::Main,
        mechanism::{Choice, Facts, Start, Wishes, choose},
    },
    patch::{
        judge::{Application, judge, wanted},
        stack::Known,
    },
    reason::{Reason, ReasonCode},
    state::{Layer, ReleaseRef},
};

use super::{
    Target, discover, facts, java,
    launch::{self, Recipe},
    live, originals, process,
    proof::{self, Means},
    request::StackView,
};
use crate::{
    config::{Caches, ComponentConfig, JavaAgents, JvmConfig, RunMode},
    exec::{
        Place,
        jar::Jar,
        stack::{self, SetFiles},
    },
    supervise::Launch,
};

/// The JVM side of one component.
#[derive(Clone, Debug)]
pub struct Patcher {
    config: ComponentConfig,
    jvm: JvmConfig,
    place: Place,
    state_dir: PathBuf,
    /// Another program than this process's own provides the helper that attaches.
    helper: Option<PathBuf>,
}

/// A stack that is asked about, with what is known of its patches.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The stack, highest number first.
    pub layers: &'a [Layer],
    /// The same with the patches' jars.
    pub view: &'a StackView,
    /// The patches by their manifests.
    pub known: &'a Known,
    /// The base it is for; `None` where that is no release.
    pub base: Option<&'a ReleaseRef>,
    /// The base's file, where it is not in the component's place yet.
    pub file: Option<&'a Path>,
    /// Whether the running JVM is to be patched.
    pub live: bool,
    /// The component's JVM, where one runs.
    pub process: Option<u32>,
}

impl Patcher {
    /// For a component of the agent whose state is in `state_dir`; `None` where it takes no patches.
    #[must_use]
    pub fn new(state_dir: &Path, config: &ComponentConfig) -> Option<Self> {
        let jvm = config.jvm.clone()?;
        let place = Place::new(&config.name, &config.path);
        Some(Self { config: config.clone(), jvm, place, state_dir: state_dir.to_owned(), helper: None })
    }

    /// Attaches with the helper of `program`, not of this process's own.
    #[must_use]
    pub fn with_helper(self, program: &Path) -> Self {
        Self { helper: Some(program.to_owned()), ..self }
    }

    fn target(&self, pid: u32) -> Result<Target, Reason> {
        let target = Target::of(pid)?;
        Ok(match &self.helper {
            Some(program) => target.with_helper(program),
            None => target,
        })
    }

    /// The component's configuration.
    #[must_use]
    pub fn config(&self) -> &ComponentConfig {
        &self.config
    }

    /// Where the component and its sets lie.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Where the agent keeps its state.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Whether a stack can be put in force here; what is to be known of it otherwise. Touches nothing.
    ///
    /// # Errors
    /// The first thing that stands in the way.
    pub fn fit(&self, change: &Change<'_>) -> Result<Vec<Reason>, Reason> {
        if change.layers.iter().all(|layer| layer.retired) {
            return Ok(Vec::new());
        }
        let running = change.process.and_then(discover::find);
        let file = change.file.unwrap_or(&self.config.path);
        let facts = self.facts(change.view, file, running.as_ref())?;
        let choice = choose(&facts, &self.wishes())?;
        let application = self.application(change, &facts, &choice, file);
        let notes = judge(change.layers, change.known, change.base, &application, choice.mechanism)?;
        if change.live {
            self.live_permitted(change, running.as_ref())?;
        }
        Ok(notes)
    }

    /// The files that put a stack in force, to be switched to; `None` where there is nothing to put in force. The
    /// patches' jars have to lie among the versions.
    ///
    /// # Errors
    /// As [`Patcher::fit`] for the mechanism.
    pub fn set(&self, layers: &[Layer], view: &StackView) -> Result<Option<SetFiles>, Reason> {
        let empty = layers.iter().all(|layer| layer.retired);
        if empty && self.config.run.mode != RunMode::None {
            return Ok(None);
        }
        let facts = self.facts(view, &self.config.path, None)?;
        // Scripts of the operator's refer to the set in force, so that there is one without a patch as well.
        let choice = match choose(&facts, &self.wishes()) {
            Ok(choice) => choice,
            Err(_) if empty => return Ok(None),
            Err(reason) => return Err(reason),
        };
        let base = self.base_launch();
        let main_jar = self.main_jar(&facts, &base);
        let recipe = Recipe {
            place: &self.place,
            facts: &facts,
            choice: &choice,
            main_jar: main_jar.as_deref(),
            class_path: self.class_path(),
            agent: java::JAR,
        };
        recipe.set(layers, view).map(Some)
    }

    /// `base` with the stack `layers`, which is the one that was switched to last.
    ///
    /// # Errors
    /// [`ReasonCode::StackDamaged`] where another one lies there.
    pub fn launch(&self, base: Launch, layers: &[Layer]) -> Result<Launch, Reason> {
        let current = stack::current(&self.place)?;
        let none = |layers: &[Layer]| layers.iter().all(|layer| layer.retired);
        let found = current.as_ref().map(|current| current.layers.as_slice()).unwrap_or_default();
        if found != layers && !(none(found) && none(layers)) {
            let text = |layers: &[Layer]| {
                upfleet_domain::state::stack_digest(layers)
                    .map_or_else(|| "no stack".to_owned(), |digest| digest.to_string())
            };
            return Err(Reason::new(ReasonCode::StackDamaged)
                .with("path", self.place.current_stack().display())
                .with("actual", text(found))
                .with("expected", text(layers)));
        }
        let Some(current) = current.filter(|current| !none(&current.layers)) else { return Ok(base) };
        let java = facts::java(&base);
        let start = facts::start(&self.config, &base, java)?;
        let jar = facts::main_jar(&self.config, &self.config.path, &start, &base);
        let stacks = self.place.stacks().display().to_string();
        let facts = Facts { start, java, jar, stacks, patches: Vec::new() };
        let wishes = Wishes { mechanism: Some(current.mechanism), ..self.wishes() };
        let choice = choose(&facts, &wishes)?;
        launch::patched(base, &facts, &choice, &current, self.class_path(), &self.jvm.options_variable)
    }

    /// The component's JVM: the supervised process or one below it, or the one on this node that has the component
    /// among what it runs.
    ///
    /// # Errors
    /// [`ReasonCode::JvmGone`] where none runs; [`ReasonCode::ProofMissing`] where there are several, so that nobody
    /// takes them for none.
    pub fn find(&self, supervised: Option<u32>) -> Result<u32, Reason> {
        let gone = |problem: &str| {
            Reason::new(ReasonCode::JvmGone).with("component", &self.config.name).with("problem", problem)
        };
        let Some(process) = supervised else {
            let all = discover::inventory(&BTreeMap::new());
            let mut own = all.iter().filter(|jvm| self.runs(jvm));
            let found = own.next().ok_or_else(|| gone("none names its path"))?;
            if own.next().is_some() {
                let problem = "several JVMs name the component's path; let the agent run one of them";
                return Err(Reason::new(ReasonCode::ProofMissing).with("problem", problem));
            }
            return Ok(found.pid);
        };
        if discover::find(process).is_some() {
            return Ok(process);
        }
        let components = BTreeMap::from([(self.config.name.to_string(), process)]);
        let below: Vec<Jvm> =
            discover::inventory(&components).into_iter().filter(|jvm| jvm.component.is_some()).collect();
        let named = below.iter().find(|jvm| self.runs(jvm)).or(below.first());
        named.map(|jvm| jvm.pid).ok_or_else(|| gone("its process has started none"))
    }

    fn runs(&self, jvm: &Jvm) -> bool {
        let cwd = std::fs::read_link(format!("/proc/{}/cwd", jvm.pid)).unwrap_or_default();
        let stacks = self.place.stacks();
        let named = |path: &str| {
            let path = cwd.join(path);
            path == self.config.path || path.starts_with(&stacks) || self.jvm.class_path.contains(&path)
        };
        let agent =
            |agent: &String| Path::new(agent.split('=').next().unwrap_or_default()).starts_with(&stacks);
        named(&jvm.main) || jvm.class_path.iter().any(|path| named(path)) || jvm.java_agents.iter().any(agent)
    }

    /// Brings the running JVM to exactly this stack, all classes or none.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub async fn live(&self, pid: u32, view: &StackView) -> Result<Proof, Reason> {
        let forbidden = |problem: &str| Reason::new(ReasonCode::LiveForbidden).with("problem", problem);
        if !self.jvm.live {
            return Err(forbidden("live is off"));
        }
        if self.jvm.java_agents == JavaAgents::Forbidden {
            return Err(forbidden("java_agents is \"forbidden\""));
        }
        let mechanism = self.mechanism()?.unwrap_or(Mechanism::Live);
        let journal = self.place.journal();
        // In another mount namespace the path is another directory, or none.
        let journal = Some(journal.as_path()).filter(|path| path.is_dir() && !process::sees_other_files(pid));
        live::patch(&self.target(pid)?, view, mechanism, journal).await
    }

    /// What the running JVM says is in force of a stack. Classes that run old code are in the proof.
    ///
    /// # Errors
    /// [`ReasonCode::ProofMissing`] and why.
    pub async fn prove(&self, pid: u32, view: &StackView) -> Result<Proof, Reason> {
        let means = Means {
            mechanism: self.mechanism()?.unwrap_or(Mechanism::Live),
            journal: Some(self.place.journal()),
            attach: self.jvm.java_agents == JavaAgents::Allowed,
        };
        proof::prove(&self.target(pid)?, view, &means).await
    }

    /// The mechanism of the set that is in force.
    ///
    /// # Errors
    /// [`ReasonCode::StackDamaged`].
    pub fn mechanism(&self) -> Result<Option<Mechanism>, Reason> {
        Ok(stack::current(&self.place)?.map(|current| current.mechanism))
    }

    fn wishes(&self) -> Wishes {
        Wishes {
            mechanism: self.jvm.mechanism.mechanism(),
            java_agents: self.jvm.java_agents == JavaAgents::Allowed,
            module: self.jvm.module.clone(),
            strip_caches: self.jvm.caches == Caches::Strip,
            options_variable: self.jvm.options_variable.clone(),
        }
    }

    fn base_launch(&self) -> Launch {
        Launch::of(&self.config, None)
    }

    fn facts(&self, view: &StackView, file: &Path, running: Option<&Jvm>) -> Result<Facts, Reason> {
        let base = self.base_launch();
        let java = facts::java(&base).or_else(|| facts::feature(&running?.java_version));
        let start = facts::start(&self.config, &base, java)?;
        let jar = facts::main_jar(&self.config, file, &start, &base);
        let patches = view.layers.iter().filter(|layer| !layer.retired).map(facts::patch_jar).collect();
        Ok(Facts { start, java, jar, stacks: self.place.stacks().display().to_string(), patches })
    }

    /// The application's class path where no command says it.
    fn class_path(&self) -> Vec<String> {
        let own = std::iter::once(&self.config.path).chain(&self.jvm.class_path);
        own.map(|path| path.display().to_string()).collect()
    }

    fn main_jar(&self, facts: &Facts, base: &Launch) -> Option<PathBuf> {
        match &facts.start {
            Start::Java(command) => match &command.main {
                Main::Jar(jar) => Some(base.cwd.join(jar)),
                _ => None,
            },
            Start::Elsewhere => Some(self.config.path.clone()),
            Start::Script(_) => None,
        }
    }

    /// What the application's files hold of the classes that the stack touches.
    fn application(&self, change: &Change<'_>, facts: &Facts, choice: &Choice, file: &Path) -> Application {
        let base = self.base_launch();
        let mut places = Vec::new();
        if let Start::Java(command) = &facts.start {
            places.extend(originals::module_places(&command.module_path(), &base.cwd));
            places.extend(originals::places(&command.class_path_entries(), &base.cwd));
        }
        places.extend(self.jvm.class_path.iter().cloned());
        places.push(self.config.path.clone());
        for place in places.iter_mut().filter(|place| **place == self.config.path) {
            file.clone_into(place);
        }
        let mut application =
            Application { java: facts.java, module: choice.module.clone(), ..Application::default() };
        originals::look(&places, &wanted(change.layers, change.known), &mut application);
        for layer in &change.view.layers {
            if let Ok(mut jar) = Jar::open(&layer.jar) {
                application.patch_signers.insert(layer.number, originals::signers(&mut jar));
            }
        }
        application
    }

    /// Whether the running JVM may be patched, and each patch that comes or goes can be.
    fn live_permitted(&self, change: &Change<'_>, running: Option<&Jvm>) -> Result<(), Reason> {
        let forbidden = |problem: &str| Err(Reason::new(ReasonCode::LiveForbidden).with("problem", problem));
        if !self.jvm.live {
            return forbidden("`live` of [component.jvm] is false");
        }
        if self.jvm.java_agents == JavaAgents::Forbidden {
            return forbidden("`java_agents` of [component.jvm] is \"forbidden\"");
        }
        if let Some(jvm) = running
            && let Attachable::No(problem) = &jvm.attachable
        {
            return Err(Reason::new(ReasonCode::AttachRefused).with("pid", jvm.pid).with("problem", problem));
        }
        let before = stack::layers(&self.place)?;
        let in_force = |layers: &[Layer], manifest| {
            layers.iter().any(|layer| !layer.retired && layer.release.manifest == manifest)
        };
        for layer in change.layers.iter().chain(&before) {
            let manifest = layer.release.manifest;
            if in_force(change.layers, manifest) != in_force(&before, manifest)
                && let Some(spec) = change.known.get(&manifest)
            {
                spec.takes_live()?;
            }
        }
        Ok(())
    }
}
