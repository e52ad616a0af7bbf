//! TLS alone: a server that takes handshakes with certificates on both sides and says one byte, as a process of its own.
//! What any server that does the same has to pay at least.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::Arc,
};

use anyhow::Context as _;
use rustls::{
    ClientConfig, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

use super::nats;
use crate::{child::Program, tls, usage::Usage};

/// Connections that are set up at once, as many as the simulated agents do.
const CONNECTS: usize = 128;
/// So many clients share a source address.
const PER_SOURCE: usize = 10_000;

/// Where the server finds its certificate, and writes the port that it has.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[arg(long)]
    dir: PathBuf,
}

/// Serves until it is killed.
///
/// # Errors
/// Where the certificates can't be read or no port can be had.
pub fn serve(args: &Args) -> anyhow::Result<()> {
    let read = |name: &str| fs::read(args.dir.join(name)).with_context(|| format!("could not read {name}"));
    let provider = tls::provider();
    let roots = tls::roots(&read("ca.crt")?)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build()?;
    let chain = CertificateDer::pem_slice_iter(&read("server.crt")?).collect::<Result<Vec<_>, _>>()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, PrivateKeyDer::from_pem_slice(&read("server.key")?)?)?;
    config.send_tls13_tickets = 0;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let temporary = args.dir.join("port.tmp");
        fs::write(&temporary, listener.local_addr()?.port().to_string())?;
        fs::rename(&temporary, args.dir.join("port"))?;
        loop {
            let (tcp, _) = listener.accept().await?;
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                tcp.set_nodelay(true)?;
                let mut tls = acceptor.accept(tcp).await?;
                tls.write_all(b"!").await?;
                // Open until the client goes.
                tls.read(&mut [0]).await
            });
        }
    })
}

/// A server that runs until this is dropped.
pub struct Server {
    program: Program,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    _dir: TempDir,
}

impl Server {
    /// Starts this program as a server, on a free port.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("upfleet-raw").tempdir()?;
        let tls = nats::certificates(dir.path())?;
        let mut command = Command::new(std::env::current_exe().context("could not find this executable")?);
        command.arg("raw-tls").arg("--dir").arg(dir.path());
        let mut program = Program::start(&mut command, &dir.path().join("log"))?;
        let port = program.wait_for("it listens", || {
            fs::read_to_string(dir.path().join("port")).ok()?.parse::<u16>().ok()
        })?;
        Ok(Self { program, address: (Ipv4Addr::LOCALHOST, port).into(), tls, _dir: dir })
    }

    /// What it has used so far.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        self.program.usage()
    }

    async fn connect(&self, number: usize) -> anyhow::Result<TlsStream<TcpStream>> {
        let source = Ipv4Addr::new(127, 0, 0, u8::try_from(2 + number / PER_SOURCE).unwrap_or(u8::MAX));
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(IpAddr::V4(source), 0))?;
        let tcp = socket.connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let mut tls = TlsConnector::from(self.tls.clone()).connect(name, tcp).await?;
        tls.read_exact(&mut [0]).await?;
        Ok(tls)
    }

    /// Connects `count` clients and waits until each was greeted; they stay until the answer is dropped.
    ///
    /// # Errors
    /// Where one can't connect.
    pub async fn connect_all(self: &Arc<Self>, count: usize) -> anyhow::Result<Vec<TlsStream<TcpStream>>> {
        let slots = Arc::new(Semaphore::new(CONNECTS));
        let mut opening = JoinSet::new();
        for number in 0..count {
            let (server, slots) = (self.clone(), slots.clone());
            opening.spawn(async move {
                let _slot = slots.acquire_owned().await?;
                server.connect(number).await
            });
        }
        opening.join_all().await.into_iter().collect()
    }
}
