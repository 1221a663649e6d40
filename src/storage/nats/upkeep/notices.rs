//! What health tells beside how the stream is now.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Losses that health tells at once.
const LOSSES_MAX: usize = 8;

/// What health tells beside how the stream is now.
#[derive(Debug, Default)]
pub struct Notices {
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    /// What changes of the stream's settings may have cost.
    lost: Vec<String>,
    double_ids: Option<String>,
    /// Why the stream has fewer replicas than it should, if it has.
    too_few_replicas: Option<String>,
    /// Why the last look at the stream has failed, if it has.
    unlooked: Option<String>,
    /// Why the last scan for what a crash has brought back has failed, if it has.
    unscanned: Option<String>,
}

impl Notices {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a change of the stream's settings may have cost. Whether that is news.
    pub fn lost(&self, text: &str) -> bool {
        let mut told = self.told();
        let is_new = !told.lost.iter().any(|there| there == text);
        if is_new && told.lost.len() < LOSSES_MAX {
            told.lost.push(text.to_owned());
        }
        is_new
    }

    /// Notes which ids two tokens have, if any.
    pub fn set_double_ids(&self, text: Option<String>) {
        self.told().double_ids = text;
    }

    /// Notes why the stream has fewer replicas than it should, if it has. Whether that is news.
    pub fn set_too_few_replicas(&self, reason: Option<String>) -> bool {
        let mut told = self.told();
        let is_new = reason.is_some() != told.too_few_replicas.is_some();
        told.too_few_replicas = reason;
        is_new
    }

    /// Notes why the stream could not be looked at last, or that it could.
    pub fn set_unlooked(&self, reason: Option<String>) {
        self.told().unlooked = reason;
    }

    /// Notes why the stream could not be scanned last, or that it could. Whether that is news.
    pub fn set_unscanned(&self, reason: Option<String>) -> bool {
        let mut told = self.told();
        let is_new = reason.is_some() != told.unscanned.is_some();
        told.unscanned = reason;
        is_new
    }

    /// Why the stream could not be looked at last; nothing is written before that.
    pub fn unlooked(&self) -> Option<String> {
        self.told().unlooked.clone()
    }

    /// All others.
    pub fn all(&self) -> Vec<String> {
        let told = self.told();
        let unscanned = told.unscanned.as_ref().map(|reason| {
            format!("lists may show tokens where they were before a crash of nats-server, as that cannot be looked for: {reason}; it takes one consumer for a moment, see max_consumers of the account and consumer_limits of the stream")
        });
        let kept = told.lost.iter().chain(&told.double_ids).chain(&told.too_few_replicas);
        kept.cloned().chain(unscanned).collect()
    }
}
