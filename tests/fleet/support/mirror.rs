//! HTTPS sources that a test scripts, and a proxy before them. Loopback only.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, crypto::aws_lc_rs};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

/// What a source does with a request for its file.
#[derive(Clone, Debug)]
pub enum Source {
    /// Gives the bytes, or the range of them that is asked for.
    Gives(Vec<u8>),
    /// Gives the bytes without saying how many.
    GivesUnsized(Vec<u8>),
    /// Gives zeros for ever.
    Endless,
    /// Sends to another place.
    Redirects(String),
    /// Answers with this status.
    Says(&'static str),
}

/// Whom agents must trust in order to fetch from the mirrors of a test.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub file: PathBuf,
}

impl Authority {
    pub fn new(dir: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let file = dir.join("mirrors-ca.pem");
        std::fs::write(&file, issuer.pem()).unwrap();
        Self { issuer, file }
    }

    /// A server's TLS for `localhost`.
    fn acceptor(&self) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key.serialize_der().try_into().unwrap())
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// An HTTPS server with one file; it runs until the test's runtime ends.
pub struct Mirror {
    pub url: String,
    asked: Arc<AtomicUsize>,
}

impl Mirror {
    pub async fn start(authority: &Authority, name: &str, source: Source) -> Self {
        let acceptor = authority.acceptor();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/{name}", listener.local_addr().unwrap().port());
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, source, counted) = (acceptor.clone(), source.clone(), counted.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(tcp).await else { return };
                    let mut head = String::new();
                    let mut reader = BufReader::new(&mut stream);
                    while reader.read_line(&mut head).await.is_ok_and(|read| read > 2) {}
                    counted.fetch_add(1, Ordering::SeqCst);
                    let _ = answer(&mut stream, &source, &head.to_ascii_lowercase()).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Self { url, asked }
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn answer(
    stream: &mut (impl tokio::io::AsyncWrite + Unpin),
    source: &Source,
    head: &str,
) -> std::io::Result<()> {
    let say = |status: &str, headers: &str| {
        format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\n\r\n").into_bytes()
    };
    match source {
        Source::Gives(bytes) => {
            let (all, length) =
                (bytes.len(), |rest: usize| format!("ETag: \"a\"\r\nContent-Length: {rest}\r\n"));
            let from = head.split_once("range: bytes=").and_then(|(_, rest)| rest.split('-').next());
            match from.and_then(|from| from.parse::<usize>().ok()) {
                Some(from) if from >= all => {
                    stream
                        .write_all(&say(
                            "416 Range Not Satisfiable",
                            &format!("Content-Range: bytes */{all}\r\n"),
                        ))
                        .await
                }
                Some(from) => {
                    let range =
                        format!("Content-Range: bytes {from}-{}/{all}\r\n{}", all - 1, length(all - from));
                    stream.write_all(&say("206 Partial Content", &range)).await?;
                    stream.write_all(&bytes[from..]).await
                }
                None => {
                    stream.write_all(&say("200 OK", &length(all))).await?;
                    stream.write_all(bytes).await
                }
            }
        }
        Source::GivesUnsized(bytes) => {
            stream.write_all(&say("200 OK", "")).await?;
            stream.write_all(bytes).await
        }
        Source::Endless => {
            stream.write_all(&say("200 OK", "")).await?;
            loop {
                stream.write_all(&[0; 16 * 1024]).await?;
            }
        }
        Source::Redirects(to) => {
            stream.write_all(&say("302 Found", &format!("Location: {to}\r\nContent-Length: 0\r\n"))).await
        }
        Source::Says(status) => stream.write_all(&say(status, "Content-Length: 0\r\n")).await,
    }
}

/// What a proxy does with a tunnel.
#[derive(Clone, Copy, Debug)]
pub enum Tunnel {
    Whole,
    Refused,
    /// Cut after so many bytes of the answer.
    Cut(u64),
}

/// A proxy that knows `CONNECT` only.
pub struct Proxy {
    pub address: String,
    tunnels: Arc<AtomicUsize>,
}

impl Proxy {
    pub async fn start(tunnel: Tunnel) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let tunnels = Arc::new(AtomicUsize::new(0));
        let counted = tunnels.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(dig(tcp, tunnel));
            }
        });
        Self { address, tunnels }
    }

    /// How many tunnels were asked for.
    pub fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::SeqCst)
    }
}

async fn dig(mut client: TcpStream, tunnel: Tunnel) -> std::io::Result<()> {
    let mut head = String::new();
    let mut reader = BufReader::new(&mut client);
    while reader.read_line(&mut head).await? > 2 {}
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    let Some(target) = target.filter(|_| !matches!(tunnel, Tunnel::Refused)) else {
        return client.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
    };
    let server = TcpStream::connect(target.replace("localhost", "127.0.0.1")).await?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    let limit = if let Tunnel::Cut(bytes) = tunnel { bytes } else { u64::MAX };
    let ((mut from_client, mut to_client), (from_server, mut to_server)) =
        (client.split(), server.into_split());
    let mut answer = from_server.take(limit);
    tokio::select! {
        result = tokio::io::copy(&mut answer, &mut to_client) => result.map(drop),
        result = tokio::io::copy(&mut from_client, &mut to_server) => result.map(drop),
    }
}
