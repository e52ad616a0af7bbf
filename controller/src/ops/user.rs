//! People and CI jobs: certificates with a role.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use upfleet_domain::{
    id::UserId,
    reason::{Reason, ReasonCode},
};

use super::{Once, Operations, audit, once};
use crate::{
    auth::{Identity, Principal, Role},
    ca::{ProvenKey, USER_LIFETIME},
    failure::{internal, unexpected},
    store::{CertificateRecord, Change, Page, Rows, Subject},
};

/// The longest life of a user's certificate: 825 days.
const MAX_TTL: Duration = Duration::from_secs(825 * 86_400);

/// The certificate that is asked for.
#[derive(Clone, Debug)]
pub struct UserWish {
    /// For whom.
    pub user: UserId,
    /// The role.
    pub role: Role,
    /// How long it is good.
    pub ttl: Option<Duration>,
    /// The request.
    pub csr: Vec<u8>,
}

/// A user's certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IssuedUser {
    /// The certificate and its chain.
    pub certificate_pem: String,
    /// The record.
    pub record: CertificateRecord,
}

impl Operations {
    /// Signs a user's request.
    ///
    /// # Errors
    /// Where request or time are not valid, or the store refuses.
    pub async fn issue_user(
        &self,
        principal: &Principal,
        wish: &UserWish,
        once: Option<&Once>,
    ) -> Result<IssuedUser, Reason> {
        let ttl = wish.ttl.unwrap_or(USER_LIFETIME);
        if ttl.is_zero() || ttl > MAX_TTL {
            return Err(Reason::new(ReasonCode::InvalidArgument)
                .with("field", "ttl")
                .with("problem", "it must be more than nothing and at most 825 days"));
        }
        let now = self.clock.now();
        let key = ProvenKey::from_csr(&wish.csr)?;
        let identity = Identity::User(wish.user.clone());
        let issued = self.ca.issue(&identity, &[], &key, now, ttl).map_err(|error| unexpected(&error))?;
        let record = CertificateRecord {
            serial: issued.serial.clone(),
            subject: Subject::User { id: wish.user.clone(), role: wish.role },
            issued: now,
            expires: issued.expire_time,
            revoked: None,
            suspended: false,
            creator: principal.to_string(),
        };
        let answer = IssuedUser { certificate_pem: issued.chain_pem, record: record.clone() };
        let entry = audit(&principal.to_string(), "user.issue", &format!("users/{}", wish.user), now)
            .after(serde_json::json!({
                "serial": record.serial, "role": wish.role.as_str(), "expires": record.expires,
            }))
            .request(once);
        let mut changes = vec![Change::CreateCertificate(record), entry.change()];
        if let Some(once) = once {
            changes.push(once.change(principal, &answer, now)?);
        }
        let committed = self.store.commit(changes).await.map_err(internal)?;
        match committed.replayed {
            Some(first) => once::answer(&first),
            None => Ok(answer),
        }
    }

    /// Users' certificates, newest first.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list_users(&self, page: &Page) -> Result<Rows<CertificateRecord>, Reason> {
        self.store.certificates("user", None, page).await.map_err(internal)
    }

    /// Revokes a user's certificates, or the one with `serial`.
    ///
    /// # Errors
    /// `NOT_FOUND` where there is none to revoke, or what the store says.
    pub async fn revoke_user(
        &self,
        principal: &Principal,
        user: &UserId,
        serial: Option<&str>,
        message: &str,
    ) -> Result<Vec<CertificateRecord>, Reason> {
        let found =
            self.store.certificates("user", Some(user.as_str()), &Page::ALL).await.map_err(internal)?;
        let wanted =
            |certificate: &CertificateRecord| serial.is_none_or(|serial| certificate.serial == serial);
        let all: Vec<_> = found.rows.into_iter().filter(wanted).collect();
        if all.is_empty() {
            return Err(Reason::new(ReasonCode::NotFound).with("what", "user").with("name", user));
        }
        let good = all.iter().filter(|certificate| certificate.revoked.is_none());
        let serials: Vec<String> = good.map(|certificate| certificate.serial.clone()).collect();
        let now = self.clock.now();
        let entry = audit(&principal.to_string(), "user.revoke", &format!("users/{user}"), now)
            .before(serde_json::json!({ "serials": serials }))
            .after(serde_json::json!({ "revoked": serials, "message": message }));
        let changes = vec![Change::RevokeCertificates { serials, time: now }, entry.change()];
        self.store.commit(changes).await.map_err(internal)?;
        let revoked = |mut certificate: CertificateRecord| {
            certificate.revoked = certificate.revoked.or(Some(now));
            certificate
        };
        Ok(all.into_iter().map(revoked).collect())
    }
}
