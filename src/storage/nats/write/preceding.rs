//! What others wrote before this server's batches.
//!
//! A change that was cut is mended by its sender, or after a restart of nats-server by whoever looks at the
//! end of the stream. Where the sender dies and nats-server does not, as a limit has cut the change, none
//! of the two happens. But the cut change is the last one that its sender wrote, so somebody else's batch
//! comes right after it. So each server looks at the end of each batch that others have written between
//! two of its own, whether it heard what became of those or not: one read each, as a batch says how long it
//! is, and mostly ends in a departure, which is the last message of a change.
//!
//! No move relies on a token that was written there before that is done, unless it sees itself that the
//! token is whole: that somebody else looks, too, does not say that he has.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::{debug, error, warn};

use super::mend::{Mender, State};
use crate::storage::StorageError;
use crate::storage::nats::read::anchor::Whole;
use crate::storage::nats::read::reader::RUN_MESSAGES_MAX;
use crate::storage::nats::read::stored::Stored;

/// A range of sequences.
type Range = RangeInclusive<u64>;

/// Ranges that wait; from then on new ones are joined with the newest.
const WAITING_MAX: usize = 256;

/// Ranges that are looked at at once, and steps of one before it is the turn of others.
const AT_ONCE: usize = 8;
const STEPS_MAX: usize = 64;

/// Sequences of a range that are looked at, from its end. What stands before them others have seen long ago.
const BEFORE_MAX: u64 = 4_096;

/// Steps over messages that are gone, after which a stretch of so many sequences is read at once.
const GONE_MAX: usize = 4;
const STRETCH: u64 = 256;

/// Time for one stretch. In a cluster that is one message after the other.
const STRETCH_WAIT_MAX: Duration = Duration::from_secs(30);

/// Pause before it is looked at again where that was not possible.
const PAUSE: Duration = Duration::from_millis(500);

/// The parts of the stream that are still to be looked at.
#[derive(Default)]
pub struct Preceding {
    ranges: Mutex<Ranges>,
    added: Notify,
}

#[derive(Debug, Default)]
struct Ranges {
    waiting: VecDeque<Range>,
    /// Those that are looked at now.
    current: Vec<Range>,
    /// Where all is whole that is not held here, in which life of the store.
    known: (u64, Whole),
}

impl Ranges {
    /// Adds a range, as part of another one where they touch.
    fn add(&mut self, range: Range) {
        let touches = |there: &&mut Range| {
            *there.start() <= range.end() + 1 && *range.start() <= there.end() + 1
        };
        let is_full = self.waiting.len() >= WAITING_MAX;
        let there = match self.waiting.iter_mut().find(touches) {
            None if is_full => self.waiting.back_mut(),
            there => there,
        };
        match there {
            Some(there) => {
                let start = *there.start().min(range.start());
                *there = start..=*there.end().max(range.end());
            }
            None => self.waiting.push_back(range),
        }
    }
}

impl Preceding {
    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what others may have written.
    pub fn push(&self, range: Range) {
        if range.is_empty() {
            return;
        }
        let start = range.end().saturating_sub(BEFORE_MAX - 1).max(*range.start());
        self.ranges().add(start..=*range.end());
        self.added.notify_one();
    }

    /// Adds what stands before this sequence, where something of this server was found.
    pub fn push_before(&self, sequence: u64) {
        self.push(1..=sequence);
    }

    /// Begins anew in another life of the store, of which this is known to be whole.
    pub fn begin(&self, life: u64, whole: Whole) {
        let mut ranges = self.ranges();
        ranges.waiting.clear();
        ranges.known = (life, whole);
    }

    /// Adds what others may have written since this server knew all to be whole; what comes behind it up to
    /// `known` is.
    pub fn push_new(&self, range: Range, known: u64, life: u64) {
        let (of, before) = self.ranges().known;
        let goes_on = of == life && before.to > 0;
        let begin = if goes_on { before.to + 1 } else { 1 };
        let range = begin.max(*range.start())..=*range.end();
        let is_all = (range.end() + 1).saturating_sub(*range.start()) <= BEFORE_MAX;
        let looked_from = range.end().saturating_sub(BEFORE_MAX - 1).max(1);
        self.push(range);
        let from = if is_all && goes_on { before.from } else { looked_from };
        self.ranges().known = (life, Whole { from, to: known });
    }

    /// Whether this sequence is still to be looked at.
    pub fn holds(&self, sequence: u64) -> bool {
        let ranges = self.ranges();
        ranges.waiting.iter().chain(&ranges.current).any(|range| range.contains(&sequence))
    }

    /// Where all is whole, in which life of the store.
    pub fn whole(&self) -> (u64, Whole) {
        let ranges = self.ranges();
        let held = ranges.waiting.iter().chain(&ranges.current).map(|range| range.start() - 1);
        let (life, known) = ranges.known;
        let to = held.min().map_or(known.to, |before| known.to.min(before));
        (life, Whole { to, ..known })
    }

    /// Takes those that are next.
    fn take(&self) -> Vec<Range> {
        let mut ranges = self.ranges();
        let count = ranges.waiting.len().min(AT_ONCE);
        ranges.current = ranges.waiting.drain(..count).collect();
        ranges.current.clone()
    }

    /// Puts back what is left of those that were taken.
    fn put_back(&self, rest: impl Iterator<Item = Range>) {
        let mut ranges = self.ranges();
        rest.for_each(|range| ranges.add(range));
        ranges.current.clear();
    }

    /// Looks at them, for ever.
    pub async fn run(self: Arc<Self>, mender: Arc<Mender>) {
        loop {
            let ranges = self.take();
            if ranges.is_empty() {
                self.added.notified().await;
                continue;
            }
            let looks = ranges.into_iter().map(|range| look_back(&mender, range));
            let (rest, worked): (Vec<_>, Vec<_>) = join_all(looks).await.into_iter().unzip();
            self.put_back(rest.into_iter().flatten());
            mender.reader.set_whole(self.whole());
            if worked.contains(&false) {
                sleep(PAUSE).await;
            }
        }
    }
}

/// Looks at the last change of each batch in a range, from its end, for a number of steps. Gives what is
/// left of it, and whether it can go on at once.
async fn look_back(mender: &Mender, range: Range) -> (Option<Range>, bool) {
    let (start, mut next, mut gone) = (*range.start(), *range.end(), 0);
    // Whether a stretch holds something unreadable: which message that is, single steps tell.
    let mut alone = false;
    for _ in 0..STEPS_MAX {
        if next < start {
            return (None, true);
        }
        let is_single = gone < GONE_MAX || alone;
        let step = if is_single {
            step_back(mender, next).await
        } else {
            look_at_stretch(mender, start.max(next.saturating_sub(STRETCH - 1))..=next).await
        };
        match step {
            Ok(Step::Gone) => (next, gone) = (next - 1, gone + 1),
            Ok(Step::LookedFrom(first)) => (next, gone) = (first - 1, 0),
            Err(StorageError::Corrupt { .. }) if !is_single => alone = true,
            // It does not become readable.
            Err(error @ StorageError::Corrupt { .. }) => {
                error!(sequence = next, %error, "whether what others wrote is whole cannot be told");
                next -= 1;
            }
            Err(error) => {
                debug!(%error, ?range, "what others wrote cannot be looked at yet");
                return (Some(start..=next), false);
            }
        }
    }
    ((start <= next).then_some(start..=next), true)
}

/// What a step has found.
enum Step {
    /// There is no message with this sequence any more.
    Gone,
    /// A batch, or a stretch, that begins with this one, and is looked at.
    LookedFrom(u64),
}

/// Looks at the batch that this message is a part of, where nothing of it comes after.
async fn step_back(mender: &Mender, sequence: u64) -> Result<Step, StorageError> {
    let Some(message) = mender.reader.at(sequence).await? else { return Ok(Step::Gone) };
    if !message.is_departure() {
        mend(mender, &message).await?;
    }
    Ok(Step::LookedFrom(message.first_in_batch()))
}

/// Looks at the batches of a stretch in which many messages are gone.
async fn look_at_stretch(mender: &Mender, range: Range) -> Result<Step, StorageError> {
    let (until, mut next) = (Instant::now() + STRETCH_WAIT_MAX, *range.start());
    // The last message of each batch, with the first one of it.
    let mut ends: Vec<(u64, u64, bool)> = Vec::new();
    while next <= *range.end() {
        let run = mender.reader.events(">", next, RUN_MESSAGES_MAX.min(STRETCH as usize), until);
        let run = run.await?;
        let Some(last) = run.messages.last().map(|message| message.sequence) else { break };
        for message in run.messages.iter().filter(|message| range.contains(&message.sequence)) {
            let end = (message.sequence, message.first_in_batch(), message.is_departure());
            match ends.last_mut() {
                Some(there) if there.1 == end.1 => *there = end,
                _ => ends.push(end),
            }
        }
        if !run.more {
            break;
        }
        next = last + 1;
    }
    for (sequence, ..) in ends.iter().rev().filter(|(.., is_departure)| !is_departure) {
        if let Some(message) = mender.reader.at(*sequence).await? {
            mend(mender, &message).await?;
        }
    }
    Ok(Step::LookedFrom(*range.start()))
}

/// Mends the change of a message, if it is cut.
async fn mend(mender: &Mender, message: &Stored) -> Result<(), StorageError> {
    let (subject, sequence) = (&message.subject, message.sequence);
    match mender.mend_change_of(message).await {
        Ok(State::NoChange | State::Whole) => {}
        Ok(State::Mended) => {
            warn!(subject, sequence, "the rest of this change was cut off; it is written now");
        }
        // Nothing is mended by guessing.
        Err(error @ StorageError::Corrupt { .. }) => {
            error!(subject, sequence, %error, "whether this change is whole cannot be told");
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_to_be_whole_ends_before_what_is_still_to_be_looked_at() {
        let preceding = Preceding::default();
        let whole = |from, to| (3, Whole { from, to });
        // A start, in a stream that is longer than what is looked at.
        preceding.push_new(1..=10_000, 10_000, 3);
        assert_eq!(preceding.whole(), whole(5_905, 5_904), "nothing yet");
        let looked = preceding.take();
        assert_eq!(preceding.whole(), whole(5_905, 5_904), "it is being looked at");
        assert_eq!(looked, [5_905..=10_000]);
        preceding.put_back([5_905..=7_000].into_iter());
        assert_eq!(preceding.whole(), whole(5_905, 5_904), "it is looked at from its end");
        preceding.take();
        preceding.put_back([].into_iter());
        assert_eq!(preceding.whole(), whole(5_905, 10_000));
        // Nothing, and something, of others between two batches of this server.
        preceding.push_new(Range::new(10_001, 10_000), 10_004, 3);
        assert_eq!(preceding.whole(), whole(5_905, 10_004));
        preceding.push_new(10_005..=10_008, 10_012, 3);
        assert_eq!(preceding.whole(), whole(5_905, 10_004));
        preceding.take();
        preceding.put_back([].into_iter());
        assert_eq!(preceding.whole(), whole(5_905, 10_012));
        // More than is looked at: what stands before that is not claimed.
        preceding.push_new(10_013..=20_000, 20_004, 3);
        preceding.take();
        preceding.put_back([].into_iter());
        assert_eq!(preceding.whole(), whole(15_905, 20_004));
        // Another life, in which nothing is known.
        preceding.begin(4, Whole::default());
        assert_eq!(preceding.whole(), (4, Whole::default()));
        preceding.push_new(1..=30, 30, 4);
        assert_eq!(preceding.whole(), (4, Whole { from: 1, to: 0 }));
        preceding.take();
        preceding.put_back([].into_iter());
        assert_eq!(preceding.whole(), (4, Whole { from: 1, to: 30 }));
        // One of which something is known, and is not looked at again.
        preceding.begin(5, Whole { from: 3, to: 610 });
        preceding.push_new(1..=640, 640, 5);
        assert_eq!(preceding.take(), [611..=640]);
        assert_eq!(preceding.whole(), (5, Whole { from: 3, to: 610 }));
        preceding.put_back([].into_iter());
        assert_eq!(preceding.whole(), (5, Whole { from: 3, to: 640 }));
        preceding.begin(6, Whole { from: 3, to: 610 });
        preceding.push_new(1..=9_000, 9_000, 6);
        assert_eq!(preceding.take(), [4_905..=9_000]);
        preceding.put_back([].into_iter());
        assert_eq!(
            preceding.whole(),
            (6, Whole { from: 4_905, to: 9_000 }),
            "a gap is between them"
        );
        assert!(Whole { from: 1, to: 30 }.covers(30) && !Whole { from: 1, to: 0 }.covers(0));
    }
}
