//! What the calculations of one request may cost, and the end of what nobody waits for any more.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// The steps that one request has for all its calculations together, whatever asks for them.
///
/// Steps are counted, not time, so the same calculation on the same data always costs the same.
#[derive(Debug)]
pub struct Steps {
    max: i64,
    left: AtomicI64,
    stopped: AtomicBool,
}

impl Steps {
    /// As many as `max`.
    pub fn new(max: i64) -> Self {
        Self { max, left: AtomicI64::new(max), stopped: AtomicBool::new(false) }
    }

    /// How many there were.
    pub fn max(&self) -> i64 {
        self.max
    }

    /// How many are left.
    pub fn left(&self) -> i64 {
        self.left.load(Ordering::Relaxed)
    }

    /// Ends every calculation that draws from here: nobody waits for it any more.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether nobody waits any more.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Takes up to `most` steps; none where none are left, or nobody waits any more.
    pub fn take_up_to(&self, most: i64) -> i64 {
        if self.is_stopped() {
            return 0;
        }
        let mut taken = 0;
        let take = |left: i64| {
            taken = left.clamp(0, most);
            Some(left - taken)
        };
        // Never an error: `take` always gives something.
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken
    }

    /// Gives back what was taken and not used.
    pub fn give_back(&self, steps: i64) {
        self.left.fetch_add(steps, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is() {
        let steps = Steps::new(10);
        assert_eq!((steps.take_up_to(4), steps.left()), (4, 6));
        assert_eq!((steps.take_up_to(9), steps.left()), (6, 0));
        assert_eq!(steps.take_up_to(1), 0);
        steps.give_back(3);
        assert_eq!((steps.take_up_to(2), steps.left()), (2, 1));
        steps.stop();
        assert_eq!((steps.take_up_to(1), steps.left(), steps.max()), (0, 1, 10));
    }
}
