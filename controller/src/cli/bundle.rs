//! `upfleet release export` and `import`: releases in one file, for sites without a connection.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
};

use serde::Serialize;
use upfleet_api::v1;
use upfleet_domain::{
    bundle::{self, Brought, Bundle, BundleError, Bundled, FORMAT, Piece, Reader},
    digest::Digest,
    release::{Kind, Manifest, parse_manifest},
};

use super::{
    app::App,
    artifact,
    client::Client,
    failure::{Failure, Result},
    file,
    render::bytes,
    resource,
};
use crate::exit::Exit;

/// What is exported or imported, for programs.
#[derive(Serialize)]
struct Listed {
    release: String,
    kind: &'static str,
    manifest: String,
    /// Of an import: whether it was there already.
    #[serde(skip_serializing_if = "Option::is_none")]
    known: Option<bool>,
}

fn listed(manifest: &Manifest, bytes: &[u8], known: Option<bool>) -> Listed {
    Listed {
        release: format!("{}@{}", manifest.component, manifest.version),
        kind: manifest.kind.as_str(),
        manifest: Digest::of(bytes).to_string(),
        known,
    }
}

/// Writes releases with their signatures and artifacts into one file.
pub(super) async fn export(app: &App, names: &[String], path: &Path) -> Result<Exit> {
    let client = app.connect().await?;
    let mut releases = Vec::new();
    for name in names {
        releases.push(fetch(&client, name).await?);
    }
    // Bases before their patches: they are stored in this order.
    releases.sort_by_key(|release| release.manifest.patch.as_ref().map(|patch| patch.number));
    let mut seen = BTreeSet::new();
    releases.retain(|release| seen.insert(Digest::of(&release.bytes)));
    let piece = |bytes: &[u8]| Piece { sha256: Digest::of(bytes), size: bytes.len() as u64 };
    let mut artifacts: Vec<Piece> = Vec::new();
    for artifact in releases.iter().flat_map(|release| &release.manifest.artifacts) {
        if artifacts.iter().all(|known| known.sha256 != artifact.sha256) {
            artifacts.push(Piece { sha256: artifact.sha256, size: artifact.size });
        }
    }
    let index = Bundle {
        format: FORMAT,
        releases: releases
            .iter()
            .map(|release| Bundled {
                component: release.manifest.component.clone(),
                version: release.manifest.version.clone(),
                manifest: piece(&release.bytes),
                signatures: release.signatures.iter().map(|signature| bundle::hex(signature)).collect(),
            })
            .collect(),
        artifacts,
    };
    let size = write(app, &client, &index, &releases, path).await?;
    let list: Vec<Listed> =
        releases.iter().map(|release| listed(&release.manifest, &release.bytes, None)).collect();
    app.show_list("releases", &list, |_| {
        let names: Vec<&str> = list.iter().map(|one| one.release.as_str()).collect();
        format!(
            "{} in {}, {}\nnext: upfleet release import {1}, or on a node: upfleet-agent apply {1}\n",
            names.join(", "),
            path.display(),
            bytes(size)
        )
    });
    Ok(Exit::Success)
}

async fn fetch(client: &Client, name: &str) -> Result<Brought> {
    let request = v1::GetReleaseRequest { name: resource("releases", name) };
    let release = client.releases().get_release(request).await?.into_inner().release.unwrap_or_default();
    let manifest = parse_manifest(&release.manifest).map_err(|reason| Failure::of_reason(&reason))?;
    let signatures = release.signatures.iter().map(|signature| signature.to_vec()).collect();
    Ok(Brought { manifest, bytes: release.manifest.to_vec(), signatures })
}

/// Writes beside the name and renames: nobody meets half a bundle.
async fn write(app: &App, client: &Client, index: &Bundle, releases: &[Brought], path: &Path) -> Result<u64> {
    let io = |error: std::io::Error| Failure::io("write", path, &error);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let aside = tempfile::tempdir_in(dir).map_err(io)?;
    let part = aside.path().join("bundle");
    let mut out = BufWriter::new(File::create(&part).map_err(io)?);
    bundle::index(&mut out, index).map_err(io)?;
    for release in releases {
        let name = Bundle::manifest_name(&Digest::of(&release.bytes));
        bundle::file(&mut out, &name, release.bytes.len() as u64, &mut &release.bytes[..]).map_err(io)?;
    }
    for artifact in &index.artifacts {
        let copy = aside.path().join(artifact.sha256.to_string());
        artifact::fetch(app, client, &artifact.sha256, &copy).await.map_err(|failure| {
            let tried = format!("could not get artifact {}", artifact.sha256.short());
            failure.while_trying(tried).hint("artifacts that only other sources have can't be exported")
        })?;
        let mut from = File::open(&copy).map_err(io)?;
        bundle::file(&mut out, &Bundle::artifact_name(&artifact.sha256), artifact.size, &mut from)
            .map_err(io)?;
        let _ = std::fs::remove_file(&copy);
    }
    bundle::end(&mut out).map_err(io)?;
    out.flush().map_err(io)?;
    let file = out.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    std::fs::rename(&part, path).map_err(io)?;
    Ok(size)
}

/// A bundle whose artifacts lie in a directory, each checked.
struct Unpacked {
    releases: Vec<Brought>,
    artifacts: Vec<PathBuf>,
    _aside: tempfile::TempDir,
}

fn unpack(path: &Path) -> Result<Unpacked> {
    let io = |error: std::io::Error| Failure::io("read", path, &error);
    let refused = |error: BundleError| match error {
        BundleError::Refused(reason) => {
            Failure::of_reason(&reason).while_trying(format!("could not import `{}`", path.display()))
        }
        BundleError::Io(error) => io(error),
        _ => Failure::usage("the bundle can't be read"),
    };
    let aside = tempfile::tempdir().map_err(io)?;
    let mut reader = Reader::open(BufReader::new(File::open(path).map_err(io)?)).map_err(refused)?;
    let mut artifacts = Vec::new();
    loop {
        let Some(upcoming) = reader.upcoming() else {
            reader.artifact(&mut std::io::sink()).map_err(refused)?;
            break;
        };
        let path = aside.path().join(upcoming.sha256.to_string());
        let mut file = File::create(&path).map_err(io)?;
        reader.artifact(&mut file).map_err(refused)?;
        artifacts.push(path);
    }
    Ok(Unpacked { releases: reader.releases().to_vec(), artifacts, _aside: aside })
}

/// Uploads what a bundle brings and stores its releases, verbatim. What is there already stays.
pub(super) async fn import(app: &App, path: &Path) -> Result<Exit> {
    let unpacked = unpack(path)?;
    let client = app.connect_to_change().await?;
    for artifact in &unpacked.artifacts {
        let facts = file::facts(artifact)?;
        artifact::upload(app, &client, artifact, &facts).await?;
    }
    let mut list = Vec::new();
    for release in &unpacked.releases {
        let known = store(app, &client, release).await?;
        list.push(listed(&release.manifest, &release.bytes, Some(known)));
    }
    app.show_list("releases", &list, |_| {
        let line = |one: &Listed| {
            let what = if one.known == Some(true) { "was there already" } else { "is stored" };
            format!("{} {what}\n", one.release)
        };
        list.iter().map(line).collect()
    });
    Ok(Exit::Success)
}

/// Stores a release; `true` where the very same one was there already.
async fn store(app: &App, client: &Client, release: &Brought) -> Result<bool> {
    match publish(&app.again(), client, release).await {
        Ok(_) => Ok(false),
        Err(failure) if failure.reason.as_deref() == Some("ALREADY_EXISTS") => {
            let name = format!("{}@{}", release.manifest.component, release.manifest.version);
            let there = fetch(client, &name).await?;
            if there.bytes == release.bytes { Ok(true) } else { Err(failure) }
        }
        Err(failure) => Err(failure),
    }
}

/// Stores a manifest's bytes as they are.
pub(super) async fn publish(app: &App, client: &Client, release: &Brought) -> Result<v1::Release> {
    let request = v1::CreateReleaseRequest {
        manifest: release.bytes.clone().into(),
        signatures: release.signatures.iter().map(|signature| signature.clone().into()).collect(),
        request_id: app.request_id(),
        ..Default::default()
    };
    let answer = client.releases().create_release(request).await;
    let name = format!("{}@{}", release.manifest.component, release.manifest.version);
    let answer =
        answer.map_err(|status| Failure::from(status).while_trying(format!("could not publish `{name}`")))?;
    Ok(answer.into_inner().release.unwrap_or_default())
}

/// Whether a release is a base that patches go on.
pub(super) fn is_base(kind: &str) -> bool {
    kind != Kind::Patch.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_bundle_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.bundle");
        std::fs::write(&path, [b'x'; 2048]).unwrap();
        let failure = unpack(&path).err().unwrap();
        assert_eq!((failure.exit, failure.reason.as_deref()), (Exit::Usage, Some("ARCHIVE_HOSTILE")));
        assert!(unpack(&dir.path().join("none")).is_err());
    }
}
