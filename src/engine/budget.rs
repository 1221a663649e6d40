//! What one request may cost, whoever spends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};

use super::EngineError;
use crate::domain::limits::{ANSWER_BYTES_MAX, LIST_ROWS_MAX, RESULT_BYTES_MAX, STEPS_MAX};
use crate::domain::{Steps, TooCostly};
use crate::storage::{Page, PageLimit, StorageError};

/// Requests that read lists at once; a list is held in memory until its answer is written.
const LISTERS_MAX: usize = 4;

/// Bytes of an answer that is made without such a place.
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
    has_place: AtomicBool,
    has_begun_to_write: AtomicBool,
    places: Arc<Places>,
    // Held across a read on purpose: the lists of one request take turns, each sees what is left.
    lists: Mutex<Lists>,
}

/// What the lists of one request may still read.
///
/// From its first list until it is dropped it holds one of a few places, so that not all clients
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
}

impl Places {
    pub fn new() -> Arc<Self> {
        let (places, waiting) = (Semaphore::new(LISTERS_MAX), Semaphore::new(WAITING_MAX));
        Arc::new(Self { places: Arc::new(places), waiting })
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
                .map_err(|_| unavailable("too many lists are being read"))?;
            lists.place = Some(place.map_err(|_| unavailable("it was closed"))?);
            self.has_place.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Waits for the turn of a list.
    pub async fn list(&self) -> Result<MutexGuard<'_, Lists>, EngineError> {
        let mut lists = self.lists.lock().await;
        self.place(&mut lists).await?;
        if lists.bytes_left == 0 || lists.rows_left == 0 {
            return Err(too_large());
        }
        Ok(lists)
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

    /// Reads a page, and takes out what was read for it.
    pub async fn read<T>(
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
        let page = timeout_at(until, page).await.map_err(|_| late())??;
        self.bytes_left = self.bytes_left.saturating_sub(page.bytes);
        self.rows_left = self.rows_left.saturating_sub(page.read.max(page.items.len()));
        Ok(page)
    }
}

/// That there is no place for it now.
pub fn unavailable(reason: &str) -> StorageError {
    StorageError::Unavailable { reason: reason.to_owned() }
}

/// More than the values of an answer may take.
fn answer_too_large() -> EngineError {
    EngineError::ResultTooLarge { rows: LIST_ROWS_MAX, bytes: ANSWER_BYTES_MAX }
}

/// More than an answer may hold.
pub fn too_large() -> EngineError {
    EngineError::ResultTooLarge { rows: LIST_ROWS_MAX, bytes: RESULT_BYTES_MAX }
}
