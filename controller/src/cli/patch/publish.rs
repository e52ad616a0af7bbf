//! `patch publish`: uploads the jar and stores the manifest that `patch build` made, byte for byte.

use std::path::PathBuf;

use clap::Args;
use upfleet_domain::bundle::Brought;

use super::{
    super::{app::App, artifact, bundle, failure::Result, file, render::id},
    make::stored,
};
use crate::exit::Exit;

/// What is to be published.
#[derive(Args, Debug)]
pub(crate) struct PublishArgs {
    /// The directory that `patch build` made.
    dir: PathBuf,
}

pub(super) async fn publish(app: &App, args: &PublishArgs) -> Result<Exit> {
    let stored = stored(&args.dir)?;
    let client = app.connect_to_change().await?;
    artifact::upload(app, &client, &stored.jar, &file::facts(&stored.jar)?).await?;
    let release = Brought { manifest: stored.manifest, bytes: stored.bytes, signatures: Vec::new() };
    let release = bundle::publish(app, &client, &release).await?;
    app.show(&release, |paint| {
        let name = id(&release.name);
        let next = paint.dim(format!("next: upfleet plan --patch {name}"));
        format!("{name} is published\n{next}\n")
    });
    Ok(Exit::Success)
}
