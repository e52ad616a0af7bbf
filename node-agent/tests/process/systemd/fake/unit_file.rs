//! A unit's file with its drop-ins, as far as the fake knows such files: keys and values, whatever section they are in.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// What the files said when they were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitFile {
    /// `loaded`, `masked` or `not-found`.
    pub load: &'static str,
    /// The files' text, to see whether they have changed.
    text: String,
    keys: BTreeMap<String, Vec<String>>,
}

impl UnitFile {
    /// Reads a unit. An instance without a file of its own has its template's.
    pub fn read(dir: &Path, unit: &str) -> Self {
        let mut path = dir.join(unit);
        let mut instance = String::new();
        if let Some((before, after)) = unit.split_once('@') {
            instance = after.trim_end_matches(".service").to_owned();
            if fs::symlink_metadata(&path).is_err() {
                path = dir.join(format!("{before}@.service"));
            }
        }
        if fs::read_link(&path).is_ok_and(|target| target == Path::new("/dev/null")) {
            return Self { load: "masked", ..Self::default() };
        }
        let Ok(mut text) = fs::read_to_string(&path) else {
            return Self { load: "not-found", ..Self::default() };
        };
        for drop_in in drop_ins(&dir.join(format!("{unit}.d"))) {
            text.push('\n');
            text.push_str(&fs::read_to_string(drop_in).unwrap_or_default());
        }
        let keys = keys(&text.replace("%i", &instance));
        Self { load: "loaded", text, keys }
    }

    /// The last value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.all(key).last().map(String::as_str)
    }

    /// All values of a key, in order.
    pub fn all(&self, key: &str) -> &[String] {
        self.keys.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// A span; `None` for `infinity`.
    pub fn span(&self, key: &str, usual: Duration) -> Option<Duration> {
        let text = match self.get(key) {
            None => return Some(usual),
            Some("infinity") => return None,
            Some(text) => text,
        };
        let number = |text: &str| text.trim().parse().unwrap();
        Some(match (text.strip_suffix("ms"), text.strip_suffix("min"), text.strip_suffix('s')) {
            (Some(text), ..) => Duration::from_millis(number(text)),
            (None, Some(text), _) => Duration::from_secs(60 * number(text)),
            (None, None, Some(text)) => Duration::from_secs(number(text)),
            (None, None, None) => Duration::from_secs(number(text)),
        })
    }

    /// `Environment=` of all files, later ones over earlier ones.
    pub fn environment(&self) -> Vec<(String, String)> {
        let assignments = self.all("Environment").iter().flat_map(|line| words(line));
        let mut environment: Vec<(String, String)> = Vec::new();
        for (key, value) in assignments.filter_map(|word| Some(own(word.split_once('=')?))) {
            environment.retain(|(known, _)| *known != key);
            environment.push((key, value));
        }
        environment
    }

    /// Whether its conditions hold now.
    pub fn may_start(&self) -> bool {
        self.all("ConditionPathExists").iter().all(|path| Path::new(path).exists())
    }

    /// Whether an exit status is one that the key names.
    pub fn names(&self, key: &str, (code, status): (i32, i32)) -> bool {
        let listed = |line: &String| line.split_whitespace().any(|word| word.parse() == Ok(status));
        code == 1 && self.all(key).iter().any(listed)
    }

    /// The commands of a key, each with whether its failure is ignored.
    pub fn commands(&self, key: &str) -> Vec<(Vec<String>, bool)> {
        let command = |line: &String| {
            let bare = line.trim_start_matches(['-', '+', '!', '@', ':']);
            let ignored = line[..line.len() - bare.len()].contains('-');
            (words(bare).into_iter().map(|word| word.replace("$$", "$")).collect(), ignored)
        };
        self.all(key).iter().map(command).collect()
    }
}

fn own((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

fn drop_ins(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "conf")).collect();
    paths.sort();
    paths
}

fn keys(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';', '[']));
    for (key, value) in lines.filter_map(|line| line.split_once('=')) {
        let values = keys.entry(key.trim().to_owned()).or_default();
        match value.trim() {
            "" => values.clear(),
            value => values.push(value.to_owned()),
        }
    }
    keys
}

/// Words as systemd splits them: quotes, backslashes, and `%%` for `%`.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut begun, mut quote) = (Vec::new(), String::new(), false, None);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => word.extend(letters.next()),
            '"' | '\'' if quote == Some(letter) => quote = None,
            '"' | '\'' if quote.is_none() => (quote, begun) = (Some(letter), true),
            letter if letter.is_whitespace() && quote.is_none() => {
                if begun || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            letter => word.push(letter),
        }
    }
    if begun || !word.is_empty() {
        words.push(word);
    }
    words.into_iter().map(|word| word.replace("%%", "%")).collect()
}

#[test]
fn a_file_is_read_with_its_drop_ins() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a@.service"), "[Service]\nExecStart=/bin/x %i\nEnvironment=A=1 \"B=2 3\"\n")
        .unwrap();
    fs::create_dir(dir.path().join("a@b.service.d")).unwrap();
    let text = "[Service]\n# no\nEnvironment=\"A=say \\\"100%%\\\"\"\nExecStartPre=-+\"/bin/y\" \"p q\"\nTimeoutStopSec=200ms\n";
    fs::write(dir.path().join("a@b.service.d/50.conf"), text).unwrap();
    let file = UnitFile::read(dir.path(), "a@b.service");
    assert_eq!(file.commands("ExecStart"), [(vec!["/bin/x".to_owned(), "b".to_owned()], false)]);
    assert_eq!(file.commands("ExecStartPre"), [(vec!["/bin/y".to_owned(), "p q".to_owned()], true)]);
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(file.environment(), [pair("B", "2 3"), pair("A", "say \"100%\"")]);
    assert_eq!(file.span("TimeoutStopSec", Duration::ZERO), Some(Duration::from_millis(200)));
    assert_eq!(UnitFile::read(dir.path(), "none.service").load, "not-found");
}
