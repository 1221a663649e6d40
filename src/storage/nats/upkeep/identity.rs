//! Whether the store is still the one that this server knew.
//!
//! A store can go back in time under a running server: restored from a backup, purged, deleted and made
//! anew. What the server remembers of it is then wrong, and so is every sequence that somebody has been
//! given. The official restore keeps all that the stream says of itself. So each server keeps a record
//! of its own in the stream, the anchor, and writes it anew at its looks: in a store that went back it
//! is an older one, or is not there.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tracing::{debug, error, warn};
use uuid::Uuid;

use super::older_store;
use crate::storage::StorageError;
use crate::storage::nats::read::identity::Identity;
use crate::storage::nats::read::reader::{Reader, unavailable};
use crate::storage::nats::wire::jetstream::{self, ApiError, StreamState, code};
use crate::storage::nats::wire::names::{self, IDENTITY, header};

/// How long an anchor stays that nobody writes anew.
const ANCHOR_TTL: Duration = Duration::from_secs(3_600);

/// The least time between two writes of it.
const ANCHOR_PERIOD: Duration = Duration::from_secs(1);

/// How often it is tried to write the identity, where other servers do so, too.
const ROUNDS_MAX: usize = 8;

/// How often a store with replicas is looked at again before it counts as another life, and the pause
/// before that.
const DOUBTS: usize = 3;
const DOUBT_PAUSE: Duration = Duration::from_millis(400);

/// What a server knows of the store that it serves.
#[derive(Debug, Clone)]
struct Remembered {
    created: String,
    identity: Identity,
    anchor: Option<Anchor>,
}

/// The anchor as it was written last.
#[derive(Debug, Clone, Copy)]
struct Anchor {
    /// The number of the last write that was acknowledged, and of the last one that was tried.
    acknowledged: u64,
    tried: u64,
    at: SystemTime,
}

/// What a look has found.
#[derive(Debug, Clone)]
struct Found {
    created: String,
    last_sequence: u64,
    /// The highest sequence that had been acknowledged to this server before that was read.
    acknowledged: u64,
    identity: Option<Identity>,
    /// The number that the anchor holds.
    anchor: Option<u64>,
}

/// What follows from a look.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Same,
    /// Another server has noticed that it is another life, and has written so.
    Renewed,
    /// It is another life, for this reason.
    Another(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct AnchorPayload {
    look: u64,
}

fn judge(remembered: &Remembered, found: &Found, now: SystemTime) -> Verdict {
    if found.created != remembered.created {
        return Verdict::Another("the stream was made anew".to_owned());
    }
    if found.last_sequence < found.acknowledged {
        return Verdict::Another(format!(
            "sequence {} was acknowledged, and the stream ends at {}",
            found.acknowledged, found.last_sequence
        ));
    }
    let Some(identity) = found.identity else {
        return Verdict::Another("the record of what store it is is gone".to_owned());
    };
    if let Some(anchor) = remembered.anchor {
        let aged = now.duration_since(anchor.at).is_ok_and(|age| age >= ANCHOR_TTL);
        match found.anchor {
            // Nobody has written it for so long, as when the machine slept, that it has aged.
            None if aged => {}
            None => return Verdict::Another("the record of this server is gone".to_owned()),
            Some(number) if number < anchor.acknowledged || number > anchor.tried => {
                return Verdict::Another("the record of this server is an older one".to_owned());
            }
            Some(_) => {}
        }
    }
    if identity == remembered.identity { Verdict::Same } else { Verdict::Renewed }
}

/// What this server knows of the store, and its record there.
pub struct Keeper {
    server: Uuid,
    age: Duration,
    remembered: Option<Remembered>,
    /// How often its record was written.
    writes: u64,
}

impl Keeper {
    /// `age` is how long completed tokens are kept.
    pub fn new(age: Duration) -> Self {
        Self { server: Uuid::new_v4(), age, remembered: None, writes: 0 }
    }

    /// Begins to know a store: completes one of an older version first.
    pub async fn begin(
        &mut self,
        reader: &Reader,
        state: &StreamState,
    ) -> Result<(), StorageError> {
        let identity = match read(reader).await? {
            Some((identity, _)) => identity,
            None => self.introduce(reader).await?,
        };
        self.remember(state, identity);
        self.write_anchor(reader).await;
        Ok(())
    }

    /// Whether it is another life of the store than at the last look. `acknowledged` is what had been
    /// acknowledged before the state was read; `suspected` says that something else has shown it. Then a new generation is written, and the caller drops what it remembers.
    pub async fn look(
        &mut self,
        reader: &Reader,
        state: &StreamState,
        acknowledged: u64,
        suspected: bool,
    ) -> Result<bool, StorageError> {
        let Some(remembered) = self.remembered.clone() else {
            self.begin(reader, state).await?;
            return Ok(false);
        };
        let mut found = self.find(reader, state, acknowledged).await?;
        let mut verdict = judge(&remembered, &found, SystemTime::now());
        for _ in 0..DOUBTS {
            if state.replicas <= 1 || !matches!(verdict, Verdict::Another(_)) {
                break;
            }
            // A leader that was cut off, or has just been elected, may show an older state for a moment.
            sleep(DOUBT_PAUSE).await;
            let acknowledged = reader.acknowledged();
            let state = jetstream::stream_state(&reader.link).await?;
            found = self.find(reader, &state, acknowledged).await?;
            verdict = judge(&remembered, &found, SystemTime::now());
        }
        if suspected && verdict != Verdict::Renewed {
            verdict =
                Verdict::Another("an acknowledgement was older than what was there".to_owned());
        }
        let identity = match (&verdict, found.identity) {
            (Verdict::Same, _) => {
                self.remember(state, remembered.identity);
                self.write_anchor(reader).await;
                return Ok(false);
            }
            (Verdict::Renewed, Some(identity)) => {
                warn!("another server says that the store went back in time or was made anew");
                identity
            }
            (Verdict::Renewed | Verdict::Another(_), _) => {
                let Verdict::Another(reason) = &verdict else { return Ok(false) };
                error!(
                    reason,
                    "the store went back in time or was made anew; what was remembered of it is dropped"
                );
                self.renew(reader).await?
            }
        };
        self.remember(state, identity);
        if let Some(remembered) = &mut self.remembered {
            remembered.anchor = None;
        }
        self.write_anchor(reader).await;
        Ok(true)
    }

    async fn find(
        &self,
        reader: &Reader,
        state: &StreamState,
        acknowledged: u64,
    ) -> Result<Found, StorageError> {
        Ok(Found {
            created: state.created.clone(),
            last_sequence: state.last_sequence,
            acknowledged,
            identity: read(reader).await?.map(|(identity, _)| identity),
            anchor: self.read_anchor(reader).await?,
        })
    }

    fn remember(&mut self, state: &StreamState, identity: Identity) {
        let anchor = self.remembered.as_ref().and_then(|remembered| remembered.anchor);
        self.remembered = Some(Remembered { created: state.created.clone(), identity, anchor });
    }

    /// Completes a store that says nothing of itself, as it is new or of an older version, and says
    /// what it is.
    async fn introduce(&self, reader: &Reader) -> Result<Identity, StorageError> {
        older_store::complete(reader, self.age).await?;
        self.write(reader, |_| Identity::new(), true).await
    }

    /// Writes that a new life has begun.
    async fn renew(&self, reader: &Reader) -> Result<Identity, StorageError> {
        if read(reader).await?.is_none() {
            return self.introduce(reader).await;
        }
        let next = |there: Option<Identity>| there.map_or_else(Identity::new, Identity::next_life);
        self.write(reader, next, false).await
    }

    /// Writes the identity that follows from the one that is there. Whoever else has just written one
    /// where there was none, has said what it is.
    async fn write(
        &self,
        reader: &Reader,
        next: impl Fn(Option<Identity>) -> Identity,
        only_first: bool,
    ) -> Result<Identity, StorageError> {
        for _ in 0..ROUNDS_MAX {
            let there = read(reader).await?;
            if let Some((identity, _)) = there
                && only_first
            {
                return Ok(identity);
            }
            let identity = next(there.map(|(identity, _)| identity));
            let sequence = there.map_or(0, |(_, sequence)| sequence);
            let headers = [
                (header::ROLLUP, "sub".to_owned()),
                (header::EXPECTED_LAST_SUBJECT_SEQUENCE, sequence.to_string()),
            ];
            let payload = serde_json::to_vec(&identity).map_err(unavailable)?;
            let stored =
                jetstream::store(&reader.link, IDENTITY.to_owned(), &headers, payload.into());
            match stored.await {
                Ok(_) => return Ok(identity),
                Err(error)
                    if error.is(code::WRONG_LAST_SEQUENCE) || error.is(code::WRITE_UNDER_WAY) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(unavailable("several servers write at once what store this is"))
    }

    async fn read_anchor(&self, reader: &Reader) -> Result<Option<u64>, StorageError> {
        let stored = reader.last(&names::server(self.server)).await?;
        // One that cannot be read was not written here.
        let read =
            |stored: &[u8]| serde_json::from_slice::<AnchorPayload>(stored).map_or(0, |a| a.look);
        Ok(stored.map(|stored| read(&stored.payload)))
    }

    /// If it cannot be written now, such as in a full stream, the one that is there goes on.
    async fn write_anchor(&mut self, reader: &Reader) {
        let Some(remembered) = &mut self.remembered else { return };
        let now = SystemTime::now();
        let before = remembered.anchor;
        let young = |anchor: &Anchor| {
            now.duration_since(anchor.at).is_ok_and(|age| age < ANCHOR_PERIOD)
                && anchor.acknowledged == anchor.tried
        };
        if before.as_ref().is_some_and(young) {
            return;
        }
        // Never the same twice, in whatever life of the store.
        self.writes += 1;
        let look = self.writes;
        let headers = [(header::ROLLUP, "sub".to_owned()), (header::TTL, names::ttl(ANCHOR_TTL))];
        let payload = serde_json::json!({ "look": look }).to_string();
        let subject = names::server(self.server);
        match jetstream::store(&reader.link, subject, &headers, payload.into()).await {
            Ok(sequence) => {
                reader.record_acknowledged(sequence);
                remembered.anchor = Some(Anchor { acknowledged: look, tried: look, at: now });
            }
            Err(error) => {
                debug!(%error, "the record of this server could not be written");
                // Without an answer it may be there all the same.
                if let Some(anchor) = &mut remembered.anchor
                    && !matches!(error, ApiError::Refused { .. })
                {
                    anchor.tried = look;
                }
            }
        }
    }
}

async fn read(reader: &Reader) -> Result<Option<(Identity, u64)>, StorageError> {
    let stored = reader.last(IDENTITY).await?;
    stored.map(|stored| Ok((stored.identity()?, stored.sequence))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_life_is_told_from_the_same_one() {
        let now = SystemTime::now();
        let (identity, other) = (Identity::new(), Identity::new());
        let anchor = |acknowledged, tried, seconds| Anchor {
            acknowledged,
            tried,
            at: now - Duration::from_secs(seconds),
        };
        let remembered = |anchor| Remembered { created: "a".to_owned(), identity, anchor };
        let found = |created: &str, last_sequence, identity, anchor| Found {
            created: created.to_owned(),
            last_sequence,
            acknowledged: 10,
            identity,
            anchor,
        };
        let check = |remembered: &Remembered, found: &Found, wanted: &str| {
            let verdict = judge(remembered, found, now);
            let matches = match &verdict {
                Verdict::Same => wanted == "same",
                Verdict::Renewed => wanted == "renewed",
                Verdict::Another(reason) => reason.contains(wanted),
            };
            assert!(matches, "{verdict:?} is not {wanted}: {remembered:?} {found:?}");
        };
        let written = remembered(Some(anchor(4, 4, 30)));
        check(&written, &found("a", 10, Some(identity), Some(4)), "same");
        check(&written, &found("a", 99, Some(identity), Some(4)), "same");
        check(&written, &found("a", 99, Some(other), Some(4)), "renewed");
        check(&written, &found("b", 99, Some(identity), Some(4)), "made anew");
        check(&written, &found("a", 9, Some(identity), Some(4)), "sequence 10 was acknowledged");
        check(&written, &found("a", 10, None, Some(4)), "what store it is");
        check(&written, &found("a", 10, Some(identity), None), "is gone");
        check(&written, &found("a", 10, Some(identity), Some(3)), "an older one");
        // A restored one that another server has looked at before: its generation changes nothing.
        check(&written, &found("a", 10, Some(other), Some(3)), "an older one");
        // The answer to the last write was lost: it is there or not.
        let unsure = remembered(Some(anchor(4, 5, 30)));
        check(&unsure, &found("a", 10, Some(identity), Some(4)), "same");
        check(&unsure, &found("a", 10, Some(identity), Some(5)), "same");
        check(&unsure, &found("a", 10, Some(identity), Some(6)), "an older one");
        // It has aged, or was never written.
        let old = remembered(Some(anchor(4, 4, 3_700)));
        check(&old, &found("a", 10, Some(identity), None), "same");
        check(&remembered(None), &found("a", 10, Some(identity), None), "same");
    }
}
