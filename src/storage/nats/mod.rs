//! Keeps everything in one JetStream stream of NATS: every place is a subject, every move one
//! atomic batch. `docs/storage-format.md` describes the messages.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

mod api;
mod batch;
mod change;
mod codec;
mod committer;
mod config;
mod guide;
mod health;
mod history;
mod index;
mod keeper;
mod link;
mod lists;
mod names;
mod read;
mod retention;
mod stream;
mod subjects;
mod walk;

pub use config::{NATSConfigError, NATSStorageConfig, NATSStorageOptions, shown_urls};
pub use health::{ConnectionStatus, HealthStatus, NATSMetrics, nats_health_check};
pub use keeper::NATSOpenError;

use self::change::{Commit, Done, Pending};
use self::committer::Committer;
use self::health::Meter;
use self::index::WorkflowIndex;
use self::keeper::{Keeper, Opened};
use self::link::Link;
use self::names::{ALL_EVENTS, ALL_TOKENS};
use self::read::{Reader, unavailable};
use self::retention::Retention;
use super::{
    Page, PageLimit, Sequence, StorageError, StorageHealth, StoredEvent, StoredToken, TokenScope,
    WorkflowStorage,
};
use crate::domain::{Change, Token, WorkflowDefinition, WorkflowEvent, WorkflowId};

/// Time after which a write is not begun any more; one that is under way may take a few seconds
/// longer.
const WRITE_WAIT_MAX: Duration = Duration::from_secs(8);

/// Writes that wait at once, beside the bound on their bytes.
const WRITES_MAX: usize = 4_096;

/// Time for accepted writes to end once the store is closed.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(10);

/// Keeps everything in the stream `CIRCUIT_BREAKER_GLOBAL`. Any number of these, in any number of
/// processes, work on one stream at once.
pub struct NATSStorage {
    link: Arc<Link>,
    reader: Arc<Reader>,
    retention: Arc<Retention>,
    index: Arc<WorkflowIndex>,
    meter: Arc<Meter>,
    config: NATSStorageConfig,
    opened: watch::Receiver<Opened>,
    /// Bytes that writes may still take while they wait.
    room: Arc<Semaphore>,
    /// Where writes go; none once the store is closed.
    queue: Mutex<Option<mpsc::Sender<Pending>>>,
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
            Err(_) => Err(NATSOpenError::NotNow { reason: storage.not_opened() }),
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
        let link = Arc::new(link);
        let attempts = usize::try_from(config.max_deliver).unwrap_or(usize::MAX);
        let reader = Arc::new(Reader::new(Arc::clone(&link), attempts));
        let retention = Arc::new(Retention::new(Arc::clone(&link), Arc::clone(&reader)));
        let (index, meter) = (Arc::new(WorkflowIndex::default()), Arc::new(Meter::default()));
        let (queue, waiting) = mpsc::channel(WRITES_MAX);
        let committer = Committer::new(
            Arc::clone(&link),
            Arc::clone(&reader),
            Arc::clone(&retention),
            Arc::clone(&meter),
            waiting,
        );
        let (set_opened, opened) =
            watch::channel(Opened::NotYet("it has not connected yet".into()));
        let keeper = Keeper {
            link: Arc::clone(&link),
            reader: Arc::clone(&reader),
            retention: Arc::clone(&retention),
            index: Arc::clone(&index),
            meter: Arc::clone(&meter),
            config: config.clone(),
            options,
            opened: set_opened,
        };
        let tasks = vec![tokio::spawn(committer.run()), tokio::spawn(keeper.run())];
        let room = Arc::new(Semaphore::new(config.reconnect_buffer_size.max(1)));
        let (queue, tasks) = (Mutex::new(Some(queue)), Mutex::new(tasks));
        Ok(Self { link, reader, retention, index, meter, config, opened, room, queue, tasks })
    }

    /// Waits until the store can be used, however long that takes, or it is clear that it cannot.
    pub async fn opened(&self) -> Result<(), NATSOpenError> {
        let mut opened = self.opened.clone();
        let reached = opened.wait_for(|opened| !matches!(opened, Opened::NotYet(_))).await;
        match reached.as_deref() {
            Ok(Opened::Yes) => Ok(()),
            Ok(Opened::Refused(reason) | Opened::NotYet(reason)) => {
                Err(NATSOpenError::Refused { reason: reason.clone() })
            }
            Err(_) => Err(NATSOpenError::Refused { reason: "it was closed".to_owned() }),
        }
    }

    fn not_opened(&self) -> String {
        match &*self.opened.borrow() {
            Opened::Yes => String::new(),
            Opened::NotYet(reason) | Opened::Refused(reason) => reason.clone(),
        }
    }

    /// Whether calls make sense now.
    fn usable(&self) -> Result<(), StorageError> {
        if self.queue.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return Err(unavailable("it was closed"));
        }
        match &*self.opened.borrow() {
            Opened::Yes => Ok(()),
            Opened::NotYet(reason) | Opened::Refused(reason) => Err(unavailable(reason)),
        }
    }

    /// Hands a commit to the committer and waits for its outcome.
    async fn write(&self, commit: Commit) -> Result<Done, StorageError> {
        self.usable()?;
        let begun = Instant::now();
        let deadline = begun + WRITE_WAIT_MAX;
        let outcome = self.write_until(commit, deadline).await;
        self.meter.wrote(&outcome);
        outcome
    }

    async fn write_until(&self, commit: Commit, deadline: Instant) -> Result<Done, StorageError> {
        let connect_by = deadline.min(Instant::now() + link::CONNECT_WAIT_MAX);
        self.link.connected(connect_by).await.map_err(unavailable)?;
        let bytes = commit.bytes();
        let share = u32::try_from(bytes.min(self.config.reconnect_buffer_size.max(1)));
        let share = share.unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(share);
        let busy = || unavailable("too many writes wait for nats-server");
        let room = timeout_at(deadline, room).await.map_err(|_| busy())?.map_err(unavailable)?;
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let queue = queue.ok_or_else(|| unavailable("it was closed"))?;
        let (answer, outcome) = oneshot::channel();
        let pending = Pending {
            commit,
            bytes,
            accepted: Instant::now(),
            deadline,
            maybe_done: false,
            reason: String::new(),
            full_since: None,
            answer,
            room,
        };
        let sent = timeout_at(deadline, queue.send(pending)).await.map_err(|_| busy())?;
        sent.map_err(|_| unavailable("it was closed"))?;
        drop(queue);
        // The committer answers everything that it took, each in bounded time.
        outcome.await.unwrap_or_else(|_| {
            let reason = "the task that writes has ended".to_owned();
            Err(StorageError::OutcomeUnknown { reason })
        })
    }

    /// Stores a token as it is, with the event of its creation: for tokens that come from
    /// elsewhere. Its workflow must be there.
    pub async fn create_token_with_event(
        &self,
        token: Token,
        triggered_by: Option<String>,
    ) -> Result<Token, StorageError> {
        let definition = self.load_workflow(&token.workflow_id).await?;
        let definition = definition.ok_or_else(|| StorageError::Corrupt {
            what: format!("workflow {} of token {}", token.workflow_id, token.id),
            reason: "it is not there; create it first".to_owned(),
        })?;
        let change = Change::adopted(token, &definition, triggered_by);
        Ok(Arc::unwrap_or_clone(self.insert_token(change).await?.token))
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
        let age = self.config.default_max_age;
        self.write(Commit::create_workflow(&definition, &event, age)?).await?;
        self.index.learn(&definition.id);
        Ok(())
    }

    async fn load_workflow(
        &self,
        id: &WorkflowId,
    ) -> Result<Option<WorkflowDefinition>, StorageError> {
        self.usable()?;
        let definition = self.reader.definition(id).await?.map(|(definition, _)| definition);
        if definition.is_some() {
            self.index.learn(id);
        }
        Ok(definition)
    }

    async fn list_workflows(
        &self,
        after: Option<&WorkflowId>,
        limit: PageLimit,
    ) -> Result<Page<WorkflowDefinition>, StorageError> {
        self.usable()?;
        lists::workflows(&self.link, &self.reader, after, limit).await
    }

    async fn insert_token(&self, mut change: Change) -> Result<StoredToken, StorageError> {
        keeper::forget_place_on_bus(&mut change.token);
        let commit = Commit::create_token(&change, self.config.default_max_age)?;
        let done = self.write(commit).await?;
        Ok(stored(change.token, done))
    }

    async fn commit(
        &self,
        expected: Sequence,
        mut change: Change,
    ) -> Result<StoredToken, StorageError> {
        keeper::forget_place_on_bus(&mut change.token);
        // To nats-server these would mean that there is no such token, or nothing at all.
        if expected.0 == 0 || expected.0 == u64::MAX {
            return Err(StorageError::Conflict { token: change.token.id, expected });
        }
        let commit = Commit::move_token(expected, &change, self.config.default_max_age)?;
        let done = self.write(commit).await?;
        Ok(stored(change.token, done))
    }

    async fn load_token(
        &self,
        id: Uuid,
        workflow: Option<&WorkflowId>,
    ) -> Result<Option<StoredToken>, StorageError> {
        self.usable()?;
        let candidates = match workflow {
            Some(workflow) => vec![workflow.clone()],
            None => self.index.with_hash(names::id_hash(id)),
        };
        for candidate in &candidates {
            let found = self.reader.last(&names::token_anywhere(candidate, id)).await?;
            if let Some(found) = found.filter(|found| !found.is_departure()) {
                return Ok(Some(found.token()?));
            }
        }
        if workflow.is_some() {
            return Ok(None);
        }
        let found = self.reader.last(&names::token_in_any_workflow(id)).await?;
        let Some(found) = found.filter(|found| !found.is_departure()) else { return Ok(None) };
        let token = found.token()?;
        self.index.learn(&token.token.workflow_id);
        Ok(Some(token))
    }

    async fn list_tokens(
        &self,
        scope: &TokenScope,
        after: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredToken>, StorageError> {
        self.usable()?;
        let filter = match scope {
            TokenScope::All => ALL_TOKENS.to_owned(),
            TokenScope::Workflow(workflow) => names::tokens_of(workflow),
            TokenScope::Place(workflow, place) => names::tokens_in(workflow, place),
        };
        lists::tokens(&self.reader, &filter, after, limit, self.config.consumer_timeout).await
    }

    async fn token_moves(
        &self,
        token: &Token,
        before: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredEvent>, StorageError> {
        self.usable()?;
        lists::moves(&self.reader, token, before, limit, self.config.consumer_timeout).await
    }

    async fn list_events(
        &self,
        workflow: Option<&WorkflowId>,
        after: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredEvent>, StorageError> {
        self.usable()?;
        let filter = workflow.map_or_else(|| ALL_EVENTS.to_owned(), names::events_of);
        lists::events(&self.reader, &filter, after, limit, self.config.consumer_timeout).await
    }

    async fn health(&self) -> StorageHealth {
        self.look().await
    }

    async fn close(&self) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(queue) = queue else { return };
        drop(queue);
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let mut tasks = tasks.into_iter();
        if let Some(mut committer) = tasks.next()
            && timeout(CLOSE_WAIT_MAX, &mut committer).await.is_err()
        {
            tracing::warn!("writes were still under way when the store was closed");
            committer.abort();
        }
        tasks.for_each(|task| task.abort());
        self.link.close().await;
    }
}

impl Drop for NATSStorage {
    fn drop(&mut self) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.drain(..).for_each(|task| task.abort());
    }
}

/// A token with where it stands now.
fn stored(mut token: Token, done: Done) -> StoredToken {
    let subject = token.nats_subject_for_place();
    match done.time {
        Some(time) => token.set_nats_metadata(done.sequence, time, subject),
        None => {
            // Its time could not be read; the next read has it.
            token.set_nats_metadata(done.sequence, token.updated_at, subject);
            token.nats_timestamp = None;
        }
    }
    StoredToken { token: Arc::new(token), revision: Sequence(done.sequence) }
}
