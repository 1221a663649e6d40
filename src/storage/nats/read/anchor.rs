//! This server's own record in the stream, the anchor, by which it sees that the store is the one that it
//! knows.
//!
//! It is the first message of each batch, and expects the one before it: a store that went back in time,
//! was emptied or made anew has an older one, or none, so nothing that was decided on the store of before
//! is ever taken there. A look at the stream compares it, too, and writes it anew where nothing else does.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::storage::nats::wire::names::{self, header};

/// How long an anchor stays that nobody writes anew.
const TTL: Duration = Duration::from_secs(3_600);

/// The least time between two writes that nothing else makes necessary.
const PERIOD: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize, Deserialize)]
struct Payload {
    write: u64,
}

/// The anchor as this server has written it.
#[derive(Debug, Clone)]
pub struct Anchor {
    server: Uuid,
    /// How often it was written; never the same twice, in whatever life of the store.
    writes: u64,
    last: Option<Written>,
}

/// Its last write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The number of the last one that was acknowledged, and of the last one that was tried.
    pub acknowledged: u64,
    pub tried: u64,
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
        Self { server: Uuid::new_v4(), writes: 0, last: None }
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

    /// What writes it anew. It expects the one before, where it is known which one that is.
    pub fn next(&mut self) -> Next {
        self.writes += 1;
        let write = self.writes;
        let mut headers = vec![(header::ROLLUP, "sub".to_owned()), (header::TTL, names::ttl(TTL))];
        if let Some(last) = &mut self.last {
            if last.acknowledged == last.tried {
                let expected = last.sequence.to_string();
                headers.push((header::EXPECTED_LAST_SUBJECT_SEQUENCE, expected));
            }
            // Until its outcome is known.
            last.tried = write;
        }
        let payload = serde_json::to_vec(&Payload { write }).unwrap_or_default().into();
        Next { subject: self.subject(), headers, payload, write }
    }

    /// It stands there now.
    pub fn done(&mut self, next: &Next, sequence: u64) {
        let (write, at) = (next.write, SystemTime::now());
        self.last = Some(Written { acknowledged: write, tried: write, sequence, at });
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

    /// The store is another one.
    pub fn forget(&mut self) {
        self.last = None;
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
        let first = anchor.next();
        assert_eq!(expected(&first), None, "nothing is known yet");
        anchor.done(&first, 7);
        let second = anchor.next();
        assert_eq!(expected(&second), Some("7"));
        anchor.refused(&second);
        let third = anchor.next();
        assert_eq!(expected(&third), Some("7"), "it is still that one");
        // Without an answer nobody knows which one it is, until it is found.
        let fourth = anchor.next();
        assert_eq!(expected(&fourth), None);
        anchor.found(Anchor::read(&third.payload, 9));
        let fifth = anchor.next();
        assert_eq!(expected(&fifth), Some("9"));
        anchor.done(&fifth, 12);
        assert!(anchor.is_young(SystemTime::now()));
        assert!(!anchor.is_young(SystemTime::now() + PERIOD));
        anchor.forget();
        assert_eq!(expected(&anchor.next()), None);
        assert_eq!(Anchor::read(b"{}", 3), Found { write: 0, sequence: 3 });
    }
}
