//! The controller's own store as a source: by range, on a connection of its own.

use tonic::{Code, Status, transport::Channel};
use upfleet_api::{
    reason,
    v1::{DownloadArtifactRequest, artifact_service_client::ArtifactServiceClient},
};
use upfleet_domain::{
    reason::{Reason, ReasonCode},
    release::ArtifactRef,
};

use super::{
    body::{Body, Fail, Opened},
    message::{MAX_MESSAGE, MessageSize},
};
use crate::{error::chain, transport::Connector};

/// A message's own fields beside its bytes.
const OVERHEAD: usize = 4096;

/// The controller as a source. The connection carries one download and is used until it fails.
pub(super) struct Store {
    connector: Connector,
    connection: Option<Channel>,
}

impl Store {
    pub(super) fn new(connector: Connector) -> Self {
        Self { connector, connection: None }
    }

    /// The next attempt makes a new connection.
    pub(super) fn disconnect(&mut self) {
        self.connection = None;
    }

    /// Asks for the bytes of `artifact` from `offset` on.
    pub(super) async fn open(
        &mut self,
        artifact: &ArtifactRef,
        offset: u64,
        message: MessageSize,
    ) -> Result<Opened, Fail> {
        let channel = match &self.connection {
            Some(channel) => channel.clone(),
            None => {
                let made = self.connector.connect_bulk().await;
                self.connection.insert(made.map_err(|error| Fail::Retry(chain(&error)))?).clone()
            }
        };
        let limit = message.run().unwrap_or(0);
        let end = if limit == 0 { artifact.size } else { artifact.size.min(offset + limit) };
        let mut client =
            ArtifactServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE as usize + OVERHEAD);
        let request = DownloadArtifactRequest {
            digest: Some((&artifact.sha256).into()),
            offset,
            // To the end, also where that is not the manifest's: a source that has more is a wrong one.
            limit: if end == artifact.size { 0 } else { limit },
            message_bytes: message.bytes(),
        };
        let stream = client.download_artifact(request).await.map_err(|status| fail(&status))?.into_inner();
        Ok(Opened { body: Body::Controller(Box::new(stream)), offset, end })
    }
}

/// Reads all of `artifact` once, and keeps nothing.
pub(super) async fn discard(connector: Option<Connector>, artifact: ArtifactRef) -> Result<(), String> {
    let mut store = Store::new(connector.ok_or_else(|| "there is no controller".to_owned())?);
    let told = |fail| match fail {
        Fail::Retry(problem) => problem,
        Fail::Final(reason) => reason.to_string(),
    };
    let mut opened = store.open(&artifact, 0, MessageSize::new(None)).await.map_err(told)?;
    let mut length = 0;
    while let Some(chunk) = opened.body.next(length).await.map_err(told)? {
        length += chunk.len() as u64;
    }
    if length == artifact.size { Ok(()) } else { Err(format!("{length} bytes came")) }
}

/// What a status means for the source.
pub(super) fn fail(status: &Status) -> Fail {
    let told = reason::from_status(status);
    let problem = crate::transport::told(status);
    match status.code() {
        Code::NotFound
        | Code::InvalidArgument
        | Code::OutOfRange
        | Code::DataLoss
        | Code::Unimplemented
        | Code::FailedPrecondition => {
            let code = ReasonCode::FetchFailed;
            Fail::Final(told.unwrap_or_else(|| Reason::new(code).with("problem", problem)))
        }
        _ => Fail::Retry(problem),
    }
}
