//! The built-in certificate authority: signs keys it has seen proof of, for names the controller chose.
//!
//! Nothing in a certificate request counts but its key and the proof that the requester holds it: names,
//! usages and lifetimes are set here. Who may ask is not decided here, and nothing is recorded here.

use std::{path::Path, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use upfleet_domain::{
    digest::Digest,
    reason::{Reason, ReasonCode},
    time::Time,
};
use x509_parser::prelude::{FromDer as _, X509CertificationRequest};

use crate::{
    auth::Identity,
    files::{self, FileError},
};

/// How long the authority's own certificate is good: ten years.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long a node's certificate is good; an agent renews at half of it.
pub const NODE_LIFETIME: Duration = Duration::from_secs(7 * 86_400);
/// How long the controller's own certificate is good; it renews at half of it.
pub const SERVER_LIFETIME: Duration = Duration::from_secs(90 * 86_400);
/// How long a user's certificate is good where nothing is asked for.
pub const USER_LIFETIME: Duration = Duration::from_secs(90 * 86_400);
/// How far back a certificate begins, for nodes whose clock is behind.
const CLOCK_SKEW: Duration = Duration::from_secs(10 * 60);
/// The largest request that is looked at, in bytes.
const MAX_CSR_BYTES: usize = 16 * 1024;

/// Why the authority can't work. All are the operator's to mend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// A file of it can't be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its files hold no certificate and key.
    #[error("could not use the authority's certificate and key in `{directory}`")]
    Parse {
        /// Where they lie.
        directory: String,
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The library refused to sign.
    #[error("could not sign a certificate for `{subject}`")]
    Sign {
        /// For whom.
        subject: String,
        /// What is wrong.
        #[source]
        source: rcgen::Error,
    },
}

/// A signed certificate.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The serial number in hex: what the controller decides by.
    pub serial: String,
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// The certificate and the authority's, in PEM.
    pub chain_pem: String,
    /// When it was signed.
    pub create_time: Time,
    /// When it expires.
    pub expire_time: Time,
    /// When it should be renewed: half its life, up to a tenth earlier or later so that a fleet does not come at once.
    pub renew_time: Time,
}

/// A key that its holder has proved to hold.
#[derive(Debug)]
pub struct ProvenKey(SubjectPublicKeyInfo);

impl ProvenKey {
    /// Takes the key out of a PKCS#10 request in DER; everything else in it is ignored.
    ///
    /// # Errors
    /// [`ReasonCode::CsrInvalid`] where it is no request, is not signed by its own key, or the key is not P-256.
    pub fn from_csr(der: &[u8]) -> Result<Self, Reason> {
        let invalid = |problem: &str| Reason::new(ReasonCode::CsrInvalid).with("problem", problem);
        if der.len() > MAX_CSR_BYTES {
            return Err(invalid("it is too large"));
        }
        let (rest, csr) =
            X509CertificationRequest::from_der(der).map_err(|_| invalid("it is no PKCS#10 request"))?;
        if !rest.is_empty() {
            return Err(invalid("something follows it"));
        }
        csr.verify_signature().map_err(|_| invalid("it is not signed by its own key"))?;
        let key = SubjectPublicKeyInfo::from_der(csr.certification_request_info.subject_pki.raw)
            .map_err(|_| invalid("its key is not P-256"))?;
        if *key.algorithm() != rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(invalid("its key is not P-256"));
        }
        Ok(Self(key))
    }

    /// The key's SubjectPublicKeyInfo in DER.
    #[must_use]
    pub fn spki(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }
}

/// The authority: a certificate and its key.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    pem: String,
    pin: Digest,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("pin", &self.pin).finish_non_exhaustive()
    }
}

impl Ca {
    /// Makes a new authority and stores it in `directory` as `ca.crt` and `ca.key`.
    ///
    /// # Errors
    /// Where a file can't be written.
    pub fn create(directory: &Path, now: Time) -> Result<Self, CaError> {
        let sign = |source| CaError::Sign { subject: "upfleet CA".to_owned(), source };
        let key = KeyPair::generate().map_err(sign)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "upfleet CA");
        set_lifetime(&mut params, now, CA_LIFETIME);
        params.serial_number = Some(new_serial());
        let certificate = params.self_signed(&key).map_err(sign)?;
        files::private_dir(directory)?;
        files::write(&directory.join("ca.key"), key.serialize_pem().as_bytes(), files::PRIVATE)?;
        files::write(&directory.join("ca.crt"), certificate.pem().as_bytes(), files::PUBLIC)?;
        Self::load(directory)
    }

    /// Reads the authority that [`Ca::create`] stored, or one that the operator put there.
    ///
    /// # Errors
    /// Where the files can't be read or do not belong together.
    pub fn load(directory: &Path) -> Result<Self, CaError> {
        let parse = |source: Box<dyn std::error::Error + Send + Sync>| CaError::Parse {
            directory: directory.display().to_string(),
            source,
        };
        let pem = files::read_text(&directory.join("ca.crt"))?;
        let key_pem = files::read_text(&directory.join("ca.key"))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| parse(Box::new(e)))?;
        let key = KeyPair::from_pem(&key_pem).map_err(|e| parse(Box::new(e)))?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).map_err(|e| parse(Box::new(e)))?;
        let spki = certificate.tbs_certificate.subject_pki.raw.to_vec();
        if spki != key.subject_public_key_info() {
            return Err(parse("the key does not belong to the certificate".into()));
        }
        let pin = Digest::of(&spki);
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|e| parse(Box::new(e)))?;
        Ok(Self { issuer, der, pem, pin })
    }

    /// Its certificate in PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Its certificate.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// SHA-256 of its SubjectPublicKeyInfo: what enrollment tokens carry.
    #[must_use]
    pub fn pin(&self) -> Digest {
        self.pin
    }

    /// Whether a certificate was signed by this authority, whatever its dates.
    #[must_use]
    pub fn signed(&self, certificate: &[u8]) -> bool {
        let own = x509_parser::parse_x509_certificate(&self.der);
        let (Ok((_, own)), Ok((_, other))) = (own, x509_parser::parse_x509_certificate(certificate)) else {
            return false;
        };
        other.verify_signature(Some(own.public_key())).is_ok()
    }

    /// Signs a key as `identity`; `names` (DNS names and IP addresses) are for the controller only.
    ///
    /// # Errors
    /// Where a name is not valid or signing fails.
    pub fn issue(
        &self,
        identity: &Identity,
        names: &[String],
        key: &ProvenKey,
        now: Time,
        lifetime: Duration,
    ) -> Result<Issued, CaError> {
        let subject = identity.to_string();
        let sign = |source| CaError::Sign { subject: subject.clone(), source };
        let serial = new_serial();
        let mut params = CertificateParams::new(names.to_vec()).map_err(sign)?;
        let uri = identity.uri().try_into().map_err(sign)?;
        params.subject_alt_names.insert(0, SanType::URI(uri));
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match identity {
            Identity::Controller => ExtendedKeyUsagePurpose::ServerAuth,
            Identity::Node(_) | Identity::User(_) => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial.clone());
        set_lifetime(&mut params, now, lifetime);
        let certificate = params.signed_by(&key.0, &self.issuer).map_err(sign)?;
        Ok(Issued {
            serial: hex(&serial.to_bytes()),
            der: certificate.der().clone(),
            chain_pem: format!("{}{}", certificate.pem(), self.pem),
            create_time: now,
            expire_time: now.after(lifetime),
            renew_time: renew_time(now, lifetime, &serial.to_bytes()),
        })
    }
}

/// A fresh P-256 key and a request for it, for those who sign for themselves: the controller and `upfleet init`.
///
/// # Errors
/// Where the library has no randomness.
pub fn new_key() -> Result<(KeyPair, ProvenKey), CaError> {
    let sign = |source| CaError::Sign { subject: "a new key".to_owned(), source };
    let key = KeyPair::generate().map_err(sign)?;
    let spki = SubjectPublicKeyInfo::from_der(&key.subject_public_key_info()).map_err(sign)?;
    Ok((key, ProvenKey(spki)))
}

/// Bytes as lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Half of the life, a tenth of it more or less as `seed` falls.
fn renew_time(now: Time, lifetime: Duration, seed: &[u8]) -> Time {
    let jitter = f64::from(*seed.last().unwrap_or(&128)) / 255.0;
    now.after(lifetime.mul_f64(0.45 + 0.1 * jitter))
}

fn set_lifetime(params: &mut CertificateParams, now: Time, lifetime: Duration) {
    let at = |time: Time| {
        time::OffsetDateTime::from_unix_timestamp(time.0.div_euclid(1000))
            .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
    };
    let skew = i64::try_from(CLOCK_SKEW.as_millis()).unwrap_or(0);
    params.not_before = at(Time(now.0.saturating_sub(skew)));
    params.not_after = at(now.after(lifetime));
}

/// 16 random bytes whose top bits make the DER form as long as the number itself.
fn new_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

#[cfg(test)]
mod tests;
