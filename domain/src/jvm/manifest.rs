//! The manifest of a jar: reading what it says, and writing the few that Upfleet makes.

use std::{collections::BTreeMap, fmt::Write as _};

/// Attributes by name in lower case: their names know no case.
type Attributes = BTreeMap<String, String>;

/// The longest line that is written, without its end. Java's own writer breaks there.
const LINE: usize = 70;

/// A manifest as read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    main: Attributes,
    entries: BTreeMap<String, Attributes>,
}

impl Manifest {
    /// Reads one. Lines that are no attributes are passed over, as a jar with them still runs.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut sections = sections(text).into_iter();
        let main = sections.next().unwrap_or_default();
        let named = |section: Attributes| Some((section.get("name")?.clone(), section));
        Self { main, entries: sections.filter_map(named).collect() }
    }

    /// A main attribute.
    #[must_use]
    pub fn main(&self, name: &str) -> Option<&str> {
        self.main.get(&name.to_ascii_lowercase()).map(String::as_str)
    }

    /// Whether entries for later Java versions count.
    #[must_use]
    pub fn is_multi_release(&self) -> bool {
        self.main("Multi-Release").is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
    }

    /// Whether it seals a package, e.g. `com.acme`.
    #[must_use]
    pub fn seals(&self, package: &str) -> bool {
        let path = format!("{}/", package.replace('.', "/"));
        let own = self.entries.get(&path).and_then(|entry| entry.get("sealed")).map(String::as_str);
        own.or_else(|| self.main("Sealed")).is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
    }

    /// Whether it holds a digest of an entry, as the manifest of a signed jar does.
    #[must_use]
    pub fn has_digest(&self, entry: &str) -> bool {
        self.entries.get(entry).is_some_and(|entry| entry.keys().any(|key| key.ends_with("-digest")))
    }
}

/// Attributes of each section. A line that begins with a blank goes on with the one before.
fn sections(text: &str) -> Vec<Attributes> {
    let mut sections = vec![Attributes::new()];
    let mut last: Option<String> = None;
    for line in text.split(['\n']).map(|line| line.strip_suffix('\r').unwrap_or(line)) {
        let current = sections.last_mut().expect("there is always one");
        if line.is_empty() {
            if !current.is_empty() {
                sections.push(Attributes::new());
            }
            last = None;
        } else if let Some(rest) = line.strip_prefix(' ') {
            if let Some(value) = last.as_ref().and_then(|key| current.get_mut(key)) {
                value.push_str(rest);
            }
        } else if let Some((key, value)) = line.split_once(':') {
            let key = key.to_ascii_lowercase();
            current.insert(key.clone(), value.strip_prefix(' ').unwrap_or(value).to_owned());
            last = Some(key);
        }
    }
    sections
}

/// A manifest with these main attributes, in lines that are short enough.
#[must_use]
pub fn write(attributes: &[(&str, &str)]) -> String {
    let mut text = String::from("Manifest-Version: 1.0\r\n");
    for (name, value) in attributes {
        let mut line = String::new();
        let _ = write!(line, "{name}: {value}");
        let mut rest = line.as_str();
        let mut room = LINE;
        while rest.len() > room {
            let at = (1..=room).rev().find(|at| rest.is_char_boundary(*at)).unwrap_or(rest.len());
            text.push_str(&rest[..at]);
            text.push_str("\r\n ");
            rest = &rest[at..];
            room = LINE - 1;
        }
        text.push_str(rest);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    text
}

/// The attributes of `Class-Path`: names parted by blanks.
#[must_use]
pub fn class_path(value: &str) -> Vec<String> {
    value.split_whitespace().map(str::to_owned).collect()
}

/// A path as a URL of a manifest's `Class-Path` says it.
#[must_use]
pub fn url_path(path: &str) -> String {
    let mut url = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            let _ = write!(url, "%{byte:02X}");
        }
    }
    url
}

/// The path that a URL of a `Class-Path` names; `None` for what is no file.
#[must_use]
pub fn path_of_url(url: &str) -> Option<String> {
    let path = match url.split_once(':') {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("file") => {
            rest.strip_prefix("//").filter(|rest| rest.starts_with('/')).unwrap_or(rest)
        }
        Some(_) => return None,
        None => url,
    };
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_read_with_their_continued_lines() {
        let manifest = Manifest::parse(
            "Manifest-Version: 1.0\r\nMain-Class: com.acme.\r\n Main\r\nmulti-release: TRUE\r\n\r\n\r\n\
             Name: com/acme/\nSealed: true\n\nName: a/B.class\nSHA-256-Digest: x\n",
        );
        assert_eq!(manifest.main("main-class"), Some("com.acme.Main"));
        assert!(manifest.is_multi_release() && manifest.has_digest("a/B.class"));
        assert!(manifest.seals("com.acme") && !manifest.seals("com") && !manifest.has_digest("com/acme/"));
        let sealed = Manifest::parse("Sealed: true\n\nName: a/b/\nSealed: false\n");
        assert!(sealed.seals("a") && !sealed.seals("a.b"));
        assert_eq!(Manifest::parse("garbage\n\n\n"), Manifest::default());
    }

    #[test]
    fn long_values_are_written_in_short_lines_and_come_back() {
        let path = "../../ünï-çode/".repeat(30);
        let text = write(&[("Main-Class", "a.B"), ("Class-Path", &path)]);
        assert!(text.lines().all(|line| line.len() <= LINE), "{text}");
        let read = Manifest::parse(&text);
        assert_eq!((read.main("Class-Path"), read.main("Main-Class")), (Some(&*path), Some("a.B")));
    }

    #[test]
    fn paths_and_urls_are_each_other() {
        for path in ["/a b/c:d.jar", "../x%41.jar", "/ünï", "a~b_c.jar"] {
            assert_eq!(path_of_url(&url_path(path)).as_deref(), Some(path));
        }
        assert_eq!(path_of_url("file:/a/b.jar").as_deref(), Some("/a/b.jar"));
        assert_eq!(path_of_url("file:///a/b%20c.jar").as_deref(), Some("/a/b c.jar"));
        assert_eq!(path_of_url("http://x/a.jar"), None);
    }
}
