//! Reading how a JVM is started: the command line of `java` 8 to 25 with its argument files, and the variables it
//! reads.
//!
//! Pure: whoever calls hands over a reader of files. What is no direct call of `java` (a script, a wrapper) is said to
//! be none; nothing is guessed.

use std::collections::BTreeMap;

use super::words;

/// Options that take the next word, unless they say it with `=`.
const WITH_VALUE: [&str; 17] = [
    "-cp",
    "-classpath",
    "--class-path",
    "-p",
    "--module-path",
    "--upgrade-module-path",
    "--add-modules",
    "--enable-native-access",
    "--limit-modules",
    "--add-exports",
    "--add-opens",
    "--add-reads",
    "--patch-module",
    "--source",
    "--illegal-native-access",
    "--sun-misc-unsafe-memory-access",
    "--finalization",
];
/// Of those, the ones that take it only with `=`.
const ONLY_WITH_EQUALS: [&str; 3] =
    ["--illegal-native-access", "--sun-misc-unsafe-memory-access", "--finalization"];
/// Options after which java says something and ends.
const TERMINAL: [&str; 14] = [
    "-h",
    "-?",
    "-help",
    "--help",
    "-X",
    "--help-extra",
    "-version",
    "--version",
    "-fullversion",
    "--full-version",
    "-d",
    "--describe-module",
    "--list-modules",
    "--validate-modules",
];

/// Where an option was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// On the command line, at this word of it.
    CommandLine(usize),
    /// In an argument file, or another file of options.
    File(String),
    /// In an environment variable.
    Variable(&'static str),
}

/// One option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JavaOption {
    /// As it was said, without a value that is a word of its own: `-cp`, `-Xmx1g`, `--add-opens=a/b=c`.
    pub text: String,
    /// The value, where it is a word of its own.
    pub value: Option<String>,
    /// Where it was said.
    pub origin: Origin,
}

impl JavaOption {
    /// Its name and value where it takes one: `--patch-module=a=b` and `--patch-module a=b` are the same.
    #[must_use]
    pub fn pair(&self) -> Option<(&str, &str)> {
        match &self.value {
            Some(value) => Some((&self.text, value)),
            None if self.text.starts_with("--") => self.text.split_once('='),
            None => None,
        }
    }

    fn is_class_path(&self) -> bool {
        self.pair().is_some_and(|(name, _)| matches!(name, "-cp" | "-classpath" | "--class-path"))
    }
}

/// What is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Main {
    /// A class of the class path, by its binary name (java takes `/` as well).
    Class(String),
    /// A jar.
    Jar(String),
    /// A module, with its main class where that is said.
    Module {
        /// Its name.
        module: String,
        /// The main class.
        class: Option<String>,
    },
    /// A source file, compiled in memory.
    Source(String),
}

/// A direct call of java.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JavaCommand {
    /// The launcher, as it was called.
    pub program: String,
    /// Every option, in the order in which the last word counts.
    pub options: Vec<JavaOption>,
    /// What is run.
    pub main: Main,
    /// What the application is given.
    pub arguments: Vec<String>,
    /// The class path of the environment, which holds where no option says one.
    pub variable_class_path: Option<String>,
    /// The word of the command line that names what is run; `None` where an argument file does.
    pub main_at: Option<usize>,
    /// The command line with its argument files written out.
    pub flat: Vec<String>,
}

/// Why a command can't be read as one of java.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// A script or another program.
    #[error("`{0}` is not a java command")]
    NotJava(String),
    /// It only prints something, or is incomplete.
    #[error("the java command names nothing to run")]
    NothingToRun,
    /// An argument file can't be read.
    #[error("`{path}` can't be read: {problem}")]
    Unreadable {
        /// Which.
        path: String,
        /// Why.
        problem: String,
    },
}

/// Reads a file of options: its text, or why not.
pub type ReadFile<'a> = &'a dyn Fn(&str) -> Result<String, String>;

/// Whether a program's name is that of the java launcher.
#[must_use]
pub fn is_java(program: &str) -> bool {
    program.rsplit('/').next() == Some("java")
}

/// Reads a command. `java` is the version of the JVM, `None` where it can't be told: argument files and
/// `JDK_JAVA_OPTIONS` came with 9.
///
/// # Errors
/// [`CommandError`]
pub fn read(
    argv: &[String],
    env: &BTreeMap<String, String>,
    java: Option<u16>,
    file: ReadFile<'_>,
) -> Result<JavaCommand, CommandError> {
    let program = argv.first().cloned().unwrap_or_default();
    if !is_java(&program) {
        return Err(CommandError::NotJava(program));
    }
    let modern = java.is_none_or(|java| java >= 9);
    let variable = |name: &str| env.get(name).filter(|text| !text.trim().is_empty());
    let mut words = Words::new(file, modern);
    if let Some(text) = variable("JDK_JAVA_OPTIONS").filter(|_| modern) {
        for word in words::of_variable(text) {
            words.take(&word, &Origin::Variable("JDK_JAVA_OPTIONS"))?;
        }
    }
    for (index, word) in argv.iter().enumerate().skip(1) {
        words.take(word, &Origin::CommandLine(index))?;
    }
    let taken = std::mem::take(&mut words.taken);
    let mut options = Vec::new();
    if let Some(text) = variable("JAVA_TOOL_OPTIONS") {
        options.extend(vm_options(text, &Origin::Variable("JAVA_TOOL_OPTIONS")));
    }
    let mut command = assemble(program, taken, words.expand)?;
    options.append(&mut command.options);
    if let Some(text) = variable("_JAVA_OPTIONS") {
        options.extend(vm_options(text, &Origin::Variable("_JAVA_OPTIONS")));
    }
    command.options = with_files(options, file)?;
    command.variable_class_path = env.get("CLASSPATH").cloned();
    Ok(command)
}

impl JavaCommand {
    /// The class path in force: the last that an option says, the environment's, or the working directory. With
    /// `-jar` and for modules there is none but the jar's own or the one an option says.
    #[must_use]
    pub fn class_path(&self) -> Option<&str> {
        let said = self.options.iter().rev().find(|option| option.is_class_path());
        match (&self.main, said.and_then(JavaOption::pair)) {
            (Main::Jar(jar), _) => Some(jar),
            (_, Some((_, path))) => Some(path),
            (Main::Module { .. }, None) => None,
            (_, None) => Some(self.variable_class_path.as_deref().unwrap_or("")),
        }
    }

    /// The entries of the class path; an empty one is the working directory, as java has it.
    #[must_use]
    pub fn class_path_entries(&self) -> Vec<String> {
        let entry = |entry: &str| if entry.is_empty() { ".".to_owned() } else { entry.to_owned() };
        match &self.main {
            Main::Jar(jar) => vec![jar.clone()],
            _ => self.class_path().map(|path| path.split(':').map(entry).collect()).unwrap_or_default(),
        }
    }

    /// The entries of the module path.
    #[must_use]
    pub fn module_path(&self) -> Vec<String> {
        let entries = self.values(&["-p", "--module-path"]).pop().unwrap_or_default();
        entries.split(':').filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
    }

    /// Every value of an option, under any of its names, the one that counts last.
    #[must_use]
    pub fn values(&self, names: &[&str]) -> Vec<&str> {
        let pairs = self.options.iter().filter_map(JavaOption::pair);
        pairs.filter(|(name, _)| names.contains(name)).map(|(_, value)| value).collect()
    }

    /// Java agents, as said: path and options.
    #[must_use]
    pub fn java_agents(&self) -> Vec<&str> {
        self.options.iter().filter_map(|option| option.text.strip_prefix("-javaagent:")).collect()
    }

    /// The last `-XX:+name` or `-XX:-name`.
    #[must_use]
    pub fn flag(&self, name: &str) -> Option<bool> {
        let flags = self.options.iter().filter_map(|option| option.text.strip_prefix("-XX:"));
        flags
            .filter_map(|flag| match flag.strip_prefix('+') {
                Some(on) => (on == name).then_some(true),
                None => (flag.strip_prefix('-') == Some(name)).then_some(false),
            })
            .next_back()
    }

    /// The last `-XX:name=value`, with where it was said.
    #[must_use]
    pub fn setting(&self, name: &str) -> Option<(&str, &Origin)> {
        self.last(|text| text.strip_prefix("-XX:")?.strip_prefix(name)?.strip_prefix('='))
    }

    /// The last option that begins so, without that, and where it was said: `-Xshare:`, `-Dloader.path=`.
    #[must_use]
    pub fn prefixed(&self, prefix: &str) -> Option<(&str, &Origin)> {
        self.last(|text| text.strip_prefix(prefix))
    }

    fn last<'a>(&'a self, value: impl Fn(&'a str) -> Option<&'a str>) -> Option<(&'a str, &'a Origin)> {
        self.options.iter().rev().find_map(|option| Some((value(&option.text)?, &option.origin)))
    }
}

/// Words as the launcher takes them: argument files written out, until the first word of the application.
struct Words<'a> {
    file: ReadFile<'a>,
    expand: bool,
    found_main: bool,
    value_follows: bool,
    main_follows: bool,
    taken: Vec<(String, Origin)>,
}

impl<'a> Words<'a> {
    fn new(file: ReadFile<'a>, expand: bool) -> Self {
        Self { file, expand, found_main: false, value_follows: false, main_follows: false, taken: Vec::new() }
    }

    fn take(&mut self, word: &str, origin: &Origin) -> Result<(), CommandError> {
        let name = word.strip_prefix('@').filter(|name| !name.is_empty() && self.expand && !self.found_main);
        match name {
            Some(escaped) if escaped.starts_with('@') => self.push(escaped.to_owned(), origin.clone()),
            Some(path) => {
                let text = (self.file)(path)
                    .map_err(|problem| CommandError::Unreadable { path: path.to_owned(), problem })?;
                // A file in a file is not read.
                for word in words::of_argument_file(&text) {
                    self.push(word, Origin::File(path.to_owned()));
                }
            }
            None => self.push(word.to_owned(), origin.clone()),
        }
        Ok(())
    }

    fn push(&mut self, word: String, origin: Origin) {
        if !self.found_main {
            let option = word.starts_with('-');
            if !option && !self.value_follows || self.main_follows {
                self.found_main = true;
            } else {
                self.main_follows = matches!(word.as_str(), "-m" | "--module");
                self.value_follows = option && takes_next(&word);
                self.found_main = word.starts_with("--module=");
                if word == "--disable-@files" {
                    self.expand = false;
                }
            }
        }
        self.taken.push((word, origin));
    }
}

fn takes_next(word: &str) -> bool {
    WITH_VALUE.contains(&word) && !ONLY_WITH_EQUALS.contains(&word)
}

/// Options, what is run, and its arguments, from all words in order.
fn assemble(
    program: String,
    taken: Vec<(String, Origin)>,
    expand: bool,
) -> Result<JavaCommand, CommandError> {
    let at = |origin: &Origin| match origin {
        Origin::CommandLine(index) => Some(*index),
        Origin::File(_) | Origin::Variable(_) => None,
    };
    // A word that begins with `@` by an escape, or from a file, has to be escaped where it is written out again.
    let escaped =
        |word: &str| if expand && word.starts_with('@') { format!("@{word}") } else { word.to_owned() };
    let mut flat = vec![program.clone()];
    let (mut options, mut jar, mut source, mut main) = (Vec::new(), false, false, None);
    let mut rest = taken.into_iter();
    while let Some((word, origin)) = rest.next() {
        let own = !matches!(origin, Origin::Variable(_));
        flat.extend(own.then(|| escaped(&word)));
        let module = |name: &str| {
            let (module, class) = name.split_once('/').map_or((name, None), |(m, c)| (m, Some(c.to_owned())));
            Main::Module { module: module.to_owned(), class }
        };
        match word.as_str() {
            "-jar" => jar = true,
            "-m" | "--module" => {
                let (name, origin) = rest.next().ok_or(CommandError::NothingToRun)?;
                flat.push(escaped(&name));
                main = Some((module(&name), at(&origin)));
            }
            text if text.starts_with("--module=") => {
                main = Some((module(&text["--module=".len()..]), at(&origin)));
            }
            text if TERMINAL.contains(&text) || text.starts_with("--describe-module=") => {
                return Err(CommandError::NothingToRun);
            }
            text if takes_next(text) => {
                let (value, _) = rest.next().ok_or(CommandError::NothingToRun)?;
                flat.extend(own.then(|| escaped(&value)));
                source |= text == "--source";
                options.push(JavaOption { text: word, value: Some(value), origin });
            }
            text if text.starts_with('-') => {
                source |= text.starts_with("--source=");
                options.push(JavaOption { text: word, value: None, origin });
            }
            _ if jar => main = Some((Main::Jar(word), at(&origin))),
            text if source || text.ends_with(".java") => main = Some((Main::Source(word), at(&origin))),
            _ => main = Some((Main::Class(word.replace('/', ".")), at(&origin))),
        }
        if main.is_some() {
            break;
        }
    }
    let (main, main_at) = main.ok_or(CommandError::NothingToRun)?;
    let arguments: Vec<String> = rest.map(|(word, _)| word).collect();
    flat.extend(arguments.iter().cloned());
    Ok(JavaCommand { program, options, main, arguments, variable_class_path: None, main_at, flat })
}

fn vm_options(text: &str, origin: &Origin) -> Vec<JavaOption> {
    let option = |text| JavaOption { text, value: None, origin: origin.clone() };
    words::of_variable(text).into_iter().map(option).collect()
}

/// Options that are in files that options name.
fn with_files(options: Vec<JavaOption>, file: ReadFile<'_>) -> Result<Vec<JavaOption>, CommandError> {
    let mut all = Vec::new();
    for option in options {
        let flags = option.text.strip_prefix("-XX:Flags=").map(|path| (path.to_owned(), true));
        let named = flags
            .or_else(|| option.text.strip_prefix("-XX:VMOptionsFile=").map(|path| (path.to_owned(), false)));
        all.push(option);
        let Some((path, flags)) = named else { continue };
        let text = file(&path).map_err(|problem| CommandError::Unreadable { path: path.clone(), problem })?;
        let origin = Origin::File(path);
        if flags {
            let option =
                |word| JavaOption { text: format!("-XX:{word}"), value: None, origin: origin.clone() };
            all.extend(words::of_argument_file(&text).into_iter().map(option));
        } else {
            all.extend(vm_options(&text, &origin));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
