//! What the authority signs, and what it takes from a request: the key.

use x509_parser::{extensions::GeneralName, prelude::parse_x509_certificate};

use super::*;

const NOW: Time = Time(1_800_000_000_000);

fn ca() -> (tempfile::TempDir, Ca) {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::create(&dir.path().join("ca"), NOW).unwrap();
    (dir, ca)
}

fn csr(params: CertificateParams, key: &KeyPair) -> Vec<u8> {
    params.serialize_request(key).unwrap().der().to_vec()
}

#[test]
fn names_and_usages_in_a_request_are_ignored() {
    let (_dir, ca) = ca();
    let key = KeyPair::generate().unwrap();
    let mut greedy = CertificateParams::new(vec!["controller.example".to_owned()]).unwrap();
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::Any];
    greedy.subject_alt_names.push(SanType::URI("spiffe://upfleet/user/root".try_into().unwrap()));
    greedy.distinguished_name.push(DnType::CommonName, "root");
    let proven = ProvenKey::from_csr(&csr(greedy, &key)).unwrap();
    let node = Identity::Node("web-01".parse().unwrap());
    let issued = ca.issue(&node, &[], &proven, NOW, NODE_LIFETIME).unwrap();

    let (_, certificate) = parse_x509_certificate(&issued.der).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names, vec![GeneralName::URI("spiffe://upfleet/node/web-01")]);
    assert_eq!(certificate.subject().iter().count(), 0);
    assert!(!certificate.basic_constraints().unwrap().unwrap().value.ca);
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    assert_eq!(hex(certificate.tbs_certificate.raw_serial()), issued.serial);
    assert_eq!(certificate.validity().not_after.timestamp() * 1000, issued.expire_time.0);
    assert_eq!(certificate.tbs_certificate.subject_pki.raw, key.subject_public_key_info());
}

#[test]
fn a_request_proves_its_key() {
    let key = KeyPair::generate().unwrap();
    let good = csr(CertificateParams::default(), &key);
    assert!(ProvenKey::from_csr(&good).is_ok());
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    let mut longer = good.clone();
    longer.push(0);
    let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let ed25519 = csr(CertificateParams::default(), &other);
    for bad in [forged, longer, ed25519, Vec::new(), vec![0x30; MAX_CSR_BYTES + 1]] {
        let reason = ProvenKey::from_csr(&bad).unwrap_err();
        assert_eq!(reason.code, ReasonCode::CsrInvalid, "{reason}");
    }
}

#[test]
fn an_authority_is_read_back_and_keeps_its_pin() {
    let (dir, ca) = ca();
    let again = Ca::load(&dir.path().join("ca")).unwrap();
    assert_eq!(again.pin(), ca.pin());
    assert_eq!(again.der(), ca.der());
}

#[test]
fn a_foreign_key_is_refused() {
    let (dir, _ca) = ca();
    let other = KeyPair::generate().unwrap().serialize_pem();
    std::fs::write(dir.path().join("ca/ca.key"), other).unwrap();
    assert!(matches!(Ca::load(&dir.path().join("ca")), Err(CaError::Parse { .. })));
}

#[test]
fn renewal_comes_at_half_life_and_not_for_all_at_once() {
    let life = Duration::from_secs(1000);
    assert_eq!(renew_time(Time(0), life, &[0]), Time(450_000));
    assert_eq!(renew_time(Time(0), life, &[255]), Time(550_000));
}

#[test]
fn the_controller_serves_its_names() {
    let (_dir, ca) = ca();
    let (_, proven) = new_key().unwrap();
    let names = ["fleet.example".to_owned(), "127.0.0.1".to_owned()];
    let issued = ca.issue(&Identity::Controller, &names, &proven, NOW, SERVER_LIFETIME).unwrap();
    let (_, certificate) = parse_x509_certificate(&issued.der).unwrap();
    let names = &certificate.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert!(names.contains(&GeneralName::DNSName("fleet.example")));
    assert!(names.contains(&GeneralName::IPAddress(&[127, 0, 0, 1])));
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth);
}
