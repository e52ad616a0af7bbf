//! Torn, wrong, concurrent and damaged: what a name must never stand for.

use std::{
    os::unix::fs::PermissionsExt,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use upfleet_domain::digest::Md5Digest;

use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    blobs: Blobs,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path(), Limits { reserve: 0, ..Limits::default() }).unwrap();
    Fixture { dir, blobs }
}

/// Three megabytes and a bit, so that pieces don't come out even.
fn sample() -> Bytes {
    (0..3 * PIECE + 17).map(|n| (n * 31 % 251) as u8).collect::<Vec<u8>>().into()
}

async fn put(blobs: &Blobs, bytes: &Bytes) -> Result<Uploaded> {
    let mut upload = blobs.upload(Digest::of(bytes), bytes.len() as u64, 0).await?;
    for piece in bytes.chunks(PIECE) {
        upload.write(bytes.slice_ref(piece)).await?;
    }
    upload.commit().await
}

async fn get(blobs: &Blobs, digest: Digest, piece: u64) -> Result<Vec<u8>> {
    let blob = blobs.read(digest).await?;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < blob.size() {
        bytes.extend(blob.read_at(bytes.len() as u64, piece).await?);
    }
    Ok(bytes)
}

fn md5(bytes: &[u8]) -> Md5Digest {
    use md5::Digest as _;
    Md5Digest(md5::Md5::digest(bytes).into())
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("incoming")).unwrap().count()
}

#[tokio::test]
async fn what_was_put_is_got_by_range() {
    let Fixture { dir, blobs } = fixture();
    let bytes = sample();
    let uploaded = put(&blobs, &bytes).await.unwrap();
    assert_eq!((uploaded.digest, uploaded.size), (Digest::of(&bytes), bytes.len() as u64));
    assert_eq!(uploaded.md5, md5(&bytes));
    for piece in [1 << 16, 1_000_003, u64::MAX] {
        assert_eq!(get(&blobs, uploaded.digest, piece).await.unwrap(), bytes, "{piece}");
    }
    let blob = blobs.read(uploaded.digest).await.unwrap();
    assert_eq!(blob.read_at(blob.size(), 5).await.unwrap(), Bytes::new());
    assert!(matches!(blob.read_at(blob.size() + 1, 5).await, Err(BlobError::Range { .. })));
    let file = dir.path().join(uploaded.digest.to_string());
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!((files(dir.path()), blobs.total()), (0, bytes.len() as u64));
    assert_eq!(blobs.size(uploaded.digest).await.unwrap(), Some(bytes.len() as u64));
    blobs.delete(uploaded.digest).await.unwrap();
    assert!(matches!(blobs.read(uploaded.digest).await, Err(BlobError::Missing(_))));
    assert!(guard(&blobs.0.verified).is_empty(), "what is missing is not remembered");
    assert_eq!(blob.read_at(0, 3).await.unwrap(), bytes[..3], "a reader under way finishes");
    assert_eq!(blobs.total(), 0);
}

#[tokio::test]
async fn a_torn_upload_is_resumed_where_it_stood() {
    let Fixture { dir, blobs } = fixture();
    let bytes = sample();
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    let mut upload = blobs.upload(digest, size, 0).await.unwrap();
    upload.write(bytes.slice(..1000)).await.unwrap();
    drop(upload);
    // Also by another process: nothing about an upload is in memory.
    let blobs = Blobs::open(dir.path(), Limits { reserve: 0, ..Limits::default() }).unwrap();
    assert!(matches!(blobs.read(digest).await, Err(BlobError::Missing(_))), "a part has no name");
    assert_eq!(blobs.upload_offset(digest).await.unwrap(), 1000);
    let wrong = blobs.upload(digest, size, 999).await.err().unwrap();
    assert!(matches!(wrong, BlobError::WrongOffset { expected: 1000, actual: 999 }), "{wrong}");
    let mut upload = blobs.upload(digest, size, 1000).await.unwrap();
    upload.write(bytes.slice(1000..5000)).await.unwrap();
    let short = upload.commit().await.unwrap_err();
    assert!(matches!(short, BlobError::WrongSize { actual: 5000, .. }), "{short}");
    let mut upload = blobs.upload(digest, size, 5000).await.unwrap();
    upload.write(bytes.slice(5000..)).await.unwrap();
    let uploaded = upload.commit().await.unwrap();
    assert_eq!(uploaded.md5, md5(&bytes));
    assert_eq!(get(&blobs, digest, u64::MAX).await.unwrap(), bytes);
}

/// A power cut can leave a part of the right length with other bytes.
#[tokio::test]
async fn a_part_with_wrong_bytes_never_gets_the_name() {
    let Fixture { dir, blobs } = fixture();
    let bytes = sample();
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    std::fs::write(dir.path().join("incoming").join(format!("{digest}.part")), vec![0; 4096]).unwrap();
    let mut upload = blobs.upload(digest, size, 4096).await.unwrap();
    upload.write(bytes.slice(4096..)).await.unwrap();
    let wrong = upload.commit().await.unwrap_err();
    assert!(matches!(wrong, BlobError::WrongDigest { expected, .. } if expected == digest), "{wrong}");
    assert_eq!((blobs.upload_offset(digest).await.unwrap(), files(dir.path())), (0, 0));
    assert!(matches!(blobs.read(digest).await, Err(BlobError::Missing(_))));
    put(&blobs, &bytes).await.unwrap();
}

#[tokio::test]
async fn too_many_bytes_are_thrown_away() {
    let Fixture { dir, blobs } = fixture();
    let bytes = sample();
    let mut upload = blobs.upload(Digest::of(&bytes), 100, 0).await.unwrap();
    upload.write(bytes.slice(..60)).await.unwrap();
    let wrong = upload.write(bytes.slice(..60)).await.unwrap_err();
    assert!(matches!(wrong, BlobError::WrongSize { expected: 100, actual: 120 }), "{wrong}");
    assert!(upload.write(bytes.slice(..1)).await.is_err(), "nothing succeeds after a failure");
    assert_eq!(files(dir.path()), 0);
}

#[tokio::test]
async fn a_digest_has_one_writer() {
    let Fixture { dir: _dir, blobs } = fixture();
    let bytes = sample();
    let digest = Digest::of(&bytes);
    let first = blobs.upload(digest, bytes.len() as u64, 0).await.unwrap();
    assert!(matches!(blobs.upload(digest, bytes.len() as u64, 0).await, Err(BlobError::Busy(_))));
    assert!(matches!(blobs.delete(digest).await, Err(BlobError::Busy(_))));
    drop(first);
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (blobs, bytes) = (blobs.clone(), bytes.clone());
        writers.spawn(async move { put(&blobs, &bytes).await });
    }
    for outcome in writers.join_all().await {
        assert!(matches!(outcome, Ok(_) | Err(BlobError::Busy(_))), "{outcome:?}");
    }
    assert_eq!(get(&blobs, digest, u64::MAX).await.unwrap(), bytes);
    assert_eq!(blobs.total(), bytes.len() as u64, "counted once, however often it is written");
}

#[tokio::test]
async fn damage_is_never_served_and_a_new_upload_mends_it() {
    let Fixture { dir, blobs } = fixture();
    let bytes = sample();
    let digest = put(&blobs, &bytes).await.unwrap().digest;
    let file = dir.path().join(digest.to_string());
    let mut damaged = bytes.to_vec();
    damaged[2_000_000] ^= 1;
    for bad in [&damaged[..], &bytes[..77]] {
        blobs.read(digest).await.unwrap();
        std::fs::write(&file, bad).unwrap();
        let found = blobs.read(digest).await.unwrap_err();
        assert!(matches!(found, BlobError::Damaged(_)), "{found}");
        assert_eq!(found.reason().code, upfleet_domain::reason::ReasonCode::ArtifactDamaged);
        let again = Blobs::open(dir.path(), Limits::default()).unwrap();
        assert!(matches!(again.read(digest).await, Err(BlobError::Damaged(_))), "also after a restart");
        put(&blobs, &bytes).await.unwrap();
    }
    assert_eq!(get(&blobs, digest, u64::MAX).await.unwrap(), bytes);
}

#[tokio::test]
async fn limits_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { artifact: 100, total: 150, uploads: 1, reserve: 0 };
    let blobs = Blobs::open(dir.path(), limits).unwrap();
    let limit = |outcome: Result<Upload>| matches!(outcome, Err(BlobError::Limit { .. }));
    assert!(limit(blobs.upload(Digest::of(b"x"), 101, 0).await));
    put(&blobs, &Bytes::from(vec![7; 80])).await.unwrap();
    assert!(limit(blobs.upload(Digest::of(b"x"), 80, 0).await));
    let _one = blobs.upload(Digest::of(b"x"), 10, 0).await.unwrap();
    assert!(limit(blobs.upload(Digest::of(b"y"), 10, 0).await));
    let full = Blobs::open(dir.path(), Limits { reserve: u64::MAX, ..Limits::default() }).unwrap();
    let error = full.upload(Digest::of(b"z"), 10, 0).await.err().unwrap();
    assert_eq!(error.reason().code, upfleet_domain::reason::ReasonCode::StoreUnavailable);
}

#[tokio::test]
async fn only_what_is_given_up_is_collected() {
    let Fixture { dir, blobs } = fixture();
    let kept = put(&blobs, &Bytes::from_static(b"kept")).await.unwrap().digest;
    let orphan = put(&blobs, &Bytes::from_static(b"orphan")).await.unwrap().digest;
    let mut upload = blobs.upload(Digest::of(b"torn"), 4, 0).await.unwrap();
    upload.write(Bytes::from_static(b"to")).await.unwrap();
    let live = blobs.upload(Digest::of(b"live"), 4, 0).await.unwrap();
    drop(upload);
    let collect =
        |hours: u64| blobs.collect([kept].into(), SystemTime::now() + Duration::from_secs(hours * 3600));
    assert_eq!(collect(23).await.unwrap(), Collected::default());
    assert_eq!(collect(25).await.unwrap(), Collected { uploads: 1, artifacts: 1 });
    assert!(blobs.read(kept).await.is_ok());
    assert!(matches!(blobs.read(orphan).await, Err(BlobError::Missing(_))));
    assert_eq!(files(dir.path()), 1, "the live one");
    drop(live);
}
