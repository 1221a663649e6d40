//! A commit on its way, and who waits for it.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::commit::Commit;
use super::doubts::Doubts;
use crate::storage::{Sequence, StorageError};

/// A commit on its way, and who waits for it.
pub struct Pending {
    pub commit: Commit,
    pub bytes: usize,
    /// When it was handed over.
    pub accepted: Instant,
    /// The life of the store in which it was handed over.
    pub life: u64,
    /// After this it is not begun any more.
    pub deadline: Instant,
    /// Whether a try of it may have been stored, or may yet be.
    pub maybe_done: bool,
    /// Whether it was refused where several nats-servers hold the stream. One that was cut off and leads no
    /// more refuses for a moment what the leader takes, so that is no proof.
    pub contested: bool,
    /// What stood in its way last.
    pub reason: String,
    /// The newest sequence of its token that nats-server has named when it refused it, else 0.
    pub told: u64,
    /// How often the server has refused it.
    pub refusals: u32,
    /// Since when there was no room for it.
    pub full_since: Option<Instant>,
    /// Where it goes if its outcome stays unknown.
    pub doubts: Arc<Doubts>,
    /// Gets the sequence of the message that holds the token or the definition.
    pub answer: oneshot::Sender<Result<Sequence, StorageError>>,
    /// Its share of the bytes that may wait.
    pub room: OwnedSemaphorePermit,
}

impl Pending {
    /// Whether it may be there, or come to be.
    pub fn is_unclear(&self) -> bool {
        self.maybe_done || self.contested
    }
}

pub fn answer(pending: Pending, outcome: Result<Sequence, StorageError>) {
    if matches!(outcome, Err(StorageError::OutcomeUnknown { .. })) {
        pending.doubts.push(pending.commit);
    }
    // Whoever asked may have gone away; the change stands all the same.
    drop(pending.answer.send(outcome));
    drop(pending.room);
}

/// Gives a change back that has time for another try, or answers it.
pub fn expire_or_keep(pending: Pending, now: Instant) -> Option<Pending> {
    if now < pending.deadline {
        return Some(pending);
    }
    let late = "it did not get its turn in time".to_owned();
    let reason = if pending.reason.is_empty() { late } else { pending.reason.clone() };
    let outcome = if pending.is_unclear() {
        StorageError::OutcomeUnknown { reason }
    } else if pending.full_since.is_some() {
        StorageError::Full { reason }
    } else {
        StorageError::Unavailable { reason }
    };
    answer(pending, Err(outcome));
    None
}

/// Notes that they are sent, behind what was acknowledged so far.
pub fn sent(group: &mut [Pending], acknowledged: u64) {
    for pending in group {
        pending.commit.sent_behind.get_or_insert(acknowledged);
    }
}

/// Notes that they were refused; `contested` if by one of several.
pub fn refused(group: &mut [Pending], contested: bool) {
    for pending in group {
        pending.refusals += 1;
        pending.contested |= contested;
    }
}

/// Notes what came of a try.
pub fn tried(mut group: Vec<Pending>, reason: &str, maybe_done: bool) -> Vec<Pending> {
    for pending in &mut group {
        pending.maybe_done |= maybe_done;
        reason.clone_into(&mut pending.reason);
    }
    group
}

/// Answers a change that cannot be done, for this reason.
pub fn not_done(pending: Pending, reason: String) {
    let outcome = if pending.is_unclear() {
        StorageError::OutcomeUnknown { reason }
    } else {
        StorageError::Unavailable { reason }
    };
    answer(pending, Err(outcome));
}

/// Answers a change that has no room.
pub fn no_room_for(pending: Pending, full: Option<String>) {
    let reason = full.unwrap_or_else(|| pending.reason.clone());
    let outcome = if pending.is_unclear() {
        StorageError::OutcomeUnknown { reason }
    } else {
        StorageError::Full { reason }
    };
    answer(pending, Err(outcome));
}
