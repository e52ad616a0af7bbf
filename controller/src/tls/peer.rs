//! What is known of the other end of a connection, and the stream that ends when it must go.

use std::{
    future::Future as _,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;
use upfleet_domain::time::Time;
use x509_parser::extensions::GeneralName;

use super::live::Registration;
use crate::{
    auth::{Identity, Principal},
    ca::hex,
};

/// What a certificate says about its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The one SPIFFE URI in it.
    pub identity: Identity,
    /// The serial number in lower-case hex.
    pub serial: String,
    /// When it expires.
    pub expires: Time,
    /// The SubjectPublicKeyInfo in DER.
    pub spki: Vec<u8>,
}

impl Leaf {
    /// Reads a certificate; `None` where it names nobody of a fleet, or more than one.
    #[must_use]
    pub fn parse(der: &[u8]) -> Option<Self> {
        let (rest, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let names = certificate.subject_alternative_name().ok()??;
        let mut uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let (Some(uri), None) = (uris.next(), uris.next()) else { return None };
        Some(Self {
            identity: Identity::from_uri(uri)?,
            serial: hex(certificate.tbs_certificate.raw_serial()),
            expires: Time(certificate.validity().not_after.timestamp().saturating_mul(1000)),
            spki: certificate.tbs_certificate.subject_pki.raw.to_vec(),
        })
    }
}

/// A client certificate that the store knows and has nothing against.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Who holds it, and what they may do.
    pub principal: Principal,
    /// What it says.
    pub leaf: Arc<Leaf>,
}

/// The other end of a connection; handlers find it in a request's extensions.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it is.
    pub addr: SocketAddr,
    /// Its certificate; `None` on the enrollment listener.
    pub credentials: Option<Credentials>,
    /// The key exchange that was negotiated, e.g. `X25519MLKEM768`.
    pub key_exchange: String,
    /// Cancelled when the connection must go.
    pub kill: CancellationToken,
}

impl Peer {
    pub(super) fn new(addr: SocketAddr, tls: &rustls::ServerConnection, kill: CancellationToken) -> Self {
        let group = tls.negotiated_key_exchange_group();
        let key_exchange = group.map(|group| format!("{:?}", group.name())).unwrap_or_default();
        Self { addr, credentials: None, key_exchange, kill }
    }

    /// The certificate that the other end showed.
    pub(super) fn leaf(tls: &rustls::ServerConnection) -> Option<Leaf> {
        let certificate: &CertificateDer<'_> = tls.peer_certificates()?.first()?;
        Leaf::parse(certificate)
    }
}

#[cfg(test)]
impl Peer {
    /// A peer without a connection.
    pub(crate) fn for_test(credentials: Option<Credentials>) -> Self {
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        Self { addr, credentials, key_exchange: "X25519MLKEM768".into(), kill: CancellationToken::new() }
    }
}

#[cfg(test)]
impl Credentials {
    /// Credentials without a certificate.
    pub(crate) fn for_test(principal: Principal) -> Self {
        let identity = match &principal {
            Principal::Node(node) => Identity::Node(node.clone()),
            Principal::User { user, .. } => Identity::User(user.clone()),
        };
        let leaf = Leaf { identity, serial: "40".into(), expires: Time(i64::MAX), spki: Vec::new() };
        Self { principal, leaf: Arc::new(leaf) }
    }
}

/// A connection that ends by itself when its peer must go.
pub struct PeerStream {
    io: TlsStream<TcpStream>,
    peer: Peer,
    killed: Pin<Box<WaitForCancellationFutureOwned>>,
    _registration: Registration,
}

impl PeerStream {
    pub(super) fn new(io: TlsStream<TcpStream>, peer: Peer, registration: Registration) -> Self {
        let killed = Box::pin(peer.kill.clone().cancelled_owned());
        Self { io, peer, killed, _registration: registration }
    }

    fn refuse(&self) -> io::Error {
        io::Error::new(io::ErrorKind::ConnectionAborted, "the peer's certificate is no longer good")
    }
}

impl Connected for PeerStream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Polled on every read, so that a cancellation wakes the connection's task even when it is idle.
        if self.killed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(self.refuse()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.peer.kill.is_cancelled() {
            return Poll::Ready(Err(self.refuse()));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.peer.kill.is_cancelled() {
            return Poll::Ready(Err(self.refuse()));
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.peer.kill.is_cancelled() {
            return Poll::Ready(Err(self.refuse()));
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
