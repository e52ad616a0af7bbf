//! How a running JVM was started, for whoever looks from outside: never an error, only less to say.
//!
//! [`upfleet_domain::jvm::command`] reads the command line; what it can't read as one of `java` (a JVM within
//! another program, a file that is gone) leaves at least the options. Reads no files itself.

use std::collections::BTreeMap;

use upfleet_domain::jvm::command::{self, JavaCommand, JavaOption, Main, Origin};

/// Environment variables that hold options of a JVM, and its class path.
pub const VARIABLES: [&str; 4] = ["JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH"];

/// Options in the order in which the last word counts, and what is run.
#[derive(Clone, Debug)]
pub struct Started {
    command: JavaCommand,
    /// Whether the command line could be read as one of java.
    read: bool,
}

impl Started {
    /// From a command line and the variables of [`VARIABLES`]. `java` is the version of the JVM where it can be
    /// told; `read` answers the text of a file that the JVM was told to read.
    #[must_use]
    pub fn new(
        argv: &[String],
        variables: &BTreeMap<String, String>,
        java: Option<u16>,
        read: &dyn Fn(&str) -> Option<String>,
    ) -> Self {
        // The JVM did start: what is gone by now held something, but not what would have kept it from starting.
        let file = |path: &str| Ok(read(path).unwrap_or_default());
        // A launcher may have any name; that it is one is known from what it has mapped.
        let words: Vec<String> =
            std::iter::once("java".to_owned()).chain(argv.iter().skip(1).cloned()).collect();
        if let Ok(command) = command::read(&words, variables, java, &file) {
            return Self { command, read: true };
        }
        let option = |(at, text): (usize, &String)| JavaOption {
            text: text.clone(),
            value: None,
            origin: Origin::CommandLine(at),
        };
        let said = argv.iter().enumerate().skip(1).filter(|(_, word)| word.starts_with('-')).map(option);
        let nothing = ["java".to_owned(), "None".to_owned()];
        let mut command = command::read(&nothing, variables, java, &file).unwrap_or_else(|_| nothing_said());
        command.options.extend(said);
        Self { command, read: false }
    }

    /// The command line, where it could be read as one of java.
    #[must_use]
    pub fn command(&self) -> Option<&JavaCommand> {
        self.read.then_some(&self.command)
    }

    /// The main class, module or jar; empty where it can't be told.
    #[must_use]
    pub fn main(&self) -> String {
        match &self.command.main {
            _ if !self.read => String::new(),
            Main::Class(name) | Main::Jar(name) | Main::Source(name) => name.clone(),
            Main::Module { module, class: Some(class) } => format!("{module}/{class}"),
            Main::Module { module, class: None } => module.clone(),
        }
    }

    /// The entries of the class path.
    #[must_use]
    pub fn class_path(&self) -> Vec<String> {
        if self.read { self.command.class_path_entries() } else { Vec::new() }
    }

    /// The Java agents and native agents, without their options, which may hold secrets.
    #[must_use]
    pub fn agents(&self) -> Vec<String> {
        let agent = |option: &JavaOption| {
            let agent = option
                .text
                .strip_prefix("-javaagent:")
                .or_else(|| option.text.strip_prefix("-agentpath:"))?;
            Some(agent.split('=').next().unwrap_or(agent).to_owned())
        };
        self.command.options.iter().filter_map(agent).collect()
    }

    /// The option that forbids to attach.
    #[must_use]
    pub fn forbids_attaching(&self) -> Option<String> {
        let forbidden = self.command.flag("DisableAttachMechanism") == Some(true);
        forbidden.then(|| "-XX:+DisableAttachMechanism".to_owned())
    }

    /// The option that keeps the JVM from catching SIGQUIT. Such a one listens from its start.
    #[must_use]
    pub fn takes_no_signals(&self) -> Option<String> {
        let reduced = self.command.flag("ReduceSignalUsage") == Some(true);
        let option = self.command.options.iter().find(|option| option.text == "-Xrs");
        let option = option.map(|option| option.text.clone());
        option.or_else(|| reduced.then(|| "-XX:+ReduceSignalUsage".to_owned()))
    }
}

fn nothing_said() -> JavaCommand {
    JavaCommand {
        program: "java".to_owned(),
        options: Vec::new(),
        main: Main::Class(String::new()),
        arguments: Vec::new(),
        variable_class_path: None,
        main_at: None,
        flat: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(command: &str, variables: &[(&str, &str)]) -> Started {
        let command: Vec<String> = command.split(' ').map(str::to_owned).collect();
        let variables =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let read = |path: &str| (path == "args").then(|| "-XX:+DisableAttachMechanism".to_owned());
        Started::new(&command, &variables, None, &read)
    }

    #[test]
    fn what_is_run_is_told_whatever_the_launcher_is_called() {
        for (command, main) in [
            ("/opt/our-server -Xmx1g -cp a:b com.acme.Main -XX:+DisableAttachMechanism", "com.acme.Main"),
            ("java @gone -jar app.jar -Xrs", "app.jar"),
            ("java -p mods -m com.acme/com.acme.Main -Xrs", "com.acme/com.acme.Main"),
        ] {
            let started = started(command, &[]);
            assert_eq!(started.main(), main, "{command}");
            assert_eq!((started.forbids_attaching(), started.takes_no_signals()), (None, None));
        }
        assert_eq!(started("java -cp a:b Main", &[]).class_path(), ["a", "b"]);
    }

    #[test]
    fn a_jvm_within_another_program_has_options_at_least() {
        let found = started("jsvc -Xrs -jar", &[("JAVA_TOOL_OPTIONS", "-XX:+DisableAttachMechanism")]);
        assert_eq!((found.main(), found.class_path().len()), (String::new(), 0));
        assert!(found.forbids_attaching().is_some() && found.takes_no_signals().is_some());
    }

    #[test]
    fn the_last_word_on_a_flag_counts_wherever_it_was_said() {
        let forbids = |command: &str, variables: &[(&str, &str)]| {
            started(command, variables).forbids_attaching().is_some()
        };
        assert!(forbids("java @args A", &[]));
        assert!(forbids("java A", &[("JDK_JAVA_OPTIONS", "@args")]));
        assert!(!forbids("java @args A", &[("_JAVA_OPTIONS", "-XX:-DisableAttachMechanism")]));
        assert!(started("java -XX:+ReduceSignalUsage A", &[]).takes_no_signals().is_some());
    }

    #[test]
    fn agents_are_named_without_their_options() {
        let variables =
            [("JAVA_TOOL_OPTIONS", "-javaagent:/opt/apm.jar=token=secret -agentpath:/opt/x.so=y")];
        let found = started("java -javaagent:own.jar -jar a.jar -javaagent:not.jar", &variables);
        assert_eq!(found.agents(), ["/opt/apm.jar", "/opt/x.so", "own.jar"]);
    }
}
