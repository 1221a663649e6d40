//! Keeps definitions, tokens and events: the trait, its promises, its errors, its backends.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::domain::{Change, PlaceId, Token, WorkflowDefinition, WorkflowEvent, WorkflowId};

pub mod cache;
mod collect_all;
pub mod memory;
pub mod nats;
pub mod sqlite;

/// The place of a change in the one order of all changes of a store. Starts at 1, has gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A token as a store holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredToken {
    /// The token; shared, as the store may keep it at hand.
    pub token: Arc<Token>,
    /// The change that made it what it is: its creation or its newest move. No two changes share
    /// one, so it is what a commit is checked against; and tokens that arrived later have higher
    /// ones, so it is what lists are ordered by.
    pub revision: Sequence,
}

/// An event as a store holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredEvent {
    /// Its place in the order of all events.
    pub sequence: Sequence,
    /// Sequence of the NATS message that holds what the event made of its token or workflow.
    pub nats_sequence: Option<u64>,
    /// The event.
    pub event: WorkflowEvent,
}

/// Which tokens a list is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenScope {
    /// All.
    All,
    /// Those of one workflow.
    Workflow(WorkflowId),
    /// Those that are in one place of one workflow.
    Place(WorkflowId, PlaceId),
}

/// How much a page may hold. It ends at whichever limit comes first, but holds at least one item
/// if there is one.
#[derive(Debug, Clone, Copy)]
pub struct PageLimit {
    /// Items; at least 1.
    pub rows: usize,
    /// Bytes that the items take in memory, about.
    pub bytes: usize,
}

/// An item of a list, which is held in memory until it is answered.
pub trait Item {
    /// Bytes that it takes in memory, about: many small values take far more than their JSON.
    fn memory(&self) -> usize;
}

impl Item for StoredToken {
    fn memory(&self) -> usize {
        self.token.memory() as usize
    }
}

impl Item for StoredEvent {
    fn memory(&self) -> usize {
        self.event.memory() as usize
    }
}

impl Item for WorkflowDefinition {
    fn memory(&self) -> usize {
        Self::memory(self)
    }
}

/// Part of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// The items, in the order of the list.
    pub items: Vec<T>,
    /// Whether more came after them at the moment of reading.
    pub more: bool,
    /// Bytes that the items take in memory, about.
    pub bytes: usize,
    /// Records that were read for it, its items among them.
    pub read: usize,
}

impl<T: Item> Page<T> {
    /// One without items, after which nothing comes.
    pub(crate) fn empty() -> Self {
        Page { items: Vec::new(), more: false, bytes: 0, read: 0 }
    }

    /// Takes items until the limit is reached.
    pub(crate) fn collect(items: impl Iterator<Item = T>, limit: PageLimit) -> Self {
        let mut page = Self::empty();
        for item in items {
            if !page.push(item, limit) {
                break;
            }
        }
        page
    }

    /// Takes an item, unless that is more than the page may hold; whether it has.
    pub(crate) fn push(&mut self, item: T, limit: PageLimit) -> bool {
        let bytes = self.bytes.saturating_add(item.memory());
        self.more =
            !self.items.is_empty() && (self.items.len() >= limit.rows || bytes > limit.bytes);
        if !self.more {
            self.items.push(item);
            self.bytes = bytes;
            self.read += 1;
        }
        !self.more
    }
}

/// Why a storage call failed, named by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Someone else moved the token first: load it again and decide again. Nothing was written.
    #[error("token {token} is not at revision {expected} any more")]
    Conflict {
        /// The token.
        token: Uuid,
        /// The revision that the commit was for.
        expected: Sequence,
    },
    /// There is a workflow of that id. Nothing was written.
    #[error("there is a workflow {workflow}")]
    WorkflowExists {
        /// The id.
        workflow: WorkflowId,
    },
    /// There is a token of that id. Nothing was written.
    #[error("there is a token {token}")]
    TokenExists {
        /// The id.
        token: Uuid,
    },
    /// The record is longer than the store takes. Nothing was written.
    #[error("{what} has {bytes} bytes in the store, at most {bytes_max} are allowed")]
    TooLarge {
        /// What is too large, such as `token 01890a5d-…`.
        what: String,
        /// How long it would be.
        bytes: usize,
        /// How long it may be.
        bytes_max: usize,
    },
    /// There is no room. Nothing was written; reads and smaller things go on.
    #[error("the store is full: {reason}")]
    Full {
        /// What is full and what to do.
        reason: String,
    },
    /// The store cannot be reached or does not answer in time. Nothing was written: safe to retry.
    #[error("the store is not available: {reason}")]
    Unavailable {
        /// What was tried and what came of it.
        reason: String,
    },
    /// The write may have happened: read before retrying.
    #[error("the store did not confirm the write: {reason}")]
    OutcomeUnknown {
        /// What was tried and what came of it.
        reason: String,
    },
    /// A page was to go on behind something that is not of this list.
    #[error("{cursor} is not a move of token {token}")]
    ForeignCursor {
        /// What it was to go on behind.
        cursor: Sequence,
        /// The token whose moves are listed.
        token: Uuid,
    },
    /// It does not fit what is there, such as a token of a workflow that is not. Nothing was written.
    #[error("{what} cannot be stored: {reason}")]
    Unfit {
        /// What was to be stored.
        what: String,
        /// Why not, and what to do first.
        reason: String,
    },
    /// What is stored cannot be read. A person must look. Nothing was written.
    #[error("{what} in the store cannot be read: {reason}")]
    Corrupt {
        /// Which record.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// How a store does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageHealth {
    /// Reads and writes work.
    Healthy,
    /// It works, but something needs a look.
    Degraded(String),
    /// It does not work.
    Unhealthy(String),
}

/// Whether a figure only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FigureKind {
    /// It grows for as long as the process runs.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// A figure for monitoring.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What it is called; with its unit, if it has one.
    pub name: &'static str,
    /// What tells it from others of its name, such as `operation="fire"`; may be empty.
    pub labels: String,
    /// What it means.
    pub meaning: &'static str,
    /// Whether it only grows.
    pub kind: FigureKind,
    /// How much it is now.
    pub value: f64,
}

impl Figure {
    /// A figure that goes up and down.
    pub fn gauge(name: &'static str, meaning: &'static str, value: f64) -> Self {
        Self { name, labels: String::new(), meaning, kind: FigureKind::Gauge, value }
    }
}

/// Keeps definitions, tokens and their events.
///
/// Every backend passes `tests/it/storage_suite.rs`. No method is optional, every method ends in
/// bounded time. A caller that drops a future before it ends must treat a write as
/// [`StorageError::OutcomeUnknown`]. A write that was answered with `Ok` survives the death of the
/// process (except in [`memory::InMemoryStorage`]), and every later read shows it.
///
/// Backends decide no rule of the domain: they keep what they are given.
#[async_trait]
pub trait WorkflowStorage: Send + Sync + 'static {
    /// What the backend is called in answers and logs, such as `sqlite`.
    fn name(&self) -> &'static str;

    /// Stores a new definition and its event, both or neither.
    ///
    /// [`StorageError::WorkflowExists`] if the id is taken, by whatever definition.
    async fn insert_workflow(
        &self,
        definition: WorkflowDefinition,
        event: WorkflowEvent,
    ) -> Result<(), StorageError>;

    /// The definition with this id, if there is one.
    async fn load_workflow(
        &self,
        id: &WorkflowId,
    ) -> Result<Option<WorkflowDefinition>, StorageError>;

    /// Definitions ordered by id, those after `after`.
    async fn list_workflows(
        &self,
        after: Option<&WorkflowId>,
        limit: PageLimit,
    ) -> Result<Page<WorkflowDefinition>, StorageError>;

    /// Stores a new token and its events, all or nothing. The workflow is the caller's to check.
    ///
    /// [`StorageError::TokenExists`] if the id is taken, in whatever workflow.
    async fn insert_token(&self, change: Change) -> Result<StoredToken, StorageError>;

    /// Replaces the token and appends the events, all or nothing, if the token is still at
    /// `expected`.
    ///
    /// [`StorageError::Conflict`] if it is not, or is not there at all. The returned revision is
    /// higher than every one that an answer has shown before.
    async fn commit(&self, expected: Sequence, change: Change)
    -> Result<StoredToken, StorageError>;

    /// The token with this id, if there is one; with a `workflow`, only if it is of that workflow.
    async fn load_token(
        &self,
        id: Uuid,
        workflow: Option<&WorkflowId>,
    ) -> Result<Option<StoredToken>, StorageError>;

    /// The token with this id for somebody who says that it has reached this version. Where several copies
    /// of the store answer, one of them may not know that yet: then it is asked again, for a moment.
    async fn load_token_at(
        &self,
        id: Uuid,
        _version: u32,
    ) -> Result<Option<StoredToken>, StorageError> {
        self.load_token(id, None).await
    }

    /// A number that grows whenever the store turns out to be another one than it was: it went back in
    /// time, was emptied or made anew under this process. What was kept of it is then wrong.
    fn life(&self) -> u64;

    /// The token as this process has written it last, if that is at hand without asking. Others may
    /// have moved it since, so only [`WorkflowStorage::commit`] can tell whether a move that was
    /// decided on it is right; a refusal, and any answer, needs [`WorkflowStorage::load_token`].
    fn token_at_hand(&self, id: Uuid) -> Option<StoredToken>;

    /// When the bus stored the message of this revision. An acknowledgement does not tell it, so a
    /// token that was just written lacks it; a token that was read has it.
    ///
    /// None where there is no bus, and once another change has replaced the message.
    async fn message_time(&self, revision: Sequence)
    -> Result<Option<DateTime<Utc>>, StorageError>;

    /// Tokens ordered by their revision, oldest arrival first, those after `after`.
    ///
    /// A walk through all pages finds every token that stays in the scope meanwhile. One that moves
    /// within it arrives anew, so the walk may find it twice, each time as it was then.
    async fn list_tokens(
        &self,
        scope: &TokenScope,
        after: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredToken>, StorageError>;

    /// The moves of a token, newest first, those before `before`, which is one of its events; there is
    /// nothing before one that is no longer kept.
    async fn token_moves(
        &self,
        token: &Token,
        before: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredEvent>, StorageError>;

    /// Events of one workflow or of all, in their order, those after `after`.
    async fn list_events(
        &self,
        workflow: Option<&WorkflowId>,
        after: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredEvent>, StorageError>;

    /// Looks whether reads and writes would work now.
    async fn health(&self) -> StorageHealth;

    /// Figures for monitoring as they are now; those that cannot be had now are left out.
    async fn figures(&self) -> Vec<Figure>;

    /// Finishes the writes that were accepted and lets go of files and connections. Later calls
    /// answer [`StorageError::Unavailable`].
    async fn close(&self);
}
