//! The connections that are open now, so that they can be cut. It decides nothing.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;
use upfleet_domain::time::Time;

#[derive(Debug)]
struct Connection {
    serial: String,
    expires: Time,
    kill: CancellationToken,
}

#[derive(Debug, Default)]
struct Tables {
    next: u64,
    connections: HashMap<u64, Connection>,
    handshakes: HashMap<IpAddr, usize>,
}

/// The open connections of one controller. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Live(Arc<Mutex<Tables>>);

/// Keeps a connection listed for as long as it lives.
#[derive(Debug)]
pub struct Registration {
    live: Live,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.live.tables().connections.remove(&self.id);
    }
}

/// One handshake under way.
#[derive(Debug)]
pub struct Handshake {
    live: Live,
    origin: IpAddr,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut tables = self.live.tables();
        if let Some(count) = tables.handshakes.get_mut(&self.origin) {
            *count -= 1;
            if *count == 0 {
                tables.handshakes.remove(&self.origin);
            }
        }
    }
}

impl Live {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Each change is one call on a map: a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a handshake in; `None` where `limit` are under way from there already.
    #[must_use]
    pub fn handshake(&self, from: IpAddr, limit: usize) -> Option<Handshake> {
        let origin = network(from);
        let mut tables = self.tables();
        let count = tables.handshakes.entry(origin).or_default();
        // Whole fleets live on loopback in dev mode and in tests; nobody else can reach it.
        if *count >= limit && !from.is_loopback() {
            return None;
        }
        *count += 1;
        drop(tables);
        Some(Handshake { live: self.clone(), origin })
    }

    /// Lists a connection until the registration is dropped; `None` where `limit` are open already.
    #[must_use]
    pub fn register(
        &self,
        serial: &str,
        expires: Time,
        kill: CancellationToken,
        limit: usize,
    ) -> Option<Registration> {
        let mut tables = self.tables();
        if tables.connections.len() >= limit {
            return None;
        }
        let id = tables.next;
        tables.next += 1;
        tables.connections.insert(id, Connection { serial: serial.to_owned(), expires, kill });
        drop(tables);
        Some(Registration { live: self.clone(), id })
    }

    /// Cuts all connections of these serials and all that have expired; says how many.
    pub fn cut(&self, serials: &HashSet<String>, now: Time) -> usize {
        let tables = self.tables();
        let doomed = tables.connections.values().filter(|connection| {
            !connection.kill.is_cancelled()
                && (connection.expires <= now || serials.contains(&connection.serial))
        });
        doomed.map(|connection| connection.kill.cancel()).count()
    }

    /// Cuts all connections: the controller stops.
    pub fn cut_all(&self) {
        self.tables().connections.values().for_each(|connection| connection.kill.cancel());
    }

    /// How many connections are open.
    #[must_use]
    pub fn count(&self) -> usize {
        self.tables().connections.len()
    }
}

/// Who is counted as one origin: an IPv4 address, or the /64 that one IPv6 customer has.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_refused_and_expired_serials_only() {
        let live = Live::default();
        let open = |serial: &str, expires| {
            let kill = CancellationToken::new();
            (live.register(serial, Time(expires), kill.clone(), 9).unwrap(), kill)
        };
        let (_a, good) = open("aa", 100);
        let (_b, revoked) = open("bb", 100);
        let (_c, expired) = open("cc", 50);
        assert_eq!(live.cut(&HashSet::from(["bb".to_owned()]), Time(60)), 2);
        assert_eq!(
            (good.is_cancelled(), revoked.is_cancelled(), expired.is_cancelled()),
            (false, true, true)
        );
        assert_eq!(live.cut(&HashSet::from(["bb".to_owned()]), Time(60)), 0, "each is cut once");
    }

    #[test]
    fn a_connection_is_listed_while_it_lives() {
        let live = Live::default();
        let first = live.register("aa", Time(1), CancellationToken::new(), 1);
        assert!(first.is_some());
        assert!(live.register("bb", Time(1), CancellationToken::new(), 1).is_none(), "the limit holds");
        drop(first);
        assert_eq!(live.count(), 0);
    }

    #[test]
    fn one_origin_can_not_take_all_handshakes() {
        let live = Live::default();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = live.handshake(address("2001:db8::1"), 1).unwrap();
        assert!(live.handshake(address("2001:db8::2"), 1).is_none(), "the same /64");
        assert!(live.handshake(address("2001:db8:1::1"), 1).is_some());
        drop(first);
        assert!(live.handshake(address("2001:db8::2"), 1).is_some());
        let _one = live.handshake(address("127.0.0.1"), 1);
        assert!(live.handshake(address("127.0.0.1"), 1).is_some(), "loopback is not bounded");
    }
}
