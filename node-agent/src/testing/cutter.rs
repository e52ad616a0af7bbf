//! A TCP proxy that cuts connections after so many bytes on their way to the client, and counts what it let through.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy, sink},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// With a reset.
    Reset,
    /// Properly, as far as TCP is concerned.
    Close,
    /// Not at all: nothing comes any more.
    Silence,
}

/// When connections are cut.
#[derive(Clone, Debug)]
pub(crate) struct Cuts {
    /// After so many bytes to the client, TLS and all.
    pub(crate) after: u64,
    /// How, in turn.
    pub(crate) how: Vec<How>,
    /// No more than so many.
    pub(crate) at_most: u64,
}

impl Cuts {
    pub(crate) fn every(after: u64, how: &[How]) -> Self {
        Self { after, how: how.to_vec(), at_most: u64::MAX }
    }
}

#[derive(Debug, Default)]
struct Counts {
    bytes: AtomicU64,
    connections: AtomicU64,
    cuts: AtomicU64,
}

/// The proxy; it ends with this.
pub(crate) struct Cutter {
    pub(crate) address: SocketAddr,
    counts: Arc<Counts>,
    serving: JoinHandle<()>,
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Cutter {
    pub(crate) async fn start(target: SocketAddr, cuts: Cuts) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::new(Counts::default());
        let counted = counts.clone();
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (cuts, counted) = (cuts.clone(), counted.clone());
                counted.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move { relay(client, target, &cuts, &counted).await });
            }
        });
        Self { address, counts, serving }
    }

    /// Bytes to the client so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::SeqCst)
    }

    pub(crate) fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn cuts(&self) -> u64 {
        self.counts.cuts.load(Ordering::SeqCst)
    }
}

async fn relay(mut client: TcpStream, target: SocketAddr, cuts: &Cuts, counts: &Counts) -> io::Result<()> {
    let mut server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let down = async {
        let (mut buffer, mut left) = ([0; 16 * 1024], cuts.after);
        while left > 0 {
            let room = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = from_server.read(&mut buffer[..room]).await?;
            if read == 0 {
                return Ok::<_, io::Error>(None);
            }
            to_client.write_all(&buffer[..read]).await?;
            counts.bytes.fetch_add(read as u64, Ordering::SeqCst);
            left -= read as u64;
            if left == 0 && counts.cuts.load(Ordering::SeqCst) >= cuts.at_most {
                left = u64::MAX;
            }
        }
        let cut = counts.cuts.fetch_add(1, Ordering::SeqCst);
        Ok(Some(cuts.how[usize::try_from(cut).unwrap() % cuts.how.len()]))
    };
    let how = tokio::select! {
        _ = copy(&mut from_client, &mut to_server) => None,
        how = down => how?,
    };
    match how {
        Some(How::Reset) => client.set_zero_linger(),
        Some(How::Close) => {
            client.shutdown().await?;
            copy(&mut client, &mut sink()).await.map(drop)
        }
        // The server's end stays open as long.
        Some(How::Silence) => copy(&mut client, &mut sink()).await.map(drop),
        None => Ok(()),
    }
}
