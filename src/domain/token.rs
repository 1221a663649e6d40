//! A token: one piece of work, its data, and where it is.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::id::{PlaceId, TransitionId, WorkflowId};
use super::json::{memory_of, memory_of_fields};

/// What a client attaches to a token at its creation: a JSON object that no move changes.
pub type TokenMetadata = serde_json::Map<String, Value>;

/// One piece of work in one place of one workflow.
///
/// Its JSON, with these field names, is its stored form on every backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// A UUID: chosen by the client at creation, or made by [`super::new_token_id`].
    pub id: Uuid,
    /// The workflow that it belongs to for its whole life.
    pub workflow_id: WorkflowId,
    /// The one place that it is in.
    pub place: PlaceId,
    /// 1 at creation, one more with every move; at most [`super::limits::VERSION_MAX`].
    pub version: u32,
    /// The client's data; each move may merge a patch into it.
    pub data: Value,
    /// Set at creation.
    pub metadata: TokenMetadata,
    /// When it was created.
    #[serde(with = "crate::domain::time")]
    pub created_at: DateTime<Utc>,
    /// When it last moved, or was created.
    #[serde(with = "crate::domain::time")]
    pub updated_at: DateTime<Utc>,
    /// The newest moves, oldest first, at most [`super::limits::EMBEDDED_HISTORY_MAX`].
    pub history: Vec<HistoryEvent>,
    /// Sequence of the NATS message that holds the token. Filled in on reading, never stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nats_sequence: Option<u64>,
    /// Time of that message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nats_timestamp: Option<DateTime<Utc>>,
    /// Subject of that message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nats_subject: Option<String>,
    /// The same moves as in `history`, in the same order, with who fired them.
    pub transition_history: Vec<TransitionRecord>,
}

/// Bytes that a token takes in memory beside free JSON, and each move that it remembers, about.
const TOKEN_BYTES: u64 = 800;
const MOVE_BYTES: u64 = 600;

impl Token {
    /// Bytes that it takes in memory, about.
    pub fn memory(&self) -> u64 {
        let moves =
            self.history.iter().map(|event| MOVE_BYTES + event.data.as_ref().map_or(0, memory_of));
        let records = self.transition_history.iter().map(|record| {
            record.metadata.as_ref().map_or(0, memory_of)
                + record.triggered_by.as_ref().map_or(0, |name| name.len() as u64)
        });
        TOKEN_BYTES
            + memory_of(&self.data)
            + memory_of_fields(&self.metadata)
            + moves.sum::<u64>()
            + records.sum::<u64>()
    }
}

/// One move as the token itself remembers it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HistoryEvent {
    /// When the token moved.
    #[serde(with = "crate::domain::time")]
    pub timestamp: DateTime<Utc>,
    /// The transition that fired.
    pub transition: TransitionId,
    /// Where the token was.
    pub from_place: PlaceId,
    /// Where it went.
    pub to_place: PlaceId,
    /// What the request merged into the token's data, if it was given and is at most
    /// [`super::limits::EMBEDDED_DATA_BYTES_MAX`] long; the event has it in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

/// One move with who fired it and, on NATS, where it is recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TransitionRecord {
    /// Where the token was.
    pub from_place: PlaceId,
    /// Where it went.
    pub to_place: PlaceId,
    /// The transition that fired.
    pub transition_id: TransitionId,
    /// When the token moved.
    #[serde(with = "crate::domain::time")]
    pub timestamp: DateTime<Utc>,
    /// Who fired it, as the client said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub triggered_by: Option<String>,
    /// Sequence of the NATS message that the move made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nats_sequence: Option<u64>,
    /// Reserved for what a store or client adds to the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
}
