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
use tokio::time::{Instant, sleep};
use tracing::{debug, error, warn};

use super::mend::{Mender, State};
use crate::storage::StorageError;
use crate::storage::nats::read::reader::RUN_MESSAGES_MAX;
use crate::storage::nats::read::stored::Stored;

/// Batches before which is looked at most; the oldest are forgotten first.
const WAITING_MAX: usize = 1_024;

/// Messages before a batch that are looked at one by one, until one is part of a change. Others are what
/// servers write of themselves, and where these have gone there is nothing.
const STEPS_MAX: usize = 16;

/// Before that, where servers wrote of themselves alone for long, so many are looked at in runs.
const BEFORE_MAX: u64 = 4_096;

/// Time for these runs.
const RUNS_WAIT_MAX: Duration = Duration::from_secs(10);

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

    /// Takes the first such range out.
    fn remove(&self, range: &RangeInclusive<u64>) {
        let mut waiting = self.waiting();
        let first = waiting.iter().position(|there| there == range);
        if let Some(first) = first {
            waiting.remove(first);
        }
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
                Ok(()) => self.remove(&range),
                Err(error) => {
                    debug!(%error, ?range, "what others wrote cannot be looked at yet");
                    // It does not hold up the others.
                    self.push(range.clone());
                    self.remove(&range);
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Mends the last change in this range, if it is cut.
async fn mend_last(mender: &Mender, range: RangeInclusive<u64>) -> Result<(), StorageError> {
    for sequence in range.clone().rev().take(STEPS_MAX) {
        if let Some(message) = mender.reader.at(sequence).await?
            && mend(mender, &message).await?
        {
            return Ok(());
        }
    }
    let Some(end) = range.end().checked_sub(STEPS_MAX as u64) else { return Ok(()) };
    let start = end.saturating_sub(BEFORE_MAX).max(*range.start());
    for message in existing(mender, start..=end).await?.iter().rev() {
        if mend(mender, message).await? {
            return Ok(());
        }
    }
    Ok(())
}

/// The messages that are still there of these, in their order. Of servers' records each newer one has
/// removed the one before, so there are few.
async fn existing(
    mender: &Mender,
    range: RangeInclusive<u64>,
) -> Result<VecDeque<Stored>, StorageError> {
    let until = Instant::now() + RUNS_WAIT_MAX;
    let (mut next, mut there) = (*range.start(), VecDeque::new());
    while next <= *range.end() {
        let run = mender.reader.events(">", next, RUN_MESSAGES_MAX, until).await?;
        let Some(last) = run.messages.last().map(|message| message.sequence) else { break };
        for message in run.messages.into_iter().filter(|message| range.contains(&message.sequence))
        {
            // The last change is among the last messages.
            if there.len() == STEPS_MAX {
                there.pop_front();
            }
            there.push_back(message);
        }
        if !run.more {
            break;
        }
        next = last + 1;
    }
    Ok(there)
}

/// Mends the change of a message, if it is cut. Whether it is part of one.
async fn mend(mender: &Mender, message: &Stored) -> Result<bool, StorageError> {
    let (subject, sequence) = (&message.subject, message.sequence);
    match mender.mend_change_of(message).await {
        Ok(State::NoChange) => return Ok(false),
        Ok(State::Whole) => {}
        Ok(State::Mended) => {
            warn!(subject, sequence, "the rest of this change was cut off; it is written now");
        }
        // Nothing is mended by guessing.
        Err(error @ StorageError::Corrupt { .. }) => {
            error!(subject, sequence, %error, "whether this change is whole cannot be told");
        }
        Err(error) => return Err(error),
    }
    Ok(true)
}
