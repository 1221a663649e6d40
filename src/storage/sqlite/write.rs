//! The one thread that writes. It commits what waits in one transaction.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::recent::Recent;
use super::schema::FileLock;
use crate::domain::{Token, WorkflowId};
use crate::storage::{Sequence, StorageError, StorageHealth};

/// Writes that one transaction takes at most.
pub const GROUP_MAX: usize = 512;

/// Bytes of rows after which a transaction takes no further write.
const GROUP_BYTES_MAX: usize = 16 << 20;

/// Bytes of the write-ahead log above which readers are waited for so that it can start anew.
/// Without that, readers that always overlap would let it grow for ever.
const LOG_BYTES_MAX: u64 = 64 << 20;

/// Transactions between two looks at the length of the log.
const LOG_CHECK_INTERVAL: u32 = 128;

/// One event as a row.
pub struct EventRow {
    pub workflow: String,
    pub token: Option<Uuid>,
    pub is_move: bool,
    pub body: String,
}

/// One token as a row.
pub struct TokenRow {
    pub token: Arc<Token>,
    pub body: String,
}

/// What is to be written, ready for SQL.
pub enum Write {
    Workflow { id: WorkflowId, body: String, event: EventRow },
    NewToken { token: TokenRow, events: Vec<EventRow> },
    Move { expected: Sequence, token: TokenRow, events: Vec<EventRow> },
}

/// A write and where its outcome goes: the sequence of its first event.
pub struct Job {
    pub write: Write,
    pub answer: oneshot::Sender<Result<Sequence, StorageError>>,
}

/// How the writer does, for health checks.
pub type SharedHealth = Arc<Mutex<StorageHealth>>;

pub struct Writer {
    connection: Connection,
    log_path: PathBuf,
    next_sequence: u64,
    transactions: u32,
    health: SharedHealth,
    recent: Arc<Recent>,
    /// Why no further write is tried.
    stopped: Option<String>,
    /// Held until the connection is closed.
    _lock: FileLock,
}

/// Why a transaction did not take.
enum Failure {
    /// It was rolled back.
    NotDone(StorageError),
    /// The disk failed while it was being made durable.
    Unknown(String),
}

impl Writer {
    pub fn new(
        connection: Connection,
        log_path: PathBuf,
        health: SharedHealth,
        recent: Arc<Recent>,
        lock: FileLock,
    ) -> rusqlite::Result<Self> {
        let last: i64 = connection.query_row(
            "SELECT max(coalesce((SELECT max(sequence) FROM events), 0), coalesce((SELECT max(revision) FROM tokens), 0))",
            [],
            |row| row.get(0),
        )?;
        let next_sequence = u64::try_from(last).unwrap_or(0) + 1;
        Ok(Self {
            connection,
            log_path,
            next_sequence,
            transactions: 0,
            health,
            recent,
            stopped: None,
            _lock: lock,
        })
    }

    /// Writes until the queue is closed and empty, then folds the log into the database.
    pub fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(first) = jobs.blocking_recv() {
            let mut group = Vec::new();
            let mut bytes = 0;
            let mut next = Some(first);
            while let Some(job) = next.take() {
                bytes += job.write.bytes();
                // Nobody waits for it any more: its caller gave up before it began.
                if !job.answer.is_closed() {
                    group.push(job);
                }
                if group.len() < GROUP_MAX && bytes < GROUP_BYTES_MAX {
                    next = jobs.try_recv().ok();
                }
            }
            self.write(group);
            self.bound_the_log();
        }
        if let Err((_, error)) = self.connection.close() {
            tracing::warn!(error = %error, "the database was not closed cleanly, the next start recovers it");
        }
    }

    fn write(&mut self, group: Vec<Job>) {
        if let Some(reason) = &self.stopped {
            for job in group {
                self.done(job, Err(StorageError::Unavailable { reason: reason.clone() }));
            }
            return;
        }
        for job in &group {
            if let Write::Move { token, .. } = &job.write {
                self.recent.forget(token.token.id);
            }
        }
        match self.transact(&group) {
            Ok(outcomes) => {
                // Where all lost their races, nothing was written: that says nothing about the disk.
                let wrote = outcomes.iter().any(Result::is_ok);
                if wrote && self.note_health(StorageHealth::Healthy) {
                    tracing::info!("writes work again");
                }
                for (job, outcome) in group.into_iter().zip(outcomes) {
                    self.done(job, outcome);
                }
            }
            Err(Failure::NotDone(error)) => self.not_done(group, error),
            Err(Failure::Unknown(reason)) => self.stop(group, &reason),
        }
    }

    fn done(&self, job: Job, outcome: Result<Sequence, StorageError>) {
        if let (Ok(revision), Write::NewToken { token, .. } | Write::Move { token, .. }) =
            (&outcome, &job.write)
        {
            self.recent.remember(token.token.id, &token.body, *revision);
        }
        // A caller that has gone away took the outcome as unknown.
        drop(job.answer.send(outcome));
    }

    fn not_done(&mut self, mut group: Vec<Job>, error: StorageError) {
        if group.len() > 1 {
            // One of them does not fit or fails: each gets its own transaction and its own answer.
            for job in group {
                self.write(vec![job]);
            }
        } else if let Some(job) = group.pop() {
            // Once, not for each of the writes that fail for the same reason.
            if self.note_health(StorageHealth::Degraded(error.to_string())) {
                tracing::error!(error = %error, "a write failed and was rolled back");
            }
            self.done(job, Err(error));
        }
    }

    /// After a failed sync neither the operating system nor SQLite can say what is on the disk, and
    /// a second sync may claim success (see "fsyncgate"). So nothing is written until a restart has
    /// read the file anew.
    fn stop(&mut self, group: Vec<Job>, reason: &str) {
        tracing::error!(
            error = reason,
            "the disk failed during a commit; no write is tried until a restart"
        );
        for job in group {
            self.done(job, Err(StorageError::OutcomeUnknown { reason: reason.to_owned() }));
        }
        let stopped = format!(
            "the disk failed during a commit ({reason}); check the disk and restart the server"
        );
        self.note_health(StorageHealth::Unhealthy(stopped.clone()));
        self.stopped = Some(stopped);
    }

    fn transact(&mut self, group: &[Job]) -> Result<Vec<Result<Sequence, StorageError>>, Failure> {
        let mut sequence = self.next_sequence;
        let not_done = |error: rusqlite::Error| Failure::NotDone(write_error(&error));
        // Dropping the transaction before its commit rolls it back.
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(not_done)?;
        let mut outcomes = Vec::with_capacity(group.len());
        for job in group {
            outcomes.push(apply(&transaction, &job.write, &mut sequence).map_err(not_done)?);
        }
        if outcomes.iter().all(Result::is_err) {
            return Ok(outcomes);
        }
        transaction.commit().map_err(|error| match error.sqlite_error_code() {
            // The frame that makes a transaction valid is written last: without room for it, or
            // without the lock, nothing counts.
            Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy) => not_done(error),
            _ => Failure::Unknown(error.to_string()),
        })?;
        self.next_sequence = sequence;
        Ok(outcomes)
    }

    /// Says how the writer does now; whether that is news.
    fn note_health(&self, health: StorageHealth) -> bool {
        let mut shared = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *shared != health;
        *shared = health;
        news
    }

    fn bound_the_log(&mut self) {
        self.transactions = self.transactions.wrapping_add(1);
        if !self.transactions.is_multiple_of(LOG_CHECK_INTERVAL) {
            return;
        }
        let bytes = std::fs::metadata(&self.log_path).map_or(0, |log| log.len());
        if bytes > LOG_BYTES_MAX {
            let restarted =
                self.connection
                    .query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get::<_, i64>(0));
            tracing::debug!(bytes, outcome = ?restarted, "asked readers to let the log start anew");
        }
    }
}

impl Write {
    fn bytes(&self) -> usize {
        let events =
            |events: &[EventRow]| events.iter().map(|event| event.body.len()).sum::<usize>();
        match self {
            Write::Workflow { body, event, .. } => body.len() + event.body.len(),
            Write::NewToken { token, events: rows } | Write::Move { token, events: rows, .. } => {
                token.body.len() + events(rows)
            }
        }
    }
}

/// Writes one change. The outer error is the transaction's, the inner one this change's alone.
fn apply(
    transaction: &Transaction<'_>,
    write: &Write,
    sequence: &mut u64,
) -> rusqlite::Result<Result<Sequence, StorageError>> {
    let first = *sequence;
    let first_key = i64::try_from(first)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    let (events, previous) = match write {
        Write::Workflow { id, body, event } => {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO workflows (id, body) VALUES (?1, ?2) ON CONFLICT (id) DO NOTHING",
            )?;
            if insert.execute(params![id.as_str(), body])? == 0 {
                return Ok(Err(StorageError::WorkflowExists { workflow: id.clone() }));
            }
            (std::slice::from_ref(event), None)
        }
        Write::NewToken { token, events } => {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO tokens (revision, id, workflow, place, body) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (id) DO NOTHING",
            )?;
            if insert.execute(params![
                first_key,
                token.token.id.as_bytes(),
                token.token.workflow_id.as_str(),
                token.token.place.as_str(),
                token.body
            ])? == 0
            {
                return Ok(Err(StorageError::TokenExists { token: token.token.id }));
            }
            (&events[..], None)
        }
        Write::Move { expected, token, events } => {
            let mut update = transaction.prepare_cached(
                "UPDATE tokens SET revision = ?1, place = ?2, body = ?3 WHERE revision = ?4 AND id = ?5",
            )?;
            let expected_key = i64::try_from(expected.0).unwrap_or(-1);
            if update.execute(params![
                first_key,
                token.token.place.as_str(),
                token.body,
                expected_key,
                token.token.id.as_bytes()
            ])? == 0
            {
                return Ok(Err(StorageError::Conflict {
                    token: token.token.id,
                    expected: *expected,
                }));
            }
            (&events[..], Some(expected_key))
        }
    };
    let mut insert = transaction.prepare_cached(
        "INSERT INTO events (sequence, workflow, token, is_move, body, previous) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for (key, event) in (first_key..).zip(events) {
        // A completion comes after its change.
        let previous = if key == first_key { previous } else { Some(first_key) };
        insert.execute(params![
            key,
            event.workflow,
            event.token.as_ref().map(Uuid::as_bytes),
            event.is_move,
            event.body,
            previous
        ])?;
        *sequence += 1;
    }
    Ok(Ok(Sequence(first)))
}

fn write_error(error: &rusqlite::Error) -> StorageError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StorageError::Full {
            reason: "there is no room on the disk for the database; free some or move it"
                .to_owned(),
        },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StorageError::Corrupt { what: "the database".to_owned(), reason: error.to_string() }
        }
        _ => StorageError::Unavailable { reason: error.to_string() },
    }
}
