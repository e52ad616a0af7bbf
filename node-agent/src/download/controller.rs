//! The controller's own store as a source: by range, on a connection of its own.

use tonic::{Code, Status};
use upfleet_api::{
    reason,
    v1::{DownloadArtifactRequest, artifact_service_client::ArtifactServiceClient},
};
use upfleet_domain::{
    digest::Digest,
    reason::{Reason, ReasonCode},
};

use super::body::{Body, Fail, Opened};
use crate::{error::chain, transport::Connector};

/// The largest message, and the first that is tried.
pub(super) const MAX_MESSAGE: u32 = 1024 * 1024;
/// After cuts, messages get smaller down to this: on a bad line, less is lost with each.
pub(super) const MIN_MESSAGE: u32 = 16 * 1024;

/// Asks for the bytes of `digest` from `offset` on.
pub(super) async fn open(
    connector: &Connector,
    digest: Digest,
    offset: u64,
    message_bytes: u32,
) -> Result<Opened, Fail> {
    let channel = connector.connect().await.map_err(|error| Fail::Retry(chain(&error)))?;
    let limit = MAX_MESSAGE as usize + 4096;
    let mut client = ArtifactServiceClient::new(channel).max_decoding_message_size(limit);
    let request = DownloadArtifactRequest { digest: Some((&digest).into()), offset, limit: 0, message_bytes };
    let stream = client.download_artifact(request).await.map_err(|status| fail(&status))?.into_inner();
    Ok(Opened { body: Body::Controller(Box::new(stream)), offset })
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
