//! One download by the agent's own code, as a process of its own whose cost can be told. Prints the most memory it had.

use std::path::PathBuf;

use upfleet_agent::{
    config::{ControllerConfig, FetchConfig},
    download::{FetchRequest, Fetcher},
    identity::Identities,
    transport::Connector,
};
use upfleet_domain::{
    digest::{Digest, Md5Digest},
    release::{ArtifactRef, Platform},
};

use crate::usage;

/// What to fetch; for the rows about bytes.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[arg(long)]
    state: PathBuf,
    #[arg(long)]
    controller: String,
    #[arg(long)]
    server_name: String,
    #[arg(long)]
    sha256: Digest,
    #[arg(long)]
    md5: Option<Md5Digest>,
    #[arg(long)]
    size: u64,
    /// Without it the bytes are thrown away.
    #[arg(long)]
    to: Option<PathBuf>,
}

/// Fetches.
///
/// # Errors
/// Where it fails.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let controller =
        ControllerConfig { address: args.controller.clone(), server_name: Some(args.server_name.clone()) };
    let connector = Connector::new(controller, Identities::load(&args.state)?);
    let fetcher = Fetcher::new(&FetchConfig::default(), Some(connector));
    let artifact = ArtifactRef {
        platform: Platform { os: "linux".to_owned(), arch: "any".to_owned() },
        sha256: args.sha256,
        md5: args.md5,
        size: args.size,
        sources: Vec::new(),
        encodings: Vec::new(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match &args.to {
            None => fetcher.discard(artifact).await.map_err(|reason| anyhow::anyhow!("{reason}")),
            Some(path) => {
                let request = FetchRequest { artifact, part_path: path.clone(), deadline: None };
                let fetched = fetcher.fetch(request, &|_| {}).await;
                fetched.map(drop).map_err(|reason| anyhow::anyhow!("{reason}"))
            }
        }
    })?;
    println!("{}", usage::own()?.peak);
    Ok(())
}
