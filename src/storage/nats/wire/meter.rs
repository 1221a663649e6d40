//! Counts what health and figures tell of writes and of the connection.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::jetstream::WHY_UNANSWERED;
use super::outage::Outage;
use crate::storage::StorageError;

/// How long nothing can be written before health says so.
const TROUBLE_MIN: Duration = Duration::from_secs(3);

/// How long it lasts after the last refusal, though a server's own record goes through. What is denied is
/// tried again every two seconds.
const TROUBLE_LASTS: Duration = Duration::from_millis(2_500);

/// How long a limit of nats-server counts as reached after it has refused something for it last, though
/// a server's own record, which is small, goes through.
const LIMIT_LASTS: Duration = Duration::from_secs(10);

/// How long health tells of it, where nothing as large is tried again.
const LIMIT_TOLD_FOR: Duration = Duration::from_secs(600);

/// The least time between two log lines that say that nothing can be written.
const TELL_PERIOD: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Trouble {
    /// Since when nats-server has refused everything for a reason of its own, and that.
    now: Option<(Instant, String)>,
    /// When something was refused last.
    refused_at: Option<Instant>,
    /// What the log is told of it.
    outage: Outage,
    /// A limit of nats-server or its disk that is in the way of some changes, until one as large is taken.
    limit: Option<Limit>,
}

impl Default for Trouble {
    fn default() -> Self {
        Self { now: None, refused_at: None, outage: Outage::new(TELL_PERIOD), limit: None }
    }
}

#[derive(Debug)]
struct Limit {
    at: Instant,
    reason: String,
    /// Of the smallest batch that was refused for it.
    bytes: usize,
}

impl Limit {
    fn is_reached(&self) -> bool {
        self.at.elapsed() < LIMIT_LASTS
    }
}

/// Counts what health and figures tell.
#[derive(Debug, Default)]
pub struct Meter {
    writes: AtomicU64,
    failed: AtomicU64,
    lag_micros: AtomicU64,
    mended: AtomicU64,
    /// How often batches were taken again after one of which a part may have been stored.
    partial: AtomicU64,
    trouble: Mutex<Trouble>,
    disconnected: Mutex<Option<Instant>>,
}

impl Meter {
    pub fn record_write<T>(&self, outcome: &Result<T, StorageError>) {
        self.writes.fetch_add(1, Relaxed);
        let failed = matches!(
            outcome,
            Err(StorageError::Unavailable { .. }
                | StorageError::OutcomeUnknown { .. }
                | StorageError::Corrupt { .. })
        );
        self.failed.fetch_add(u64::from(failed), Relaxed);
    }

    pub fn record_wait(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.lag_micros.store(micros, Relaxed);
    }

    pub fn record_mended(&self) {
        self.mended.fetch_add(1, Relaxed);
    }

    /// Notes that batches are taken again after one of which a part may have been stored.
    pub fn record_partial(&self) {
        self.partial.fetch_add(1, Relaxed);
    }

    /// How often that was so.
    pub fn partial(&self) -> u64 {
        self.partial.load(Relaxed)
    }

    fn in_trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that nats-server has refused a batch for a reason of its own.
    pub fn record_trouble(&self, reason: &str) {
        self.record_trouble_since(Instant::now(), reason);
    }

    /// The same for one that was sent then and is not answered.
    pub fn record_silence(&self, since: Instant, reason: &str) {
        self.record_trouble_since(since, &format!("{reason}; {WHY_UNANSWERED}"));
    }

    /// Notes that the account may not publish what a batch holds. That may be so for a part of what there is
    /// to write, so it is told only where nothing else was written for some seconds.
    pub fn record_denied(&self, reason: &str) {
        self.in_trouble().outage.expected(Instant::now());
        self.record_trouble(reason);
    }

    fn record_trouble_since(&self, since: Instant, reason: &str) {
        let mut trouble = self.in_trouble();
        trouble.refused_at = Some(Instant::now());
        match &mut trouble.now {
            Some((_, there)) => reason.clone_into(there),
            None => trouble.now = Some((since, reason.to_owned())),
        }
        if trouble.outage.broken(since, Instant::now()).is_some() {
            warn!(reason, "nothing can be written at the moment");
        }
    }

    /// Notes that a limit of nats-server, or its disk, has been in the way of a batch of so many bytes.
    pub fn record_limit(&self, reason: &str, bytes: usize) {
        let mut trouble = self.in_trouble();
        let bytes = trouble.limit.as_ref().map_or(bytes, |limit| limit.bytes.min(bytes));
        trouble.limit = Some(Limit { at: Instant::now(), reason: reason.to_owned(), bytes });
        drop(trouble);
        self.record_trouble(reason);
    }

    /// The limit that was in the way of a change, if nothing as large was taken since.
    pub fn limit(&self) -> Option<String> {
        let mut trouble = self.in_trouble();
        trouble.limit.take_if(|limit| limit.at.elapsed() >= LIMIT_TOLD_FOR);
        trouble.limit.as_ref().map(|limit| limit.reason.clone())
    }

    /// Notes that it takes a batch with changes of so many bytes; none for a server's own record alone.
    pub fn end_trouble(&self, bytes: usize) {
        let mut trouble = self.in_trouble();
        let is_lately = trouble.refused_at.is_some_and(|at| at.elapsed() < TROUBLE_LASTS);
        if bytes == 0 && (is_lately || trouble.limit.as_ref().is_some_and(Limit::is_reached)) {
            return;
        }
        trouble.limit.take_if(|limit| bytes >= limit.bytes);
        trouble.now = None;
        if trouble.outage.works() {
            info!("what is written is taken again");
        }
    }

    /// Whether it has refused the newest one.
    pub fn is_in_trouble(&self) -> bool {
        self.in_trouble().now.is_some()
    }

    /// Why nothing could be written for some seconds, if that is so.
    pub fn trouble(&self) -> Option<String> {
        let trouble = self.in_trouble();
        let lasting = trouble.now.as_ref().filter(|(since, _)| since.elapsed() >= TROUBLE_MIN);
        lasting.map(|(_, reason)| reason.clone())
    }

    /// Changes that nats-server had cut off and that were mended here.
    pub fn mended(&self) -> u64 {
        self.mended.load(Relaxed)
    }

    pub fn set_connected(&self, connected: bool) {
        if !connected {
            // Whoever is there next may have other limits.
            self.in_trouble().limit = None;
        }
        let mut since = self.disconnected.lock().unwrap_or_else(PoisonError::into_inner);
        *since = if connected { None } else { since.or_else(|| Some(Instant::now())) };
    }

    pub fn disconnected_since(&self) -> Option<Instant> {
        *self.disconnected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn lag(&self) -> Duration {
        Duration::from_micros(self.lag_micros.load(Relaxed))
    }

    pub fn error_rate(&self) -> f64 {
        let writes = self.writes.load(Relaxed);
        if writes == 0 { 0.0 } else { self.failed.load(Relaxed) as f64 / writes as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_alone_does_not_end_what_a_limit_began() {
        let meter = Meter::default();
        let later = |time: Duration| meter.in_trouble().refused_at = Some(Instant::now() - time);
        meter.record_trouble("an election");
        meter.end_trouble(0);
        assert!(meter.is_in_trouble(), "changes are refused still");
        later(TROUBLE_LASTS);
        meter.end_trouble(0);
        assert!(!meter.is_in_trouble() && meter.limit().is_none());

        meter.record_limit("the account is full", 5_000);
        meter.end_trouble(0);
        assert!(meter.is_in_trouble(), "the record is small");
        meter.end_trouble(900);
        assert!(!meter.is_in_trouble());
        assert_eq!(
            meter.limit().as_deref(),
            Some("the account is full"),
            "larger ones may not fit"
        );

        // Nobody tries any more: after a while the record is proof of something, but not of all.
        meter.record_limit("the account is full", 9_000);
        meter.in_trouble().limit.as_mut().unwrap().at -= LIMIT_LASTS;
        assert!(meter.is_in_trouble());
        later(TROUBLE_LASTS);
        meter.end_trouble(0);
        assert!(!meter.is_in_trouble() && meter.limit().is_some());
        meter.end_trouble(5_000);
        assert_eq!(meter.limit(), None);
    }
}
