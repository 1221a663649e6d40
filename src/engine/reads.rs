//! What can be asked of one thing at a time.

use std::ops::Deref;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::budget::Turn;
use super::calculate::calculate;
use super::writes::check_data;
use super::{EngineError, Session};
use crate::domain::{
    Deciding, Explanation, Token, TooCostly, TransitionDefinition, Workflow, WorkflowDefinition,
    WorkflowId,
};
use crate::storage::{Figure, Item, StorageError, StorageHealth, StoredToken};

pub async fn available_transitions(
    session: &Session,
    token: Uuid,
    data: Option<Value>,
) -> Result<Vec<TransitionDefinition>, EngineError> {
    of_token(session, token, data, Workflow::available_transitions).await
}

pub async fn explain_transitions(
    session: &Session,
    token: Uuid,
    data: Option<Value>,
) -> Result<Vec<Explanation>, EngineError> {
    of_token(session, token, data, Workflow::explain_transitions).await
}

/// A token as it was read. As long as it is there, a large one keeps its request from holding another.
#[derive(Debug)]
pub struct ReadToken {
    stored: StoredToken,
    _turn: Option<Turn>,
}

impl Deref for ReadToken {
    type Target = StoredToken;

    fn deref(&self) -> &StoredToken {
        &self.stored
    }
}

/// One that was read as part of a list, which has a bound of its own, or that was written.
impl From<StoredToken> for ReadToken {
    fn from(stored: StoredToken) -> Self {
        Self { stored, _turn: None }
    }
}

type Question<T> = fn(&Workflow, &Token, Option<&Value>, &Deciding<'_>) -> Result<T, TooCostly>;

async fn of_token<T: Send + 'static>(
    session: &Session,
    token: Uuid,
    data: Option<Value>,
    question: Question<T>,
) -> Result<T, EngineError> {
    if let Some(data) = &data {
        check_data("data", data)?;
    }
    let stored = session.read_token(token, None).await?;
    let stored = stored.ok_or(EngineError::TokenNotFound { token })?;
    let workflow = session.workflow_of(&stored.token).await?;
    let now = session.engine.world.now();
    let answer = move |by: &Deciding<'_>| question(&workflow, &stored.token, data.as_ref(), by);
    calculate(session, now, answer).await
}

pub async fn token(
    session: &Session,
    id: Uuid,
    workflow: Option<&WorkflowId>,
) -> Result<Option<ReadToken>, EngineError> {
    session.read_token(id, workflow).await
}

pub async fn message_time(
    session: &Session,
    stored: &StoredToken,
) -> Result<Option<DateTime<Utc>>, EngineError> {
    match (stored.token.nats_timestamp, stored.token.nats_sequence) {
        (None, Some(_)) => Ok(session.engine.storage.message_time(stored.revision).await?),
        (known, _) => Ok(known),
    }
}

pub async fn workflow(
    session: &Session,
    id: &WorkflowId,
) -> Result<Option<WorkflowDefinition>, EngineError> {
    let workflow = session.engine.definitions.get(id).await?;
    Ok(workflow.map(|workflow| workflow.definition().clone()))
}

/// How the store does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What the store is called, such as `sqlite`.
    pub storage: &'static str,
    /// How well it does.
    pub status: HealthStatus,
    /// What is wrong, if something is.
    pub detail: Option<String>,
}

/// How well the store does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthStatus {
    /// Reads and writes work.
    Healthy,
    /// It works, but something needs a look.
    Degraded,
    /// It does not work.
    Unhealthy,
}

impl HealthStatus {
    /// As clients see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "HEALTHY",
            Self::Degraded => "DEGRADED",
            Self::Unhealthy => "UNHEALTHY",
        }
    }
}

pub async fn health(session: &Session) -> Result<Health, EngineError> {
    let storage = &session.engine.storage;
    let (status, detail) = match storage.health().await {
        StorageHealth::Healthy => (HealthStatus::Healthy, None),
        StorageHealth::Degraded(detail) => (HealthStatus::Degraded, Some(detail)),
        StorageHealth::Unhealthy(detail) => (HealthStatus::Unhealthy, Some(detail)),
    };
    Ok(Health { storage: storage.name(), status, detail })
}

pub async fn figures(session: &Session) -> Result<Vec<Figure>, EngineError> {
    let storage = &session.engine.storage;
    let health = match health(session).await?.status {
        HealthStatus::Healthy => 1.0,
        HealthStatus::Degraded => 0.5,
        HealthStatus::Unhealthy => 0.0,
    };
    let meaning =
        "1 while the store is healthy, 0.5 while it is degraded, 0 while it does not work.";
    let mut figures = vec![Figure::gauge("storage_health", meaning, health)];
    figures.extend(session.engine.meter.figures());
    figures.extend(storage.figures().await);
    Ok(figures)
}

impl Session {
    /// A token that is read to be answered. Whoever may not hold one as large as this lets go of it, waits until he
    /// may, and reads it again: those who wait hold nothing.
    async fn read_token(
        &self,
        id: Uuid,
        workflow: Option<&WorkflowId>,
    ) -> Result<Option<ReadToken>, EngineError> {
        let read = async || self.engine.storage.load_token(id, workflow).await;
        let Some(stored) = read().await? else { return Ok(None) };
        if let Some(turn) = self.budget.try_hold(stored.memory()).await {
            return Ok(Some(ReadToken { stored, _turn: Some(turn) }));
        }
        drop(stored);
        let turn = self.budget.hold().await?;
        Ok(read().await?.map(|stored| ReadToken { stored, _turn: Some(turn) }))
    }

    pub(super) async fn token_to_act_on(&self, token: Uuid) -> Result<StoredToken, EngineError> {
        let found = self.engine.storage.load_token(token, None).await?;
        found.ok_or(EngineError::TokenNotFound { token })
    }

    pub(super) async fn workflow_to_act_on(
        &self,
        id: &WorkflowId,
    ) -> Result<Arc<Workflow>, EngineError> {
        let workflow = self.engine.definitions.get(id).await?;
        workflow.ok_or_else(|| EngineError::WorkflowNotFound { workflow: id.clone() })
    }

    pub(super) async fn workflow_of(&self, token: &Token) -> Result<Arc<Workflow>, EngineError> {
        self.engine.definitions.get(&token.workflow_id).await?.ok_or_else(|| {
            let what = format!("workflow {} of token {}", token.workflow_id, token.id);
            StorageError::Corrupt { what, reason: "it is not there".to_owned() }.into()
        })
    }
}
