//! What can be changed.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::calculate::calculate;
use super::{EngineError, Session, definitions};
use crate::domain::limits::{COMMIT_ATTEMPTS_MAX, JSON_DEPTH_MAX, NAME_BYTES_MAX};
use crate::domain::{
    Change, Deciding, MoveError, MoveRequest, NewToken, Token, TokenMetadata, Workflow,
    WorkflowDraft, WorkflowEvent, WorkflowId, depth_exceeds, new_token_id,
};
use crate::storage::{StorageError, StoredToken};

pub async fn create_workflow(
    session: &Session,
    mut draft: WorkflowDraft,
) -> Result<Arc<Workflow>, EngineError> {
    let now = session.engine.world.now();
    let new_id =
        || uuid::Builder::from_random_bytes(session.engine.world.random()).into_uuid().to_string();
    draft.id.get_or_insert_with(new_id);
    let workflow =
        definitions::compile(move |wanted| Workflow::check_while(wanted, draft, now)).await?;
    let workflow =
        Arc::new(workflow.map_err(|problems| EngineError::InvalidWorkflow { problems })?);
    let definition = workflow.definition();
    let id = definition.id.clone();
    let event = WorkflowEvent::workflow_created(id.clone(), now);
    match session.engine.storage.insert_workflow(definition.clone(), event).await {
        Ok(()) => {
            session.engine.definitions.remember(&workflow);
            Ok(workflow)
        }
        Err(StorageError::WorkflowExists { .. }) => {
            let there = session.engine.definitions.get(&id).await?;
            let there = there.ok_or(StorageError::Unavailable {
                reason: format!("workflow {id} was removed meanwhile"),
            })?;
            let differs = definition.differences(there.definition());
            if differs.is_empty() {
                Ok(there)
            } else {
                Err(EngineError::WorkflowExists { workflow: id, differs })
            }
        }
        Err(error) => Err(error.into()),
    }
}

pub async fn create_token(
    session: &Session,
    workflow: &WorkflowId,
    id: Option<Uuid>,
    request: NewToken,
) -> Result<StoredToken, EngineError> {
    check_data("data", &request.data)?;
    check_members("metadata", &request.metadata)?;
    check_triggered_by(request.triggered_by.as_deref())?;
    let life = Some(session.engine.storage.life());
    let workflow = session.workflow_to_act_on(workflow).await?;
    let now = session.engine.world.now();
    let id = id.unwrap_or_else(|| {
        let mut random = [0; 10];
        random.copy_from_slice(&session.engine.world.random()[..10]);
        new_token_id(&workflow.definition().id, now, random)
    });
    let change = Change { life, ..workflow.create_token(request, id, &session.caller, now)? };
    match session.engine.storage.insert_token(change).await {
        Err(StorageError::TokenExists { token }) => Err(EngineError::TokenExists { token }),
        other => Ok(other?),
    }
}

pub async fn fire(
    session: &Session,
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
    if waits && session.engine.turns.are_taken(token) {
        turn = Some(session.engine.turns.take(token).await.ok_or_else(|| no_turn(0))?);
    }
    let mut life = session.engine.storage.life();
    let mut at_hand = session.engine.storage.token_at_hand(token);
    let (mut decided_on, mut born) = (None, None);
    let steps = session.budget.steps();
    let steps_before = steps.left();
    for attempt in 1..=COMMIT_ATTEMPTS_MAX {
        // What was decided in vain is not the caller's to pay.
        steps.give_back(steps_before - steps.left());
        let guess = at_hand.take();
        let guessed = guess.is_some();
        let stored = match guess {
            Some(stored) => stored,
            None => {
                life = session.engine.storage.life();
                token_to_move(session, token, request.expected_version).await?
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
        let workflow = session.workflow_of(&stored.token).await?;
        // A time of its own for each state, none before that of the state.
        let now = match decided_on {
            Some((revision, now)) if revision == stored.revision => now,
            _ => session.engine.world.now(),
        };
        decided_on = Some((stored.revision, now));
        let change = match decide(session, workflow, stored.token, Arc::clone(&request), now).await
        {
            Ok(change) => Change { life: Some(life), ..change },
            // Others may have moved it; only a fresh look may refuse.
            Err(_) if guessed => continue,
            Err(error) => return Err(error),
        };
        match session.engine.storage.commit(stored.revision, change).await {
            // Someone else moved it in between. With an expected version the next decision says so.
            Err(StorageError::Conflict { .. }) => {}
            other => return Ok(other?),
        }
        if waits && turn.is_none() {
            turn = Some(session.engine.turns.take(token).await.ok_or_else(|| no_turn(attempt))?);
            life = session.engine.storage.life();
            at_hand = session.engine.storage.token_at_hand(token);
        }
    }
    Err(EngineError::Contended { token, attempts: COMMIT_ATTEMPTS_MAX })
}

/// The token to move, for somebody who may say which version it has reached.
async fn token_to_move(
    session: &Session,
    token: Uuid,
    version: Option<u32>,
) -> Result<StoredToken, EngineError> {
    let Some(version) = version else { return session.token_to_act_on(token).await };
    let found = session.engine.storage.load_token_at(token, version).await?;
    found.ok_or(EngineError::TokenNotFound { token })
}

async fn decide(
    session: &Session,
    workflow: Arc<Workflow>,
    token: Arc<Token>,
    request: Arc<MoveRequest>,
    now: DateTime<Utc>,
) -> Result<Change, EngineError> {
    let fire = move |by: &Deciding<'_>| match workflow.fire(&token, &request, by) {
        Err(MoveError::TooCostly(error)) => Err(error),
        decided => Ok(decided),
    };
    Ok(calculate(session, now, fire).await??)
}

pub fn check_data(field: &'static str, data: &Value) -> Result<(), EngineError> {
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
