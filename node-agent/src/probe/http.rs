//! One HTTP request, of a probe or a reload, over one connection, HTTP/1.1 without TLS, to the configured address only.

use std::{future::poll_fn, pin::Pin};

use hyper::{
    Method, Request, Response, Uri,
    body::{Body, Incoming},
    client::conn::http1,
    header::{CONNECTION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{ProbeFailure, excerpt};
use crate::config::StatusRange;

/// How much of the answer is looked at.
const MAX_BODY: usize = 64 * 1024;

/// Sends one request without a body to `url`, and says what was answered, in a sentence.
pub async fn request(
    method: &str,
    url: &str,
    expect: StatusRange,
    contains: Option<&str>,
) -> Result<String, ProbeFailure> {
    let text = |rest: String| format!("{method} {url}{rest}");
    let fail = |problem: String| ProbeFailure::new(text(problem));
    let response = send(method, url).await.map_err(|problem| fail(format!(": {problem}")))?;
    let code = response.status().as_u16();
    let body = read(response.into_body()).await;
    let said = excerpt(&body);
    let said = if said.is_empty() { said } else { format!(": {said}") };
    match contains {
        _ if !expect.contains(code) => Err(fail(format!(" answered {code}{said}"))),
        Some(wanted) if !String::from_utf8_lossy(&body).contains(wanted) => {
            Err(fail(format!(" answered {code} without `{wanted}`: {}", excerpt(&body))))
        }
        _ => Ok(text(format!(" answered {code}{said}"))),
    }
}

async fn send(method: &str, url: &str) -> Result<Response<Incoming>, String> {
    let method: Method = method.parse().map_err(|_| "is asked for by no method of HTTP".to_owned())?;
    let uri: Uri = url.parse().map_err(|_| "is not a URL".to_owned())?;
    let authority = uri.authority().ok_or("has no host")?.clone();
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = authority.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, authority.as_str())
        .header(USER_AGENT, concat!("upfleet-agent/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(String::new())
        .map_err(|error| error.to_string())?;
    // The connection's task ends with the connection, which ends with the sender and the answer's body.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(|error| error.to_string())
}

async fn read(mut body: Incoming) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame.into_data() {
            let room = MAX_BODY.saturating_sub(bytes.len()).min(data.len());
            bytes.extend_from_slice(&data[..room]);
        }
        if bytes.len() >= MAX_BODY {
            break;
        }
    }
    bytes
}
