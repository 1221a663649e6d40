//! Room in the stream: history goes before anything live is refused.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::history::History;
use super::room::{Allowance, Done, OLDEST_ROUNDS_MAX, Step, Usage};
use crate::storage::StorageError;
use crate::storage::nats::read::life::Life;
use crate::storage::nats::read::reader::Reader;
use crate::storage::nats::wire::jetstream::{self, StreamState};

/// Pause between two looks: so many times as long as the last one took, within bounds.
const LOOK_PAUSE_TIMES: u32 = 3;
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(20);
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(1);

/// The pause before history is removed again where that was not possible.
const HINDERED_PAUSE: Duration = Duration::from_secs(2);

/// The least time between two log lines that say what was removed.
const TELL_PERIOD: Duration = Duration::from_secs(30);

/// How long creations wait for a look that may make room, and moves that do not fit: they need what
/// events take, which goes quickly. What takes longer goes on beside them.
const CREATIONS_WAIT: Duration = Duration::from_secs(1);
const MOVES_WAIT: Duration = Duration::from_millis(100);

/// Keeps the stream below its limits. A task of its own looks and removes; the committer only asks
/// for a look, and what the last one found.
pub struct Retention {
    reader: Arc<Reader>,
    life: Arc<Life>,
    /// Messages and bytes that the stream may hold at least: below that its limits are raised again.
    least: [u64; 2],
    usage: Mutex<Usage>,
    wanted: Notify,
    looks: watch::Sender<Looks>,
}

/// How many looks have begun, and ended.
#[derive(Debug, Clone, Copy, Default)]
struct Looks {
    begun: u64,
    ended: u64,
}

impl Retention {
    pub fn new(reader: Arc<Reader>, life: Arc<Life>, least: [i64; 2]) -> Self {
        // The configuration takes no negative ones.
        let least = least.map(i64::unsigned_abs);
        let usage = Mutex::new(Usage::new(Instant::now()));
        let (wanted, looks) = (Notify::new(), watch::Sender::new(Looks::default()));
        Self { reader, life, least, usage, wanted, looks }
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whenever it is asked to, for ever.
    pub async fn run(&self) {
        let mut history = History::new(Arc::clone(&self.reader), Arc::clone(&self.life));
        let (mut removed, mut told_at) = (0, None::<Instant>);
        let mut hindered_at = None::<Instant>;
        loop {
            let wanted = self.wanted.notified();
            if self.usage().hindered.is_none() {
                wanted.await;
            } else {
                // What hinders it may be over, and nobody writes while there is no room.
                drop(timeout(HINDERED_PAUSE, wanted).await);
            }
            let begun = Instant::now();
            self.looks.send_modify(|looks| looks.begun += 1);
            let outcome = self.look(&mut history).await;
            // Where there is no room, writes say so, and health, with why.
            self.usage().hindered = outcome.as_ref().err().map(ToString::to_string);
            match outcome {
                Ok(more) => removed += more,
                Err(error)
                    if self.usage().is_full()
                        && hindered_at.is_none_or(|at| at.elapsed() >= TELL_PERIOD) =>
                {
                    warn!(%error, "could not make room in the stream");
                    hindered_at = Some(Instant::now());
                }
                Err(error) => debug!(%error, "no room could be made in the stream"),
            }
            if removed > 0 && told_at.is_none_or(|at| at.elapsed() >= TELL_PERIOD) {
                info!(messages = removed, "removed the oldest history to make room");
                (removed, told_at) = (0, Some(Instant::now()));
            }
            if let Some(reason) = self.usage().looked() {
                warn!(reason, "the stream is full, nothing new is accepted");
            }
            self.looks.send_modify(|looks| looks.ended = looks.begun);
            let pause = begun.elapsed() * LOOK_PAUSE_TIMES;
            sleep(pause.clamp(LOOK_PAUSE_MIN, LOOK_PAUSE_MAX)).await;
        }
    }

    /// Notes what was counted. History does not go for a limit that somebody has lowered: a look raises
    /// it again.
    pub fn counted(&self, state: &StreamState) {
        let [messages, bytes] = self.least;
        let state = StreamState {
            messages_max: state.messages_max.map(|max| max.max(messages)),
            bytes_max: state.bytes_max.map(|max| max.max(bytes)),
            ..state.clone()
        };
        if self.usage().count(&state, Instant::now()) {
            info!("the stream has room again");
        }
    }

    /// Why creations are refused, while they are.
    pub fn full(&self) -> Option<String> {
        self.usage().full()
    }

    /// Counts in a batch that is about to be sent. If what it creates does not all fit any more, it
    /// gives how much of it still does. Moves never wait here.
    pub async fn before_batch(
        &self,
        messages: u64,
        bytes: u64,
        creates: bool,
    ) -> Option<Allowance> {
        let waits = {
            let mut usage = self.usage();
            if usage.wants_look(Instant::now()) {
                self.wanted.notify_one();
            }
            if !creates || !usage.is_full() && !usage.refuses() {
                usage.add(messages, bytes);
                return None;
            }
            // Once it is known to be full, the answer is at hand.
            !usage.refuses()
        };
        if waits {
            self.next_look(CREATIONS_WAIT).await;
        }
        let mut usage = self.usage();
        let allowance = usage.allowance();
        usage.add(messages, bytes);
        (messages > allowance.messages || bytes > allowance.bytes).then_some(allowance)
    }

    /// Looks for room because something did not fit; creations wait for it longer.
    pub async fn make_room(&self, creates: bool) {
        let known = {
            let mut usage = self.usage();
            usage.refused = true;
            usage.refuses()
        };
        self.next_look(if creates && !known { CREATIONS_WAIT } else { MOVES_WAIT }).await;
    }

    /// Asks for a look and waits for the end of one that begins from now on, for so long.
    async fn next_look(&self, wait: Duration) {
        let mut looks = self.looks.subscribe();
        let wanted = looks.borrow_and_update().begun + 1;
        self.wanted.notify_one();
        // If it takes longer, the committer goes on with what it knows.
        drop(timeout(wait, looks.wait_for(|looks| looks.ended >= wanted)).await);
    }

    /// Counts, and removes the oldest history if room is scarce. Gives how many messages went.
    async fn look(&self, history: &mut History) -> Result<u64, StorageError> {
        let (mut done, mut removed) = (Done::Nothing, 0);
        loop {
            let counted = self.count().await?;
            let step = self.usage().next(done, Instant::now());
            removed += match step {
                Step::Rest => return Ok(removed),
                Step::Oldest(excess) => {
                    let (gone, some_stay) = history.remove_oldest(excess, counted).await?;
                    done = match done {
                        _ if !some_stay => Done::Oldest(OLDEST_ROUNDS_MAX),
                        Done::Oldest(before) => Done::Oldest(before + 1),
                        _ => Done::Oldest(1),
                    };
                    gone
                }
                Step::AllEvents => {
                    done = Done::AllEvents;
                    history.remove_all_events().await?
                }
                Step::Completed => {
                    done = Done::Completed;
                    let begun = Instant::now();
                    let outcome = self.remove_completed(history).await;
                    self.usage().looked_for_completed(begun.elapsed(), Instant::now());
                    outcome?
                }
            };
        }
    }

    /// Removes completed tokens until there is room. Gives how many went.
    async fn remove_completed(&self, history: &mut History) -> Result<u64, StorageError> {
        let mut removed = 0;
        for part in history.completed().await? {
            removed += history.remove_completed(&part).await?;
            self.count().await?;
            if !self.usage().is_full() {
                break;
            }
        }
        Ok(removed)
    }

    /// Counts the messages of the stream.
    async fn count(&self) -> Result<u64, StorageError> {
        let state = jetstream::stream_state(&self.reader.link).await?;
        self.counted(&state);
        Ok(state.messages)
    }
}
