//! Changes whose outcome was told to be unknown: a part of them may be stored, and nobody but their
//! sender knows of them. So it goes on looking for them, and mends what is torn, once it can.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::commit::Commit;

/// Bytes of the changes that are looked for; the oldest are forgotten first.
const BYTES_MAX: usize = 8 << 20;

/// Pause between two looks, and how many are looked for at once.
const PAUSE: Duration = Duration::from_millis(500);
const AT_ONCE: usize = 64;

/// Changes of unknown outcome.
#[derive(Default)]
pub struct Doubts {
    commits: Mutex<VecDeque<Commit>>,
    /// When they were looked for last.
    looked: Mutex<Option<Instant>>,
}

impl Doubts {
    fn commits(&self) -> MutexGuard<'_, VecDeque<Commit>> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there are some, or another reason, and it is time to look; then not again for a moment.
    pub fn are_due(&self, otherwise: bool, now: Instant) -> bool {
        if !otherwise && self.commits().is_empty() {
            return false;
        }
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let due = looked.is_none_or(|at| now >= at + PAUSE);
        if due {
            *looked = Some(now);
        }
        due
    }

    /// Adds one.
    pub fn push(&self, commit: Commit) {
        let mut commits = self.commits();
        commits.push_back(commit);
        let mut bytes: usize = commits.iter().map(Commit::bytes).sum();
        while bytes > BYTES_MAX
            && let Some(oldest) = commits.pop_front()
        {
            bytes -= oldest.bytes();
        }
    }

    /// Takes some out, the oldest.
    pub fn take(&self) -> Vec<Commit> {
        let mut commits = self.commits();
        let count = commits.len().min(AT_ONCE);
        commits.drain(..count).collect()
    }
}
