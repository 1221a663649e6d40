//! Changes whose outcome was told to be unknown: a part of them may be stored, and nobody but their
//! sender knows of them. So it goes on looking for them, and mends what is torn, once it can.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::commit::Commit;

/// Bytes of the changes that are looked for; the oldest are forgotten first.
const BYTES_MAX: usize = 8 << 20;

/// The least pause after a look, which is as long as the look was: others want to write, too. And how
/// many are looked for at once.
const PAUSE: Duration = Duration::from_millis(500);
const AT_ONCE: usize = 64;

/// Changes of unknown outcome.
#[derive(Default)]
pub struct Doubts {
    commits: Mutex<VecDeque<Commit>>,
    /// When they are looked for next, unless at once.
    next_look: Mutex<Option<Instant>>,
}

impl Doubts {
    fn commits(&self) -> MutexGuard<'_, VecDeque<Commit>> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_look(&self) -> MutexGuard<'_, Option<Instant>> {
        self.next_look.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there are some, or another reason, and it is time to look.
    pub fn are_due(&self, otherwise: bool, now: Instant) -> bool {
        (otherwise || !self.commits().is_empty()) && self.next_look().is_none_or(|at| now >= at)
    }

    /// A look that began then has ended.
    pub fn looked(&self, begun: Instant, now: Instant) {
        *self.next_look() = Some(now + (now - begun).max(PAUSE));
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

    /// Puts back what could not be looked for; the first of them does not hold up the others.
    pub fn put_back(&self, mut commits: VecDeque<Commit>) {
        if let Some(first) = commits.pop_front() {
            commits.into_iter().for_each(|commit| self.push(commit));
            self.push(first);
        }
    }

    /// Takes some out, the oldest.
    pub fn take(&self) -> Vec<Commit> {
        let mut commits = self.commits();
        let count = commits.len().min(AT_ONCE);
        commits.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_look_others_have_their_turn() {
        let (doubts, begun) = (Doubts::default(), Instant::now());
        let at = |millis| begun + Duration::from_millis(millis);
        assert!(!doubts.are_due(false, begun), "there is none");
        assert!(doubts.are_due(true, begun));
        doubts.looked(begun, at(20));
        assert!(!doubts.are_due(true, at(519)) && doubts.are_due(true, at(520)));
        // One that waited long for an answer is not begun anew at once.
        doubts.looked(at(600), at(3_600));
        assert!(!doubts.are_due(true, at(6_599)) && doubts.are_due(true, at(6_600)));
    }
}
