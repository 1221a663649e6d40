//! Counts what health and figures tell of writes and of the connection.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::storage::StorageError;

/// How long nothing can be written before health says so.
const TROUBLE_MIN: Duration = Duration::from_secs(3);

/// The least time between two log lines that say that nothing can be written.
const TELL_PERIOD: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct Trouble {
    /// Since when nats-server has refused everything for a reason of its own, and that.
    now: Option<(Instant, String)>,
    /// When the log was told last, and whether it was told of this one.
    told_at: Option<Instant>,
    is_told: bool,
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
        let mut trouble = self.in_trouble();
        match &mut trouble.now {
            Some((_, there)) => reason.clone_into(there),
            None => trouble.now = Some((Instant::now(), reason.to_owned())),
        }
        if trouble.told_at.is_none_or(|at| at.elapsed() >= TELL_PERIOD) {
            warn!(reason, "nothing can be written at the moment");
            (trouble.told_at, trouble.is_told) = (Some(Instant::now()), true);
        }
    }

    /// Notes that it takes batches.
    pub fn end_trouble(&self) {
        let mut trouble = self.in_trouble();
        trouble.now = None;
        if std::mem::take(&mut trouble.is_told) {
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
