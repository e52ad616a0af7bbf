//! Labels of nodes, and the selectors that choose nodes by them.
//!
//! A selector is a list of requirements with commas between them, all of which must hold: `env=prod`,
//! `env!=dev`, `role in (web,api)`, `role notin (db)`, `key` (has it), `!key` (has it not); `*` alone chooses
//! every node. The key `name` stands for the node's own name. `*` in a value stands for any characters. This
//! file knows no nodes; it only says yes or no.

use std::{collections::BTreeMap, fmt, str::FromStr};

use crate::id::NodeId;

/// A node's labels.
pub type Labels = BTreeMap<String, String>;

/// The longest selector, in bytes.
pub const MAX_SELECTOR_BYTES: usize = 4096;
/// The longest key or value of a label, in bytes.
pub const MAX_LABEL_BYTES: usize = 63;

/// A text that is no selector, with the place where it stops being one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a selector: {problem} at character {}", .at + 1)]
pub struct ParseSelectorError {
    /// What was given.
    pub text: String,
    /// The character, 0 for the first.
    pub at: usize,
    /// What was expected there.
    pub problem: String,
}

/// Chooses nodes by name and labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Present,
    Missing,
    Is(String),
    IsNot(String),
    In(Vec<String>),
    NotIn(Vec<String>),
}

impl Selector {
    /// Every node.
    #[must_use]
    pub fn all() -> Self {
        Self { requirements: Vec::new() }
    }

    /// Whether a node is chosen. As in Kubernetes, `key!=value` and `notin` also choose nodes without the key.
    #[must_use]
    pub fn matches(&self, node: &NodeId, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = match requirement.key.as_str() {
                "name" => Some(node.as_str()),
                key => labels.get(key).map(String::as_str),
            };
            requirement.test.holds(value)
        })
    }
}

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        let one_of = |patterns: &[String]| value.is_some_and(|v| patterns.iter().any(|p| glob(p, v)));
        match self {
            Self::Present => value.is_some(),
            Self::Missing => value.is_none(),
            Self::Is(pattern) => one_of(std::slice::from_ref(pattern)),
            Self::IsNot(pattern) => !one_of(std::slice::from_ref(pattern)),
            Self::In(patterns) => one_of(patterns),
            Self::NotIn(patterns) => !one_of(patterns),
        }
    }
}

/// Checks a label's key.
///
/// # Errors
/// What is wrong with it.
pub fn check_key(key: &str) -> Result<(), String> {
    if key == "name" {
        return Err("`name` stands for the node's own name".to_owned());
    }
    let first = key.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if first && key.len() <= MAX_LABEL_BYTES && key.chars().all(is_key) {
        return Ok(());
    }
    Err(format!(
        "`{key}` is not a label's key: use 1 to {MAX_LABEL_BYTES} letters, digits, `.`, `_`, `-`, `/`, beginning with a letter or digit"
    ))
}

/// Checks a label's value. It may be empty.
///
/// # Errors
/// What is wrong with it.
pub fn check_value(value: &str) -> Result<(), String> {
    if value.len() <= MAX_LABEL_BYTES && value.chars().all(|c| is_value(c) && c != '*') {
        return Ok(());
    }
    Err(format!(
        "`{value}` is not a label's value: use at most {MAX_LABEL_BYTES} letters, digits, `.`, `_`, `-`, `/`, `+`, `:`, `@`"
    ))
}

fn is_key(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-/".contains(c)
}

fn is_value(c: char) -> bool {
    is_key(c) || "+:@*".contains(c)
}

/// Whether `text` matches `pattern`, in which `*` stands for any characters. Linear but for the stars.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or_default();
    for part in parts {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(tail)
}

impl FromStr for Selector {
    type Err = ParseSelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parser = Parser { text, chars: text.chars().collect(), at: 0 };
        if text.len() > MAX_SELECTOR_BYTES {
            parser.at = MAX_SELECTOR_BYTES;
            return Err(parser.error(format!("it is longer than {MAX_SELECTOR_BYTES} bytes")));
        }
        parser.selector()
    }
}

impl fmt::Display for Selector {
    /// The selector in its shortest form; parses back to an equal one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.requirements.is_empty() {
            return f.write_str("*");
        }
        for (index, Requirement { key, test }) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match test {
                Test::Present => write!(f, "{key}")?,
                Test::Missing => write!(f, "!{key}")?,
                Test::Is(value) => write!(f, "{key}={value}")?,
                Test::IsNot(value) => write!(f, "{key}!={value}")?,
                Test::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Test::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
            }
        }
        Ok(())
    }
}

struct Parser<'a> {
    text: &'a str,
    chars: Vec<char>,
    at: usize,
}

type Parsed<T> = Result<T, ParseSelectorError>;

impl Parser<'_> {
    fn selector(mut self) -> Parsed<Selector> {
        self.space();
        if self.take('*') {
            self.space();
            return if self.at == self.chars.len() {
                Ok(Selector::all())
            } else {
                Err(self.error("expected nothing after `*`; write `name=…*` to choose by name"))
            };
        }
        let mut requirements = vec![self.requirement()?];
        while self.at < self.chars.len() {
            if !self.take(',') {
                return Err(self.error("expected `,`, `=`, `!=`, `in` or `notin`"));
            }
            requirements.push(self.requirement()?);
        }
        Ok(Selector { requirements })
    }

    fn requirement(&mut self) -> Parsed<Requirement> {
        self.space();
        let missing = self.take('!');
        let key = self.word(is_key, "a label's key")?;
        self.space();
        if missing {
            return Ok(Requirement { key, test: Test::Missing });
        }
        let start = self.at;
        let test = if self.take('!') {
            if !self.take('=') {
                return Err(self.error("expected `=` after `!`"));
            }
            Test::IsNot(self.value()?)
        } else if self.take('=') {
            // `==` as in other tools.
            self.take('=');
            Test::Is(self.value()?)
        } else if self.at == self.chars.len() || self.chars[self.at] == ',' {
            Test::Present
        } else {
            match self.word(is_key, "`,`, `=`, `!=`, `in` or `notin`")?.as_str() {
                "in" => Test::In(self.values()?),
                "notin" => Test::NotIn(self.values()?),
                _ => {
                    self.at = start;
                    return Err(self.error("expected `,`, `=`, `!=`, `in` or `notin`"));
                }
            }
        };
        self.space();
        Ok(Requirement { key, test })
    }

    fn values(&mut self) -> Parsed<Vec<String>> {
        self.space();
        if !self.take('(') {
            return Err(self.error("expected `(`"));
        }
        let mut values = vec![self.value()?];
        loop {
            self.space();
            if self.take(')') {
                return Ok(values);
            }
            if !self.take(',') {
                return Err(self.error("expected `,` or `)`"));
            }
            values.push(self.value()?);
        }
    }

    fn value(&mut self) -> Parsed<String> {
        self.space();
        self.word(is_value, "a value")
    }

    fn word(&mut self, accept: fn(char) -> bool, what: &str) -> Parsed<String> {
        let word: String = self.chars[self.at..].iter().copied().take_while(|c| accept(*c)).collect();
        if word.is_empty() {
            return Err(self.error(format!("expected {what}")));
        }
        self.at += word.chars().count();
        Ok(word)
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.chars.get(self.at) == Some(&wanted);
        self.at += usize::from(found);
        found
    }

    fn space(&mut self) {
        while self.chars.get(self.at).is_some_and(|c| c.is_whitespace()) {
            self.at += 1;
        }
    }

    fn error(&self, problem: impl Into<String>) -> ParseSelectorError {
        ParseSelectorError { text: self.text.to_owned(), at: self.at, problem: problem.into() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(selector: &str, expected: bool) {
        let labels = [("env", "prod"), ("role", "web")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let parsed: Selector = selector.parse().unwrap_or_else(|error| panic!("{error}"));
        let node = "web-01".parse().unwrap();
        assert_eq!(parsed.matches(&node, &labels.into()), expected, "{selector}");
        assert_eq!(parsed.to_string().parse(), Ok(parsed), "{selector}");
    }

    #[test]
    fn each_form_chooses() {
        for yes in ["*", " * ", "env=prod", "env==prod", "env!=dev", "zone!=a", "role in (web,api)", "env"] {
            check(yes, true);
        }
        for yes in ["role notin (db)", "!zone", "name=web-*", "name=*-01", "name=w*-*1", "env=prod,role=web"]
        {
            check(yes, true);
        }
        for no in ["env=dev", "env!=prod", "role in (db)", "role notin (web)", "zone", "!env", "name=db-*"] {
            check(no, false);
        }
        check("env=prod, role=db", false);
        check("name=web-01*-01", false);
    }

    #[test]
    fn errors_point_at_the_place() {
        let place = |text: &str| text.parse::<Selector>().unwrap_err().at;
        assert_eq!(place(""), 0);
        assert_eq!(place("env="), 4);
        assert_eq!(place("env=prod,"), 9);
        assert_eq!(place("env prod"), 4);
        assert_eq!(place("role in web"), 8);
        assert_eq!(place("role in (web"), 12);
        assert_eq!(place("env=a b"), 6);
        assert_eq!(place("*,env=a"), 1);
        assert_eq!(place("env!prod"), 4);
        let error = "env=a;b".parse::<Selector>().unwrap_err().to_string();
        assert!(error.ends_with("at character 6"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,40}") {
            if let Ok(selector) = text.parse::<Selector>() {
                prop_assert_eq!(selector.to_string().parse::<Selector>(), Ok(selector));
            }
        }

        #[test]
        fn what_is_chosen_by_in_is_left_out_by_notin(values in proptest::collection::vec("[a-z*]{1,4}", 1..4), value in "[a-z]{0,4}") {
            let labels: Labels = [("k".to_owned(), value)].into();
            let node: NodeId = "n".parse().unwrap();
            let yes: Selector = format!("k in ({})", values.join(",")).parse().unwrap();
            let no: Selector = format!("k notin ({})", values.join(",")).parse().unwrap();
            prop_assert_ne!(yes.matches(&node, &labels), no.matches(&node, &labels));
        }

        #[test]
        fn a_star_stands_for_anything(head in "[a-z-]{0,5}", middle in "[a-z-]{0,9}", tail in "[a-z-]{0,5}") {
            let pattern = format!("{head}*{tail}");
            let text = format!("{head}{middle}{tail}");
            prop_assert!(glob(&pattern, &text));
        }
    }
}
