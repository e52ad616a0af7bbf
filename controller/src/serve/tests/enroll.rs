//! How nodes get in, and who does not.

use rcgen::KeyPair;
use upfleet_api::v1;
use upfleet_domain::{reason::ReasonCode, time::Time};
use v1::enrollment_service_client::EnrollmentServiceClient;

use super::support::{Agent, Controller, code, csr, enroll_request, hello};
use crate::{
    clock::Clock,
    testing::{authority, channel, client_config_with},
};

#[tokio::test]
async fn a_token_gives_one_node_one_certificate() {
    let controller = Controller::start().await;
    let wish = v1::CreateEnrollmentTokenRequest {
        node: "web-01".into(),
        labels: [("env".to_owned(), "prod".to_owned())].into(),
        ..Default::default()
    };
    let token = controller.token(wish).await;
    assert_eq!(token.pin, controller.ca.pin());
    assert_eq!(token.address, format!("localhost:{}", controller.running.endpoints.enroll.port()));
    let mut enrollment = controller.enrollment().await;
    let key = KeyPair::generate().unwrap();

    let other = enrollment.enroll(enroll_request(&token, "web-02", &key)).await;
    assert_eq!(code(other), ReasonCode::TokenInvalid, "it is for another node");
    assert_eq!(controller.running.strangers.count(), 1, "strangers are not counted with the fleet");
    let answer = enrollment.enroll(enroll_request(&token, "web-01", &key)).await.unwrap().into_inner();
    assert_eq!(answer.name, "nodes/web-01");
    assert_eq!(answer.controller_address, format!("localhost:{}", controller.running.endpoints.api.port()));
    let replay = enrollment.enroll(enroll_request(&token, "web-01", &key)).await;
    assert_eq!(code(replay), ReasonCode::TokenInvalid, "it is used up");

    let get = v1::GetNodeRequest { name: "nodes/web-01".into() };
    let node = controller.nodes().await.get_node(get).await.unwrap().into_inner().node.unwrap();
    assert_eq!(node.labels["env"], "prod");
    assert!(!node.online);
    let listed = v1::ListEnrollmentTokensRequest::default();
    let left = controller.nodes().await.list_enrollment_tokens(listed).await.unwrap().into_inner();
    assert!(left.tokens.is_empty(), "used tokens are not listed");
}

#[tokio::test]
async fn an_expired_or_revoked_token_is_good_for_nothing() {
    let clock = Clock::manual(Clock::System.now());
    let controller = Controller::at(clock.clone()).await;
    let expired = controller.token(v1::CreateEnrollmentTokenRequest::default()).await;
    let revoked = controller.token(v1::CreateEnrollmentTokenRequest::default()).await;
    let name = format!("enrollmentTokens/{}", revoked.id);
    let request = v1::RevokeEnrollmentTokenRequest { name };
    controller.nodes().await.revoke_enrollment_token(request).await.unwrap();

    let key = KeyPair::generate().unwrap();
    let mut enrollment = controller.enrollment().await;
    let answer = enrollment.enroll(enroll_request(&revoked, "web-01", &key)).await;
    assert_eq!(code(answer), ReasonCode::TokenInvalid);
    clock.set(Time(clock.now().0 + 3_600_001));
    let answer = enrollment.enroll(enroll_request(&expired, "web-01", &key)).await;
    assert_eq!(code(answer), ReasonCode::TokenInvalid);
}

#[tokio::test]
async fn guessing_is_stopped_after_five_failures() {
    let controller = Controller::start().await;
    let mut token = controller.token(v1::CreateEnrollmentTokenRequest::default()).await;
    let good = token.clone();
    token.secret = upfleet_domain::token::encode(&[9; 32]);
    let key = KeyPair::generate().unwrap();
    let mut enrollment = controller.enrollment().await;
    for _ in 0..5 {
        let answer = enrollment.enroll(enroll_request(&token, "web-01", &key)).await;
        assert_eq!(code(answer), ReasonCode::TokenInvalid);
    }
    let answer = enrollment.enroll(enroll_request(&good, "web-01", &key)).await;
    assert_eq!(code(answer), ReasonCode::TooManyAttempts, "even with a good one");
}

#[tokio::test]
async fn a_name_is_taken_until_its_node_is_retired() {
    let controller = Controller::start().await;
    let first = controller.enroll("web-01").await;
    let key = KeyPair::generate().unwrap();
    let mut enrollment = controller.enrollment().await;
    let token = controller.token(v1::CreateEnrollmentTokenRequest::default()).await;
    let answer = enrollment.enroll(enroll_request(&token, "web-01", &key)).await;
    assert_eq!(code(answer), ReasonCode::NodeExists);

    let replacing = v1::CreateEnrollmentTokenRequest { allow_replace: true, ..Default::default() };
    let replacing = controller.token(replacing).await;
    enrollment.enroll(enroll_request(&replacing, "web-01", &key)).await.unwrap();
    let old = Agent::open(&controller, &first, hello("a")).await;
    assert!(old.is_err(), "the replaced machine's certificate is revoked");

    let retire = v1::RetireNodeRequest { name: "nodes/web-01".into(), ..Default::default() };
    controller.nodes().await.retire_node(retire).await.unwrap();
    // The token that was refused above is still unused.
    enrollment.enroll(enroll_request(&token, "web-01", &key)).await.unwrap();
}

#[tokio::test]
async fn a_controller_in_the_middle_gets_no_token() {
    let controller = Controller::start().await;
    let (_dir, other) = authority();
    // The agent trusts the pinned authority alone: the handshake fails before anything is sent.
    let config = client_config_with(&other, None);
    assert!(channel(controller.running.endpoints.enroll, config).await.is_err());
}

#[tokio::test]
async fn an_expired_certificate_is_renewed_by_its_key_for_ninety_days() {
    let clock = Clock::manual(Clock::System.now());
    let controller = Controller::at(clock.clone()).await;
    let node = controller.enroll("web-01").await;
    let (chain, _) = node.shown();
    let key = KeyPair::from_pem(&node.key_pem).unwrap();
    let mut enrollment: EnrollmentServiceClient<_> = controller.enrollment().await;
    let request = |key: &KeyPair| v1::RenewExpiredRequest {
        certificate_der: chain[0].to_vec().into(),
        csr_der: csr(key).into(),
    };
    clock.set(Time(clock.now().0 + 8 * 86_400_000));
    let stranger = enrollment.renew_expired(request(&KeyPair::generate().unwrap())).await;
    assert_eq!(code(stranger), ReasonCode::CsrInvalid, "another key proves nothing");
    enrollment.renew_expired(request(&key)).await.unwrap();

    clock.set(Time(clock.now().0 + 90 * 86_400_000));
    let late = enrollment.renew_expired(request(&key)).await;
    assert_eq!(code(late), ReasonCode::CertificateExpired);
}
