//! A NATS server with mutual TLS, one subscriber per agent, and a publisher that waits for everybody's reply.
//!
//! The subscribers speak NATS's text protocol themselves, so that nothing but the server is compared.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as Probe},
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ClientConfig, pki_types::ServerName};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpSocket, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{child::Program, rows, tls, usage::Usage};

/// Connections that are set up at once.
const CONNECTS: usize = 128;
/// So many clients share a source address.
const PER_SOURCE: usize = 10_000;
/// The most that reading takes at once.
const BUFFER: usize = 1024;

/// A server that runs until this is dropped.
pub struct Server {
    program: Program,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    _dir: TempDir,
}

type Wire = BufReader<TlsStream<TcpStream>>;

impl Server {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// Where `nats-server` is not installed or does not start.
    pub fn start() -> anyhow::Result<Self> {
        let program = rows::peer("nats-server")?;
        let dir = tempfile::Builder::new().prefix("upfleet-nats").tempdir()?;
        let tls = certificates(dir.path())?;
        let port = Probe::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let path = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "listen: \"{address}\"\nmax_connections: 60000\nwrite_deadline: \"30s\"\nping_interval: \"2m\"\n\
             tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", verify: true, timeout: 10 }}\n",
            path("server.crt"),
            path("server.key"),
            path("ca.crt"),
        );
        fs::write(dir.path().join("nats.conf"), config)?;
        let mut command = Command::new(program);
        command.arg("-c").arg(dir.path().join("nats.conf"));
        let mut program = Program::start(&mut command, &dir.path().join("nats.log"))?;
        program.wait_for("it listens", || std::net::TcpStream::connect(address).ok().map(drop))?;
        Ok(Self { program, address, tls, _dir: dir })
    }

    /// What it has used so far.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        self.program.usage()
    }

    /// A client that has said who it is.
    async fn connect(&self, number: usize) -> anyhow::Result<Wire> {
        let source = Ipv4Addr::new(127, 0, 0, u8::try_from(2 + number / PER_SOURCE).unwrap_or(u8::MAX));
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(IpAddr::V4(source), 0))?;
        let mut tcp = socket.connect(self.address).await?;
        tcp.set_nodelay(true)?;
        // INFO comes in the clear, then TLS begins.
        let mut byte = [0; 1];
        while byte[0] != b'\n' {
            tcp.read_exact(&mut byte).await?;
        }
        let name = ServerName::try_from("localhost")?;
        let tls = TlsConnector::from(self.tls.clone()).connect(name, tcp).await?;
        let mut wire = BufReader::with_capacity(BUFFER, tls);
        wire.write_all(b"CONNECT {\"verbose\":false,\"pedantic\":false,\"tls_required\":true}\r\nPING\r\n")
            .await?;
        let mut line = String::new();
        while !line.starts_with("PONG") {
            line.clear();
            anyhow::ensure!(wire.read_line(&mut line).await? > 0, "the server hung up");
            anyhow::ensure!(!line.starts_with("-ERR"), "the server said {line}");
        }
        Ok(wire)
    }

    /// Connects `count` subscribers that reply to each message; they run until the set is dropped.
    ///
    /// # Errors
    /// Where one can't connect.
    pub async fn subscribers(self: &Arc<Self>, count: usize) -> anyhow::Result<JoinSet<()>> {
        let slots = Arc::new(Semaphore::new(CONNECTS));
        let mut opening = JoinSet::new();
        for number in 0..count {
            let (server, slots) = (self.clone(), slots.clone());
            opening.spawn(async move {
                let _slot = slots.acquire_owned().await?;
                let mut wire = server.connect(number).await?;
                wire.write_all(b"SUB all 1\r\nPING\r\n").await?;
                let mut line = String::new();
                wire.read_line(&mut line).await?;
                Ok::<_, anyhow::Error>(wire)
            });
        }
        let mut running = JoinSet::new();
        while let Some(opened) = opening.join_next().await {
            let wire = opened??;
            running.spawn(async move { drop(answer(wire).await) });
        }
        Ok(running)
    }

    /// Publishes `payload` to all and waits for `count` replies; the milliseconds until each.
    ///
    /// # Errors
    /// Where not all replies come within a minute.
    pub async fn publish(&self, payload: &[u8], count: usize) -> anyhow::Result<Vec<f64>> {
        let mut wire = self.connect(0).await?;
        wire.write_all(b"SUB reply 1\r\nPING\r\n").await?;
        let mut line = String::new();
        wire.read_line(&mut line).await?;
        let began = Instant::now();
        wire.write_all(format!("PUB all {}\r\n", payload.len()).as_bytes()).await?;
        wire.write_all(payload).await?;
        wire.write_all(b"\r\n").await?;
        let mut millis = Vec::with_capacity(count);
        let mut body = Vec::new();
        let all = async {
            while millis.len() < count {
                message(&mut wire, &mut line, &mut body).await?;
                millis.push(began.elapsed().as_secs_f64() * 1e3);
            }
            Ok::<_, anyhow::Error>(())
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), all).await;
        waited.with_context(|| format!("not all of {count} replied in time"))??;
        Ok(millis)
    }
}

/// Replies to each message until the server hangs up.
async fn answer(mut wire: Wire) -> anyhow::Result<()> {
    let (mut line, mut body) = (String::new(), Vec::new());
    loop {
        message(&mut wire, &mut line, &mut body).await?;
        // As much as an acknowledgement and a first report take.
        wire.write_all(
            b"PUB reply 64\r\n0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\r\n",
        )
        .await?;
    }
}

/// Reads to the end of the next message; answers pings meanwhile.
async fn message(wire: &mut Wire, line: &mut String, body: &mut Vec<u8>) -> anyhow::Result<()> {
    loop {
        line.clear();
        anyhow::ensure!(wire.read_line(line).await? > 0, "the server hung up");
        if line.starts_with("MSG ") {
            let length: usize = line.trim_end().rsplit(' ').next().unwrap_or_default().parse()?;
            body.resize(length + 2, 0);
            wire.read_exact(body).await?;
            return Ok(());
        }
        if line.starts_with("PING") {
            wire.write_all(b"PONG\r\n").await?;
        }
    }
}

/// An authority, a server's and a client's certificate, all P-256 as ours.
pub(super) fn certificates(dir: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let issue = |names: Vec<String>| -> anyhow::Result<(String, String)> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(names)?.signed_by(&key, &ca)?;
        Ok((certificate.pem(), key.serialize_pem()))
    };
    let (server, server_key) = issue(vec!["localhost".to_owned()])?;
    let (client, client_key) = issue(vec!["client".to_owned()])?;
    for (name, text) in [("ca.crt", ca.pem()), ("server.crt", server), ("server.key", server_key)] {
        fs::write(dir.join(name), text)?;
    }
    let config = tls::client(
        &tls::provider(),
        &tls::roots(ca.pem().as_bytes())?,
        Some((client.as_bytes(), client_key.as_bytes())),
    )?;
    let mut config = Arc::unwrap_or_clone(config);
    config.alpn_protocols.clear();
    Ok(Arc::new(config))
}
