//! Codes are unique, parse back, and their sentences carry their values.

use super::*;

#[test]
fn a_code_of_a_later_version_is_read_as_another() {
    for (text, code) in [("\"NOVEL\"", ReasonCode::Other), ("\"OTHER\"", ReasonCode::Other)] {
        assert_eq!(serde_json::from_str::<ReasonCode>(text).unwrap(), code);
    }
    for code in ReasonCode::ALL {
        let text = serde_json::to_string(code).unwrap();
        assert_eq!((text.trim_matches('"'), serde_json::from_str(&text).unwrap()), (code.as_str(), *code));
    }
    let reason = r#"{"code":"NOVEL","metadata":{"message":"new"}}"#;
    assert_eq!(serde_json::from_str::<Reason>(reason).unwrap().message(), "new");
}

#[test]
fn codes_are_unique_and_parse_back() {
    for code in ReasonCode::ALL {
        assert_eq!(code.as_str().parse(), Ok(*code));
        let same = ReasonCode::ALL.iter().filter(|other| other.as_str() == code.as_str()).count();
        assert_eq!(same, 1, "{code}");
    }
}

#[test]
fn sentences_carry_their_values() {
    let reason = Reason::new(ReasonCode::StaleGeneration).with("offered", "1/2").with("kept", "1/3");
    assert_eq!(reason.message(), "order 1/2 is older than 1/3");
}

#[test]
fn a_missing_value_is_shown_as_missing() {
    assert_eq!(Reason::new(ReasonCode::StaleGeneration).message(), "order ? is older than ?");
}
