//! The exec probe: a program that says by its exit status whether the component is well.
//!
//! It runs without a shell, in a process group of its own. Once its time is over, the probe is dropped, or
//! it has ended, nothing of that group is left.

use std::{
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    time::timeout,
};

use super::{ProbeFailure, excerpt};
use crate::{
    config::PID,
    processes::{self, Identity, as_pid},
};

/// How much output is kept; the rest is read and thrown away, so that the program does not block.
const MAX_OUTPUT: usize = 64 * 1024;
/// How long output may come after the program has ended, from what it left running.
const AFTERGLOW: Duration = Duration::from_millis(100);

/// Runs `command`, and says how it ended and what it said, in a sentence. `{path}` and `{pid}` are replaced.
pub async fn execute(command: &[String], path: &Path, pid: Option<u32>) -> Result<String, ProbeFailure> {
    let (text, pid) = (path.to_string_lossy(), pid.map(|pid| pid.to_string()));
    if let Some(word) = command.iter().find(|word| pid.is_none() && word.contains(PID)) {
        return Err(ProbeFailure::new(format!("there is no process whose id could stand in `{word}`")));
    }
    let pid = pid.unwrap_or_default();
    let replaced = |word: &String| word.replace("{path}", &text).replace(PID, &pid);
    let words: Vec<String> = command.iter().map(replaced).collect();
    let shown = super::question(&crate::config::ProbeKind::Exec { command: words.clone() });
    let Some((program, arguments)) = words.split_first() else {
        return Err(ProbeFailure::new("the probe's command is empty"));
    };
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(processes::environment())
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| ProbeFailure::new(format!("{shown} could not be executed: {error}")))?;
    let mut group = Group { pid: child.id(), child };
    let (status, output) =
        group.finish().await.map_err(|error| ProbeFailure::new(format!("{shown}: {error}")))?;
    let ended = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, signal) => format!("signal {}", signal.unwrap_or_default()),
    };
    let said = excerpt(&output);
    let said = if said.is_empty() { said } else { format!(": {said}") };
    let text = format!("{shown} ended with {ended}{said}");
    if status.success() { Ok(text) } else { Err(ProbeFailure::new(text)) }
}

/// The program and whatever it starts.
struct Group {
    pid: Option<u32>,
    child: Child,
}

impl Group {
    /// How it ended, and what it said on both pipes.
    async fn finish(&mut self) -> std::io::Result<(ExitStatus, Vec<u8>)> {
        let (stdout, stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let mut output = Vec::new();
        let mut errors = Vec::new();
        let status = {
            let mut reading = std::pin::pin!(async {
                tokio::join!(read(stdout, &mut output), read(stderr, &mut errors));
            });
            let mut read_to_end = false;
            let status = loop {
                tokio::select! {
                    status = self.child.wait() => break status?,
                    () = &mut reading, if !read_to_end => read_to_end = true,
                }
            };
            if !read_to_end && timeout(AFTERGLOW, &mut reading).await.is_err() {
                // Somebody else holds the pipes: it has left processes behind.
                self.kill_members();
            }
            status
        };
        output.extend_from_slice(&errors);
        Ok((status, output))
    }

    /// Kills what is left of the group after its leader was collected: by identity, as the pid is free now.
    fn kill_members(&self) {
        let Ok(boot_id) = processes::boot_id() else { return };
        for (pid, stat) in processes::all() {
            if Some(stat.group) == self.pid && stat.is_running() {
                let identity = Identity { boot_id: boot_id.clone(), pid, start_time: stat.start_time };
                let _ = identity.signal(Signal::KILL);
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // `id` is there only until the program is collected; until then nobody else can have its pid.
        if let Some(group) = self.child.id().and_then(as_pid) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

async fn read(pipe: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0; 8192];
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        let room = MAX_OUTPUT.saturating_sub(into.len()).min(length);
        into.extend_from_slice(&buffer[..room]);
    }
}
