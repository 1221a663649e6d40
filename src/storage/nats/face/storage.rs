//! The store: opening, the promises of the trait, closing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::assembly::{Assembly, Parts, assemble};
use super::health::Monitor;
use super::readiness::Readiness;
use crate::domain::{Change, Token, WorkflowDefinition, WorkflowEvent, WorkflowId, workflow_hash};
use crate::storage::nats::read::lists;
use crate::storage::nats::read::reader::TURN_WAIT_MAX;
use crate::storage::nats::read::stored::set_place_on_bus;
use crate::storage::nats::read::token;
use crate::storage::nats::upkeep::supervisor::NATSOpenError;
use crate::storage::nats::wire::config::{NATSStorageConfig, NATSStorageOptions};
use crate::storage::nats::wire::link::Link;
use crate::storage::nats::wire::names::{self, ALL_EVENTS, ALL_TOKENS};
use crate::storage::nats::write::claim;
use crate::storage::nats::write::commit::{Commit, forget_place_on_bus};
use crate::storage::nats::write::queue::Queue;
use crate::storage::{
    Figure, Page, PageLimit, Sequence, StorageError, StorageHealth, StoredEvent, StoredToken,
    TokenScope, WorkflowStorage,
};

/// How long a token is read again that has not reached a version of which a caller has heard, and the pause
/// before that, which doubles.
const LAG_MAX: Duration = Duration::from_millis(1_500);
const LAG_PAUSE_MIN: Duration = Duration::from_millis(20);

/// How often a read is repeated while the connection is disturbed.
const REREADS_MAX: usize = 3;

/// Time for accepted writes to end once the store is closed.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(10);

/// Keeps everything in the stream `CIRCUIT_BREAKER_GLOBAL`. Any number of these, in any number of
/// processes, work on one stream at once.
pub struct NATSStorage {
    parts: Parts,
    config: NATSStorageConfig,
    queue: Queue,
    readiness: Readiness,
    monitor: Monitor,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for NATSStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NATSStorage").field("config", &self.config).finish_non_exhaustive()
    }
}

impl NATSStorage {
    /// Connects, and makes the stream or checks the one that is there.
    ///
    /// It fails if that has not worked within the connection timeout, or cannot work: see
    /// [`NATSOpenError`].
    pub async fn new(config: NATSStorageConfig) -> Result<Self, NATSOpenError> {
        Self::with_options(config, NATSStorageOptions::new()).await
    }

    /// The same with replicas, credentials and certificates.
    pub async fn with_options(
        config: NATSStorageConfig,
        options: NATSStorageOptions,
    ) -> Result<Self, NATSOpenError> {
        let wait = config.connection_timeout;
        let storage = Self::start(config, options).await?;
        match timeout(wait, storage.opened()).await {
            Ok(outcome) => outcome.map(|()| storage),
            Err(_) => Err(NATSOpenError::NotNow { reason: storage.readiness.not_opened() }),
        }
    }

    /// Begins to connect and returns at once; until [`NATSStorage::opened`] every call answers
    /// [`StorageError::Unavailable`]. It keeps trying for as long as it takes.
    pub async fn start(
        config: NATSStorageConfig,
        options: NATSStorageOptions,
    ) -> Result<Self, NATSOpenError> {
        config.check(&options)?;
        let link = Link::start(&config, &options)
            .await
            .map_err(|reason| NATSOpenError::Refused { reason })?;
        let Assembly { parts, queue, readiness, monitor, tasks } = assemble(link, &config, options);
        Ok(Self { parts, config, queue, readiness, monitor, tasks: Mutex::new(tasks) })
    }

    /// Waits until the store can be used, however long that takes, or it is clear that it cannot.
    pub async fn opened(&self) -> Result<(), NATSOpenError> {
        self.readiness.opened().await
    }

    /// Whether reads make sense now; waits a moment until the stream has been looked at.
    async fn ready(&self) -> Result<(), StorageError> {
        self.usable()?;
        self.readiness.looked().await;
        self.usable()
    }

    /// Reads, and once more where the connection was disturbed meanwhile: who has answered may not be the one
    /// that was looked at.
    async fn read<T, F: Future<Output = Result<T, StorageError>>>(
        &self,
        read: impl Fn() -> F,
    ) -> Result<T, StorageError> {
        let mut rereads = 0;
        loop {
            self.ready().await?;
            let disturbances = self.parts.link.disturbances();
            let outcome = read().await.map_err(|error| self.explained(error));
            let is_calm = self.parts.link.disturbances() == disturbances;
            if is_calm || outcome.is_err() || rereads == REREADS_MAX {
                return outcome;
            }
            rereads += 1;
        }
    }

    fn usable(&self) -> Result<(), StorageError> {
        self.queue.usable()?;
        self.readiness.usable()
    }

    fn writable(&self) -> Result<(), StorageError> {
        self.queue.usable()?;
        self.readiness.writable()
    }

    /// A read that failed because a person must put something right first says what.
    fn explained(&self, error: StorageError) -> StorageError {
        match (error, self.readiness.writable()) {
            (StorageError::Unavailable { .. }, Err(reason)) => reason,
            (error, _) => error,
        }
    }

    pub(super) fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    async fn write_token(&self, commit: Commit, token: Token) -> Result<StoredToken, StorageError> {
        let begun = self.parts.reader.epoch.now();
        let stored = stored(token, self.write(commit).await?);
        self.parts.reader.known.keep(stored.revision.0, &stored.token, begun);
        Ok(stored)
    }

    async fn write(&self, commit: Commit) -> Result<Sequence, StorageError> {
        self.writable()?;
        self.queue.write(commit).await
    }
}

#[async_trait]
impl WorkflowStorage for NATSStorage {
    fn name(&self) -> &'static str {
        "nats"
    }

    async fn insert_workflow(
        &self,
        definition: WorkflowDefinition,
        event: WorkflowEvent,
    ) -> Result<(), StorageError> {
        self.writable()?;
        let hash = workflow_hash(&definition.id);
        let first = self.parts.index.first(&self.parts.reader, hash).await?.is_none();
        let age = self.config.default_max_age;
        let written = self.write(Commit::create_workflow(&definition, &event, first, age)?).await;
        if matches!(written, Ok(_) | Err(StorageError::WorkflowExists { .. })) {
            self.parts.index.answered(&definition.id);
        }
        written.map(drop)
    }

    async fn load_workflow(
        &self,
        id: &WorkflowId,
    ) -> Result<Option<WorkflowDefinition>, StorageError> {
        let found = self.read(|| self.parts.reader.definition(id)).await?;
        Ok(found.inspect(|_| self.parts.index.answered(id)))
    }

    async fn list_workflows(
        &self,
        after: Option<&WorkflowId>,
        limit: PageLimit,
    ) -> Result<Page<WorkflowDefinition>, StorageError> {
        let Parts { link, reader, index, .. } = &self.parts;
        self.read(|| lists::workflows(link, reader, index, after, limit)).await
    }

    async fn insert_token(&self, mut change: Change) -> Result<StoredToken, StorageError> {
        forget_place_on_bus(&mut change.token);
        self.writable()?;
        let (id, workflow) = (change.token.id, &change.token.workflow_id);
        let first = self.parts.index.first_of(&self.parts.reader, id).await?;
        let claim = claim::claim(id, workflow, first.as_ref(), 0);
        let commit = Commit::create_token(&change, &claim, self.config.default_max_age)?;
        self.write_token(commit, change.token).await
    }

    async fn commit(
        &self,
        expected: Sequence,
        mut change: Change,
    ) -> Result<StoredToken, StorageError> {
        forget_place_on_bus(&mut change.token);
        // To nats-server these would mean that there is no such token, or nothing at all.
        if expected.0 == 0 || expected.0 == u64::MAX {
            return Err(StorageError::Conflict { token: change.token.id, expected });
        }
        let pointer = change.ends() && {
            self.writable()?;
            let token = &change.token;
            self.parts.index.has_pointer(&self.parts.reader, token.id, &token.workflow_id).await?
        };
        let age = self.config.default_max_age;
        let mut commit = Commit::move_token(expected, &change, pointer, age)?;
        // The committer looks again, but mostly finds that this is still so.
        let known = &self.parts.reader.known;
        if let Some((events, newest)) = known.expected(change.token.id, expected.0, Instant::now())
        {
            commit.rely_on(newest, &events);
        }
        self.write_token(commit, change.token).await
    }

    async fn load_token(
        &self,
        id: Uuid,
        workflow: Option<&WorkflowId>,
    ) -> Result<Option<StoredToken>, StorageError> {
        let Parts { reader, index, .. } = &self.parts;
        let found = self
            .read(|| async {
                match workflow {
                    Some(workflow) => token::find_surely(reader, workflow, id).await,
                    None => token::find_anywhere(reader, index, id).await,
                }
            })
            .await?;
        let Some(found) = found else { return Ok(None) };
        let until = Instant::now() + TURN_WAIT_MAX;
        Ok(Some(self.parts.reader.token(found.state, until).await?))
    }

    async fn load_token_at(
        &self,
        id: Uuid,
        version: u32,
    ) -> Result<Option<StoredToken>, StorageError> {
        let (begun, mut pause) = (Instant::now(), LAG_PAUSE_MIN);
        loop {
            let found = self.load_token(id, None).await?;
            let is_there = found.as_ref().is_some_and(|found| found.token.version >= version);
            // A consumer on another node can be ahead of what the leader answers, while the number of
            // replicas changes.
            let left = LAG_MAX.saturating_sub(begun.elapsed());
            if is_there || !self.parts.reader.has_copies() || left.is_zero() {
                return Ok(found);
            }
            sleep(pause.min(left)).await;
            pause *= 2;
        }
    }

    fn life(&self) -> u64 {
        self.parts.life.number()
    }

    fn token_at_hand(&self, id: Uuid) -> Option<StoredToken> {
        let reader = &self.parts.reader;
        let (token, state) = reader.known.kept(id, Instant::now(), reader.has_copies())?;
        Some(StoredToken { token, revision: Sequence(state) })
    }

    async fn message_time(
        &self,
        revision: Sequence,
    ) -> Result<Option<DateTime<Utc>>, StorageError> {
        self.ready().await?;
        Ok(self.parts.reader.at(revision.0).await?.map(|message| message.time))
    }

    async fn list_tokens(
        &self,
        scope: &TokenScope,
        after: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredToken>, StorageError> {
        let filter = match scope {
            TokenScope::All => ALL_TOKENS.to_owned(),
            TokenScope::Workflow(workflow) => names::tokens_of(workflow),
            TokenScope::Place(workflow, place) => names::tokens_in(workflow, place),
        };
        let (reader, wait) = (&self.parts.reader, self.config.consumer_timeout);
        self.read(|| async {
            self.readiness.cleaned().await;
            lists::tokens(reader, &filter, after, limit, wait).await
        })
        .await
    }

    async fn token_moves(
        &self,
        token: &Token,
        before: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredEvent>, StorageError> {
        let (reader, wait) = (&self.parts.reader, self.config.consumer_timeout);
        self.read(|| lists::moves(reader, token, before, limit, wait)).await
    }

    async fn list_events(
        &self,
        workflow: Option<&WorkflowId>,
        after: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredEvent>, StorageError> {
        let filter = workflow.map_or_else(|| ALL_EVENTS.to_owned(), names::events_of);
        let (reader, wait) = (&self.parts.reader, self.config.consumer_timeout);
        self.read(|| lists::events(reader, &filter, after, limit, wait)).await
    }

    async fn figures(&self) -> Vec<Figure> {
        self.monitor.figures().await
    }

    async fn health(&self) -> StorageHealth {
        match self.usable() {
            Ok(()) => self.monitor.look().await,
            Err(error) => StorageHealth::Unhealthy(error.to_string()),
        }
    }

    async fn close(&self) {
        if !self.queue.close() {
            return;
        }
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let mut tasks = tasks.into_iter();
        if let Some(mut committer) = tasks.next()
            && timeout(CLOSE_WAIT_MAX, &mut committer).await.is_err()
        {
            tracing::warn!("writes were still under way when the store was closed");
            committer.abort();
        }
        tasks.for_each(|task| task.abort());
        self.parts.link.close().await;
    }
}

impl Drop for NATSStorage {
    fn drop(&mut self) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.drain(..).for_each(|task| task.abort());
    }
}

/// A token that was just written, with where it stands now; when it came there, the bus knows.
fn stored(mut token: Token, revision: Sequence) -> StoredToken {
    let (now, subject) =
        (token.updated_at, names::token(&token.workflow_id, &token.place, token.id));
    set_place_on_bus(&mut token, revision.0, now, subject);
    token.nats_timestamp = None;
    StoredToken { token: Arc::new(token), revision }
}
