//! `upfleet artifact`: immutable bytes named by their SHA-256.

use std::{
    io::{SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use clap::Subcommand;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_stream::wrappers::ReceiverStream;
use upfleet_api::v1::{self, upload_artifact_request::Part};
use upfleet_domain::digest::Digest;

use super::{
    app::App,
    client::Client,
    failure::{Failure, Result},
    file::{self, Facts},
    page::pages,
    render::{Table, bytes, date, hex, id},
    resource,
};
use crate::exit::Exit;

/// So many bytes go in one message.
const CHUNK: usize = 256 * 1024;
/// A broken upload is resumed so often before it is given up.
const ATTEMPTS: u32 = 5;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Upload a file; a broken upload goes on where it stopped.
    Upload {
        /// The file.
        file: PathBuf,
    },
    /// List artifacts, newest first.
    List,
    /// Show one artifact and the releases that name it.
    Show {
        /// Its SHA-256 in hex.
        digest: String,
    },
    /// Delete an artifact that no release names.
    Delete {
        /// Its SHA-256 in hex.
        digest: String,
    },
    /// Download an artifact, going on where an earlier try stopped, and check its digest.
    Download {
        /// Its SHA-256 in hex.
        digest: String,
        /// The file to write.
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
}

pub(super) async fn run(app: &App, command: Command) -> Result<Exit> {
    match command {
        Command::Upload { file } => {
            let facts = file::facts(&file)?;
            let client = app.connect_to_change().await?;
            let artifact = upload(app, &client, &file, &facts).await?;
            app.show(&artifact, |_| format!("{}\n", details(&artifact)));
        }
        Command::List => {
            let client = app.connect().await?;
            let artifacts =
                pages!(client.artifacts(), list_artifacts, v1::ListArtifactsRequest::default(), artifacts);
            app.show_list("artifacts", &artifacts, |paint| {
                let mut table =
                    Table::new(&["ARTIFACT", "SIZE", "CREATED", "BY", "RELEASES"], "No artifacts.");
                for artifact in &artifacts {
                    let name = id(&artifact.name);
                    table.row([
                        if app.is_wide() { name.to_owned() } else { name.chars().take(12).collect() },
                        bytes(artifact.size_bytes),
                        date(artifact.create_time.as_ref()),
                        id(&artifact.creator).to_owned(),
                        artifact.releases.join(", "),
                    ]);
                }
                table.text(paint)
            });
        }
        Command::Show { digest } => {
            let name = resource("artifacts", &digest);
            let answer =
                app.connect().await?.artifacts().get_artifact(v1::GetArtifactRequest { name }).await?;
            let artifact = answer.into_inner().artifact.unwrap_or_default();
            app.show(&artifact, |_| details(&artifact));
        }
        Command::Delete { digest } => {
            let client = app.connect_to_change().await?;
            app.confirm(&format!("delete artifact {digest}"))?;
            let name = resource("artifacts", &digest);
            client.artifacts().delete_artifact(v1::DeleteArtifactRequest { name }).await?;
            app.note(format!("Artifact {digest} is deleted."));
        }
        Command::Download { digest, file } => download(app, &digest, &file).await?,
    }
    Ok(Exit::Success)
}

fn details(artifact: &v1::Artifact) -> String {
    format!(
        "artifact  {}\nmd5       {}\nsize      {} ({} bytes)\ncreated   {} by {}\nreleases  {}\n",
        id(&artifact.name),
        hex(artifact.md5_digest.as_ref()),
        bytes(artifact.size_bytes),
        artifact.size_bytes,
        date(artifact.create_time.as_ref()),
        id(&artifact.creator),
        artifact.releases.join(", "),
    )
}

fn wire(digest: &Digest) -> Option<v1::Digest> {
    Some(v1::Digest {
        algorithm: v1::DigestAlgorithm::Sha256.into(),
        value: Bytes::copy_from_slice(&digest.0),
    })
}

/// Uploads what is not there yet; asks for the offset again after each break.
pub(crate) async fn upload(app: &App, client: &Client, path: &Path, facts: &Facts) -> Result<v1::Artifact> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let bar = app.byte_bar(facts.size, &name);
    let mut attempt = 1;
    loop {
        let request = v1::GetArtifactUploadRequest { digest: wire(&facts.sha256) };
        let stands = client.artifacts().get_artifact_upload(request).await.map(tonic::Response::into_inner);
        let result = match stands {
            Ok(v1::GetArtifactUploadResponse { artifact: Some(artifact), .. }) => return Ok(artifact),
            Ok(stands) => upload_from(client, path, facts, stands.offset, &bar).await,
            Err(status) => Err(Failure::from(status)),
        };
        match result {
            Err(failure) if failure.is_transient() && attempt < ATTEMPTS => {
                app.note(format!("upload of {name} broke ({}), resuming", failure.message));
                tokio::time::sleep(std::time::Duration::from_millis(250 << attempt)).await;
                attempt += 1;
            }
            result => {
                bar.finish_and_clear();
                return result.map_err(|failure| failure.while_trying(format!("could not upload `{name}`")));
            }
        }
    }
}

async fn upload_from(
    client: &Client,
    path: &Path,
    facts: &Facts,
    offset: u64,
    bar: &indicatif::ProgressBar,
) -> Result<v1::Artifact> {
    let mut file = tokio::fs::File::open(path).await.map_err(|error| Failure::io("read", path, &error))?;
    file.seek(SeekFrom::Start(offset)).await.map_err(|error| Failure::io("read", path, &error))?;
    bar.set_position(offset);
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let start = v1::UploadStart { digest: wire(&facts.sha256), size_bytes: facts.size, offset };
    let bar = bar.clone();
    let reader = tokio::spawn(async move {
        let part = |part| v1::UploadArtifactRequest { part: Some(part) };
        // A closed channel means that the call has ended; its answer says why.
        if sender.send(part(Part::Start(start))).await.is_err() {
            return Ok(());
        }
        loop {
            let mut buffer = vec![0; CHUNK];
            let count = file.read(&mut buffer).await?;
            let last = count == 0;
            buffer.truncate(count);
            let next = if last { Part::Commit(v1::UploadCommit {}) } else { Part::Data(buffer.into()) };
            if sender.send(part(next)).await.is_err() || last {
                return Ok(());
            }
            bar.inc(count as u64);
        }
    });
    let answer = client.artifacts().upload_artifact(ReceiverStream::new(receiver)).await;
    let read: std::io::Result<()> = reader.await.unwrap_or(Ok(()));
    read.map_err(|error| Failure::io("read", path, &error))?;
    Ok(answer?.into_inner().artifact.unwrap_or_default())
}

async fn download(app: &App, digest: &str, path: &Path) -> Result<()> {
    let wanted: Digest = digest.parse().map_err(|error| Failure::usage(format!("{error}")))?;
    let client = app.connect().await?;
    let size = fetch(app, &client, &wanted, path).await?;
    app.note(format!("{} written to {}.", bytes(size), path.display()));
    Ok(())
}

/// Downloads an artifact into a file, going on where an earlier try stopped, and checks its digest. Returns its length.
pub(super) async fn fetch(app: &App, client: &Client, wanted: &Digest, path: &Path) -> Result<u64> {
    let part = path.with_added_extension("part");
    let io = |error: std::io::Error| Failure::io("write", &part, &error);
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&part).map_err(io)?;
    let offset = file.metadata().map_err(io)?.len();
    let request = v1::DownloadArtifactRequest { digest: wire(wanted), offset, ..Default::default() };
    let mut stream = client.artifacts().download_artifact(request).await?.into_inner();
    let bar = app.byte_bar(offset, "download");
    bar.set_position(offset);
    while let Some(chunk) = stream.message().await? {
        bar.set_length(chunk.size_bytes);
        file.write_all(&chunk.data).map_err(io)?;
        bar.inc(chunk.data.len() as u64);
    }
    file.sync_all().map_err(io)?;
    bar.finish_and_clear();
    let facts = file::facts(&part)?;
    if facts.sha256 != *wanted {
        // What is there is wrong for good: the next try must begin anew.
        let _ = std::fs::remove_file(&part);
        let mut failure = Failure::new(Exit::Internal, "the downloaded bytes are not the artifact's");
        failure.values =
            vec![("expected".into(), wanted.to_string()), ("got".into(), facts.sha256.to_string())];
        return Err(failure);
    }
    std::fs::rename(&part, path).map_err(io)?;
    Ok(facts.size)
}
