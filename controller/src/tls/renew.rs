//! The controller's own certificate: read again when its files change, renewed at half its life.
//!
//! A certificate that another authority signed is the operator's: it is read again, never renewed here.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio_util::sync::CancellationToken;
use upfleet_domain::{digest::Digest, time::Time};
use x509_parser::extensions::GeneralName;

use super::{Leaf, ServerIdentity, TlsError, server_config};
use crate::{
    auth::Identity,
    ca::{self, Ca, Issued},
    clock::Clock,
    files,
    store::{CertificateRecord, Change, Store, Subject},
};

/// How often the files and the clock are looked at.
const LOOK: Duration = Duration::from_secs(30);

/// The certificate that the listeners show, and where it comes from.
pub struct Certificates {
    directory: PathBuf,
    ca: Arc<Ca>,
    /// For the main listener, which asks for client certificates.
    pub api: Arc<ArcSwap<ServerConfig>>,
    /// For the enrollment listener, which does not.
    pub enroll: Arc<ArcSwap<ServerConfig>>,
    shown: Mutex<Digest>,
}

impl Certificates {
    /// Reads `server.crt` and `server.key` from `directory`.
    ///
    /// # Errors
    /// Where they can't be read or used.
    pub fn load(directory: &Path, ca: Arc<Ca>) -> Result<Self, TlsError> {
        let identity = ServerIdentity::load(directory)?;
        let (api, enroll) = configs(&identity, &ca)?;
        Ok(Self {
            directory: directory.to_owned(),
            ca,
            api: Arc::new(ArcSwap::new(api)),
            enroll: Arc::new(ArcSwap::new(enroll)),
            shown: Mutex::new(fingerprint(&identity)),
        })
    }

    /// When the certificate in the directory expires; the beginning of time where it can't be read.
    #[must_use]
    pub fn expires(&self) -> Time {
        let leaf = ServerIdentity::load(&self.directory).ok().and_then(|identity| {
            let (_, certificate) = x509_parser::parse_x509_certificate(identity.chain.first()?).ok()?;
            Some(Time(certificate.validity().not_after.timestamp().saturating_mul(1000)))
        });
        leaf.unwrap_or_default()
    }

    /// Shows what lies in the directory now; says whether that is another certificate than before.
    ///
    /// # Errors
    /// Where it can't be read or used; the one before stays in use.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let identity = ServerIdentity::load(&self.directory)?;
        let found = fingerprint(&identity);
        if *self.shown.lock().unwrap_or_else(PoisonError::into_inner) == found {
            return Ok(false);
        }
        let (api, enroll) = configs(&identity, &self.ca)?;
        self.api.store(api);
        self.enroll.store(enroll);
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(true)
    }

    /// Signs a new certificate for the same names and shows it, where ours is past half its life.
    ///
    /// # Errors
    /// Where files can't be read or written; the one before stays in use.
    pub fn renew_if_due(&self, now: Time) -> Result<Option<Issued>, TlsError> {
        let identity = ServerIdentity::load(&self.directory)?;
        let Some(names) = identity.chain.first().and_then(|leaf| names_if_due(leaf, now)) else {
            return Ok(None);
        };
        let issued = store_new(&self.ca, &self.directory, &names, now)?;
        self.reload()?;
        Ok(Some(issued))
    }
}

fn configs(identity: &ServerIdentity, ca: &Ca) -> Result<(Arc<ServerConfig>, Arc<ServerConfig>), TlsError> {
    Ok((server_config(identity, Some(ca.der()))?, server_config(identity, None)?))
}

fn fingerprint(identity: &ServerIdentity) -> Digest {
    let mut bytes: Vec<u8> = identity.chain.iter().flat_map(|certificate| certificate.to_vec()).collect();
    bytes.extend_from_slice(identity.key.secret_der());
    Digest::of(&bytes)
}

/// The DNS names and addresses to renew for; `None` where it is not ours or not yet due.
fn names_if_due(leaf: &CertificateDer<'_>, now: Time) -> Option<Vec<String>> {
    if Leaf::parse(leaf)?.identity != Identity::Controller {
        return None;
    }
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let validity = certificate.validity();
    let half = validity.not_before.timestamp() / 2 + validity.not_after.timestamp() / 2;
    // Also one that is not good yet: the clock ran ahead when it was made.
    if validity.not_before.timestamp() <= now.0 / 1000 && now.0 / 1000 < half {
        return None;
    }
    let names = certificate.subject_alternative_name().ok()??.value.general_names.iter();
    Some(names.filter_map(|name| dns_or_address(name)).collect())
}

fn dns_or_address(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match *bytes {
            [a, b, c, d] => Some(std::net::Ipv4Addr::new(*a, *b, *c, *d).to_string()),
            long => <[u8; 16]>::try_from(long).ok().map(|b| std::net::Ipv6Addr::from(b).to_string()),
        },
        _ => None,
    }
}

/// Makes a key and a certificate for the controller and writes them to `directory`.
///
/// # Errors
/// Where signing or writing fails.
pub fn store_new(ca: &Ca, directory: &Path, names: &[String], now: Time) -> Result<Issued, TlsError> {
    let refused = |error| TlsError::Refused(Box::new(error));
    let (key, proven) = ca::new_key().map_err(refused)?;
    let issued =
        ca.issue(&Identity::Controller, names, &proven, now, ca::SERVER_LIFETIME).map_err(refused)?;
    files::private_dir(directory)?;
    // The pair lies in one file each; a crash between the two writes leaves a pair that does not fit, which
    // the next start finds and mends (`mend`).
    files::write(&directory.join("server.key"), key.serialize_pem().as_bytes(), files::PRIVATE)?;
    files::write(&directory.join("server.crt"), issued.chain_pem.as_bytes(), files::PUBLIC)?;
    Ok(issued)
}

/// Makes a new pair where a crash left a key beside the certificate of another; says whether it had to.
///
/// # Errors
/// Where files can't be read or written.
pub fn mend(ca: &Ca, directory: &Path, now: Time) -> Result<Option<Issued>, TlsError> {
    let leaf = match ServerIdentity::load(directory) {
        Ok(identity) if server_config(&identity, None).is_ok() && ours(ca, &identity) => return Ok(None),
        Ok(identity) => identity.chain.into_iter().next(),
        // Of a damaged key the certificate still says for which names another is to be made.
        Err(error) => match CertificateDer::from_pem_file(directory.join("server.crt")) {
            Ok(leaf) => Some(leaf),
            Err(_) => return Err(error),
        },
    };
    let signed = leaf.filter(|leaf| ca.signed(leaf));
    let Some(names) = signed.and_then(|leaf| names_if_due(&leaf, Time(i64::MAX))) else {
        return Err(TlsError::Damaged { directory: directory.display().to_string() });
    };
    tracing::error!(directory = %directory.display(), "the controller's certificate was damaged; made another");
    store_new(ca, directory, &names, now).map(Some)
}

/// Whether a certificate that says it is ours is; the operator may show one of another authority.
fn ours(ca: &Ca, identity: &ServerIdentity) -> bool {
    let claims = |leaf: &CertificateDer<'_>| {
        Leaf::parse(leaf).is_some_and(|leaf| leaf.identity == Identity::Controller)
    };
    identity.chain.first().is_some_and(|leaf| !claims(leaf) || ca.signed(leaf))
}

/// What the store keeps of a certificate of the controller.
#[must_use]
pub fn record(issued: &Issued) -> Change {
    Change::CreateCertificate(CertificateRecord {
        serial: issued.serial.clone(),
        subject: Subject::Controller,
        issued: issued.create_time,
        expires: issued.expire_time,
        revoked: None,
        suspended: false,
        creator: "controller".to_owned(),
    })
}

/// Reads the certificate again as it changes and renews it in time, until `stop`.
pub async fn keep_renewed(
    certificates: Arc<Certificates>,
    store: Arc<dyn Store>,
    clock: Clock,
    stop: CancellationToken,
) {
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        match certificates.reload() {
            Ok(true) => tracing::info!("shows the changed server certificate"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "could not read the server certificate; the old one stays"),
        }
        match certificates.renew_if_due(clock.now()) {
            Ok(None) => {}
            Ok(Some(issued)) => {
                tracing::info!(serial = issued.serial, "renewed the server certificate");
                if let Err(error) = store.commit(vec![record(&issued)]).await {
                    tracing::warn!(%error, "could not record the renewed server certificate");
                }
            }
            Err(error) => tracing::error!(%error, "could not renew the server certificate"),
        }
    }
}
