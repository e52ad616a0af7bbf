//! `upfleet init`, `serve`, `backup` and `restore`: commands for the machine that the controller runs on.
//!
//! Only flags are read here; what they do lives in the controller's modules.

use std::path::PathBuf;

use super::{
    app::App,
    failure::{Failure, Result},
};
use crate::exit::Exit;

/// Where a controller keeps everything.
const DATA: &str = "/var/lib/upfleet";

/// A new controller.
#[derive(clap::Args, Debug)]
pub struct InitArgs {
    /// A name or address under which the controller is reached; may be given several times.
    #[arg(long = "name", required = true, value_name = "HOST")]
    pub names: Vec<String>,
    /// The data directory.
    #[arg(long, default_value = DATA, value_name = "DIR")]
    pub data: PathBuf,
}

/// How to run the controller.
#[derive(clap::Args, Debug)]
pub struct ServeArgs {
    /// The data directory.
    #[arg(long, default_value = DATA, value_name = "DIR")]
    pub data: PathBuf,
    /// Where people and agents connect; wins over the configuration, as the next two do.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub api: Option<std::net::SocketAddr>,
    /// Where nodes enroll.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub enroll: Option<std::net::SocketAddr>,
    /// Where metrics and readiness are served without TLS.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<std::net::SocketAddr>,
}

/// Where the copy goes.
#[derive(clap::Args, Debug)]
pub struct BackupArgs {
    /// The directory to write; must not exist.
    pub target: PathBuf,
    /// The data directory.
    #[arg(long, default_value = DATA, value_name = "DIR")]
    pub data: PathBuf,
}

/// Where the copy is.
#[derive(clap::Args, Debug)]
pub struct RestoreArgs {
    /// The backup.
    pub source: PathBuf,
    /// The data directory to make; must be empty or missing.
    #[arg(long, default_value = DATA, value_name = "DIR")]
    pub data: PathBuf,
}

/// What a new controller's first admin needs.
pub(crate) struct Made {
    /// The CA's certificate.
    pub ca_pem: String,
    /// The admin's certificate.
    pub admin_certificate_pem: String,
    /// The admin's key.
    pub admin_key_pem: String,
}

/// Makes a controller's data.
pub(crate) async fn make(_names: &[String], _data: &std::path::Path) -> Result<Made> {
    Err(missing("init"))
}

pub(super) async fn init(_app: &App, _args: InitArgs) -> Result<Exit> {
    Err(missing("init"))
}

pub(super) async fn serve(_args: ServeArgs) -> Result<Exit> {
    crate::dev::lifeline::obey();
    Err(missing("serve"))
}

pub(super) async fn backup(_app: &App, _args: BackupArgs) -> Result<Exit> {
    Err(missing("backup"))
}

pub(super) async fn restore(_app: &App, _args: RestoreArgs) -> Result<Exit> {
    Err(missing("restore"))
}

fn missing(what: &str) -> Failure {
    Failure::usage(format!("`{what}` is not available in this version"))
}
