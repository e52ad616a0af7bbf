//! ArtifactService's download without a copy: the general encoder would copy each piece once more on its way.
//!
//! It decides nothing: the request goes to the same method, and what that says is put into the same bytes on the wire.
//! All other methods go to the general service.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use http_body::Frame;
use http_body_util::{BodyExt as _, Limited};
use prost::{
    Message as _,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint},
};
use tokio_stream::Stream;
use tonic::{Status, body::Body, metadata::MetadataMap, server::NamedService};
use tower::Service;
use upfleet_api::v1::{
    DownloadArtifactRequest, DownloadArtifactResponse, artifact_service_server::ArtifactService,
    artifact_service_server::ArtifactServiceServer,
};

use super::Api;

const METHOD: &str = "/upfleet.v1.ArtifactService/DownloadArtifact";
/// A request has a digest and three numbers.
const REQUEST: usize = 4096;
/// A flag and four bytes of length stand before each message.
const PREFIX: usize = 5;
/// The field `data` of the response.
const DATA: u32 = 2;

/// ArtifactService; see the module.
#[derive(Clone)]
pub struct Uncopied {
    general: ArtifactServiceServer<Api>,
    api: Api,
}

impl Uncopied {
    /// Puts itself before `general`, which serves the same `api`.
    #[must_use]
    pub fn new(general: ArtifactServiceServer<Api>, api: Api) -> Self {
        Self { general, api }
    }
}

impl NamedService for Uncopied {
    const NAME: &'static str = <ArtifactServiceServer<Api> as NamedService>::NAME;
}

impl Service<http::Request<Body>> for Uncopied {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != METHOD {
            return Box::pin(self.general.call(request));
        }
        let api = self.api.clone();
        Box::pin(async move { Ok(download(&api, request).await.unwrap_or_else(|status| status.into_http())) })
    }
}

async fn download(api: &Api, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, REQUEST).collect().await;
    let body =
        body.map_err(|error| Status::resource_exhausted(format!("could not read the request: {error}")))?;
    let message = decode(&body.to_bytes())?;
    let request =
        tonic::Request::from_parts(MetadataMap::from_headers(head.headers), head.extensions, message);
    let messages = api.download_artifact(request).await?.into_inner();
    let mut response = http::Response::new(Body::new(Messages { messages, data: None, ended: false }));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}

fn decode(body: &[u8]) -> Result<DownloadArtifactRequest, Status> {
    let [compressed, a, b, c, d, message @ ..] = body else {
        return Err(Status::invalid_argument("the request has no message"));
    };
    if *compressed != 0 {
        return Err(Status::unimplemented("the request is compressed"));
    }
    if u32::from_be_bytes([*a, *b, *c, *d]) as usize != message.len() {
        return Err(Status::invalid_argument("the request is not one message"));
    }
    DownloadArtifactRequest::decode(message)
        .map_err(|error| Status::invalid_argument(format!("the request is malformed: {error}")))
}

/// All of a message up to the bytes of its `data`, which come last: a reader takes fields in any order.
fn head(message: &DownloadArtifactResponse) -> Bytes {
    let length = message.data.len();
    let others = DownloadArtifactResponse { data: Bytes::new(), ..*message };
    // The key of `data` fits one byte.
    let size = others.encoded_len() + 1 + encoded_len_varint(length as u64) + length;
    let mut head = BytesMut::with_capacity(PREFIX + size - length);
    head.put_u8(0);
    head.put_u32(u32::try_from(size).unwrap_or(u32::MAX));
    others.encode(&mut head).expect("a growing buffer has room");
    encode_key(DATA, WireType::LengthDelimited, &mut head);
    encode_varint(length as u64, &mut head);
    head.freeze()
}

/// The response's body: each message in two parts, so that its bytes stay where they were read.
struct Messages<S> {
    messages: S,
    data: Option<Bytes>,
    ended: bool,
}

impl<S> http_body::Body for Messages<S>
where
    S: Stream<Item = Result<DownloadArtifactResponse, Status>> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(data) = self.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let status = match ready!(Pin::new(&mut self.messages).poll_next(cx)) {
            Some(Ok(message)) => {
                let head = head(&message);
                self.data = Some(message.data).filter(|data| !data.is_empty());
                return Poll::Ready(Some(Ok(Frame::data(head))));
            }
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.ended = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_message_in_two_parts_is_the_same(
            offset: u64, size_bytes: u64, data in proptest::collection::vec(any::<u8>(), 0..70_000),
        ) {
            let message = DownloadArtifactResponse { offset, data: data.into(), size_bytes };
            let whole = [head(&message), message.data.clone()].concat();
            prop_assert_eq!(whole[0], 0);
            prop_assert_eq!(u32::from_be_bytes(whole[1..5].try_into().unwrap()) as usize, whole.len() - PREFIX);
            prop_assert_eq!(DownloadArtifactResponse::decode(&whole[PREFIX..]).unwrap(), message);
        }

        #[test]
        fn no_request_is_worse_than_refused(body: Vec<u8>) {
            let _ = decode(&body);
        }
    }

    #[test]
    fn a_request_is_read() {
        let request = DownloadArtifactRequest { offset: 7, limit: 9, ..DownloadArtifactRequest::default() };
        let mut body = vec![0, 0, 0, 0, u8::try_from(request.encoded_len()).unwrap()];
        body.extend(request.encode_to_vec());
        assert_eq!(decode(&body).unwrap(), request);
        assert!(decode(&body[..body.len() - 1]).is_err());
        body[0] = 1;
        assert!(decode(&body).is_err());
    }
}
