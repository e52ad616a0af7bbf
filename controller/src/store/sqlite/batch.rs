//! One batch of changes inside a transaction: dispatches each to the code of its table.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::Peekable,
    vec::IntoIter,
};

use sqlx::SqliteConnection;
use upfleet_domain::id::{NodeId, RolloutId};

use super::{
    bulk::{self, Ack, Put, Told},
    content,
    error::{count, int},
    fleet, identity, rollout,
};
use crate::store::{Change, Committed, Conflict, Expected, Notice, Result};

/// A batch under way.
pub(super) struct Batch<'c> {
    /// The writer's connection, within the batch's savepoint.
    pub conn: &'c mut SqliteConnection,
    /// What became of it so far.
    pub committed: Committed,
    notices: BTreeSet<Notice>,
    /// The revision of each rollout touched; written back once, at the end.
    revisions: BTreeMap<RolloutId, u64>,
}

/// Applies all changes of a batch, or fails with the first that can't be.
pub(super) async fn apply(
    conn: &mut SqliteConnection,
    changes: Vec<Change>,
) -> Result<(Committed, Vec<Notice>)> {
    let mut batch =
        Batch { conn, committed: Committed::default(), notices: BTreeSet::new(), revisions: BTreeMap::new() };
    for change in &changes {
        if let Change::Request(request) = change
            && let Some(response) = identity::replay(&mut batch, request).await?
        {
            return Ok((Committed { replayed: Some(response), ..Committed::default() }, vec![]));
        }
    }
    let mut changes = changes.into_iter().peekable();
    while let Some(change) = changes.next() {
        batch.apply_run(change, &mut changes).await?;
    }
    batch.finish().await
}

type Changes = Peekable<IntoIter<Change>>;

/// All that follow of the same kind, as `take` makes of them.
fn run<T>(changes: &mut Changes, kind: fn(&Change) -> bool, take: fn(Change) -> Option<T>) -> Vec<T> {
    std::iter::from_fn(|| changes.next_if(kind)).filter_map(take).collect()
}

impl Batch<'_> {
    /// Applies a change, together with those after it that are of the same kind where a fleet has many of them.
    async fn apply_run(&mut self, change: Change, rest: &mut Changes) -> Result<()> {
        match change {
            Change::PutDesired { node, desired } => {
                let more = run(
                    rest,
                    |c| matches!(c, Change::PutDesired { .. }),
                    |c| match c {
                        Change::PutDesired { node, desired } => Some((node, desired)),
                        _ => None,
                    },
                );
                let all = std::iter::once((node, desired)).chain(more).collect();
                bulk::put_desired(self, all).await
            }
            Change::PutUpgrade { rollout, upgrade, expected, time } => {
                let more = run(
                    rest,
                    |c| matches!(c, Change::PutUpgrade { .. }),
                    |c| match c {
                        Change::PutUpgrade { rollout, upgrade, expected, time } => {
                            Some(Put { rollout, upgrade, expected, time })
                        }
                        _ => None,
                    },
                );
                let all = std::iter::once(Put { rollout, upgrade, expected, time }).chain(more).collect();
                bulk::put_upgrades(self, all).await
            }
            Change::Acknowledge { node, component, generation, hold_generation } => {
                let more = run(
                    rest,
                    |c| matches!(c, Change::Acknowledge { .. }),
                    |c| match c {
                        Change::Acknowledge { node, component, generation, hold_generation } => {
                            Some(Ack { node, component, generation, hold_generation })
                        }
                        _ => None,
                    },
                );
                let first = Ack { node, component, generation, hold_generation };
                bulk::acknowledge(self, std::iter::once(first).chain(more).collect()).await
            }
            Change::RecordReport { node, report, time } => {
                let more = run(
                    rest,
                    |c| matches!(c, Change::RecordReport { .. }),
                    |c| match c {
                        Change::RecordReport { node, report, time } => Some(Told { node, report, time }),
                        _ => None,
                    },
                );
                let all = std::iter::once(Told { node, report, time }).chain(more).collect();
                bulk::record_reports(self, all).await
            }
            other => self.apply(other).await,
        }
    }

    async fn apply(&mut self, change: Change) -> Result<()> {
        match change {
            Change::PutNode { node, expected } => fleet::put_node(self, node, expected).await,
            Change::OpenSession { node, session, platform, facts } => {
                fleet::open_session(self, node, session, platform, facts).await
            }
            Change::CloseSession { node, instance_id, time } => {
                fleet::close_session(self, node, &instance_id, time).await
            }
            Change::CloseAllSessions => fleet::close_all_sessions(self).await,
            Change::SeeNodes(seen) => fleet::see_nodes(self, seen).await,
            Change::PutComponent { node, inventory, changed } => {
                fleet::put_component(self, node, inventory, changed).await
            }
            Change::KeepComponents { node, components } => {
                fleet::keep_components(self, node, &components).await
            }
            Change::PutJvms { node, jvms } => fleet::put_jvms(self, node, jvms).await,
            Change::PutHold { node, component, hold } => fleet::put_hold(self, node, component, hold).await,
            Change::Refuse { node, component, generation, reason, time } => {
                rollout::refuse(self, node, component, generation, reason, time).await
            }
            Change::PutArtifact(record) => content::put_artifact(self, record).await,
            Change::NeedArtifact(digest) => content::need_artifact(self, digest).await,
            Change::DeleteArtifact(digest) => content::delete_artifact(self, digest).await,
            Change::CreateRelease(record) => content::create_release(self, record).await,
            Change::YankRelease { component, version, yank } => {
                content::yank(self, component, version, yank).await
            }
            Change::RecordDigestFailure(failure) => content::record_failure(self, failure).await,
            Change::Quarantine { record, renew } => content::quarantine(self, record, renew).await,
            Change::LiftQuarantine { digest, lift } => content::lift(self, digest, lift).await,
            other => self.apply_rest(other).await,
        }
    }

    async fn apply_rest(&mut self, change: Change) -> Result<()> {
        match change {
            Change::CreateCertificate(record) => identity::create_certificate(self, record).await,
            Change::RevokeCertificates { serials, time } => identity::revoke(self, &serials, time).await,
            Change::RevokeNodeCertificates { node, time } => identity::revoke_node(self, &node, time).await,
            Change::SuspendNodeCertificates { node, suspended } => {
                identity::suspend(self, &node, suspended).await
            }
            Change::CreateToken(record) => identity::create_token(self, record).await,
            Change::UseToken { id, secret_hash, node, time } => {
                identity::use_token(self, id, secret_hash, node, time).await
            }
            Change::RevokeToken { id } => identity::revoke_token(self, id).await,
            Change::CreateRollout { rollout, plan, upgrades } => {
                rollout::create(self, *rollout, &plan, upgrades).await
            }
            Change::PutRollout { rollout, expected, time } => {
                rollout::put(self, *rollout, expected, time).await
            }
            Change::ForgetOrders => fleet::forget_orders(self).await,
            Change::RaiseEpoch { from } => identity::raise_epoch(self, from).await,
            Change::Audit(record) => identity::audit(self, record).await,
            Change::Request(record) => identity::store_request(self, record).await,
            Change::PruneRequests { before } => identity::prune_requests(self, before).await,
            _ => unreachable!("the others are taken before"),
        }
    }

    /// Tells of a change once it is durable.
    pub fn tell(&mut self, notice: Notice) {
        self.notices.insert(notice);
    }

    /// Tells of a change to a node.
    pub fn tell_node(&mut self, id: NodeId) {
        self.tell(Notice::Node { id });
    }

    /// The next revision of a rollout; it must exist.
    pub async fn revise(&mut self, rollout: &RolloutId) -> Result<u64> {
        let last = match self.revisions.get(rollout) {
            Some(last) => *last,
            None => {
                let select = "SELECT revision FROM rollout WHERE id = $1";
                let row = sqlx::query_scalar::<_, i64>(select).bind(rollout.as_str());
                let found = row.fetch_optional(&mut *self.conn).await?;
                count(found.ok_or_else(|| missing("rollout", rollout))?)
            }
        };
        self.revisions.insert(rollout.clone(), last + 1);
        Ok(last + 1)
    }

    /// Says that a rollout was created with revision 1.
    pub fn created(&mut self, rollout: RolloutId) {
        self.revisions.insert(rollout, 1);
    }

    async fn finish(mut self) -> Result<(Committed, Vec<Notice>)> {
        for (rollout, revision) in &self.revisions {
            let update = "UPDATE rollout SET revision = $2 WHERE id = $1";
            let update = sqlx::query(update).bind(rollout.as_str()).bind(int(*revision));
            update.execute(&mut *self.conn).await?;
            self.notices.insert(Notice::Rollout { id: rollout.clone() });
        }
        self.committed.revisions = self.revisions;
        Ok((self.committed, self.notices.into_iter().collect()))
    }
}

/// Checks a precondition against the stored revision; returns the next one.
pub(super) fn expect(
    expected: Expected,
    found: Option<u64>,
    what: &'static str,
    name: &impl ToString,
) -> Result<u64> {
    match (expected, found) {
        (Expected::Absent, Some(_)) => Err(exists(what, name).into()),
        (Expected::Revision(_), None) => Err(missing(what, name).into()),
        (Expected::Revision(wanted), Some(found)) if wanted != found => Err(stale(what, name).into()),
        (_, found) => Ok(found.unwrap_or(0) + 1),
    }
}

/// It is there already.
pub(super) fn exists(what: &'static str, name: &impl ToString) -> Conflict {
    Conflict::Exists { what, name: name.to_string() }
}

/// It is not there.
pub(super) fn missing(what: &'static str, name: &impl ToString) -> Conflict {
    Conflict::Missing { what, name: name.to_string() }
}

/// It has changed.
pub(super) fn stale(what: &'static str, name: &impl ToString) -> Conflict {
    Conflict::Stale { what, name: name.to_string() }
}
