//! What happened, as it is recorded and published.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::id::{PlaceId, TransitionId, WorkflowId};
use super::json::memory_of;
use super::token::{Token, TransitionRecord};

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A definition was stored.
    WorkflowCreated,
    /// A token was created in `to_place`.
    TokenCreated,
    /// A token moved.
    TokenTransitioned,
    /// A token arrived where no transition leads on; follows the event that brought it there.
    TokenCompleted,
}

/// One thing that happened. Its JSON is its stored form on every backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkflowEvent {
    /// What happened.
    pub kind: EventKind,
    /// When.
    #[serde(with = "crate::domain::time")]
    pub timestamp: DateTime<Utc>,
    /// In which workflow.
    pub workflow_id: WorkflowId,
    /// To which token; none for a workflow's creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_id: Option<Uuid>,
    /// The transition that fired; of a move alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transition_id: Option<TransitionId>,
    /// Where the token was; of a move alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_place: Option<PlaceId>,
    /// Where the token is after the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_place: Option<PlaceId>,
    /// The token's version after the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_version: Option<u32>,
    /// Who asked for it, as the client said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub triggered_by: Option<String>,
    /// The token's first data at its creation; at a move what the request merged into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

/// Bytes that an event takes in memory beside free JSON, about.
const EVENT_BYTES: u64 = 600;

impl WorkflowEvent {
    /// Bytes that it takes in memory, about.
    pub fn memory(&self) -> u64 {
        let by = self.triggered_by.as_ref().map_or(0, String::len);
        EVENT_BYTES + by as u64 + self.data.as_ref().map_or(0, memory_of)
    }

    /// The creation of a workflow.
    pub fn workflow_created(workflow_id: WorkflowId, timestamp: DateTime<Utc>) -> Self {
        Self {
            kind: EventKind::WorkflowCreated,
            timestamp,
            workflow_id,
            token_id: None,
            transition_id: None,
            from_place: None,
            to_place: None,
            token_version: None,
            triggered_by: None,
            data: None,
        }
    }

    /// An event of `token`, which is as it is after the event.
    pub fn of_token(kind: EventKind, token: &Token, triggered_by: Option<String>) -> Self {
        Self {
            kind,
            timestamp: token.updated_at,
            workflow_id: token.workflow_id.clone(),
            token_id: Some(token.id),
            transition_id: None,
            from_place: None,
            to_place: Some(token.place.clone()),
            token_version: Some(token.version),
            triggered_by,
            data: None,
        }
    }

    /// The event as a record of a move; none for an event that is not a move.
    pub fn transition_record(&self) -> Option<TransitionRecord> {
        Some(TransitionRecord {
            from_place: self.from_place.clone()?,
            to_place: self.to_place.clone()?,
            transition_id: self.transition_id.clone()?,
            timestamp: self.timestamp,
            triggered_by: self.triggered_by.clone(),
            nats_sequence: None,
            metadata: None,
        })
    }
}
