//! The chain of a token's events, and what it tells: its moves, and whether a commit is there.

use chrono::{DateTime, Utc};
use std::collections::HashMap;

use super::change::{Commit, Done, Kind, Target};
use super::codec::Stored;
use super::names;
use super::read::Reader;
use crate::domain::EventKind;
use crate::storage::StorageError;

/// Events that are looked at for a commit whose answer was lost: since then others may have moved
/// the token, though hardly that often in those seconds.
const LOOK_BACK_MAX: usize = 256;

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

/// Looks whether a commit is stored, by the id of its event.
pub async fn find_commit(reader: &Reader, commit: &Commit) -> Result<Option<Done>, StorageError> {
    let subject = match (&commit.target, &commit.kind) {
        (Target::Workflow(workflow), _) => names::definition(workflow),
        (Target::Token(id), Kind::CreateToken { workflow } | Kind::Move { workflow, .. }) => {
            names::token_anywhere(workflow, *id)
        }
        (Target::Token(id), Kind::CreateWorkflow) => names::token_in_any_workflow(*id),
    };
    let Some(state) = reader.last(&subject).await? else { return Ok(None) };
    if state.is_departure() {
        return Ok(None);
    }
    let now = Done { sequence: state.sequence, time: Some(state.time) };
    let mut event = event_of(reader, state.sequence).await?;
    for step in 0..LOOK_BACK_MAX {
        let Some(stored) = event else {
            // History was removed in between. The message itself still tells, if it is there.
            let ours = &commit.messages[commit.state_index];
            return Ok((step == 0 && state.payload == ours.payload).then_some(now));
        };
        if stored.event_link()?.event_id == commit.event_id {
            // Its own message may have been replaced since; it stood right before its event.
            let then = Done { sequence: stored.sequence - 1, time: Some(stored.time) };
            return Ok(Some(if step == 0 { now } else { then }));
        }
        if stored.event()?.event.token_version.is_none_or(|version| version <= commit.version) {
            return Ok(None);
        }
        event = event_before(reader, &stored).await?;
    }
    let reason = format!("{LOOK_BACK_MAX} later changes of the same token were looked through");
    Err(StorageError::OutcomeUnknown { reason })
}

/// Whether this is an event of that token.
pub fn is_of(stored: &Stored, token: uuid::Uuid) -> bool {
    stored.event().is_ok_and(|stored| stored.event.token_id == Some(token))
}

/// Whether this event is a move.
pub fn is_move(kind: EventKind) -> bool {
    kind == EventKind::TokenTransitioned
}

/// When the messages of a batch were stored.
#[derive(Debug, Default)]
pub struct Times {
    each: HashMap<u64, DateTime<Utc>>,
    /// With several replicas a batch has one time.
    all: Option<DateTime<Utc>>,
}

impl Times {
    /// The time of the message with this sequence. If it was replaced already, the time of its
    /// event, which was stored with it.
    pub fn of(&self, sequence: u64) -> Option<DateTime<Utc>> {
        self.all.or_else(|| self.each.get(&sequence).or(self.each.get(&(sequence + 1))).copied())
    }
}

/// Reads when the messages of a batch were stored; an acknowledgement does not say so. What cannot
/// be read now is left out: the batch is stored in any case.
pub async fn times(reader: &Reader, first: u64, last: u64) -> Times {
    if reader.replicas() > 1 {
        let time = reader.at(last).await.ok().flatten().map(|message| message.time);
        return Times { each: HashMap::new(), all: time };
    }
    let messages = reader.between(first, last).await.unwrap_or_default();
    let each = messages.into_iter().map(|message| (message.sequence, message.time)).collect();
    Times { each, all: None }
}
