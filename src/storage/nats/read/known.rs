//! What this process knows of the newest messages of tokens that it has read or written lately.
//!
//! A commit is checked against the sequence of the token's newest message. That is the token's own,
//! or for about a second that of its departure; which one it is now, only time can tell.

use std::time::Duration;

use chrono::{DateTime, Utc};
use quick_cache::sync::Cache;
use tokio::time::Instant;
use uuid::Uuid;

use super::stored::Stored;

/// Tokens that something is known of; a few hundred bytes each.
const TOKENS_MAX: usize = 20_000;

/// A departure is there for its TTL of a second. Up to this age that is sure, measured from when its
/// batch was sent.
const THERE_FOR: Duration = Duration::from_millis(900);

/// nats-server removes it 1.0 to 1.33 s after it was stored (300 times measured on 2.14.4 and
/// 2.15.1). After this age, measured from its acknowledgement, it counts as gone.
const GONE_AFTER: Duration = Duration::from_millis(2_500);

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
    pub fn read(standing: &Standing, now: Instant) -> Self {
        let departure = standing.departure.map(|departure| {
            // The clocks may differ; then a guess is wrong, and the check says so.
            let age = (Utc::now() - departure.time).to_std().unwrap_or_default();
            let stored = now.checked_sub(age.min(GONE_AFTER)).unwrap_or(now);
            Leaving { sequence: departure.sequence, not_before: stored, not_after: now }
        });
        let events = standing.state.marks.events.clone();
        Self { state: standing.state.sequence, events, departure }
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

/// What is known of many tokens; which of them, use decides.
pub struct KnownTokens {
    tokens: Cache<Uuid, Known>,
}

impl KnownTokens {
    pub fn new() -> Self {
        Self { tokens: Cache::new(TOKENS_MAX) }
    }

    /// Forgets everything.
    pub fn forget(&self) {
        self.tokens.clear();
    }

    /// Keeps what was read or written, unless something newer is known.
    pub fn record(&self, token: Uuid, known: Known) {
        if self.tokens.get(&token).is_none_or(|kept| kept.state <= known.state) {
            self.tokens.insert(token, known);
        }
    }

    /// The ids of the newest events of a token whose message is `state`, and what a commit of it must
    /// expect.
    pub fn expected(&self, token: Uuid, state: u64, now: Instant) -> Option<(Vec<Uuid>, u64)> {
        let known = self.tokens.get(&token)?;
        match known.expected(state, now) {
            Expected::Sequence(sequence) => Some((known.events, sequence)),
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
        let with = Known { state: 10, events: vec![], departure: Some(leaving) };
        let without = Known { departure: None, ..with.clone() };
        for (known, state, now, expected) in [
            (&with, 10, 0, Expected::Sequence(12)),
            (&with, 10, 899, Expected::Sequence(12)),
            (&with, 10, 900, Expected::Ask),
            (&with, 10, 2_599, Expected::Ask),
            (&with, 10, 2_600, Expected::Sequence(10)),
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
        let tokens = KnownTokens::new();
        let (id, now) = (Uuid::from_u128(1), Instant::now());
        let known = |state| Known { state, events: vec![], departure: None };
        tokens.record(id, known(8));
        tokens.record(id, known(5));
        assert_eq!(tokens.expected(id, 8, now), Some((vec![], 8)));
        assert_eq!(tokens.expected(id, 5, now), None);
        assert_eq!(tokens.expected(Uuid::from_u128(2), 8, now), None);
    }
}
