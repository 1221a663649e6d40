//! Whether the store is still the one that this server knew.
//!
//! A store can go back in time under a running server: restored from a backup, purged, deleted and made
//! anew. What the server remembers of it is then wrong, and so is every sequence that somebody has been
//! given. The official restore keeps all that the stream says of itself. So each server keeps a record
//! of its own in the stream, the anchor, and writes it anew at its looks: in a store that went back it
//! is an older one, or is not there.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::sleep;
use tracing::{debug, error, warn};

use super::older_store;
use crate::storage::StorageError;
use crate::storage::nats::read::anchor::{self, Anchor, Whole, Written};
use crate::storage::nats::read::identity::Identity;
use crate::storage::nats::read::life::Life;
use crate::storage::nats::read::reader::{Reader, unavailable};
use crate::storage::nats::wire::jetstream::{self, ApiError, StreamState, code};
use crate::storage::nats::wire::link::LinkError;
use crate::storage::nats::wire::meter::Meter;
use crate::storage::nats::wire::names::{IDENTITY, header};

/// How often it is tried to write the identity, where other servers do so, too.
const ROUNDS_MAX: usize = 8;

/// How often a store in a cluster is looked at again before it counts as another life, and the pause
/// before that.
const DOUBTS: usize = 3;
const DOUBT_PAUSE: Duration = Duration::from_millis(400);

/// What a person is told where the leader that answers may be none any more.
pub const CUT_OFF: &str = "the nats-server that answers as the leader of the stream does not hear most of the others, and knows less than was acknowledged";

/// What a server knows of the store that it serves.
#[derive(Debug, Clone)]
struct Remembered {
    created: String,
    identity: Identity,
    anchor: Option<Written>,
}

/// What a look has found.
#[derive(Debug, Clone)]
struct Found {
    created: String,
    last_sequence: u64,
    /// The highest sequence that had been acknowledged to this server before that was read.
    acknowledged: u64,
    identity: Option<Identity>,
    anchor: Option<anchor::Found>,
    /// Where this server's record says that all is whole.
    whole: Whole,
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

fn judge(remembered: &Remembered, found: &Found, now: SystemTime) -> Verdict {
    // That alone says nothing: 2.14.4 tells the time of a restart once the stream has changed since and
    // the server is restarted again. A stream that is made anew holds none of the records.
    let has_ours = match (remembered.anchor, found.anchor) {
        // Copied, it stands elsewhere.
        (Some(ours), Some(there)) if there.write == ours.acknowledged => {
            there.sequence == ours.sequence
        }
        (Some(_), Some(_)) => true,
        _ => false,
    };
    if found.created != remembered.created && !(has_ours && found.identity.is_some()) {
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
        let aged = Anchor::has_aged(anchor, now);
        match found.anchor.map(|found| found.write) {
            // Nobody has written it for so long, as when the machine slept, that it has aged.
            None if aged => {}
            None => return Verdict::Another("the record of this server is gone".to_owned()),
            Some(number) if number < anchor.acknowledged || number > anchor.highest => {
                return Verdict::Another("the record of this server is an older one".to_owned());
            }
            Some(_) => {}
        }
    }
    if identity == remembered.identity { Verdict::Same } else { Verdict::Renewed }
}

/// What this server knows of the store, and its record there.
pub struct Keeper {
    age: Duration,
    life: Arc<Life>,
    meter: Arc<Meter>,
    remembered: Option<(String, Identity)>,
}

impl Keeper {
    /// `age` is how long completed tokens are kept.
    pub fn new(age: Duration, life: Arc<Life>, meter: Arc<Meter>) -> Self {
        Self { age, life, meter, remembered: None }
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
        self.remembered = Some((state.created.clone(), identity));
        write_anchor(reader, &self.meter, &mut *self.life.anchor().await).await;
        Ok(())
    }

    /// Whether it is another life of the store than at the last look. `acknowledged` is what had been
    /// acknowledged before the state was read; `suspected` says that something else has shown it. Then
    /// all that is remembered is dropped, and a new generation is written.
    pub async fn look(
        &mut self,
        reader: &Reader,
        state: &StreamState,
        acknowledged: u64,
        suspected: bool,
    ) -> Result<bool, StorageError> {
        let Some((created, identity)) = self.remembered.clone() else {
            self.begin(reader, state).await?;
            return Ok(false);
        };
        let life = Arc::clone(&self.life);
        // No batch writes it in between.
        let mut anchor = life.anchor().await;
        let remembered = Remembered { created, identity, anchor: anchor.last() };
        let mut is_cut_off = state.is_cut_off;
        let mut found = find(reader, &anchor, state, acknowledged).await?;
        let mut verdict = judge(&remembered, &found, SystemTime::now());
        for _ in 0..DOUBTS {
            if !state.clustered || !matches!(verdict, Verdict::Another(_)) {
                break;
            }
            // A leader that was cut off, or has just been elected, may show an older state for a moment.
            sleep(DOUBT_PAUSE).await;
            let acknowledged = reader.acknowledged();
            let state = jetstream::stream_state(&reader.link).await?;
            is_cut_off = state.is_cut_off;
            found = find(reader, &anchor, &state, acknowledged).await?;
            verdict = judge(&remembered, &found, SystemTime::now());
        }
        if is_cut_off && matches!(verdict, Verdict::Another(_)) {
            return Err(unavailable(CUT_OFF));
        }
        if suspected && verdict != Verdict::Renewed {
            verdict =
                Verdict::Another("an acknowledgement was older than what was there".to_owned());
        }
        let identity = match (&verdict, found.identity) {
            (Verdict::Same, _) => {
                if let Some(found) = found.anchor {
                    anchor.found(found);
                }
                self.remembered = Some((state.created.clone(), identity));
                see_witness(reader, &mut anchor).await?;
                write_anchor(reader, &self.meter, &mut anchor).await;
                return Ok(false);
            }
            (Verdict::Renewed, Some(identity)) => {
                warn!("another server says that the store went back in time or was made anew");
                self.life.end();
                identity
            }
            (Verdict::Renewed | Verdict::Another(_), _) => {
                let Verdict::Another(reason) = &verdict else { return Ok(false) };
                error!(
                    reason,
                    "the store went back in time or was made anew; what was remembered of it is dropped"
                );
                // Also if the rest of this fails: nothing of it is used any more.
                self.life.end();
                self.renew(reader).await?
            }
        };
        self.remembered = Some((state.created.clone(), identity));
        anchor.forget();
        // What the record says of what stands before it is true of the store that it stands in.
        reader.set_whole((reader.epoch.now(), found.whole));
        write_anchor(reader, &self.meter, &mut anchor).await;
        Ok(true)
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
}

async fn find(
    reader: &Reader,
    anchor: &Anchor,
    state: &StreamState,
    acknowledged: u64,
) -> Result<Found, StorageError> {
    let stored = reader.last(&anchor.subject()).await?;
    let whole = stored.as_ref().map(|stored| Anchor::whole(&stored.payload));
    Ok(Found {
        whole: whole.unwrap_or_default(),
        created: state.created.clone(),
        last_sequence: state.last_sequence,
        acknowledged,
        identity: read(reader).await?.map(|(identity, _)| identity),
        anchor: stored.map(|stored| Anchor::read(&stored.payload, stored.sequence)),
    })
}

/// Writes the anchor anew, unless that was done a moment ago. If it cannot be written now, such as in a
/// full stream, the one that is there goes on.
async fn write_anchor(reader: &Reader, meter: &Meter, anchor: &mut Anchor) {
    write_witness(reader, anchor).await;
    if anchor.is_young(SystemTime::now()) {
        return;
    }
    let next = anchor.next(reader.whole());
    let (subject, payload) = (next.subject.clone(), next.payload.clone());
    match jetstream::store(&reader.link, subject, &next.headers, payload).await {
        Ok(sequence) => {
            reader.record_acknowledged(sequence);
            anchor.done(&next, sequence);
        }
        Err(error) => {
            debug!(%error, "the record of this server could not be written");
            match error {
                ApiError::Refused { .. } => anchor.refused(&next),
                // It may be there all the same. After a write that the disk refused, nats-server answers
                // no other (2.14.4 and 2.15.1), though it answers reads.
                ApiError::Link(LinkError::NoAnswer(_)) if reader.link.is_connected() => {
                    let why = jetstream::WHY_UNANSWERED;
                    meter.record_trouble(&format!(
                        "nats-server does not answer what is written; {why}"
                    ));
                }
                // No batch can be sent without it.
                ApiError::Link(denied @ LinkError::Denied(_)) => {
                    meter.record_denied(&denied.to_string());
                }
                ApiError::Link(_) | ApiError::Unreadable(_) => {}
            }
        }
    }
}

/// Where the witness alone is gone or elsewhere, as somebody has removed it, it is written anew: no batch
/// would be taken without it.
async fn see_witness(reader: &Reader, anchor: &mut Anchor) -> Result<(), StorageError> {
    let Some(expected) = anchor.witness(SystemTime::now()) else { return Ok(()) };
    let there = reader.last(&expected.subject).await?.map(|there| there.sequence);
    if there != Some(expected.sequence) {
        anchor.witnessed(None);
    }
    Ok(())
}

/// Writes the witness, where there is none in this life of the store, or it would age.
async fn write_witness(reader: &Reader, anchor: &mut Anchor) {
    let Some((subject, headers)) = anchor.next_witness(SystemTime::now()) else { return };
    match jetstream::store(&reader.link, subject, &headers, Bytes::new()).await {
        Ok(sequence) => {
            reader.record_acknowledged(sequence);
            anchor.witnessed(Some(sequence));
        }
        // The one that is there goes on.
        Err(ApiError::Refused { .. }) => {}
        // Without an answer nobody knows which one is there.
        Err(error) => {
            debug!(%error, "the witness of this server could not be written");
            anchor.witnessed(None);
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
        let anchor = |acknowledged, tried, seconds| Written {
            acknowledged,
            tried,
            highest: tried,
            sequence: 8,
            at: now - Duration::from_secs(seconds),
        };
        let remembered = |anchor| Remembered { created: "a".to_owned(), identity, anchor };
        let found = |created: &str, last_sequence, identity, anchor: Option<u64>| Found {
            whole: Whole::default(),
            created: created.to_owned(),
            last_sequence,
            acknowledged: 10,
            identity,
            anchor: anchor.map(|write| anchor::Found { write, sequence: 8 }),
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
        // A stream that was made anew, and one of which nats-server says so falsely.
        check(&written, &found("b", 99, None, None), "made anew");
        check(&written, &found("b", 99, Some(other), None), "made anew");
        check(&written, &found("b", 99, Some(identity), Some(4)), "same");
        check(&written, &found("b", 99, Some(identity), Some(3)), "an older one");
        check(&written, &found("b", 9, Some(identity), Some(4)), "sequence 10 was acknowledged");
        let copied = anchor::Found { write: 4, sequence: 9 };
        let copied = Found { anchor: Some(copied), ..found("b", 10, Some(identity), None) };
        check(&written, &copied, "made anew");
        check(&remembered(None), &found("b", 10, Some(identity), None), "made anew");
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
