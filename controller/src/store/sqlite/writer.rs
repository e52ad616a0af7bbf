//! The one task that writes: it takes all batches that wait, applies each in a savepoint, and makes them
//! durable with one commit.

use std::sync::Arc;

use sqlx::{Sqlite, SqliteConnection, SqlitePool, pool::PoolConnection};
use tokio::sync::{Mutex, broadcast, mpsc, oneshot};

use super::batch;
use crate::store::{Change, Committed, Notice, Result, StoreError};

/// The most batches that share a commit: bounds how long the first of them waits.
const MAX_GROUP: usize = 256;

/// What the writer is asked.
pub(super) enum Job {
    /// Write this.
    Batch { changes: Vec<Change>, answer: oneshot::Sender<Result<Committed>> },
    /// Write something that says nothing, to see whether writing goes.
    Probe { answer: oneshot::Sender<Result<()>> },
    /// Panic, as a mistake in the writer would.
    #[cfg(test)]
    Panic,
    /// End, once all before is written.
    Close { answer: oneshot::Sender<()> },
}

/// A batch that was applied, or refused, and waits for the group's commit.
struct Applied {
    answer: oneshot::Sender<Result<Committed>>,
    result: Result<Committed>,
    notices: Vec<Notice>,
}

/// How much a probe writes after a write has failed: a disk with room for a few bytes is still full.
const LARGE_PROBE: usize = 256 * 1024;

/// Writes until the store is dropped or closed. A panic ends the batches in hand and no more: whoever sent them is
/// told that nothing was written.
pub(super) async fn run(pool: SqlitePool, queue: mpsc::Receiver<Job>, notices: broadcast::Sender<Notice>) {
    let queue = Arc::new(Mutex::new(queue));
    loop {
        let writer = Writer { pool: pool.clone(), notices: notices.clone(), failed: false };
        match tokio::spawn(writer.run(Arc::clone(&queue))).await {
            Ok(()) => return,
            Err(error) if error.is_panic() => {
                tracing::error!(%error, "the store's writer failed; it goes on")
            }
            // The runtime is ending.
            Err(_) => return,
        }
    }
}

struct Writer {
    pool: SqlitePool,
    notices: broadcast::Sender<Notice>,
    /// Whether the last write failed.
    failed: bool,
}

impl Writer {
    async fn run(mut self, queue: Arc<Mutex<mpsc::Receiver<Job>>>) {
        let mut queue = queue.lock().await;
        let mut jobs = Vec::new();
        while queue.recv_many(&mut jobs, MAX_GROUP).await > 0 {
            let mut batches = Vec::new();
            let (mut probes, mut close) = (Vec::new(), None);
            for job in jobs.drain(..) {
                match job {
                    Job::Batch { changes, answer } => batches.push((changes, answer)),
                    Job::Probe { answer } => probes.push(answer),
                    #[cfg(test)]
                    Job::Panic => panic!("a test asked for it"),
                    Job::Close { answer } => close = Some(answer),
                }
            }
            if !batches.is_empty() {
                self.failed = !group(&self.pool, batches, &self.notices).await;
            }
            if !probes.is_empty() {
                let outcome = self.probe().await;
                self.failed = outcome.is_err();
                for answer in probes {
                    let _ = answer.send(outcome.as_ref().map(|&()| ()).map_err(again));
                }
            }
            if let Some(answer) = close {
                queue.close();
                let _ = answer.send(());
                return;
            }
        }
    }

    async fn probe(&self) -> Result<()> {
        let mut sizes = vec![1];
        if self.failed {
            sizes.insert(0, LARGE_PROBE);
        }
        for size in sizes {
            let mut conn = self.pool.acquire().await?;
            let insert = "INSERT INTO meta (key, value) VALUES ('probe', $1) \
                          ON CONFLICT (key) DO UPDATE SET value = excluded.value";
            sqlx::query(insert).bind("-".repeat(size)).execute(&mut *conn).await?;
        }
        Ok(())
    }
}

type Waiting = (Vec<Change>, oneshot::Sender<Result<Committed>>);

/// Writes a group, and says whether that went.
async fn group(pool: &SqlitePool, batches: Vec<Waiting>, notices: &broadcast::Sender<Notice>) -> bool {
    let mut applied = Vec::with_capacity(batches.len());
    match write(pool, batches, &mut applied).await {
        Ok(()) => {
            let mut told: Vec<Notice> = applied.iter_mut().flat_map(|one| one.notices.drain(..)).collect();
            told.sort();
            told.dedup();
            for notice in told {
                // Nobody listening is no error: whoever comes later reads the store.
                let _ = notices.send(notice);
            }
            for one in applied {
                let _ = one.answer.send(one.result);
            }
            true
        }
        // Nothing of the group was written, so a conflict found in it may have been with a batch that is not
        // there: everybody is told the same.
        Err(error) => {
            tracing::warn!(%error, batches = applied.len(), "could not write to the store");
            for one in applied {
                let _ = one.answer.send(Err(again(&error)));
            }
            false
        }
    }
}

/// The same error for one more caller.
fn again(error: &StoreError) -> StoreError {
    match error {
        StoreError::Unavailable { operation, problem } => {
            StoreError::Unavailable { operation, problem: problem.clone() }
        }
        other => StoreError::Unavailable { operation: "access", problem: other.to_string() },
    }
}

/// Applies a group and commits it. On an error nothing is written, and `applied` holds every caller.
async fn write(pool: &SqlitePool, batches: Vec<Waiting>, applied: &mut Vec<Applied>) -> Result<()> {
    let mut batches = batches.into_iter();
    let outcome = attempt(pool, &mut batches, applied).await;
    if outcome.is_err() {
        applied.extend(batches.map(unwritten));
    }
    outcome
}

async fn attempt(
    pool: &SqlitePool,
    batches: &mut impl Iterator<Item = Waiting>,
    applied: &mut Vec<Applied>,
) -> Result<()> {
    let mut conn = pool.acquire().await?;
    if let Err(error) = execute(&mut conn, "BEGIN IMMEDIATE").await {
        // Also where a writer that panicked has left a transaction open.
        roll_back(conn).await;
        return Err(error);
    }
    let outcome = apply_all(&mut conn, batches, applied).await;
    let outcome = match outcome {
        Ok(()) => execute(&mut conn, "COMMIT").await,
        failed => failed,
    };
    if outcome.is_err() {
        roll_back(conn).await;
    }
    outcome
}

/// Undoes a group. SQLite may have undone it already; a connection in doubt is closed, and the pool opens
/// another for the next group.
async fn roll_back(mut conn: PoolConnection<Sqlite>) {
    if execute(&mut conn, "ROLLBACK").await.is_err() {
        let _ = conn.close().await;
    }
}

async fn apply_all(
    conn: &mut SqliteConnection,
    batches: &mut impl Iterator<Item = Waiting>,
    applied: &mut Vec<Applied>,
) -> Result<()> {
    let mut batches = batches.peekable();
    while let Some(first) = batches.next() {
        let mut together = vec![first];
        if is_word(&together[0]) {
            together.extend(std::iter::from_fn(|| batches.next_if(is_word)));
        }
        let outcome = match together.len() {
            1 => one_by_one(conn, together, applied).await,
            _ => words(conn, together, applied).await,
        };
        if outcome.is_err() {
            // Whoever is still in line is told the same; the peeked one would be lost otherwise.
            applied.extend(batches.map(unwritten));
            return outcome;
        }
    }
    Ok(())
}

fn unwritten((_, answer): Waiting) -> Applied {
    Applied { answer, result: Ok(Committed::default()), notices: vec![] }
}

async fn one_by_one(
    conn: &mut SqliteConnection,
    batches: Vec<Waiting>,
    applied: &mut Vec<Applied>,
) -> Result<()> {
    let mut batches = batches.into_iter();
    while let Some((changes, answer)) = batches.next() {
        let outcome = savepoint(conn, changes).await;
        let (fatal, result, notices) = match outcome {
            Ok((committed, notices)) => (None, Ok(committed), notices),
            Err(error @ StoreError::Unavailable { .. }) => (Some(again(&error)), Err(error), vec![]),
            Err(error) => (None, Err(error), vec![]),
        };
        applied.push(Applied { answer, result, notices });
        if let Some(error) = fatal {
            applied.extend(batches.map(unwritten));
            return Err(error);
        }
    }
    Ok(())
}

/// Whether a batch is one word of an agent, a report or an acknowledgement, which change different tables and never
/// depend on one another's order but for those of the same kind.
fn is_word((changes, _): &Waiting) -> bool {
    matches!(&changes[..], [Change::RecordReport { .. } | Change::Acknowledge { .. }])
}

/// Applies the words of many agents as one batch; one by one, where one of them is wrong.
async fn words(conn: &mut SqliteConnection, batches: Vec<Waiting>, applied: &mut Vec<Applied>) -> Result<()> {
    let (mut acks, mut reports) = (Vec::new(), Vec::new());
    for (changes, _) in &batches {
        for change in changes {
            let list = if matches!(change, Change::Acknowledge { .. }) { &mut acks } else { &mut reports };
            list.push(change.clone());
        }
    }
    acks.append(&mut reports);
    let (committed, mut notices) = match savepoint(conn, acks).await {
        Ok(done) => done,
        Err(error @ StoreError::Unavailable { .. }) => {
            applied.extend(batches.into_iter().map(unwritten));
            return Err(error);
        }
        Err(_) => return one_by_one(conn, batches, applied).await,
    };
    let mut outcomes = committed.reports.into_iter();
    for (changes, answer) in batches {
        let told = matches!(&changes[..], [Change::RecordReport { .. }]);
        let reports = if told { outcomes.next().into_iter().collect() } else { Vec::new() };
        let revisions = if told { committed.revisions.clone() } else { Default::default() };
        let result = Ok(Committed { replayed: None, revisions, reports });
        // What changed is told once for all.
        applied.push(Applied { answer, result, notices: std::mem::take(&mut notices) });
    }
    Ok(())
}

/// Applies a batch, or nothing of it. Where its savepoint is in doubt the error is [`StoreError::Unavailable`], which
/// ends the group.
async fn savepoint(conn: &mut SqliteConnection, changes: Vec<Change>) -> Result<(Committed, Vec<Notice>)> {
    execute(conn, "SAVEPOINT batch").await.map_err(|error| again(&error))?;
    let outcome = batch::apply(conn, changes).await;
    if let Err(error) = &outcome
        && execute(conn, "ROLLBACK TO batch").await.is_err()
    {
        // A full or failing disk may have made SQLite undo the whole transaction. Whatever this group did now would
        // be written by itself, and its caller be told that it was not.
        return Err(again(error));
    }
    execute(conn, "RELEASE batch").await.map_err(|error| again(&error))?;
    outcome
}

async fn execute(conn: &mut SqliteConnection, sql: &'static str) -> Result<()> {
    sqlx::query(sql).execute(conn).await?;
    Ok(())
}
