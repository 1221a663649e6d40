//! What one request may cost, whoever spends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};

use super::EngineError;
use crate::domain::limits::{ANSWER_BYTES_MAX, LIST_ROWS_MAX, RESULT_BYTES_MAX, STEPS_MAX};
use crate::domain::{Steps, TooCostly};
use crate::storage::{Page, PageLimit, StorageError};

/// Requests at once that read large lists or a large token, or whose answers are large; all that is held until the answer
/// is written.
const LISTERS_MAX: usize = 2;

/// Lists at once that are read without such a place, to see whether they are small.
const SMALL_LISTS_MAX: usize = 32;

/// Bytes of an answer that is made, and of a list that is read, without such a place.
const SMALL_ANSWER_BYTES: usize = 256 << 10;

/// Reads of one thing that one request does at once.
const READS_AT_ONCE: usize = 2;

/// Answers that wait for such a place at once, which hold a value that may have 1 MB; the next one is refused.
const WAITING_MAX: usize = 32;

/// Time that a list waits for its turn.
const TURN_WAIT_MAX: Duration = Duration::from_secs(5);

/// Time that all lists of one request take together, while others wait for their places.
const LISTS_TIME_MAX: Duration = Duration::from_secs(10);

/// What one request may still cost: [`STEPS_MAX`] steps of its conditions, [`RESULT_BYTES_MAX`] and
/// [`LIST_ROWS_MAX`] that its lists read, [`ANSWER_BYTES_MAX`] of its answer.
#[derive(Debug)]
pub struct Budget {
    steps: Arc<Steps>,
    answer_bytes: AtomicUsize,
    reads: Semaphore,
    holds: Arc<Semaphore>,
    has_place: AtomicBool,
    has_begun_to_write: AtomicBool,
    places: Arc<Places>,
    // Held across a read on purpose: the lists of one request take turns, each sees what is left.
    lists: Mutex<Lists>,
}

/// The turn to hold something large that was read: a request holds one such thing at a time, and what it answers of
/// it.
#[derive(Debug)]
pub struct Turn {
    _turn: Option<OwnedSemaphorePermit>,
}

/// What the lists of one request may still read.
///
/// From its first large one until it is dropped it holds one of a few places, so that not all clients
/// together fill the memory either.
#[derive(Debug)]
pub struct Lists {
    bytes_left: usize,
    rows_left: usize,
    place: Option<OwnedSemaphorePermit>,
    /// When their time is over, once the first has begun.
    until: Option<Instant>,
}

/// The places of those whose lists or answers are large, and of answers that wait for one: what these have read
/// already is held meanwhile.
#[derive(Debug)]
pub struct Places {
    places: Arc<Semaphore>,
    waiting: Semaphore,
    /// Lists of which no more than what is small is being read.
    small: Semaphore,
}

impl Places {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(LISTERS_MAX)),
            waiting: Semaphore::new(WAITING_MAX),
            small: Semaphore::new(SMALL_LISTS_MAX),
        })
    }
}

impl Budget {
    /// A whole one; its lists wait for one of `places`.
    pub fn new(places: Arc<Places>) -> Self {
        let lists = Lists {
            bytes_left: RESULT_BYTES_MAX,
            rows_left: LIST_ROWS_MAX,
            place: None,
            until: None,
        };
        Self {
            steps: Arc::new(Steps::new(STEPS_MAX)),
            answer_bytes: AtomicUsize::new(0),
            reads: Semaphore::new(READS_AT_ONCE),
            holds: Arc::new(Semaphore::new(1)),
            has_place: AtomicBool::new(false),
            has_begun_to_write: AtomicBool::new(false),
            places,
            lists: Mutex::new(lists),
        }
    }

    /// What its conditions may still take.
    pub fn steps(&self) -> &Arc<Steps> {
        &self.steps
    }

    /// Takes steps.
    pub fn pay_steps(&self, steps: i64) -> Result<(), EngineError> {
        if self.steps.take_up_to(steps) < steps {
            return Err(TooCostly { steps_max: self.steps.max() }.into());
        }
        Ok(())
    }

    /// Takes out what a part of the answer needs in memory. A large answer needs a place, as a list does.
    pub async fn charge_answer(&self, bytes: usize) -> Result<(), EngineError> {
        let all = self.answer_bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if all > ANSWER_BYTES_MAX {
            return Err(answer_too_large());
        }
        if all > SMALL_ANSWER_BYTES && !self.has_place.load(Ordering::Relaxed) {
            let mut lists = self.lists.lock().await;
            if lists.place.is_none() {
                let busy = "too many large answers wait for a place; try again later";
                let _waits = self.places.waiting.try_acquire().map_err(|_| unavailable(busy))?;
                self.place(&mut lists).await?;
            }
        }
        Ok(())
    }

    /// Fails if the answer is larger than it may be already.
    pub fn check_answer(&self) -> Result<(), EngineError> {
        let all = self.answer_bytes.load(Ordering::Relaxed);
        if all > ANSWER_BYTES_MAX { Err(answer_too_large()) } else { Ok(()) }
    }

    /// The turn to hold something of this size until it is answered, if there is one now. What is small needs none.
    pub async fn try_hold(&self, bytes: usize) -> Option<Turn> {
        if bytes <= SMALL_ANSWER_BYTES {
            return Some(Turn { _turn: None });
        }
        let turn = Arc::clone(&self.holds).try_acquire_owned().ok()?;
        let mut lists = self.lists.lock().await;
        if lists.place.is_none() {
            lists.place = Arc::clone(&self.places.places).try_acquire_owned().ok();
            self.has_place.store(lists.place.is_some(), Ordering::Relaxed);
        }
        lists.place.as_ref()?;
        Some(Turn { _turn: Some(turn) })
    }

    /// Waits for the turn to hold something large.
    pub async fn hold(&self) -> Result<Turn, EngineError> {
        self.place(&mut *self.lists.lock().await).await?;
        let turn = Arc::clone(&self.holds).acquire_owned().await;
        Ok(Turn { _turn: Some(turn.map_err(|_| unavailable("it was closed"))?) })
    }

    /// Waits for the turn of a read of one thing, which is held in memory until it is answered.
    pub async fn reads_one(&self) -> Result<SemaphorePermit<'_>, EngineError> {
        let turn = self.reads.acquire().await;
        turn.map_err(|_| unavailable("it was closed").into())
    }

    /// Notes that a write begins, whose outcome whoever does not wait for it does not know.
    pub fn begin_to_write(&self) {
        self.has_begun_to_write.store(true, Ordering::Relaxed);
    }

    /// Whether a write has begun.
    pub fn has_begun_to_write(&self) -> bool {
        self.has_begun_to_write.load(Ordering::Relaxed)
    }

    /// Waits for a place among those whose answers are large, unless there is one.
    async fn place(&self, lists: &mut Lists) -> Result<(), EngineError> {
        if lists.place.is_none() {
            let place = Arc::clone(&self.places.places).acquire_owned();
            let place = timeout(TURN_WAIT_MAX, place)
                .await
                .map_err(|_| unavailable("too many lists and large tokens are being read"))?;
            lists.place = Some(place.map_err(|_| unavailable("it was closed"))?);
            self.has_place.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Reads a list or a page of one, whose limit follows from what is left. What turns out to be small needs no place.
    pub async fn list<T, F>(
        &self,
        limit: impl FnOnce(&Lists) -> Result<PageLimit, EngineError>,
        read: impl Fn(PageLimit) -> F,
    ) -> Result<Page<T>, EngineError>
    where
        F: Future<Output = Result<Page<T>, StorageError>>,
    {
        let mut lists = self.lists.lock().await;
        if lists.bytes_left == 0 || lists.rows_left == 0 {
            return Err(too_large());
        }
        let limit = limit(&lists)?;
        if lists.place.is_none() {
            let turn = timeout(TURN_WAIT_MAX, self.places.small.acquire()).await;
            let turn = turn.map_err(|_| unavailable("too many lists are being read"))?;
            let _turn = turn.map_err(|_| unavailable("it was closed"))?;
            let small = PageLimit { bytes: limit.bytes.min(SMALL_ANSWER_BYTES), ..limit };
            let page = lists.within_time(read(small)).await?;
            if !page.more || page.items.len() >= limit.rows {
                lists.take(&page);
                return Ok(page);
            }
        }
        self.place(&mut lists).await?;
        let page = lists.within_time(read(limit)).await?;
        lists.take(&page);
        Ok(page)
    }
}

impl Lists {
    /// What a list may read.
    pub fn bound(&self, limit: PageLimit) -> PageLimit {
        let PageLimit { rows, bytes } = limit;
        PageLimit { rows: rows.min(self.rows_left), bytes: bytes.min(self.bytes_left) }
    }

    /// The same for a page: its rows are not fewer than were asked for because of others.
    pub fn bound_page(&self, limit: PageLimit) -> Result<PageLimit, EngineError> {
        if limit.rows > self.rows_left {
            return Err(too_large());
        }
        Ok(self.bound(limit))
    }

    /// Waits for a page as long as the lists of the request may take.
    async fn within_time<T>(
        &mut self,
        page: impl Future<Output = Result<Page<T>, StorageError>>,
    ) -> Result<Page<T>, StorageError> {
        let seconds = LISTS_TIME_MAX.as_secs();
        let late = || StorageError::Unavailable {
            reason: format!(
                "the lists of this request take longer than {seconds} s; ask for fewer at once"
            ),
        };
        let until = *self.until.get_or_insert_with(|| Instant::now() + LISTS_TIME_MAX);
        timeout_at(until, page).await.map_err(|_| late())?
    }

    /// Takes out what was read for a page.
    fn take<T>(&mut self, page: &Page<T>) {
        self.bytes_left = self.bytes_left.saturating_sub(page.bytes);
        self.rows_left = self.rows_left.saturating_sub(page.read.max(page.items.len()));
    }
}

/// That there is no place for it now.
pub fn unavailable(reason: &str) -> StorageError {
    StorageError::Unavailable { reason: reason.to_owned() }
}

/// More than the values of an answer may take.
fn answer_too_large() -> EngineError {
    EngineError::ResultTooLarge {
        rows: LIST_ROWS_MAX,
        bytes: ANSWER_BYTES_MAX,
        what: "the values of this answer",
    }
}

/// More than an answer may hold.
pub fn too_large() -> EngineError {
    EngineError::ResultTooLarge {
        rows: LIST_ROWS_MAX,
        bytes: RESULT_BYTES_MAX,
        what: "what the lists of this request read",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = SMALL_ANSWER_BYTES + 1;

    #[tokio::test]
    async fn a_request_holds_one_large_thing_at_a_time_and_any_number_of_small_ones() {
        let budget = Budget::new(Places::new());
        let held = budget.try_hold(LARGE).await.expect("nothing else is held");
        assert!(budget.try_hold(LARGE).await.is_none(), "one is held");
        assert!(budget.try_hold(SMALL_ANSWER_BYTES).await.is_some());
        drop(held);
        assert!(budget.try_hold(LARGE).await.is_some());
    }

    #[tokio::test]
    async fn as_many_requests_as_there_are_places_hold_something_large() {
        let places = Places::new();
        let mut holders = Vec::new();
        for _ in 0..LISTERS_MAX {
            let budget = Budget::new(Arc::clone(&places));
            assert!(budget.try_hold(LARGE).await.is_some());
            holders.push(budget);
        }
        let late = Budget::new(places);
        assert!(late.try_hold(LARGE).await.is_none(), "a place is a request's until its end");
        assert!(late.try_hold(SMALL_ANSWER_BYTES).await.is_some());
        let mut waits = Box::pin(late.hold());
        assert!(futures_util::poll!(waits.as_mut()).is_pending());
        holders.pop();
        assert!(waits.await.is_ok());
    }
}
