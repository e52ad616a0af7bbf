//! Joining, against a scripted controller.

use upfleet_domain::{digest::Digest, reason::ReasonCode, token::encode};

use super::*;
use crate::{config::Config, identity::tests::TestCa, testing::FakeController};

fn pin_of(ca: &TestCa) -> Digest {
    let parsed = rustls::server::ParsedCertificate::try_from(&ca.der).unwrap();
    Digest::of(&parsed.subject_public_key_info())
}

fn token(controller: &FakeController, pin: Digest) -> EnrollmentToken {
    let address = format!("localhost:{}", controller.address.port());
    EnrollmentToken { address, pin, secret: encode(&[9; 32]), id: "t-1".into() }
}

#[tokio::test]
async fn a_token_becomes_an_identity_and_an_address() {
    let (controller, dir) = (FakeController::start(vec![]).await, tempfile::tempdir().unwrap());
    let token = token(&controller, pin_of(&controller.script.ca));
    let state_dir = dir.path().join("state");
    let found = enroll(&token, &"web-01".parse().unwrap(), &state_dir).await.unwrap();
    assert_eq!(found.address, "localhost:7443", "an address of all interfaces is no address");
    assert_eq!(*controller.script.tokens.lock().unwrap(), [token.secret]);
    assert_eq!(Identities::load(&state_dir).unwrap().current().node().as_str(), "web-01");

    write_controller(dir.path(), Some(&state_dir), &found).unwrap();
    let config = Config::load(dir.path()).unwrap();
    assert_eq!(config.controller, Some(found.clone()));
    assert_eq!(config.state_dir, state_dir);
    // Once more, over what is there.
    write_controller(dir.path(), None, &found).unwrap();
    assert_eq!(Config::load(dir.path()).unwrap().state_dir, state_dir);
}

#[tokio::test]
async fn a_controller_with_another_authority_never_sees_the_token() {
    let (controller, dir) = (FakeController::start(vec![]).await, tempfile::tempdir().unwrap());
    let token = token(&controller, pin_of(&TestCa::new()));
    let error = enroll(&token, &"web-01".parse().unwrap(), dir.path()).await.unwrap_err();
    assert!(matches!(error, EnrollError::Connect(_)), "{error:?}");
    assert!(controller.script.tokens.lock().unwrap().is_empty());
    assert!(Identities::load(dir.path()).is_err());
}

#[tokio::test]
async fn a_server_of_another_name_is_refused() {
    let (controller, dir) = (FakeController::start(vec![]).await, tempfile::tempdir().unwrap());
    let mut token = token(&controller, pin_of(&controller.script.ca));
    token.address = controller.address.to_string();
    let error = enroll(&token, &"web-01".parse().unwrap(), dir.path()).await.unwrap_err();
    assert!(crate::error::chain(&error).contains("not valid for name"), "{}", crate::error::chain(&error));
    assert!(controller.script.tokens.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_refusal_says_why_and_leaves_nothing() {
    let (controller, dir) = (FakeController::start(vec![]).await, tempfile::tempdir().unwrap());
    let refusal = Reason::new(ReasonCode::TokenInvalid);
    *controller.script.refuse.lock().unwrap() = Some(reason::status(&refusal));
    let token = token(&controller, pin_of(&controller.script.ca));
    let error = enroll(&token, &"web-01".parse().unwrap(), dir.path()).await.unwrap_err();
    let EnrollError::Refused { reason, .. } = error else { panic!("{error:?}") };
    assert_eq!(reason.code, ReasonCode::TokenInvalid);
    assert!(Identities::load(dir.path()).is_err());
}
