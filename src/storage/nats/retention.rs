//! Room in the stream: history goes before anything live is refused.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{info, warn};

use super::api::{self, ApiError, ask};
use super::link::Link;
use super::names::{self, ALL_EVENTS, STREAM};
use super::read::Reader;
use super::subjects;
use crate::storage::StorageError;

/// How old the count of what the stream holds may be while this process writes: others write, too.
const COUNT_AGE_MAX: Duration = Duration::from_secs(1);

/// Pause after there was nothing to remove.
const USELESS_PAUSE: Duration = Duration::from_secs(1);

/// Parts of the stream's age in which completed tokens are removed, oldest first.
const COMPLETED_STEPS: u64 = 4;

/// Keeps the stream below its limits.
pub struct Retention {
    link: Arc<Link>,
    reader: Arc<Reader>,
    usage: Mutex<Usage>,
}

/// What the stream holds, as it was counted and as this process has written since.
#[derive(Debug, Clone)]
struct Usage {
    messages: Room,
    bytes: Room,
    counted: Instant,
    useless_until: Instant,
    /// Why creations are refused, while they are.
    full: Option<String>,
}

/// How much of one limit is used.
#[derive(Debug, Clone, Copy, Default)]
struct Room {
    used: u64,
    max: Option<u64>,
    /// The bounds of [`Room::reserve`].
    reserve: (u64, u64),
}

impl Room {
    /// What creations leave free, so that what is there can still move: a twentieth, within bounds.
    fn reserve(&self) -> u64 {
        let (least, most) = self.reserve;
        self.max.map_or(0, |max| (max / 20).clamp(least, most))
    }

    /// Whether history should go.
    fn is_high(&self) -> bool {
        self.max.is_some_and(|max| self.used > max.saturating_sub(2 * self.reserve()))
    }

    /// Whether creations must stop.
    fn is_full(&self) -> bool {
        self.max.is_some_and(|max| self.used > max.saturating_sub(self.reserve()))
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
            bytes: Room { reserve: (64 << 10, 8 << 20), ..Room::default() },
            counted: now,
            useless_until: now,
            full: None,
        };
        Self { link, reader, usage: Mutex::new(usage) }
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what was counted.
    pub fn counted(&self, state: &api::StreamState) {
        let mut usage = self.usage();
        (usage.messages.used, usage.messages.max) = (state.messages, state.messages_max);
        (usage.bytes.used, usage.bytes.max) = (state.bytes, state.bytes_max);
        usage.counted = Instant::now();
        let full = (usage.messages.is_full() || usage.bytes.is_full()).then(|| usage.reason());
        if full.is_some() != usage.full.is_some() {
            match &full {
                Some(reason) => warn!(reason, "the stream is full, nothing new is accepted"),
                None => info!("the stream has room again"),
            }
        }
        usage.full = full;
    }

    /// Why creations are refused, while they are.
    pub fn full(&self) -> Option<String> {
        self.usage().full.clone()
    }

    /// Counts in a batch that is about to be sent, makes room if it is getting scarce, and gives
    /// the reason if nothing new may be created.
    pub async fn before_batch(&self, messages: u64, bytes: u64) -> Option<String> {
        let (count, high) = {
            let mut usage = self.usage();
            usage.messages.used += messages;
            usage.bytes.used += bytes;
            let high = usage.is_high() && usage.useless_until <= Instant::now();
            (usage.counted.elapsed() >= COUNT_AGE_MAX || high, high)
        };
        if count {
            // If it cannot be asked now, the batch will find that out, too.
            if let Ok(state) = api::stream_state(&self.link).await {
                self.counted(&state);
            }
            if high && self.usage().is_high() {
                self.make_room().await;
            }
        }
        self.full()
    }

    /// Removes the oldest history until there is room. Gives whether anything went.
    pub async fn make_room(&self) -> bool {
        match self.try_make_room().await {
            Ok(removed) => {
                if removed == 0 {
                    self.usage().useless_until = Instant::now() + USELESS_PAUSE;
                } else {
                    info!(messages = removed, "removed the oldest history to make room");
                }
                removed > 0
            }
            Err(error) => {
                warn!(error = %error, "could not make room in the stream");
                false
            }
        }
    }

    async fn try_make_room(&self) -> Result<u64, StorageError> {
        let state = api::stream_state(&self.link).await?;
        self.counted(&state);
        let excess = self.excess_messages(&state).max(1);
        let events = subjects::count(&self.link, ALL_EVENTS).await?;
        let mut removed = 0;
        if events > 0 {
            // Whoever else removes at this moment keeps as many, so together it is not more.
            let keep = events.saturating_sub(excess);
            removed += self.purge(&json!({ "filter": ALL_EVENTS, "keep": keep })).await?;
        }
        let state = api::stream_state(&self.link).await?;
        self.counted(&state);
        if self.full().is_some() {
            removed += self.remove_completed(&state).await?;
        }
        Ok(removed)
    }

    fn excess_messages(&self, state: &api::StreamState) -> u64 {
        let usage = self.usage();
        let average = (state.bytes / state.messages.max(1)).max(1);
        usage.messages.excess().max(usage.bytes.excess().div_ceil(average))
    }

    /// Removes completed tokens, the oldest of all workflows first, until there is room.
    async fn remove_completed(&self, state: &api::StreamState) -> Result<u64, StorageError> {
        let mut places = Vec::new();
        for workflow in subjects::workflows(&self.link).await? {
            let Some((definition, _)) = self.reader.definition(&workflow).await? else { continue };
            let last = definition.final_places().cloned();
            places.extend(last.map(|place| names::tokens_in(&workflow, &place)));
        }
        let mut removed = 0;
        for step in 1..=COMPLETED_STEPS {
            let span = state.last_sequence.saturating_sub(state.first_sequence);
            let before = state.first_sequence + span * step / COMPLETED_STEPS + 1;
            for place in &places {
                removed += self.purge(&json!({ "filter": place, "seq": before })).await?;
            }
            self.counted(&api::stream_state(&self.link).await?);
            if self.full().is_none() {
                break;
            }
        }
        Ok(removed)
    }

    async fn purge(&self, request: &Value) -> Result<u64, ApiError> {
        let answer = ask(&self.link, &format!("STREAM.PURGE.{STREAM}"), request).await?;
        Ok(answer["purged"].as_u64().unwrap_or(0))
    }
}

impl Usage {
    fn is_high(&self) -> bool {
        self.messages.is_high() || self.bytes.is_high()
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
