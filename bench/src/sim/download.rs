//! A real download over a connection of its own, as an agent fetches: hashed, and thrown away.

use std::sync::Arc;

use anyhow::Context as _;
use rustls::ClientConfig;
use sha2::{Digest as _, Sha256};
use upfleet_api::v1::{DownloadArtifactRequest, artifact_service_client::ArtifactServiceClient};
use upfleet_domain::digest::Digest;

use crate::api;

/// Fetches the artifact and checks it; gives its length.
pub(super) async fn fetch(address: &str, tls: Arc<ClientConfig>, digest: Digest) -> anyhow::Result<u64> {
    let channel = api::channel(address, tls).await?;
    let mut client = ArtifactServiceClient::new(channel).max_decoding_message_size(2 << 20);
    let request = DownloadArtifactRequest { digest: Some((&digest).into()), ..Default::default() };
    let mut stream = client.download_artifact(request).await?.into_inner();
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    while let Some(piece) = stream.message().await? {
        hash.update(&piece.data);
        bytes += piece.data.len() as u64;
    }
    let found: [u8; 32] = hash.finalize().into();
    (found == digest.0).then_some(bytes).context("the bytes that were served have another digest")
}
