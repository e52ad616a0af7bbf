//! `upfleet init`, `serve`, `backup` and `restore`: commands for the machine that the controller runs on.
//!
//! Only flags are read here; what they do lives in the controller's modules.

use std::{
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

use upfleet_domain::id::UserId;

use super::{
    app::App,
    config::{Config, NewContext},
    failure::{Failure, Result},
    render,
};
use crate::{
    backup::BackupError,
    clock::Clock,
    exit::Exit,
    init::{self, DataDir, Init, InitError, Initialised},
    serve::{self, LogFormat, Options, ServeError},
    store::StoreError,
};

/// The first admin's name.
const ADMIN: &str = "admin";
/// The context that `init` writes where it is not told another name.
const CONTEXT: &str = "default";

/// Where a controller keeps everything.
const DATA: &str = "/var/lib/upfleet";

/// A new controller.
#[derive(clap::Args, Debug)]
pub struct InitArgs {
    /// A name or address under which the controller is reached; may be given several times.
    #[arg(long = "name", required = true, value_name = "HOST")]
    pub names: Vec<String>,
    /// The port of the API, for the context that is written.
    #[arg(long, default_value_t = 7443, value_name = "PORT")]
    pub port: u16,
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
    #[arg(long = "listen", value_name = "ADDRESS:PORT")]
    pub api: Option<std::net::SocketAddr>,
    /// Where nodes enroll.
    #[arg(long = "listen-enroll", value_name = "ADDRESS:PORT")]
    pub enroll: Option<std::net::SocketAddr>,
    /// Where metrics and readiness are served without TLS.
    #[arg(long = "listen-metrics", value_name = "ADDRESS:PORT")]
    pub metrics: Option<std::net::SocketAddr>,
}

/// Where the copy goes.
#[derive(clap::Args, Debug)]
pub struct BackupArgs {
    /// The file to write. It holds the CA's key: whoever can read it can take the fleet over.
    pub target: PathBuf,
    /// The data directory.
    #[arg(long, default_value = DATA, value_name = "DIR")]
    pub data: PathBuf,
    /// Leave the artifacts out; the restored controller has to be given those that are still needed.
    #[arg(long)]
    pub without_artifacts: bool,
}

/// Where the copy is.
#[derive(clap::Args, Debug)]
pub struct RestoreArgs {
    /// The backup.
    pub source: PathBuf,
    /// The data directory to make.
    #[arg(long, default_value = DATA, value_name = "DIR")]
    pub data: PathBuf,
    /// Replace what is there; it is kept aside.
    #[arg(long)]
    pub force: bool,
}

/// Makes a controller's data.
pub(crate) async fn make(names: &[String], data: &Path) -> Result<Initialised> {
    let admin = UserId::new(ADMIN).expect("the name is valid");
    let wanted = Init { names: names.to_vec(), data: DataDir(data.to_owned()), admin };
    init::init(&wanted, &Clock::System).await.map_err(|error| {
        let exit = match error {
            InitError::Exists { .. } => Exit::Precondition,
            InitError::NoName => Exit::Usage,
            _ => Exit::Internal,
        };
        of_error(exit, &error)
    })
}

pub(super) async fn init(app: &App, args: InitArgs) -> Result<Exit> {
    let name = app.globals.context.clone().unwrap_or_else(|| CONTEXT.to_owned());
    let mut config = Config::load()?;
    // Refused before anything is made: the key of that context may be the only one of another fleet.
    if config.contexts().contains_key(&name) {
        return Err(Failure::new(Exit::Precondition, format!("there is a context `{name}` already"))
            .hint("give the new one another name: --context NAME"));
    }
    let made = make(&args.names, &args.data).await?;
    let host = &args.names[0];
    let host_in_address = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let new = NewContext {
        address: format!("{host_in_address}:{}", args.port),
        server_name: host.clone(),
        ca_pem: &made.ca_pem,
        cert_pem: &made.admin_certificate_pem,
        key_pem: &made.admin_key_pem,
        protected: false,
    };
    config.put(&name, &new, false)?;
    app.say(format!(
        "The controller's data is in {}.\nYou are its first admin, `{ADMIN}`: context {name} in {}.\n\
         CA pin {}\n\nNext:\n  upfleet serve --data {}\n  upfleet token create     # one per node\n",
        args.data.display(),
        config.path().display(),
        made.pin,
        args.data.display(),
    ));
    Ok(Exit::Success)
}

pub(super) async fn serve(args: ServeArgs) -> Result<Exit> {
    crate::dev::lifeline::obey();
    let for_people = io::stderr().is_terminal();
    serve::start_logs(if for_people { LogFormat::Text } else { LogFormat::Json });
    let options =
        Options { data: DataDir(args.data), api: args.api, enroll: args.enroll, metrics: args.metrics };
    match serve::run(&options).await {
        Ok(()) => Ok(Exit::Success),
        Err(error @ ServeError::NotInitialised(_)) => Err(of_error(Exit::Precondition, &error)),
        Err(error @ (ServeError::Config(_) | ServeError::Listen { .. })) => {
            Err(of_error(Exit::Usage, &error))
        }
        Err(
            error @ (ServeError::PartEnded
            | ServeError::Store(StoreError::Internal { .. } | StoreError::Damaged { .. })),
        ) => Err(of_error(Exit::Internal, &error)),
        // Files, addresses, disks: the operator's to mend.
        Err(error) => Err(of_error(Exit::Precondition, &error)),
    }
}

pub(super) async fn backup(app: &App, args: BackupArgs) -> Result<Exit> {
    let done = crate::backup::backup(&args.data, &args.target, !args.without_artifacts).await;
    let done = done.map_err(|error| of_backup(&error))?;
    let size = render::bytes(done.size);
    app.say(format!("{size} with {} artifacts are in {}.", done.artifacts, args.target.display()));
    app.note("It holds the CA's key. Keep it where only you can read it.");
    Ok(Exit::Success)
}

pub(super) async fn restore(app: &App, args: RestoreArgs) -> Result<Exit> {
    let now = Clock::System.now();
    let done = crate::backup::restore(&args.source, &args.data, args.force, now).await;
    let done = done.map_err(|error| of_backup(&error))?;
    app.say(format!(
        "{} is restored with {} artifacts; the epoch is {} from now on.",
        args.data.display(),
        done.artifacts,
        done.epoch
    ));
    if let Some(replaced) = &done.replaced {
        app.say(format!("What was there before lies in {}.", replaced.display()));
    }
    for rollout in &done.paused {
        app.say(format!(
            "Rollout {rollout} is paused. Look at the fleet, then: upfleet rollout resume {rollout}"
        ));
    }
    Ok(Exit::Success)
}

fn of_backup(error: &BackupError) -> Failure {
    let exit = match error {
        BackupError::NotEmpty { .. } => Exit::Precondition,
        BackupError::NoData { .. } | BackupError::NotABackup { .. } | BackupError::Damaged { .. } => {
            Exit::Usage
        }
        _ => Exit::Internal,
    };
    of_error(exit, error)
}

/// A failure with an error's text, and its sources as causes.
fn of_error(exit: Exit, error: &(dyn std::error::Error + 'static)) -> Failure {
    let failure = Failure::new(exit, error.to_string());
    match error.source() {
        Some(source) => failure.because(source),
        None => failure,
    }
}
