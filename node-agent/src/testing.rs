//! A scripted controller for this crate's tests: real TLS, real gRPC, and a test that says what it answers.

pub(crate) mod cutter;

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, atomic::AtomicU64, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use rustls::{ServerConfig, server::WebPkiClientVerifier};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::server::Connected};
use upfleet_api::v1::{
    self, agent_service_server::AgentService, artifact_service_server::ArtifactService,
    enrollment_service_server::EnrollmentService, user_service_server::UserService,
};

use crate::{
    config::ControllerConfig,
    identity::{Identities, tests::TestCa},
    transport::{
        Connector,
        tls::{provider, roots},
    },
};

pub(crate) const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// A session as the controller sees it.
pub(crate) struct Opened {
    pub(crate) inbound: Streaming<v1::SessionRequest>,
    pub(crate) outbound: mpsc::Sender<Result<v1::SessionResponse, Status>>,
}

impl Opened {
    /// The next message; which JVMs run on this machine is told whenever it is known, and is no concern of a test.
    pub(crate) async fn next(&mut self) -> v1::session_request::Message {
        loop {
            let message = self.inbound.message().await.unwrap().unwrap().message.unwrap();
            if !matches!(message, v1::session_request::Message::JvmInventory(_)) {
                return message;
            }
        }
    }

    pub(crate) async fn send(&self, message: v1::session_response::Message) {
        self.outbound.send(Ok(v1::SessionResponse { message: Some(message) })).await.unwrap();
    }
}

/// What the controller does, and what it saw.
pub(crate) struct Script {
    pub(crate) ca: TestCa,
    /// The whole artifact.
    pub(crate) artifact: Vec<u8>,
    /// Bytes after which each download in turn is cut; the last entries are used up first.
    pub(crate) cuts: Mutex<Vec<usize>>,
    /// Offsets and message sizes that downloads asked for.
    pub(crate) asked: Mutex<Vec<(u64, u32)>>,
    /// Secrets that came with enrollments.
    pub(crate) tokens: Mutex<Vec<String>>,
    /// Whether a token is refused.
    pub(crate) refuse: Mutex<Option<Status>>,
    /// How often a certificate was tried out.
    pub(crate) proofs: AtomicU64,
    sessions: mpsc::Sender<Opened>,
}

pub(crate) struct FakeController {
    pub(crate) address: SocketAddr,
    pub(crate) script: Arc<Script>,
    pub(crate) sessions: mpsc::Receiver<Opened>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for FakeController {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl FakeController {
    pub(crate) async fn start(artifact: Vec<u8>) -> Self {
        let (sender, sessions) = mpsc::channel(8);
        let script = Arc::new(Script {
            ca: TestCa::new(),
            artifact,
            cuts: Mutex::default(),
            asked: Mutex::default(),
            tokens: Mutex::default(),
            refuse: Mutex::default(),
            proofs: AtomicU64::new(0),
            sessions: sender,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = accept(listener, &script.ca);
        let door = Door(script.clone());
        let serving = tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(v1::agent_service_server::AgentServiceServer::new(door.clone()))
                .add_service(v1::user_service_server::UserServiceServer::new(door.clone()))
                .add_service(v1::enrollment_service_server::EnrollmentServiceServer::new(door.clone()))
                .add_service(v1::artifact_service_server::ArtifactServiceServer::new(door))
                .serve_with_incoming(ReceiverStream::new(incoming))
                .await
                .unwrap();
        });
        Self { address, script, sessions, serving }
    }

    /// An enrolled agent's way here, with its identity in `state_dir`.
    pub(crate) fn connector(&self, state_dir: &std::path::Path, life: Duration) -> Connector {
        let identity = self.script.ca.node("web-01", life);
        let identities = Identities::create(state_dir, identity).unwrap();
        Connector::new(self.config(), identities)
    }

    pub(crate) fn config(&self) -> ControllerConfig {
        ControllerConfig { address: self.address.to_string(), server_name: Some("localhost".into()) }
    }
}

/// A TLS configuration for `localhost` that takes nodes and strangers.
pub(crate) fn server_config(ca: &TestCa, alpn: &[u8]) -> Arc<ServerConfig> {
    let trusted = Arc::new(roots(std::slice::from_ref(&ca.der)).unwrap());
    let verifier = WebPkiClientVerifier::builder_with_provider(trusted, provider());
    let verifier = verifier.allow_unauthenticated().build().unwrap();
    let (leaf, key) = ca.server("localhost");
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![leaf, ca.der.clone()], key)
        .unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    Arc::new(config)
}

pub(crate) fn accept(listener: TcpListener, ca: &TestCa) -> mpsc::Receiver<io::Result<Peer>> {
    let acceptor = TlsAcceptor::from(server_config(ca, b"h2"));
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

pub(crate) struct Peer(TlsStream<TcpStream>);

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

#[derive(Clone)]
struct Door(Arc<Script>);

#[tonic::async_trait]
impl AgentService for Door {
    type SessionStream = ReceiverStream<Result<v1::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outbound, stream) = mpsc::channel(8);
        let _ = self.0.sessions.send(Opened { inbound: request.into_inner(), outbound }).await;
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[tonic::async_trait]
impl UserService for Door {
    async fn get_caller(
        &self,
        _: Request<v1::GetCallerRequest>,
    ) -> Result<Response<v1::GetCallerResponse>, Status> {
        self.0.proofs.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(v1::GetCallerResponse { name: "nodes/web-01".into(), ..Default::default() }))
    }

    async fn issue_user_certificate(
        &self,
        _: Request<v1::IssueUserCertificateRequest>,
    ) -> Result<Response<v1::IssueUserCertificateResponse>, Status> {
        Err(Status::unimplemented("test"))
    }

    async fn list_users(
        &self,
        _: Request<v1::ListUsersRequest>,
    ) -> Result<Response<v1::ListUsersResponse>, Status> {
        Err(Status::unimplemented("test"))
    }

    async fn revoke_user(
        &self,
        _: Request<v1::RevokeUserRequest>,
    ) -> Result<Response<v1::RevokeUserResponse>, Status> {
        Err(Status::unimplemented("test"))
    }
}

#[tonic::async_trait]
impl EnrollmentService for Door {
    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        let request = request.into_inner();
        self.0.tokens.lock().unwrap().push(request.token);
        if let Some(status) = self.0.refuse.lock().unwrap().clone() {
            return Err(status);
        }
        let granted = self.0.ca.sign_node(&request.csr_der, &request.node, WEEK);
        Ok(Response::new(v1::EnrollResponse {
            name: format!("nodes/{}", request.node),
            certificate_pem: granted.certificate_pem,
            ca_pem: granted.ca_pem,
            controller_address: "0.0.0.0:7443".into(),
            renew_time: None,
        }))
    }

    async fn renew_expired(
        &self,
        request: Request<v1::RenewExpiredRequest>,
    ) -> Result<Response<v1::RenewExpiredResponse>, Status> {
        let granted = self.0.ca.sign_node(&request.into_inner().csr_der, "web-01", WEEK);
        Ok(Response::new(v1::RenewExpiredResponse {
            certificate_pem: granted.certificate_pem,
            ca_pem: granted.ca_pem,
            renew_time: None,
        }))
    }
}

#[tonic::async_trait]
impl ArtifactService for Door {
    type DownloadArtifactStream = ReceiverStream<Result<v1::DownloadArtifactResponse, Status>>;

    async fn download_artifact(
        &self,
        request: Request<v1::DownloadArtifactRequest>,
    ) -> Result<Response<Self::DownloadArtifactStream>, Status> {
        let request = request.into_inner();
        self.0.asked.lock().unwrap().push((request.offset, request.message_bytes));
        if self.0.artifact.is_empty() {
            return Err(Status::not_found("no such artifact"));
        }
        let cut = self.0.cuts.lock().unwrap().pop();
        let start = usize::try_from(request.offset).unwrap();
        let whole = self.0.artifact.len();
        let wanted = match usize::try_from(request.limit).unwrap() {
            0 => whole,
            limit => (start + limit).min(whole),
        };
        let end = cut.map_or(wanted, |cut| start + cut).min(wanted);
        let (sender, stream) = mpsc::channel(4);
        let (bytes, size) = (self.0.artifact[start..end].to_vec(), self.0.artifact.len() as u64);
        let step = usize::try_from(request.message_bytes).unwrap();
        tokio::spawn(async move {
            for (index, data) in bytes.chunks(step).enumerate() {
                let offset = (start + index * step) as u64;
                let data = data.to_vec().into();
                let part = v1::DownloadArtifactResponse { offset, data, size_bytes: size };
                if sender.send(Ok(part)).await.is_err() {
                    return;
                }
            }
            if cut.is_some() {
                let _ = sender.send(Err(Status::unavailable("cut"))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn upload_artifact(
        &self,
        _: Request<Streaming<v1::UploadArtifactRequest>>,
    ) -> Result<Response<v1::UploadArtifactResponse>, Status> {
        Err(Status::unimplemented("test"))
    }

    async fn get_artifact_upload(
        &self,
        _: Request<v1::GetArtifactUploadRequest>,
    ) -> Result<Response<v1::GetArtifactUploadResponse>, Status> {
        Err(Status::unimplemented("test"))
    }

    async fn get_artifact(
        &self,
        _: Request<v1::GetArtifactRequest>,
    ) -> Result<Response<v1::GetArtifactResponse>, Status> {
        Err(Status::unimplemented("test"))
    }

    async fn list_artifacts(
        &self,
        _: Request<v1::ListArtifactsRequest>,
    ) -> Result<Response<v1::ListArtifactsResponse>, Status> {
        Err(Status::unimplemented("test"))
    }

    async fn delete_artifact(
        &self,
        _: Request<v1::DeleteArtifactRequest>,
    ) -> Result<Response<v1::DeleteArtifactResponse>, Status> {
        Err(Status::unimplemented("test"))
    }
}
