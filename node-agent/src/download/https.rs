//! HTTPS sources: a content delivery network, an object store, a mirror.
//!
//! Each redirect is judged like a first URL, and names are resolved by a resolver that gives only addresses
//! that policy permits, so that the connection goes where the check looked.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

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

type Found = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;
/// Where a host lies, by whoever knows: the system, or a test.
type Lookup = Arc<dyn Fn(String) -> Found + Send + Sync>;

fn by_the_system(host: String) -> Found {
    Box::pin(async move { Ok(tokio::net::lookup_host((host.as_str(), 0)).await?.collect()) })
}

/// Makes requests to permitted sources.
pub(super) struct Client {
    lookup: Lookup,
    policy: Policy,
    proxy: Option<String>,
    extra_ca: Option<PathBuf>,
    /// Made at the first use: most agents never leave the controller's store.
    made: OnceLock<Result<reqwest::Client, String>>,
}

impl Client {
    pub(super) fn new(config: &FetchConfig, policy: Policy) -> Self {
        let (proxy, extra_ca) = (config.proxy.clone(), config.extra_ca.clone());
        Self { lookup: Arc::new(by_the_system), policy, proxy, extra_ca, made: OnceLock::new() }
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
            None => {
                builder.no_proxy().dns_resolver(Arc::new(Resolver(self.policy.clone(), self.lookup.clone())))
            }
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
struct Resolver(Policy, Lookup);

impl dns::Resolve for Resolver {
    fn resolve(&self, name: dns::Name) -> dns::Resolving {
        let (policy, found) = (self.0.clone(), (self.1)(name.as_str().to_owned()));
        Box::pin(async move {
            // Judged with its name by `permit` before; here it only tells where the host may lie.
            let permitted = policy.permit(&format!("https://{}/", name.as_str()))?;
            let mut refused = None;
            let mut addresses: Vec<SocketAddr> = Vec::new();
            for address in found.await? {
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
            Some(length) if length > size => Err(wrong_size(source, length, size)),
            // A shorter one is read to its end, so that a person can be told what it is.
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

    /// How a client at this policy takes a source, where the name leads to these addresses in turn.
    async fn opened(policy: &Policy, port: u16, turns: &'static [&'static [&'static str]]) -> Vec<Fail> {
        let config = FetchConfig { allow_loopback: policy.allow_loopback, ..FetchConfig::default() };
        let turn = std::sync::atomic::AtomicUsize::new(0);
        let mut client = Client::new(&config, policy.clone());
        client.lookup = Arc::new(move |_| {
            let now = turn.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let found =
                turns[now.min(turns.len() - 1)].iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 0));
            let found = found.collect();
            Box::pin(async move { Ok(found) })
        });
        let source = policy.permit(&format!("https://rebind.example:{port}/x")).unwrap();
        let mut fails = Vec::new();
        for _ in turns {
            let Err(fail) = client.open(&source, 0, 9, &mut None).await else { panic!("it was served") };
            fails.push(fail);
        }
        fails
    }

    #[tokio::test]
    async fn a_name_that_leads_elsewhere_is_judged_at_each_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connects = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = connects.clone();
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        });
        let connected = || connects.load(std::sync::atomic::Ordering::SeqCst);
        let refused =
            |fail: &Fail| matches!(fail, Fail::Final(reason) if reason.code == ReasonCode::SourceNotAllowed);

        // Judged as permitted at first; what comes afterwards is judged anew, and not reached.
        let loopback = Policy { allow_loopback: true, ..Policy::default() };
        let fails =
            opened(&loopback, port, &[&["127.0.0.1"], &["169.254.169.254"], &["10.0.0.1", "fd00:ec2::254"]])
                .await;
        assert!(matches!(fails[0], Fail::Retry(_)), "{fails:?}");
        assert!(fails[1..].iter().all(refused), "{fails:?}");
        assert_eq!(connected(), 1);

        let turns: &[&[&str]] =
            &[&["127.0.0.1"], &["::1", "::ffff:127.0.0.1"], &["0.0.0.0"], &["192.168.1.1"]];
        let fails = opened(&Policy::default(), port, turns).await;
        assert!(fails.iter().all(refused), "{fails:?}");
        assert_eq!(connected(), 1, "nothing was connected to");
    }

    #[test]
    fn a_redirect_leads_nowhere_inside() {
        let client = Client::new(&FetchConfig::default(), Policy::default());
        let from = Policy::default().permit("https://cdn.example.com/a/b").unwrap();
        let inner = [
            "https://127.0.0.1/",
            "https://127.1/",
            "https://2130706433/",
            "https://0x7f000001/",
            "https://0177.0.0.1/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[::127.0.0.1]/",
            "https://[64:ff9b::7f00:1]/",
            "https://[2002:7f00:1::]/",
            "https://0.0.0.0/",
            "https://0/",
            "https://[::]/",
            "https://169.254.169.254/",
            "https://2852039166/",
            "https://0xa9fea9fe/",
            "https://[::ffff:169.254.169.254]/",
            "https://[fd00:ec2::254]/",
            "https://[fe80::1]/",
            "https://100.100.100.200/",
            "https://168.63.129.16/",
            "https://10.0.0.1/",
            "https://172.16.0.1/",
            "https://192.168.1.1/",
            "https://100.64.0.1/",
            "https://[fd12::1]/",
            "https://224.0.0.1/",
            "//127.0.0.1/x",
            "//169.254.169.254/x",
            "http://cdn.example.com/",
            "ftp://cdn.example.com/",
            "file:///etc/shadow",
            "javascript:0",
            "https://user:secret@cdn.example.com/",
            "gopher://cdn.example.com/",
        ];
        for location in inner {
            let Err(Fail::Final(reason)) = client.follow(&from, location) else {
                panic!("{location} is followed")
            };
            assert_eq!(reason.code, ReasonCode::SourceNotAllowed, "{location}");
        }
        for location in ["https://other.example.com/x", "/c", "c", "//other.example.com/x", "?q"] {
            assert!(client.follow(&from, location).is_ok(), "{location}");
        }
    }

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
