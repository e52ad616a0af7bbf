//! Reloads of real processes: told, refused, dead of it, somebody else's.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::*;
use crate::config::{ReloadSignal, StatusRange};

/// A process that is ended with the test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A shell that runs `script` and has said `ready`.
fn shell(script: &str) -> Guard {
    use std::io::{BufRead as _, BufReader};
    // A signal that was ignored when a shell began, as below `nohup`, can't be trapped.
    let mut child = Command::new("env")
        .args(["--default-signal=HUP", "/bin/sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a shell");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "ready");
    Guard(child)
}

fn context(process: Result<u32, String>) -> ReloadContext {
    ReloadContext { path: "/srv/site".into(), process }
}

fn signal(pid_file: Option<PathBuf>) -> ReloadConfig {
    ReloadConfig::Signal { signal: ReloadSignal::Hup, pid_file, settle: Duration::from_millis(300) }
}

async fn refused(reload: &ReloadConfig, process: Result<u32, String>) -> String {
    let reason = run(reload, &context(process)).await.unwrap_err();
    assert_eq!(reason.code, ReasonCode::ReloadFailed);
    reason.metadata["problem"].clone()
}

#[tokio::test]
async fn a_signal_reaches_the_process_of_the_pid_file() {
    let dir = tempfile::tempdir().unwrap();
    let (file, marker) = (dir.path().join("pid"), dir.path().join("reloaded"));
    let script = format!("trap ': > {}' HUP; echo ready; while :; do sleep 0.05; done", marker.display());
    let server = shell(&script);
    std::fs::write(&file, format!("{}\n", server.0.id())).unwrap();
    let answer = run(&signal(Some(file)), &context(Err("none".into()))).await.unwrap();
    assert!(answer.contains("took SIGHUP"), "{answer}");
    assert!(marker.exists());
}

#[tokio::test]
async fn a_process_that_would_die_of_the_signal_is_not_sent_it() {
    let mut server = shell("echo ready; exec sleep 60");
    let pid = server.0.id();
    // The shell becomes `sleep`, which has no handler; a shell between the two has none either.
    let text = refused(&signal(None), Ok(pid)).await;
    assert!(text.contains("does not catch SIGHUP"), "{text}");
    assert!(server.0.try_wait().unwrap().is_none(), "it still runs");
}

#[tokio::test]
async fn a_process_that_ends_after_the_signal_has_not_reloaded() {
    // An init collects its children; here the process stays a zombie, which is no running process either.
    let server = shell("trap 'exit 1' HUP; echo ready; while :; do sleep 0.05; done");
    let text = refused(&signal(None), Ok(server.0.id())).await;
    assert!(text.contains("ended after SIGHUP"), "{text}");
}

#[tokio::test]
async fn a_pid_file_older_than_its_process_means_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let server = shell("trap : HUP; echo ready; while :; do sleep 0.05; done");
    std::fs::write(&file, server.0.id().to_string()).unwrap();
    let old = std::time::SystemTime::now() - Duration::from_secs(3600);
    std::fs::File::open(&file).unwrap().set_modified(old).unwrap();
    let text = refused(&signal(Some(file.clone())), Err(String::new())).await;
    assert!(text.contains("it is another one"), "{text}");
    for (content, said) in [("1", "not a process id"), ("-5", "not a process id"), ("", "not a process id")] {
        std::fs::write(&file, content).unwrap();
        let text = refused(&signal(Some(file.clone())), Err(String::new())).await;
        assert!(text.contains(said), "{content}: {text}");
    }
}

#[tokio::test]
async fn a_program_answers_by_its_output_and_status() {
    let exec = |script: &str, limit: u64| ReloadConfig::Exec {
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        timeout: Duration::from_millis(limit),
    };
    let answer = run(&exec("echo reloaded 3 plugins", 5000), &context(Ok(1))).await.unwrap();
    assert!(answer.ends_with("exit status 0: reloaded 3 plugins"), "{answer}");
    let text = refused(&exec("echo syntax error >&2; exit 3", 5000), Ok(1)).await;
    assert!(text.ends_with("exit status 3: syntax error"), "{text}");
    let text = refused(&exec("sleep 60", 200), Ok(1)).await;
    assert!(text.contains("gave no answer within 200ms"), "{text}");
    let long = run(&exec("yes x | head -c 1000000", 5000), &context(Ok(1))).await.unwrap();
    assert!(long.chars().count() <= MAX_ANSWER, "an answer is bounded");
}

#[tokio::test]
async fn an_http_answer_decides() {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        for (status, body) in [("200 OK", "3 plugins"), ("500 Oops", "no such class")] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"POST /-/reload HTTP/1.1\r\n"));
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let http = ReloadConfig::Http {
        method: "POST".into(),
        url: format!("http://{address}/-/reload"),
        expect: StatusRange::default(),
        body_contains: Some("plugins".into()),
        timeout: Duration::from_secs(5),
    };
    let answer = run(&http, &context(Ok(1))).await.unwrap();
    assert!(answer.ends_with("answered 200: 3 plugins"), "{answer}");
    let text = refused(&http, Ok(1)).await;
    assert!(text.ends_with("answered 500: no such class"), "{text}");
    server.await.unwrap();
}
