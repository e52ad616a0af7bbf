//! Bytes on their way from a source, whatever the protocol.

use bytes::Bytes;
use tonic::Streaming;
use upfleet_api::v1::DownloadArtifactResponse;
use upfleet_domain::reason::Reason;

/// Why a source gave no bytes, or no more.
#[derive(Debug)]
pub(super) enum Fail {
    /// It may go better next time.
    Retry(String),
    /// Asking this source again makes no sense.
    Final(Reason),
}

/// A source that began to give bytes.
pub(super) struct Opened {
    pub(super) body: Body,
    /// Where they begin: the offset that was asked for, or 0 where the source starts over.
    pub(super) offset: u64,
    /// Where they end: the artifact's end, or where the next request goes on.
    pub(super) end: u64,
}

pub(super) enum Body {
    Https(reqwest::Response),
    Controller(Box<Streaming<DownloadArtifactResponse>>),
}

impl Body {
    /// The next bytes; `None` at a proper end.
    pub(super) async fn next(&mut self, expected_offset: u64) -> Result<Option<Bytes>, Fail> {
        match self {
            Self::Https(response) => {
                let chunk = response.chunk().await;
                chunk.map_err(|error| Fail::Retry(crate::error::chain(&error.without_url())))
            }
            Self::Controller(stream) => {
                let message = stream.message().await.map_err(|status| super::controller::fail(&status))?;
                match message {
                    Some(part) if part.offset != expected_offset => {
                        Err(Fail::Retry(format!("byte {} came, not {expected_offset}", part.offset)))
                    }
                    part => Ok(part.map(|part| part.data)),
                }
            }
        }
    }
}
