//! The doors with real TLS over loopback: who gets in, who is thrown out, and what limits hold.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair};
use tokio::{io::AsyncReadExt as _, net::TcpListener};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use upfleet_domain::{
    reason::{Reason, ReasonCode},
    time::Time,
};

use super::*;
use crate::{
    auth::{AuthLayer, Identity, Principal, Role},
    ca::Ca,
    clock::Clock,
    testing::{Holder, authority, channel, client_config, client_config_with, eventually, tls_connect},
};

/// Knows everybody but the refused.
#[derive(Default)]
struct Refusing(Mutex<HashSet<String>>);

#[async_trait]
impl Trust for Refusing {
    async fn admit(&self, leaf: &Leaf) -> Result<Principal, Reason> {
        if self.0.lock().unwrap().contains(&leaf.serial) {
            return Err(Reason::new(ReasonCode::CertificateRevoked));
        }
        match &leaf.identity {
            Identity::Node(node) => Ok(Principal::Node(node.clone())),
            Identity::User(user) => Ok(Principal::User { user: user.clone(), role: Role::Admin }),
            Identity::Controller => Err(Reason::new(ReasonCode::CertificateUnknown)),
        }
    }
}

struct Server {
    addr: SocketAddr,
    live: Live,
    trust: Arc<Refusing>,
    config: Arc<ArcSwap<rustls::ServerConfig>>,
    stop: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn serve(ca: &Ca) -> Server {
    let identity = Holder::new(ca, &Identity::Controller).server_identity();
    let config = Arc::new(ArcSwap::new(server_config(&identity, Some(ca.der())).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (trust, live) = (Arc::new(Refusing::default()), Live::default());
    let stop = CancellationToken::new();
    let door = Door { config: config.clone(), trust: Some(trust.clone()), live: live.clone(), bulk: None };
    let connections = incoming(listener, door, stop.clone());
    let (_, health) = tonic_health::server::health_reporter();
    let server = tonic::transport::Server::builder().layer(AuthLayer).add_service(health);
    tokio::spawn(server.serve_with_incoming(connections));
    Server { addr, live, trust, config, stop }
}

async fn health(addr: SocketAddr, config: Arc<rustls::ClientConfig>) -> Result<(), String> {
    let channel = channel(addr, config).await.map_err(|error| format!("{error:?}"))?;
    let call = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
    call.map(drop).map_err(|status| format!("{status:?}"))
}

#[tokio::test]
async fn only_the_fleets_own_clients_get_in() {
    let (_dir, ca) = authority();
    let (_other_dir, other) = authority();
    let server = serve(&ca).await;
    for good in [Holder::node(&ca, "web-01"), Holder::user(&ca, "anna")] {
        health(server.addr, client_config(&ca, Some(&good))).await.unwrap();
    }

    let revoked = Holder::node(&ca, "web-02");
    server.trust.0.lock().unwrap().insert(revoked.issued.serial.clone());
    let old = Time(Clock::System.now().0 - 2 * 3_600_000);
    let shown = |holder: &Holder| Some((holder.chain(), holder.private_key()));
    let cases = [
        ("no certificate", None),
        ("another authority", shown(&Holder::node(&other, "web-01"))),
        ("expired", shown(&Holder::at(&ca, &Identity::Node("web-01".parse().unwrap()), old))),
        ("revoked", shown(&revoked)),
        ("a server's certificate", shown(&Holder::new(&ca, &Identity::Controller))),
        ("a common name and no URI", Some(common_name_only(&_dir))),
        ("self-signed", Some(self_signed())),
    ];
    for (case, shown) in cases {
        let answer = health(server.addr, client_config_with(&ca, shown)).await;
        assert!(answer.is_err(), "{case} got in");
    }
    eventually("refused connections are forgotten", || server.live.count() == 0).await;
}

/// Signed by the fleet's authority, for a client, but naming nobody.
fn common_name_only(
    dir: &tempfile::TempDir,
) -> (Vec<rustls::pki_types::CertificateDer<'static>>, rustls::pki_types::PrivateKeyDer<'static>) {
    let read = |name: &str| std::fs::read_to_string(dir.path().join("ca").join(name)).unwrap();
    let issuer_key = KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&read("ca.crt"), issuer_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "spiffe://upfleet/user/root");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &issuer).unwrap();
    (vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
}

fn self_signed()
-> (Vec<rustls::pki_types::CertificateDer<'static>>, rustls::pki_types::PrivateKeyDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    let uri = "spiffe://upfleet/user/root".try_into().unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI(uri));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.self_signed(&key).unwrap();
    (vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
}

#[tokio::test]
async fn tls_1_3_with_a_post_quantum_exchange() {
    let (_dir, ca) = authority();
    let server = serve(&ca).await;
    let node = Holder::node(&ca, "web-01");
    let stream = tls_connect(server.addr, client_config(&ca, Some(&node))).await.unwrap();
    let connection = stream.get_ref().1;
    assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let group = connection.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn a_revoked_certificate_loses_its_live_stream() {
    let (_dir, ca) = authority();
    let server = serve(&ca).await;
    let anna = Holder::user(&ca, "anna");
    let channel = channel(server.addr, client_config(&ca, Some(&anna))).await.unwrap();
    let watch = HealthClient::new(channel).watch(HealthCheckRequest::default()).await.unwrap();
    let mut stream = watch.into_inner();
    stream.next().await.unwrap().unwrap();

    let begun = Instant::now();
    server.trust.0.lock().unwrap().insert(anna.issued.serial.clone());
    assert_eq!(server.live.cut(&HashSet::from([anna.issued.serial.clone()]), Clock::System.now()), 1);
    let end = tokio::time::timeout(Duration::from_secs(5), stream.next()).await.expect("the stream ends");
    assert!(matches!(end, None | Some(Err(_))), "{end:?}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(health(server.addr, client_config(&ca, Some(&anna))).await.is_err());
}

#[tokio::test]
async fn a_new_server_certificate_is_shown_and_old_streams_live_on() {
    let (_dir, ca) = authority();
    let server = serve(&ca).await;
    let anna = Holder::user(&ca, "anna");
    let config = client_config(&ca, Some(&anna));
    let mut old = HealthClient::new(channel(server.addr, config.clone()).await.unwrap());
    old.check(HealthCheckRequest::default()).await.unwrap();

    let renewed = Holder::new(&ca, &Identity::Controller);
    server.config.store(server_config(&renewed.server_identity(), Some(ca.der())).unwrap());
    let stream = tls_connect(server.addr, config).await.unwrap();
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    assert_eq!(shown, renewed.issued.der);
    old.check(HealthCheckRequest::default()).await.expect("the old connection is still served");
}

#[tokio::test]
async fn who_does_not_shake_hands_is_dropped() {
    let (_dir, ca) = authority();
    let server = serve(&ca).await;
    let mut mute = tokio::net::TcpStream::connect(server.addr).await.unwrap();
    let mut byte = [0; 1];
    let end = tokio::time::timeout(Duration::from_secs(10), mute.read(&mut byte)).await.expect("is dropped");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

#[test]
fn the_controllers_certificate_is_renewed_at_half_life_and_mended() {
    let (dir, ca) = authority();
    let directory = dir.path().join("tls");
    let now = Clock::System.now();
    let first = store_new(&ca, &directory, &["localhost".to_owned(), "::1".to_owned()], now).unwrap();
    let certificates = Certificates::load(&directory, ca.clone()).unwrap();
    assert!(certificates.renew_if_due(now).unwrap().is_none());
    assert!(!certificates.reload().unwrap());

    let half = now.after(crate::ca::SERVER_LIFETIME / 2);
    let second = certificates.renew_if_due(half).unwrap().expect("it is due");
    assert_ne!(second.serial, first.serial);
    let names = |issued: &crate::ca::Issued| {
        let (_, certificate) = x509_parser::parse_x509_certificate(&issued.der).unwrap();
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        names.value.general_names.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names(&second), names(&first));

    // A crash between the two writes leaves another key beside the certificate.
    assert!(mend(&ca, &directory, half).unwrap().is_none());
    std::fs::write(directory.join("server.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(Certificates::load(&directory, ca.clone()).is_err());
    assert!(mend(&ca, &directory, half).unwrap().is_some());
    assert!(certificates.reload().unwrap());
}
