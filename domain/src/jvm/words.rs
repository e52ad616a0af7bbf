//! How java takes words out of argument files and environment variables. Texts in, words out.

/// The words of an argument file: blanks part them, `#` begins a comment, quotes keep blanks, a backslash within quotes
/// escapes, and one at a line's end joins the next line.
#[must_use]
pub fn of_argument_file(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    // `None` between words; within one, what was read of it.
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    while let Some(c) = chars.next() {
        match (quote, c) {
            // A quoted word ends with its line, also where the quote stays open.
            (_, '\n' | '\r') | (None, ' ' | '\t' | '\u{c}') => {
                words.extend(word.take());
                quote = None;
            }
            (None, '#') => {
                words.extend(word.take().filter(|word| !word.is_empty()));
                while chars.next_if(|c| !matches!(c, '\n' | '\r')).is_some() {}
            }
            (Some(_), '\\') => match chars.next() {
                Some('\n' | '\r') => while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {},
                Some(escaped) => word.get_or_insert_default().push(match escaped {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    'f' => '\u{c}',
                    other => other,
                }),
                None => {}
            },
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(open), _) if open == c => quote = None,
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// The words of an environment variable such as `JDK_JAVA_OPTIONS`: blanks part them, quotes keep blanks, nothing
/// escapes.
#[must_use]
pub fn of_variable(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    for c in text.chars() {
        match (quote, c) {
            (Some(open), _) if open == c => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, _) if c.is_ascii_whitespace() || c == '\u{b}' => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// A word as an argument file has to say it.
#[must_use]
pub fn for_argument_file(word: &str) -> String {
    let mut text = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{c}' => text.push_str("\\f"),
            other => text.push(other),
        }
    }
    text.push('"');
    text
}

/// A word as an environment variable has to say it; `None` where it can't be said there.
#[must_use]
pub fn for_variable(word: &str) -> Option<String> {
    let plain = |c: char| !c.is_whitespace() && !matches!(c, '"' | '\'') && !c.is_control();
    if !word.is_empty() && word.chars().all(plain) {
        return Some(word.to_owned());
    }
    if word.chars().any(char::is_control) {
        return None;
    }
    ['"', '\''].into_iter().find(|quote| !word.contains(*quote)).map(|quote| format!("{quote}{word}{quote}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argument_files_are_read_as_java_reads_them() {
        for (text, words) in [
            ("-cp a.jar\tMain\n", &["-cp", "a.jar", "Main"][..]),
            ("# a comment\n-cp \"a b.jar\" # rest\nMain", &["-cp", "a b.jar", "Main"]),
            (r#"-Da="c:\\dir\"x" -Db='it\'s'"#, &["-Da=c:\\dir\"x", "-Db=it's"]),
            ("-cp \"a.jar:\\\n   b.jar\" Main", &["-cp", "a.jar:b.jar", "Main"]),
            (r"C:\plain\path", &[r"C:\plain\path"]),
            ("\"open to the end of its line\nMain", &["open to the end of its line", "Main"]),
            ("pre\"fix \"post", &["prefix post"]),
            ("\"\"", &[""]),
            ("", &[]),
            ("\"a\\tb\"", &["a\tb"]),
        ] {
            assert_eq!(of_argument_file(text), words, "{text:?}");
        }
    }

    #[test]
    fn variables_are_read_as_java_reads_them() {
        for (text, words) in [
            ("  -Xmx1g  -Da=b\n", &["-Xmx1g", "-Da=b"][..]),
            ("-Da='x y' \"-Db=it's\"", &["-Da=x y", "-Db=it's"]),
            (r#"-Da="c:\""#, &[r"-Da=c:\"]),
            ("", &[]),
        ] {
            assert_eq!(of_variable(text), words, "{text:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for word in
            ["plain", "with blank", "quote\"s and 'these", "back\\slash", "tab\tline\n", "", "#no comment"]
        {
            assert_eq!(of_argument_file(&for_argument_file(word)), [word], "{word:?}");
            if let Some(text) = for_variable(word) {
                assert_eq!(of_variable(&text), [word], "{word:?}");
            }
        }
        assert_eq!(for_variable("both \" and '"), None);
        assert_eq!(for_variable("a\nb"), None);
    }
}
