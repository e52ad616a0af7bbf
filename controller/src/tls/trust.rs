//! Whom the store lets in: decisions by a certificate's serial, at the door and while a connection lives.

use std::{collections::HashSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use upfleet_domain::reason::{Reason, ReasonCode};

use super::{Leaf, Live};
use crate::{
    auth::{Identity, Principal},
    clock::Clock,
    store::{CertificateRecord, Notice, Store, Subject},
};

/// Decides who is let in.
#[async_trait]
pub trait Trust: Send + Sync + 'static {
    /// Who the holder of a certificate is.
    ///
    /// # Errors
    /// Why it is not let in: unknown, revoked, suspended or expired, or the store can't be read.
    async fn admit(&self, leaf: &Leaf) -> Result<Principal, Reason>;
}

/// Decides by what the store has under the serial.
pub struct StoreTrust {
    store: Arc<dyn Store>,
    clock: Clock,
}

impl StoreTrust {
    /// Decides by `store`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: Clock) -> Self {
        Self { store, clock }
    }
}

#[async_trait]
impl Trust for StoreTrust {
    async fn admit(&self, leaf: &Leaf) -> Result<Principal, Reason> {
        let found = self.store.certificate(&leaf.serial).await.map_err(|error| {
            error.reason().unwrap_or_else(|| {
                Reason::new(ReasonCode::StoreUnavailable).with("problem", "it can't be read")
            })
        })?;
        decide(leaf, found.as_ref(), self.clock.now())
    }
}

fn decide(
    leaf: &Leaf,
    record: Option<&CertificateRecord>,
    now: upfleet_domain::time::Time,
) -> Result<Principal, Reason> {
    let unknown = || Reason::new(ReasonCode::CertificateUnknown);
    let record = record.ok_or_else(unknown)?;
    if record.revoked.is_some() {
        return Err(Reason::new(ReasonCode::CertificateRevoked));
    }
    if record.expires <= now || leaf.expires <= now {
        return Err(Reason::new(ReasonCode::CertificateExpired));
    }
    match (&record.subject, &leaf.identity) {
        (Subject::Node(node), Identity::Node(named)) if node == named => {
            if record.suspended {
                return Err(Reason::new(ReasonCode::CloneSuspected).with("node", node));
            }
            Ok(Principal::Node(node.clone()))
        }
        (Subject::User { id, role }, Identity::User(named)) if id == named && !record.suspended => {
            Ok(Principal::User { user: id.clone(), role: *role })
        }
        // A certificate that says something else than was recorded under its serial is nobody's.
        _ => Err(unknown()),
    }
}

/// How often refused serials are read again without a notice: well below the promised five seconds.
const REREAD: Duration = Duration::from_secs(2);

/// Cuts live connections as certificates are revoked, suspended or expire, until `stop`.
pub async fn cut_refused(store: Arc<dyn Store>, live: Live, clock: Clock, stop: CancellationToken) {
    let mut notices = store.subscribe();
    let mut tick = tokio::time::interval(REREAD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut open = true;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
            notice = notices.recv(), if open => match notice {
                Ok(Notice::Certificates) | Err(RecvError::Lagged(_)) => {}
                Ok(_) => continue,
                Err(RecvError::Closed) => { open = false; continue; }
            },
        }
        let now = clock.now();
        match store.refused_serials(now).await {
            Ok(serials) => {
                let cut = live.cut(&serials.into_iter().collect::<HashSet<_>>(), now);
                if cut > 0 {
                    tracing::info!(connections = cut, "cut the connections of refused certificates");
                }
            }
            Err(error) => tracing::warn!(%error, "could not read the refused certificates; tries again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Role;
    use upfleet_domain::time::Time;

    fn leaf(uri: &str) -> Leaf {
        let identity = Identity::from_uri(uri).unwrap();
        Leaf { identity, serial: "40aa".into(), expires: Time(100), spki: Vec::new() }
    }

    fn record(subject: Subject) -> CertificateRecord {
        CertificateRecord {
            serial: "40aa".into(),
            subject,
            issued: Time(0),
            expires: Time(100),
            revoked: None,
            suspended: false,
            creator: "users/root".into(),
        }
    }

    fn code(leaf: &Leaf, record: Option<&CertificateRecord>, now: i64) -> ReasonCode {
        decide(leaf, record, Time(now)).unwrap_err().code
    }

    #[test]
    fn the_store_decides_by_serial() {
        let node = leaf("spiffe://upfleet/node/web-01");
        let good = record(Subject::Node("web-01".parse().unwrap()));
        assert_eq!(decide(&node, Some(&good), Time(9)), Ok(Principal::Node("web-01".parse().unwrap())));
        assert_eq!(code(&node, None, 9), ReasonCode::CertificateUnknown);
        assert_eq!(code(&node, Some(&good), 100), ReasonCode::CertificateExpired);
        let revoked = CertificateRecord { revoked: Some(Time(1)), ..good.clone() };
        assert_eq!(code(&node, Some(&revoked), 9), ReasonCode::CertificateRevoked);
        let suspended = CertificateRecord { suspended: true, ..good };
        assert_eq!(code(&node, Some(&suspended), 9), ReasonCode::CloneSuspected);
    }

    #[test]
    fn a_name_that_was_not_recorded_is_nobody() {
        let anna = Subject::User { id: "anna".parse().unwrap(), role: Role::Viewer };
        let user = decide(&leaf("spiffe://upfleet/user/anna"), Some(&record(anna.clone())), Time(9));
        assert_eq!(user.unwrap().role(), Some(Role::Viewer));
        for uri in ["spiffe://upfleet/user/root", "spiffe://upfleet/node/anna", "spiffe://upfleet/controller"]
        {
            assert_eq!(
                code(&leaf(uri), Some(&record(anna.clone())), 9),
                ReasonCode::CertificateUnknown,
                "{uri}"
            );
        }
    }
}
