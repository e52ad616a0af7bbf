//! Enrollment tokens: made once, shown once, kept as a hash.

use std::{collections::BTreeMap, time::Duration};

use upfleet_domain::{
    digest::Digest,
    id::NodeId,
    labels,
    reason::{Reason, ReasonCode},
    token::{self, EnrollmentToken},
};

use super::{Once, Operations, audit, once};
use crate::{
    auth::Principal,
    failure::internal,
    store::{Change, Page, Rows, TokenRecord},
};

/// How long a token is good where nothing is asked for.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// The longest that can be asked for.
const MAX_TTL: Duration = Duration::from_secs(30 * 86_400);
/// The public id of the token with a secret: a hash, so that the secret alone finds its record and the id
/// tells nothing about it.
pub(super) fn id_of(secret: &str) -> String {
    Digest::of(format!("upfleet enrollment token id {secret}").as_bytes()).to_string()[..16].to_owned()
}

/// What is kept of a secret.
pub(super) fn secret_hash(secret: &str) -> Digest {
    Digest::of(secret.as_bytes())
}

/// The token that is asked for.
#[derive(Clone, Debug, Default)]
pub struct TokenWish {
    /// The only node it is good for.
    pub node: Option<NodeId>,
    /// Labels the node gets.
    pub labels: BTreeMap<String, String>,
    /// How long it is good.
    pub ttl: Option<Duration>,
    /// Whether it may replace a node that is enrolled already.
    pub allow_replace: bool,
}

/// A token, with its secret the first time.
#[derive(Clone, Debug)]
pub struct MintedToken {
    /// The text; empty where the request was answered before.
    pub text: String,
    /// The record.
    pub record: TokenRecord,
}

/// Checks labels as people and tokens give them.
pub(super) fn check_labels(given: &BTreeMap<String, String>) -> Result<(), Reason> {
    let invalid = |problem: String| {
        Reason::new(ReasonCode::InvalidArgument).with("field", "labels").with("problem", problem)
    };
    if given.len() > 64 {
        return Err(invalid("more than 64 labels".to_owned()));
    }
    given.iter().try_for_each(|(key, value)| {
        labels::check_key(key).and_then(|()| labels::check_value(value)).map_err(invalid)
    })
}

impl Operations {
    /// Makes a token.
    ///
    /// # Errors
    /// Where labels or time are not valid, or the store refuses.
    pub async fn create_token(
        &self,
        principal: &Principal,
        wish: TokenWish,
        once: Option<&Once>,
    ) -> Result<MintedToken, Reason> {
        check_labels(&wish.labels)?;
        let ttl = wish.ttl.unwrap_or(DEFAULT_TTL);
        if ttl.is_zero() || ttl > MAX_TTL {
            return Err(Reason::new(ReasonCode::InvalidArgument)
                .with("field", "ttl")
                .with("problem", "it must be more than nothing and at most 30 days"));
        }
        let now = self.clock.now();
        let secret = token::encode(&rand::random::<[u8; 32]>());
        let id = id_of(&secret);
        let record = TokenRecord {
            id: id.clone(),
            secret_hash: secret_hash(&secret),
            node: wish.node,
            labels: wish.labels,
            allow_replace: wish.allow_replace,
            created: now,
            expires: now.after(ttl),
            creator: principal.to_string(),
            used_by: None,
        };
        let after = serde_json::json!({
            "node": record.node, "labels": record.labels, "expires": record.expires,
            "allow_replace": record.allow_replace,
        });
        let object = format!("enrollmentTokens/{id}");
        let entry = audit(&principal.to_string(), "token.create", &object, now).after(after).request(once);
        let mut changes = vec![Change::CreateToken(record.clone()), entry.change()];
        if let Some(once) = once {
            changes.push(once.change(principal, &id, now)?);
        }
        let committed = self.store.commit(changes).await.map_err(internal)?;
        if let Some(first) = committed.replayed {
            let id: String = once::answer(&first)?;
            return Ok(MintedToken { text: String::new(), record: self.token(&id).await? });
        }
        let address = self.doors.enroll.clone();
        let text = EnrollmentToken { address, pin: self.ca.pin(), secret, id }.to_string();
        Ok(MintedToken { text, record })
    }

    async fn token(&self, id: &str) -> Result<TokenRecord, Reason> {
        let found = self.store.token(id).await.map_err(internal)?;
        found.ok_or_else(|| {
            Reason::new(ReasonCode::NotFound).with("what", "enrollment token").with("name", id)
        })
    }

    /// Tokens that are not used up.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list_tokens(&self, page: &Page) -> Result<Rows<TokenRecord>, Reason> {
        self.store.tokens(page).await.map_err(internal)
    }

    /// Takes a token back.
    ///
    /// # Errors
    /// `NOT_FOUND`, or what the store says.
    pub async fn revoke_token(&self, principal: &Principal, id: &str) -> Result<(), Reason> {
        let record = self.token(id).await?;
        let entry = audit(
            &principal.to_string(),
            "token.revoke",
            &format!("enrollmentTokens/{id}"),
            self.clock.now(),
        )
        .before(serde_json::json!({ "node": record.node, "expires": record.expires }));
        let changes = vec![Change::RevokeToken { id: id.to_owned() }, entry.change()];
        self.store.commit(changes).await.map(drop).map_err(internal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_nothing_of_what_is_kept() {
        let secret = token::encode(&[7; 32]);
        assert_eq!(id_of(&secret).len(), 16);
        assert!(!secret_hash(&secret).to_string().contains(&id_of(&secret)));
        assert_ne!(id_of(&secret), id_of(&token::encode(&[8; 32])));
    }

    #[test]
    fn labels_are_checked() {
        let one = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        assert!(check_labels(&one("env", "prod")).is_ok());
        for bad in [one("name", "x"), one("", "x"), one("env", "a b")] {
            assert_eq!(check_labels(&bad).unwrap_err().code, ReasonCode::InvalidArgument, "{bad:?}");
        }
    }
}
