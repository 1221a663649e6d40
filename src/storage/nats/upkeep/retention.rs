//! Room in the stream: history goes before anything live is refused.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::storage::StorageError;
use crate::storage::nats::read::reader::Reader;
use crate::storage::nats::wire::jetstream;
use crate::storage::nats::wire::link::Link;
use crate::storage::nats::wire::names::{self, ALL_EVENTS, STREAM};
use crate::storage::nats::wire::subjects;

/// How old the count of what the stream holds may be while this process writes: others write, too.
const COUNT_AGE_MAX: Duration = Duration::from_secs(1);

/// Pause between two looks, and after one that found nothing to remove; a look that took long is
/// followed by a pause of so many times its length.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
const USELESS_PAUSE: Duration = Duration::from_millis(500);
const USELESS_PAUSE_TIMES: u32 = 10;

/// How long the committer waits for a look. What takes longer goes on beside it.
const LOOK_WAIT: Duration = Duration::from_secs(1);

/// Parts in which completed tokens are removed, oldest first.
const COMPLETED_STEPS: u64 = 4;

/// Keeps the stream below its limits. A task of its own looks and removes; the committer only asks
/// for a look, and what the last one found.
pub struct Retention {
    link: Arc<Link>,
    reader: Arc<Reader>,
    usage: Mutex<Usage>,
    wanted: Notify,
    looks: watch::Sender<u64>,
}

/// What the stream holds, as it was counted and as this process has written since.
#[derive(Debug, Clone)]
struct Usage {
    messages: Room,
    bytes: Room,
    counted: Instant,
    useless_until: Instant,
    /// Whether something did not fit, whatever the count says.
    refused: bool,
    /// Whether a look is under way.
    looking: bool,
    /// Why creations are refused, while they are.
    full: Option<String>,
}

/// How much creations may still take, and the reason why it is not more.
#[derive(Debug, Clone)]
pub struct Allowance {
    pub messages: u64,
    pub bytes: u64,
    pub reason: String,
}

/// How much of one limit is used.
#[derive(Debug, Clone, Copy, Default)]
struct Room {
    used: u64,
    max: Option<u64>,
    /// The bounds of [`Room::reserve`]; the lower one is at most a quarter of the limit.
    reserve: (u64, u64),
}

impl Room {
    /// What creations leave free, so that what is there can still move: a twentieth, within bounds.
    fn reserve(&self) -> u64 {
        let (least, most) = self.reserve;
        self.max.map_or(0, |max| (max / 20).clamp(least.min(max / 4), most))
    }

    /// Whether history should go.
    fn is_high(&self) -> bool {
        self.max.is_some_and(|max| self.used > max.saturating_sub(2 * self.reserve()))
    }

    /// Whether creations must stop: less is left for them than an eighth of the reserve.
    fn is_full(&self) -> bool {
        self.max.is_some() && self.left() < self.reserve() / 8
    }

    /// Whether half of it is used.
    fn is_half(&self) -> bool {
        self.max.is_some_and(|max| self.used > max / 2)
    }

    /// How much creations may still use.
    fn left(&self) -> u64 {
        self.max
            .map_or(u64::MAX, |max| max.saturating_sub(self.reserve()).saturating_sub(self.used))
    }

    /// How much must go, so that it need not begin anew at once.
    fn excess(&self) -> u64 {
        let wanted = |max: u64| max.saturating_sub(2 * self.reserve() + max / 10);
        self.max.map_or(0, |max| self.used.saturating_sub(wanted(max)))
    }
}

impl Retention {
    pub fn new(link: Arc<Link>, reader: Arc<Reader>) -> Self {
        let now = Instant::now();
        let usage = Usage {
            messages: Room { reserve: (32, 2_000), ..Room::default() },
            // Two of the largest records: one that moves is there twice for a moment.
            bytes: Room { reserve: (2_500_000, 8 << 20), ..Room::default() },
            counted: now,
            useless_until: now,
            refused: false,
            looking: false,
            full: None,
        };
        let (usage, wanted) = (Mutex::new(usage), Notify::new());
        Self { link, reader, usage, wanted, looks: watch::Sender::new(0) }
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whenever it is asked to, for ever.
    pub async fn run(&self) {
        loop {
            self.wanted.notified().await;
            self.usage().looking = true;
            if let Err(error) = self.look().await {
                warn!(error = %error, "could not make room in the stream");
            }
            self.usage().looking = false;
            self.looks.send_modify(|number| *number += 1);
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// Notes what was counted.
    pub fn counted(&self, state: &jetstream::StreamState) {
        let mut usage = self.usage();
        (usage.messages.used, usage.messages.max) = (state.messages, state.messages_max);
        (usage.bytes.used, usage.bytes.max) = (state.bytes, state.bytes_max);
        usage.counted = Instant::now();
        if !usage.is_full() && usage.full.take().is_some() {
            info!("the stream has room again");
        }
    }

    /// Why creations are refused, while they are.
    pub fn full(&self) -> Option<String> {
        self.usage().full.clone()
    }

    /// Counts in a batch that is about to be sent. If creations do not all fit any more, it gives how
    /// much of them still does.
    pub async fn before_batch(&self, messages: u64, bytes: u64) -> Option<Allowance> {
        let look = {
            let mut usage = self.usage();
            usage.messages.used += messages;
            usage.bytes.used += bytes;
            if !usage.is_full() && usage.full.is_none() {
                let old = usage.counted.elapsed() >= COUNT_AGE_MAX;
                if old || usage.is_high() {
                    self.wanted.notify_one();
                }
                return None;
            }
            drop(usage);
            self.next_look()
        };
        look.await;
        let mut usage = self.usage();
        let none = usage.full.is_some();
        let allowance = Allowance {
            messages: if none { 0 } else { usage.messages.left() },
            bytes: if none { 0 } else { usage.bytes.left() },
            reason: usage.full.clone().unwrap_or_else(|| usage.reason()),
        };
        usage.messages.used += messages;
        usage.bytes.used += bytes;
        (messages > allowance.messages || bytes > allowance.bytes).then_some(allowance)
    }

    /// Looks for room because something did not fit.
    pub async fn make_room(&self) {
        self.usage().refused = true;
        self.next_look().await;
    }

    /// Asks for a look and waits for its end, for a moment.
    async fn next_look(&self) {
        let mut looks = self.looks.subscribe();
        // One that is under way may have looked already.
        let wanted = *looks.borrow_and_update() + 1 + u64::from(self.usage().looking);
        self.wanted.notify_one();
        // If it takes longer, the committer goes on with what it knows.
        drop(timeout(LOOK_WAIT, looks.wait_for(|number| *number >= wanted)).await);
    }

    /// Counts, and removes the oldest history if room is scarce.
    async fn look(&self) -> Result<(), StorageError> {
        let state = jetstream::stream_state(&self.link).await?;
        self.counted(&state);
        let begun = Instant::now();
        {
            let mut usage = self.usage();
            if usage.useless_until > begun {
                usage.note_if_full();
                return Ok(());
            }
            // Something large may not fit long before room is scarce; but if there is a lot of it,
            // it is the disk that fails, and history does not help.
            let refused = std::mem::take(&mut usage.refused) && usage.is_half();
            if !refused && !usage.is_high() {
                return Ok(());
            }
        }
        let removed = self.remove_history(&state).await;
        let mut usage = self.usage();
        if !matches!(removed, Ok(1..)) {
            let pause = (begun.elapsed() * USELESS_PAUSE_TIMES).max(USELESS_PAUSE);
            usage.useless_until = Instant::now() + pause;
        }
        usage.note_if_full();
        drop(usage);
        match removed? {
            0 => {}
            removed => info!(messages = removed, "removed the oldest history to make room"),
        }
        Ok(())
    }

    async fn remove_history(&self, state: &jetstream::StreamState) -> Result<u64, StorageError> {
        let mut removed = 0;
        for excess in [self.excess_messages(state).max(1), u64::MAX] {
            let events = subjects::count(&self.link, ALL_EVENTS).await?;
            if events > 0 {
                // Whoever else removes at this moment keeps as many, so together it is not more.
                let keep = events.saturating_sub(excess);
                removed +=
                    jetstream::purge(&self.link, &json!({ "filter": ALL_EVENTS, "keep": keep }))
                        .await?;
            }
            if !self.is_full_now().await? {
                return Ok(removed);
            }
        }
        Ok(removed + self.remove_completed().await?)
    }

    async fn is_full_now(&self) -> Result<bool, StorageError> {
        self.counted(&jetstream::stream_state(&self.link).await?);
        Ok(self.usage().is_full())
    }

    fn excess_messages(&self, state: &jetstream::StreamState) -> u64 {
        let usage = self.usage();
        let average = (state.bytes / state.messages.max(1)).max(1);
        usage.messages.excess().max(usage.bytes.excess().div_ceil(average))
    }

    /// Removes completed tokens, the oldest of all workflows first, until there is room.
    async fn remove_completed(&self) -> Result<u64, StorageError> {
        // The places that hold any, each with the sequence of its oldest.
        let mut places = Vec::new();
        for workflow in subjects::workflows(&self.link).await? {
            let Some((definition, _)) = self.reader.definition(&workflow).await? else { continue };
            for place in definition.final_places() {
                let filter = names::tokens_in(&workflow, place);
                let oldest = self.reader.first(&filter).await?;
                places.extend(oldest.map(|oldest| (filter, oldest.sequence)));
            }
        }
        let Some(first) = places.iter().map(|(_, oldest)| *oldest).min() else { return Ok(0) };
        let mut removed = 0;
        for step in 1..=COMPLETED_STEPS {
            let span = self.reader.last_sequence().saturating_sub(first);
            let before = first + span * step / COMPLETED_STEPS + 1;
            for (place, _) in places.iter().filter(|(_, oldest)| *oldest < before) {
                removed += jetstream::purge(&self.link, &json!({ "filter": place, "seq": before }))
                    .await?;
            }
            if !self.is_full_now().await? {
                break;
            }
        }
        Ok(removed)
    }
}

impl Usage {
    fn is_high(&self) -> bool {
        self.messages.is_high() || self.bytes.is_high()
    }

    fn is_full(&self) -> bool {
        self.messages.is_full() || self.bytes.is_full()
    }

    fn is_half(&self) -> bool {
        self.messages.is_half() || self.bytes.is_half()
    }

    /// Notes that nothing new may come, if that is so; history could not make room just now.
    fn note_if_full(&mut self) {
        if self.is_full() && self.full.is_none() {
            let reason = self.reason();
            warn!(reason, "the stream is full, nothing new is accepted");
            self.full = Some(reason);
        }
    }

    fn reason(&self) -> String {
        let shown = |max: Option<u64>| max.map_or("any number of".to_owned(), |n| n.to_string());
        format!(
            "stream {STREAM} holds {} of at most {} messages and {} of at most {} bytes, and history cannot make room any more; raise NATS_MAX_MESSAGES or NATS_MAX_BYTES, or let tokens finish",
            self.messages.used,
            shown(self.messages.max),
            self.bytes.used,
            shown(self.bytes.max)
        )
    }
}
