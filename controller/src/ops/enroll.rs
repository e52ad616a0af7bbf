//! How nodes get certificates: by a token, by an expired certificate's key, or over their session.

use std::net::IpAddr;

use upfleet_domain::{
    digest::Digest,
    id::NodeId,
    order::{DesiredState, Generation, Target},
    reason::{Reason, ReasonCode},
    release::Platform,
    time::Time,
};

use super::{
    Operations, audit,
    token::{id_of, secret_hash},
};
use crate::{
    auth::Identity,
    ca::{Ca, Issued, NODE_LIFETIME, ProvenKey},
    failure::{internal, unexpected},
    store::{CertificateRecord, Change, Expected, NodeRecord, NodeState, Store, Subject, TokenRecord},
    tls::Leaf,
};

/// How long after its end a certificate can still be renewed by its key: 90 days.
const RENEWABLE_MILLIS: i64 = 90 * 86_400_000;

/// A node that wants to join.
#[derive(Clone, Debug)]
pub struct EnrollWish {
    /// What it presents.
    pub token: String,
    /// The name it wants.
    pub node: NodeId,
    /// Its request.
    pub csr: Vec<u8>,
    /// What its programs are built for.
    pub platform: Option<Platform>,
}

/// A node that joined.
#[derive(Clone, Debug)]
pub struct Enrolled {
    /// Its name.
    pub node: NodeId,
    /// Its certificate.
    pub issued: Issued,
}

fn invalid_token() -> Reason {
    Reason::new(ReasonCode::TokenInvalid)
}

/// What the store keeps of a node's certificate.
fn record(issued: &Issued, node: &NodeId, creator: &str) -> Change {
    Change::CreateCertificate(CertificateRecord {
        serial: issued.serial.clone(),
        subject: Subject::Node(node.clone()),
        issued: issued.create_time,
        expires: issued.expire_time,
        revoked: None,
        suspended: false,
        creator: creator.to_owned(),
    })
}

/// Signs a request of a node that is known and may go on, and records the certificate.
///
/// # Errors
/// Where the request is not valid, the node may not go on, or the store refuses.
pub async fn renew_node(
    store: &dyn Store,
    ca: &Ca,
    node: &NodeId,
    csr: &[u8],
    now: Time,
) -> Result<Issued, Reason> {
    let key = ProvenKey::from_csr(csr)?;
    let identity = Identity::Node(node.clone());
    let issued = ca.issue(&identity, &[], &key, now, NODE_LIFETIME).map_err(|error| unexpected(&error))?;
    let expires = issued.expire_time;
    crate::sessions::edit_node(store, node, |found| {
        may_go_on(found)?;
        found.cert_expires = Some(expires);
        Ok(vec![record(&issued, node, &format!("nodes/{node}"))])
    })
    .await?;
    Ok(issued)
}

fn may_go_on(node: &NodeRecord) -> Result<(), Reason> {
    match node.state {
        NodeState::Active | NodeState::Cordoned => Ok(()),
        NodeState::Suspended => Err(Reason::new(ReasonCode::CloneSuspected).with("node", &node.id)),
        NodeState::Retired => {
            Err(Reason::new(ReasonCode::NodeNotActive).with("node", &node.id).with("state", node.state))
        }
    }
}

impl Operations {
    /// Trades a token for a certificate.
    ///
    /// # Errors
    /// `TOKEN_INVALID` whatever is wrong with the token, `TOO_MANY_ATTEMPTS` after five of those in a minute,
    /// `NODE_EXISTS`, `CSR_INVALID`, or what the store says.
    pub async fn enroll(&self, origin: IpAddr, wish: &EnrollWish) -> Result<Enrolled, Reason> {
        let now = self.clock.now();
        self.attempts.check(origin, now)?;
        let hash = secret_hash(&wish.token);
        let token = self.good_token(&id_of(&wish.token), &hash, &wish.node, now).await?;
        let Some(token) = token else {
            self.attempts.failed(origin, now);
            tracing::warn!(%origin, node_id = %wish.node, "an enrollment token was refused");
            return Err(invalid_token());
        };
        let key = ProvenKey::from_csr(&wish.csr)?;
        let identity = Identity::Node(wish.node.clone());
        let issued =
            self.ca.issue(&identity, &[], &key, now, NODE_LIFETIME).map_err(|error| unexpected(&error))?;
        let mut changes = vec![Change::UseToken {
            id: token.id.clone(),
            secret_hash: hash,
            node: wish.node.clone(),
            time: now,
        }];
        changes.extend(self.join(wish, &token, &issued, now).await?);
        self.store.commit(changes).await.map_err(|error| {
            let reason = internal(error);
            if reason.code == ReasonCode::TokenInvalid {
                self.attempts.failed(origin, now);
            }
            reason
        })?;
        tracing::info!(node_id = %wish.node, serial = issued.serial, "enrolled a node");
        Ok(Enrolled { node: wish.node.clone(), issued })
    }

    /// The token with that secret, where it is good for the node now.
    async fn good_token(
        &self,
        id: &str,
        hash: &Digest,
        node: &NodeId,
        now: Time,
    ) -> Result<Option<TokenRecord>, Reason> {
        let found = self.store.token(id).await.map_err(internal)?;
        Ok(found.filter(|token| {
            aws_lc_rs::constant_time::verify_slices_are_equal(&token.secret_hash.0, &hash.0).is_ok()
                && token.used_by.is_none()
                && token.expires > now
                && token.node.as_ref().is_none_or(|wanted| wanted == node)
        }))
    }

    /// The changes that make a node part of the fleet.
    async fn join(
        &self,
        wish: &EnrollWish,
        token: &TokenRecord,
        issued: &Issued,
        now: Time,
    ) -> Result<Vec<Change>, Reason> {
        let old = self.store.node(&wish.node).await.map_err(internal)?;
        let living = old.as_ref().is_some_and(|node| node.state != NodeState::Retired);
        if living && !token.allow_replace {
            return Err(Reason::new(ReasonCode::NodeExists).with("node", &wish.node));
        }
        let expected = old.as_ref().map_or(Expected::Absent, |node| Expected::Revision(node.revision));
        let node = NodeRecord {
            id: wish.node.clone(),
            uid: uuid::Uuid::new_v4().to_string(),
            labels: token.labels.clone(),
            state: NodeState::Active,
            reason: None,
            platform: wish.platform.clone(),
            facts: std::collections::BTreeMap::new(),
            created: now,
            cert_expires: Some(issued.expire_time),
            session: None,
            last_seen: None,
            revision: 0,
        };
        let actor = format!("enrollmentTokens/{}", token.id);
        let entry = audit(&actor, "node.enroll", &format!("nodes/{}", wish.node), now)
            .before(old.as_ref().map_or(
                serde_json::Value::Null,
                |old| serde_json::json!({ "uid": old.uid, "state": old.state }),
            ))
            .after(serde_json::json!({ "uid": node.uid, "serial": issued.serial, "labels": node.labels }));
        let mut changes = vec![Change::PutNode { node, expected }];
        if old.is_some() {
            changes.extend(self.clear(&wish.node, now).await?);
        }
        changes.push(record(issued, &wish.node, &token.creator));
        changes.push(entry.change());
        Ok(changes)
    }

    /// The changes that forget what an earlier machine of that name ran and was told.
    async fn clear(&self, node: &NodeId, now: Time) -> Result<Vec<Change>, Reason> {
        let mut changes = vec![
            Change::RevokeNodeCertificates { node: node.clone(), time: now },
            Change::KeepComponents { node: node.clone(), components: Vec::new() },
        ];
        let epoch = self.store.meta().await.map_err(internal)?.epoch;
        for record in self.store.desired(node).await.map_err(internal)? {
            let number = if record.generation().epoch == epoch { record.generation().number + 1 } else { 1 };
            changes.push(Change::PutDesired {
                node: node.clone(),
                desired: DesiredState {
                    component: record.component,
                    generation: Generation { epoch, number },
                    rollout: None,
                    upgrade: None,
                    target: Target::Stay,
                    layers: Vec::new(),
                    live: false,
                    hold_before: None,
                    not_after: None,
                    allow_downgrade: false,
                    allow_failed_digest: false,
                    soak: None,
                    trace: String::new(),
                    actor: "enrollment".to_owned(),
                },
            });
        }
        Ok(changes)
    }

    /// Renews an expired certificate of a known node by proof of its key.
    ///
    /// # Errors
    /// `CERTIFICATE_UNKNOWN`, `_REVOKED`, `_EXPIRED`, `CLONE_SUSPECTED`, `CSR_INVALID`, or what the store says.
    pub async fn renew_expired(
        &self,
        origin: IpAddr,
        certificate: &[u8],
        csr: &[u8],
    ) -> Result<Issued, Reason> {
        let now = self.clock.now();
        self.attempts.check(origin, now)?;
        let checked = self.provably_known(certificate, csr, now).await;
        let node = checked.inspect_err(|_| self.attempts.failed(origin, now))?;
        let issued = renew_node(self.store.as_ref(), &self.ca, &node, csr, now).await?;
        tracing::info!(node_id = %node, serial = issued.serial, "renewed an expired certificate");
        Ok(issued)
    }

    async fn provably_known(&self, certificate: &[u8], csr: &[u8], now: Time) -> Result<NodeId, Reason> {
        let unknown = || Reason::new(ReasonCode::CertificateUnknown);
        let leaf = Leaf::parse(certificate).filter(|_| self.ca.signed(certificate)).ok_or_else(unknown)?;
        let Identity::Node(node) = &leaf.identity else { return Err(unknown()) };
        let found = self.store.certificate(&leaf.serial).await.map_err(internal)?.ok_or_else(unknown)?;
        if found.subject != Subject::Node(node.clone()) {
            return Err(unknown());
        }
        if found.revoked.is_some() {
            return Err(Reason::new(ReasonCode::CertificateRevoked));
        }
        if found.suspended {
            return Err(Reason::new(ReasonCode::CloneSuspected).with("node", node));
        }
        if now.0.saturating_sub(found.expires.0) > RENEWABLE_MILLIS {
            return Err(Reason::new(ReasonCode::CertificateExpired));
        }
        if ProvenKey::from_csr(csr)?.spki() != leaf.spki {
            let problem = "it is not signed by the expired certificate's key";
            return Err(Reason::new(ReasonCode::CsrInvalid).with("problem", problem));
        }
        Ok(node.clone())
    }
}
