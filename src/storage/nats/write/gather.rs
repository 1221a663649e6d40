//! Which of the changes that wait go into the next batch, and how long it waits for more: a plan.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::batch::BATCH_MESSAGES_MAX;
use super::commit::{Kind, Target};
use super::pending::Pending;

/// Messages of the changes of a batch; this server's own record is the first, and the check of its witness
/// may be the second.
const MESSAGES_MAX: usize = BATCH_MESSAGES_MAX - 2;

/// Bytes of a batch; a single change may be larger.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Changes that did not go into the batch, kept for the next one.
const HELD_MAX: usize = 4_096;

/// A batch costs nats-server a few milliseconds, however small it is. So the next one waits for as
/// many changes as there were callers a moment ago: for up to this part of what the last one took,
/// and only as long as they keep coming, one within this part of it after the other.
const PATIENCE_PART: u32 = 2;
const PATIENCE_MAX: Duration = Duration::from_millis(8);
const GAP_PART: u32 = 8;

/// A change that waits for its batch.
pub trait Waiting {
    fn target(&self) -> &Target;
    fn messages(&self) -> usize;
    fn bytes(&self) -> usize;
    /// The message of its target that it was decided on, if there is to be one.
    fn decided_on(&self) -> Option<u64>;
}

impl Waiting for Pending {
    fn target(&self) -> &Target {
        &self.commit.target
    }

    fn messages(&self) -> usize {
        self.commit.messages.len()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn decided_on(&self) -> Option<u64> {
        match self.commit.kind {
            Kind::Move { expected, .. } => Some(expected.0),
            Kind::CreateToken { .. } | Kind::CreateWorkflow => None,
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Take the one that waits.
    Take,
    /// Take one that comes before then; if none does, send what there is.
    WaitUntil(Instant),
    /// Send what there is.
    Send,
}

/// A batch in the making, and what is kept for those after it.
pub struct Gathering<P> {
    batch: Vec<P>,
    targets: HashSet<Target>,
    messages: usize,
    bytes: usize,
    /// In the order in which they came.
    held: VecDeque<P>,
    /// What the batch before changed: where it stands now.
    changed: HashMap<Target, u64>,
    /// How many changes the batch may hope for, and how long it waits for them.
    hoped: usize,
    patience: Duration,
    until: Instant,
}

impl<P: Waiting> Gathering<P> {
    pub fn new() -> Self {
        Self {
            batch: Vec::new(),
            targets: HashSet::new(),
            messages: 0,
            bytes: 0,
            held: VecDeque::new(),
            changed: HashMap::new(),
            hoped: 1,
            patience: Duration::ZERO,
            until: Instant::now(),
        }
    }

    /// How many are kept for the next batch.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Begins the next batch with what was kept for it; gives what has lost meanwhile, as the batch
    /// before changed the same thing.
    pub fn begin(&mut self, now: Instant) -> Vec<P> {
        self.until = now + self.patience;
        let mut lost = Vec::new();
        for waiting in std::mem::take(&mut self.held) {
            match self.changed.get(waiting.target()) {
                Some(at) if waiting.decided_on().is_none_or(|on| on < *at) => lost.push(waiting),
                _ => self.take(waiting),
            }
        }
        // What comes from now on is decided on what stands there now, or is refused.
        self.changed.clear();
        lost
    }

    /// Puts a change into the batch, or keeps it for a later one.
    pub fn take(&mut self, waiting: P) {
        let fits = self.batch.is_empty()
            || (!self.targets.contains(waiting.target())
                && self.messages + waiting.messages() <= MESSAGES_MAX
                && self.bytes + waiting.bytes() <= BATCH_BYTES_MAX);
        if !fits {
            self.held.push_back(waiting);
            return;
        }
        self.targets.insert(waiting.target().clone());
        self.messages += waiting.messages();
        self.bytes += waiting.bytes();
        self.batch.push(waiting);
    }

    /// What to do next; `one_waits` says whether another change is there already.
    pub fn next_step(&self, now: Instant, one_waits: bool) -> Step {
        let has_room = self.messages < MESSAGES_MAX && self.bytes < BATCH_BYTES_MAX;
        if self.held.len() >= HELD_MAX || !has_room {
            Step::Send
        } else if one_waits {
            Step::Take
        } else if self.batch.len() >= self.hoped || now >= self.until {
            Step::Send
        } else {
            // Those who were just answered come back in a moment, if they come back.
            let gap = self.patience * PATIENCE_PART / GAP_PART;
            Step::WaitUntil(self.until.min(now + gap))
        }
    }

    /// The batch as it is.
    pub fn finish(&mut self) -> Vec<P> {
        self.targets.clear();
        (self.messages, self.bytes) = (0, 0);
        std::mem::take(&mut self.batch)
    }

    /// Notes where something stands that the batch has changed.
    pub fn changed(&mut self, target: Target, at: u64) {
        self.changed.insert(target, at);
    }

    /// Notes that something is there, so whoever waits to create it has lost.
    pub fn exists(&mut self, target: Target) {
        self.changed.entry(target).or_insert(0);
    }

    /// Notes how the batch went: with so many changes, so many more that wait by now, the time that it
    /// took, and whether nats-server has refused some of it.
    pub fn ended(&mut self, count: usize, waiting: usize, took: Duration, was_refused: bool) {
        (self.hoped, self.patience) = if was_refused {
            // Where others move the same tokens, who waits has lost.
            (1, Duration::ZERO)
        } else {
            (count + waiting, (took / PATIENCE_PART).min(PATIENCE_MAX))
        };
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Change {
        number: usize,
        target: Target,
        messages: usize,
        bytes: usize,
        decided_on: Option<u64>,
    }

    impl Waiting for Change {
        fn target(&self) -> &Target {
            &self.target
        }

        fn messages(&self) -> usize {
            self.messages
        }

        fn bytes(&self) -> usize {
            self.bytes
        }

        fn decided_on(&self) -> Option<u64> {
            self.decided_on
        }
    }

    fn token(id: u128) -> Target {
        Target::Token(Uuid::from_u128(id))
    }

    fn change(number: usize, id: u128, decided_on: Option<u64>) -> Change {
        Change { number, target: token(id), messages: 3, bytes: 500, decided_on }
    }

    fn numbers(batch: &[Change]) -> Vec<usize> {
        batch.iter().map(|change| change.number).collect()
    }

    #[test]
    fn two_changes_of_one_token_go_into_two_batches() {
        let mut gathering = Gathering::new();
        assert_eq!(gathering.begin(Instant::now()), []);
        for (number, id) in [(0, 1), (1, 2), (2, 1), (3, 1), (4, 3)] {
            gathering.take(change(number, id, Some(5)));
        }
        assert_eq!((numbers(&gathering.finish()), gathering.held()), (vec![0, 1, 4], 2));
        gathering.begin(Instant::now());
        assert_eq!((numbers(&gathering.finish()), gathering.held()), (vec![2], 1));
    }

    #[test]
    fn what_was_decided_before_the_last_batch_has_lost() {
        for (decided_on, at, loses) in
            [(Some(5), 9, true), (Some(9), 9, false), (Some(10), 9, false), (None, 9, true)]
        {
            let mut gathering = Gathering::new();
            gathering.take(change(0, 1, Some(5)));
            gathering.take(change(1, 1, decided_on));
            gathering.take(change(2, 1, Some(20)));
            gathering.finish();
            gathering.changed(token(1), at);
            let lost = numbers(&gathering.begin(Instant::now()));
            let rest = if loses { vec![2] } else { vec![1] };
            assert_eq!((lost.len(), numbers(&gathering.finish())), (usize::from(loses), rest));
            // It is not remembered for longer: the token may be gone and made anew.
            gathering.take(change(3, 1, None));
            gathering.take(change(4, 1, None));
            gathering.finish();
            assert_eq!(gathering.begin(Instant::now()), []);
        }
    }

    #[test]
    fn what_waits_to_create_what_is_there_has_lost_and_moves_have_not() {
        let mut gathering = Gathering::new();
        for (number, decided_on) in [(0, None), (1, None), (2, Some(5)), (3, None)] {
            gathering.take(change(number, 1, decided_on));
        }
        gathering.finish();
        gathering.exists(token(1));
        assert_eq!(numbers(&gathering.begin(Instant::now())), [1, 3]);
        assert_eq!(numbers(&gathering.finish()), [2]);
    }

    #[test]
    fn a_batch_waits_for_as_many_as_came_last_and_only_while_they_come() {
        let (mut gathering, begun) = (Gathering::new(), Instant::now());
        let after = |micros| begun + Duration::from_micros(micros);
        let begin = |gathering: &mut Gathering<Change>, number| {
            gathering.finish();
            gathering.begin(begun);
            gathering.take(change(number, number as u128, Some(1)));
        };
        begin(&mut gathering, 0);
        assert_eq!(gathering.next_step(begun, true), Step::Take);
        assert_eq!(gathering.next_step(begun, false), Step::Send, "nothing is known of others");

        gathering.ended(2, 1, Duration::from_micros(4_000), false);
        begin(&mut gathering, 1);
        assert_eq!(gathering.next_step(after(0), false), Step::WaitUntil(after(500)));
        assert_eq!(gathering.next_step(after(1_800), false), Step::WaitUntil(after(2_000)));
        assert_eq!(gathering.next_step(after(2_000), false), Step::Send, "half of the last one");
        assert_eq!(gathering.next_step(after(2_000), true), Step::Take, "what is there, is free");
        gathering.take(change(2, 2, Some(1)));
        assert_eq!(gathering.next_step(after(0), false), Step::WaitUntil(after(500)));
        gathering.take(change(3, 3, Some(1)));
        assert_eq!(gathering.next_step(after(0), false), Step::Send, "all have come");

        gathering.ended(3, 0, Duration::from_secs(9), false);
        begin(&mut gathering, 4);
        assert_eq!(gathering.next_step(after(0), false), Step::WaitUntil(after(2_000)));
        assert_eq!(gathering.next_step(after(8_000), false), Step::Send, "8 ms at most");

        gathering.ended(9, 9, Duration::from_secs(9), true);
        begin(&mut gathering, 5);
        assert_eq!(gathering.next_step(after(0), false), Step::Send, "after a refusal at once");
    }

    #[test]
    fn every_change_is_in_one_batch_and_no_batch_is_too_large() {
        let mut random = 9_u64;
        let mut below = |end: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % end
        };
        let mut gathering = Gathering::new();
        let (mut sent, mut given, mut at) = (Vec::new(), 0, 0);
        for _ in 0..2_000 {
            assert_eq!(gathering.begin(Instant::now()), [], "nothing is known to have changed");
            let mut coming = below(60);
            while gathering.next_step(Instant::now(), coming > 0) == Step::Take {
                let bytes = if below(20) == 0 { 5_000_000 } else { below(300_000) as usize };
                let messages = 1 + below(40) as usize;
                let target = token(u128::from(below(50)));
                at += 1;
                let change =
                    Change { number: given, target, messages, bytes, decided_on: Some(at) };
                gathering.take(change);
                (given, coming) = (given + 1, coming - 1);
            }
            let batch = gathering.finish();
            let targets: HashSet<_> = batch.iter().map(|change| &change.target).collect();
            assert_eq!(targets.len(), batch.len(), "each thing once");
            let sum = |of: fn(&Change) -> usize| batch.iter().map(of).sum::<usize>();
            let fits =
                sum(|one| one.bytes) <= BATCH_BYTES_MAX && sum(|one| one.messages) <= MESSAGES_MAX;
            assert!(fits || batch.len() == 1, "only a single one may be larger");
            assert!(!batch.is_empty() || gathering.held() == 0);
            sent.extend(numbers(&batch));
        }
        while gathering.held() > 0 {
            gathering.begin(Instant::now());
            sent.extend(numbers(&gathering.finish()));
        }
        sent.sort_unstable();
        assert_eq!(sent, (0..given).collect::<Vec<_>>());
    }
}
