//! From the operator's command to the one that starts with patches in force. Everything that the operator had set is
//! kept; what is added goes right before what is run, where it has the last word.

use std::collections::BTreeMap;

use super::{
    Mechanism,
    command::{JavaCommand, Main, Origin},
    mechanism::{Choice, Start},
    words,
};
use crate::reason::{Reason, ReasonCode};

/// Where a stack's files lie. All absolute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetPaths {
    /// The patches' jars, highest number first.
    pub jars: Vec<String>,
    /// Upfleet's Java agent.
    pub agent: String,
    /// What it is told.
    pub request: String,
    /// The argument file.
    pub arguments: String,
    /// The jar in front, for `java -jar`.
    pub pathing: String,
    /// The application's own class path, where no command says it.
    pub class_path: Vec<String>,
}

/// A command and its environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The environment.
    pub env: BTreeMap<String, String>,
}

/// The options for java that put a stack in force: for the command line, for a variable, and for the argument file.
#[must_use]
pub fn options(start: &Start, choice: &Choice, java: Option<u16>, set: &SetPaths) -> Vec<String> {
    let mut options: Vec<String> = choice.overrides.iter().map(|option| (*option).to_owned()).collect();
    let command = match start {
        Start::Java(command) => Some(&**command),
        Start::Script(_) | Start::Elsewhere => None,
    };
    let joined = |own: Vec<String>, separator: &str| {
        set.jars.iter().cloned().chain(own).collect::<Vec<_>>().join(separator)
    };
    match choice.mechanism {
        Mechanism::JavaAgent => {
            // Without it, Java 21 and later warn at each live patch, and later ones will refuse. Java 8 does not know it.
            if java.is_some_and(|java| java >= 9) && allows_dynamic_agents(command) {
                options.push("-XX:+EnableDynamicAgentLoading".to_owned());
            }
            options.push(format!("-javaagent:{}={}", set.agent, set.request));
        }
        Mechanism::ClassPath => {
            let own = command.map_or_else(|| set.class_path.clone(), JavaCommand::class_path_entries);
            options.extend(["-cp".to_owned(), joined(own, ":")]);
        }
        Mechanism::PathingJar => {
            if command.is_none() {
                options.extend(["-jar".to_owned(), set.pathing.clone()]);
            }
        }
        Mechanism::PropertiesLauncher => {
            let own = choice.boot.as_ref().and_then(|boot| boot.loader_path.clone()).into_iter().collect();
            options.push(format!("-Dloader.path={}", joined(own, ",")));
            if let Some(Main::Jar(jar)) = command.map(|command| &command.main) {
                options.extend(["-cp".to_owned(), jar.clone()]);
            }
        }
        Mechanism::PatchModule => {
            let module = choice.module.as_deref().unwrap_or_default();
            let own = command.map(|command| patched_already(command, module)).unwrap_or_default();
            // One word: the VM's own variables know no other form.
            options.push(format!("--patch-module={module}={}", joined(own, ":")));
        }
        Mechanism::Live => {}
    }
    options
}

/// The operator has not said otherwise.
fn allows_dynamic_agents(command: Option<&JavaCommand>) -> bool {
    command.is_none_or(|command| command.flag("EnableDynamicAgentLoading") != Some(false))
}

/// What the operator patches a module with; it stays, behind the stack.
fn patched_already(command: &JavaCommand, module: &str) -> Vec<String> {
    let values = command.values(&["--patch-module"]);
    let own = values.into_iter().filter_map(|value| value.strip_prefix(module)?.strip_prefix('='));
    own.flat_map(|paths| paths.split(':').map(str::to_owned)).collect()
}

/// The command that starts with the stack in force. `given` is the operator's.
///
/// # Errors
/// [`ReasonCode::MechanismUnfit`] where an option of the operator's stands in the way and can't be moved.
pub fn rewrite(
    given: Command,
    start: &Start,
    choice: &Choice,
    java: Option<u16>,
    set: &SetPaths,
    variable: &str,
) -> Result<Command, Reason> {
    let added = options(start, choice, java, set);
    match start {
        Start::Java(command) => {
            let argv = java_command(&given, command, choice, java, set, added)?;
            Ok(Command { argv, env: given.env })
        }
        Start::Script(_) | Start::Elsewhere => {
            let mut env = given.env;
            let text: Option<Vec<String>> = added.iter().map(|word| words::for_variable(word)).collect();
            let text =
                text.ok_or_else(|| unfit(choice, format!("{} can't be written into {variable}", set.agent)))?;
            let own = env.remove(variable).filter(|own| !own.trim().is_empty());
            let all: Vec<String> = own.into_iter().chain(text).collect();
            env.insert(variable.to_owned(), all.join(" "));
            Ok(Command { argv: given.argv, env })
        }
    }
}

fn unfit(choice: &Choice, problem: String) -> Reason {
    Reason::new(ReasonCode::MechanismUnfit).with("mechanism", choice.mechanism).with("problem", problem)
}

fn java_command(
    given: &Command,
    command: &JavaCommand,
    choice: &Choice,
    java: Option<u16>,
    set: &SetPaths,
    mut added: Vec<String>,
) -> Result<Vec<String>, Reason> {
    let mut argv = given.argv.clone();
    let mut removed = Vec::new();
    if choice.mechanism == Mechanism::PatchModule {
        removed = moved(command, choice)?;
    }
    let reads_files = !command.options.iter().any(|option| option.text == "--disable-@files");
    if choice.mechanism == Mechanism::ClassPath && java.is_some_and(|java| java >= 9) && reads_files {
        // The list may be longer than one word of a command line may be; Java 8 has to live with that.
        added = vec![format!("@{}", set.arguments)];
    }
    let exchanged = choice.mechanism == Mechanism::PropertiesLauncher && matches!(command.main, Main::Jar(_));
    let said = |at: &usize| !exchanged || argv[..*at].iter().any(|word| word == "-jar");
    let Some(main_at) = command.main_at.filter(said) else {
        // What is run stands in an argument file: the command is written out, and is then like any other.
        let flat = Command { argv: command.flat.clone(), env: BTreeMap::new() };
        let again = super::command::read(&flat.argv, &BTreeMap::new(), java, &|path| Err(path.to_owned()));
        let mut again = again.map_err(|error| unfit(choice, error.to_string()))?;
        // What the variables say was found before and holds still.
        let elsewhere = |option: &&super::command::JavaOption| matches!(option.origin, Origin::Variable(_));
        again.options.extend(command.options.iter().filter(elsewhere).cloned());
        return java_command(&flat, &again, choice, java, set, added);
    };
    let main = argv.get_mut(main_at..).filter(|rest| !rest.is_empty());
    let main = main.ok_or_else(|| unfit(choice, "the command changed while it was read".to_owned()))?;
    match (choice.mechanism, &choice.boot) {
        (Mechanism::PathingJar, _) => main[0].clone_from(&set.pathing),
        (Mechanism::PropertiesLauncher, Some(boot)) => {
            main[0] = format!("{}.PropertiesLauncher", boot.package);
            removed.extend((1..main_at).filter(|at| argv[*at] == "-jar"));
        }
        _ => {}
    }
    // `-m` and its name stay together.
    let split = matches!(argv[main_at - 1].as_str(), "-m" | "--module");
    let mut before = if split { main_at - 1 } else { main_at };
    // An argument file would not be read between `-jar` and its jar by old versions, nor an option by people.
    if argv[before - 1] == "-jar" && !removed.contains(&(before - 1)) {
        before -= 1;
    }
    let tail = argv.split_off(before);
    let kept = argv.into_iter().enumerate().filter(|(at, _)| !removed.contains(at)).map(|(_, word)| word);
    Ok(kept.chain(added).chain(tail).collect())
}

/// The words of the operator's own `--patch-module` of that module: java takes one only, so they move into ours.
fn moved(command: &JavaCommand, choice: &Choice) -> Result<Vec<usize>, Reason> {
    let module = choice.module.as_deref().unwrap_or_default();
    let mut words = Vec::new();
    for option in &command.options {
        let Some(("--patch-module", value)) = option.pair() else { continue };
        if value.strip_prefix(module).is_none_or(|rest| !rest.starts_with('=')) {
            continue;
        }
        match &option.origin {
            Origin::CommandLine(at) => words.extend(*at..=at + usize::from(option.value.is_some())),
            // A command whose main class is in a file as well is written out before this counts.
            Origin::File(path) => {
                return Err(unfit(
                    choice,
                    format!("`{path}` has a --patch-module of {module}; write it into the command"),
                ));
            }
            Origin::Variable(name) => {
                return Err(unfit(
                    choice,
                    format!("{name} has a --patch-module of {module}; write it into the command"),
                ));
            }
        }
    }
    Ok(words)
}

/// The text of an argument file with these options.
#[must_use]
pub fn argument_file(options: &[String]) -> String {
    let mut text = String::new();
    for option in options {
        text.push_str(&words::for_argument_file(option));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests;
