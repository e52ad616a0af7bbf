//! Which sources an agent may fetch from. Pure: URLs and addresses in, a verdict out.
//!
//! A manifest comes from elsewhere, so a URL in it must not become a way to reach what only this node can
//! reach: its own services, a cloud's metadata, the private network around it. A host is judged by name, then
//! each address it resolves to is judged again, and the connection goes to an address that was judged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest::Url;
use upfleet_domain::reason::{Reason, ReasonCode};

/// What the agent's configuration says about sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// `host` or `*.domain`; empty permits every public host. A host that is named in full may lie in a
    /// private network, since a person has named it.
    pub allowed_hosts: Vec<String>,
    /// Whether loopback addresses are permitted.
    pub allow_loopback: bool,
}

/// How a host was permitted, which decides where it may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// By a wildcard or an empty list: public addresses only.
    Public,
    /// By its full name: private addresses, too.
    Named,
}

/// A source that may be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permitted {
    /// Where to.
    pub url: Url,
    /// Where its host may lie.
    pub trust: Trust,
}

impl Policy {
    /// Judges a URL by its form and its host's name. Its addresses are judged when it is resolved.
    ///
    /// # Errors
    /// [`ReasonCode::SourceNotAllowed`] with the problem.
    pub fn permit(&self, source: &str) -> Result<Permitted, Reason> {
        let refuse = |problem: &str| {
            Reason::new(ReasonCode::SourceNotAllowed).with("source", shown(source)).with("problem", problem)
        };
        let url = Url::parse(source).map_err(|_| refuse("it is not a URL"))?;
        if url.scheme() != "https" {
            return Err(refuse("it is not https"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse("it carries credentials"));
        }
        // The parser has turned decimal, octal and hex forms of an address into the usual one.
        let host = url.host_str().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
        let trust =
            self.trust(&host).ok_or_else(|| refuse("its host is not in the configured list of hosts"))?;
        if let Some(address) = literal(&host) {
            self.permit_address(address, trust).map_err(refuse)?;
        }
        Ok(Permitted { url, trust })
    }

    /// Judges one address that a permitted host resolved to.
    ///
    /// # Errors
    /// Says what kind of address it is.
    pub fn permit_address(&self, address: IpAddr, trust: Trust) -> Result<(), &'static str> {
        match (classify(address), trust) {
            (Kind::Public, _) | (Kind::Private, Trust::Named) => Ok(()),
            (Kind::Loopback, _) if self.allow_loopback => Ok(()),
            (Kind::Loopback, _) => Err("its address is a loopback address"),
            (Kind::Private, Trust::Public) => {
                Err("its address is private; name the host itself in `allowed_hosts`")
            }
            (Kind::Forbidden(what), _) => Err(what),
        }
    }

    fn trust(&self, host: &str) -> Option<Trust> {
        if host.is_empty() {
            return None;
        }
        let listed = |entry: &str| entry.trim_end_matches('.').eq_ignore_ascii_case(host);
        if self.allowed_hosts.iter().any(|entry| listed(entry.trim_matches(['[', ']'])) || listed(entry)) {
            return Some(Trust::Named);
        }
        let wildcard = |entry: &String| {
            let domain = entry.strip_prefix('*').unwrap_or_default().to_ascii_lowercase();
            entry == "*" || (domain.starts_with('.') && domain.len() > 1 && host.ends_with(&domain))
        };
        let public = self.allowed_hosts.is_empty() || self.allowed_hosts.iter().any(wildcard);
        public.then_some(Trust::Public)
    }
}

/// A source as logs and reports may show it: credentials, and what may stand for them in a query, are left out.
#[must_use]
pub fn shown(source: &str) -> String {
    let plain = source.split(['?', '#']).next().unwrap_or_default();
    let bare = Url::parse(plain).ok().and_then(|mut url| {
        url.set_username("").and_then(|()| url.set_password(None)).ok()?;
        Some(url.to_string())
    });
    bare.unwrap_or_else(|| plain.rsplit('@').next().unwrap_or_default().to_owned())
}

/// The address that `host` spells, if it is one.
#[must_use]
pub fn literal(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Public,
    Private,
    Loopback,
    Forbidden(&'static str),
}

fn classify(address: IpAddr) -> Kind {
    match address {
        IpAddr::V4(address) => classify_v4(address),
        IpAddr::V6(address) => match embedded(address) {
            Some(inner) => classify_v4(inner),
            None => classify_v6(address),
        },
    }
}

const METADATA: &str = "its address is a cloud's metadata service";
const NOT_UNICAST: &str = "its address is not one of a single machine";

fn classify_v4(address: Ipv4Addr) -> Kind {
    let [a, b, c, d] = address.octets();
    match (a, b, c, d) {
        // The addresses at which clouds hand out credentials, where they are not link-local.
        (100, 100, 100, 200) | (168, 63, 129, 16) | (192, 0, 0, 192) => Kind::Forbidden(METADATA),
        (169, 254, ..) => Kind::Forbidden("its address is link-local, where metadata services are"),
        (127, ..) => Kind::Loopback,
        (10, ..) | (172, 16..=31, ..) | (192, 168, ..) | (100, 64..=127, ..) | (198, 18..=19, ..) => {
            Kind::Private
        }
        (0, ..) | (192, 0, 0, _) | (224..=255, ..) => Kind::Forbidden(NOT_UNICAST),
        _ => Kind::Public,
    }
}

fn classify_v6(address: Ipv6Addr) -> Kind {
    // The metadata address of one large cloud lies in the private range.
    if address == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254) {
        return Kind::Forbidden(METADATA);
    }
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Kind::Loopback,
        [0xfe80..=0xfebf, ..] => Kind::Forbidden("its address is link-local, where metadata services are"),
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Kind::Private,
        // Teredo carries an address of its own that can't be judged.
        [0x2001, 0, ..] => Kind::Forbidden("its address is tunnelled"),
        [0x2000..=0x3fff, ..] => Kind::Public,
        _ => Kind::Forbidden(NOT_UNICAST),
    }
}

/// The IPv4 address inside a mapped, compatible, NAT64 or 6to4 address: that is where the packets end.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let from = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 1, _, _, _, high, low]
        | [0x2002, high, low, ..] => from(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(hosts: &[&str], allow_loopback: bool) -> Policy {
        Policy { allowed_hosts: hosts.iter().map(|host| (*host).to_owned()).collect(), allow_loopback }
    }

    fn check(policy: &Policy, url: &str, permitted: bool) {
        let verdict = policy.permit(url);
        assert_eq!(verdict.is_ok(), permitted, "{url}: {verdict:?}");
    }

    #[test]
    fn by_default_only_https_to_public_hosts() {
        let default = Policy::default();
        for url in [
            "https://cdn.example.com/x",
            "https://cdn.example.com:8443/x",
            "https://93.184.216.34/x",
            "https://[2606:2800:220:1:248:1893:25c8:1946]/x",
        ] {
            check(&default, url, true);
        }
        for url in [
            "http://cdn.example.com/x",
            "ftp://cdn.example.com/x",
            "file:///etc/shadow",
            "cdn.example.com/x",
            "https://user@cdn.example.com/x",
            "https://user:secret@cdn.example.com/x",
        ] {
            check(&default, url, false);
        }
    }

    #[test]
    fn every_spelling_of_an_inner_address_is_seen_through() {
        for url in [
            "https://127.0.0.1/x",
            "https://127.1/x",
            "https://2130706433/x",
            "https://0x7f000001/x",
            "https://0x7f.0.0.1/x",
            "https://0177.0.0.1/x",
            "https://[::1]/x",
            "https://[::ffff:127.0.0.1]/x",
            "https://[::ffff:7f00:1]/x",
            "https://[::127.0.0.1]/x",
            "https://[64:ff9b::7f00:1]/x",
            "https://[2002:7f00:1::]/x",
            "https://0.0.0.0/x",
            "https://0/x",
            "https://[::]/x",
            "https://169.254.169.254/latest/meta-data/",
            "https://2852039166/latest/meta-data/",
            "https://0xa9fea9fe/",
            "https://[::ffff:169.254.169.254]/",
            "https://[fd00:ec2::254]/",
            "https://[fe80::1]/",
            "https://100.100.100.200/",
            "https://168.63.129.16/",
            "https://10.0.0.1/x",
            "https://172.31.255.255/x",
            "https://192.168.1.1/x",
            "https://100.64.0.1/x",
            "https://[fd12::1]/x",
            "https://[fec0::1]/x",
            "https://[2001::1]/x",
            "https://224.0.0.1/x",
            "https://255.255.255.255/x",
            "https://[ff02::1]/x",
        ] {
            check(&Policy::default(), url, false);
        }
        check(&Policy::default(), "https://172.32.0.1/x", true);
    }

    #[test]
    fn what_is_said_of_a_source_holds_no_secret() {
        for (source, text) in [
            ("https://user:secret@cdn.example.com/x", "https://cdn.example.com/x"),
            ("https://10.0.0.1/x?X-Signature=secret#secret", "https://10.0.0.1/x"),
            ("http://cdn.example.com/@scope/x?token=secret", "http://cdn.example.com/@scope/x"),
            ("https://user:secret@cdn example/x?secret", "cdn example/x"),
        ] {
            assert_eq!(shown(source), text);
            let refusal = Policy::default().permit(source).unwrap_err();
            assert!(!refusal.to_string().contains("secret"), "{refusal}");
        }
    }

    #[test]
    fn a_list_of_hosts_is_the_only_way_in() {
        let listed = policy(&["mirror.example.com", "*.cdn.example.com"], false);
        check(&listed, "https://mirror.example.com/x", true);
        check(&listed, "https://MIRROR.example.com./x", true);
        check(&listed, "https://a.cdn.example.com/x", true);
        check(&listed, "https://cdn.example.com/x", false);
        check(&listed, "https://evilcdn.example.com/x", false);
        check(&listed, "https://mirror.example.com.evil.org/x", false);
        check(&listed, "https://other.example.com/x", false);
        check(&policy(&["*"], false), "https://other.example.com/x", true);
        check(&policy(&["*."], false), "https://other.example.com/x", false);
    }

    #[test]
    fn only_a_host_that_is_named_may_be_private() {
        let named = policy(&["10.0.0.7", "mirror.internal", "[fd12::1]", "*.lan"], false);
        check(&named, "https://10.0.0.7/x", true);
        check(&named, "https://10.0.0.8/x", false);
        check(&named, "https://[fd12::1]/x", true);
        let inner: IpAddr = "192.168.3.4".parse().unwrap();
        let by_name = named.permit("https://mirror.internal/x").unwrap();
        assert_eq!(named.permit_address(inner, by_name.trust), Ok(()));
        let by_wildcard = named.permit("https://a.lan/x").unwrap();
        assert!(named.permit_address(inner, by_wildcard.trust).is_err());
        // Being named opens no loopback and no metadata service.
        for address in ["127.0.0.1", "169.254.169.254", "::1", "fd00:ec2::254"] {
            assert!(named.permit_address(address.parse().unwrap(), Trust::Named).is_err(), "{address}");
        }
    }

    #[test]
    fn loopback_is_for_development_and_opens_nothing_else() {
        let loopback = policy(&[], true);
        check(&loopback, "https://127.0.0.1:9000/x", true);
        check(&loopback, "https://[::1]/x", true);
        check(&loopback, "https://10.0.0.1/x", false);
        check(&loopback, "https://169.254.169.254/", false);
    }
}
