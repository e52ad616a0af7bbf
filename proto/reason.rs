//! Reasons over gRPC: each [`Reason`] as a `tonic::Status` with `google.rpc` details, and back.
//!
//! One table maps a reason's class to a gRPC code. Callers never read a status's text: code, values and
//! sentence come back from `ErrorInfo`. Nothing here decides; it only translates.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use upfleet_domain::reason::{Class, Reason, ReasonCode};

/// The `domain` of every `ErrorInfo` of Upfleet.
pub const DOMAIN: &str = "upfleet";
/// Values beyond this many bytes are cut: details travel in a header, and headers are limited.
const MAX_VALUE_BYTES: usize = 1024;

/// The gRPC code of a class. The one table.
#[must_use]
pub fn code(class: Class) -> Code {
    match class {
        // A state's reason that is given as the answer to a request: not now.
        Class::Information | Class::FailedPrecondition => Code::FailedPrecondition,
        Class::InvalidArgument => Code::InvalidArgument,
        Class::NotFound => Code::NotFound,
        Class::AlreadyExists => Code::AlreadyExists,
        Class::Aborted => Code::Aborted,
        Class::Unauthenticated => Code::Unauthenticated,
        Class::PermissionDenied => Code::PermissionDenied,
        Class::ResourceExhausted => Code::ResourceExhausted,
        Class::Unavailable => Code::Unavailable,
        Class::DataLoss => Code::DataLoss,
        Class::Unimplemented => Code::Unimplemented,
        Class::Internal => Code::Internal,
    }
}

/// The status that tells `reason`: its sentence, `ErrorInfo` with code and values, and for a wrong argument
/// also `BadRequest` with the field.
#[must_use]
pub fn status(reason: &Reason) -> Status {
    let class = reason.code.class();
    let metadata: HashMap<String, String> =
        reason.metadata.iter().map(|(key, value)| (key.clone(), cut(value).to_owned())).collect();
    let mut details = ErrorDetails::with_error_info(reason.code.as_str(), DOMAIN, metadata);
    let sentence = reason.message();
    if class == Class::InvalidArgument {
        let field = reason.metadata.get("field").map_or("", String::as_str);
        let problem = reason.metadata.get("problem").unwrap_or(&sentence);
        details.add_bad_request_violation(field, cut(problem));
    }
    Status::with_error_details(code(class), cut(&sentence), details)
}

/// The reason that `status` tells; `None` where it is not one of Upfleet's, or of a later version's.
#[must_use]
pub fn from_status(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info()?;
    if info.domain != DOMAIN {
        return None;
    }
    let code: ReasonCode = info.reason.parse().ok()?;
    let mut reason = Reason::new(code);
    reason.metadata = info.metadata.into_iter().collect();
    Some(reason)
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_VALUE_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_wire() {
        for code in ReasonCode::ALL {
            let reason = Reason::new(*code).with("field", "spec.waves").with("problem", "it is empty");
            let status = status(&reason);
            assert_eq!(from_status(&status), Some(reason.clone()), "{code}");
            assert_eq!(status.message(), reason.message(), "{code}");
            assert_ne!(status.code(), Code::Ok, "{code}");
            assert_ne!(status.code(), Code::Unknown, "{code}");
        }
    }

    #[test]
    fn a_wrong_argument_names_its_field() {
        let reason = Reason::new(ReasonCode::InvalidArgument).with("field", "name").with("problem", "empty");
        let request = status(&reason).get_details_bad_request().unwrap();
        assert_eq!(request.field_violations[0].field, "name");
        assert_eq!(request.field_violations[0].description, "empty");
    }

    #[test]
    fn long_values_are_cut_so_that_the_header_fits() {
        let reason = Reason::new(ReasonCode::ManifestInvalid).with("problem", "ü".repeat(40_000));
        let told = from_status(&status(&reason)).unwrap();
        assert!(told.metadata["problem"].len() <= MAX_VALUE_BYTES);
    }

    #[test]
    fn strangers_are_no_reason() {
        assert_eq!(from_status(&Status::internal("x")), None);
        let details = ErrorDetails::with_error_info("NOT_FOUND", "example.com", HashMap::new());
        assert_eq!(from_status(&Status::with_error_details(Code::NotFound, "x", details)), None);
    }
}
