//! Exactly-once creation: the same request id again gives the first answer.

use serde::{Serialize, de::DeserializeOwned};
use upfleet_domain::{
    digest::Digest,
    reason::{Reason, ReasonCode},
    time::Time,
};

use crate::{
    auth::Principal,
    failure::{internal, unexpected},
    store::{Change, Conflict, RequestRecord, Store, StoreError},
};

/// A request that carries an id.
#[derive(Clone, Debug)]
pub struct Once {
    /// The id.
    pub id: String,
    method: &'static str,
    body: Digest,
}

impl Once {
    /// The request `message` of `method`; `None` where it carries no id.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` where the id is no UUID.
    pub fn of<M: prost::Message>(
        method: &'static str,
        request_id: &str,
        message: &M,
    ) -> Result<Option<Self>, Reason> {
        if request_id.is_empty() {
            return Ok(None);
        }
        let id = uuid::Uuid::parse_str(request_id).map_err(|_| {
            Reason::new(ReasonCode::InvalidArgument)
                .with("field", "request_id")
                .with("problem", "it is no UUID")
        })?;
        let body = Digest::of(&message.encode_to_vec());
        Ok(Some(Self { id: id.to_string(), method, body }))
    }

    /// The first answer, where this request was answered before.
    ///
    /// # Errors
    /// `REQUEST_ID_REUSED` where the id came with another method or body.
    pub async fn replay<T: DeserializeOwned>(
        &self,
        store: &dyn Store,
        principal: &Principal,
    ) -> Result<Option<T>, Reason> {
        let found = store.request(&principal.to_string(), &self.id).await.map_err(internal)?;
        let Some(record) = found else { return Ok(None) };
        if record.method != self.method || record.body != self.body {
            let request_id = self.id.clone();
            return Err(internal(StoreError::Conflict(Conflict::RequestReused { request_id })));
        }
        answer(&record.response).map(Some)
    }

    /// The change that remembers `answer`.
    ///
    /// # Errors
    /// `INTERNAL` where it has no JSON form.
    pub fn change<T: Serialize>(
        &self,
        principal: &Principal,
        answer: &T,
        time: Time,
    ) -> Result<Change, Reason> {
        Ok(Change::Request(RequestRecord {
            principal: principal.to_string(),
            id: self.id.clone(),
            method: self.method.to_owned(),
            body: self.body,
            response: serde_json::to_vec(answer).map_err(|error| unexpected(&error))?,
            time,
        }))
    }
}

/// Reads a stored answer.
///
/// # Errors
/// `INTERNAL` where another version stored something else.
pub fn answer<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Reason> {
    serde_json::from_slice(bytes).map_err(|error| unexpected(&error))
}
