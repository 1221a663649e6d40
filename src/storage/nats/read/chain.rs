//! The chain of a token's events: each names the one before it.

use super::reader::Reader;
use super::stored::Stored;
use crate::domain::EventKind;
use crate::storage::StorageError;

/// The event of the change that made the message with this sequence: it stands right after it.
pub async fn event_of(reader: &Reader, state: u64) -> Result<Option<Stored>, StorageError> {
    reader.at(state + 1).await
}

/// The token's event before this one; none at its creation, or where history ends.
pub async fn event_before(reader: &Reader, event: &Stored) -> Result<Option<Stored>, StorageError> {
    match event.event_link()?.previous_sequence {
        None => Ok(None),
        Some(previous) => reader.at(previous).await,
    }
}

/// Whether this is an event of that token.
pub fn is_of(stored: &Stored, token: uuid::Uuid) -> bool {
    stored.event().is_ok_and(|stored| stored.event.token_id == Some(token))
}

/// Whether this event is a move.
pub fn is_move(kind: EventKind) -> bool {
    kind == EventKind::TokenTransitioned
}
