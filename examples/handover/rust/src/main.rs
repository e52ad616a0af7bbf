//! An HTTP service whose version changes without one failed request: it serves on sockets that it is given, says when it
//! is ready, and finishes what it has begun before it ends. Copy it, and put your own answers into `answer`.

use std::{convert::Infallible, env, io, pin::pin, time::Duration};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONNECTION, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

/// What `/version` says.
const VERSION: &str = "shop 1.0.0";
/// The name of the sockets that it serves, in `LISTEN_FDNAMES`.
const NAME: &str = "http";
/// How long an idle connection is kept for its next request when the service is to end. Shorter than what kills it
/// then: `drain_timeout` of the agent, or `TimeoutStopSec=` of systemd.
const PATIENCE: Duration = Duration::from_secs(20);

/// How far the service is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Accepts nothing more. The next answer on each connection is its last.
    Draining,
    /// Connections that are still idle are closed, too.
    Ending,
}

#[tokio::main]
async fn main() -> io::Result<()> {
    // Before anything else, so that an early signal finds its handler.
    let mut terminate = signal(SignalKind::terminate())?;
    let (phase, watching) = watch::channel(Phase::Serving);
    // Every connection holds a sender; when all are gone, so are the connections.
    let (open, mut all_closed) = mpsc::channel::<Infallible>(1);
    for listener in listeners().await? {
        tokio::spawn(accept(listener, watching.clone(), open.clone()));
    }
    drop(open);
    sd_notify::notify(&[NotifyState::Ready])?;

    terminate.recv().await;
    // Whoever listened may be gone. What is under way is finished all the same.
    if let Err(error) = sd_notify::notify(&[NotifyState::Stopping]) {
        eprintln!("could not say STOPPING=1: {error}");
    }
    phase.send_replace(Phase::Draining);
    if timeout(PATIENCE, all_closed.recv()).await.is_err() {
        phase.send_replace(Phase::Ending);
        // Whoever is answered right now still gets the whole answer.
        all_closed.recv().await;
    }
    Ok(())
}

/// The sockets that were passed to this process; without any, one of its own.
async fn listeners() -> io::Result<Vec<Listener>> {
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').filter(|name| !name.is_empty());
    // Reads `LISTEN_FDS` and `LISTEN_PID`, and has no child inherit the sockets.
    let mut given = ListenFd::from_env();
    let mut listeners = Vec::new();
    for index in 0..given.len() {
        let name = names.next().unwrap_or(NAME);
        if name != NAME {
            eprintln!("there is no use for the socket `{name}`");
        } else if let Ok(Some(listener)) = given.take_unix_listener(index) {
            listener.set_nonblocking(true)?;
            listeners.push(Listener::Unix(UnixListener::from_std(listener)?));
        } else if let Some(listener) = given.take_tcp_listener(index)? {
            listener.set_nonblocking(true)?;
            listeners.push(Listener::Tcp(TcpListener::from_std(listener)?));
        }
    }
    if listeners.is_empty() {
        let address = env::var("SHOP_LISTEN").unwrap_or_else(|_| "127.0.0.1:8080".to_owned());
        listeners.push(Listener::Tcp(TcpListener::bind(address).await?));
    }
    Ok(listeners)
}

/// Accepts until the service is to end. What waits in the socket's queue then is for the next process: the socket is
/// closed here and nowhere else. It must not be shut down (`shutdown(2)`), as that would end it for everybody.
async fn accept(listener: Listener, mut phase: watch::Receiver<Phase>, open: mpsc::Sender<Infallible>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = phase.changed() => return,
        };
        match accepted {
            Ok(stream) => drop(tokio::spawn(serve(stream, phase.clone(), open.clone()))),
            Err(error) => {
                eprintln!("could not accept a connection: {error}");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Serves one connection to its end.
async fn serve(stream: Box<dyn Stream>, mut phase: watch::Receiver<Phase>, _open: mpsc::Sender<Infallible>) {
    let own = phase.clone();
    let service = service_fn(move |request| {
        let phase = own.clone();
        async move {
            let mut response = answer(&request).await;
            // Looked at after the work: whoever waited while the signal came is told, too.
            if *phase.borrow() != Phase::Serving {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(60));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    loop {
        tokio::select! {
            _ = connection.as_mut() => return,
            _ = phase.changed() => {}
        }
        // Not while draining: a client may be sending its next request on an idle connection at this very moment, and
        // closing it would lose that.
        if *phase.borrow_and_update() == Phase::Ending {
            connection.as_mut().graceful_shutdown();
        }
    }
}

async fn answer(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let found = ["/version", "/slow"].contains(&request.uri().path());
    if request.uri().path() == "/slow" {
        sleep(Duration::from_millis(200)).await;
    }
    let text = if found { VERSION } else { "not found" };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    if !found {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    response
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}
