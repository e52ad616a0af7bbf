//! Sources that give too little, too much, or nearly nothing.

use std::time::Duration;

use super::*;

/// An HTTPS source that gives `head`, then `piece` after each `pause`, for ever.
async fn dribble(
    dir: &std::path::Path,
    head: String,
    piece: &'static [u8],
    pause: Duration,
) -> (String, PathBuf) {
    let ca = TestCa::new();
    let authority = dir.join("dribble-ca.pem");
    std::fs::write(&authority, &ca.pem).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/x", listener.local_addr().unwrap().port());
    let acceptor = TlsAcceptor::from(server_config(&ca, b"http/1.1"));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, head) = (acceptor.clone(), head.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(tcp).await else { return };
                let mut sent = stream.write_all(head.as_bytes()).await;
                while sent.is_ok() {
                    sent = stream.write_all(piece).await;
                    let _ = stream.flush().await;
                    tokio::time::sleep(pause).await;
                }
            });
        }
    });
    (url, authority)
}

async fn bench(stored: Vec<u8>, authority: PathBuf, patience: Patience) -> Bench {
    let config = FetchConfig { allow_loopback: true, extra_ca: Some(authority), ..FetchConfig::default() };
    let mut bench = Bench::new(stored, config.clone()).await;
    let connector = bench.controller.connector(&bench.dir.path().join("again"), WEEK);
    bench.fetcher = Fetcher::with_patience(&config, Some(connector), patience);
    bench
}

#[tokio::test]
async fn a_copy_that_is_too_short_is_told_with_both_digests_and_lengths() {
    let cut = &content()[..1000];
    for head in ["200 OK\r\nContent-Length: 1000", "200 OK"] {
        let (fetched, asked, part) = from_mirror(vec![answer(head, cut)], 0).await;
        let reason = fetched.unwrap_err();
        assert_eq!(reason.code, ReasonCode::WrongCopy, "{reason}");
        let told = reason.message();
        for part in [Digest::of(cut).to_string(), Digest::of(&content()).to_string()] {
            assert!(told.contains(&part), "{told}");
        }
        assert!(told.contains("1000 bytes") && told.contains(&format!("{SIZE} bytes")), "{told}");
        assert_eq!((asked.len(), part.len()), (1, 0), "asked once, and nothing of it is kept");
    }
}

#[tokio::test]
async fn after_a_copy_that_is_too_short_the_next_source_is_tried() {
    let dir = tempfile::tempdir().unwrap();
    let mirror = Mirror::start(dir.path(), vec![answer("200 OK", &content()[..1000])]).await;
    let bench = Bench::new(content(), mirror.config()).await;
    let fetched = bench.fetch(artifact(&content(), vec![mirror.url.clone()])).await.unwrap();
    assert_eq!(fetched.sha256, Digest::of(&content()));
    assert_eq!(bench.controller.script.asked.lock().unwrap()[0].0, 0, "nothing of the wrong copy was kept");
}

/// One byte after the other would take a month; the next source is asked instead.
#[tokio::test]
async fn a_trickle_yields_to_the_next_source() {
    let dir = tempfile::tempdir().unwrap();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
    let (url, authority) = dribble(dir.path(), head, b"x", Duration::from_millis(20)).await;
    let patience = Patience { window: Duration::from_millis(500), ..Patience::default() };
    let bench = bench(content(), authority, patience).await;
    let began = Instant::now();
    let fetched = bench.fetch(artifact(&content(), vec![url])).await.unwrap();
    assert_eq!(fetched.sha256, Digest::of(&content()));
    let said = bench.said.lock().unwrap();
    let slow = said
        .iter()
        .any(|said| matches!(said, Progress::Retrying(reason) if reason.message().contains("too slow")));
    assert!(slow, "{said:?}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

/// Where there is no other source, the deadline ends it.
#[tokio::test]
async fn a_trickle_ends_at_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
    let (url, authority) = dribble(dir.path(), head, b"x", Duration::from_millis(20)).await;
    let patience = Patience { window: Duration::from_millis(300), ..Patience::default() };
    let bench = bench(vec![], authority, patience).await;
    let deadline = Some(Instant::now() + Duration::from_secs(2));
    let request =
        FetchRequest { artifact: artifact(&content(), vec![url]), part_path: bench.part(), deadline };
    let quiet = |_: Progress| {};
    let fetching = bench.fetcher.fetch(request, &quiet);
    let reason =
        tokio::time::timeout(Duration::from_secs(10), fetching).await.expect("the deadline").unwrap_err();
    assert_eq!(reason.code, ReasonCode::FetchFailed);
    assert!(reason.message().contains("too slow"), "{reason}");
}

/// Bytes without an end: no more is taken than the manifest says, and nothing of it stays.
#[tokio::test]
async fn bytes_without_an_end_are_stopped_at_the_manifests_length() {
    static PIECE: [u8; 65_536] = [7; 65_536];
    let dir = tempfile::tempdir().unwrap();
    let head = "HTTP/1.1 200 OK\r\n\r\n".to_owned();
    let (url, authority) = dribble(dir.path(), head, &PIECE, Duration::ZERO).await;
    let bench = bench(vec![], authority, Patience::default()).await;
    let reason = bench.fetch(artifact(&content(), vec![url])).await.unwrap_err();
    assert_eq!(reason.code, ReasonCode::SizeMismatch, "{reason}");
    let taken = bench
        .said
        .lock()
        .unwrap()
        .iter()
        .filter_map(|said| match said {
            Progress::Bytes(bytes) => Some(*bytes),
            Progress::Retrying(_) => None,
        })
        .max();
    assert!(taken <= Some(SIZE as u64), "{taken:?}");
    assert_eq!(std::fs::metadata(bench.part()).unwrap().len(), 0);
}
