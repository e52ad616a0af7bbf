//! Choosing how patches get into a JVM, from how it is started.
//!
//! Many obvious ways start cleanly and run the old code. Each of them is refused here, with what to do instead; what
//! the classes themselves have to say (signers, seals, digests) is in [`crate::patch::judge`].

use super::{
    Mechanism,
    command::{JavaCommand, Main, Origin},
};
use crate::reason::{Reason, ReasonCode};

/// How the JVM is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// By calling java.
    Java(Box<JavaCommand>),
    /// By a script or another program, which calls java somehow.
    Script(String),
    /// By somebody else; Upfleet writes an argument file for them.
    Elsewhere,
}

/// What the manifest of the jar that is run says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MainJar {
    /// `Main-Class`.
    pub main_class: Option<String>,
    /// `LOADER_PATH` of the environment or `Loader-Path`, of Spring Boot.
    pub loader_path: Option<String>,
    /// What else has an effect only in the jar that is run: name and value.
    pub launcher: Vec<(String, String)>,
}

/// What a patch's jar is like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PatchJar {
    /// The patch's number.
    pub number: u32,
    /// An entry for later Java versions, below `META-INF/versions`, if it has one.
    pub versioned: Option<String>,
    /// A file in it that is no class, if it has one.
    pub resource: Option<String>,
    /// Its manifest says `Multi-Release: true`.
    pub multi_release: bool,
    /// The module that its manifest in the release names.
    pub module: Option<String>,
}

/// What is known of the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// How it is started.
    pub start: Start,
    /// The JVM's version: 8, 11, 17 …; `None` where it can't be told.
    pub java: Option<u16>,
    /// The manifest of the jar that is run, where one is.
    pub jar: Option<MainJar>,
    /// The directory that the stack's files lie below.
    pub stacks: String,
    /// The stack's patches.
    pub patches: Vec<PatchJar>,
}

/// What the operator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// The mechanism; `None` for the one that fits.
    pub mechanism: Option<Mechanism>,
    /// Whether Java agents may be used.
    pub java_agents: bool,
    /// The module of the patched classes, where the command does not say it.
    pub module: Option<String>,
    /// Whether options for class caches may be overridden while the component is patched.
    pub strip_caches: bool,
    /// Where options go for a script.
    pub options_variable: String,
}

/// How Spring Boot's launcher is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The package of its classes: `org.springframework.boot.loader.launch`, without `.launch` before 3.2.
    pub package: String,
    /// The class of it that is run.
    pub launcher: String,
    /// What the operator put on the loader's path; its own launchers but `PropertiesLauncher` have none.
    pub loader_path: Option<String>,
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// How patches get in.
    pub mechanism: Mechanism,
    /// Options that override what the operator's say of class caches.
    pub overrides: Vec<&'static str>,
    /// The module, for `--patch-module`.
    pub module: Option<String>,
    /// Spring Boot's launcher, where the application is started by it.
    pub boot: Option<Boot>,
}

/// Chooses, or says why not.
///
/// # Errors
/// [`ReasonCode::MechanismUnfit`] for what would run the old code, [`ReasonCode::ClassCache`] where a cache would, and
/// [`ReasonCode::JvmUnknown`].
pub fn choose(facts: &Facts, wishes: &Wishes) -> Result<Choice, Reason> {
    let overrides = caches(facts, wishes)?;
    let boot = boot(facts);
    let mechanism = match wishes.mechanism {
        Some(mechanism) => mechanism,
        None => fitting(facts, wishes, boot.as_ref())?,
    };
    let module = module(facts, wishes);
    let problem = match mechanism {
        Mechanism::JavaAgent => java_agent(facts, wishes).or_else(|| resources(facts)),
        Mechanism::ClassPath => class_path(facts, boot.as_ref()),
        Mechanism::PathingJar => pathing_jar(facts, boot.as_ref()),
        Mechanism::PropertiesLauncher => properties_launcher(facts, boot.as_ref()),
        Mechanism::PatchModule => patch_module(facts, wishes, module.as_deref()),
        Mechanism::Live => Some("it lasts until the next start only".to_owned()),
    };
    match problem.or_else(|| versioned(facts, mechanism)) {
        Some(problem) => Err(unfit(mechanism, problem)),
        None => Ok(Choice { mechanism, overrides, module, boot }),
    }
}

fn unfit(mechanism: Mechanism, problem: String) -> Reason {
    Reason::new(ReasonCode::MechanismUnfit).with("mechanism", mechanism).with("problem", problem)
}

/// A Java agent replaces classes; whoever asks for a file gets the application's own.
fn resources(facts: &Facts) -> Option<String> {
    facts.patches.iter().find_map(|patch| {
        let (number, name) = (patch.number, patch.resource.as_ref()?);
        Some(format!("patch {number} ships the file `{name}`, which a Java agent can't put before the application's own"))
    })
}

/// The mechanism for how the JVM is started: the Java agent, which fits everything but patches with other files than
/// classes, or where that is forbidden the one for its way of starting.
fn fitting(facts: &Facts, wishes: &Wishes, boot: Option<&Boot>) -> Result<Mechanism, Reason> {
    if wishes.java_agents && resources(facts).is_none() {
        return Ok(Mechanism::JavaAgent);
    }
    match &facts.start {
        Start::Java(command) => Ok(match (&command.main, boot) {
            (_, Some(_)) => Mechanism::PropertiesLauncher,
            (Main::Jar(_), None) => Mechanism::PathingJar,
            (Main::Module { .. }, None) => Mechanism::PatchModule,
            (Main::Class(_) | Main::Source(_), None) => Mechanism::ClassPath,
        }),
        Start::Elsewhere if wishes.module.is_some() => Ok(Mechanism::PatchModule),
        Start::Elsewhere => Ok(Mechanism::ClassPath),
        Start::Script(_) if wishes.module.is_some() => Ok(Mechanism::PatchModule),
        // Refused with the file that is in the way.
        Start::Script(_) if wishes.java_agents => Ok(Mechanism::JavaAgent),
        Start::Script(program) => Err(Reason::new(ReasonCode::JvmUnknown)
            .with("problem", format!("`{program}` is no java command, and Java agents are forbidden"))),
    }
}

/// The Spring Boot launcher that starts the application, as `-jar` or by its class's name.
fn boot(facts: &Facts) -> Option<Boot> {
    let named = match &facts.start {
        Start::Java(command) => match &command.main {
            Main::Class(class) => Some(class.as_str()),
            Main::Jar(_) => facts.jar.as_ref()?.main_class.as_deref(),
            Main::Module { .. } | Main::Source(_) => None,
        },
        Start::Script(_) | Start::Elsewhere => facts.jar.as_ref()?.main_class.as_deref(),
    };
    let (package, launcher) = named?.rsplit_once('.')?;
    let known =
        matches!(package, "org.springframework.boot.loader" | "org.springframework.boot.loader.launch");
    let said = match &facts.start {
        Start::Java(command) => command.prefixed("-Dloader.path=").map(|(path, _)| path.to_owned()),
        Start::Script(_) | Start::Elsewhere => None,
    };
    let path = said.or_else(|| facts.jar.as_ref()?.loader_path.clone());
    (known && launcher.ends_with("Launcher")).then(|| Boot {
        package: package.to_owned(),
        launcher: launcher.to_owned(),
        loader_path: path.filter(|path| launcher == "PropertiesLauncher" && !path.is_empty()),
    })
}

/// The module of the patched classes.
fn module(facts: &Facts, wishes: &Wishes) -> Option<String> {
    let main = match &facts.start {
        Start::Java(command) => match &command.main {
            Main::Module { module, .. } => Some(module.clone()),
            _ => None,
        },
        Start::Script(_) | Start::Elsewhere => None,
    };
    wishes.module.clone().or(main)
}

/// Options that would run classes from a cache; what overrides them where that is wanted.
fn caches(facts: &Facts, wishes: &Wishes) -> Result<Vec<&'static str>, Reason> {
    let Start::Java(command) = &facts.start else { return Ok(Vec::new()) };
    let mut found: Vec<(String, &Origin, &'static str)> = Vec::new();
    if let Some(("on", origin)) = command.prefixed("-Xshare:") {
        found.push(("-Xshare:on".to_owned(), origin, "-Xshare:auto"));
    }
    let off = command.setting("AOTMode").is_some_and(|(mode, _)| mode == "off");
    if !off {
        for name in ["AOTCache", "AOTConfiguration", "AOTCacheOutput"] {
            if let Some((value, origin)) = command.setting(name) {
                found.push((format!("-XX:{name}={value}"), origin, "-XX:AOTMode=off"));
                break;
            }
        }
    }
    let mut overrides = Vec::new();
    for (option, origin, with) in found {
        // That variable has the last word after every command line.
        if !wishes.strip_caches || *origin == Origin::Variable("_JAVA_OPTIONS") {
            return Err(Reason::new(ReasonCode::ClassCache).with("option", option));
        }
        overrides.push(with);
    }
    Ok(overrides)
}

/// Entries for later Java versions in a patch: read only in a multi-release jar, and never by every mechanism.
fn versioned(facts: &Facts, mechanism: Mechanism) -> Option<String> {
    facts.patches.iter().find_map(|patch| {
        let (entry, number) = (patch.versioned.as_ref()?, patch.number);
        match mechanism {
            Mechanism::JavaAgent | Mechanism::Live | Mechanism::PatchModule => {
                Some(format!("{entry} of patch {number} would not be looked at"))
            }
            _ if !patch.multi_release => {
                Some(format!("patch {number} has {entry}, but its manifest does not say Multi-Release: true"))
            }
            _ => None,
        }
    })
}

fn java_agent(facts: &Facts, wishes: &Wishes) -> Option<String> {
    if facts.stacks.contains('=') {
        return Some(format!("`{}` holds `=`, where java ends the name of a Java agent", facts.stacks));
    }
    variable(facts, wishes)
}

/// What a script's variable can't do.
fn variable(facts: &Facts, wishes: &Wishes) -> Option<String> {
    let Start::Script(program) = &facts.start else { return None };
    let ignored = facts.java.is_some_and(|java| java < 9) && wishes.options_variable == "JDK_JAVA_OPTIONS";
    ignored.then(|| {
        format!("`{program}` starts Java 8, which ignores JDK_JAVA_OPTIONS; set options_variable = \"JAVA_TOOL_OPTIONS\"")
    })
}

/// A list of names that are parted by `:`.
fn listed(facts: &Facts, separator: char) -> Option<String> {
    let stacks = &facts.stacks;
    let text = || format!("`{stacks}` holds `{separator}`, which parts names there");
    stacks.contains(separator).then(text)
}

fn class_path(facts: &Facts, boot: Option<&Boot>) -> Option<String> {
    if let Some(boot) = boot {
        return Some(format!(
            "{} has a class loader of its own, and the class path is its parent's, which does not see the \
             application; use java-agent or properties-launcher",
            boot.launcher
        ));
    }
    let problem = match &facts.start {
        Start::Java(command) => match &command.main {
            Main::Class(_) => None,
            Main::Jar(jar) => {
                Some(format!("with -jar {jar} java ignores every class path; use java-agent or pathing-jar"))
            }
            Main::Module { module, .. } => Some(format!(
                "the class path has no effect on classes of the module {module}; use java-agent or patch-module"
            )),
            Main::Source(source) => {
                Some(format!("{source} is compiled in memory before the class path counts"))
            }
        },
        Start::Script(program) => Some(format!(
            "`{program}` says the class path itself, after the variable's; use java-agent, or let the command call java"
        )),
        Start::Elsewhere => None,
    };
    problem.or_else(|| listed(facts, ':'))
}

fn pathing_jar(facts: &Facts, boot: Option<&Boot>) -> Option<String> {
    if let Some(boot) = boot {
        return Some(format!(
            "{} would not find the application in another jar; use java-agent or properties-launcher",
            boot.launcher
        ));
    }
    let jar = match &facts.start {
        Start::Java(command) => matches!(command.main, Main::Jar(_)),
        Start::Elsewhere => true,
        Start::Script(_) => false,
    };
    if !jar {
        return Some("it stands in for the jar of `java -jar`, which this command is not".to_owned());
    }
    let main = facts.jar.as_ref().and_then(|jar| jar.main_class.as_ref());
    // Java takes the name after `-jar` for a whole class path.
    let problem = main.is_none().then(|| "the application's jar names no Main-Class".to_owned());
    problem.or_else(|| listed(facts, ':'))
}

fn properties_launcher(facts: &Facts, boot: Option<&Boot>) -> Option<String> {
    let Some(boot) = boot else {
        return Some("the application is not started by Spring Boot's launcher".to_owned());
    };
    if boot.launcher.starts_with("War") {
        return Some(format!(
            "PropertiesLauncher does not read what {} reads; use java-agent",
            boot.launcher
        ));
    }
    if !matches!(facts.start, Start::Java(_)) {
        return Some(format!(
            "{} ignores -Dloader.path, and a script's launcher can't be exchanged; use java-agent",
            boot.launcher
        ));
    }
    listed(facts, ',')
}

fn patch_module(facts: &Facts, wishes: &Wishes, module: Option<&str>) -> Option<String> {
    if facts.java.is_some_and(|java| java < 9) {
        return Some("Java 8 has no modules".to_owned());
    }
    let Some(module) = module else {
        return Some(
            "the command runs no module, and java only warns of one that it does not have".to_owned(),
        );
    };
    if let Start::Java(command) = &facts.start
        && !matches!(command.main, Main::Module { .. })
        && command.module_path().is_empty()
    {
        return Some(format!("the command has no module path, so there is no module {module} to patch"));
    }
    let other = facts.patches.iter().find(|patch| patch.module.as_deref().is_some_and(|name| name != module));
    if let Some(patch) = other {
        let name = patch.module.as_deref().unwrap_or_default();
        return Some(format!("patch {} is for the module {name}, not for {module}", patch.number));
    }
    listed(facts, ':').or_else(|| variable(facts, wishes))
}

#[cfg(test)]
mod tests;
