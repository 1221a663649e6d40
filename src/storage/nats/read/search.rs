//! Which questions find the messages that match a filter, oldest first: the plan of a list.
//!
//! It asks for single matches, several at once, each from further on than the one before, by the
//! distance that matches have had so far; an answer counts where no match can lie between it and
//! the one before. nats-server takes the questions up in their order, so a token that moves
//! meanwhile is found where it was or where it comes to. Where every few messages one matches, it
//! asks for whole stretches of the stream.

use super::hints::{Hint, Learned};
use super::reader::{RUN_BYTES_MAX, Run};
use super::stored::Stored;
use crate::storage::nats::wire::names;

/// Single matches asked for at once. Where no match comes for long, each of them makes nats-server go
/// through the same gap.
const AT_ONCE_MAX: usize = 32;

/// Bytes of single matches asked for at once, as far as can be foreseen, and of one at first.
const AT_ONCE_BYTES: usize = 8 << 20;
const FORESEEN_BYTES: usize = 1_024;

/// Messages from one match to the next, up to which whole stretches of the stream are read, and
/// matches after which that is known.
const DENSE_MAX: u64 = 4;
const DENSE_AFTER: usize = 4;

/// Messages that a stretch has beyond what is expected to suffice.
const STRETCH_SLACK: usize = 8;

/// What to ask for next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The very first message of the stream.
    First,
    /// The next match from `from` on, and so from each of `count` places, `distance` apart.
    Matches { from: u64, distance: u64, count: usize },
    /// All messages from this one on, whether they match or not.
    Stretch { from: u64, count: usize },
    /// Nothing: the run is complete.
    Done,
}

/// The answer to the question for the next match from a sequence on.
#[derive(Debug)]
pub struct Next {
    pub from: u64,
    pub found: Option<Stored>,
}

/// A search in the making.
#[derive(Debug)]
pub struct Search<'a> {
    filter: &'a str,
    limit: usize,
    /// All that matches before this sequence is found.
    position: u64,
    /// Messages from one match to the next, as far as is known.
    distance: u64,
    /// Whether an earlier search has shown that distance.
    is_told: bool,
    /// Questions of the next step.
    at_once: usize,
    /// Bytes of the largest match, and of all of them.
    largest: usize,
    bytes: usize,
    /// Whether it begins where nothing that matches can lie before, and where the first match was.
    from_floor: bool,
    floor: Option<u64>,
    /// Whether a stretch was read.
    is_dense: bool,
    is_done: bool,
    run: Run,
}

impl<'a> Search<'a> {
    pub fn new(filter: &'a str, start: u64, limit: usize, hint: &Hint) -> Self {
        Self {
            filter,
            limit,
            position: start.max(hint.floor).max(1),
            distance: hint.distance.unwrap_or(1),
            is_told: hint.distance.is_some(),
            at_once: 1,
            largest: FORESEEN_BYTES,
            bytes: 0,
            from_floor: start <= hint.floor.max(1),
            floor: None,
            is_dense: false,
            is_done: false,
            run: Run::default(),
        }
    }

    pub fn next_step(&mut self) -> Step {
        let missing = self.limit.saturating_sub(self.run.messages.len());
        if self.is_done {
            return Step::Done;
        }
        if missing == 0 || self.bytes >= RUN_BYTES_MAX {
            // Whether there are more, only another question would tell.
            (self.run.more, self.is_done) = (true, true);
            return Step::Done;
        }
        if self.position == 1 {
            // A search from the very first message on looks at all subjects that match first.
            return Step::First;
        }
        if self.distance <= DENSE_MAX && (self.is_told || self.run.messages.len() >= DENSE_AFTER) {
            self.is_dense = true;
            let distance = usize::try_from(self.distance).unwrap_or(1);
            let count = missing.saturating_mul(distance).saturating_add(STRETCH_SLACK);
            return Step::Stretch { from: self.position, count };
        }
        let count = self.at_once.min(missing).min(AT_ONCE_BYTES / self.largest).max(1);
        Step::Matches { from: self.position, distance: self.distance, count }
    }

    fn found(&mut self, stored: Stored) {
        // Only what is kept counts: a run that found nothing must go on, or the list would end here.
        self.bytes += stored.payload.len();
        self.largest = self.largest.max(stored.payload.len());
        self.run.messages.push(stored);
    }

    pub fn on_first(&mut self, first: Option<Stored>) {
        if let Some(first) = first.filter(|first| names::covers(self.filter, &first.subject)) {
            self.found(first);
        }
        self.position = 2;
    }

    pub fn on_matches(&mut self, answers: Vec<Next>) {
        let (asked, before, begin) = (answers.len(), self.run.messages.len(), self.position);
        for Next { from, found } in answers {
            if from > self.position {
                // Between the last match and this question there may be others.
                break;
            }
            match found {
                None => self.is_done = true,
                Some(found) if found.sequence >= self.position => {
                    self.position = found.sequence + 1;
                    self.found(found);
                }
                Some(_) => {}
            }
        }
        if self.from_floor
            && before == 0
            && let Some(first) = self.run.messages.first()
        {
            self.floor = Some(first.sequence);
        }
        let found = (self.run.messages.len() - before).max(1);
        self.distance = ((self.position - begin) / found as u64).max(1);
        let (more, fewer) = ((2 * self.at_once).min(AT_ONCE_MAX), (self.at_once / 2).max(1));
        self.at_once = if 2 * found >= asked { more } else { fewer };
    }

    pub fn on_stretch(&mut self, all: Run) {
        let Some(last) = all.messages.last() else {
            self.is_done = true;
            return;
        };
        let (begin, before) = (self.position, self.run.messages.len());
        let next = last.sequence + 1;
        for stored in all.messages {
            if !names::covers(self.filter, &stored.subject) {
                continue;
            }
            if self.run.messages.len() == self.limit {
                (self.run.more, self.is_done) = (true, true);
                return;
            }
            self.found(stored);
        }
        let found = self.run.messages.len() - before;
        self.distance = (next - begin).div_ceil(found.max(1) as u64);
        self.position = next;
        self.is_done = !all.more;
    }

    pub fn learned(&self) -> Learned {
        Learned { distance: self.is_dense.then_some(self.distance), floor: self.floor }
    }

    pub fn into_run(self) -> Run {
        self.run
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use chrono::Utc;

    use super::*;
    use crate::storage::nats::read::hints::Hints;

    const FILTER: &str = "cb.workflows.w.places.a.tokens.*";

    /// A stream of which some messages match [`FILTER`], with what each holds.
    #[derive(Default)]
    struct Stream {
        /// The token and its bytes, where it matches.
        messages: BTreeMap<u64, Option<(u32, usize)>>,
        last: u64,
        /// What payloads are cut from.
        text: Bytes,
    }

    impl Stream {
        fn new() -> Self {
            Self { text: vec![b'x'; 1_000_000].into(), ..Self::default() }
        }

        fn push(&mut self, message: Option<(u32, usize)>) {
            self.last += 1;
            self.messages.insert(self.last, message);
        }

        /// A token moves out of the place and in again.
        fn moves(&mut self, token: u32) {
            let at = self.messages.iter().find(|(_, one)| one.is_some_and(|one| one.0 == token));
            if let Some((&at, &message)) = at {
                self.messages.remove(&at);
                self.push(message);
            }
        }

        fn stored(&self, sequence: u64) -> Stored {
            let message = self.messages[&sequence];
            let subject = message.map_or_else(
                || "cb.workflows.w.events.transitions".to_owned(),
                |(token, _)| format!("cb.workflows.w.places.a.tokens.{token}"),
            );
            let payload = self.text.slice(..message.map_or(9, |(_, bytes)| bytes));
            Stored { subject, sequence, time: Utc::now(), marks: Default::default(), payload }
        }

        fn next_match(&self, from: u64) -> Option<Stored> {
            let mut later = self.messages.range(from..).filter(|(_, message)| message.is_some());
            later.next().map(|(sequence, _)| self.stored(*sequence))
        }

        fn stretch(&self, from: u64, count: usize) -> Run {
            let mut run = Run::default();
            let mut bytes = 0;
            for (sequence, _) in self.messages.range(from..) {
                if run.messages.len() == count || bytes >= RUN_BYTES_MAX {
                    run.more = true;
                    break;
                }
                let stored = self.stored(*sequence);
                bytes += stored.payload.len();
                run.messages.push(stored);
            }
            run
        }
    }

    /// Numbers that look random and are the same in every run.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % end
        }
    }

    /// Runs a search to its end; `meanwhile` happens before each single question. Gives the run, what
    /// was learned, and how many steps it took.
    fn search(
        stream: &mut Stream,
        start: u64,
        limit: usize,
        hint: &Hint,
        mut meanwhile: impl FnMut(&mut Stream),
    ) -> (Run, Learned, usize) {
        let mut search = Search::new(FILTER, start, limit, hint);
        for steps in 0..100_000 {
            meanwhile(stream);
            match search.next_step() {
                Step::Done => {
                    let learned = search.learned();
                    return (search.into_run(), learned, steps);
                }
                Step::First => {
                    search.on_first(stream.messages.contains_key(&1).then(|| stream.stored(1)));
                }
                Step::Matches { from, distance, count } => {
                    assert!(count <= AT_ONCE_MAX);
                    let answers = (0..count as u64).map(|n| {
                        meanwhile(stream);
                        let from = from + n * distance;
                        Next { from, found: stream.next_match(from) }
                    });
                    let answers = answers.collect();
                    search.on_matches(answers);
                }
                Step::Stretch { from, count } => search.on_stretch(stream.stretch(from, count)),
            }
        }
        panic!("the search does not end");
    }

    fn sequences(run: &Run) -> Vec<u64> {
        run.messages.iter().map(|stored| stored.sequence).collect()
    }

    fn hint(distance: Option<u64>, floor: u64) -> Hint {
        let mut hint = Hints::new(Default::default()).of(FILTER);
        (hint.distance, hint.floor) = (distance, floor);
        hint
    }

    #[test]
    fn whatever_lies_between_the_matches_each_is_found_once_and_in_order() {
        let mut numbers = Numbers(7);
        for distance in [1, 2, 3, 4, 5, 9, 50, 300] {
            for round in 0..8 {
                let mut stream = Stream::new();
                let large = if round % 4 == 3 { 900_000 } else { 20 };
                for token in 0..(if large > 20 { 40 } else { 150 }) {
                    // Even gaps, uneven ones, and one that is far wider than what came before.
                    let gap = match round % 3 {
                        0 => distance - 1,
                        1 => numbers.below(2 * distance),
                        _ if token == 70 => 40 * distance,
                        _ => numbers.below(distance),
                    };
                    (0..gap).for_each(|_| stream.push(None));
                    stream.push(Some((token, 1 + numbers.below(large) as usize)));
                }
                // Some are gone.
                for sequence in 1..=stream.last {
                    if numbers.below(5) == 0 {
                        stream.messages.remove(&sequence);
                    }
                }
                let matches: Vec<u64> = (1..=stream.last)
                    .filter(|at| stream.messages.get(at).is_some_and(Option::is_some))
                    .collect();
                for told in [None, Some(1), Some(3), Some(40)] {
                    let start = numbers.below(stream.last) * (round & 1);
                    let limit = 1 + numbers.below(200) as usize;
                    let hint = hint(told, 0);
                    let (run, _, _) = search(&mut stream, start, limit, &hint, |_| {});
                    let all: Vec<_> = matches.iter().copied().filter(|at| *at >= start).collect();
                    let found = sequences(&run);
                    assert!(all.starts_with(&found), "{distance} {round} {told:?} {start} {limit}");
                    let bytes: usize = run.messages.iter().map(|one| one.payload.len()).sum();
                    let complete = found.len() == limit || bytes >= RUN_BYTES_MAX;
                    assert!(complete || found.len() == all.len() && !run.more);
                    assert!(run.more || found.len() == all.len(), "an end is the end");
                }
            }
        }
    }

    #[test]
    fn what_stays_is_found_and_what_moves_is_found_somewhere() {
        let mut numbers = Numbers(11);
        for distance in [1, 2, 4, 7, 60] {
            for round in 0..16 {
                let mut stream = Stream::new();
                for token in 0..120 {
                    (0..numbers.below(2 * distance)).for_each(|_| stream.push(None));
                    stream.push(Some((token, 20)));
                }
                let told = [None, Some(distance)][round % 2];
                let hint = hint(told, 0);
                let mut left = 200;
                let (run, _, _) = search(&mut stream, 0, 2_000, &hint, |stream| {
                    if left > 0 && numbers.below(2) == 0 {
                        left -= 1;
                        // Every third one moves, some of them often.
                        stream.moves(3 * numbers.below(40) as u32);
                    }
                });
                let found = sequences(&run);
                assert!(found.is_sorted_by(|a, b| a < b), "in order, and none twice");
                let tokens: Vec<_> = run.messages.iter().map(|one| one.subject.clone()).collect();
                for token in 0..120 {
                    let subject = format!("cb.workflows.w.places.a.tokens.{token}");
                    let times = tokens.iter().filter(|one| **one == subject).count();
                    assert!(times > 0, "{distance} {round}: {token} is missed");
                    assert!(times == 1 || token % 3 == 0, "{token} stayed and is found twice");
                }
            }
        }
    }

    #[test]
    fn a_page_costs_few_questions_and_the_next_one_fewer() {
        for (distance, first, next) in [(1, 6, 2), (4, 6, 2), (5, 10, 10), (1_000, 10, 10)] {
            let mut stream = Stream::new();
            for token in 0..1_000 {
                (1..distance).for_each(|_| stream.push(None));
                stream.push(Some((token, 20)));
            }
            let (run, learned, steps) = search(&mut stream, 0, 100, &hint(None, 0), |_| {});
            assert!(run.messages.len() == 100 && steps <= first, "{distance}: {steps} steps");
            let floor = learned.floor.unwrap_or_default();
            assert!(floor <= distance, "nothing that matches lies before {floor}");
            let hint = hint(learned.distance, floor);
            let start = run.messages.last().unwrap().sequence + 1;
            let (run, _, steps) = search(&mut stream, start, 100, &hint, |_| {});
            assert!(run.messages.len() == 100 && steps <= next, "{distance}: {steps} steps");
        }
    }

    #[test]
    fn after_a_large_match_fewer_are_asked_for_at_once() {
        let mut search = Search::new(FILTER, 2, 1_000, &hint(None, 0));
        let mut stream = Stream::new();
        for token in 0..300 {
            (0..9).for_each(|_| stream.push(None));
            stream.push(Some((token, if token == 100 { 1_000_000 } else { 20 })));
        }
        let mut counts = Vec::new();
        while let Step::Matches { from, distance, count } = search.next_step() {
            counts.push(count);
            let from = (0..count as u64).map(|n| from + n * distance);
            let next = |from| Next { from, found: stream.next_match(from) };
            search.on_matches(from.map(next).collect());
        }
        let large = counts.iter().rposition(|count| *count == AT_ONCE_MAX).unwrap();
        assert!(large + 1 < counts.len() && counts[large + 1..].iter().all(|count| *count == 8));
    }
}
