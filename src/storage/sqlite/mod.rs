//! Keeps everything in one SQLite file. The default backend.
//!
//! One thread writes and commits what waits in one transaction, synced to disk before anyone is
//! answered; a few connections read beside it. The layout is in `docs/storage-format.md`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

mod read;
mod recent;
mod schema;
mod write;

pub use schema::OpenError;

use self::read::Readers;
use self::recent::Recent;
use self::write::{EventRow, Job, SharedHealth, TokenRow, Write, Writer};
use super::{
    Figure, Page, PageLimit, Sequence, StorageError, StorageHealth, StoredEvent, StoredToken,
    TokenScope, WorkflowStorage,
};
use crate::domain::limits::RECORD_BYTES_MAX;
use crate::domain::{Change, EventKind, Token, WorkflowDefinition, WorkflowEvent, WorkflowId};

/// Writes that may wait; whoever comes after waits for a place among them.
const QUEUE_MAX: usize = 1_024;

/// Time that a write waits for a place in the queue and then for its commit.
const WRITE_TIME_MAX: Duration = Duration::from_secs(10);

/// Where the database is.
#[derive(Debug, Clone)]
pub struct SqliteStorageConfig {
    /// The file; it is created if it is not there, its folder is not.
    pub path: PathBuf,
    /// The most bytes that the file may grow to, if not all that the disk has. The write-ahead log
    /// beside it comes on top.
    pub bytes_max: Option<u64>,
}

impl SqliteStorageConfig {
    /// The file at `path`, bounded by its disk alone.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), bytes_max: None }
    }
}

/// Keeps everything in one SQLite file that one process uses at a time.
#[derive(Debug)]
pub struct SqliteStorage {
    path: PathBuf,
    readers: Readers,
    recent: Arc<Recent>,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    health: SharedHealth,
}

impl SqliteStorage {
    /// Opens the file, creates it where there is none, and brings it to today's format.
    ///
    /// It blocks for as long as SQLite takes to recover what a killed process left. On an error the
    /// file is as it was.
    pub fn open(config: &SqliteStorageConfig) -> Result<Self, OpenError> {
        let (path, lock) = schema::lock(&config.path)?;
        let connection = schema::open_writer(&path, config.bytes_max)?;
        let readers = Readers::open(&path)?;
        let failed = |reason: String| OpenError::Failed { path: path.clone(), reason };
        let mut log_path = path.clone().into_os_string();
        log_path.push("-wal");
        let health: SharedHealth = Arc::new(Mutex::new(StorageHealth::Healthy));
        let recent = Arc::new(Recent::new());
        let (shared, kept) = (Arc::clone(&health), Arc::clone(&recent));
        let writer = Writer::new(connection, log_path.into(), shared, kept, lock)
            .map_err(|error| failed(error.to_string()))?;
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let thread = std::thread::Builder::new()
            .name("sqlite-writer".to_owned())
            .spawn(move || writer.run(queue));
        let thread =
            thread.map_err(|error| failed(format!("no thread for the writer: {error}")))?;
        Ok(Self {
            path,
            readers,
            recent,
            jobs: Mutex::new(Some(jobs)),
            writer: Mutex::new(Some(thread)),
            health,
        })
    }

    async fn write(&self, write: Write) -> Result<Sequence, StorageError> {
        let deadline = Instant::now() + WRITE_TIME_MAX;
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(jobs) = jobs else {
            return Err(StorageError::Unavailable { reason: "it was closed".to_owned() });
        };
        let (answer, outcome) = oneshot::channel();
        match tokio::time::timeout_at(deadline, jobs.send(Job { write, answer })).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => {
                return Err(StorageError::Unavailable {
                    reason: "its writer has ended".to_owned(),
                });
            }
            Err(_) => {
                let reason =
                    format!("{QUEUE_MAX} writes were waiting for {} s", WRITE_TIME_MAX.as_secs());
                return Err(StorageError::Unavailable { reason });
            }
        }
        let unknown = |reason: String| Err(StorageError::OutcomeUnknown { reason });
        match tokio::time::timeout_at(deadline, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => unknown("its writer ended before it answered".to_owned()),
            Err(_) => unknown(format!("the disk took longer than {} s", WRITE_TIME_MAX.as_secs())),
        }
    }
}

/// The stored form of a record, if it is not too long.
fn body<T: Serialize>(record: &T, what: impl Fn() -> String) -> Result<String, StorageError> {
    let body = serde_json::to_string(record)
        .map_err(|error| StorageError::Corrupt { what: what(), reason: error.to_string() })?;
    if body.len() > RECORD_BYTES_MAX {
        return Err(StorageError::TooLarge {
            what: what(),
            bytes: body.len(),
            bytes_max: RECORD_BYTES_MAX,
        });
    }
    Ok(body)
}

fn token_row(token: &Arc<Token>) -> Result<TokenRow, StorageError> {
    let body = body(&**token, || format!("token {}", token.id))?;
    Ok(TokenRow { token: Arc::clone(token), body })
}

fn event_rows(events: &[WorkflowEvent]) -> Result<Vec<EventRow>, StorageError> {
    events.iter().map(event_row).collect()
}

fn event_row(event: &WorkflowEvent) -> Result<EventRow, StorageError> {
    Ok(EventRow {
        workflow: event.workflow_id.as_str().to_owned(),
        token: event.token_id,
        is_move: event.kind == EventKind::TokenTransitioned,
        body: body(event, || "the event of this change".to_owned())?,
    })
}

#[async_trait]
impl WorkflowStorage for SqliteStorage {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    async fn insert_workflow(
        &self,
        definition: WorkflowDefinition,
        event: WorkflowEvent,
    ) -> Result<(), StorageError> {
        let body = body(&definition, || format!("workflow {}", definition.id))?;
        self.write(Write::Workflow { id: definition.id, body, event: event_row(&event)? }).await?;
        Ok(())
    }

    async fn load_workflow(
        &self,
        id: &WorkflowId,
    ) -> Result<Option<WorkflowDefinition>, StorageError> {
        let id = id.clone();
        self.readers.run(move |connection| read::workflow(connection, &id)).await
    }

    async fn list_workflows(
        &self,
        after: Option<&WorkflowId>,
        limit: PageLimit,
    ) -> Result<Page<WorkflowDefinition>, StorageError> {
        let after = after.cloned();
        self.readers.run(move |connection| read::workflows(connection, after.as_ref(), limit)).await
    }

    async fn insert_token(&self, change: Change) -> Result<StoredToken, StorageError> {
        let (token, events) = (Arc::new(change.token), change.events);
        let write = Write::NewToken { token: token_row(&token)?, events: event_rows(&events)? };
        Ok(StoredToken { revision: self.write(write).await?, token })
    }

    async fn commit(
        &self,
        expected: Sequence,
        change: Change,
    ) -> Result<StoredToken, StorageError> {
        let (token, events) = (Arc::new(change.token), change.events);
        let write =
            Write::Move { expected, token: token_row(&token)?, events: event_rows(&events)? };
        Ok(StoredToken { revision: self.write(write).await?, token })
    }

    async fn load_token(
        &self,
        id: Uuid,
        workflow: Option<&WorkflowId>,
    ) -> Result<Option<StoredToken>, StorageError> {
        if let Some(kept) = self.recent.get(id).filter(|_| !self.readers.is_closed()) {
            let stored = read::stored_token(kept.revision, &kept.body, id)?;
            return Ok(workflow.is_none_or(|w| *w == stored.token.workflow_id).then_some(stored));
        }
        let workflow = workflow.cloned();
        self.readers.run(move |connection| read::token(connection, id, workflow.as_ref())).await
    }

    fn life(&self) -> u64 {
        0
    }

    fn token_at_hand(&self, _: Uuid) -> Option<StoredToken> {
        // What is kept is as right as the file, so `load_token` gives it.
        None
    }

    async fn message_time(&self, _: Sequence) -> Result<Option<DateTime<Utc>>, StorageError> {
        Ok(None)
    }

    async fn list_tokens(
        &self,
        scope: &TokenScope,
        after: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredToken>, StorageError> {
        let scope = scope.clone();
        self.readers.run(move |connection| read::tokens(connection, &scope, after, limit)).await
    }

    async fn token_moves(
        &self,
        token: &Token,
        before: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredEvent>, StorageError> {
        let id = token.id;
        self.readers.run(move |connection| read::moves(connection, id, before, limit)).await
    }

    async fn list_events(
        &self,
        workflow: Option<&WorkflowId>,
        after: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredEvent>, StorageError> {
        let workflow = workflow.cloned();
        self.readers
            .run(move |connection| read::events(connection, workflow.as_ref(), after, limit))
            .await
    }

    async fn figures(&self) -> Vec<Figure> {
        // It is looked up in memory by the operating system.
        let bytes = std::fs::metadata(&self.path).map(|file| file.len());
        let meaning = "Bytes of the file, without its log.";
        bytes
            .map(|bytes| Figure::gauge("sqlite_file_bytes", meaning, bytes as f64))
            .into_iter()
            .collect()
    }

    async fn health(&self) -> StorageHealth {
        let writer_ends = {
            let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            jobs.as_ref().is_none_or(mpsc::Sender::is_closed)
        };
        if writer_ends {
            return StorageHealth::Unhealthy("its writer has ended; restart the server".to_owned());
        }
        let reads = |connection: &rusqlite::Connection| {
            let first = connection.query_row(
                "SELECT count(*) FROM (SELECT 1 FROM workflows LIMIT 1)",
                [],
                |_| Ok(()),
            );
            first.map_err(|error| StorageError::Unavailable { reason: error.to_string() })
        };
        match self.readers.run(reads).await {
            Ok(()) => self.health.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            Err(error) => StorageHealth::Unhealthy(error.to_string()),
        }
    }

    async fn close(&self) {
        // The connection that closes last folds the log into the database: the writer's must be it.
        self.readers.close().await;
        // Without senders the writer ends once its queue is empty.
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let joined = tokio::task::spawn_blocking(move || writer.join().is_ok());
            match tokio::time::timeout(WRITE_TIME_MAX, joined).await {
                Ok(Ok(true)) => {}
                Ok(_) => tracing::error!("the writer of the database ended by a defect"),
                Err(_) => tracing::warn!(
                    "the last writes did not end in time; the next start recovers them"
                ),
            }
        }
    }
}
