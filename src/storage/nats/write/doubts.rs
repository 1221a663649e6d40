//! Changes whose outcome was told to be unknown: a part of them may be stored, and nobody but their
//! sender knows of them. So it goes on looking for them, and mends what is torn, once it can.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::commit::Commit;

/// Bytes of the changes that are looked for; the oldest are forgotten first.
const BYTES_MAX: usize = 8 << 20;

/// Changes of unknown outcome.
#[derive(Default)]
pub struct Doubts {
    commits: Mutex<VecDeque<Commit>>,
}

impl Doubts {
    fn commits(&self) -> MutexGuard<'_, VecDeque<Commit>> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner)
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

    pub fn is_empty(&self) -> bool {
        self.commits().is_empty()
    }

    /// Takes up to so many out.
    pub fn take(&self, most: usize) -> Vec<Commit> {
        let mut commits = self.commits();
        let count = commits.len().min(most);
        commits.drain(..count).collect()
    }
}
