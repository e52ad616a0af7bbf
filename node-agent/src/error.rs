//! Shows an error with its causes on one line. Errors never repeat their source, so the chain is the whole story.

use std::error::Error;

/// `error` and its causes, outermost first, joined by `: `. A cause that says what was just said is left out.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("could not read `x`")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_follow_and_are_not_repeated() {
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&error), "could not read `x`: disk on fire");
        assert_eq!(chain(&std::io::Error::other("disk on fire")), "disk on fire");
    }
}
