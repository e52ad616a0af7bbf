//! A session's bytes as they are on the wire: kept while they pass between an agent and its controller, or played to one
//! of them. The bytes are never decoded on their way, so that what a side does not know passes, too.

use std::{
    convert::Infallible,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::{Buf as _, BufMut as _, Bytes};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{BoxFuture, Service, http},
    server::{NamedService, StreamingService},
    transport::{Channel, Server, server::Connected},
};
use upfleet_agent::{config::ControllerConfig, identity::Identities, transport::Connector};

use super::transcript::{Line, Side};

/// The one method of a session.
const SESSION: &str = "/upfleet.v1.AgentService/Session";

/// Messages as bytes.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// A way to the controller with a node's identity.
pub async fn connect(address: &str, state: &Path) -> Channel {
    let identities = Identities::load(state).unwrap();
    let config = ControllerConfig { address: address.to_owned(), server_name: Some("localhost".to_owned()) };
    Connector::new(config, identities).connect().await.unwrap()
}

/// Opens a session of bytes: what is sent goes to the controller, what it says is received.
pub async fn session(
    channel: Channel,
    path: &str,
    said: mpsc::Receiver<Bytes>,
) -> Result<Streaming<Bytes>, Status> {
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(32 * 1024 * 1024);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = path.parse().expect("a method's path");
    Ok(client.streaming(Request::new(ReceiverStream::new(said)), path, Raw).await?.into_inner())
}

/// The same for the session's own method.
pub async fn agent_session(channel: Channel, said: mpsc::Receiver<Bytes>) -> Streaming<Bytes> {
    session(channel, SESSION, said).await.unwrap()
}

/// Who answers an agent that opens a session.
pub trait Answers: Send + Sync + 'static {
    /// Takes what the agent says, and gives what it is told; `upstream` leads to the controller.
    fn session(&self, agent: Streaming<Bytes>, upstream: Channel, told: mpsc::Sender<Result<Bytes, Status>>);
}

/// Stands between an agent and its controller, with the controller's certificate and the node's identity.
pub struct Between {
    pub address: String,
    serving: JoinHandle<()>,
}

impl Drop for Between {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[derive(Clone)]
struct Pass<const BYTES: bool> {
    controller: String,
    state: PathBuf,
    answers: Arc<dyn Answers>,
}

impl Between {
    /// `data` is the data directory of the controller at `controller`, `state` the state directory of the node.
    pub async fn start(controller: &str, data: &Path, state: &Path, answers: Arc<dyn Answers>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("localhost:{}", listener.local_addr().unwrap().port());
        let (controller, state) = (controller.to_owned(), state.to_owned());
        let agents =
            Pass::<false> { controller: controller.clone(), state: state.clone(), answers: answers.clone() };
        let artifacts = Pass::<true> { controller, state, answers };
        let incoming = accept(listener, &data.join("tls"));
        let serving = tokio::spawn(async move {
            let server = Server::builder().add_service(agents).add_service(artifacts);
            server.serve_with_incoming(ReceiverStream::new(incoming)).await.unwrap();
        });
        Self { address, serving }
    }
}

impl<const BYTES: bool> NamedService for Pass<BYTES> {
    const NAME: &'static str = if BYTES { "upfleet.v1.ArtifactService" } else { "upfleet.v1.AgentService" };
}

impl<const BYTES: bool> Service<http::Request<Body>> for Pass<BYTES> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = Call { pass: self.clone(), path: request.uri().path().to_owned() };
        Box::pin(async move { Ok(tonic::server::Grpc::new(Raw).streaming(call, request).await) })
    }
}

struct Call<const BYTES: bool> {
    pass: Pass<BYTES>,
    path: String,
}

impl<const BYTES: bool> StreamingService<Bytes> for Call<BYTES> {
    type Response = Bytes;
    type ResponseStream = ReceiverStream<Result<Bytes, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (pass, path) = (self.pass.clone(), self.path.clone());
        Box::pin(async move {
            let upstream = connect(&pass.controller, &pass.state).await;
            let (told, answer) = mpsc::channel(64);
            if path == SESSION {
                pass.answers.session(request.into_inner(), upstream, told);
            } else {
                pass_on(request.into_inner(), upstream, path, told, |_, _| ());
            }
            Ok(Response::new(ReceiverStream::new(answer)))
        })
    }
}

/// Passes both directions on, and shows each message.
fn pass_on(
    mut agent: Streaming<Bytes>,
    upstream: Channel,
    path: String,
    told: mpsc::Sender<Result<Bytes, Status>>,
    show: impl Fn(Side, &Bytes) + Clone + Send + 'static,
) {
    let (say, said) = mpsc::channel(64);
    let shown = show.clone();
    tokio::spawn(async move {
        while let Ok(Some(message)) = agent.message().await {
            shown(Side::Agent, &message);
            if say.send(message).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        let mut controller = match session(upstream, &path, said).await {
            Ok(controller) => controller,
            Err(status) => return drop(told.send(Err(status)).await),
        };
        loop {
            let message = match controller.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(status) => return drop(told.send(Err(status)).await),
            };
            show(Side::Controller, &message);
            if told.send(Ok(message)).await.is_err() {
                return;
            }
        }
    });
}

/// Keeps all that passes.
#[derive(Clone, Default)]
pub struct Recorder(Arc<Mutex<Vec<Line>>>);

impl Recorder {
    pub fn lines(&self) -> Vec<Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Answers for Recorder {
    fn session(&self, agent: Streaming<Bytes>, upstream: Channel, told: mpsc::Sender<Result<Bytes, Status>>) {
        let kept = self.0.clone();
        pass_on(agent, upstream, SESSION.to_owned(), told, move |from, bytes| {
            let mut lines = kept.lock().unwrap_or_else(PoisonError::into_inner);
            lines.push(Line { from, bytes: bytes.clone() });
        });
    }
}

fn accept(listener: TcpListener, tls: &Path) -> mpsc::Receiver<io::Result<Peer>> {
    let chain = CertificateDer::pem_file_iter(tls.join("server.crt")).unwrap().collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_file(tls.join("server.key")).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.unwrap(), key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, sender) = (acceptor.clone(), sender.clone());
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(tcp).await {
                    let _ = sender.send(Ok(Peer(stream))).await;
                }
            });
        }
    });
    receiver
}

struct Peer(TlsStream<TcpStream>);

impl Connected for Peer {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Peer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
