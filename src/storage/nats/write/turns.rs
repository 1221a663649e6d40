//! Whose turn it is: what is new, what is tried again, or a look at the end of the stream.

use std::collections::VecDeque;

use tokio::time::Instant;

/// What is tried again, and whose turn it is. It takes turns with what is new, so that neither blocks
/// the other.
#[derive(Debug)]
pub struct Turns<T> {
    retries: VecDeque<(Instant, Vec<T>)>,
    turn_of_retries: bool,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn<T> {
    /// Take a batch of what has come.
    New,
    /// Try this again.
    Retry(Vec<T>),
    /// Look at the end of the stream.
    Look,
    /// Wait until something comes, or until then.
    Wait(Option<Instant>),
}

impl<T> Turns<T> {
    pub fn new() -> Self {
        Self { retries: VecDeque::new(), turn_of_retries: false }
    }

    /// Has this tried again at that time.
    pub fn put_back(&mut self, group: Vec<T>, at: Instant) {
        if !group.is_empty() {
            self.retries.push_back((at, group));
        }
    }

    /// What is next, given whether something new waits and whether the end of the stream must be
    /// looked at.
    pub fn next(&mut self, now: Instant, is_new: bool, wants_look: bool) -> Turn<T> {
        // Pauses differ: what comes up first need not be in front.
        let first = (0..self.retries.len()).min_by_key(|place| self.retries[*place].0);
        let due = first.map(|place| self.retries[place].0);
        if let Some(place) = first
            && due.is_some_and(|at| at <= now)
            && (self.turn_of_retries || !is_new)
        {
            self.turn_of_retries = false;
            if let Some((_, group)) = self.retries.remove(place) {
                return Turn::Retry(group);
            }
        }
        self.turn_of_retries = true;
        if is_new {
            Turn::New
        } else if wants_look {
            Turn::Look
        } else {
            Turn::Wait(due)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_new_and_what_is_tried_again_take_turns() {
        let begun = Instant::now();
        let after = |millis| begun + Duration::from_millis(millis);
        let mut turns = Turns::new();
        assert_eq!(turns.next(begun, false, false), Turn::Wait(None));
        assert_eq!(turns.next(begun, false, true), Turn::Look);
        turns.put_back(vec![1], after(20));
        turns.put_back(vec![2], after(5));
        turns.put_back(vec![3], after(5));
        turns.put_back(vec![], after(0));
        assert_eq!(turns.next(begun, true, true), Turn::New, "a look comes when there is time");
        assert_eq!(turns.next(begun, false, false), Turn::Wait(Some(after(5))));
        // The one with the shorter pause is not held up by the one before it.
        assert_eq!(turns.next(after(5), true, false), Turn::Retry(vec![2]));
        assert_eq!(turns.next(after(5), true, false), Turn::New, "one each");
        assert_eq!(turns.next(after(5), true, false), Turn::Retry(vec![3]));
        assert_eq!(turns.next(after(5), false, false), Turn::Wait(Some(after(20))));
        assert_eq!(turns.next(after(30), false, true), Turn::Retry(vec![1]));
        assert_eq!(turns.next(after(30), false, false), Turn::Wait(None));
    }
}
