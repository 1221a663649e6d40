//! What earlier lists have shown of a filter: it only says how the next list begins.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::epoch::{Epoch, Remembered};

/// Subjects in the whole stream up to which `multi_last` is tried without a sample: what it costs
/// to be refused stays below some milliseconds.
const SMALL_STREAM: u64 = 20_000;

/// Tokens that are read by their subjects, beyond twice as many as rows are wanted, and in any case.
pub const FEW_MORE: usize = 64;
const BY_SUBJECT_MAX: usize = 256;

/// How long it is remembered that there are many, or few.
const MANY_FOR: Duration = Duration::from_secs(60);

/// Filters that something is remembered of.
const HINTS_MAX: usize = 10_000;

/// What is known of filters. It only says how to begin.
pub struct Hints {
    filters: Remembered<String, Hint>,
    subjects: Mutex<u64>,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Hint {
    /// When many subjects matched, or few.
    many_at: Option<Instant>,
    few_at: Option<Instant>,
    /// What the last list has shown that came to its end or asked for the subjects.
    counted: Option<Counted>,
    /// No message before this one matches, now or ever: what arrives later has a higher sequence.
    pub floor: u64,
    /// Messages from one match to the next, as the last list of it has found.
    pub distance: Option<u64>,
}

/// How many tokens have a subject that matches, departures included.
#[derive(Debug, Clone, Copy)]
struct Counted {
    at: Instant,
    tokens: usize,
    /// Some of them were on their way.
    move_on: bool,
}

/// What a search has shown of its filter, as far as it has shown anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learned {
    pub distance: Option<u64>,
    pub floor: Option<u64>,
}

impl Hint {
    /// Whether many subjects matched, a short time ago.
    pub fn says_many(&self) -> bool {
        self.many_at.is_some_and(|at| at.elapsed() < MANY_FOR)
    }

    /// The same where few did.
    pub fn says_few(&self) -> bool {
        self.few_at.is_some_and(|at| at.elapsed() < MANY_FOR)
    }
}

/// Tokens that a page of so many rows reads by their subjects.
pub fn by_subject_max(rows: usize) -> usize {
    rows.saturating_mul(2).saturating_add(FEW_MORE).max(BY_SUBJECT_MAX)
}

impl Hint {
    /// Whether a page of so many rows is read by the subjects at once: where it would come to the end of the
    /// list, or would follow tokens that move.
    pub fn says_by_subject(&self, rows: usize) -> bool {
        self.counted.is_some_and(|counted| {
            let max = if counted.move_on { by_subject_max(rows) } else { rows };
            counted.tokens <= max && counted.at.elapsed() < MANY_FOR
        })
    }
}

impl Hints {
    pub fn new(epoch: Arc<Epoch>) -> Self {
        Self { filters: Remembered::new(epoch, HINTS_MAX), subjects: Mutex::new(0) }
    }

    /// Notes how many subjects the stream has.
    pub fn set_subjects(&self, subjects: u64) {
        *self.subjects.lock().unwrap_or_else(PoisonError::into_inner) = subjects;
    }

    pub fn is_small(&self) -> bool {
        *self.subjects.lock().unwrap_or_else(PoisonError::into_inner) <= SMALL_STREAM
    }

    pub fn of(&self, filter: &str) -> Hint {
        self.filters.get(filter).unwrap_or_default()
    }

    /// Notes that many subjects match, as has been seen since `begun`.
    pub fn many(&self, filter: &str, begun: u64) {
        let many_at = Some(Instant::now());
        let hint = Hint { many_at, few_at: None, counted: None, ..self.of(filter) };
        self.filters.insert(begun, filter.to_owned(), hint);
    }

    /// Notes that few do.
    pub fn few(&self, filter: &str, begun: u64) {
        let hint = Hint { few_at: Some(Instant::now()), many_at: None, ..self.of(filter) };
        self.filters.insert(begun, filter.to_owned(), hint);
    }

    /// Notes how many tokens there are, and whether some of them are on their way.
    pub fn counted(&self, filter: &str, tokens: usize, move_on: bool, begun: u64) {
        let counted = Some(Counted { at: Instant::now(), tokens, move_on });
        self.filters.insert(begun, filter.to_owned(), Hint { counted, ..self.of(filter) });
    }

    /// Notes what a search has shown that has begun then.
    pub fn learn(&self, filter: &str, learned: Learned, begun: u64) {
        let hint = self.of(filter);
        let distance = learned.distance.or(hint.distance);
        let floor = learned.floor.map_or(hint.floor, |floor| floor.max(hint.floor));
        if (distance, floor) != (hint.distance, hint.floor) {
            let hint = Hint { distance, floor, ..hint };
            self.filters.insert(begun, filter.to_owned(), hint);
        }
    }
}
