//! The controller under test, its callers, and an agent that says what a test tells it to.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};
use upfleet_api::{
    reason::from_status,
    v1::{
        self, agent_service_client::AgentServiceClient, enrollment_service_client::EnrollmentServiceClient,
        node_service_client::NodeServiceClient, release_service_client::ReleaseServiceClient,
        user_service_client::UserServiceClient,
    },
};
use upfleet_domain::{reason::ReasonCode, token::EnrollmentToken};

use crate::{
    ca::Ca,
    clock::Clock,
    init::{DataDir, Init, init},
    serve::{Options, Running, start},
    testing::{channel, client_config_with},
};

/// A key with its certificate chain.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) chain_pem: String,
    pub(super) key_pem: String,
}

impl Identity {
    pub(super) fn shown(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = CertificateDer::pem_slice_iter(self.chain_pem.as_bytes()).map(Result::unwrap).collect();
        (chain, PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).unwrap())
    }
}

pub(super) fn csr(key: &KeyPair) -> Vec<u8> {
    rcgen::CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

/// The reason that a refused call gave.
pub(super) fn code<T: std::fmt::Debug>(answer: Result<T, Status>) -> ReasonCode {
    let status = answer.unwrap_err();
    from_status(&status).unwrap_or_else(|| panic!("{status:?}")).code
}

/// A controller that runs.
pub(super) struct Controller {
    pub(super) dir: tempfile::TempDir,
    pub(super) running: Running,
    pub(super) admin: Identity,
    pub(super) ca: Arc<Ca>,
}

pub(super) fn options(dir: &tempfile::TempDir) -> Options {
    let any = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    Options { data: DataDir(dir.path().join("data")), api: any, enroll: any, metrics: any }
}

impl Controller {
    pub(super) async fn start() -> Self {
        Self::at(Clock::System).await
    }

    pub(super) async fn at(clock: Clock) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir(dir.path().join("data"));
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let wanted = Init { names, data: data.clone(), admin: "root".parse().unwrap() };
        let made = init(&wanted, &clock).await.unwrap();
        let running = start(&options(&dir), clock).await.unwrap();
        let admin = Identity { chain_pem: made.admin_certificate_pem, key_pem: made.admin_key_pem };
        let ca = Arc::new(Ca::load(&data.ca()).unwrap());
        Self { dir, running, admin, ca }
    }

    pub(super) async fn channel(&self, identity: &Identity) -> Channel {
        let config = client_config_with(&self.ca, Some(identity.shown()));
        channel(self.running.endpoints.api, config).await.unwrap()
    }

    pub(super) async fn nodes(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel(&self.admin).await)
    }

    pub(super) async fn releases(&self) -> ReleaseServiceClient<Channel> {
        ReleaseServiceClient::new(self.channel(&self.admin).await)
    }

    pub(super) async fn users(&self) -> UserServiceClient<Channel> {
        UserServiceClient::new(self.channel(&self.admin).await)
    }

    pub(super) async fn enrollment(&self) -> EnrollmentServiceClient<Channel> {
        let config = client_config_with(&self.ca, None);
        EnrollmentServiceClient::new(channel(self.running.endpoints.enroll, config).await.unwrap())
    }

    /// A certificate for a user in a role.
    pub(super) async fn user(&self, name: &str, role: v1::Role) -> Identity {
        let key = KeyPair::generate().unwrap();
        let request = v1::IssueUserCertificateRequest {
            name: format!("users/{name}"),
            role: role.into(),
            csr_der: csr(&key).into(),
            ..Default::default()
        };
        let issued = self.users().await.issue_user_certificate(request).await.unwrap().into_inner();
        Identity { chain_pem: issued.certificate_pem, key_pem: key.serialize_pem() }
    }

    pub(super) async fn token(&self, request: v1::CreateEnrollmentTokenRequest) -> EnrollmentToken {
        let answer = self.nodes().await.create_enrollment_token(request).await.unwrap().into_inner();
        answer.secret.parse().unwrap()
    }

    /// Enrolls a node with a token of its own.
    pub(super) async fn enroll(&self, name: &str) -> Identity {
        let token = self.token(v1::CreateEnrollmentTokenRequest::default()).await;
        let key = KeyPair::generate().unwrap();
        let request = enroll_request(&token, name, &key);
        let answer = self.enrollment().await.enroll(request).await.unwrap().into_inner();
        Identity { chain_pem: answer.certificate_pem, key_pem: key.serialize_pem() }
    }
}

pub(super) fn enroll_request(token: &EnrollmentToken, node: &str, key: &KeyPair) -> v1::EnrollRequest {
    v1::EnrollRequest {
        token: token.secret.clone(),
        node: node.to_owned(),
        csr_der: csr(key).into(),
        platform: Some(v1::Platform { os: "linux".into(), arch: "amd64".into() }),
    }
}

/// An agent's session.
pub(super) struct Agent {
    pub(super) sender: mpsc::Sender<v1::SessionRequest>,
    pub(super) stream: Streaming<v1::SessionResponse>,
}

pub(super) fn component(name: &str) -> v1::ComponentInventory {
    v1::ComponentInventory {
        component: name.to_owned(),
        current: Some(v1::ComponentState {
            base: Some(v1::component_state::Base::Absent(v1::AbsentBase {})),
            layers: Vec::new(),
        }),
        healthy: true,
        run_mode: "supervised".to_owned(),
        ..Default::default()
    }
}

pub(super) fn hello(instance: &str) -> v1::Hello {
    v1::Hello {
        purpose: v1::hello::Purpose::Serve.into(),
        instance_id: instance.to_owned(),
        boot_id: "boot".to_owned(),
        agent_version: "0.1.0".to_owned(),
        platform: Some(v1::Platform { os: "linux".into(), arch: "amd64".into() }),
        components: vec![component("hello")],
        ..Default::default()
    }
}

impl Agent {
    /// Opens a session and waits for the answer to its Hello.
    pub(super) async fn open(
        controller: &Controller,
        node: &Identity,
        hello: v1::Hello,
    ) -> Result<Self, Status> {
        let (sender, receiver) = mpsc::channel(16);
        let message = v1::session_request::Message::Hello(hello);
        sender.send(v1::SessionRequest { message: Some(message) }).await.unwrap();
        let mut client = AgentServiceClient::new(controller.channel(node).await);
        let stream = client.session(ReceiverStream::new(receiver)).await?.into_inner();
        let mut agent = Self { sender, stream };
        match agent.next().await? {
            v1::session_response::Message::Welcome(_) => Ok(agent),
            other => panic!("not welcomed: {other:?}"),
        }
    }

    pub(super) async fn say(&self, message: v1::session_request::Message) {
        self.sender.send(v1::SessionRequest { message: Some(message) }).await.unwrap();
    }

    /// The next message, within ten seconds.
    pub(super) async fn next(&mut self) -> Result<v1::session_response::Message, Status> {
        let next = tokio::time::timeout(Duration::from_secs(10), self.stream.message());
        let message = next.await.expect("the controller says something");
        message?.and_then(|response| response.message).ok_or_else(|| Status::aborted("the stream ended"))
    }

    /// The next order.
    pub(super) async fn order(&mut self) -> v1::DesiredState {
        match self.next().await.unwrap() {
            v1::session_response::Message::DesiredState(order) => order,
            other => panic!("no order: {other:?}"),
        }
    }

    /// The status with which the session ends, within ten seconds; orders before it are passed over.
    pub(super) async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }
}
