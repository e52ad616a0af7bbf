//! How a command fails: what was tried, why, the values, a hint, and the exit code.
//!
//! Every error of the command line ends as a [`Failure`]; printing is `render::failure`'s.

use upfleet_domain::reason::{Class, Reason, ReasonCode};

use crate::{cli::config::ConfigError, exit::Exit};

/// A command that failed.
#[derive(Debug)]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// What was tried and did not work; lower case, no final stop.
    pub message: String,
    /// Why, outermost first.
    pub causes: Vec<String>,
    /// Values behind the sentence: expected and actual digests, paths, limits.
    pub values: Vec<(String, String)>,
    /// What to do about it.
    pub hint: Option<String>,
    /// The machine-readable cause, from docs/reference/reasons.md.
    pub reason: Option<Box<str>>,
}

/// What commands return.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// A failure with its exit code.
    #[must_use]
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            causes: Vec::new(),
            values: Vec::new(),
            hint: None,
            reason: None,
        }
    }

    /// The command line, or a file given to it, is not valid.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// A local file or directory could not be used.
    #[must_use]
    pub fn io(operation: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::usage(format!("could not {operation} `{}`", path.display())).because(error)
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds an error and all its sources as causes.
    #[must_use]
    pub fn because(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            if self.causes.last() != Some(&text) {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }

    /// Puts what was tried before what the controller said about it.
    #[must_use]
    pub fn while_trying(mut self, tried: impl Into<String>) -> Self {
        let said = std::mem::replace(&mut self.message, tried.into());
        self.causes.insert(0, said);
        self
    }

    /// From a reason, whoever gave it.
    #[must_use]
    pub fn of_reason(reason: &Reason) -> Self {
        let template = reason.code.template();
        // Values that the sentence already shows are not repeated.
        let hidden = |key: &str| template.contains(&format!("{{{key}}}"));
        Self {
            exit: Exit::of_reason(reason.code),
            message: reason.message(),
            causes: Vec::new(),
            values: reason
                .metadata
                .iter()
                .filter(|(key, _)| !hidden(key) && *key != "hint")
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            hint: reason.code.hint().map(str::to_owned),
            reason: Some(reason.code.as_str().into()),
        }
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        if let Some(reason) = upfleet_api::reason::from_status(&status) {
            return Self::of_reason(&reason);
        }
        if let Some(failure) = of_transport(&status) {
            return failure;
        }
        let exit = match status.code() {
            tonic::Code::Unavailable => Exit::Unavailable,
            tonic::Code::Unauthenticated | tonic::Code::PermissionDenied => Exit::NotAuthorised,
            tonic::Code::DeadlineExceeded => Exit::TimedOut,
            tonic::Code::InvalidArgument | tonic::Code::NotFound | tonic::Code::Unimplemented => Exit::Usage,
            tonic::Code::AlreadyExists
            | tonic::Code::FailedPrecondition
            | tonic::Code::Aborted
            | tonic::Code::ResourceExhausted => Exit::Precondition,
            _ => Exit::Internal,
        };
        let mut failure = Self::new(exit, format!("the controller answered: {}", status.message()));
        failure.reason = Some(format!("{:?}", status.code()).into());
        failure
    }
}

/// An answer that never came: the connection broke, or one of the two sides did not trust the other.
fn of_transport(status: &tonic::Status) -> Option<Failure> {
    let mut source = std::error::Error::source(status);
    source?;
    let mut failure = Failure::new(Exit::Unavailable, "the connection to the controller broke");
    while let Some(error) = source {
        if let Some(refused) = of_tls(error) {
            return Some(refused);
        }
        failure = failure.because_one(error);
        source = error.source();
    }
    Some(failure.hint("is the controller running? the request can be repeated"))
}

/// Where `error` is one of TLS that says "I don't trust you", in either direction.
pub(super) fn of_tls(error: &(dyn std::error::Error + 'static)) -> Option<Failure> {
    let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let tls = error
        .downcast_ref::<rustls::Error>()
        .or_else(|| inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()))?;
    match tls {
        rustls::Error::AlertReceived(alert) => {
            let mut failure =
                Failure::new(Exit::NotAuthorised, "the controller did not accept this context's certificate");
            failure.causes.push(format!("TLS alert {alert:?}"));
            failure.reason = Some(ReasonCode::Unauthenticated.as_str().into());
            Some(
                failure
                    .hint("it was revoked or has expired; an admin can issue a new one: upfleet user issue"),
            )
        }
        rustls::Error::InvalidCertificate(problem) => {
            let mut failure = Failure::new(
                Exit::NotAuthorised,
                "the controller's certificate is not the one this context expects; nothing was sent",
            );
            failure.causes.push(problem.to_string());
            Some(failure.hint("compare `server_name` and CA: upfleet context show"))
        }
        _ => None,
    }
}

impl Failure {
    fn because_one(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let text = error.to_string();
        if self.causes.last() != Some(&text) {
            self.causes.push(text);
        }
        self
    }

    /// Whether asking again may help: nothing was said about the request itself.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.exit == Exit::Unavailable
    }
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Self {
        let mut failure = Self::of_reason(&reason);
        if reason.code.class() == Class::Information {
            failure.exit = Exit::Precondition;
        }
        failure
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let hint = match error {
            ConfigError::NoneSelected => {
                "upfleet context use NAME, or --context NAME; `upfleet dev` makes one"
            }
            ConfigError::Unknown { .. } => "upfleet context list",
            _ => return Self::usage(error.to_string()).because_source(&error),
        };
        Self::usage(error.to_string()).hint(hint)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        if let Some(reason) = error.downcast_ref::<Reason>() {
            return Self::of_reason(reason);
        }
        let mut failure = Self::new(Exit::Internal, error.to_string());
        failure.causes = error.chain().skip(1).map(ToString::to_string).collect();
        failure
    }
}

impl Failure {
    fn because_source(self, error: &(dyn std::error::Error + 'static)) -> Self {
        match error.source() {
            Some(source) => self.because(source),
            None => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_in_the_sentence_are_not_repeated() {
        let reason = Reason::new(ReasonCode::DigestMismatch)
            .with("actual", "77ab")
            .with("expected", "9f2c")
            .with("source", "https://a/b")
            .with("node", "web-07");
        let failure = Failure::of_reason(&reason);
        assert_eq!(failure.values, [("node".to_owned(), "web-07".to_owned())]);
        assert!(failure.hint.is_some());
        assert_eq!(failure.reason.as_deref(), Some("DIGEST_MISMATCH"));
    }

    #[test]
    fn a_status_without_details_still_has_its_code() {
        let failure = Failure::from(tonic::Status::permission_denied("no"));
        assert_eq!(failure.exit, Exit::NotAuthorised);
        assert_eq!(Failure::from(tonic::Status::unavailable("gone")).exit, Exit::Unavailable);
    }

    #[test]
    fn a_refused_certificate_is_not_an_unreachable_controller() {
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRevoked);
        let io = std::io::Error::new(std::io::ErrorKind::InvalidData, alert);
        let mut status = tonic::Status::unknown("transport error");
        status.set_source(std::sync::Arc::new(io));
        assert_eq!(Failure::from(status).exit, Exit::NotAuthorised);
    }
}
