//! What others wrote right before this server's batches.
//!
//! A change that was cut is mended by its sender, or after a restart of nats-server by whoever looks at the
//! end of the stream. Where the sender dies and nats-server does not, as a limit has cut the change, none
//! of the two happens. But the cut change is the last one that its sender wrote, so somebody else's batch
//! comes right after it: that server looks at it. And no move relies on a token that others have written
//! since this server's last batch, or that is still to be looked at, before it is seen whole.
//!
//! Where that batch was not acknowledged, its place is not known, or only later. Then every batch is looked
//! at that was written meanwhile.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::{debug, error, warn};
use uuid::Uuid;

use super::mend::{Mender, State};
use crate::storage::StorageError;
use crate::storage::nats::read::reader::RUN_MESSAGES_MAX;
use crate::storage::nats::read::stored::Stored;

/// Parts of the stream that wait at most; the oldest are forgotten first.
const WAITING_MAX: usize = 1_024;

/// Messages before a batch that are looked at one by one, until one is part of a change. Others are what
/// servers write of themselves, and where these have gone there is nothing.
const STEPS_MAX: usize = 16;

/// Before that, where servers wrote of themselves alone for long, so many are looked at in runs.
const BEFORE_MAX: u64 = 4_096;

/// Sequences of a window: where every batch is looked at, that is done window by window.
const WINDOW: u64 = 1_024;

/// Time for the runs of one part.
const RUNS_WAIT_MAX: Duration = Duration::from_secs(10);

/// Pause before it is looked at again where that was not possible.
const PAUSE: Duration = Duration::from_millis(500);

/// A part of the stream, and what of it is still to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// What others wrote before a batch of this server: the last change there.
    Before(RangeInclusive<u64>),
    /// Where this server may have written, too, and does not know where: the last change of each batch. It
    /// is the window with this number.
    Window(u64),
}

impl Part {
    fn range(&self) -> RangeInclusive<u64> {
        match self {
            Part::Before(range) => range.clone(),
            Part::Window(number) => number * WINDOW..=number * WINDOW + WINDOW - 1,
        }
    }
}

/// The parts of the stream that are still to be looked at.
#[derive(Default)]
pub struct Preceding {
    parts: Mutex<Parts>,
    added: Notify,
}

#[derive(Default)]
struct Parts {
    waiting: VecDeque<Part>,
    /// The one that is looked at now.
    current: Option<Part>,
}

impl Parts {
    fn add(&mut self, part: Part) {
        if self.waiting.contains(&part) {
            return;
        }
        if self.waiting.len() == WAITING_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back(part);
    }
}

impl Preceding {
    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what others wrote right before a batch of this server.
    pub fn push(&self, range: RangeInclusive<u64>) {
        self.parts().add(Part::Before(range));
        self.added.notify_one();
    }

    /// Adds what was written while this server did not hear what became of its own batches: one of them may
    /// stand right behind a cut change of another server, and is not the last that stands here. Of a long
    /// range only the end is looked at.
    pub fn push_all(&self, range: RangeInclusive<u64>) {
        if range.is_empty() {
            return;
        }
        let start = range.end().saturating_sub(BEFORE_MAX).max(*range.start());
        let windows = start / WINDOW..=range.end() / WINDOW;
        let mut parts = self.parts();
        windows.rev().for_each(|window| parts.add(Part::Window(window)));
        drop(parts);
        self.added.notify_one();
    }

    /// Adds what stands before this sequence, where a change of this server was found.
    pub fn push_before(&self, sequence: u64) {
        self.push_all(1..=sequence);
    }

    /// Forgets everything: it is another stream.
    pub fn forget(&self) {
        self.parts().waiting.clear();
    }

    /// Whether this sequence is still to be looked at.
    pub fn holds(&self, sequence: u64) -> bool {
        let parts = self.parts();
        let mut all = parts.waiting.iter().chain(&parts.current);
        all.any(|part| part.range().contains(&sequence))
    }

    fn take(&self) -> Option<Part> {
        let mut parts = self.parts();
        parts.current = parts.waiting.pop_front();
        parts.current.clone()
    }

    /// Looks at them, for ever.
    pub async fn run(self: Arc<Self>, mender: Arc<Mender>) {
        loop {
            let Some(part) = self.take() else {
                self.added.notified().await;
                continue;
            };
            let looked = match &part {
                Part::Before(range) => mend_last(&mender, range.clone()).await,
                Part::Window(_) => mend_each(&mender, part.range()).await,
            };
            if let Err(error) = looked {
                debug!(%error, ?part, "what others wrote cannot be looked at yet");
                // It does not hold up the others.
                self.parts().add(part);
                sleep(PAUSE).await;
            }
        }
    }
}

/// Mends the last change of each batch in this range, if it is cut.
async fn mend_each(mender: &Mender, range: RangeInclusive<u64>) -> Result<(), StorageError> {
    for sequence in last_of_each(mender, range).await?.into_iter().rev() {
        if let Some(message) = mender.reader.at(sequence).await? {
            mend(mender, &message).await?;
        }
    }
    Ok(())
}

/// The last message that is there of each batch in this range, in their order, unless it shows that its
/// change is whole. One that is of no batch stands for itself.
async fn last_of_each(
    mender: &Mender,
    range: RangeInclusive<u64>,
) -> Result<Vec<u64>, StorageError> {
    let mut ends: Vec<(Option<Uuid>, u64, bool)> = Vec::new();
    each(mender, range, |message| {
        let (batch, is_departure) = (message.marks.batch, message.is_departure());
        match ends.last_mut() {
            Some(last) if batch.is_some() && last.0 == batch => {
                (last.1, last.2) = (message.sequence, is_departure);
            }
            _ => ends.push((batch, message.sequence, is_departure)),
        }
    })
    .await?;
    let unsure = ends.into_iter().filter(|(_, _, is_departure)| !is_departure);
    Ok(unsure.map(|(_, sequence, _)| sequence).collect())
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

/// The last messages that are still there of these, in their order. Of servers' records each newer one has
/// removed the one before, so there are few, and the last change is among them.
async fn existing(
    mender: &Mender,
    range: RangeInclusive<u64>,
) -> Result<VecDeque<Stored>, StorageError> {
    let mut there = VecDeque::new();
    each(mender, range, |message| {
        if there.len() == STEPS_MAX {
            there.pop_front();
        }
        there.push_back(message);
    })
    .await?;
    Ok(there)
}

/// Reads the messages that are still there of these, in their order.
async fn each(
    mender: &Mender,
    range: RangeInclusive<u64>,
    mut take: impl FnMut(Stored),
) -> Result<(), StorageError> {
    let (until, mut next) = (Instant::now() + RUNS_WAIT_MAX, *range.start());
    while next <= *range.end() {
        let run = mender.reader.events(">", next, RUN_MESSAGES_MAX, until).await?;
        let Some(last) = run.messages.last().map(|message| message.sequence) else { break };
        run.messages.into_iter().filter(|it| range.contains(&it.sequence)).for_each(&mut take);
        if !run.more {
            break;
        }
        next = last + 1;
    }
    Ok(())
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
