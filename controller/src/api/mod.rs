//! The services of `upfleet.v1`: convert, call, convert. Nothing is decided here.
//!
//! Each call came through `auth::AuthLayer`, but those of `enroll`, which has a listener of its own.

mod agent;
mod artifact;
mod enroll;
mod names;
mod node;
mod page;
mod patch;
mod release;
mod rollout;
mod show;
mod uncopied;
mod user;
mod watch;

use tonic::{Request, Response, Status};
use upfleet_api::reason::status;
use upfleet_domain::reason::Reason;

pub use enroll::Enrollment;
pub use rollout::RolloutApi;
pub use uncopied::Uncopied;

use crate::{
    auth::{Principal, principal},
    ops::Operations,
};

/// The services that people, CI jobs and agents call.
#[derive(Clone)]
pub struct Api(pub Operations);

type Answer<T> = Result<Response<T>, Status>;

fn refuse(reason: Reason) -> Status {
    status(&reason)
}

/// The caller and what it sent.
fn opened<T>(request: Request<T>) -> Result<(Principal, T), Status> {
    let caller = principal(&request)?;
    Ok((caller, request.into_inner()))
}

/// Answers with what `result` gave, converted by `show`.
fn answer<T, W>(result: Result<T, Reason>, show: impl FnOnce(T) -> W) -> Answer<W> {
    result.map(|value| Response::new(show(value))).map_err(refuse)
}
