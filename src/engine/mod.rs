//! What a user can ask for, each thing in one function: load, let the domain decide, commit.

use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio::sync::Semaphore;
use uuid::Uuid;

mod definitions;
mod error;
mod lists;
mod meter;
mod turns;
mod world;

pub use error::EngineError;
pub use lists::{ReadBudget, TokenPageRequest};
pub use world::{SystemWorld, World};

use self::definitions::Definitions;
use self::meter::{Meter, Operation};
use self::turns::Turns;
use crate::domain::limits::{COMMIT_ATTEMPTS_MAX, JSON_DEPTH_MAX, NAME_BYTES_MAX};
use crate::domain::{
    Change, MoveError, MoveRequest, NewToken, Token, TokenMetadata, TransitionDefinition, Workflow,
    WorkflowDefinition, WorkflowDraft, WorkflowEvent, WorkflowId, depth_exceeds, new_token_id,
};
use crate::storage::{Figure, StorageError, StorageHealth, StoredToken, WorkflowStorage};

/// The engine over one store. Any number of engines, in any number of processes, can share one
/// store that allows it: nothing that matters is kept here.
pub struct Engine {
    storage: Arc<dyn WorkflowStorage>,
    definitions: Definitions,
    world: Arc<dyn World>,
    list_places: Arc<Semaphore>,
    turns: Turns,
    meter: Meter,
}

impl Engine {
    /// An engine with the clock and the random numbers of this machine.
    pub fn new(storage: Arc<dyn WorkflowStorage>) -> Self {
        Self::with_world(storage, Arc::new(SystemWorld))
    }

    /// An engine whose time and random numbers come from `world`.
    pub fn with_world(storage: Arc<dyn WorkflowStorage>, world: Arc<dyn World>) -> Self {
        let definitions = Definitions::new(Arc::clone(&storage));
        let (list_places, meter) = (lists::list_places(), Meter::default());
        let turns = Turns::default();
        Self { storage, definitions, world, list_places, turns, meter }
    }

    /// Checks and stores a definition; one without an id gets a new UUID.
    ///
    /// To create the same definition again is no error: the answer is the one that is there.
    pub async fn create_workflow(
        &self,
        draft: WorkflowDraft,
    ) -> Result<Arc<Workflow>, EngineError> {
        let begun = Instant::now();
        let outcome = self.try_create_workflow(draft).await;
        self.meter.note(Operation::CreateWorkflow, begun, &outcome);
        outcome
    }

    async fn try_create_workflow(
        &self,
        mut draft: WorkflowDraft,
    ) -> Result<Arc<Workflow>, EngineError> {
        let now = self.world.now();
        let new_id =
            || uuid::Builder::from_random_bytes(self.world.random()).into_uuid().to_string();
        draft.id.get_or_insert_with(new_id);
        let workflow = definitions::compile(move || Workflow::check(draft, now)).await?;
        let workflow =
            Arc::new(workflow.map_err(|problems| EngineError::InvalidWorkflow { problems })?);
        let definition = workflow.definition();
        let id = definition.id.clone();
        let event = WorkflowEvent::workflow_created(id.clone(), now);
        match self.storage.insert_workflow(definition.clone(), event).await {
            Ok(()) => {
                self.definitions.remember(&workflow);
                Ok(workflow)
            }
            Err(StorageError::WorkflowExists { .. }) => {
                let there = self.definitions.get(&id).await?;
                let same = there.filter(|there| there.definition().same_as(definition));
                same.ok_or(EngineError::WorkflowExists { workflow: id })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Creates a token; with an `id` of the client's choice, at most once.
    pub async fn create_token(
        &self,
        workflow: &WorkflowId,
        id: Option<Uuid>,
        request: NewToken,
    ) -> Result<StoredToken, EngineError> {
        let begun = Instant::now();
        let outcome = self.try_create_token(workflow, id, request).await;
        self.meter.note(Operation::CreateToken, begun, &outcome);
        outcome
    }

    async fn try_create_token(
        &self,
        workflow: &WorkflowId,
        id: Option<Uuid>,
        request: NewToken,
    ) -> Result<StoredToken, EngineError> {
        check_data("data", &request.data)?;
        check_members("metadata", &request.metadata)?;
        check_triggered_by(request.triggered_by.as_deref())?;
        let life = Some(self.storage.life());
        let workflow = self.workflow_to_act_on(workflow).await?;
        let now = self.world.now();
        let id = id.unwrap_or_else(|| {
            let mut random = [0; 10];
            random.copy_from_slice(&self.world.random()[..10]);
            new_token_id(&workflow.definition().id, now, random)
        });
        let change = Change { life, ..workflow.create_token(request, id, now)? };
        match self.storage.insert_token(change).await {
            Err(StorageError::TokenExists { token }) => Err(EngineError::TokenExists { token }),
            other => Ok(other?),
        }
    }

    /// Moves a token: loads it, lets the domain decide, commits, and decides anew if another move
    /// came first, a bounded number of times.
    pub async fn fire(
        &self,
        token: Uuid,
        request: MoveRequest,
    ) -> Result<StoredToken, EngineError> {
        let begun = Instant::now();
        let outcome = self.try_fire(token, request).await;
        self.meter.note(Operation::Fire, begun, &outcome);
        outcome
    }

    async fn try_fire(
        &self,
        token: Uuid,
        request: MoveRequest,
    ) -> Result<StoredToken, EngineError> {
        if let Some(data) = &request.data {
            check_data("data", data)?;
        }
        check_triggered_by(request.triggered_by.as_deref())?;
        let request = Arc::new(request);
        let no_turn = |attempts| EngineError::NoTurn { token, attempts };
        // One that expects a version has lost with the first other move.
        let waits = request.expected_version.is_none();
        let mut turn = None;
        if waits && self.turns.are_taken(token) {
            turn = Some(self.turns.take(token).await.ok_or_else(|| no_turn(0))?);
        }
        let mut life = self.storage.life();
        let mut at_hand = self.storage.token_at_hand(token);
        let (mut decided_on, mut born) = (None, None);
        for attempt in 1..=COMMIT_ATTEMPTS_MAX {
            let guess = at_hand.take();
            let guessed = guess.is_some();
            let stored = match guess {
                Some(stored) => stored,
                None => {
                    life = self.storage.life();
                    self.token_to_move(token, request.expected_version).await?
                }
            };
            // The id may be another token's by now, if the one that was meant was completed and has aged.
            // Which one is meant, only a fresh look can say.
            let now_born = (stored.token.workflow_id.clone(), stored.token.created_at);
            match &born {
                Some(born) if *born != now_born && guessed => continue,
                Some(born) if *born != now_born => {
                    return Err(EngineError::TokenNotFound { token });
                }
                None if !guessed => born = Some(now_born),
                _ => {}
            }
            let workflow = self.workflow_of(&stored.token).await?;
            // A time of its own for each state, none before that of the state.
            let now = match decided_on {
                Some((revision, now)) if revision == stored.revision => now,
                _ => self.world.now(),
            };
            decided_on = Some((stored.revision, now));
            let change = match decide(workflow, stored.token, Arc::clone(&request), now).await {
                Ok(change) => Change { life: Some(life), ..change },
                // Others may have moved it; only a fresh look may refuse.
                Err(_) if guessed => continue,
                Err(error) => return Err(error.into()),
            };
            match self.storage.commit(stored.revision, change).await {
                // Someone else moved it in between. With an expected version the next decision says so.
                Err(StorageError::Conflict { .. }) => {}
                other => return Ok(other?),
            }
            if waits && turn.is_none() {
                turn = Some(self.turns.take(token).await.ok_or_else(|| no_turn(attempt))?);
                life = self.storage.life();
                at_hand = self.storage.token_at_hand(token);
            }
        }
        Err(EngineError::Contended { token, attempts: COMMIT_ATTEMPTS_MAX })
    }

    /// The transitions that may fire from where the token is now and whose conditions hold.
    pub async fn available_transitions(
        &self,
        token: Uuid,
    ) -> Result<Vec<TransitionDefinition>, EngineError> {
        let stored = self.token_to_act_on(token).await?;
        let workflow = self.workflow_of(&stored.token).await?;
        let available =
            move || workflow.available_transitions(&stored.token).into_iter().cloned().collect();
        Ok(on_a_blocking_thread(available).await)
    }

    /// The token with this id, if there is one.
    pub async fn token(&self, id: Uuid) -> Result<Option<StoredToken>, EngineError> {
        Ok(self.storage.load_token(id, None).await?)
    }

    /// The token with this id, if there is one in this workflow.
    pub async fn token_of(
        &self,
        workflow: &WorkflowId,
        id: Uuid,
    ) -> Result<Option<StoredToken>, EngineError> {
        Ok(self.storage.load_token(id, Some(workflow)).await?)
    }

    /// When the bus stored the message of a token, if there is a bus and the message is still there.
    pub async fn message_time(
        &self,
        stored: &StoredToken,
    ) -> Result<Option<DateTime<Utc>>, EngineError> {
        match (stored.token.nats_timestamp, stored.token.nats_sequence) {
            (None, Some(_)) => Ok(self.storage.message_time(stored.revision).await?),
            (known, _) => Ok(known),
        }
    }

    /// The workflow with this id, if there is one.
    pub async fn workflow(
        &self,
        id: &WorkflowId,
    ) -> Result<Option<WorkflowDefinition>, EngineError> {
        Ok(self.definitions.get(id).await?.map(|workflow| workflow.definition().clone()))
    }

    /// What the store is called and how it does.
    pub async fn health(&self) -> (&'static str, StorageHealth) {
        (self.storage.name(), self.storage.health().await)
    }

    /// Figures for monitoring: what was asked for, and how the store does.
    pub async fn figures(&self) -> Vec<Figure> {
        let health = match self.storage.health().await {
            StorageHealth::Healthy => 1.0,
            StorageHealth::Degraded(_) => 0.5,
            StorageHealth::Unhealthy(_) => 0.0,
        };
        let meaning =
            "1 while the store is healthy, 0.5 while it is degraded, 0 while it does not work.";
        let mut figures = vec![Figure::gauge("storage_health", meaning, health)];
        figures.extend(self.meter.figures());
        figures.extend(self.storage.figures().await);
        figures
    }

    /// Finishes what the store accepted; afterwards every call fails.
    pub async fn close(&self) {
        self.storage.close().await;
    }

    async fn token_to_act_on(&self, token: Uuid) -> Result<StoredToken, EngineError> {
        self.storage.load_token(token, None).await?.ok_or(EngineError::TokenNotFound { token })
    }

    /// The same for somebody who may say which version it has reached.
    async fn token_to_move(
        &self,
        token: Uuid,
        version: Option<u32>,
    ) -> Result<StoredToken, EngineError> {
        let Some(version) = version else { return self.token_to_act_on(token).await };
        let found = self.storage.load_token_at(token, version).await?;
        found.ok_or(EngineError::TokenNotFound { token })
    }

    async fn workflow_to_act_on(&self, id: &WorkflowId) -> Result<Arc<Workflow>, EngineError> {
        let workflow = self.definitions.get(id).await?;
        workflow.ok_or_else(|| EngineError::WorkflowNotFound { workflow: id.clone() })
    }

    async fn workflow_of(&self, token: &Token) -> Result<Arc<Workflow>, EngineError> {
        self.definitions.get(&token.workflow_id).await?.ok_or_else(|| {
            let what = format!("workflow {} of token {}", token.workflow_id, token.id);
            StorageError::Corrupt { what, reason: "it is not there".to_owned() }.into()
        })
    }
}

async fn decide(
    workflow: Arc<Workflow>,
    token: Arc<Token>,
    request: Arc<MoveRequest>,
    now: DateTime<Utc>,
) -> Result<Change, MoveError> {
    if !workflow.may_take_long(&request.transition) {
        return workflow.fire(&token, &request, now);
    }
    on_a_blocking_thread(move || workflow.fire(&token, &request, now)).await
}

async fn on_a_blocking_thread<T: Send + 'static>(
    calculation: impl FnOnce() -> T + Send + 'static,
) -> T {
    match tokio::task::spawn_blocking(calculation).await {
        Ok(value) => value,
        // A defect: it goes on to whoever turns panics into answers.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn check_data(field: &'static str, data: &Value) -> Result<(), EngineError> {
    check_depth(field, depth_exceeds(data, JSON_DEPTH_MAX))
}

fn check_members(field: &'static str, members: &TokenMetadata) -> Result<(), EngineError> {
    // The object itself is a level, too.
    check_depth(field, members.values().any(|value| depth_exceeds(value, JSON_DEPTH_MAX - 1)))
}

fn check_depth(field: &'static str, exceeds: bool) -> Result<(), EngineError> {
    if exceeds {
        let rule = format!("arrays and objects may nest {JSON_DEPTH_MAX} deep");
        return Err(EngineError::InvalidInput { field, rule });
    }
    Ok(())
}

fn check_triggered_by(name: Option<&str>) -> Result<(), EngineError> {
    let wrong =
        name.is_some_and(|name| name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control));
    if wrong {
        let rule = format!("at most {NAME_BYTES_MAX} bytes without control characters are allowed");
        return Err(EngineError::InvalidInput { field: "triggeredBy", rule });
    }
    Ok(())
}
