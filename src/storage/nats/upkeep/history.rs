//! Removes history: the oldest events by their sequence, and completed tokens.
//!
//! What several servers remove at once is what one of them would: each removes what is below a sequence,
//! and none counts on how many are left. The highest such sequence is written down before, so that who
//! reads events by position can tell that some are missing.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, join, stream};
use serde_json::json;
use tracing::warn;
use uuid::Uuid;

use crate::domain::WorkflowId;
use crate::storage::StorageError;
use crate::storage::nats::read::life::Life;
use crate::storage::nats::read::reader::{Reader, unavailable};
use crate::storage::nats::wire::jetstream::{self, ApiError, code};
use crate::storage::nats::wire::names::{self, ALL_EVENTS, PURGED, header};
use crate::storage::nats::wire::subjects::{self, Pages};

/// Questions after which a sequence is near enough.
const PROBES_MAX: usize = 12;

/// Places that are asked at once for their oldest token.
const PLACES_AT_ONCE: usize = 32;

/// Parts in which completed tokens are removed, oldest first, and places after which it is seen whether
/// that is enough.
const COMPLETED_STEPS: u64 = 4;
const PLACES_BETWEEN_COUNTS: usize = 64;

/// How often the purged sequence is written where others write it, too.
const ROUNDS_MAX: usize = 8;

/// A search for the sequence below which about so many messages stand.
#[derive(Debug)]
struct Probe {
    wanted: u64,
    /// A sequence below which too few stand, and how many.
    low: (u64, u64),
    /// One below which enough stand.
    high: (u64, u64),
    asked: usize,
}

impl Probe {
    /// `total` messages stand between `first` and `last`.
    fn new(wanted: u64, total: u64, first: u64, last: u64) -> Self {
        Self { wanted: wanted.min(total), low: (first, 0), high: (last + 1, total), asked: 0 }
    }

    /// The sequence to ask for next; none if the search is over.
    fn next(&self) -> Option<u64> {
        let ((low, few), (high, enough)) = (self.low, self.high);
        let near = enough - self.wanted <= self.wanted / 4 + 16;
        if near || high - low <= 1 || self.asked >= PROBES_MAX {
            return None;
        }
        let part =
            u128::from(high - low) * u128::from(self.wanted - few) / u128::from(enough - few);
        let part = u64::try_from(part).unwrap_or(high - low);
        Some((low + part).clamp(low + 1, high - 1))
    }

    /// Below `sequence` so many stand.
    fn on(&mut self, sequence: u64, below: u64) {
        self.asked += 1;
        if below < self.wanted {
            self.low = (sequence, below);
        } else {
            self.high = (sequence, below);
        }
    }

    /// Where to cut: rather too few than far too many.
    fn cut(&self) -> u64 {
        let near = self.high.1 - self.wanted <= self.wanted;
        if near || self.low.1 == 0 { self.high.0 } else { self.low.0 }
    }
}

/// What is in some places and stands before a sequence.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    places: Vec<String>,
    before: u64,
}

/// Parts of what is in these places, given the sequence of the oldest in each and the stream's last.
fn parts(places: &[(String, u64)], last: u64) -> Vec<Part> {
    let Some(first) = places.iter().map(|(_, oldest)| *oldest).min() else { return Vec::new() };
    let span = last.saturating_sub(first);
    let steps = (1..=COMPLETED_STEPS).map(|step| first + span * step / COMPLETED_STEPS + 1);
    let of_step = |before: u64| {
        let due = places.iter().filter(move |(_, oldest)| *oldest < before);
        let due: Vec<_> = due.map(|(place, _)| place.clone()).collect();
        let parts = due.chunks(PLACES_BETWEEN_COUNTS);
        parts.map(|some| Part { places: some.to_vec(), before }).collect::<Vec<_>>()
    };
    steps.flat_map(of_step).collect()
}

/// Removes history.
pub struct History {
    reader: Arc<Reader>,
    life: Arc<Life>,
    /// The filters of the places of each workflow where tokens are completed for good, in which life of the store they were read.
    finals: HashMap<WorkflowId, Vec<String>>,
    read_in: u64,
}

impl History {
    pub fn new(reader: Arc<Reader>, life: Arc<Life>) -> Self {
        Self { reader, life, finals: HashMap::new(), read_in: 0 }
    }

    /// Removes about so many of the oldest events, given how many messages there were when that was
    /// decided. Gives how many went, and whether there may be older ones that stay.
    pub async fn remove_oldest(
        &self,
        excess: u64,
        counted: u64,
    ) -> Result<(u64, bool), StorageError> {
        let link = &self.reader.link;
        let before = jetstream::stream_state(link).await?;
        // Somebody else may have removed some since.
        let wanted = excess.saturating_sub(counted.saturating_sub(before.messages));
        if wanted == 0 {
            return Ok((0, true));
        }
        let Some(first) = self.reader.first(ALL_EVENTS).await? else { return Ok((0, false)) };
        // Others may have removed all that was there before.
        let last = before.last_sequence.max(first.sequence);
        let total = self.events_between(first.sequence, last + 1).await?;
        let mut probe = Probe::new(wanted, total, first.sequence, last);
        while let Some(sequence) = probe.next() {
            let left = self.events_between(sequence, last + 1).await?;
            probe.on(sequence, total.saturating_sub(left));
        }
        // Or may do so now.
        let now = jetstream::stream_state(link).await?;
        if now.messages + wanted / 2 < before.messages {
            return Ok((0, true));
        }
        Ok((self.purge_events(probe.cut()).await?, total > wanted))
    }

    /// How many events stand from a sequence on, before another. nats-server counts up to the end of the
    /// stream, and others write meanwhile: what they add is not taken for what stands here.
    async fn events_between(&self, from: u64, before: u64) -> Result<u64, StorageError> {
        let all = self.reader.matching_from(ALL_EVENTS, from);
        let (all, added) = join!(all, self.reader.matching_from(ALL_EVENTS, before));
        Ok(all?.saturating_sub(added?))
    }

    /// Removes all events. Gives how many went.
    pub async fn remove_all_events(&self) -> Result<u64, StorageError> {
        let last = jetstream::stream_state(&self.reader.link).await?.last_sequence;
        self.purge_events(last + 1).await
    }

    /// Removes the events below a sequence.
    async fn purge_events(&self, below: u64) -> Result<u64, StorageError> {
        let recorded = self.record_purged(below - 1).await?;
        let link = &self.reader.link;
        let removed =
            jetstream::purge(link, &json!({ "filter": ALL_EVENTS, "seq": below })).await?;
        if !recorded && !self.record_purged(below - 1).await? {
            warn!(
                sequence = below - 1,
                "up to which sequence events were removed could not be written down"
            );
        }
        Ok(removed)
    }

    /// Writes down that events up to this sequence may be gone; never less than what is there. False if
    /// there is no room even for that.
    async fn record_purged(&self, sequence: u64) -> Result<bool, StorageError> {
        for _ in 0..ROUNDS_MAX {
            let there = self.reader.last(PURGED).await?;
            let known = there.as_ref().and_then(|stored| stored.purged());
            if known.is_some_and(|known| known >= sequence) {
                return Ok(true);
            }
            let expected = there.map_or(0, |stored| stored.sequence);
            let headers = [
                (header::ROLLUP, "sub".to_owned()),
                (header::EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string()),
            ];
            let payload = json!({ "sequence": sequence }).to_string().into();
            match jetstream::store(&self.reader.link, PURGED.to_owned(), &headers, payload).await {
                Ok(_) => return Ok(true),
                Err(error)
                    if error.is(code::WRONG_LAST_SEQUENCE) || error.is(code::WRITE_UNDER_WAY) => {}
                Err(ApiError::Refused { err_code: code::STORE_FAILED, .. }) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Err(unavailable("several servers write at once what was removed"))
    }

    /// The completed tokens that there are, in parts to be removed one after the other, the oldest of
    /// all workflows first.
    pub async fn completed(&mut self) -> Result<Vec<Part>, StorageError> {
        self.learn_finals().await?;
        let reader = &self.reader;
        let oldest = |filter: String| async move {
            let oldest = reader.first(&filter).await?;
            Ok::<_, StorageError>(oldest.map(|oldest| (filter, oldest.sequence)))
        };
        // The places that hold any, each with the sequence of its oldest.
        let filters: Vec<_> = self.finals.values().flatten().cloned().collect();
        let places: Vec<_> = stream::iter(filters)
            .map(oldest)
            .buffer_unordered(PLACES_AT_ONCE)
            .try_filter_map(|found| async move { Ok(found) })
            .try_collect()
            .await?;
        Ok(parts(&places, reader.last_sequence()))
    }

    /// Removes one of these parts. Gives how many messages went.
    pub async fn remove_completed(&self, part: &Part) -> Result<u64, StorageError> {
        let mut removed = 0;
        for place in &part.places {
            removed += self.remove_from(place, part.before).await?;
        }
        Ok(removed)
    }

    /// Removes what stands in a place before a sequence, and then the pointers of those tokens: their
    /// ids are free from then on. A pointer that somebody has made since stands behind.
    async fn remove_from(&self, place: &str, before: u64) -> Result<u64, StorageError> {
        let link = &self.reader.link;
        let mut pointed: Vec<Uuid> = Vec::new();
        let mut pages = Pages::new();
        while pages.more() {
            for (subject, _) in subjects::page(link, place, &mut pages).await? {
                match names::parse_token(&subject) {
                    Some((workflow, _, id)) if !names::id_names_workflow(id, &workflow) => {
                        pointed.push(id);
                    }
                    Some(_) | None => {}
                }
            }
        }
        let mut removed =
            jetstream::purge(link, &json!({ "filter": place, "seq": before })).await?;
        let purge = |id: Uuid| async move {
            let older = json!({ "filter": names::pointer(id), "seq": before - 1 });
            jetstream::purge(link, &older).await
        };
        let mut purges = stream::iter(pointed).map(purge).buffer_unordered(PLACES_AT_ONCE);
        while let Some(purged) = purges.try_next().await? {
            removed += purged;
        }
        Ok(removed)
    }

    /// Reads the definitions that are not known yet. They never change.
    async fn learn_finals(&mut self) -> Result<(), StorageError> {
        let life = self.life.number();
        if self.read_in != life {
            self.finals.clear();
            self.read_in = life;
        }
        let mut all = subjects::workflows(&self.reader.link).await?;
        all.retain(|workflow| !self.finals.contains_key(workflow));
        let reader = &self.reader;
        let finals = |workflow: WorkflowId| async move {
            let Some(definition) = reader.definition(&workflow).await? else {
                return Ok(None);
            };
            let places = definition.last_places();
            let filters = places.map(|place| names::tokens_in(&workflow, place)).collect();
            Ok::<_, StorageError>(Some((workflow, filters)))
        };
        let read: Vec<(WorkflowId, Vec<String>)> = stream::iter(all)
            .map(finals)
            .buffer_unordered(PLACES_AT_ONCE)
            .try_filter_map(|found| async move { Ok(found) })
            .try_collect()
            .await?;
        self.finals.extend(read);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks until the search is over. Gives where it cuts, how many are below, and how often it asked.
    fn searched(wanted: u64, sequences: &[u64]) -> (u64, u64, usize) {
        let below =
            |sequence: u64| sequences.iter().filter(|there| **there < sequence).count() as u64;
        let (first, last) = (sequences[0], *sequences.last().unwrap() + 7);
        let mut probe = Probe::new(wanted, sequences.len() as u64, first, last);
        while let Some(sequence) = probe.next() {
            probe.on(sequence, below(sequence));
        }
        (probe.cut(), below(probe.cut()), probe.asked)
    }

    #[test]
    fn about_as_many_are_below_as_were_wanted() {
        let even: Vec<u64> = (0..10_000).map(|n| 100 + 3 * n).collect();
        let skewed: Vec<u64> = (0..5_000).chain((0..5_000).map(|n| 5_000 + 400 * n)).collect();
        let clumps: Vec<u64> = (0..100).flat_map(|n| n * 1_000..n * 1_000 + 100).collect();
        for sequences in [&even, &skewed, &clumps] {
            for wanted in [1, 20, 500, 4_000, 9_999] {
                let (_, below, asked) = searched(wanted, sequences);
                assert!(below >= wanted.min(1) && below <= 2 * wanted + 16, "{wanted}: {below}");
                assert!(asked <= PROBES_MAX);
            }
            let (cut, below, asked) = searched(50_000, sequences);
            assert_eq!((below, asked), (10_000, 0), "all of them, without a question");
            assert!(cut > *sequences.last().unwrap());
        }
        assert_eq!(searched(1, &[5]).1, 1);
    }

    #[test]
    fn the_oldest_of_all_places_goes_first() {
        let places = [("a".to_owned(), 100), ("b".to_owned(), 350)];
        let part = |places: &[&str], before| Part {
            places: places.iter().map(ToString::to_string).collect(),
            before,
        };
        assert_eq!(
            parts(&places, 500),
            [part(&["a"], 201), part(&["a"], 301), part(&["a", "b"], 401), part(&["a", "b"], 501)]
        );
        assert_eq!(parts(&[], 500), []);
        assert_eq!(parts(&places[..1], 100), [(); 4].map(|()| part(&["a"], 101)));
        let many: Vec<_> = (0..150).map(|n| (n.to_string(), 1)).collect();
        let sizes: Vec<_> = parts(&many, 1).iter().map(|part| part.places.len()).collect();
        assert_eq!(sizes[..3], [64, 64, 22]);
    }
}
