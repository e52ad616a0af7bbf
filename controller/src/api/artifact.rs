//! ArtifactService.

use std::{pin::Pin, time::Duration};

use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming, async_trait};
use upfleet_api::{convert, v1};
use upfleet_domain::{digest::Digest, reason::Reason};
use v1::{artifact_service_server::ArtifactService, upload_artifact_request::Part};

use super::{Answer, Api, answer, names, opened, page, refuse, show};
use crate::{
    blobs::PIECE,
    ops::{ArtifactView, Wanted},
    tls::Peer,
};

/// How long an uploader may be silent before its upload is closed; it can be resumed.
const SILENCE: Duration = Duration::from_secs(60);

fn shown(view: &ArtifactView) -> v1::Artifact {
    show::artifact(&view.artifact, view.releases.clone())
}

fn digest(wire: Option<v1::Digest>, field: &str) -> Result<Digest, Status> {
    convert::field(wire, field).map_err(refuse)
}

/// The next part of an upload; `None` at the end of the stream.
async fn part(stream: &mut Streaming<v1::UploadArtifactRequest>) -> Result<Option<Part>, Status> {
    let message = tokio::time::timeout(SILENCE, stream.message()).await;
    let message = message.map_err(|_| Status::deadline_exceeded("nothing was uploaded for 60 seconds"))??;
    match message {
        None => Ok(None),
        Some(v1::UploadArtifactRequest { part: Some(part) }) => Ok(Some(part)),
        Some(_) => Err(refuse(convert::invalid("part", "it is required"))),
    }
}

#[async_trait]
impl ArtifactService for Api {
    type DownloadArtifactStream =
        Pin<Box<dyn Stream<Item = Result<v1::DownloadArtifactResponse, Status>> + Send>>;

    async fn upload_artifact(
        &self,
        request: Request<Streaming<v1::UploadArtifactRequest>>,
    ) -> Answer<v1::UploadArtifactResponse> {
        let (caller, mut stream) = opened(request)?;
        let Some(Part::Start(start)) = part(&mut stream).await? else {
            return Err(refuse(convert::invalid("part", "`start` must be the first message")));
        };
        let digest = digest(start.digest, "start.digest")?;
        let opened = self.0.open_upload(digest, start.size_bytes, start.offset).await;
        let mut upload = opened.map_err(refuse)?;
        loop {
            match part(&mut stream).await? {
                Some(Part::Data(data)) if data.len() <= PIECE => {
                    upload.write(data).await.map_err(|error| refuse(error.reason()))?;
                }
                Some(Part::Data(_)) => {
                    return Err(refuse(convert::invalid("data", "a message has at most 1 MiB of bytes")));
                }
                Some(Part::Commit(_)) => {
                    let committed = self.0.commit_upload(&caller, upload).await;
                    return answer(committed, |view| v1::UploadArtifactResponse {
                        artifact: Some(shown(&view)),
                    });
                }
                Some(Part::Start(_)) => {
                    return Err(refuse(convert::invalid("part", "`start` is the first message only")));
                }
                // What came so far is kept; the upload can be resumed there.
                None => return Err(Status::cancelled("the upload ended without `commit`")),
            }
        }
    }

    async fn get_artifact_upload(
        &self,
        request: Request<v1::GetArtifactUploadRequest>,
    ) -> Answer<v1::GetArtifactUploadResponse> {
        let (_, request) = opened(request)?;
        let progress = self.0.upload_progress(digest(request.digest, "digest")?).await;
        answer(progress, |(offset, view)| v1::GetArtifactUploadResponse {
            offset,
            artifact: view.as_ref().map(shown),
        })
    }

    async fn download_artifact(
        &self,
        request: Request<v1::DownloadArtifactRequest>,
    ) -> Answer<Self::DownloadArtifactStream> {
        let cut = request.extensions().get::<Peer>().map(|peer| peer.kill.clone()).unwrap_or_default();
        let (caller, request) = opened(request)?;
        let wanted = Wanted {
            digest: digest(request.digest, "digest")?,
            offset: request.offset,
            limit: request.limit,
            piece: request.message_bytes,
        };
        let pieces = self.0.download(&caller, wanted, cut).await.map_err(refuse)?;
        let shown = pieces.map(|piece: Result<_, Reason>| {
            piece.map_err(refuse).map(|piece: crate::ops::Piece| v1::DownloadArtifactResponse {
                offset: piece.offset,
                data: piece.data,
                size_bytes: piece.size,
            })
        });
        Ok(Response::new(Box::pin(shown)))
    }

    async fn get_artifact(
        &self,
        request: Request<v1::GetArtifactRequest>,
    ) -> Answer<v1::GetArtifactResponse> {
        let (_, request) = opened(request)?;
        let digest = names::id(&request.name, "artifacts", "name").map_err(refuse)?;
        answer(self.0.artifact(&digest).await, |view| v1::GetArtifactResponse {
            artifact: Some(shown(&view)),
        })
    }

    async fn list_artifacts(
        &self,
        request: Request<v1::ListArtifactsRequest>,
    ) -> Answer<v1::ListArtifactsResponse> {
        let (_, request) = opened(request)?;
        let page = page::page(request.page_size, &request.page_token, &"artifacts")?;
        let found = self.0.list_artifacts(&page).await;
        page::listed(found, &"artifacts", shown, |artifacts, next_page_token| v1::ListArtifactsResponse {
            artifacts,
            next_page_token,
        })
    }

    async fn delete_artifact(
        &self,
        request: Request<v1::DeleteArtifactRequest>,
    ) -> Answer<v1::DeleteArtifactResponse> {
        let (caller, request) = opened(request)?;
        let digest = names::id(&request.name, "artifacts", "name").map_err(refuse)?;
        answer(self.0.delete_artifact(&caller, &digest).await, |()| v1::DeleteArtifactResponse {})
    }
}
