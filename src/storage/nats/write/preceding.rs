//! What others wrote right before this server's batches.
//!
//! A change that was cut is mended by its sender, or after a restart of nats-server by whoever looks at the
//! end of the stream. Where the sender dies and nats-server does not, as a limit has cut the change, none
//! of the two happens. But the cut change is the last one that its sender wrote, so somebody else's batch
//! comes right after it: that server looks at it. And no move relies on a token that others have written
//! since this server's last batch, or that is still to be looked at, before it is seen whole.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::{debug, error, warn};

use super::mend::{Mender, State};
use crate::storage::StorageError;

/// Batches before which is looked at most; the oldest are forgotten first.
const WAITING_MAX: usize = 1_024;

/// Messages before a batch that are looked at, until one is part of a change. Others are what servers
/// write of themselves, and where these have gone there is nothing.
const STEPS_MAX: usize = 16;

/// Pause before it is looked at again where that was not possible.
const PAUSE: Duration = Duration::from_millis(500);

/// The ranges of sequences that others wrote before batches of this server, of which the last change is
/// still to be looked at.
#[derive(Default)]
pub struct Preceding {
    waiting: Mutex<VecDeque<RangeInclusive<u64>>>,
    added: Notify,
}

impl Preceding {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<RangeInclusive<u64>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a range.
    pub fn push(&self, range: RangeInclusive<u64>) {
        let mut waiting = self.waiting();
        if waiting.len() == WAITING_MAX {
            waiting.pop_front();
        }
        waiting.push_back(range);
        self.added.notify_one();
    }

    /// Whether this sequence is in one of them.
    pub fn holds(&self, sequence: u64) -> bool {
        self.waiting().iter().any(|range| range.contains(&sequence))
    }

    /// Looks at them, for ever.
    pub async fn run(self: Arc<Self>, mender: Arc<Mender>) {
        loop {
            let Some(range) = self.waiting().front().cloned() else {
                self.added.notified().await;
                continue;
            };
            match mend_last(&mender, range.clone()).await {
                Ok(()) => {
                    let mut waiting = self.waiting();
                    if waiting.front() == Some(&range) {
                        waiting.pop_front();
                    }
                }
                Err(error) => {
                    debug!(%error, ?range, "what others wrote cannot be looked at yet");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Mends the last change in this range, if it is cut.
async fn mend_last(mender: &Mender, range: RangeInclusive<u64>) -> Result<(), StorageError> {
    for sequence in range.rev().take(STEPS_MAX) {
        let Some(message) = mender.reader.at(sequence).await? else { continue };
        match mender.mend_change_of(&message).await {
            Ok(State::NoChange) => continue,
            Ok(State::Whole) => {}
            Ok(State::Mended) => {
                let subject = message.subject;
                warn!(subject, sequence, "the rest of this change was cut off; it is written now");
            }
            // Nothing is mended by guessing.
            Err(error @ StorageError::Corrupt { .. }) => {
                error!(sequence, %error, "whether this change is whole cannot be told");
            }
            Err(error) => return Err(error),
        }
        return Ok(());
    }
    Ok(())
}
