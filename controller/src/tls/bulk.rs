//! Connections that will carry artifacts' bytes: told by their first message, and handed to threads of their own.
//!
//! The bytes of such a connection then never hop between worker threads, and its encryption holds up no session.
//! Who may come in is decided as for all others.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::net::sockopt;
use rustls::server::Accepted;
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, mpsc},
};
use tokio_rustls::StartHandshake;
use upfleet_api::BULK_ALPN;

use super::{
    accept::{Door, admit, bounded},
    live::Handshake,
    peer::PeerStream,
};

/// A peer that acknowledges nothing for so long, or keeps its TCP window closed, is cut. No sign of life is asked for
/// over HTTP/2: on a slow line it would wait behind the bytes. A reader that HTTP/2's own windows hold up is another
/// matter: TCP sees nothing of it, and `blobs` cuts it where others wait for the memory it holds.
const UNREAD: Duration = Duration::from_secs(60);
/// A peer that is silent so long is asked by the kernel whether it is still there.
const SILENT: Duration = Duration::from_secs(20);

/// Counts against the limits on handshakes until it is dropped.
type Held = (OwnedSemaphorePermit, Handshake);

/// The threads that take bulk connections, in turn. Clones share them.
#[derive(Clone)]
pub struct Lanes(Arc<Inner>);

struct Inner {
    lanes: Vec<mpsc::Sender<Handover>>,
    next: AtomicUsize,
}

impl Lanes {
    /// Each receiver's other end is a lane.
    #[must_use]
    pub fn new(lanes: Vec<mpsc::Sender<Handover>>) -> Self {
        Self(Arc::new(Inner { lanes, next: AtomicUsize::new(0) }))
    }

    /// Whether the client asks for one.
    pub(super) fn are_wished(hello: &StartHandshake<TcpStream>) -> bool {
        let offered = hello.client_hello();
        offered.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == BULK_ALPN))
    }

    /// Waits until the next lane takes it; a lane that has ended drops it.
    pub(super) async fn hand_over(&self, connection: io::Result<Handover>) {
        let lanes = &self.0.lanes;
        let next = self.0.next.fetch_add(1, Ordering::Relaxed) % lanes.len().max(1);
        match (connection, lanes.get(next)) {
            (Ok(connection), Some(lane)) => drop(lane.send(connection).await),
            (Err(error), _) => tracing::info!(%error, "connection lost"),
            (Ok(_), None) => tracing::error!("there is no lane for artifacts' bytes"),
        }
    }
}

/// A connection whose client has said hello, on its way to another runtime.
pub struct Handover {
    hello: Accepted,
    tcp: std::net::TcpStream,
    addr: SocketAddr,
    door: Door,
    held: Held,
}

impl Handover {
    pub(super) fn new(
        hello: StartHandshake<TcpStream>,
        addr: SocketAddr,
        door: Door,
        held: Held,
    ) -> io::Result<Self> {
        let StartHandshake { accepted, io, .. } = hello;
        Ok(Self { hello: accepted, tcp: io.into_std()?, addr, door, held })
    }

    /// Goes through with the handshake on the runtime that calls it; `None` where the peer may not come in.
    pub async fn finish(self) -> Option<PeerStream> {
        let _held = self.held;
        let (tcp, addr, hello, door) = (self.tcp, self.addr, self.hello, self.door);
        bounded(addr, async {
            sockopt::set_socket_keepalive(&tcp, true)?;
            sockopt::set_tcp_keepidle(&tcp, SILENT)?;
            sockopt::set_tcp_keepintvl(&tcp, SILENT)?;
            sockopt::set_tcp_user_timeout(&tcp, u32::try_from(UNREAD.as_millis()).unwrap_or(u32::MAX))?;
            let start = StartHandshake::from_parts(hello, TcpStream::from_std(tcp)?);
            admit(start, addr, &door).await
        })
        .await
    }
}
