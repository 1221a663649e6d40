//! How much room the stream has, and what to do about it: calculations.

use std::time::Duration;

use tokio::time::Instant;

use crate::storage::nats::wire::jetstream::StreamState;
use crate::storage::nats::wire::names::STREAM;

/// How old the count of what the stream holds may be while this process writes: others write, too.
const COUNT_AGE_MAX: Duration = Duration::from_secs(1);

/// The least pause after completed tokens were looked for in vain. It doubles each time, up to the
/// most, and what took long is followed by so many times its length.
const USELESS_PAUSE: Duration = Duration::from_millis(500);
const USELESS_PAUSE_MAX: Duration = Duration::from_secs(60);
const USELESS_PAUSE_TIMES: u32 = 10;

/// How often in a look the oldest events go, where others write meanwhile, before all do.
pub const OLDEST_ROUNDS_MAX: u8 = 16;

/// What the stream holds, as it was counted and as this process has written since.
#[derive(Debug, Clone)]
pub struct Usage {
    messages: Room,
    bytes: Room,
    counted: Instant,
    /// Before that it is useless to look for completed tokens once more, and how long the last pause
    /// was.
    useless_until: Instant,
    useless_for: Duration,
    /// Whether something did not fit, whatever the count says.
    pub refused: bool,
    /// Whether creations are refused.
    refuses: bool,
    /// Why history could not be removed at the last look, if it could not.
    pub hindered: Option<String>,
}

/// How much creations may still take, and the reason why it is not more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowance {
    pub messages: u64,
    pub bytes: u64,
    pub reason: String,
}

/// How much of one limit is used.
#[derive(Debug, Clone, Copy, Default)]
struct Room {
    used: u64,
    max: Option<u64>,
    /// The bounds of [`Room::reserve`]; the lower one is at most a quarter of the limit.
    reserve: (u64, u64),
}

/// What a look has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    Nothing,
    /// The oldest events went, so many rounds of that.
    Oldest(u8),
    AllEvents,
    Completed,
}

/// What it does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing: there is room, or nothing more can be done now.
    Rest,
    /// Remove about so many of the oldest events.
    Oldest(u64),
    /// Remove all events.
    AllEvents,
    /// Remove completed tokens, oldest first, until there is room.
    Completed,
}

impl Room {
    /// What creations leave free, so that what is there can still move: a tenth, within bounds.
    fn reserve(&self) -> u64 {
        let (least, most) = self.reserve;
        self.max.map_or(0, |max| (max / 10).clamp(least.min(max / 4), most))
    }

    /// Whether history should go.
    fn is_high(&self) -> bool {
        self.max.is_some_and(|max| self.used > max.saturating_sub(2 * self.reserve()))
    }

    /// Whether creations must stop: less is left for them than an eighth of the reserve.
    fn is_full(&self) -> bool {
        self.max.is_some() && self.left() < self.reserve() / 8
    }

    /// Whether half of it is used.
    fn is_half(&self) -> bool {
        self.max.is_some_and(|max| self.used > max / 2)
    }

    /// How much creations may still use.
    fn left(&self) -> u64 {
        self.max
            .map_or(u64::MAX, |max| max.saturating_sub(self.reserve()).saturating_sub(self.used))
    }

    /// How much must go, so that it need not begin anew at once.
    fn excess(&self) -> u64 {
        let wanted = |max: u64| max.saturating_sub(2 * self.reserve() + max / 10);
        self.max.map_or(0, |max| self.used.saturating_sub(wanted(max)))
    }
}

impl Usage {
    pub fn new(now: Instant) -> Self {
        Self {
            // A departure stays for a second, so the reserve bounds how many moves a full stream makes.
            messages: Room { reserve: (32, 20_000), ..Room::default() },
            // At the least two of the largest records: one that moves is there twice for a moment.
            bytes: Room { reserve: (2_500_000, 64 << 20), ..Room::default() },
            counted: now,
            useless_until: now,
            useless_for: Duration::ZERO,
            refused: false,
            refuses: false,
            hindered: None,
        }
    }

    /// Takes what was counted. Whether that ends a time in which creations were refused.
    pub fn count(&mut self, state: &StreamState, now: Instant) -> bool {
        (self.messages.used, self.messages.max) = (state.messages, state.messages_max);
        (self.bytes.used, self.bytes.max) = (state.bytes, state.bytes_max);
        self.counted = now;
        let ends = !self.is_full() && std::mem::take(&mut self.refuses);
        if ends {
            (self.useless_until, self.useless_for) = (now, Duration::ZERO);
        }
        ends
    }

    /// Adds what is about to be written.
    pub fn add(&mut self, messages: u64, bytes: u64) {
        self.messages.used += messages;
        self.bytes.used += bytes;
    }

    fn is_high(&self) -> bool {
        self.messages.is_high() || self.bytes.is_high()
    }

    /// Whether creations must stop.
    pub fn is_full(&self) -> bool {
        self.messages.is_full() || self.bytes.is_full()
    }

    /// Whether creations are refused.
    pub fn refuses(&self) -> bool {
        self.refuses
    }

    /// Why creations are refused, while they are, with what there is now.
    pub fn full(&self) -> Option<String> {
        self.refuses.then(|| self.reason())
    }

    /// Whether the stream should be looked at.
    pub fn wants_look(&self, now: Instant) -> bool {
        self.is_high() || self.refuses || now >= self.counted + COUNT_AGE_MAX
    }

    /// What creations may still take.
    pub fn allowance(&self) -> Allowance {
        Allowance {
            messages: if self.refuses { 0 } else { self.messages.left() },
            bytes: if self.refuses { 0 } else { self.bytes.left() },
            reason: self.reason(),
        }
    }

    /// What a look does next, given what it has done and counted since.
    pub fn next(&self, done: Done, now: Instant) -> Step {
        match done {
            Done::Nothing => {
                // Something large may not fit long before room is scarce; but if there is a lot of it,
                // it is the disk that fails, and history does not help.
                let refused = self.refused && (self.messages.is_half() || self.bytes.is_half());
                if refused || self.is_high() { Step::Oldest(self.excess()) } else { Step::Rest }
            }
            _ if !self.is_full() => Step::Rest,
            // Others have written meanwhile.
            Done::Oldest(rounds) if rounds < OLDEST_ROUNDS_MAX => Step::Oldest(self.excess()),
            Done::Oldest(_) => Step::AllEvents,
            Done::AllEvents if now >= self.useless_until => Step::Completed,
            Done::AllEvents | Done::Completed => Step::Rest,
        }
    }

    fn excess(&self) -> u64 {
        let average = (self.bytes.used / self.messages.used.max(1)).max(1);
        self.messages.excess().max(self.bytes.excess().div_ceil(average)).max(1)
    }

    /// Notes that completed tokens were looked for, for so long. If there is still no room, that is not
    /// done again soon.
    pub fn looked_for_completed(&mut self, took: Duration, now: Instant) {
        if self.is_full() {
            let pause = (took * USELESS_PAUSE_TIMES).max(2 * self.useless_for).max(USELESS_PAUSE);
            self.useless_for = pause.min(USELESS_PAUSE_MAX);
            self.useless_until = now + self.useless_for;
        }
    }

    /// Notes the end of a look. Gives the reason if from now on nothing new may come.
    pub fn looked(&mut self) -> Option<String> {
        self.refused = false;
        let begins = self.is_full() && !self.refuses;
        self.refuses |= begins;
        begins.then(|| self.reason())
    }

    fn reason(&self) -> String {
        let shown = |max: Option<u64>| max.map_or("any number of".to_owned(), |n| n.to_string());
        let why = match &self.hindered {
            Some(hindered) => format!("history could not be removed to make room: {hindered}"),
            None => "history cannot make room any more; raise NATS_MAX_MESSAGES or NATS_MAX_BYTES, or let tokens finish".to_owned(),
        };
        format!(
            "stream {STREAM} holds {} of at most {} messages and {} of at most {} bytes, and {why}",
            self.messages.used,
            shown(self.messages.max),
            self.bytes.used,
            shown(self.bytes.max)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(messages: u64, max: u64) -> Usage {
        let mut usage = Usage::new(Instant::now());
        let state = StreamState {
            messages,
            messages_max: Some(max),
            bytes: messages * 100,
            bytes_max: None,
            ..StreamState::default()
        };
        usage.count(&state, Instant::now());
        usage
    }

    #[test]
    fn a_look_removes_no_more_than_it_must() {
        // A reserve of 100: high above 800, creations stop where less than 12 is left below 900.
        for (messages, done, step) in [
            (800, Done::Nothing, Step::Rest),
            (801, Done::Nothing, Step::Oldest(101)),
            (960, Done::Nothing, Step::Oldest(260)),
            (960, Done::Oldest(1), Step::Oldest(260)),
            (960, Done::Oldest(OLDEST_ROUNDS_MAX), Step::AllEvents),
            (888, Done::Oldest(1), Step::Rest),
            (889, Done::AllEvents, Step::Completed),
            (888, Done::AllEvents, Step::Rest),
            (960, Done::Completed, Step::Rest),
        ] {
            let usage = counted(messages, 1_000);
            assert_eq!(usage.next(done, Instant::now()), step, "{messages} {done:?}");
        }
        // Something did not fit, though there is room: history helps only where there is some.
        for (messages, step) in [(100, Step::Rest), (501, Step::Oldest(1))] {
            let mut usage = counted(messages, 1_000);
            usage.refused = true;
            let now = Instant::now();
            assert_eq!(usage.next(Done::Nothing, now), step, "{messages}");
            usage.looked();
            assert_eq!(usage.next(Done::Nothing, now), Step::Rest);
        }
        let unlimited = Usage::new(Instant::now());
        assert_eq!(unlimited.next(Done::Nothing, Instant::now()), Step::Rest);
        assert_eq!(unlimited.allowance().messages, u64::MAX);
    }

    #[test]
    fn what_was_useless_is_not_done_again_soon() {
        let mut usage = counted(960, 1_000);
        let begun = Instant::now();
        let after = |millis| begun + Duration::from_millis(millis);
        usage.looked_for_completed(Duration::from_millis(1), begun);
        assert_eq!(usage.next(Done::AllEvents, after(499)), Step::Rest);
        assert_eq!(usage.next(Done::AllEvents, after(500)), Step::Completed);
        // Events go all the same, as moves write new ones.
        assert_eq!(usage.next(Done::Nothing, after(1)), Step::Oldest(260));
        usage.looked_for_completed(Duration::from_millis(1), after(500));
        assert_eq!(usage.next(Done::AllEvents, after(1_499)), Step::Rest, "twice as long");
        usage.looked_for_completed(Duration::from_secs(3), after(1_500));
        assert_eq!(usage.next(Done::AllEvents, after(31_499)), Step::Rest, "ten times its length");
        usage.looked_for_completed(Duration::from_secs(30), after(40_000));
        assert_eq!(
            usage.next(Done::AllEvents, after(100_000)),
            Step::Completed,
            "a minute at most"
        );
        // Once there was room, it begins anew.
        assert_eq!(usage.looked(), usage.full());
        let room = StreamState { messages_max: Some(1_000), ..StreamState::default() };
        assert!(usage.count(&room, after(100_000)));
        usage.add(960, 0);
        assert_eq!(usage.next(Done::AllEvents, after(100_000)), Step::Completed);
    }

    #[test]
    fn creations_stop_at_the_reserve_and_say_why() {
        let mut usage = counted(880, 1_000);
        assert_eq!(usage.allowance().messages, 20);
        assert_eq!(usage.looked(), None);
        usage.add(9, 900);
        let reason = usage.looked().unwrap();
        assert!(reason.contains("889 of at most 1000 messages"), "{reason}");
        assert_eq!(usage.looked(), None, "it is told once");
        assert_eq!(usage.allowance(), Allowance { messages: 0, bytes: 0, reason });
    }
}
