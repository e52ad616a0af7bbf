//! How a JVM was started: its command line with argument files and variables unfolded. What the application gets
//! as arguments is left out. Reads nothing itself; see [`super::discover`] for the files.

use std::collections::VecDeque;

/// Environment variables that hold options of a JVM, and its class path.
pub const VARIABLES: [&str; 4] = ["JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH"];
/// Options whose value is the next word.
const WITH_VALUE: [&str; 13] = [
    "-p",
    "--module-path",
    "--upgrade-module-path",
    "--add-modules",
    "--limit-modules",
    "--enable-native-access",
    "--add-exports",
    "--add-opens",
    "--add-reads",
    "--patch-module",
    "--describe-module",
    "--source",
    "-d",
];
/// How many words are read; argument files that name each other can't, but long ones can be made.
const MAX_WORDS: usize = 100_000;

/// Options in the order in which the JVM reads them, and what it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Started {
    /// All options but the class path, with each value after its option.
    pub options: Vec<String>,
    /// The entries of the class path, as given.
    pub class_path: Vec<String>,
    /// The main class, module or jar; empty where there is none.
    pub main: String,
}

impl Started {
    /// Unfolds a command line and the variables of [`VARIABLES`]. `read` answers the text of a file that the JVM
    /// was told to read. Java 8, which is `old`, knows neither argument files nor `JDK_JAVA_OPTIONS`.
    pub fn new(
        command: &[String],
        variables: &[(String, String)],
        old: bool,
        read: &mut dyn FnMut(&str) -> Option<String>,
    ) -> Self {
        let variable =
            |name: &str| variables.iter().find(|(known, _)| known == name).map(|(_, value)| &**value);
        let mut queue: VecDeque<Word> = VecDeque::new();
        if let Some(value) = variable("JDK_JAVA_OPTIONS").filter(|_| !old) {
            queue.extend(split(value, Quoting::ArgumentFile).into_iter().map(Word::first));
        }
        queue.extend(command.iter().skip(1).cloned().map(Word::first));
        let mut started = Self::default();
        started.options = split(variable("JAVA_TOOL_OPTIONS").unwrap_or_default(), Quoting::Plain);
        started.take(queue, !old, read);
        started.options.extend(split(variable("_JAVA_OPTIONS").unwrap_or_default(), Quoting::Plain));
        started.unfold_flag_files(read);
        if started.class_path.is_empty() && !started.main.ends_with(".jar") {
            started.class_path = entries(variable("CLASSPATH").unwrap_or_default());
        }
        started
    }

    fn take(
        &mut self,
        mut queue: VecDeque<Word>,
        mut unfold: bool,
        read: &mut dyn FnMut(&str) -> Option<String>,
    ) {
        while let Some(Word { text, nested }) = queue.pop_front() {
            let mut value = || queue.pop_front().map(|word| word.text).unwrap_or_default();
            match &*text {
                _ if self.options.len() > MAX_WORDS => return,
                "--disable-@files" => unfold = false,
                "-cp" | "-classpath" | "--class-path" => self.class_path = entries(&value()),
                "-jar" | "-m" | "--module" => {
                    self.main = value();
                    return;
                }
                option if WITH_VALUE.contains(&option) => {
                    let value = value();
                    self.options.extend([text, value]);
                }
                file if unfold && !nested && file.starts_with('@') && file.len() > 1 => {
                    if let Some(literal) = file.strip_prefix("@@") {
                        queue.push_front(Word { text: format!("@{literal}"), nested: true });
                        continue;
                    }
                    let words = split(&read(&file[1..]).unwrap_or_default(), Quoting::ArgumentFile);
                    for text in words.into_iter().rev() {
                        queue.push_front(Word { text, nested: true });
                    }
                }
                option if option.starts_with("--class-path=") => {
                    self.class_path = entries(&option["--class-path=".len()..]);
                }
                option if option.starts_with("--module=") => {
                    self.main = option["--module=".len()..].to_owned();
                    return;
                }
                option if option.starts_with('-') => self.options.push(text),
                _ => {
                    self.main = text;
                    return;
                }
            }
        }
    }

    /// `-XX:VMOptionsFile` holds options, `-XX:Flags` holds flags without their prefix, which all others override.
    fn unfold_flag_files(&mut self, read: &mut dyn FnMut(&str) -> Option<String>) {
        let mut unfolded = Vec::new();
        for option in std::mem::take(&mut self.options) {
            if let Some(text) = option.strip_prefix("-XX:VMOptionsFile=").and_then(&mut *read) {
                unfolded.extend(split(&text, Quoting::Plain));
            } else if let Some(text) = option.strip_prefix("-XX:Flags=").and_then(&mut *read) {
                let flags = split(&text, Quoting::Plain).into_iter().map(|flag| format!("-XX:{flag}"));
                unfolded.splice(0..0, flags);
            }
            unfolded.push(option);
        }
        self.options = unfolded;
    }

    /// The last word on a flag: `Some(true)` for `-XX:+name`.
    #[must_use]
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.options.iter().rev().find_map(|option| {
            match option.strip_prefix("-XX:")?.split_at_checked(1)? {
                ("+", flag) if flag == name => Some(true),
                ("-", flag) if flag == name => Some(false),
                _ => None,
            }
        })
    }

    /// The Java agents and native agents, without their options, which may hold secrets.
    #[must_use]
    pub fn agents(&self) -> Vec<String> {
        let agent = |option: &String| {
            let agent = option.strip_prefix("-javaagent:").or_else(|| option.strip_prefix("-agentpath:"))?;
            Some(agent.split('=').next().unwrap_or(agent).to_owned())
        };
        self.options.iter().filter_map(agent).collect()
    }

    /// The option that forbids to attach.
    #[must_use]
    pub fn forbids_attaching(&self) -> Option<String> {
        let forbidden = self.flag("DisableAttachMechanism") == Some(true);
        forbidden.then(|| "-XX:+DisableAttachMechanism".to_owned())
    }

    /// The option that keeps the JVM from catching SIGQUIT. Such a one listens from its start.
    #[must_use]
    pub fn takes_no_signals(&self) -> Option<String> {
        let reduced = self.flag("ReduceSignalUsage") == Some(true);
        let option = self.options.iter().find(|option| *option == "-Xrs").cloned();
        option.or_else(|| reduced.then(|| "-XX:+ReduceSignalUsage".to_owned()))
    }
}

/// A word, and whether it comes from an argument file, where others are not looked for.
struct Word {
    text: String,
    nested: bool,
}

impl Word {
    fn first(text: String) -> Self {
        Self { text, nested: false }
    }
}

fn entries(class_path: &str) -> Vec<String> {
    class_path.split(':').filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quoting {
    /// Quotation marks only.
    Plain,
    /// Also backslashes within them, and comments.
    ArgumentFile,
}

/// Splits at blanks that are not quoted.
fn split(text: &str, quoting: Quoting) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', Some(_)) if quoting == Quoting::ArgumentFile => {
                let letter = match letters.next() {
                    Some('n') => '\n',
                    Some('t') => '\t',
                    Some('r') => '\r',
                    Some('f') => '\x0c',
                    // The line goes on, and its indentation does not count.
                    Some('\n') => {
                        let rest = letters.as_str().trim_start_matches([' ', '\t']);
                        letters = rest.chars();
                        continue;
                    }
                    Some(other) => other,
                    None => break,
                };
                word.get_or_insert_default().push(letter);
            }
            (letter, Some(open)) if letter == open => quote = None,
            (letter, Some(_)) => word.get_or_insert_default().push(letter),
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            ('#', None) if quoting == Quoting::ArgumentFile && word.is_none() => {
                letters = letters.as_str().split_once('\n').map_or("", |(_, rest)| rest).chars();
            }
            (letter, None) if letter.is_whitespace() => words.extend(word.take()),
            (letter, None) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(command: &str, variables: &[(&str, &str)], old: bool) -> Started {
        let command: Vec<String> = command.split(' ').map(str::to_owned).collect();
        let variables: Vec<_> = variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let mut read = |path: &str| match path {
            "args" => Some("# ours\n-cp \"/a b:/c\" @args -XX:+DisableAttachMechanism\n".to_owned()),
            "flags" => Some("+DisableAttachMechanism".to_owned()),
            _ => None,
        };
        Started::new(&command, &variables, old, &mut read)
    }

    #[test]
    fn what_is_run_ends_the_options() {
        for (command, main) in [
            ("java -Xmx1g -cp a:b com.acme.Main -XX:+DisableAttachMechanism", "com.acme.Main"),
            ("java -Xmx1g -jar app.jar -Xrs", "app.jar"),
            ("java --module-path mods -m com.acme/com.acme.Main -Xrs", "com.acme/com.acme.Main"),
            ("java -p mods --module=com.acme/com.acme.Main -Xrs", "com.acme/com.acme.Main"),
            ("java -version", ""),
        ] {
            let started = started(command, &[], false);
            assert_eq!(started.main, main, "{command}");
            assert_eq!(started.forbids_attaching(), None);
            assert_eq!(started.takes_no_signals(), None);
        }
        assert_eq!(started("java -cp a:b Main", &[], false).class_path, ["a", "b"]);
        assert_eq!(started("java Main", &[("CLASSPATH", "x:y")], false).class_path, ["x", "y"]);
    }

    #[test]
    fn argument_files_are_unfolded_once_and_only_before_the_main_class() {
        let found = started("java @args Main @args", &[], false);
        assert_eq!((found.class_path, &*found.main), (vec!["/a b".into(), "/c".into()], "@args"));
        let found = started("java @args", &[("JDK_JAVA_OPTIONS", "-Dx=y")], true);
        assert_eq!((&*found.main, found.options.len()), ("@args", 0), "Java 8 knows neither");
        assert_eq!(started("java --disable-@files @args", &[], false).main, "@args");
        assert_eq!(started("java @@args", &[], false).main, "@args");
    }

    #[test]
    fn the_last_word_on_a_flag_counts() {
        let forbids = |command: &str, variables: &[(&str, &str)]| {
            started(command, variables, false).forbids_attaching().is_some()
        };
        assert!(forbids("java -XX:+DisableAttachMechanism A", &[]));
        assert!(!forbids("java -XX:+DisableAttachMechanism -XX:-DisableAttachMechanism A", &[]));
        assert!(forbids("java A", &[("JAVA_TOOL_OPTIONS", "-Dx='a b' -XX:+DisableAttachMechanism")]));
        assert!(forbids("java A", &[("JDK_JAVA_OPTIONS", "-XX:+DisableAttachMechanism")]));
        assert!(!forbids(
            "java -XX:+DisableAttachMechanism A",
            &[("_JAVA_OPTIONS", "-XX:-DisableAttachMechanism")]
        ));
        assert!(forbids("java -XX:VMOptionsFile=args A", &[]) && forbids("java -XX:Flags=flags A", &[]));
        assert!(!forbids("java -XX:Flags=flags -XX:-DisableAttachMechanism A", &[]));
        assert!(started("java -Xrs A", &[], false).takes_no_signals().is_some());
        assert!(started("java -XX:+ReduceSignalUsage A", &[], false).takes_no_signals().is_some());
        assert!(started("java -XX:-ReduceSignalUsage A", &[], false).takes_no_signals().is_none());
    }

    #[test]
    fn agents_are_named_without_their_options() {
        let variables =
            [("JAVA_TOOL_OPTIONS", "-javaagent:/opt/apm.jar=token=secret -agentpath:/opt/x.so=y")];
        let found = started("java -javaagent:own.jar -jar a.jar -javaagent:not.jar", &variables, false);
        assert_eq!(found.agents(), ["/opt/apm.jar", "/opt/x.so", "own.jar"]);
    }

    #[test]
    fn words_are_split_as_the_launcher_does() {
        let split = |text| split(text, Quoting::ArgumentFile);
        assert_eq!(split("a 'b c'\t\"d\\\"e\" # f\ng"), ["a", "b c", "d\"e", "g"]);
        assert_eq!(split("\"a\\\n   b\" ''"), ["ab", ""]);
        assert_eq!(split("a\\b#c"), ["a\\b#c"]);
    }
}
