//! Downloads, from a scripted controller and from HTTPS sources that misbehave.

mod cuts;
mod liars;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;
use upfleet_domain::{reason::ReasonCode, release::Platform};

use super::*;
use crate::{
    identity::tests::TestCa,
    testing::{FakeController, WEEK, server_config},
};

const SIZE: usize = 3 * 1024 * 1024 + 17;

fn content() -> Vec<u8> {
    (0..SIZE).map(|index| (index * 31 % 251) as u8).collect()
}

fn artifact(bytes: &[u8], sources: Vec<String>) -> ArtifactRef {
    use md5::Digest as _;
    ArtifactRef {
        platform: Platform { os: "linux".into(), arch: "any".into() },
        sha256: Digest::of(bytes),
        md5: Some(Md5Digest(md5::Md5::digest(bytes).into())),
        size: bytes.len() as u64,
        sources,
        encodings: vec![],
    }
}

struct Bench {
    dir: tempfile::TempDir,
    controller: FakeController,
    fetcher: Fetcher,
    said: Mutex<Vec<Progress>>,
}

impl Bench {
    async fn new(stored: Vec<u8>, config: FetchConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let controller = FakeController::start(stored).await;
        let connector = controller.connector(&dir.path().join("state"), WEEK);
        let fetcher = Fetcher::new(&config, Some(connector));
        Self { dir, controller, fetcher, said: Mutex::default() }
    }

    async fn fetch(&self, artifact: ArtifactRef) -> Result<Fetched, Reason> {
        let deadline = Some(Instant::now() + std::time::Duration::from_secs(60));
        let request = FetchRequest { artifact, part_path: self.part(), deadline };
        self.fetcher.fetch(request, &|progress| self.said.lock().unwrap().push(progress)).await
    }

    fn part(&self) -> PathBuf {
        self.dir.path().join("x.part")
    }
}

#[tokio::test]
async fn the_controllers_store_is_resumed_after_cuts_with_smaller_messages() {
    let bench = Bench::new(content(), FetchConfig::default()).await;
    *bench.controller.script.cuts.lock().unwrap() = vec![100_000, 1_000_000];
    let fetched = bench.fetch(artifact(&content(), vec![])).await.unwrap();
    assert_eq!(fetched.sha256, Digest::of(&content()));
    assert_eq!(std::fs::read(bench.part()).unwrap(), content());
    let asked = bench.controller.script.asked.lock().unwrap().clone();
    assert_eq!(asked, [(0, 1 << 20), (1_000_000, 1 << 19), (1_100_000, 1 << 18)]);
    let said = bench.said.lock().unwrap();
    assert_eq!(said.last(), Some(&Progress::Bytes(SIZE as u64)));
    assert_eq!(said.iter().filter(|said| matches!(said, Progress::Retrying(_))).count(), 2);
}

#[tokio::test]
async fn what_lies_there_is_not_fetched_again() {
    let bench = Bench::new(content(), FetchConfig::default()).await;
    std::fs::write(bench.part(), &content()[..2_000_000]).unwrap();
    bench.fetch(artifact(&content(), vec![])).await.unwrap();
    assert_eq!(bench.controller.script.asked.lock().unwrap()[0].0, 2_000_000);
    bench.fetch(artifact(&content(), vec![])).await.unwrap();
    assert_eq!(bench.controller.script.asked.lock().unwrap().len(), 1, "whole already");
}

#[tokio::test]
async fn a_damaged_beginning_is_thrown_away_and_fetched_anew() {
    let bench = Bench::new(content(), FetchConfig::default()).await;
    std::fs::write(bench.part(), vec![7; 2_000_000]).unwrap();
    bench.fetch(artifact(&content(), vec![])).await.unwrap();
    let offsets: Vec<u64> =
        bench.controller.script.asked.lock().unwrap().iter().map(|asked| asked.0).collect();
    assert_eq!(offsets, [2_000_000, 0]);
    assert_eq!(std::fs::read(bench.part()).unwrap(), content());
}

#[tokio::test]
async fn wrong_bytes_are_refused_with_both_digests_and_thrown_away() {
    let mut wrong = content();
    wrong[5] ^= 1;
    let bench = Bench::new(wrong.clone(), FetchConfig::default()).await;
    let reason = bench.fetch(artifact(&content(), vec![])).await.unwrap_err();
    assert_eq!(reason.code, ReasonCode::DigestMismatch);
    assert_eq!(reason.metadata["actual"], Digest::of(&wrong).to_string());
    assert_eq!(reason.metadata["expected"], Digest::of(&content()).to_string());
    assert!(reason.metadata.contains_key("actual_md5") && reason.metadata.contains_key("expected_md5"));
    assert_eq!(std::fs::metadata(bench.part()).unwrap().len(), 0);
}

#[tokio::test]
async fn more_than_the_manifest_says_is_refused() {
    let longer = [content(), vec![0; 10]].concat();
    let bench = Bench::new(longer, FetchConfig::default()).await;
    let reason = bench.fetch(artifact(&content(), vec![])).await.unwrap_err();
    assert_eq!(reason.code, ReasonCode::SizeMismatch);
    assert_eq!(std::fs::metadata(bench.part()).unwrap().len(), 0);
}

#[tokio::test]
async fn an_md5_can_only_add_a_refusal() {
    let bench = Bench::new(content(), FetchConfig::default()).await;
    let mut wrong = artifact(&content(), vec![]);
    wrong.md5 = Some(Md5Digest([0; 16]));
    assert_eq!(bench.fetch(wrong).await.unwrap_err().code, ReasonCode::Md5Mismatch);
    let none = ArtifactRef { md5: None, ..artifact(&content(), vec![]) };
    assert!(bench.fetch(none).await.is_ok());
}

#[tokio::test]
async fn an_artifact_that_is_nowhere_is_told_as_such() {
    let bench = Bench::new(vec![], FetchConfig::default()).await;
    let reason = bench.fetch(artifact(&content(), vec![])).await.unwrap_err();
    assert_eq!(reason.code, ReasonCode::FetchFailed);
    let forbidden = vec!["https://169.254.169.254/x".to_owned()];
    let reason = bench.fetch(artifact(&content(), forbidden)).await.unwrap_err();
    assert_eq!(reason.code, ReasonCode::SourceNotAllowed);
}

#[tokio::test]
async fn a_cancelled_download_goes_on_where_it_was() {
    let config = FetchConfig { rate_limit: Some(2_000_000), ..FetchConfig::default() };
    let bench = Bench::new(content(), config).await;
    {
        let fetching = bench.fetch(artifact(&content(), vec![]));
        let some = async {
            while !bench.said.lock().unwrap().iter().any(|said| matches!(said, Progress::Bytes(1..))) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::select! { _ = fetching => panic!("too fast"), () = some => {} }
    }
    bench.fetch(artifact(&content(), vec![])).await.unwrap();
    assert!(bench.controller.script.asked.lock().unwrap()[1].0 > 0);
    assert_eq!(std::fs::read(bench.part()).unwrap(), content());
}

/// An HTTPS source that gives one scripted answer to each request, and notes what was asked.
struct Mirror {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
    extra_ca: PathBuf,
}

impl Mirror {
    async fn start(dir: &std::path::Path, answers: Vec<Vec<u8>>) -> Self {
        let ca = TestCa::new();
        let extra_ca = dir.join("mirror-ca.pem");
        std::fs::write(&extra_ca, &ca.pem).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/x", listener.local_addr().unwrap().port());
        let acceptor = TlsAcceptor::from(server_config(&ca, b"http/1.1"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = asked.clone();
        tokio::spawn(async move {
            let mut answers = VecDeque::from(answers);
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
                let mut head = String::new();
                let mut reader = BufReader::new(&mut stream);
                while reader.read_line(&mut head).await.is_ok_and(|read| read > 2) {}
                noted.lock().unwrap().push(head.to_ascii_lowercase());
                let answer = answers.pop_front().unwrap_or_else(|| b"HTTP/1.1 404 Gone\r\n\r\n".to_vec());
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { url, asked, extra_ca }
    }

    fn config(&self) -> FetchConfig {
        let extra_ca = Some(self.extra_ca.clone());
        FetchConfig { allow_loopback: true, extra_ca, ..FetchConfig::default() }
    }
}

fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// Fetches from a mirror with scripted answers; the controller has nothing.
async fn from_mirror(answers: Vec<Vec<u8>>, begun: usize) -> (Result<Fetched, Reason>, Vec<String>, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let mirror = Mirror::start(dir.path(), answers).await;
    let bench = Bench::new(vec![], mirror.config()).await;
    if begun > 0 {
        std::fs::write(bench.part(), &content()[..begun]).unwrap();
    }
    let fetched = bench.fetch(artifact(&content(), vec![mirror.url.clone()])).await;
    let asked = mirror.asked.lock().unwrap().clone();
    (fetched, asked, std::fs::read(bench.part()).unwrap())
}

fn whole() -> Vec<u8> {
    answer(&format!("200 OK\r\nContent-Length: {SIZE}\r\nETag: \"v1\""), &content())
}

fn rest(from: usize) -> Vec<u8> {
    let range = format!("bytes {from}-{}/{SIZE}", SIZE - 1);
    let length = SIZE - from;
    let head = format!("206 Partial Content\r\nContent-Length: {length}\r\nContent-Range: {range}");
    answer(&head, &content()[from..])
}

#[tokio::test]
async fn https_is_resumed_by_range_and_only_if_it_is_the_same() {
    // Cut after the header and a million bytes.
    let mut cut = whole();
    cut.truncate(1_000_000);
    let got = cut.len() - whole().windows(4).position(|at| at == b"\r\n\r\n").unwrap() - 4;
    let (fetched, asked, part) = from_mirror(vec![cut, rest(got)], 0).await;
    assert_eq!(fetched.unwrap().size, SIZE as u64);
    assert_eq!(part, content());
    assert!(asked[1].contains(&format!("range: bytes={got}-")), "{}", asked[1]);
    assert!(asked[1].contains("if-range: \"v1\""), "{}", asked[1]);
}

#[tokio::test]
async fn a_whole_answer_to_a_range_means_start_over() {
    let (fetched, asked, part) = from_mirror(vec![whole()], 500_000).await;
    assert_eq!(fetched.unwrap().sha256, Digest::of(&content()));
    assert!(asked[0].contains("range: bytes=500000-"));
    assert_eq!(part, content());
}

#[tokio::test]
async fn sources_that_lie_about_the_length_are_given_up() {
    let short = answer("200 OK\r\nContent-Length: 5", b"short");
    // Without a length, only the end of the connection tells.
    let silent = answer("200 OK", b"short");
    let other = answer(&format!("206 Partial Content\r\nContent-Range: bytes 7-8/{SIZE}"), b"xx");
    for (lie, begun, code) in [
        (short, 0, ReasonCode::WrongCopy),
        (silent, 0, ReasonCode::WrongCopy),
        (answer("416 Range Not Satisfiable\r\nContent-Range: bytes */5", b""), 9, ReasonCode::SizeMismatch),
        (other, 9, ReasonCode::FetchFailed),
        (answer("403 Forbidden\r\nContent-Length: 0", b""), 0, ReasonCode::FetchFailed),
    ] {
        let (fetched, asked, _) = from_mirror(vec![lie], begun).await;
        assert_eq!(fetched.unwrap_err().code, code);
        assert_eq!(asked.len(), 1, "a lie is not asked for twice");
    }
}

#[tokio::test]
async fn a_source_in_trouble_is_asked_again() {
    let trouble = answer("503 Service Unavailable\r\nContent-Length: 0", b"");
    let (fetched, asked, _) = from_mirror(vec![trouble, whole()], 0).await;
    assert!(fetched.is_ok());
    assert_eq!(asked.len(), 2);
}

#[tokio::test]
async fn a_redirect_is_judged_like_a_first_address() {
    for target in ["https://169.254.169.254/x", "http://localhost/x", "https://10.0.0.1/x"] {
        let redirect = answer(&format!("302 Found\r\nLocation: {target}\r\nContent-Length: 0"), b"");
        let (fetched, _, _) = from_mirror(vec![redirect], 0).await;
        assert_eq!(fetched.unwrap_err().code, ReasonCode::SourceNotAllowed, "{target}");
    }
    let redirect = answer("302 Found\r\nLocation: /y\r\nContent-Length: 0", b"");
    let (fetched, asked, _) = from_mirror(vec![redirect, whole()], 0).await;
    assert!(fetched.is_ok());
    assert!(asked[1].starts_with("get /y "), "{}", asked[1]);
}

#[tokio::test]
async fn a_name_that_resolves_to_loopback_is_not_reached() {
    let dir = tempfile::tempdir().unwrap();
    let mirror = Mirror::start(dir.path(), vec![whole()]).await;
    let config = FetchConfig { allow_loopback: false, ..mirror.config() };
    let bench = Bench::new(content(), config).await;
    bench.fetch(artifact(&content(), vec![mirror.url.clone()])).await.unwrap();
    assert!(mirror.asked.lock().unwrap().is_empty(), "fetched from the controller instead");
    let retried = bench.said.lock().unwrap().iter().any(|said| matches!(said, Progress::Retrying(_)));
    assert!(!retried, "what is forbidden stays forbidden");
}

#[tokio::test]
async fn after_a_wrong_source_the_next_one_is_tried() {
    let dir = tempfile::tempdir().unwrap();
    let mut wrong = content();
    wrong[77] ^= 1;
    let answers = vec![answer(&format!("200 OK\r\nContent-Length: {SIZE}"), &wrong)];
    let mirror = Mirror::start(dir.path(), answers).await;
    let bench = Bench::new(content(), mirror.config()).await;
    let fetched = bench.fetch(artifact(&content(), vec![mirror.url.clone()])).await.unwrap();
    assert_eq!(fetched.sha256, Digest::of(&content()));
    assert_eq!(bench.controller.script.asked.lock().unwrap()[0].0, 0, "nothing of the wrong bytes was kept");
}
