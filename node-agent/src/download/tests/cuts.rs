//! Downloads over lines that are cut again and again: what is fetched twice, and how often is asked.

use std::time::Duration;

use super::*;
use crate::{
    config::ControllerConfig,
    identity::Identities,
    testing::cutter::{Cuts, Cutter, How},
};

const KIB_64: u64 = 64 * 1024;
/// The handshake of a connection, what HTTP adds to the bytes of a message, and the TLS record that the cut broke: the
/// end of a whole message may lie in it.
const AROUND: u64 = (8 + 16) * 1024;

fn impatient() -> Patience {
    let backoff = Backoff { base: Duration::from_millis(5), cap: Duration::from_millis(50) };
    Patience { stall: Duration::from_millis(700), backoff, ..Patience::default() }
}

fn bytes(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index * 31 % 251) as u8).collect()
}

async fn run(
    fetcher: &Fetcher,
    artifact: ArtifactRef,
    part: &std::path::Path,
    limit: u64,
) -> Result<Fetched, Reason> {
    let deadline = Some(Instant::now() + Duration::from_secs(limit));
    fetcher.fetch(FetchRequest { artifact, part_path: part.to_owned(), deadline }, &|_| {}).await
}

/// A download from a controller behind a line that is cut; returns it with what was asked for.
async fn from_controller(size: usize, cuts: Cuts) -> (Cutter, Vec<(u64, u32)>) {
    let dir = tempfile::tempdir().unwrap();
    let content = bytes(size);
    let controller = FakeController::start(content.clone()).await;
    let cutter = Cutter::start(controller.address, cuts).await;
    let config = ControllerConfig { address: cutter.address.to_string(), ..controller.config() };
    let identity = controller.script.ca.node("web-01", WEEK);
    let identities = Identities::create(&dir.path().join("state"), identity).unwrap();
    let fetcher = Fetcher::with_patience(
        &FetchConfig::default(),
        Some(Connector::new(config, identities)),
        impatient(),
    );
    let part = dir.path().join("x.part");
    let fetched = run(&fetcher, artifact(&content, vec![]), &part, 60).await.unwrap();
    assert_eq!(fetched.size, size as u64);
    assert_eq!(std::fs::read(part).unwrap(), content);
    let asked = controller.script.asked.lock().unwrap().clone();
    (cutter, asked)
}

#[tokio::test]
async fn cut_after_every_64_kib_a_download_from_the_controller_ends() {
    for how in [How::Reset, How::Close] {
        let size = 700_017;
        let (cutter, asked) = from_controller(size, Cuts::every(KIB_64, &[how])).await;
        let sizes: Vec<u32> = asked.iter().map(|asked| asked.1).collect();
        assert_eq!(sizes[..4], [1 << 20, 1 << 19, 1 << 18, 1 << 17], "halved");
        assert_eq!(sizes.iter().min(), Some(&(16 * 1024)));
        // Each connection carries 64 KiB, and one request: what of them was not new was fetched for nothing.
        for pair in asked.windows(2) {
            let lost = KIB_64 - (pair[1].0 - pair[0].0);
            // After a reset, what the kernel had received and nobody had read yet may be lost, too.
            let most = if how == How::Reset { KIB_64 } else { KIB_64.min(u64::from(pair[0].1) + AROUND) };
            assert!(lost <= most, "{how:?}: {lost} bytes at {pair:?}");
        }
        let messages = if how == How::Reset { 1 } else { 2 };
        let most = 8 + size as u64 / (messages * 16 * 1024);
        assert!(
            cutter.connections() <= most,
            "{how:?}: {} connections, {most} at most",
            cutter.connections()
        );
    }
}

#[tokio::test]
async fn messages_grow_again_between_rare_cuts() {
    let size = 8_000_000;
    let (cutter, asked) = from_controller(size, Cuts::every(700 * 1024, &[How::Reset, How::Close])).await;
    let grows = asked.windows(2).filter(|pair| pair[1].1 == 2 * pair[0].1).count();
    assert!(grows > 0, "{asked:?}");
    // A cut costs the message that was under way, which is no larger than the one asked for last.
    let largest = asked.iter().map(|asked| u64::from(asked.1)).max().unwrap();
    let lost: u64 =
        asked.windows(2).filter(|pair| pair[1].1 < pair[0].1).map(|pair| u64::from(pair[0].1)).sum();
    let around = cutter.connections() * AROUND + largest / 16;
    assert!(cutter.bytes() <= size as u64 + lost + around + largest, "{} bytes, {lost} lost", cutter.bytes());
}

#[tokio::test]
async fn silence_is_a_cut() {
    let cuts = Cuts { at_most: 3, ..Cuts::every(300 * 1024, &[How::Silence]) };
    let (cutter, asked) = from_controller(2_000_000, cuts).await;
    assert_eq!(cutter.cuts(), 3);
    assert!(asked.len() > 3 && asked[1].1 < asked[0].1, "{asked:?}");
}

/// An HTTPS server of one file; with `ranges` it gives parts of it.
struct Server {
    address: SocketAddr,
    extra_ca: PathBuf,
    asked: Arc<Mutex<Vec<u64>>>,
}

impl Server {
    async fn start(dir: &std::path::Path, content: Vec<u8>, ranges: bool) -> Self {
        let ca = TestCa::new();
        let extra_ca = dir.join("server-ca.pem");
        std::fs::write(&extra_ca, &ca.pem).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(server_config(&ca, b"http/1.1"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (noted, content) = (asked.clone(), Arc::new(content));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, noted, content) = (acceptor.clone(), noted.clone(), content.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(tcp).await else { return };
                    let mut head = String::new();
                    let mut reader = BufReader::new(&mut stream);
                    while reader.read_line(&mut head).await.is_ok_and(|read| read > 2) {}
                    let head = head.to_ascii_lowercase();
                    let from = head.split_once("range: bytes=").and_then(|(_, range)| range.split_once('-'));
                    let from = from.map_or(0, |(from, _)| from.parse().unwrap());
                    noted.lock().unwrap().push(from as u64);
                    let (size, from) = (content.len(), if ranges { from } else { 0 });
                    let code = if from > 0 { "206 Partial Content" } else { "200 OK" };
                    let range = format!("Content-Range: bytes {from}-{}/{size}", size - 1);
                    let head =
                        format!("{code}\r\nETag: \"v1\"\r\nContent-Length: {}\r\n{range}", size - from);
                    let _ = stream.write_all(&answer(&head, &content[from..])).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Self { address, extra_ca, asked }
    }

    fn config(&self) -> FetchConfig {
        FetchConfig { allow_loopback: true, extra_ca: Some(self.extra_ca.clone()), ..FetchConfig::default() }
    }
}

#[tokio::test]
async fn cut_after_every_64_kib_a_download_over_https_ends() {
    let content = bytes(700_017);
    for how in [How::Reset, How::Close] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(dir.path(), content.clone(), true).await;
        let cutter = Cutter::start(server.address, Cuts::every(KIB_64, &[how])).await;
        let fetcher = Fetcher::with_patience(&server.config(), None, impatient());
        let source = format!("https://localhost:{}/x", cutter.address.port());
        let part = dir.path().join("x.part");
        run(&fetcher, artifact(&content, vec![source]), &part, 60).await.unwrap();
        assert_eq!(std::fs::read(part).unwrap(), content);
        for pair in server.asked.lock().unwrap().windows(2) {
            // Beside the handshake only the TLS record that was under way.
            let lost = KIB_64 - (pair[1] - pair[0]);
            assert!(lost <= AROUND + 16 * 1024, "{how:?}: {lost} bytes");
        }
    }
}

#[tokio::test]
async fn a_silent_https_source_is_asked_for_the_rest() {
    let (content, dir) = (bytes(500_000), tempfile::tempdir().unwrap());
    let server = Server::start(dir.path(), content.clone(), true).await;
    let cuts = Cuts { at_most: 2, ..Cuts::every(100_000, &[How::Silence]) };
    let cutter = Cutter::start(server.address, cuts).await;
    let fetcher = Fetcher::with_patience(&server.config(), None, impatient());
    let source = format!("https://localhost:{}/x", cutter.address.port());
    run(&fetcher, artifact(&content, vec![source]), &dir.path().join("x"), 60).await.unwrap();
    let asked = server.asked.lock().unwrap().clone();
    assert!(asked.len() == 3 && asked[1] > 70_000 && asked[2] > 140_000, "{asked:?}");
}

/// One that is cut before it gives anything, and one that begins anew each time: both are no progress.
#[tokio::test]
async fn without_progress_the_waits_grow_and_the_deadline_holds() {
    for (after, ranges) in [(1000, true), (KIB_64, false)] {
        let (content, dir) = (bytes(500_000), tempfile::tempdir().unwrap());
        let server = Server::start(dir.path(), content.clone(), ranges).await;
        let cutter = Cutter::start(server.address, Cuts::every(after, &[How::Reset])).await;
        let fetcher = Fetcher::new(&server.config(), None);
        let source = format!("https://localhost:{}/x", cutter.address.port());
        let began = Instant::now();
        let failed = run(&fetcher, artifact(&content, vec![source]), &dir.path().join("x"), 3).await;
        assert_eq!(failed.unwrap_err().code, ReasonCode::FetchFailed);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        // Waits of up to 0.5, 1, 2 … seconds; a storm would be hundreds.
        assert!(cutter.connections() < 40, "{} connections", cutter.connections());
    }
}
