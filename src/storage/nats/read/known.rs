//! What this process knows of the newest messages of tokens that it has read or written lately.
//!
//! A commit is checked against the sequence of the token's newest message. That is the token's own,
//! or for about a second that of its departure; which one it is now, only time can tell.
//!
//! Tokens that were written here are kept, too, so that their next move can be decided without a
//! read. Other servers may have moved them since: then the check refuses the commit, and the move is
//! decided anew on a fresh read. A refused check costs all changes of its batch a second try, so
//! where it happens often, nothing is decided on what is kept for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::time::Instant;
use uuid::Uuid;

use super::epoch::Epoch;
use super::stored::Stored;
use crate::domain::{Token, WorkflowId};
use crate::storage::cache;

/// Tokens of which something is known, in each of two generations; about 200 bytes each. What was
/// read for a move must be there until that is sent, so the newest are never thrown out.
const GENERATION_MAX: usize = 25_000;

/// Bytes of tokens that are kept, about.
const KEPT_BYTES_MAX: u64 = 64 << 20;

/// Bytes of a large one of them.
const TOKEN_BYTES_MAX: u64 = 4 << 20;

/// Refused guesses among so many after which nothing is guessed for a while: first a second, then
/// twice as long each time, up to a minute.
const REFUSED_MAX: u32 = 2;
const GUESSES: u32 = 200;
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Where the stream has copies, a refusal alone proves nothing: what was written since this server's last
/// acknowledgement is looked through. So nothing is guessed once that is longer ago than this, as others
/// may have moved the token often since.
const WRITES_WITHIN: Duration = Duration::from_secs(1);

/// A departure is there for its TTL of a second. Up to this age that is sure, measured from when its
/// batch was sent.
const THERE_FOR: Duration = Duration::from_millis(900);

/// nats-server removes it 1.0 to 1.33 s after it was stored (300 times measured on 2.14.4 and
/// 2.15.1). After this age, measured from its acknowledgement, it counts as gone.
const GONE_AFTER: Duration = Duration::from_millis(1_600);

/// Ids of earlier events that a token carries beside that of its newest one.
pub const EARLIER_EVENTS_MAX: usize = 2;

/// A token as the stream holds it now.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The message with the token.
    pub state: Stored,
    /// The departure of the move that brought it there, while that lives: then this is the token's
    /// newest message.
    pub departure: Option<Departure>,
}

/// The departure of a token's newest move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Departure {
    pub sequence: u64,
    /// When nats-server stored it.
    pub time: DateTime<Utc>,
}

impl Standing {
    /// The sequences of its message and of its newest one.
    pub fn seen(&self) -> (u64, u64) {
        (self.state.sequence, self.newest())
    }

    /// The sequence of the token's newest message, which a commit is checked against.
    pub fn newest(&self) -> u64 {
        self.departure.map_or(self.state.sequence, |departure| departure.sequence)
    }
}

/// The newest messages of one token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The workflow that it is of: another one can have a token of the same id once this one is gone.
    pub workflow: WorkflowId,
    /// The sequence of the message that holds the token.
    pub state: u64,
    /// The ids of its newest events, the newest first.
    pub events: Vec<Uuid>,
    /// The departure of its newest move, if it left a place.
    pub departure: Option<Leaving>,
}

/// A departure, and between which moments it was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaving {
    pub sequence: u64,
    pub not_before: Instant,
    pub not_after: Instant,
}

/// What a commit is to be checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// This sequence.
    Sequence(u64),
    /// The stream must be asked first.
    Ask,
}

impl Known {
    /// What was just read.
    pub fn read(workflow: &WorkflowId, standing: &Standing, now: Instant) -> Self {
        let departure = standing.departure.map(|departure| {
            // The clocks may differ; then a guess is wrong, and the check says so.
            let age = (Utc::now() - departure.time).to_std().unwrap_or_default();
            let stored = now.checked_sub(age.min(GONE_AFTER)).unwrap_or(now);
            Leaving { sequence: departure.sequence, not_before: stored, not_after: now }
        });
        let events = standing.state.marks.events.clone();
        Self { workflow: workflow.clone(), state: standing.state.sequence, events, departure }
    }

    /// What the check of a commit must expect that is decided on the message `state`.
    fn expected(&self, state: u64, now: Instant) -> Expected {
        if self.state != state {
            return Expected::Ask;
        }
        match self.departure {
            None => Expected::Sequence(state),
            Some(leaving) if now < leaving.not_before + THERE_FOR => {
                Expected::Sequence(leaving.sequence)
            }
            Some(leaving) if now >= leaving.not_after + GONE_AFTER => Expected::Sequence(state),
            Some(_) => Expected::Ask,
        }
    }
}

/// A token as it was written here, with its message.
#[derive(Debug, Clone)]
struct Kept {
    epoch: u64,
    token: Arc<Token>,
    state: u64,
    /// Bytes that it takes, about.
    memory: u64,
}

#[derive(Debug, Clone)]
struct Bytes;

impl Weighter<Uuid, Kept> for Bytes {
    fn weight(&self, _: &Uuid, kept: &Kept) -> u64 {
        kept.memory
    }
}

/// What is known of the tokens that were read or written last.
#[derive(Debug, Default)]
struct Generations {
    epoch: u64,
    newer: HashMap<Uuid, Known>,
    older: HashMap<Uuid, Known>,
}

impl Generations {
    fn get(&self, token: Uuid) -> Option<&Known> {
        self.newer.get(&token).or_else(|| self.older.get(&token))
    }

    fn insert(&mut self, token: Uuid, known: Known) {
        if self.newer.len() >= GENERATION_MAX {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(token, known);
    }
}

/// What is known of many tokens.
pub struct KnownTokens {
    epoch: Arc<Epoch>,
    known: Mutex<Generations>,
    /// Which of them are kept, use decides.
    kept: Cache<Uuid, Kept, Bytes>,
    guesses: Mutex<Guesses>,
}

/// How well it went to decide on what is kept.
#[derive(Debug, Default)]
struct Guesses {
    made: u32,
    refused: u32,
    pause: Duration,
    paused_until: Option<Instant>,
    /// When something was written here last.
    written_at: Option<Instant>,
}

impl Guesses {
    /// Whether one may be made now.
    fn make(&mut self, now: Instant, has_copies: bool) -> bool {
        let writes = |at| now.saturating_duration_since(at) < WRITES_WITHIN;
        if has_copies && !self.written_at.is_some_and(writes) {
            return false;
        }
        if self.paused_until.is_some_and(|until| now < until) {
            return false;
        }
        self.paused_until = None;
        self.made += 1;
        if self.made >= GUESSES {
            if self.refused == 0 {
                self.pause = Duration::ZERO;
            }
            (self.made, self.refused) = (0, 0);
        }
        true
    }

    fn refuse(&mut self, now: Instant) {
        self.refused += 1;
        if self.refused >= REFUSED_MAX {
            self.pause = (2 * self.pause).clamp(PAUSE_MIN, PAUSE_MAX);
            self.paused_until = Some(now + self.pause);
            (self.made, self.refused) = (0, 0);
        }
    }
}

impl KnownTokens {
    pub fn new(epoch: Arc<Epoch>) -> Self {
        let items = usize::try_from(KEPT_BYTES_MAX / 4_096).unwrap_or(1);
        let kept = cache::bounded(items, KEPT_BYTES_MAX, TOKEN_BYTES_MAX, Bytes);
        Self { epoch, known: Mutex::default(), kept, guesses: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Generations> {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = self.epoch.now();
        if all.epoch != epoch {
            *all = Generations { epoch, ..Generations::default() };
        }
        all
    }

    fn guesses(&self) -> MutexGuard<'_, Guesses> {
        self.guesses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of what is remembered of another life.
    pub fn forget(&self) {
        drop(self.known());
        self.kept.clear();
    }

    /// Notes what was read or written since `begun`, unless something newer is known.
    pub fn record(&self, token: Uuid, known: Known, begun: u64) {
        let mut all = self.known();
        if all.epoch == begun && all.get(token).is_none_or(|there| there.state <= known.state) {
            all.insert(token, known);
        }
    }

    /// Keeps a token that was written since `begun`, in the message `state`.
    pub fn keep(&self, state: u64, token: &Arc<Token>, begun: u64) {
        let is_older = |kept: Kept| kept.epoch < begun || kept.state < state;
        if self.epoch.now() == begun && self.kept.get(&token.id).is_none_or(is_older) {
            let (epoch, memory) = (begun, token.memory());
            self.kept.insert(token.id, Kept { epoch, token: Arc::clone(token), state, memory });
            self.guesses().written_at = Some(Instant::now());
        }
    }

    /// A token as it was written here last, with its message, if its next move may be decided on that.
    /// Where the stream `has_copies`, only while this server writes.
    pub fn kept(&self, token: Uuid, now: Instant, has_copies: bool) -> Option<(Arc<Token>, u64)> {
        let kept = self.kept.get(&token).filter(|kept| kept.epoch == self.epoch.now())?;
        // Something newer was read since.
        if self.known().get(token).is_some_and(|known| known.state > kept.state) {
            return None;
        }
        self.guesses().make(now, has_copies).then_some((kept.token, kept.state))
    }

    /// Notes that a commit on the message `state` of a token was refused, as others have moved it.
    pub fn lost(&self, token: Uuid, state: u64) {
        if self.kept.get(&token).is_some_and(|kept| kept.state == state) {
            self.kept.remove(&token);
            self.guesses().refuse(Instant::now());
        }
    }

    /// Forgets a token that is not there any more.
    pub fn gone(&self, token: Uuid) {
        let mut all = self.known();
        all.newer.remove(&token);
        all.older.remove(&token);
        drop(all);
        self.kept.remove(&token);
    }

    /// The sequence of a token's message as it was read or written here last, in this workflow, if that
    /// is given.
    pub fn state(&self, token: Uuid, workflow: Option<&WorkflowId>) -> Option<u64> {
        let all = self.known();
        let known = all.get(token)?;
        workflow.is_none_or(|workflow| known.workflow == *workflow).then_some(known.state)
    }

    /// The ids of the newest events of a token whose message is `state`, and what a commit of it must
    /// expect.
    pub fn expected(&self, token: Uuid, state: u64, now: Instant) -> Option<(Vec<Uuid>, u64)> {
        let all = self.known();
        let known = all.get(token)?;
        match known.expected(state, now) {
            Expected::Sequence(sequence) => Some((known.events.clone(), sequence)),
            Expected::Ask => None,
        }
    }
}

/// The events that a token's next message names: its own first.
pub fn events_after(own: Uuid, earlier: &[Uuid]) -> Vec<Uuid> {
    std::iter::once(own).chain(earlier.iter().copied().take(EARLIER_EVENTS_MAX)).collect()
}

impl Stored {
    /// The id of the event that this token or definition was written with.
    pub fn event_id(&self) -> Option<Uuid> {
        self.marks.events.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_commit_expects_depends_on_the_age_of_the_departure() {
        let begun = Instant::now();
        let after = |millis| begun + Duration::from_millis(millis);
        let leaving = Leaving { sequence: 12, not_before: begun, not_after: after(100) };
        let departure = Some(leaving);
        let workflow: WorkflowId = "w".parse().unwrap();
        let with = Known { workflow, state: 10, events: vec![], departure };
        let without = Known { departure: None, ..with.clone() };
        for (known, state, now, expected) in [
            (&with, 10, 0, Expected::Sequence(12)),
            (&with, 10, 899, Expected::Sequence(12)),
            (&with, 10, 900, Expected::Ask),
            (&with, 10, 1_699, Expected::Ask),
            (&with, 10, 1_700, Expected::Sequence(10)),
            (&without, 10, 0, Expected::Sequence(10)),
            // Decided on another state than the known one.
            (&with, 8, 0, Expected::Ask),
            (&without, 11, 0, Expected::Ask),
        ] {
            assert_eq!(known.expected(state, after(now)), expected, "{known:?} {state} {now}");
        }
    }

    #[test]
    fn older_news_replaces_nothing() {
        let tokens = KnownTokens::new(Arc::default());
        let (id, now) = (Uuid::from_u128(1), Instant::now());
        let workflow: WorkflowId = "w".parse().unwrap();
        let known =
            |state| Known { workflow: workflow.clone(), state, events: vec![], departure: None };
        tokens.record(id, known(8), 0);
        tokens.record(id, known(5), 0);
        tokens.record(id, known(9), 1);
        assert_eq!(tokens.expected(id, 8, now), Some((vec![], 8)));
        assert_eq!(tokens.expected(id, 5, now), None);
        assert_eq!(tokens.expected(Uuid::from_u128(2), 8, now), None);
    }

    #[test]
    fn where_guesses_are_refused_none_is_made_for_a_while() {
        let (mut guesses, begun) = (Guesses::default(), Instant::now());
        let after = |millis| begun + Duration::from_millis(millis);
        assert!(guesses.make(after(0), false));
        guesses.refuse(after(0));
        assert!(guesses.make(after(1), false), "one may be wrong");
        guesses.refuse(after(1));
        assert!(!guesses.make(after(1_000), false), "two among few are too many");
        assert!(guesses.make(after(1_002), false));
        (0..2).for_each(|_| guesses.refuse(after(1_002)));
        assert!(
            !guesses.make(after(3_001), false) && guesses.make(after(3_003), false),
            "twice as long"
        );
        for _ in 0..10 {
            (0..2).for_each(|_| guesses.refuse(after(5_000)));
        }
        assert!(
            !guesses.make(after(64_999), false) && guesses.make(after(65_001), false),
            "a minute at most"
        );
        for _ in 0..2 * GUESSES {
            assert!(guesses.make(after(66_000), false));
        }
        (0..2).for_each(|_| guesses.refuse(after(66_000)));
        assert!(guesses.make(after(67_001), false), "what went well for long begins anew");
    }

    #[test]
    fn where_there_are_copies_guesses_are_made_only_by_who_writes() {
        let (mut guesses, begun) = (Guesses::default(), Instant::now());
        assert!(
            guesses.make(begun, false) && !guesses.make(begun, true),
            "nothing was written yet"
        );
        guesses.written_at = Some(begun);
        assert!(guesses.make(begun, true) && !guesses.make(begun + WRITES_WITHIN, true));
    }
}
