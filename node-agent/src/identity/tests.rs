//! Identities on the disk, with a small authority that other tests use, too.

use std::os::unix::fs::PermissionsExt;

use rcgen::{
    BasicConstraints, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType,
};

use super::*;

/// A certificate authority for tests.
pub(crate) struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub(crate) pem: String,
    /// The same in DER.
    pub(crate) der: CertificateDer<'static>,
}

impl TestCa {
    pub(crate) fn new() -> Self {
        let key = new_key();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        let certificate = params.self_signed(&key).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Self { issuer: Issuer::new(params, key), pem, der }
    }

    /// Signs a node's request, good from a minute ago for `life`.
    pub(crate) fn sign_node(&self, csr: &[u8], node: &str, life: Duration) -> Granted {
        let mut csr = CertificateSigningRequestParams::from_der(&csr.into()).unwrap();
        let uri = format!("{NODE_URI}{node}");
        csr.params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        csr.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        csr.params.not_before = time::OffsetDateTime::now_utc() - Duration::from_secs(60);
        csr.params.not_after = csr.params.not_before + life;
        let certificate = csr.signed_by(&self.issuer).unwrap();
        Granted { certificate_pem: certificate.pem(), ca_pem: self.pem.clone() }
    }

    /// A server's certificate and key for a name.
    pub(crate) fn server(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = new_key();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), key.serialize_der().try_into().unwrap())
    }

    /// A node's identity, good for `life` from a minute ago.
    pub(crate) fn node(&self, node: &str, life: Duration) -> Identity {
        let key = new_key();
        let granted = self.sign_node(&request_for(&key), node, life);
        Identity::new(&key, granted, EnrollmentDoor { address: "localhost:1".into() }).unwrap()
    }
}

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

#[test]
fn an_identity_is_written_and_read_and_its_key_is_private() {
    let (state, ca) = (tempfile::tempdir().unwrap(), TestCa::new());
    assert!(matches!(Identities::load(state.path()), Err(IdentityError::NotEnrolled(_))));
    Identities::create(state.path(), ca.node("web-01", WEEK)).unwrap();
    let loaded = Identities::load(state.path()).unwrap();
    assert_eq!(loaded.current().node().as_str(), "web-01");
    assert_eq!(loaded.current().door().address, "localhost:1");
    let mode = |name: &str| fs::metadata(state.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("identity"), 0o700);
    assert_eq!(mode("identity/node.key"), 0o600);
    assert!(!format!("{loaded:?}").contains("PRIVATE"));
}

#[test]
fn replacing_leaves_one_whole_identity() {
    let (state, ca) = (tempfile::tempdir().unwrap(), TestCa::new());
    let identities = Identities::create(state.path(), ca.node("web-01", WEEK)).unwrap();
    let next = ca.node("web-01", 2 * WEEK);
    let not_after = next.not_after();
    identities.replace(next).unwrap();
    assert_eq!(identities.current().not_after(), not_after);
    assert_eq!(Identities::load(state.path()).unwrap().current().not_after(), not_after);
    assert_eq!(fs::read_dir(state.path()).unwrap().count(), 1, "nothing temporary is left");
}

#[test]
fn a_crash_between_the_renames_is_mended() {
    let (state, ca) = (tempfile::tempdir().unwrap(), TestCa::new());
    Identities::create(state.path(), ca.node("web-01", WEEK)).unwrap();
    fs::rename(state.path().join("identity"), state.path().join("identity.old")).unwrap();
    fs::create_dir(state.path().join("identity.next")).unwrap();
    let identities = Identities::load(state.path()).unwrap();
    assert_eq!(identities.current().node().as_str(), "web-01");
    // Reading leaves alone what a running agent may just be writing; the next writing tidies up.
    assert!(state.path().join("identity.next").exists());
    identities.replace(ca.node("web-01", WEEK)).unwrap();
    assert_eq!(fs::read_dir(state.path()).unwrap().count(), 1, "nothing temporary is left");
}

#[test]
fn a_certificate_for_another_key_is_refused() {
    let ca = TestCa::new();
    let granted = ca.sign_node(&request_for(&new_key()), "web-01", WEEK);
    let error = Identity::new(&new_key(), granted, EnrollmentDoor::default()).unwrap_err();
    assert!(error.to_string().contains("another key"), "{error}");
}

#[test]
fn renewal_is_around_half_life() {
    let identity = TestCa::new().node("web-01", WEEK);
    let at = |jitter| identity.renew_at(jitter).since(identity.not_before).as_secs_f64() / WEEK.as_secs_f64();
    for (jitter, part) in [(0.0, 0.4), (0.5, 0.5), (1.0, 0.6), (9.0, 0.6)] {
        assert!((at(jitter) - part).abs() < 0.001, "{jitter}");
    }
}
