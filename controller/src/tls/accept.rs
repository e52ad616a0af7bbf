//! The accept loop: bounded handshakes with a time-out, each connection registered before it is trusted.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::{ServerConfig, server::Acceptor};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use upfleet_domain::time::Time;

use super::{
    Live, Trust,
    bulk::{Handover, Lanes},
    peer::{Credentials, Peer, PeerStream},
};

/// Handshakes under way at once; more wait in the kernel's queue.
const HANDSHAKES: usize = 256;
/// Of them, at most so many from one origin.
const HANDSHAKES_PER_ORIGIN: usize = 64;
/// How long a client may take to say hello, and again for the rest of the handshake, the question to the store included.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Open connections; memory per connection is some tens of KiB.
const CONNECTIONS: usize = 50_000;
/// Open connections of those who show no certificate; apart from the others, so that strangers never lock a fleet out.
const STRANGERS: usize = 1_000;
/// How long such a connection may stay: an enrollment takes a second.
const STRANGER_STAYS: Duration = Duration::from_secs(60);
/// Wait after a failed accept, so that a lack of file descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a listener needs to let somebody in.
#[derive(Clone)]
pub struct Door {
    /// The TLS configuration; replaced when the certificate is.
    pub config: Arc<ArcSwap<ServerConfig>>,
    /// Decides by the client's certificate; `None` on the enrollment listener, which asks for none.
    pub trust: Option<Arc<dyn Trust>>,
    /// Where connections are listed; each door that asks for no certificate has a list of its own.
    pub live: Live,
    /// Takes the connections that will carry artifacts' bytes; without it they are served like all others.
    pub bulk: Option<Lanes>,
}

/// Accepts connections until the receiver is dropped or `stop`. The stream never yields an error: one that
/// tonic does not know would end the whole server.
pub fn incoming(
    listener: TcpListener,
    door: Door,
    stop: CancellationToken,
) -> ReceiverStream<Result<PeerStream, Infallible>> {
    let (sender, receiver) = mpsc::channel(128);
    tokio::spawn(accept_loop(listener, door, stop, sender));
    ReceiverStream::new(receiver)
}

async fn accept_loop(
    listener: TcpListener,
    door: Door,
    stop: CancellationToken,
    sender: mpsc::Sender<Result<PeerStream, Infallible>>,
) {
    let slots = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sender.closed() => return,
            () = stop.cancelled() => return,
        };
        let (tcp, addr) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(counted) = door.live.handshake(addr.ip(), HANDSHAKES_PER_ORIGIN) else {
            tracing::info!(%addr, "too many handshakes from one origin");
            continue;
        };
        let (door, sender) = (door.clone(), sender.clone());
        tokio::spawn(async move {
            let held = (slot, counted);
            let Some(hello) = bounded(addr, hello(tcp)).await else { return };
            if let Some(lanes) = &door.bulk
                && Lanes::are_wished(&hello)
            {
                return lanes.hand_over(Handover::new(hello, addr, door.clone(), held)).await;
            }
            if let Some(stream) = bounded(addr, admit(hello, addr, &door)).await {
                // The send waits for tonic; the slot is held meanwhile, which bounds what piles up.
                let _ = sender.send(Ok(stream)).await;
            }
        });
    }
}

/// What a step of a handshake gives in time; what goes wrong is the peer's matter and is only logged.
pub(super) async fn bounded<T>(addr: SocketAddr, step: impl Future<Output = io::Result<T>>) -> Option<T> {
    match timeout(HANDSHAKE_TIMEOUT, step).await {
        Ok(Ok(done)) => return Some(done),
        Ok(Err(error)) => tracing::info!(%addr, %error, "connection refused"),
        Err(_) => tracing::info!(%addr, "handshake timed out"),
    }
    None
}

/// Waits until the client has said what it wants, and answers nothing yet.
async fn hello(tcp: TcpStream) -> io::Result<StartHandshake<TcpStream>> {
    tcp.set_nodelay(true)?;
    LazyConfigAcceptor::new(Acceptor::default(), tcp).await
}

/// Goes through with the handshake, and asks whether whoever is there may come in.
pub(super) async fn admit(
    hello: StartHandshake<TcpStream>,
    addr: SocketAddr,
    door: &Door,
) -> io::Result<PeerStream> {
    let io = hello.into_stream(door.config.load_full()).await?;
    let refuse = |text: String| io::Error::new(io::ErrorKind::PermissionDenied, text);
    let kill = CancellationToken::new();
    let mut peer = Peer::new(addr, io.get_ref().1, kill.clone());
    let full = || refuse("too many connections are open".to_owned());
    let Some(trust) = &door.trust else {
        let registration =
            door.live.register("", Time(i64::MAX), kill.clone(), STRANGERS).ok_or_else(full)?;
        tokio::spawn(async move {
            tokio::time::sleep(STRANGER_STAYS).await;
            kill.cancel();
        });
        return Ok(PeerStream::new(io, peer, registration));
    };
    let leaf = Peer::leaf(io.get_ref().1)
        .ok_or_else(|| refuse("the certificate names nobody of a fleet".to_owned()))?;
    // Registered before the store is asked: a revocation either is seen by the question, or finds the
    // registration. In the other order a connection could slip between the two.
    let registration = door.live.register(&leaf.serial, leaf.expires, kill, CONNECTIONS).ok_or_else(full)?;
    let principal = trust
        .admit(&leaf)
        .await
        .map_err(|reason| refuse(format!("{} {}: {reason}", leaf.identity, leaf.serial)))?;
    peer.credentials = Some(Credentials { principal, leaf: Arc::new(leaf) });
    Ok(PeerStream::new(io, peer, registration))
}
