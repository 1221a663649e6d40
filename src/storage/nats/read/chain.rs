//! The chain of a token's events: each names the one before it.
//!
//! An event stands right behind the token that it was written with, unless nats-server has cut it off
//! and others had gone on before that was noticed: then a repair has written it later, with a note of
//! where it should have stood.

use uuid::Uuid;

use super::reader::Reader;
use super::stored::Stored;
use crate::domain::EventKind;
use crate::storage::StorageError;
use crate::storage::nats::wire::names::{self, ALL_EVENTS, ALL_REPAIRS};

/// Events of the same workflow that are looked through for one that was written late.
const LATE_MAX: usize = 1_024;

/// Whether this is an event of that version of a token: its completion, or what came before that.
///
/// An event that cannot be read may be the one, so it is an error and not another one.
pub fn is_event_of(
    stored: &Stored,
    token: Uuid,
    version: u32,
    completion: bool,
) -> Result<bool, StorageError> {
    if !names::covers(ALL_EVENTS, &stored.subject) {
        return Ok(false);
    }
    let event = stored.event()?.event;
    Ok(event.token_id == Some(token)
        && event.token_version == Some(version)
        && (event.kind == EventKind::TokenCompleted) == completion)
}

/// Whether this is an event of that token.
pub fn is_of(stored: &Stored, token: Uuid) -> bool {
    stored.event().is_ok_and(|stored| stored.event.token_id == Some(token))
}

/// The newest event of a token but its completion, whose message this is.
pub async fn event_of(reader: &Reader, state: &Stored) -> Result<Option<Stored>, StorageError> {
    let token = state.token()?.token;
    event_at(reader, state.sequence + 1, &state.subject, token.id, token.version).await
}

/// The token's event before this one; none at its creation, or where history ends.
pub async fn event_before(reader: &Reader, event: &Stored) -> Result<Option<Stored>, StorageError> {
    let Some(previous) = event.event_link()?.previous_sequence else { return Ok(None) };
    let stored = event.event()?.event;
    let (Some(token), Some(version)) = (stored.token_id, stored.token_version) else {
        return Ok(None);
    };
    event_at(reader, previous, &event.subject, token, version.saturating_sub(1)).await
}

/// The event that stands at `place` or should have stood there. `near` is a subject of the same
/// workflow.
async fn event_at(
    reader: &Reader,
    place: u64,
    near: &str,
    token: Uuid,
    version: u32,
) -> Result<Option<Stored>, StorageError> {
    let found = reader.at(place).await?;
    if let Some(there) = &found
        && is_event_of(there, token, version, false)?
    {
        return Ok(found);
    }
    // That an event was written late is so rare that mostly there is no record of any.
    let Some(workflow) = names::workflow_of(near) else { return Ok(None) };
    if reader.last(ALL_REPAIRS).await?.is_none() {
        return Ok(None);
    }
    let filter = names::events_of(&workflow);
    let deadline = tokio::time::Instant::now() + super::reader::RUN_WAIT_MAX;
    let later = reader.events(&filter, place + 1, LATE_MAX, deadline).await?.messages;
    for stored in later.into_iter().filter(|stored| stored.marks.repaired == Some(place)) {
        if is_event_of(&stored, token, version, false)? {
            return Ok(Some(stored));
        }
    }
    Ok(None)
}

/// Whether this event is a move.
pub fn is_move(kind: EventKind) -> bool {
    kind == EventKind::TokenTransitioned
}
