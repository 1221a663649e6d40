//! This server's own record in the stream, the anchor, by which it sees that the store is the one that it
//! knows.
//!
//! It is the first message of each batch, and expects the one before it: a store that went back in time,
//! was emptied or made anew has an older one, or none, so nothing that was decided on the store of before
//! is ever taken there. A look at the stream compares it, too, and writes it anew where nothing else does.
//!
//! With replicas the leader checks a batch before it proposes it. A purge that is proposed in between lets
//! the batch through all the same, and with it a new anchor, on which the next ones go on. So each batch
//! expects a second record where it was, the witness, which no batch writes: it is gone then.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::storage::nats::wire::names::{self, header};

/// How long an anchor stays that nobody writes anew.
const TTL: Duration = Duration::from_secs(3_600);

/// The least time between two writes that nothing else makes necessary.
const PERIOD: Duration = Duration::from_secs(1);

/// After which time the witness is written anew.
const WITNESS_PERIOD: Duration = Duration::from_secs(1_200);

#[derive(Debug, Serialize, Deserialize)]
struct Payload {
    write: u64,
    /// Where this server had seen that all changes are whole.
    #[serde(default)]
    whole: Whole,
}

/// A stretch of the stream in which a server has seen that all changes are whole. What is missing there by
/// now was removed since.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whole {
    pub from: u64,
    pub to: u64,
}

impl Whole {
    pub fn covers(&self, sequence: u64) -> bool {
        (self.from..=self.to).contains(&sequence)
    }
}

/// The anchor as this server has written it.
#[derive(Debug, Clone)]
pub struct Anchor {
    server: Uuid,
    /// How often it was written; never the same twice, in whatever life of the store.
    writes: u64,
    last: Option<Written>,
    witness: Option<Witness>,
}

/// The witness: where it stands, and since when.
#[derive(Debug, Clone, Copy)]
struct Witness {
    sequence: u64,
    at: SystemTime,
}

/// The witness as a batch expects it.
pub struct Expected {
    pub subject: String,
    pub sequence: u64,
    /// The subject of a message that checks it where no other does.
    pub checked_by: String,
}

impl Expected {
    pub fn headers(&self) -> [(&'static str, String); 2] {
        [
            (header::EXPECTED_LAST_SUBJECT_SEQUENCE, self.sequence.to_string()),
            (header::EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT, self.subject.clone()),
        ]
    }

    /// Headers of a message that does nothing else.
    pub fn headers_alone(&self) -> [(&'static str, String); 4] {
        let [sequence, subject] = self.headers();
        [(header::ROLLUP, "sub".to_owned()), (header::TTL, names::ttl(TTL)), sequence, subject]
    }
}

/// Its last write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The number of the last one that was acknowledged, and of the last one that was tried.
    pub acknowledged: u64,
    pub tried: u64,
    /// The highest that was ever tried. Also one that was refused can be there: with replicas a server that
    /// leads no more refuses for a moment what the leader takes.
    pub highest: u64,
    /// Where the acknowledged one stands.
    pub sequence: u64,
    pub at: SystemTime,
}

/// The anchor as it was found in the stream: the number of the write, and its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub write: u64,
    pub sequence: u64,
}

/// What is sent to write it anew.
pub struct Next {
    pub subject: String,
    pub headers: Vec<(&'static str, String)>,
    pub payload: Bytes,
    write: u64,
}

impl Anchor {
    pub fn new() -> Self {
        Self { server: Uuid::new_v4(), writes: 0, last: None, witness: None }
    }

    pub fn subject(&self) -> String {
        names::server(self.server)
    }

    /// Its last write.
    pub fn last(&self) -> Option<Written> {
        self.last
    }

    /// Whether it was written a moment ago.
    pub fn is_young(&self, now: SystemTime) -> bool {
        self.last.is_some_and(|last| {
            last.acknowledged == last.tried
                && now.duration_since(last.at).is_ok_and(|age| age < PERIOD)
        })
    }

    /// Whether nobody has written it for so long that it has aged.
    pub fn has_aged(written: Written, now: SystemTime) -> bool {
        now.duration_since(written.at).is_ok_and(|age| age >= TTL)
    }

    /// What writes it anew, with where this server knows all changes to be whole. It expects the one before,
    /// where it is known which one that is.
    pub fn next(&mut self, whole: Whole) -> Next {
        self.writes += 1;
        let write = self.writes;
        let mut headers = vec![(header::ROLLUP, "sub".to_owned()), (header::TTL, names::ttl(TTL))];
        if let Some(last) = &mut self.last {
            if last.acknowledged == last.tried {
                let expected = last.sequence.to_string();
                headers.push((header::EXPECTED_LAST_SUBJECT_SEQUENCE, expected));
            }
            // Until its outcome is known.
            (last.tried, last.highest) = (write, write);
        }
        let payload = serde_json::to_vec(&Payload { write, whole }).unwrap_or_default().into();
        Next { subject: self.subject(), headers, payload, write }
    }

    /// It stands there now.
    pub fn done(&mut self, next: &Next, sequence: u64) {
        let (write, at) = (next.write, SystemTime::now());
        self.last =
            Some(Written { acknowledged: write, tried: write, highest: write, sequence, at });
    }

    /// It was not written.
    pub fn refused(&mut self, next: &Next) {
        if let Some(last) = &mut self.last
            && last.tried == next.write
        {
            last.tried = last.acknowledged;
        }
    }

    /// It was found there, and is one of those that were tried.
    pub fn found(&mut self, found: Found) {
        if let Some(last) = &mut self.last {
            (last.acknowledged, last.tried, last.sequence) =
                (found.write, found.write, found.sequence);
        }
    }

    /// A refusal has named it as what stands there: it is one that was tried, and of which no answer has
    /// said that it is stored. Whether that is so; then the next one goes on from it.
    pub fn named(&mut self, found: Found) -> bool {
        let is_later = self.last.is_some_and(|last| {
            last.sequence < found.sequence
                && (last.acknowledged + 1..=last.highest).contains(&found.write)
        });
        if is_later {
            self.found(found);
        }
        is_later
    }

    /// The store is another one.
    pub fn forget(&mut self) {
        (self.last, self.witness) = (None, None);
    }

    /// What is sent to write the witness, if there is none, or it would age before long.
    pub fn next_witness(&self, now: SystemTime) -> Option<(String, [(&'static str, String); 2])> {
        let is_there = |witness: &Witness| Self::age(witness, now) < WITNESS_PERIOD;
        if self.witness.as_ref().is_some_and(is_there) {
            return None;
        }
        let headers = [(header::ROLLUP, "sub".to_owned()), (header::TTL, names::ttl(TTL))];
        Some((names::witness(self.server), headers))
    }

    /// It stands there now; none where nobody knows.
    pub fn witnessed(&mut self, sequence: Option<u64>) {
        self.witness = sequence.map(|sequence| Witness { sequence, at: SystemTime::now() });
    }

    /// Where a batch expects the witness. None where that is not known, or where it may have aged.
    pub fn witness(&self, now: SystemTime) -> Option<Expected> {
        let witness = self.witness.as_ref()?;
        let is_there = Self::age(witness, now) < TTL - WITNESS_PERIOD;
        is_there.then(|| Expected {
            subject: names::witness(self.server),
            sequence: witness.sequence,
            checked_by: names::witness_check(self.server),
        })
    }

    /// One of a time to come is of a clock that was set back, and counts as old.
    fn age(witness: &Witness, now: SystemTime) -> Duration {
        now.duration_since(witness.at).unwrap_or(TTL)
    }

    /// Where the server that wrote this had seen that all changes are whole.
    pub fn whole(payload: &[u8]) -> Whole {
        let read = serde_json::from_slice::<Payload>(payload);
        read.map_or_else(|_| Whole::default(), |payload| payload.whole)
    }

    /// Reads what stands in the stream. What cannot be read was not written here.
    pub fn read(payload: &[u8], sequence: u64) -> Found {
        let write = serde_json::from_slice::<Payload>(payload).map_or(0, |payload| payload.write);
        Found { write, sequence }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(next: &Next) -> Option<&str> {
        let mut headers = next.headers.iter();
        let found = headers.find(|(name, _)| *name == header::EXPECTED_LAST_SUBJECT_SEQUENCE);
        found.map(|(_, value)| value.as_str())
    }

    #[test]
    fn each_write_expects_the_one_before() {
        let mut anchor = Anchor::new();
        let first = anchor.next(Whole::default());
        assert_eq!(expected(&first), None, "nothing is known yet");
        anchor.done(&first, 7);
        let second = anchor.next(Whole::default());
        assert_eq!(expected(&second), Some("7"));
        anchor.refused(&second);
        let third = anchor.next(Whole::default());
        assert_eq!(expected(&third), Some("7"), "it is still that one");
        anchor.refused(&third);
        let last = anchor.last().unwrap();
        assert_eq!((last.acknowledged, last.tried, last.highest), (1, 1, 3));
        let third = anchor.next(Whole::default());
        // Without an answer nobody knows which one it is, until it is found.
        let fourth = anchor.next(Whole::default());
        assert_eq!(expected(&fourth), None);
        anchor.found(Anchor::read(&third.payload, 9));
        let fifth = anchor.next(Whole::default());
        assert_eq!(expected(&fifth), Some("9"));
        anchor.done(&fifth, 12);
        assert!(anchor.is_young(SystemTime::now()));
        assert!(!anchor.is_young(SystemTime::now() + PERIOD));
        anchor.forget();
        assert_eq!(expected(&anchor.next(Whole::default())), None);
        assert_eq!(Anchor::read(b"{}", 3), Found { write: 0, sequence: 3 });
    }

    #[test]
    fn what_a_refusal_names_is_gone_on_from_if_it_was_tried() {
        let mut anchor = Anchor::new();
        let first = anchor.next(Whole::default());
        assert!(!anchor.named(Found { write: 1, sequence: 7 }), "nothing is known yet");
        anchor.done(&first, 7);
        for _ in 0..2 {
            let refused = anchor.next(Whole::default());
            anchor.refused(&refused);
        }
        let named = |write, sequence| anchor.clone().named(Found { write, sequence });
        assert!(named(2, 9) && named(3, 9));
        assert!(!named(1, 9) && !named(0, 9), "a store that went back in time");
        assert!(!named(4, 9), "nobody has written that");
        assert!(!named(2, 7) && !named(2, 5), "it does not stand where an older one is");
        assert!(anchor.named(Found { write: 2, sequence: 9 }));
        assert!(!anchor.named(Found { write: 2, sequence: 9 }), "it is known");
        let next = anchor.next(Whole::default());
        assert_eq!(expected(&next), Some("9"));
        anchor.refused(&next);
        assert_eq!(anchor.last().unwrap().acknowledged, 2);
    }

    #[test]
    fn a_witness_is_expected_until_it_may_have_aged() {
        let (mut anchor, now) = (Anchor::new(), SystemTime::now());
        let later = |seconds| now + Duration::from_secs(seconds);
        assert!(anchor.next_witness(now).is_some() && anchor.witness(now).is_none());
        anchor.witnessed(Some(8));
        assert!(anchor.next_witness(later(600)).is_none());
        assert!(anchor.next_witness(later(1_300)).is_some());
        assert_eq!(anchor.witness(later(1_300)).unwrap().sequence, 8);
        assert!(anchor.witness(later(2_500)).is_none(), "the clocks may differ");
        assert!(anchor.next_witness(now - Duration::from_secs(9)).is_some());
        anchor.witnessed(None);
        assert!(anchor.next_witness(now).is_some() && anchor.witness(now).is_none());
        anchor.witnessed(Some(9));
        anchor.forget();
        assert!(anchor.witness(now).is_none());
    }
}
