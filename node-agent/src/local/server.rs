//! The agent's side of the socket.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
};
use upfleet_domain::{
    reason::{Reason, ReasonCode},
    state::{Base, ComponentState},
};

use super::{
    Answer, Answered, Asked, ComponentStatus, MAX_REQUEST, Request, Status, VERSION,
    apply::{self, Wish},
    socket_path,
};
use crate::{component::Handles, formats, platform::node_platform, transport::Link};

/// A command that takes longer to ask, or to take its answer, has died.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves the socket in `run_dir` until it is dropped; bundles are laid aside below `state_dir`. `node` and `link` are
/// `None` while the node is not enrolled.
///
/// # Errors
/// Where the socket can't be made.
pub async fn serve(
    run_dir: &Path,
    state_dir: &Path,
    handles: Handles,
    node: Option<String>,
    link: Option<watch::Receiver<Link>>,
) -> io::Result<()> {
    let listener = listen(run_dir)?;
    let face = Face { handles, node, link, state_dir: state_dir.to_owned(), applying: Arc::default() };
    let mut tasks = JoinSet::new();
    loop {
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "local socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while tasks.try_join_next().is_some() {}
        let face = face.clone();
        tasks.spawn(async move {
            if let Err(error) = face.serve(stream).await {
                tracing::debug!(%error, "local request");
            }
        });
    }
}

fn listen(run_dir: &Path) -> io::Result<UnixListener> {
    fs::create_dir_all(run_dir)?;
    let path = socket_path(run_dir);
    // Made beside its name and renamed over it: nobody meets a socket that does not listen or is too open.
    let fresh = path.with_extension("new");
    let _ = fs::remove_file(&fresh);
    for place in [&path, &fresh] {
        crate::damage::clear_directory(place)?;
    }
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    fs::rename(&fresh, &path)?;
    Ok(listener)
}

#[derive(Clone)]
struct Face {
    handles: Handles,
    node: Option<String>,
    link: Option<watch::Receiver<Link>>,
    state_dir: PathBuf,
    /// One bundle at a time: they share the place where their bytes are laid aside.
    applying: Arc<tokio::sync::Mutex<()>>,
}

impl Face {
    async fn serve(&self, stream: UnixStream) -> io::Result<()> {
        let caller = stream.peer_cred().map(|credentials| credentials.uid()).ok();
        let (reader, mut writer) = stream.into_split();
        let mut line = String::new();
        let mut reader = BufReader::new(reader.take(MAX_REQUEST));
        tokio::time::timeout(PATIENCE, reader.read_line(&mut line)).await??;
        let asked = serde_json::from_str::<Asked>(&line).ok().filter(|asked| asked.v == VERSION);
        let refused = |problem: String| {
            let reason = Reason::new(ReasonCode::InvalidArgument).with("field", "request");
            Answer::Refused(reason.with("problem", problem))
        };
        let answer = match asked {
            Some(Asked { request, .. }) => {
                let patience = request.patience();
                let answer = tokio::time::timeout(patience, self.answer(request, caller)).await;
                answer.unwrap_or_else(|_| refused(format!("it takes longer than {} s", patience.as_secs())))
            }
            None => refused(format!("this agent speaks version {VERSION} of its local protocol")),
        };
        let mut line = serde_json::to_vec(&Answered { v: VERSION, answer })?;
        line.push(b'\n');
        tokio::time::timeout(PATIENCE, writer.write_all(&line)).await?
    }

    async fn answer(&self, request: Request, caller: Option<u32>) -> Answer {
        match request {
            Request::Status => Answer::Status(Box::new(self.status().await)),
            Request::RollBack { component, to, message } => {
                let message = signed(&message, caller);
                match self.roll_back(&component, to.as_deref(), message).await {
                    Ok(()) => Answer::RollingBack,
                    Err(reason) => Answer::Refused(reason),
                }
            }
            Request::Apply { file, component, waive, message } => {
                let _alone = self.applying.lock().await;
                let wish = Wish { file, component, waive, message: signed(&message, caller) };
                match apply::apply(&self.handles, &self.state_dir, &node_platform(), wish).await {
                    Ok((component, to)) => Answer::Applying { component, to },
                    Err(reason) => Answer::Refused(reason),
                }
            }
        }
    }

    async fn status(&self) -> Status {
        let mut components = Vec::new();
        for handle in self.handles.all() {
            if let Ok(snapshot) = handle.snapshot().await {
                components.push(ComponentStatus {
                    unacknowledged: snapshot.reports.len(),
                    inventory: snapshot.inventory,
                    reason: snapshot.reason,
                });
            }
        }
        Status {
            node: self.node.clone(),
            agent_version: formats::VERSION.to_owned(),
            pid: Some(std::process::id()),
            link: self.link.as_ref().map(|link| link.borrow().clone()),
            components,
        }
    }

    async fn roll_back(
        &self,
        component: &upfleet_domain::id::ComponentId,
        to: Option<&str>,
        message: String,
    ) -> Result<(), Reason> {
        let handle = self.handles.get(component)?;
        let state = match to {
            None => None,
            Some(text) => Some(find(&handle.snapshot().await?.inventory.kept, text)?),
        };
        tracing::warn!(%component, message, "rollback ordered on the node");
        handle.roll_back(state, message).await
    }
}

/// What a person says, with who that is.
fn signed(message: &str, caller: Option<u32>) -> String {
    let who = caller.map_or_else(|| "somebody".to_owned(), |uid| format!("user {uid}"));
    if message.is_empty() { format!("by {who}") } else { format!("{message} ({who})") }
}

/// The one kept state that `text` names: as people see it, or by the beginning of its digest.
fn find(kept: &[ComponentState], text: &str) -> Result<ComponentState, Reason> {
    let by_name = |state: &&ComponentState| state.to_string() == text;
    let by_digest = |state: &&ComponentState| {
        let whole = |digest: upfleet_domain::digest::Digest| digest.to_string().starts_with(text);
        let manifest = match &state.base {
            Base::Release(release) => whole(release.manifest),
            Base::Absent | Base::Unmanaged { .. } => false,
        };
        text.len() >= 6 && (manifest || state.artifact().is_some_and(whole))
    };
    let found = kept.iter().find(by_name).or_else(|| kept.iter().find(by_digest));
    found.cloned().ok_or_else(|| Reason::new(ReasonCode::StateNotKept).with("state", text))
}
