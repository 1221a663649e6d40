//! What earlier lists have shown of a filter: it only says how the next list begins.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::time::Instant;

/// Subjects in the whole stream up to which `multi_last` is tried without a sample: what it costs
/// to be refused stays below some milliseconds.
const SMALL_STREAM: u64 = 20_000;

/// How long it is remembered that there are many.
const MANY_FOR: Duration = Duration::from_secs(60);

/// Filters that something is remembered of.
const HINTS_MAX: usize = 10_000;

/// What is known of filters. It only says how to begin.
pub struct Hints {
    filters: Cache<String, Hint>,
    subjects: Mutex<u64>,
}

#[derive(Debug, Clone, Copy)]
pub struct Hint {
    /// When many subjects matched.
    many_at: Option<Instant>,
    /// No message before this one matches, now or ever: what arrives later has a higher sequence.
    pub floor: u64,
    /// Messages from one match to the next, as the last list of it has found.
    pub distance: Option<u64>,
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
}

impl Hints {
    pub fn new() -> Self {
        Self { filters: Cache::new(HINTS_MAX), subjects: Mutex::new(0) }
    }

    /// Forgets everything.
    pub fn forget(&self) {
        self.filters.clear();
    }

    /// Notes how many subjects the stream has.
    pub fn set_subjects(&self, subjects: u64) {
        *self.subjects.lock().unwrap_or_else(PoisonError::into_inner) = subjects;
    }

    pub fn is_small(&self) -> bool {
        *self.subjects.lock().unwrap_or_else(PoisonError::into_inner) <= SMALL_STREAM
    }

    pub fn of(&self, filter: &str) -> Hint {
        self.filters.get(filter).unwrap_or(Hint { many_at: None, floor: 0, distance: None })
    }

    pub fn many(&self, filter: &str) {
        let hint = Hint { many_at: Some(Instant::now()), ..self.of(filter) };
        self.filters.insert(filter.to_owned(), hint);
    }

    /// Notes what a search has shown.
    pub fn learn(&self, filter: &str, learned: Learned) {
        let hint = self.of(filter);
        let distance = learned.distance.or(hint.distance);
        let floor = learned.floor.map_or(hint.floor, |floor| floor.max(hint.floor));
        if (distance, floor) != (hint.distance, hint.floor) {
            self.filters.insert(filter.to_owned(), Hint { distance, floor, ..hint });
        }
    }
}
