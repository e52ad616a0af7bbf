//! Who the simulated nodes are: enrolled as any node is, by a token that is good once, and kept in a file for later runs.

use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path, sync::Arc};

use anyhow::Context as _;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, task::JoinSet};
use tonic::transport::Channel;
use upfleet_api::v1::{self, enrollment_service_client::EnrollmentServiceClient};
use upfleet_domain::token::EnrollmentToken;

use crate::{
    api::{self, Api},
    tls,
};

/// Enrollments under way at once: enough to keep a controller busy, below its limit of streams per connection.
const AT_ONCE: usize = 48;
/// The connections that they share.
const CONNECTIONS: usize = 4;

/// One node's certificate and key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// The node's name.
    pub node: String,
    /// Its certificate and chain in PEM.
    pub chain: String,
    /// Its key in PEM.
    pub key: String,
}

/// Enrolled nodes and the authority they trust.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Roster {
    /// The authority in PEM.
    pub ca: String,
    /// The nodes.
    pub nodes: Vec<Identity>,
}

/// A key and a request for it in DER.
pub(super) fn request() -> anyhow::Result<(KeyPair, Vec<u8>)> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let der = CertificateParams::default().serialize_request(&key)?.der().to_vec();
    Ok((key, der))
}

impl Roster {
    /// Enrolls `count` nodes named `prefix` and a number from `first` on, with labels.
    ///
    /// # Errors
    /// What the controller says, e.g. where a node of that name is enrolled already.
    pub async fn enroll(
        api: &Api,
        ca: &str,
        names: impl Iterator<Item = String>,
        labels: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let labels: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let first = api.token(&labels).await?.parse::<EnrollmentToken>()?;
        let tls = tls::client(&tls::provider(), &tls::roots(ca.as_bytes())?, None)?;
        let mut doors = Vec::new();
        for _ in 0..CONNECTIONS {
            doors.push(api::channel(&first.address, tls.clone()).await?);
        }
        let slots = Arc::new(Semaphore::new(AT_ONCE));
        let mut tasks = JoinSet::new();
        let mut nodes = Vec::new();
        for (number, node) in names.enumerate() {
            let slot = slots.clone().acquire_owned().await?;
            let (api, door) = (api.clone(), doors[number % doors.len()].clone());
            let labels: Vec<(String, String)> =
                labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            tasks.spawn(async move {
                let _slot = slot;
                one(&api, door, node, &labels).await
            });
            while let Some(done) = tasks.try_join_next() {
                nodes.push(done??);
            }
        }
        while let Some(done) = tasks.join_next().await {
            nodes.push(done??);
        }
        nodes.sort_by(|one, other| one.node.cmp(&other.node));
        Ok(Self { ca: ca.to_owned(), nodes })
    }

    /// Reads the roster of an earlier run.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("could not read `{}`", path.display()))?;
        serde_json::from_slice(&bytes)
            .with_context(|| format!("`{}` is no list of identities", path.display()))
    }

    /// Keeps it for a later run, readable by its owner only: it holds keys.
    ///
    /// # Errors
    /// Where it can't be written.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let mut file = std::fs::File::options();
        let mut file = file.write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(file.write_all(&serde_json::to_vec(self)?)?)
    }
}

async fn one(
    api: &Api,
    door: Channel,
    node: String,
    labels: &[(String, String)],
) -> anyhow::Result<Identity> {
    let labels: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let token: EnrollmentToken = api.token(&labels).await?.parse()?;
    let (key, csr) = request()?;
    let request = v1::EnrollRequest {
        token: token.secret,
        node: node.clone(),
        csr_der: csr.into(),
        platform: Some(super::agent::platform()),
    };
    let enrolled = EnrollmentServiceClient::new(door).enroll(request).await;
    let enrolled = enrolled.with_context(|| format!("could not enroll `{node}`"))?.into_inner();
    Ok(Identity { node, chain: enrolled.certificate_pem, key: key.serialize_pem() })
}
