//! Bundles written and read back, and what is refused.

use super::*;
use crate::release::{ArtifactRef, Kind, Platform};

fn manifest(version: &str, artifact: &[u8]) -> Manifest {
    Manifest {
        format: crate::release::FORMAT,
        component: "app".parse().unwrap(),
        version: version.parse().unwrap(),
        sequence: 1,
        kind: Kind::Binary,
        notes: String::new(),
        artifacts: vec![ArtifactRef {
            platform: Platform { os: "linux".into(), arch: "any".into() },
            sha256: Digest::of(artifact),
            md5: None,
            size: artifact.len() as u64,
            sources: vec![],
            encodings: vec![],
        }],
        fixes: vec![],
        patch: None,
        files: None,
    }
}

fn piece(bytes: &[u8]) -> Piece {
    Piece { sha256: Digest::of(bytes), size: bytes.len() as u64 }
}

const BYTES: [&[u8]; 2] = [b"first artifact", &[7; 1024]];

fn bundle() -> (Bundle, Vec<Vec<u8>>) {
    let manifests = vec![manifest("1.0", BYTES[0]).to_bytes(), manifest("2.0", BYTES[1]).to_bytes()];
    let releases = ["1.0", "2.0"].iter().zip(&manifests).map(|(version, bytes)| Bundled {
        component: "app".parse().unwrap(),
        version: version.parse().unwrap(),
        manifest: piece(bytes),
        signatures: vec![hex(b"signed")],
    });
    let bundle = Bundle {
        format: FORMAT,
        releases: releases.collect(),
        artifacts: BYTES.iter().map(|bytes| piece(bytes)).collect(),
    };
    (bundle, manifests)
}

fn written(bundle: &Bundle, manifests: &[Vec<u8>], artifacts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    index(&mut out, bundle).unwrap();
    for (release, bytes) in bundle.releases.iter().zip(manifests) {
        let name = Bundle::manifest_name(&release.manifest.sha256);
        file(&mut out, &name, bytes.len() as u64, &mut &bytes[..]).unwrap();
    }
    for (artifact, bytes) in bundle.artifacts.iter().zip(artifacts) {
        let name = Bundle::artifact_name(&artifact.sha256);
        file(&mut out, &name, bytes.len() as u64, &mut &bytes[..]).unwrap();
    }
    end(&mut out).unwrap();
    out
}

fn whole() -> Vec<u8> {
    let (bundle, manifests) = bundle();
    written(&bundle, &manifests, &BYTES)
}

/// Reads to the end.
fn read(bytes: &[u8]) -> Result<Vec<Vec<u8>>, BundleError> {
    let mut reader = Reader::open(bytes)?;
    let mut artifacts = Vec::new();
    loop {
        let mut artifact = Vec::new();
        if reader.artifact(&mut artifact)?.is_none() {
            return Ok(artifacts);
        }
        artifacts.push(artifact);
    }
}

#[test]
fn what_was_written_is_read_back() {
    let bytes = whole();
    let reader = Reader::open(&bytes[..]).unwrap();
    assert_eq!(reader.releases()[1].manifest, manifest("2.0", BYTES[1]));
    assert_eq!(reader.releases()[0].bytes, manifest("1.0", BYTES[0]).to_bytes());
    assert_eq!(reader.releases()[0].signatures, [b"signed".to_vec()]);
    assert_eq!(read(&bytes).unwrap(), BYTES);
    assert_eq!(bytes, whole(), "the same releases make the same bytes");
    // A tar program fills up to its own block size.
    let mut filled = bytes.clone();
    filled.resize(bytes.len().next_multiple_of(10_240), 0);
    assert_eq!(read(&filled).unwrap(), BYTES);
}

#[test]
fn every_flipped_byte_is_noticed() {
    let bytes = whole();
    for at in (0..bytes.len()).step_by(37) {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        // Bytes that fill a block say nothing and are passed over.
        if let Ok(artifacts) = read(&bad) {
            assert_eq!(artifacts, BYTES, "byte {at}");
        }
    }
}

#[test]
fn every_cut_is_noticed() {
    let bytes = whole();
    for at in (0..bytes.len()).step_by(101) {
        assert!(matches!(read(&bytes[..at]), Err(BundleError::Refused(_))), "cut at {at}");
    }
}

#[test]
fn hostile_files_are_refused() {
    let (good, manifests) = bundle();
    let refuse = |what: &str, bytes: &[u8]| match read(bytes) {
        Err(BundleError::Refused(reason)) => reason,
        other => panic!("{what}: {other:?}"),
    };
    // Names are never used as paths: one that is not the expected one ends it.
    for name in ["../../etc/passwd", "/etc/passwd", "artifacts/x", INDEX] {
        let mut bytes = Vec::new();
        index(&mut bytes, &good).unwrap();
        file(&mut bytes, name, 1, &mut &b"x"[..]).unwrap();
        end(&mut bytes).unwrap();
        refuse(name, &bytes);
    }
    let more = |change: fn(&mut Bundle)| {
        let mut bundle = good.clone();
        change(&mut bundle);
        written(&bundle, &manifests, &BYTES)
    };
    refuse("format", &more(|bundle| bundle.format = 2));
    refuse("no release", &more(|bundle| bundle.releases.clear()));
    refuse("twice", &more(|bundle| bundle.artifacts[1] = bundle.artifacts[0]));
    refuse("a bomb", &more(|bundle| bundle.artifacts[0].size = u64::MAX));
    refuse("another length", &more(|bundle| bundle.artifacts[0].size += 1));
    refuse("another version", &more(|bundle| bundle.releases[0].version = "9.9".parse().unwrap()));
    refuse("no hex", &more(|bundle| bundle.releases[0].signatures = vec!["zz".into()]));
    refuse("too many signatures", &more(|bundle| bundle.releases[0].signatures = vec!["00".into(); 17]));
    // An artifact of nobody.
    let mut foreign = good.clone();
    foreign.artifacts.push(piece(b"foreign"));
    refuse("foreign", &written(&foreign, &manifests, &[BYTES[0], BYTES[1], b"foreign"]));
    // More behind the end.
    let mut longer = whole();
    longer.extend_from_slice(b"#!/bin/sh");
    refuse("more", &longer);
    refuse("empty", b"");
    refuse("no tar", &[b'x'; 4096]);
    // Something else than a plain file under the right name.
    for kind in *b"125LKxg" {
        let mut bytes = whole();
        bytes[156] = kind;
        let sum: u32 =
            (0..512).map(|at| if (148..156).contains(&at) { 32 } else { u32::from(bytes[at]) }).sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert!(refuse("kind", &bytes).message().contains("no plain file"), "{}", char::from(kind));
    }
}

#[test]
fn long_files_have_headers_too() {
    for size in [0, 511, 512, 8 << 30, 64 << 30] {
        let block = header::write("artifacts/x", false, size);
        assert_eq!(header::read(&block), Ok(("artifacts/x".to_owned(), size)));
    }
}
