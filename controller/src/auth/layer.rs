//! The gate in front of every method: who calls is known from the connection, what they may from the table.
//!
//! It reads nothing of the request but its path, and nothing of the store: the connection was admitted by
//! its certificate's serial, and is cut when that is revoked.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::{Status, body::Body};
use tower::{Layer, Service};
use upfleet_api::reason;
use upfleet_domain::reason::{Reason, ReasonCode};

use super::{Principal, callers};
use crate::tls::Peer;

/// Puts the gate in front of a service.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuthLayer;

impl<S> Layer<S> for AuthLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { inner }
    }
}

/// The gate.
#[derive(Clone, Debug)]
pub struct Gate<S> {
    inner: S,
}

type BoxFuture<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl<S, B> Service<Request<B>> for Gate<S>
where
    S: Service<Request<B>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match authorise(request.uri().path(), request.extensions().get::<Peer>()) {
            Ok(principal) => {
                request.extensions_mut().insert(principal);
                Box::pin(self.inner.call(request))
            }
            Err(reason) => {
                tracing::info!(method = request.uri().path(), code = %reason.code, "call refused");
                let response = reason::status(&reason).into_http();
                Box::pin(std::future::ready(Ok(response)))
            }
        }
    }
}

/// Whether whoever is at the other end may call the method.
fn authorise(path: &str, peer: Option<&Peer>) -> Result<Principal, Reason> {
    let principal = peer
        .and_then(|peer| peer.credentials.as_ref())
        .map(|credentials| credentials.principal.clone())
        .ok_or_else(|| Reason::new(ReasonCode::Unauthenticated))?;
    let Some(row) = callers(path) else {
        return Err(Reason::new(ReasonCode::NotImplemented).with("feature", path));
    };
    if row.admit(&principal) {
        return Ok(principal);
    }
    let caller = match principal.role() {
        Some(role) => format!("{principal} ({role})"),
        None => principal.to_string(),
    };
    let method = path.rsplit('/').next().unwrap_or(path);
    Err(Reason::new(ReasonCode::PermissionDenied)
        .with("caller", caller)
        .with("method", method)
        .with("needs", row))
}

/// Who sent a request that came through the gate.
///
/// # Errors
/// `UNAUTHENTICATED` where it did not come through the gate.
pub fn principal<T>(request: &tonic::Request<T>) -> Result<Principal, Status> {
    let known = request.extensions().get::<Principal>().cloned();
    known.ok_or_else(|| reason::status(&Reason::new(ReasonCode::Unauthenticated)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{auth::Role, tls::Credentials};

    fn peer(principal: Option<Principal>) -> Peer {
        Peer::for_test(principal.map(Credentials::for_test))
    }

    #[test]
    fn who_has_no_certificate_may_nothing() {
        let path = "/grpc.health.v1.Health/Check";
        assert_eq!(authorise(path, None).unwrap_err().code, ReasonCode::Unauthenticated);
        assert_eq!(authorise(path, Some(&peer(None))).unwrap_err().code, ReasonCode::Unauthenticated);
    }

    #[test]
    fn a_refusal_says_what_is_needed() {
        let anna = Principal::User { user: "anna".parse().unwrap(), role: Role::Viewer };
        let reason = authorise("/upfleet.v1.NodeService/RetireNode", Some(&peer(Some(anna)))).unwrap_err();
        assert_eq!(reason.message(), "users/anna (viewer) may not call RetireNode; it needs admin");
    }

    #[test]
    fn an_unknown_method_is_refused_to_admins_too() {
        let root = Principal::User { user: "root".parse().unwrap(), role: Role::Admin };
        let reason = authorise("/upfleet.v1.NodeService/Novel", Some(&peer(Some(root)))).unwrap_err();
        assert_eq!(reason.code, ReasonCode::NotImplemented);
    }
}
