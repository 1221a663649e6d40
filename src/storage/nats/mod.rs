//! Keeps everything in one JetStream stream of NATS: every place is a subject, every move one
//! atomic batch. `docs/storage-format.md` describes the messages.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

mod batch;
mod change;
mod committer;
mod guide;
mod health;
mod history;
mod outgoing;
mod read;
mod upkeep;
mod wire;

pub use health::{ConnectionStatus, HealthStatus, NATSMetrics, nats_health_check};
pub use upkeep::supervisor::NATSOpenError;
pub use wire::config::{NATSConfigError, NATSStorageConfig, NATSStorageOptions, shown_urls};

use self::change::{Commit, Pending};
use self::committer::Committer;
use self::read::lists;
use self::read::reader::{Reader, unavailable};
use self::read::workflow_index::WorkflowIndex;
use self::upkeep::retention::Retention;
use self::upkeep::supervisor::{Opened, Supervisor};
use self::wire::link::{self, Link};
use self::wire::meter::Meter;
use self::wire::names::{self, ALL_EVENTS, ALL_TOKENS};
use super::{
    Figure, Page, PageLimit, Sequence, StorageError, StorageHealth, StoredEvent, StoredToken,
    TokenScope, WorkflowStorage,
};
use crate::domain::{Change, Token, WorkflowDefinition, WorkflowEvent, WorkflowId};

/// Time after which a write is not begun any more; one that is under way may take a few seconds
/// longer.
const WRITE_WAIT_MAX: Duration = Duration::from_secs(6);

/// Time after which a write is given up that was begun and has no outcome; the committer answers
/// before.
const OUTCOME_WAIT_MAX: Duration = Duration::from_secs(18);

/// How long a list waits for the end of the walk that follows a start of nats-server.
const CLEAN_WAIT_MAX: Duration = Duration::from_secs(2);

/// Bytes that nats-server may need beside the payload of a message: its headers and subject.
const HEADERS_BYTES_MAX: usize = 1_536;

/// Workflows of one hash that are looked in one by one; if there are more, all are looked in at once.
const CANDIDATES_MAX: usize = 4;

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
    /// The nats-server process whose stream was cleaned last.
    clean: watch::Receiver<String>,
    /// The one that is not yet, and until when lists wait for it.
    waiting: Mutex<(String, Instant)>,
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
        let (set_clean, clean) = watch::channel(String::new());
        let supervisor = Supervisor {
            link: Arc::clone(&link),
            reader: Arc::clone(&reader),
            retention: Arc::clone(&retention),
            index: Arc::clone(&index),
            meter: Arc::clone(&meter),
            config: config.clone(),
            options,
            opened: set_opened,
            clean: set_clean,
        };
        let room_maker = Arc::clone(&retention);
        let tasks = vec![
            tokio::spawn(committer.run()),
            tokio::spawn(supervisor.run()),
            tokio::spawn(async move { room_maker.run().await }),
        ];
        let room = Arc::new(Semaphore::new(config.reconnect_buffer_size.max(1)));
        let (queue, tasks) = (Mutex::new(Some(queue)), Mutex::new(tasks));
        let waiting = Mutex::new((String::new(), Instant::now()));
        Ok(Self {
            waiting,
            link,
            reader,
            retention,
            index,
            meter,
            config,
            opened,
            clean,
            room,
            queue,
            tasks,
        })
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
        match &*self.queue.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(queue) if !queue.is_closed() => {}
            Some(_) => return Err(unavailable("the task that writes has ended")),
            None => return Err(unavailable("it was closed")),
        }
        match &*self.opened.borrow() {
            Opened::Yes => Ok(()),
            Opened::NotYet(reason) | Opened::Refused(reason) => Err(unavailable(reason)),
        }
    }

    /// Hands a commit to the committer and waits for its outcome.
    async fn write(&self, commit: Commit) -> Result<Sequence, StorageError> {
        self.usable()?;
        let begun = Instant::now();
        let deadline = begun + WRITE_WAIT_MAX;
        let outcome = self.write_until(commit, deadline).await;
        self.meter.record_write(&outcome);
        outcome
    }

    async fn write_until(
        &self,
        commit: Commit,
        deadline: Instant,
    ) -> Result<Sequence, StorageError> {
        self.fits(&commit)?;
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
            refusals: 0,
            full_since: None,
            answer,
            room,
        };
        let sent = timeout_at(deadline, queue.send(pending)).await.map_err(|_| busy())?;
        sent.map_err(|_| unavailable("it was closed"))?;
        drop(queue);
        let unknown =
            |reason: &str| Err(StorageError::OutcomeUnknown { reason: reason.to_owned() });
        match timeout(OUTCOME_WAIT_MAX, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => unknown("the task that writes has ended"),
            Err(_) => unknown("the task that writes did not answer in time"),
        }
    }

    /// Whether nats-server takes messages as large as these.
    fn fits(&self, commit: &Commit) -> Result<(), StorageError> {
        let most = self.link.server().map_or(usize::MAX, |server| server.max_payload);
        let largest = commit.messages.iter().map(|message| message.payload.len()).max();
        match largest {
            Some(bytes) if bytes + HEADERS_BYTES_MAX > most => {
                let what = format!("what is to be written of {}", commit.target);
                let bytes_max = most.saturating_sub(HEADERS_BYTES_MAX);
                Err(StorageError::TooLarge { what, bytes, bytes_max })
            }
            _ => Ok(()),
        }
    }

    /// Waits until what a crash of nats-server may have brought back is removed, for a moment after
    /// the connection to it was made.
    async fn cleaned(&self) {
        let mut clean = self.clean.clone();
        let server_id = self.link.server_id();
        if *clean.borrow() == server_id {
            return;
        }
        let until = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.0 != server_id {
                *waiting = (server_id.clone(), Instant::now() + CLEAN_WAIT_MAX);
            }
            waiting.1
        };
        // After that a list is better than none.
        drop(timeout_at(until, clean.wait_for(|cleaned| *cleaned == server_id)).await);
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
        self.index.created(&definition.id);
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
        lists::workflows(&self.link, &self.reader, &self.index, after, limit).await
    }

    async fn insert_token(&self, mut change: Change) -> Result<StoredToken, StorageError> {
        guide::forget_place_on_bus(&mut change.token);
        let commit = Commit::create_token(&change, self.config.default_max_age)?;
        Ok(stored(change.token, self.write(commit).await?))
    }

    async fn commit(
        &self,
        expected: Sequence,
        mut change: Change,
    ) -> Result<StoredToken, StorageError> {
        guide::forget_place_on_bus(&mut change.token);
        // To nats-server these would mean that there is no such token, or nothing at all.
        if expected.0 == 0 || expected.0 == u64::MAX {
            return Err(StorageError::Conflict { token: change.token.id, expected });
        }
        let commit = Commit::move_token(expected, &change, self.config.default_max_age)?;
        Ok(stored(change.token, self.write(commit).await?))
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
        let candidates = if candidates.len() > CANDIDATES_MAX { vec![] } else { candidates };
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

    async fn message_time(
        &self,
        revision: Sequence,
    ) -> Result<Option<DateTime<Utc>>, StorageError> {
        self.usable()?;
        Ok(self.reader.at(revision.0).await?.map(|message| message.time))
    }

    async fn list_tokens(
        &self,
        scope: &TokenScope,
        after: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredToken>, StorageError> {
        self.usable()?;
        self.cleaned().await;
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

    async fn figures(&self) -> Vec<Figure> {
        self.monitored().await
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

/// A token that was just written, with where it stands now; when it came there, the bus knows.
fn stored(mut token: Token, revision: Sequence) -> StoredToken {
    let (now, subject) = (token.updated_at, token.nats_subject_for_place());
    token.set_nats_metadata(revision.0, now, subject);
    token.nats_timestamp = None;
    StoredToken { token: Arc::new(token), revision }
}
