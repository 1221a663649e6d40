//! The store: opening, the promises of the trait, closing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use super::health::Monitor;
use crate::domain::{Change, Token, WorkflowDefinition, WorkflowEvent, WorkflowId};
use crate::storage::nats::read::lists;
use crate::storage::nats::read::reader::{Reader, unavailable};
use crate::storage::nats::read::stored::set_place_on_bus;
use crate::storage::nats::read::token;
use crate::storage::nats::read::workflow_index::WorkflowIndex;
use crate::storage::nats::upkeep::retention::Retention;
use crate::storage::nats::upkeep::supervisor::{NATSOpenError, Opened, Supervisor};
use crate::storage::nats::wire::config::{NATSStorageConfig, NATSStorageOptions};
use crate::storage::nats::wire::link::Link;
use crate::storage::nats::wire::meter::Meter;
use crate::storage::nats::wire::names::{self, ALL_EVENTS, ALL_TOKENS};
use crate::storage::nats::write::commit::{Commit, forget_place_on_bus};
use crate::storage::nats::write::committer::Committer;
use crate::storage::nats::write::mend::Mender;
use crate::storage::nats::write::queue::Queue;
use crate::storage::{
    Figure, Page, PageLimit, Sequence, StorageError, StorageHealth, StoredEvent, StoredToken,
    TokenScope, WorkflowStorage,
};

/// How long a list waits for the end of the walk that follows a start of nats-server.
const CLEAN_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long a read waits for the look at the end of the stream that follows a start of nats-server.
const LOOK_WAIT_MAX: Duration = Duration::from_secs(2);

/// Workflows of one hash that are looked in one by one; if there are more, all are looked in at once.
const CANDIDATES_MAX: usize = 4;

/// Time for accepted writes to end once the store is closed.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(10);

/// Keeps everything in the stream `CIRCUIT_BREAKER_GLOBAL`. Any number of these, in any number of
/// processes, work on one stream at once.
pub struct NATSStorage {
    link: Arc<Link>,
    reader: Arc<Reader>,
    index: Arc<WorkflowIndex>,
    monitor: Monitor,
    config: NATSStorageConfig,
    opened: watch::Receiver<Opened>,
    /// What had disturbed the connection when the end of the stream was looked at last.
    looked: watch::Receiver<u64>,
    /// Since when that is not done: reads wait for it a moment in all, not a moment each.
    unlooked: Mutex<Option<Instant>>,
    /// The nats-server process whose stream was cleaned last.
    clean: watch::Receiver<String>,
    /// The one that is not yet, and until when lists wait for it.
    waiting: Mutex<(String, Instant)>,
    queue: Queue,
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
        let (queue, waiting) =
            Queue::new(Arc::clone(&link), Arc::clone(&meter), config.reconnect_buffer_size);
        let (set_opened, opened) =
            watch::channel(Opened::NotYet("it has not connected yet".into()));
        let mender = Mender {
            link: Arc::clone(&link),
            reader: Arc::clone(&reader),
            meter: Arc::clone(&meter),
            age: config.default_max_age,
        };
        // No number of disturbances: nothing has been looked at yet.
        let (set_looked, looked) = watch::channel(u64::MAX);
        let committer = Committer::new(
            mender,
            Arc::clone(&retention),
            Arc::clone(&meter),
            waiting,
            opened.clone(),
            set_looked,
        );
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
        let tasks = Mutex::new(tasks);
        let monitor =
            Monitor { link: Arc::clone(&link), reader: Arc::clone(&reader), retention, meter };
        let waiting = Mutex::new((String::new(), Instant::now()));
        Ok(Self {
            waiting,
            link,
            monitor,
            reader,
            index,
            config,
            opened,
            looked,
            unlooked: Mutex::new(None),
            clean,
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

    /// Whether calls make sense now; waits a moment until the end of the stream has been looked at.
    async fn ready(&self) -> Result<(), StorageError> {
        self.usable()?;
        let mut looked = self.looked.clone();
        let disturbances = self.link.disturbances();
        let is_current = |looked: &u64| *looked != u64::MAX && *looked >= disturbances;
        let until = {
            let mut since = self.unlooked.lock().unwrap_or_else(PoisonError::into_inner);
            if is_current(&looked.borrow()) {
                *since = None;
                return Ok(());
            }
            *since.get_or_insert_with(Instant::now) + LOOK_WAIT_MAX
        };
        // A read by id is right before it, too; what is missing is events, and places show more. So
        // where it takes long, reads go on.
        if self.link.is_connected() {
            drop(timeout_at(until, looked.wait_for(is_current)).await);
        }
        Ok(())
    }

    /// Whether calls make sense now.
    fn usable(&self) -> Result<(), StorageError> {
        self.queue.usable()?;
        match &*self.opened.borrow() {
            Opened::Yes => Ok(()),
            Opened::NotYet(reason) | Opened::Refused(reason) => Err(unavailable(reason)),
        }
    }

    pub(super) fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    async fn write_token(&self, commit: Commit, token: Token) -> Result<StoredToken, StorageError> {
        let bytes = commit.messages[0].1.payload.len();
        let stored = stored(token, self.write(commit).await?);
        self.reader.known.keep(stored.revision.0, &stored.token, bytes);
        Ok(stored)
    }

    async fn write(&self, commit: Commit) -> Result<Sequence, StorageError> {
        self.usable()?;
        self.queue.write(commit).await
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
        self.ready().await?;
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
        self.ready().await?;
        lists::workflows(&self.link, &self.reader, &self.index, after, limit).await
    }

    async fn insert_token(&self, mut change: Change) -> Result<StoredToken, StorageError> {
        forget_place_on_bus(&mut change.token);
        let commit = Commit::create_token(&change, self.config.default_max_age)?;
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
        let mut commit = Commit::move_token(expected, &change, self.config.default_max_age)?;
        // The committer looks again, but mostly finds that this is still so.
        let known = &self.reader.known;
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
        self.ready().await?;
        let candidates = match workflow {
            Some(workflow) => vec![workflow.clone()],
            None => self.index.with_hash(names::id_hash(id)),
        };
        let candidates = if candidates.len() > CANDIDATES_MAX { vec![] } else { candidates };
        for candidate in &candidates {
            if let Some(found) = token::find(&self.reader, candidate, id).await? {
                return Ok(Some(found.state.token()?));
            }
        }
        if workflow.is_some() {
            return Ok(None);
        }
        let found = self.reader.last(&names::token_in_any_workflow(id)).await?;
        let Some((workflow, ..)) = found.and_then(|found| names::parse_token(&found.subject))
        else {
            return Ok(None);
        };
        let Some(found) = token::find(&self.reader, &workflow, id).await? else { return Ok(None) };
        self.index.learn(&workflow);
        Ok(Some(found.state.token()?))
    }

    fn token_at_hand(&self, id: Uuid) -> Option<StoredToken> {
        let (token, state) = self.reader.known.kept(id, Instant::now())?;
        Some(StoredToken { token, revision: Sequence(state) })
    }

    async fn message_time(
        &self,
        revision: Sequence,
    ) -> Result<Option<DateTime<Utc>>, StorageError> {
        self.ready().await?;
        Ok(self.reader.at(revision.0).await?.map(|message| message.time))
    }

    async fn list_tokens(
        &self,
        scope: &TokenScope,
        after: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredToken>, StorageError> {
        self.ready().await?;
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
        self.ready().await?;
        lists::moves(&self.reader, token, before, limit, self.config.consumer_timeout).await
    }

    async fn list_events(
        &self,
        workflow: Option<&WorkflowId>,
        after: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredEvent>, StorageError> {
        self.ready().await?;
        let filter = workflow.map_or_else(|| ALL_EVENTS.to_owned(), names::events_of);
        lists::events(&self.reader, &filter, after, limit, self.config.consumer_timeout).await
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
    let (now, subject) =
        (token.updated_at, names::token(&token.workflow_id, &token.place, token.id));
    set_place_on_bus(&mut token, revision.0, now, subject);
    token.nats_timestamp = None;
    StoredToken { token: Arc::new(token), revision }
}
