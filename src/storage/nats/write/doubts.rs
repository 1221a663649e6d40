//! Changes whose outcome was told to be unknown: a part of them may be stored, and nobody but their
//! sender knows of them. So it goes on looking for them, and mends what is torn, once it can.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::commit::Commit;

/// Changes that are looked for; the oldest are forgotten first.
const DOUBTS_MAX: usize = 2_048;

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
        if commits.len() == DOUBTS_MAX {
            commits.pop_front();
        }
        commits.push_back(commit);
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
