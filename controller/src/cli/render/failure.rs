//! An error on the terminal: what was tried, why, the values, a hint, the reason's code.

use super::Paint;
use crate::{cli::failure::Failure, exit::Exit, version::VERSION};

/// The text of a failure.
#[must_use]
pub fn failure(failure: &Failure, paint: Paint) -> String {
    let mut text = format!("{} {}\n", paint.bad("error:"), failure.message);
    for cause in &failure.causes {
        text.push_str(&format!("  because: {cause}\n"));
    }
    for (key, value) in &failure.values {
        text.push_str(&format!("  {key}: {value}\n"));
    }
    if failure.exit == Exit::Internal {
        text.push_str(&format!(
            "  this should not happen; please report it with upfleet {VERSION} and the lines above\n"
        ));
    }
    if let Some(hint) = &failure.hint {
        text.push_str(&format!("{} {hint}\n", paint.busy("hint:")));
    }
    if let Some(reason) = &failure.reason {
        text.push_str(&paint.dim(format!("reason: {reason}")));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use upfleet_domain::reason::{Reason, ReasonCode};

    use super::*;

    #[test]
    fn says_cause_values_hint_and_reason() {
        let reason = Reason::new(ReasonCode::EtagMismatch)
            .with("what", "node")
            .with("name", "web-01")
            .with("expected", "3");
        let shown =
            failure(&Failure::of_reason(&reason).while_trying("could not label `web-01`"), Paint::PLAIN);
        assert_eq!(
            shown,
            "error: could not label `web-01`\n  because: node `web-01` was changed by somebody else\n  expected: 3\n\
             hint: read it again, then repeat the change\nreason: ETAG_MISMATCH\n"
        );
    }
}
