//! Every kind of certificate against every method: a table that is generated from the one of methods and callers.

use std::collections::BTreeMap;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType, SerialNumber};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::{Code, Request, Status, transport::Channel};
use upfleet_api::{reason::from_status, v1};
use upfleet_domain::reason::ReasonCode;

use super::support::{Controller, Identity};
use crate::{
    auth::{METHODS, Principal, Role},
    testing::{channel, client_config_with},
};

type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// What a forger asks the fleet's own authority, or another, to sign.
struct Forged {
    uris: Vec<&'static str>,
    usage: Option<ExtendedKeyUsagePurpose>,
    days: (i64, i64),
    serial: Option<Vec<u8>>,
}

impl Forged {
    fn new(uri: &'static str) -> Self {
        Self {
            uris: vec![uri],
            usage: Some(ExtendedKeyUsagePurpose::ClientAuth),
            days: (-1, 1),
            serial: None,
        }
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        let names = self.uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
        params.subject_alt_names.extend(names);
        params.extended_key_usages.extend(self.usage.clone());
        params.is_ca = IsCa::ExplicitNoCa;
        let day = |days| time::OffsetDateTime::now_utc() + time::Duration::days(days);
        (params.not_before, params.not_after) = (day(self.days.0), day(self.days.1));
        params.serial_number = self.serial.as_deref().map(SerialNumber::from_slice);
        params
    }

    fn signed_by(&self, issuer: &Issuer<'_, KeyPair>) -> Shown {
        let key = KeyPair::generate().unwrap();
        let certificate = self.params().signed_by(&key, issuer).unwrap();
        (vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
    }

    fn signed_by_itself(&self) -> Shown {
        let key = KeyPair::generate().unwrap();
        let certificate = self.params().self_signed(&key).unwrap();
        (vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
    }
}

const ROOT: &str = "spiffe://upfleet/user/root";

/// The fleet's own authority in the hands of a forger, who still lacks the store's record.
fn issuer(controller: &Controller) -> Issuer<'static, KeyPair> {
    let read =
        |name: &str| std::fs::read_to_string(controller.dir.path().join("data/ca").join(name)).unwrap();
    Issuer::from_ca_cert_pem(&read("ca.crt"), KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap()
}

fn serial(identity: &Identity) -> Vec<u8> {
    let chain = identity.shown().0;
    let (_, certificate) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    certificate.raw_serial().to_vec()
}

/// Certificates that must open nothing, by what is wrong with them.
async fn wrong(controller: &Controller) -> BTreeMap<&'static str, Option<Shown>> {
    let own = issuer(controller);
    let other_dir = tempfile::tempdir().unwrap();
    crate::ca::Ca::create(&other_dir.path().join("ca"), crate::clock::Clock::System.now()).unwrap();
    let read = |name: &str| std::fs::read_to_string(other_dir.path().join("ca").join(name)).unwrap();
    let other = KeyPair::from_pem(&read("ca.key")).unwrap();
    let other = Issuer::from_ca_cert_pem(&read("ca.crt"), other).unwrap();
    let revoked = controller.user("eve", v1::Role::Admin).await;
    let revoke = v1::RevokeUserRequest { name: "users/eve".into(), ..Default::default() };
    controller.users().await.revoke_user(revoke).await.unwrap();
    let retired = controller.enroll("web-09").await;
    let retire = v1::RetireNodeRequest { name: "nodes/web-09".into(), ..Default::default() };
    controller.nodes().await.retire_node(retire).await.unwrap();
    let known = Some(serial(&controller.user("anna", v1::Role::Viewer).await));
    let server = Forged { usage: Some(ExtendedKeyUsagePurpose::ServerAuth), ..Forged::new(ROOT) };
    let own_server = crate::tls::ServerIdentity::load(&controller.dir.path().join("data/tls")).unwrap();
    [
        ("none", None),
        ("signed by itself", Some(Forged::new(ROOT).signed_by_itself())),
        ("of another authority", Some(Forged::new(ROOT).signed_by(&other))),
        ("expired", Some(Forged { days: (-3, -1), ..Forged::new(ROOT) }.signed_by(&own))),
        ("not yet valid", Some(Forged { days: (1, 3), ..Forged::new(ROOT) }.signed_by(&own))),
        ("revoked", Some(revoked.shown())),
        ("of a retired node", Some(retired.shown())),
        ("for a server", Some(server.signed_by(&own))),
        ("the controller's own", Some((own_server.chain, own_server.key))),
        ("without a use", Some(Forged { usage: None, ..Forged::new(ROOT) }.signed_by(&own))),
        ("never recorded", Some(Forged::new(ROOT).signed_by(&own))),
        ("another's serial", Some(Forged { serial: known, ..Forged::new(ROOT) }.signed_by(&own))),
        ("without a name", Some(Forged { uris: vec![], ..Forged::new(ROOT) }.signed_by(&own))),
        (
            "two names",
            Some(Forged { uris: vec![ROOT, "spiffe://upfleet/node/a"], ..Forged::new(ROOT) }.signed_by(&own)),
        ),
        ("of another fleet", Some(Forged::new("spiffe://elsewhere/user/root").signed_by(&own))),
        ("a path in the name", Some(Forged::new("spiffe://upfleet/user/../user/root").signed_by(&own))),
    ]
    .into_iter()
    .collect()
}

/// Calls a method with an empty message, whatever it takes.
async fn call(channel: &Channel, method: &'static str) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(format!("{error:?}")))?;
    let codec = tonic_prost::ProstCodec::<pbjson_types::Empty, pbjson_types::Empty>::default();
    let path = http::uri::PathAndQuery::from_static(method);
    let messages = tokio_stream::iter([pbjson_types::Empty {}]);
    let mut answer = client.streaming(Request::new(messages), path, codec).await?.into_inner();
    let first = tokio::time::timeout(std::time::Duration::from_secs(20), answer.message()).await;
    first.map_err(|_| Status::deadline_exceeded("nothing came"))?.map(drop)
}

#[tokio::test]
async fn no_wrong_certificate_opens_any_method() {
    let controller = Controller::start().await;
    let mut refused = 0;
    for (kind, shown) in wrong(&controller).await {
        let config = client_config_with(&controller.ca, shown);
        let made = channel(controller.running.endpoints.api, config).await;
        for (method, _) in METHODS {
            // Refused while shaking hands; in TLS 1.3 the client may hear of it with its first call only.
            if let Ok(channel) = &made {
                let answer = call(channel, method).await;
                let status = answer.expect_err(kind);
                assert!(from_status(&status).is_none(), "{kind}: {method} was reached: {status:?}");
            }
            refused += 1;
        }
    }
    // The honest are not harmed by any of it.
    controller.nodes().await.list_nodes(v1::ListNodesRequest::default()).await.unwrap();
    println!("figure: wrong_certificates {refused} of {refused} pairs of certificate and method refused");
}

#[tokio::test]
async fn a_foreign_role_is_refused_at_every_method_that_is_not_its_own() {
    let controller = Controller::start().await;
    let roles = [
        (v1::Role::Viewer, Role::Viewer),
        (v1::Role::Operator, Role::Operator),
        (v1::Role::Publisher, Role::Publisher),
        (v1::Role::Admin, Role::Admin),
    ];
    let mut callers = vec![(
        Principal::Node("web-01".parse().unwrap()),
        controller.channel(&controller.enroll("web-01").await).await,
    )];
    for (wire, role) in roles {
        let name = format!("a-{}", role.as_str());
        let principal = Principal::User { user: name.parse().unwrap(), role };
        callers.push((principal, controller.channel(&controller.user(&name, wire).await).await));
    }
    let mut refused = 0;
    for (principal, channel) in &callers {
        for (method, row) in METHODS {
            if row.admit(principal) {
                continue;
            }
            let status = call(channel, method).await.expect_err(method);
            assert_eq!(status.code(), Code::PermissionDenied, "{principal}: {method}: {status:?}");
            let reason = from_status(&status).unwrap();
            assert_eq!(reason.code, ReasonCode::PermissionDenied, "{principal}: {method}");
            refused += 1;
        }
    }
    assert!(refused > 100, "{refused}");
    println!("figure: foreign_roles {refused} of {refused} pairs of role and method refused");
}
