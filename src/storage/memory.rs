//! Keeps everything in maps of this process. The simple backend that the others are compared with.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::{Bound, RangeInclusive};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::{
    Figure, Page, PageLimit, Sequence, StorageError, StorageHealth, StoredEvent, StoredToken,
    TokenScope, WorkflowStorage, collect_all,
};
use crate::domain::limits::RECORD_BYTES_MAX;
use crate::domain::{
    Change, EventKind, PlaceId, Token, WorkflowDefinition, WorkflowEvent, WorkflowId,
};

/// Keeps everything in memory: nothing survives the process.
///
/// It holds at most a number of bytes, counted as the JSON of what it keeps. Beyond that the oldest
/// events go first; when only definitions and tokens are left, writes fail with
/// [`StorageError::Full`].
#[derive(Debug)]
pub struct InMemoryStorage {
    state: Mutex<State>,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct State {
    workflows: BTreeMap<WorkflowId, Measured<WorkflowDefinition>>,
    tokens: HashMap<Uuid, Measured<StoredToken>>,
    /// Every token's revision; the two indexes below lead here.
    arrivals: BTreeMap<Sequence, Uuid>,
    workflow_tokens: BTreeSet<(WorkflowId, Sequence)>,
    places: HashMap<(WorkflowId, PlaceId), BTreeSet<Sequence>>,
    events: BTreeMap<Sequence, Measured<WorkflowEvent>>,
    workflow_events: BTreeSet<(WorkflowId, Sequence)>,
    moves: HashMap<Uuid, VecDeque<Sequence>>,
    last_sequence: u64,
    /// Of definitions and tokens.
    live_bytes: usize,
    event_bytes: usize,
    closed: bool,
}

/// A value and the length of its JSON.
#[derive(Debug)]
struct Measured<T> {
    value: T,
    bytes: usize,
}

fn measured<T: Serialize>(
    value: T,
    what: impl Fn() -> String,
) -> Result<Measured<T>, StorageError> {
    let json = serde_json::to_vec(&value)
        .map_err(|error| StorageError::Corrupt { what: what(), reason: error.to_string() })?;
    if json.len() > RECORD_BYTES_MAX {
        return Err(StorageError::TooLarge {
            what: what(),
            bytes: json.len(),
            bytes_max: RECORD_BYTES_MAX,
        });
    }
    Ok(Measured { value, bytes: json.len() })
}

impl Default for InMemoryStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl InMemoryStorage {
    /// Bytes that a store made by [`InMemoryStorage::new`] holds: 1 GiB.
    pub const BYTES_MAX_DEFAULT: usize = 1 << 30;

    /// An empty store.
    pub fn new() -> Self {
        Self::with_bytes_max(Self::BYTES_MAX_DEFAULT)
    }

    /// An empty store that holds at most `bytes_max` bytes of JSON.
    pub fn with_bytes_max(bytes_max: usize) -> Self {
        Self { state: Mutex::default(), bytes_max }
    }

    /// All definitions, ordered by id.
    pub async fn list_workflows(&self) -> Result<Vec<WorkflowDefinition>, StorageError> {
        collect_all::workflows(self).await
    }

    /// All tokens of a workflow, in the order of their arrival, each once.
    pub async fn list_tokens(&self, workflow: &WorkflowId) -> Result<Vec<Token>, StorageError> {
        collect_all::tokens(self, workflow).await
    }

    fn state(&self) -> Result<MutexGuard<'_, State>, StorageError> {
        // A panic while the lock was held would be a bug in this file; the maps are still maps.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Err(StorageError::Unavailable { reason: "it was closed".to_owned() });
        }
        Ok(state)
    }
}

impl State {
    /// Makes room for `added` bytes in place of `replaced` ones, at the cost of the oldest events.
    fn make_room(
        &mut self,
        added: usize,
        replaced: usize,
        bytes_max: usize,
    ) -> Result<(), StorageError> {
        if self.live_bytes + added > bytes_max + replaced {
            let reason = format!(
                "it may hold {bytes_max} bytes, and what is not history takes {} of them; use a store on disk",
                self.live_bytes
            );
            return Err(StorageError::Full { reason });
        }
        while self.live_bytes + self.event_bytes + added > bytes_max + replaced {
            let Some((sequence, event)) = self.events.pop_first() else { break };
            self.event_bytes -= event.bytes;
            self.workflow_events.remove(&(event.value.workflow_id.clone(), sequence));
            if let Some(token) = event.value.token_id
                && let Some(moves) = self.moves.get_mut(&token)
                && moves.front() == Some(&sequence)
            {
                moves.pop_front();
                if moves.is_empty() {
                    self.moves.remove(&token);
                }
            }
        }
        Ok(())
    }

    /// Appends events and gives the sequence of the first.
    fn append(&mut self, events: Vec<Measured<WorkflowEvent>>) -> Sequence {
        let first = Sequence(self.last_sequence + 1);
        for event in events {
            self.last_sequence += 1;
            let sequence = Sequence(self.last_sequence);
            self.event_bytes += event.bytes;
            if event.value.kind == EventKind::TokenTransitioned
                && let Some(token) = event.value.token_id
            {
                self.moves.entry(token).or_default().push_back(sequence);
            }
            self.workflow_events.insert((event.value.workflow_id.clone(), sequence));
            self.events.insert(sequence, event);
        }
        first
    }

    fn put_token(&mut self, token: Measured<Token>, revision: Sequence) -> StoredToken {
        let Measured { value: token, bytes } = token;
        let place = (token.workflow_id.clone(), token.place.clone());
        self.places.entry(place).or_default().insert(revision);
        self.workflow_tokens.insert((token.workflow_id.clone(), revision));
        self.arrivals.insert(revision, token.id);
        self.live_bytes += bytes;
        let stored = StoredToken { token: Arc::new(token), revision };
        self.tokens.insert(stored.token.id, Measured { value: stored.clone(), bytes });
        stored
    }

    fn take_token(&mut self, id: Uuid) {
        let Some(Measured { value: StoredToken { token, revision }, bytes }) =
            self.tokens.remove(&id)
        else {
            return;
        };
        let place = (token.workflow_id.clone(), token.place.clone());
        if let Some(there) = self.places.get_mut(&place) {
            there.remove(&revision);
            if there.is_empty() {
                self.places.remove(&place);
            }
        }
        self.workflow_tokens.remove(&(token.workflow_id.clone(), revision));
        self.arrivals.remove(&revision);
        self.live_bytes -= bytes;
    }

    fn event_at(&self, sequence: Sequence) -> Option<StoredEvent> {
        let event = self.events.get(&sequence)?;
        Some(StoredEvent { sequence, nats_sequence: None, event: event.value.clone() })
    }

    fn token_at(&self, sequence: Sequence) -> Option<StoredToken> {
        let token = self.tokens.get(self.arrivals.get(&sequence)?)?;
        Some(token.value.clone())
    }
}

fn measure_events(
    events: Vec<WorkflowEvent>,
) -> Result<(Vec<Measured<WorkflowEvent>>, usize), StorageError> {
    let events: Vec<_> = events
        .into_iter()
        .map(|event| measured(event, || "the event of this change".to_owned()))
        .collect::<Result<_, _>>()?;
    let bytes = events.iter().map(|event| event.bytes).sum();
    Ok((events, bytes))
}

/// The range of what comes after `after`, or of all.
fn beyond<T>(after: Option<T>) -> (Bound<T>, Bound<T>) {
    (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)
}

/// What comes after `after` in an index by workflow.
fn of_workflow(
    workflow: &WorkflowId,
    after: Option<Sequence>,
) -> RangeInclusive<(WorkflowId, Sequence)> {
    let first = after.map_or(0, |after| after.0.saturating_add(1));
    (workflow.clone(), Sequence(first))..=(workflow.clone(), Sequence(u64::MAX))
}

#[async_trait]
impl WorkflowStorage for InMemoryStorage {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn insert_workflow(
        &self,
        definition: WorkflowDefinition,
        event: WorkflowEvent,
    ) -> Result<(), StorageError> {
        let id = definition.id.clone();
        let definition = measured(definition, || format!("workflow {id}"))?;
        let (events, event_bytes) = measure_events(vec![event])?;
        let mut state = self.state()?;
        if state.workflows.contains_key(&id) {
            return Err(StorageError::WorkflowExists { workflow: id });
        }
        state.make_room(definition.bytes + event_bytes, 0, self.bytes_max)?;
        state.live_bytes += definition.bytes;
        state.append(events);
        state.workflows.insert(id, definition);
        Ok(())
    }

    async fn load_workflow(
        &self,
        id: &WorkflowId,
    ) -> Result<Option<WorkflowDefinition>, StorageError> {
        Ok(self.state()?.workflows.get(id).map(|definition| definition.value.clone()))
    }

    async fn list_workflows(
        &self,
        after: Option<&WorkflowId>,
        limit: PageLimit,
    ) -> Result<Page<WorkflowDefinition>, StorageError> {
        let state = self.state()?;
        let definitions = state
            .workflows
            .range::<WorkflowId, _>(beyond(after))
            .map(|(_, definition)| definition.value.clone());
        Ok(Page::collect(definitions, limit))
    }

    async fn insert_token(&self, change: Change) -> Result<StoredToken, StorageError> {
        let id = change.token.id;
        let token = measured(change.token, || format!("token {id}"))?;
        let (events, event_bytes) = measure_events(change.events)?;
        let mut state = self.state()?;
        if state.tokens.contains_key(&id) {
            return Err(StorageError::TokenExists { token: id });
        }
        state.make_room(token.bytes + event_bytes, 0, self.bytes_max)?;
        let revision = state.append(events);
        Ok(state.put_token(token, revision))
    }

    async fn commit(
        &self,
        expected: Sequence,
        change: Change,
    ) -> Result<StoredToken, StorageError> {
        let id = change.token.id;
        let token = measured(change.token, || format!("token {id}"))?;
        let (events, event_bytes) = measure_events(change.events)?;
        let mut state = self.state()?;
        let current = state.tokens.get(&id).filter(|current| current.value.revision == expected);
        let Some(replaced) = current.map(|current| current.bytes) else {
            return Err(StorageError::Conflict { token: id, expected });
        };
        state.make_room(token.bytes + event_bytes, replaced, self.bytes_max)?;
        state.take_token(id);
        let revision = state.append(events);
        Ok(state.put_token(token, revision))
    }

    async fn load_token(
        &self,
        id: Uuid,
        workflow: Option<&WorkflowId>,
    ) -> Result<Option<StoredToken>, StorageError> {
        let state = self.state()?;
        let token = state.tokens.get(&id).map(|stored| &stored.value);
        Ok(token.filter(|stored| workflow.is_none_or(|w| *w == stored.token.workflow_id)).cloned())
    }

    fn life(&self) -> u64 {
        0
    }

    fn token_at_hand(&self, _: Uuid) -> Option<StoredToken> {
        // All are.
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
        let state = self.state()?;
        let at = |sequence| state.token_at(sequence);
        Ok(match scope {
            TokenScope::All => Page::collect(
                state.arrivals.range(beyond(after)).filter_map(|(sequence, _)| at(*sequence)),
                limit,
            ),
            TokenScope::Workflow(workflow) => {
                let tokens = state.workflow_tokens.range(of_workflow(workflow, after));
                Page::collect(tokens.filter_map(|(_, sequence)| at(*sequence)), limit)
            }
            TokenScope::Place(workflow, place) => {
                let there = state.places.get(&(workflow.clone(), place.clone()));
                let tokens = there.into_iter().flat_map(|there| there.range(beyond(after)));
                Page::collect(tokens.filter_map(|sequence| at(*sequence)), limit)
            }
        })
    }

    async fn token_moves(
        &self,
        token: &Token,
        before: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredEvent>, StorageError> {
        let state = self.state()?;
        if let Some(cursor) = before {
            match state.events.get(&cursor).map(|event| event.value.token_id) {
                Some(of) if of != Some(token.id) => {
                    return Err(StorageError::ForeignCursor { cursor, token: token.id });
                }
                Some(_) => {}
                None => return Ok(Page::empty()),
            }
        }
        let moves = state.moves.get(&token.id);
        let end = moves.map_or(0, |moves| match before {
            None => moves.len(),
            Some(before) => moves.partition_point(|sequence| *sequence < before),
        });
        let newest_first = moves.into_iter().flat_map(|moves| moves.range(..end).rev());
        Ok(Page::collect(newest_first.filter_map(|sequence| state.event_at(*sequence)), limit))
    }

    async fn list_events(
        &self,
        workflow: Option<&WorkflowId>,
        after: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredEvent>, StorageError> {
        let state = self.state()?;
        let at = |sequence| state.event_at(sequence);
        Ok(match workflow {
            None => Page::collect(
                state.events.range(beyond(after)).filter_map(|(sequence, _)| at(*sequence)),
                limit,
            ),
            Some(workflow) => {
                let events = state.workflow_events.range(of_workflow(workflow, after));
                Page::collect(events.filter_map(|(_, sequence)| at(*sequence)), limit)
            }
        })
    }

    async fn figures(&self) -> Vec<Figure> {
        let Ok(state) = self.state() else { return Vec::new() };
        let meaning = "Bytes of JSON that the store holds.";
        vec![Figure::gauge("memory_bytes", meaning, (state.live_bytes + state.event_bytes) as f64)]
    }

    async fn health(&self) -> StorageHealth {
        match self.state() {
            Ok(_) => StorageHealth::Healthy,
            Err(error) => StorageHealth::Unhealthy(error.to_string()),
        }
    }

    async fn close(&self) {
        if let Ok(mut state) = self.state() {
            state.closed = true;
        }
    }
}
