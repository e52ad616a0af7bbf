//! `upfleet init`: a new controller's authority, certificate, store and first admin.
//!
//! It refuses to touch a directory that holds any of them: what is there may be a fleet's only key.

use std::path::PathBuf;

use upfleet_domain::{digest::Digest, id::UserId};

use crate::{
    auth::Identity,
    ca::{self, Ca, CaError},
    clock::Clock,
    files::{self, FileError},
    store::{AuditRecord, CertificateRecord, Change, Role, Store, StoreError, Subject, sqlite},
    tls::{self, TlsError},
};

/// Where things lie in a controller's data directory.
#[derive(Clone, Debug)]
pub struct DataDir(pub PathBuf);

impl DataDir {
    /// The store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        sqlite::path(&self.0)
    }

    /// The artifacts' bytes.
    #[must_use]
    pub fn artifacts(&self) -> PathBuf {
        self.0.join("artifacts")
    }

    /// The authority's certificate and key.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.0.join("ca")
    }

    /// The controller's own certificate and key.
    #[must_use]
    pub fn tls(&self) -> PathBuf {
        self.0.join("tls")
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.0.join("controller.toml")
    }

    /// What is true of the running controller only.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.0.join("run")
    }
}

/// What to make.
#[derive(Clone, Debug)]
pub struct Init {
    /// DNS names and IP addresses by which agents and people reach the controller; the first is told to them.
    pub names: Vec<String>,
    /// The data directory.
    pub data: DataDir,
    /// The first admin.
    pub admin: UserId,
}

/// What was made, for the first context of the command line.
pub struct Initialised {
    /// The authority's certificate.
    pub ca_pem: String,
    /// SHA-256 of the authority's public key.
    pub pin: Digest,
    /// The admin's certificate.
    pub admin_certificate_pem: String,
    /// The admin's key; kept nowhere else.
    pub admin_key_pem: String,
}

/// Why a controller could not be made. All are the operator's to mend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// Something is there already.
    #[error("could not initialise `{}`: it holds a controller already", path.display())]
    Exists {
        /// What is there.
        path: PathBuf,
    },
    /// No name was given.
    #[error("could not initialise a controller without a name to reach it by")]
    NoName,
    /// A file can't be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The authority can't be made.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The controller's certificate can't be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The store can't be made.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes a controller's data directory.
///
/// # Errors
/// Where one is there already, no name is given, or something can't be written.
pub async fn init(wanted: &Init, clock: &Clock) -> Result<Initialised, InitError> {
    let data = &wanted.data;
    let host = wanted.names.first().ok_or(InitError::NoName)?;
    for path in [data.ca(), data.tls(), data.store(), data.config()] {
        if path.exists() {
            return Err(InitError::Exists { path });
        }
    }
    files::private_dir(&data.0)?;
    let now = clock.now();
    let authority = Ca::create(&data.ca(), now)?;
    let server = tls::store_new(&authority, &data.tls(), &wanted.names, now)?;
    files::write(&data.config(), default_config(host).as_bytes(), files::PRIVATE)?;

    let (key, proven) = ca::new_key()?;
    let admin =
        authority.issue(&Identity::User(wanted.admin.clone()), &[], &proven, now, ca::USER_LIFETIME)?;
    let store = sqlite::SqliteStore::open(&data.0).await?;
    let certificate = CertificateRecord {
        serial: admin.serial.clone(),
        subject: Subject::User { id: wanted.admin.clone(), role: Role::Admin },
        issued: now,
        expires: admin.expire_time,
        revoked: None,
        suspended: false,
        creator: "init".to_owned(),
    };
    let audit = AuditRecord {
        sequence: 0,
        actor: "init".to_owned(),
        request_id: String::new(),
        action: "controller.init".to_owned(),
        object: format!("users/{}", wanted.admin),
        before: serde_json::Value::Null,
        after: serde_json::json!({ "serial": admin.serial, "role": "admin", "names": wanted.names }),
        time: now,
    };
    let changes = vec![tls::record(&server), Change::CreateCertificate(certificate), Change::Audit(audit)];
    store.commit(changes).await?;
    store.close().await;
    Ok(Initialised {
        ca_pem: authority.pem().to_owned(),
        pin: authority.pin(),
        admin_certificate_pem: admin.chain_pem,
        admin_key_pem: key.serialize_pem(),
    })
}

fn default_config(host: &str) -> String {
    let host = toml::Value::String(host.to_owned());
    format!(
        "# The controller's configuration; `upfleet serve` reads it, flags override it.\n\
         # The name that agents and enrollment tokens are told.\nhost = {host}\n\n\
         # api = \"0.0.0.0:7443\"\n# enroll = \"0.0.0.0:7444\"\n# metrics = \"127.0.0.1:7480\"\n"
    )
}
