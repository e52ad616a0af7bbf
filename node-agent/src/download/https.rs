//! HTTPS sources: a content delivery network, an object store, a mirror.
//!
//! Each redirect is judged like a first URL, and names are resolved by a resolver that gives only addresses
//! that policy permits, so that the connection goes where the check looked.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, sync::OnceLock, time::Duration};

use reqwest::{
    Certificate, Proxy, Response, StatusCode, dns,
    header::{CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LOCATION, RANGE},
};
use upfleet_domain::reason::{Reason, ReasonCode};

use super::{
    body::{Body, Fail, Opened},
    policy::{Permitted, Policy, shown},
};
use crate::{config::FetchConfig, error::chain, transport::tls};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_REDIRECTS: usize = 5;

/// Makes requests to permitted sources.
pub(super) struct Client {
    policy: Policy,
    proxy: Option<String>,
    extra_ca: Option<PathBuf>,
    /// Made at the first use: most agents never leave the controller's store.
    made: OnceLock<Result<reqwest::Client, String>>,
}

impl Client {
    pub(super) fn new(config: &FetchConfig, policy: Policy) -> Self {
        let (proxy, extra_ca) = (config.proxy.clone(), config.extra_ca.clone());
        Self { policy, proxy, extra_ca, made: OnceLock::new() }
    }

    /// Asks for `source` from `offset` on, as long as it still is what `etag` names.
    pub(super) async fn open(
        &self,
        source: &Permitted,
        offset: u64,
        size: u64,
        etag: &mut Option<String>,
    ) -> Result<Opened, Fail> {
        let client = self.made.get_or_init(|| self.make()).as_ref();
        let client = client.map_err(|problem| Fail::Final(failed(source, problem)))?;
        let mut at = source.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = client.get(at.url.clone());
            if offset > 0 {
                request = request.header(RANGE, format!("bytes={offset}-"));
                if let Some(etag) = etag.as_deref() {
                    request = request.header(IF_RANGE, etag);
                }
            }
            let sent = request.send().await;
            let response = sent.map_err(|error| not_sent(&at, &error.without_url()))?;
            if response.status().is_redirection()
                && let Some(next) = response.headers().get(LOCATION)
            {
                at = self.follow(&at, next.to_str().unwrap_or_default())?;
                continue;
            }
            let opened = judge(source, response, offset, size)?;
            if let Body::Https(response) = &opened.body {
                *etag = strong_etag(response.headers());
            }
            return Ok(opened);
        }
        Err(Fail::Final(failed(source, &format!("more than {MAX_REDIRECTS} redirects"))))
    }

    fn follow(&self, from: &Permitted, location: &str) -> Result<Permitted, Fail> {
        let next = from.url.join(location);
        let next = next.map_err(|_| Fail::Final(failed(from, "it redirects to what is no URL")))?;
        self.policy.permit(next.as_str()).map_err(Fail::Final)
    }

    fn make(&self) -> Result<reqwest::Client, String> {
        // An error means that it is installed already.
        let _ = tls::provider().as_ref().clone().install_default();
        let mut builder = reqwest::Client::builder()
            .https_only(true)
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            // A connection belongs to one download, whose runtime ends with it.
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT_TIMEOUT)
            .tls_version_min(reqwest::tls::Version::TLS_1_2)
            .user_agent(concat!("upfleet-agent/", env!("CARGO_PKG_VERSION")));
        builder = match &self.proxy {
            // The proxy resolves; the names of hosts were judged, and the proxy is the operator's choice.
            Some(proxy) => builder.proxy(Proxy::all(proxy).map_err(|error| chain(&error))?),
            // No proxy from the environment either: only the configuration decides.
            None => builder.no_proxy().dns_resolver(Arc::new(Resolver(self.policy.clone()))),
        };
        if let Some(path) = &self.extra_ca {
            let pem = std::fs::read(path)
                .map_err(|error| format!("could not read `{}`: {error}", path.display()))?;
            let authorities = Certificate::from_pem_bundle(&pem).map_err(|error| chain(&error))?;
            builder = builder.tls_certs_merge(authorities);
        }
        builder.build().map_err(|error| chain(&error))
    }
}

/// Every address of a host was refused.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(&'static str);

/// A connection that policy forbade stays forbidden; any other may go better next time.
fn not_sent(source: &Permitted, error: &reqwest::Error) -> Fail {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(Refused(problem)) = error.downcast_ref() {
            let reason = Reason::new(ReasonCode::SourceNotAllowed);
            return Fail::Final(reason.with("source", shown(source.url.as_str())).with("problem", problem));
        }
        cause = error.source();
    }
    Fail::Retry(chain(error))
}

/// Resolves, and leaves only what policy permits.
struct Resolver(Policy);

impl dns::Resolve for Resolver {
    fn resolve(&self, name: dns::Name) -> dns::Resolving {
        let policy = self.0.clone();
        Box::pin(async move {
            // Judged with its name by `permit` before; here it only tells where the host may lie.
            let permitted = policy.permit(&format!("https://{}/", name.as_str()))?;
            let mut refused = None;
            let mut addresses: Vec<SocketAddr> = Vec::new();
            for address in tokio::net::lookup_host((name.as_str(), 0)).await? {
                match policy.permit_address(address.ip(), permitted.trust) {
                    Ok(()) => addresses.push(address),
                    Err(problem) => refused = Some(problem),
                }
            }
            match refused {
                Some(problem) if addresses.is_empty() => Err(Refused(problem).into()),
                _ => Ok(Box::new(addresses.into_iter()) as dns::Addrs),
            }
        })
    }
}

fn failed(source: &Permitted, problem: &str) -> Reason {
    Reason::new(ReasonCode::FetchFailed).with("source", shown(source.url.as_str())).with("problem", problem)
}

fn wrong_size(source: &Permitted, actual: impl std::fmt::Display, expected: u64) -> Fail {
    let reason = Reason::new(ReasonCode::SizeMismatch).with("source", shown(source.url.as_str()));
    Fail::Final(reason.with("actual", actual).with("expected", expected))
}

/// Whether the answer holds the artifact's bytes, and from where on.
fn judge(source: &Permitted, response: Response, offset: u64, size: u64) -> Result<Opened, Fail> {
    let status = response.status();
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    match status {
        StatusCode::OK => match response.content_length() {
            Some(length) if length != size => Err(wrong_size(source, length, size)),
            // To a request for a range this says: start over.
            _ => Ok(Opened { body: Body::Https(response), offset: 0, end: size }),
        },
        StatusCode::PARTIAL_CONTENT => match range.and_then(content_range) {
            Some((start, total)) if start == offset => match total {
                Some(total) if total != size => Err(wrong_size(source, total, size)),
                _ => Ok(Opened { body: Body::Https(response), offset, end: size }),
            },
            _ => Err(Fail::Final(failed(source, "it answered with another range than was asked for"))),
        },
        StatusCode::RANGE_NOT_SATISFIABLE => {
            let total = range.and_then(|range| range.strip_prefix("bytes */")).unwrap_or("fewer");
            Err(wrong_size(source, total, size))
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            Err(Fail::Retry(status.to_string()))
        }
        _ if status.is_server_error() => Err(Fail::Retry(status.to_string())),
        _ => Err(Fail::Final(failed(source, &status.to_string()))),
    }
}

/// `bytes 5-9/10` is from byte 5 of 10; `*` stands for a length that is not known.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-')?.0.trim().parse().ok()?;
    let total = if total == "*" { None } else { Some(total.trim().parse().ok()?) };
    Some((start, total))
}

/// Only a strong one says that the bytes are the same.
fn strong_etag(headers: &HeaderMap) -> Option<String> {
    let etag = headers.get(ETAG)?.to_str().ok()?;
    etag.starts_with('"').then(|| etag.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        let check = |text, expected| assert_eq!(content_range(text), expected, "{text}");
        check("bytes 5-9/10", Some((5, Some(10))));
        check("bytes 0-0/*", Some((0, None)));
        check("bytes */10", None);
        check("items 0-1/2", None);
        check("bytes 5-9/x", None);
        check("", None);
    }
}
