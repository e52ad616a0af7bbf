//! The node's identity: its key, its certificate, and the authorities it trusts.
//!
//! All of it lies in one directory that is replaced as a whole, so that no crash leaves a key without its
//! certificate. The key is made on the node, is readable by the agent's user alone, and is never sent, logged
//! or put into diagnostics.

use std::{
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use upfleet_domain::{id::NodeId, time::Time};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const KEY: &str = "node.key";
const CERTIFICATE: &str = "node.crt";
const AUTHORITIES: &str = "ca.crt";
const ENROLLMENT: &str = "enrollment.json";
/// How the name of a node begins in its certificate.
const NODE_URI: &str = "spiffe://upfleet/node/";

/// Why there is no usable identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The node was never enrolled. For the operator.
    #[error("this node is not enrolled: `{0}` does not exist")]
    NotEnrolled(PathBuf),
    /// A file can't be read or written. For the operator.
    #[error("could not {operation} `{path}`")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What is in a file is not what belongs there. For the operator: enroll again.
    #[error("`{path}` is damaged: {problem}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io { operation, path, source }
}

/// Where an expired certificate is renewed; kept from enrollment on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollmentDoor {
    /// `host:port` of the enrollment listener.
    pub address: String,
}

/// What the controller gives in exchange for a request: texts that go to the disk as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The certificate and its chain.
    pub certificate_pem: String,
    /// The authorities to trust.
    pub ca_pem: String,
}

/// A node's key with its certificate.
pub struct Identity {
    node: NodeId,
    chain: Vec<CertificateDer<'static>>,
    key_pem: String,
    authorities: Vec<CertificateDer<'static>>,
    granted: Granted,
    not_before: Time,
    not_after: Time,
    door: EnrollmentDoor,
}

impl fmt::Debug for Identity {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("node", &self.node).field("not_after", &self.not_after).finish()
    }
}

impl Identity {
    /// Puts a key and what was granted for it together.
    ///
    /// # Errors
    /// Where the certificate is not a node's, or not for this key.
    pub fn new(key: &KeyPair, granted: Granted, door: EnrollmentDoor) -> Result<Self, IdentityError> {
        Self::from_parts(Path::new("the answer of the controller"), key.serialize_pem(), granted, door)
    }

    fn from_parts(
        origin: &Path,
        key_pem: String,
        granted: Granted,
        door: EnrollmentDoor,
    ) -> Result<Self, IdentityError> {
        let damaged = |problem: String| IdentityError::Damaged { path: origin.to_owned(), problem };
        let certificates = |pem: &str| -> Result<Vec<CertificateDer<'static>>, IdentityError> {
            let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
            all.ok().filter(|all| !all.is_empty()).ok_or_else(|| damaged("it holds no certificate".into()))
        };
        let chain = certificates(&granted.certificate_pem)?;
        let authorities = certificates(&granted.ca_pem)?;
        let key = KeyPair::from_pem(&key_pem).map_err(|_| damaged("it holds no private key".into()))?;
        let (_, leaf) = X509Certificate::from_der(&chain[0])
            .map_err(|_| damaged("the certificate can't be read".into()))?;
        if leaf.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(damaged("the certificate is for another key".into()));
        }
        let node = node_of(&leaf).ok_or_else(|| damaged("the certificate names no node".into()))?;
        let validity = leaf.validity();
        let millis = |seconds: i64| Time(seconds.saturating_mul(1000));
        let not_before = millis(validity.not_before.timestamp());
        let not_after = millis(validity.not_after.timestamp());
        Ok(Self { node, chain, key_pem, authorities, granted, not_before, not_after, door })
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// The certificate, then those between it and an authority.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The authorities that a controller's certificate must come from.
    #[must_use]
    pub fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.authorities
    }

    /// When the certificate expires.
    #[must_use]
    pub fn not_after(&self) -> Time {
        self.not_after
    }

    /// Whether the certificate is good at `now`.
    #[must_use]
    pub fn is_valid(&self, now: Time) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// Where an expired certificate is renewed.
    #[must_use]
    pub fn door(&self) -> &EnrollmentDoor {
        &self.door
    }

    /// When to renew: at half life, give or take a tenth of the life, so that nodes that were enrolled
    /// together do not renew together. `jitter` is anything from 0 to 1.
    #[must_use]
    pub fn renew_at(&self, jitter: f64) -> Time {
        let life = self.not_after.since(self.not_before);
        self.not_before.after(life.mul_f64(0.4 + 0.2 * jitter.clamp(0.0, 1.0)))
    }

    /// How long the certificate is good from `now`; zero once it has expired.
    #[must_use]
    pub fn remaining(&self, now: Time) -> Duration {
        self.not_after.since(now)
    }

    /// The key, for TLS.
    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key_pair().serialize_der()))
    }

    /// The key, for signing a request with it.
    pub(crate) fn key_pair(&self) -> KeyPair {
        KeyPair::from_pem(&self.key_pem).expect("it was read from the same text when the identity was made")
    }
}

fn node_of(certificate: &X509Certificate<'_>) -> Option<NodeId> {
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => NodeId::new(uri.strip_prefix(NODE_URI)?).ok(),
        _ => None,
    })
}

/// A new P-256 key.
///
/// # Panics
/// Where the system has no randomness to give.
#[must_use]
pub fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("P-256 is built in and randomness is there")
}

/// A request in DER that proves possession of `key`. It names nothing: the controller decides the name.
#[must_use]
pub fn request_for(key: &KeyPair) -> Vec<u8> {
    let request = CertificateParams::default().serialize_request(key).expect("an empty request is valid");
    request.der().to_vec()
}

/// The directory `identity` below the state directory, and what is in force of it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Identities {
    dir: PathBuf,
    current: Arc<ArcSwap<Identity>>,
}

impl Identities {
    /// Reads the identity below `state_dir`.
    ///
    /// # Errors
    /// Where the node is not enrolled, or a file is damaged.
    pub fn load(state_dir: &Path) -> Result<Self, IdentityError> {
        let dir = state_dir.join("identity");
        let (_, old) = beside(&dir);
        // A crash between two renames, on file systems that can't exchange directories.
        if !dir.exists() && old.exists() {
            fs::rename(&old, &dir).map_err(io_error("restore", &dir))?;
        }
        // What lies in `next` is left alone: a command may read this while the running agent is writing it.
        let identity = read(&dir)?;
        Ok(Self { dir, current: Arc::new(ArcSwap::from_pointee(identity)) })
    }

    /// Writes the first identity, or one that replaces what is there.
    ///
    /// # Errors
    /// Where the directory can't be written.
    pub fn create(state_dir: &Path, identity: Identity) -> Result<Self, IdentityError> {
        let dir = state_dir.join("identity");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(io_error("create", state_dir))?;
        write(&dir, &identity)?;
        Ok(Self { dir, current: Arc::new(ArcSwap::from_pointee(identity)) })
    }

    /// What is in force.
    #[must_use]
    pub fn current(&self) -> Arc<Identity> {
        self.current.load_full()
    }

    /// Puts `identity` in force: on the disk first, then for each new connection.
    ///
    /// # Errors
    /// Where the directory can't be written; the old identity stays in force then.
    pub fn replace(&self, identity: Identity) -> Result<(), IdentityError> {
        write(&self.dir, &identity)?;
        self.current.store(Arc::new(identity));
        Ok(())
    }
}

fn beside(dir: &Path) -> (PathBuf, PathBuf) {
    (dir.with_extension("next"), dir.with_extension("old"))
}

fn read(dir: &Path) -> Result<Identity, IdentityError> {
    if !dir.exists() {
        return Err(IdentityError::NotEnrolled(dir.to_owned()));
    }
    let text = |name: &str| {
        let path = dir.join(name);
        fs::read_to_string(&path).map_err(io_error("read", &path))
    };
    let granted = Granted { certificate_pem: text(CERTIFICATE)?, ca_pem: text(AUTHORITIES)? };
    let door = serde_json::from_str(&text(ENROLLMENT)?)
        .map_err(|error| IdentityError::Damaged { path: dir.join(ENROLLMENT), problem: error.to_string() })?;
    Identity::from_parts(dir, text(KEY)?, granted, door)
}

fn write(dir: &Path, identity: &Identity) -> Result<(), IdentityError> {
    let (next, old) = beside(dir);
    let _ = fs::remove_dir_all(&next);
    fs::DirBuilder::new().mode(0o700).create(&next).map_err(io_error("create", &next))?;
    let door = crate::formats::encode(&identity.door).expect("an address is a string");
    for (name, mode, text) in [
        (KEY, 0o600, identity.key_pem.as_bytes()),
        (CERTIFICATE, 0o644, identity.granted.certificate_pem.as_bytes()),
        (AUTHORITIES, 0o644, identity.granted.ca_pem.as_bytes()),
        (ENROLLMENT, 0o644, &door),
    ] {
        let path = next.join(name);
        let written = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).and_then(
            |mut file| {
                file.write_all(text)?;
                file.sync_all()
            },
        );
        written.map_err(io_error("write", &path))?;
    }
    sync_dir(&next)?;
    put_in_place(&next, dir, &old)?;
    sync_dir(dir.parent().unwrap_or(dir))?;
    // Only now is the one before not needed any more, whatever happens.
    let _ = fs::remove_dir_all(&next);
    let _ = fs::remove_dir_all(&old);
    Ok(())
}

/// Exchanges the directories in one step where the file system can; otherwise by two renames, which
/// [`Identities::load`] completes after a crash.
fn put_in_place(next: &Path, dir: &Path, old: &Path) -> Result<(), IdentityError> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    if dir.exists() {
        if renameat_with(CWD, next, CWD, dir, RenameFlags::EXCHANGE).is_ok() {
            return Ok(());
        }
        let _ = fs::remove_dir_all(old);
        fs::rename(dir, old).map_err(io_error("set aside", dir))?;
    }
    fs::rename(next, dir).map_err(io_error("put in place", dir))
}

fn sync_dir(dir: &Path) -> Result<(), IdentityError> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync", dir))
}

#[cfg(test)]
pub(crate) mod tests;
