//! `upfleet release`: immutable manifests that move one component forward.
//!
//! The manifest is made here, by the publisher's command line and never by the controller, and sent as the
//! bytes that every agent will verify.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use upfleet_api::v1;
use upfleet_domain::{
    bundle::Brought,
    files::FilesSpec,
    id::{ComponentId, Version},
    patch::Fix,
    release::{ArtifactRef, FORMAT, Kind, Manifest, Platform, parse_manifest},
};

use super::{
    app::App,
    artifact, bundle,
    client::Client,
    failure::{Failure, Result},
    file::{self, Facts},
    page::pages,
    render::{Paint, Table, bytes, date, hex, id, short},
    resource,
    tree::{self, LocalChange},
};
use crate::exit::Exit;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Publish a release: upload its files, make its manifest, store it.
    Create(Box<CreateArgs>),
    /// Write releases, patches among them, with signatures and artifacts into one file, for sites without a connection.
    Export {
        /// The releases, `COMPONENT@VERSION`.
        #[arg(required = true, num_args = 1.., value_name = "RELEASE")]
        releases: Vec<String>,
        /// The file to write.
        #[arg(required = true, value_name = "FILE")]
        file: PathBuf,
    },
    /// Publish what a file from `release export` holds, as it is; what is there already stays.
    Import {
        /// The file.
        file: PathBuf,
    },
    /// List releases, highest sequence first within a component.
    List {
        /// Only this component's.
        component: Option<String>,
    },
    /// Show a release with the digests of its artifacts.
    Show {
        /// The release, `COMPONENT@VERSION`.
        release: String,
        /// Print the manifest's bytes as they are.
        #[arg(long)]
        manifest: bool,
    },
    /// Forbid new rollouts of a release; what runs it goes on.
    Yank {
        /// The release, `COMPONENT@VERSION`.
        release: String,
    },
    /// Lift the quarantine that failures on several nodes put on a release.
    Unquarantine {
        /// The release, `COMPONENT@VERSION`.
        release: String,
    },
}

/// How a base release takes effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum BaseKind {
    /// Replaces one file, an executable or a jar.
    #[default]
    Binary,
    /// Switches a directory.
    Files,
    /// Replaces the agent itself.
    Agent,
}

/// What a new release is.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct CreateArgs {
    /// The release, `COMPONENT@VERSION`.
    pub release: String,
    /// What it is: a file that takes another's place, a directory that is switched as one, or the agent itself.
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    pub kind: BaseKind,
    /// The file to install; once per platform.
    #[arg(long, required_unless_present = "dir", value_name = "FILE")]
    pub file: Vec<PathBuf>,
    /// Of `--kind files`: the directory. What it does not have is not there after the switch.
    #[arg(long, conflicts_with = "file", value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Of `--kind files`: what nodes do about files that somebody changed there.
    #[arg(long, value_enum, requires = "dir", value_name = "WHAT")]
    pub on_local_change: Option<LocalChange>,
    /// Of `--kind files`: paths that belong to the node and stay as they are, with `*` within a name and `**` across
    /// directories, e.g. `local/**`.
    #[arg(long, requires = "dir", value_name = "GLOB")]
    pub preserve: Vec<String>,
    /// An issue that this base fixes, `ID` or `ID=TEXT`: a patch for it is then not missed on it.
    #[arg(long, value_name = "ID[=TEXT]", value_parser = fix)]
    pub fixes: Vec<Fix>,
    /// What each file is built for, `os/arch`, in the order of the files; read from the files where not given.
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Vec<String>,
    /// Orders releases of a component; one more than the highest where not given.
    #[arg(long, value_name = "N")]
    pub sequence: Option<u64>,
    /// An HTTPS address where agents find the same bytes; several are tried in order. One file only.
    #[arg(long, value_name = "URL")]
    pub source: Vec<String>,
    /// What changed, for people.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub notes: String,
    /// Do not upload the files: agents fetch them from the sources.
    #[arg(long, requires = "source")]
    pub no_upload: bool,
}

pub(super) async fn run(app: &App, command: Command) -> Result<Exit> {
    match command {
        Command::Create(args) => {
            let client = app.connect_to_change().await?;
            let release = create(app, &client, &args).await?;
            app.show(&release, |paint| {
                let component = release.name.split('@').next().map_or("", id);
                let next = format!("next: upfleet plan --release {}", id(&release.name));
                format!(
                    "{}{}\n",
                    details(&release, paint),
                    paint.dim(if component.is_empty() { "" } else { &next })
                )
            });
        }
        Command::Export { releases, file } => return bundle::export(app, &releases, &file).await,
        Command::Import { file } => return bundle::import(app, &file).await,
        Command::List { component } => {
            let client = app.connect().await?;
            let request =
                v1::ListReleasesRequest { component: component.unwrap_or_default(), ..Default::default() };
            let releases = pages!(client.releases(), list_releases, request, releases);
            app.show_list("releases", &releases, |paint| table(&releases, app.is_wide(), paint));
        }
        Command::Show { release, manifest } => {
            let name = resource("releases", &release);
            let answer = app.connect().await?.releases().get_release(v1::GetReleaseRequest { name }).await?;
            let release = answer.into_inner().release.unwrap_or_default();
            if manifest {
                app.say(String::from_utf8_lossy(&release.manifest));
            } else {
                app.show(&release, |paint| details(&release, paint));
            }
        }
        Command::Yank { release } => {
            let client = app.connect_to_change().await?;
            let request = v1::YankReleaseRequest {
                name: resource("releases", &release),
                message: app.globals.message.clone(),
                request_id: app.request_id(),
            };
            let release =
                client.releases().yank_release(request).await?.into_inner().release.unwrap_or_default();
            app.show(&release, |paint| details(&release, paint));
        }
        Command::Unquarantine { release } => {
            let client = app.connect_to_change().await?;
            let request = v1::UnquarantineReleaseRequest {
                name: resource("releases", &release),
                message: app.globals.message.clone(),
                request_id: app.request_id(),
            };
            let answer = client.releases().unquarantine_release(request).await?.into_inner();
            let release = answer.release.unwrap_or_default();
            app.show(&release, |paint| details(&release, paint));
        }
    }
    Ok(Exit::Success)
}

/// Uploads the files, makes the manifest and publishes it.
pub(crate) async fn create(app: &App, client: &Client, args: &CreateArgs) -> Result<v1::Release> {
    let invalid = |error: &dyn std::fmt::Display| Failure::usage(error.to_string());
    let (component, version) = args.release.split_once('@').ok_or_else(|| {
        Failure::usage(format!("`{}` is no release: write COMPONENT@VERSION", args.release))
    })?;
    let component: ComponentId = component.parse().map_err(|error| invalid(&error))?;
    let version: Version = version.parse().map_err(|error| invalid(&error))?;
    if !args.source.is_empty() && args.file.len() > 1 {
        return Err(
            Failure::usage("--source is for one file").hint("publish each platform's file on its own host")
        );
    }
    let (artifacts, files) = match (&args.dir, args.kind) {
        (Some(dir), BaseKind::Files) => {
            let (artifact, spec) = directory(app, client, args, dir).await?;
            (vec![artifact], Some(spec))
        }
        (None, BaseKind::Binary | BaseKind::Agent) => (binaries(app, client, args).await?, None),
        (Some(_), BaseKind::Binary | BaseKind::Agent) => {
            return Err(Failure::usage("a directory is of --kind files"));
        }
        (None, BaseKind::Files) => return Err(Failure::usage("--kind files needs a --dir")),
    };
    let sequence = match args.sequence {
        Some(sequence) => sequence,
        None => next_sequence(client, &component).await?,
    };
    let manifest = Manifest {
        format: FORMAT,
        component,
        version,
        sequence,
        kind: match args.kind {
            BaseKind::Binary => Kind::Binary,
            BaseKind::Files => Kind::Files,
            BaseKind::Agent => Kind::Agent,
        },
        notes: args.notes.clone(),
        artifacts,
        fixes: args.fixes.clone(),
        patch: None,
        files,
    };
    let bytes = manifest.to_bytes();
    // What is too long, or has a mistake, is said before anything is stored.
    let manifest = parse_manifest(&bytes).map_err(|reason| Failure::of_reason(&reason))?;
    bundle::publish(app, client, &Brought { manifest, bytes, signatures: Vec::new() }).await
}

/// Uploads a file per platform.
async fn binaries(app: &App, client: &Client, args: &CreateArgs) -> Result<Vec<ArtifactRef>> {
    let mut artifacts = Vec::new();
    for (index, path) in args.file.iter().enumerate() {
        let facts = file::facts(path)?;
        let platform = match args.platform.get(index) {
            Some(text) => parse_platform(text)?,
            None => facts.platform.clone().ok_or_else(|| {
                Failure::usage(format!("`{}` does not say what it is built for", path.display()))
                    .hint("add --platform linux/amd64, linux/arm64 or linux/any")
            })?,
        };
        if !args.no_upload {
            artifact::upload(app, client, path, &facts).await?;
        }
        artifacts.push(reference(platform, &facts, &args.source));
    }
    Ok(artifacts)
}

/// Packs a directory and uploads the archive.
async fn directory(
    app: &App,
    client: &Client,
    args: &CreateArgs,
    dir: &Path,
) -> Result<(ArtifactRef, FilesSpec)> {
    let spec = tree::spec(dir, args.on_local_change.unwrap_or_default(), args.preserve.clone())?;
    let platform = parse_platform(args.platform.first().map_or("linux/any", String::as_str))?;
    let aside = tempfile::tempdir().map_err(|error| Failure::io("write", dir, &error))?;
    let archive = aside.path().join("files.tar.gz");
    tree::pack(dir, &spec, &archive)?;
    let facts = file::facts(&archive)?;
    if !args.no_upload {
        artifact::upload(app, client, &archive, &facts).await?;
    }
    Ok((reference(platform, &facts, &args.source), spec))
}

/// An artifact as a manifest names it.
pub(super) fn reference(platform: Platform, facts: &Facts, sources: &[String]) -> ArtifactRef {
    ArtifactRef {
        platform,
        sha256: facts.sha256,
        md5: Some(facts.md5),
        size: facts.size,
        sources: sources.to_vec(),
        encodings: Vec::new(),
    }
}

/// `CVE-2021-44228`, or `CVE-2021-44228=JNDI look-ups are off`.
pub(super) fn fix(text: &str) -> Result<Fix, String> {
    let (id, text) = text.split_once('=').unwrap_or((text, ""));
    if id.trim().is_empty() || id.contains(char::is_whitespace) {
        return Err("write ID or ID=TEXT, where the ID has no spaces".to_owned());
    }
    Ok(Fix { id: id.to_owned(), text: text.trim().to_owned() })
}

/// One more than the highest of the component's base releases. Patches are ordered by their numbers.
async fn next_sequence(client: &Client, component: &ComponentId) -> Result<u64> {
    let request = v1::ListReleasesRequest { component: component.to_string(), ..Default::default() };
    let releases = pages!(client.releases(), list_releases, request, releases);
    let bases = releases.iter().filter(|release| bundle::is_base(&release.kind));
    let highest = bases.filter_map(|release| Some(release.r#ref.as_ref()?.sequence)).max();
    Ok(highest.unwrap_or(0) + 1)
}

fn parse_platform(text: &str) -> Result<Platform> {
    match text.split_once('/') {
        Some((os @ "linux", arch @ ("amd64" | "arm64" | "any"))) => {
            Ok(Platform { os: os.to_owned(), arch: arch.to_owned() })
        }
        _ => Err(Failure::usage(format!("`{text}` is no platform"))
            .hint("use linux/amd64, linux/arm64 or linux/any")),
    }
}

fn state(release: &v1::Release, paint: Paint) -> String {
    if release.yank_time.is_some() {
        paint.warn("YANKED")
    } else if !release.quarantined_digests.is_empty() {
        paint.bad("QUARANTINED")
    } else {
        paint.good("AVAILABLE")
    }
}

fn table(releases: &[v1::Release], wide: bool, paint: Paint) -> String {
    let mut headings = vec!["RELEASE", "SEQUENCE", "KIND", "STATE", "PLATFORMS", "SIZE", "CREATED", "BY"];
    if wide {
        headings.push("DIGEST");
    }
    let mut table = Table::new(
        &headings,
        "No releases. Publish one: upfleet release create COMPONENT@VERSION --file FILE",
    );
    for release in releases {
        let platforms: Vec<String> = release.artifacts.iter().map(platform).collect();
        let size = release.artifacts.iter().map(|artifact| artifact.size_bytes).max().unwrap_or(0);
        let mut row = vec![
            id(&release.name).to_owned(),
            match bundle::is_base(&release.kind) {
                true => release.r#ref.as_ref().map(|r| r.sequence.to_string()).unwrap_or_default(),
                false => "-".to_owned(),
            },
            release.kind.clone(),
            state(release, paint),
            platforms.join(" "),
            bytes(size),
            date(release.create_time.as_ref()),
            id(&release.creator).to_owned(),
        ];
        if wide {
            row.push(release.artifacts.first().map(|a| short(a.digest.as_ref())).unwrap_or_default());
        }
        table.row(row);
    }
    table.text(paint)
}

fn platform(artifact: &v1::ReleaseArtifact) -> String {
    artifact.platform.as_ref().map(|p| format!("{}/{}", p.os, p.arch)).unwrap_or_default()
}

fn details(release: &v1::Release, paint: Paint) -> String {
    let reference = release.r#ref.clone().unwrap_or_default();
    let mut text = format!(
        "release   {}  {}\nsequence  {}\nkind      {}\nmanifest  {}\ncreated   {} by {}\n",
        paint.bold(id(&release.name)),
        state(release, paint),
        reference.sequence,
        release.kind,
        hex(reference.manifest_digest.as_ref()),
        date(release.create_time.as_ref()),
        id(&release.creator),
    );
    if !release.notes.is_empty() {
        text.push_str(&format!("notes     {}\n", release.notes));
    }
    for fix in &release.fixes {
        text.push_str(&format!("fixes     {} {}\n", fix.id, fix.text));
    }
    if release.yank_time.is_some() {
        text.push_str(&format!("yanked    {} {}\n", date(release.yank_time.as_ref()), release.yank_message));
    }
    for artifact in &release.artifacts {
        let quarantined =
            release.quarantined_digests.iter().any(|digest| Some(digest) == artifact.digest.as_ref());
        text.push_str(&format!(
            "artifact  {}  {}{}\n          sha256 {}\n          md5    {}\n",
            platform(artifact),
            bytes(artifact.size_bytes),
            if quarantined { paint.bad("  quarantined") } else { String::new() },
            hex(artifact.digest.as_ref()),
            hex(artifact.md5_digest.as_ref()),
        ));
        for source in &artifact.sources {
            text.push_str(&format!("          source {source}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixes_have_an_id_and_perhaps_a_text() {
        let known = fix("CVE-2021-44228=look-ups are off").unwrap();
        assert_eq!((known.id.as_str(), known.text.as_str()), ("CVE-2021-44228", "look-ups are off"));
        assert_eq!(fix("ACME-7").unwrap().text, "");
        assert!(fix("=x").is_err() && fix("two words").is_err());
    }

    #[test]
    fn platforms_are_checked() {
        assert_eq!(parse_platform("linux/any").unwrap().arch, "any");
        for bad in ["linux", "linux/mips", "darwin/arm64"] {
            assert_eq!(parse_platform(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }
}
