//! The messages of a place, or of several, oldest first, at the cost of what is returned.
//!
//! nats-server has three ways to list subjects with wildcards, and each is slow somewhere (measured
//! with 1,000,000 tokens on 2.15.1):
//! - `batch` counts what is pending first, 50 to 90 ms where the filter matches all of them;
//! - `multi_last` looks at every subject that matches, 450 ms there, but is fast and one snapshot
//!   where they are few; above 1,024 it refuses;
//! - `next_by_subj` for one message takes 0.1 to 0.2 ms where matches are near one another, but goes
//!   through everything in between where they are rare.
//!
//! So a list begins with `multi_last`, unless a sample says that there are many; then it asks for
//! single messages, several at a time, or for whole stretches of the stream where every few
//! messages one matches: without a filter `batch` has nothing to count.

use async_nats::StatusCode;
use serde_json::json;
use tokio::time::Instant;

use super::reader::{self, RUN_MESSAGES_MAX, Reader, Run, unavailable};
use super::search::{Next, Search, Step};
use super::stored::Stored;
use crate::storage::StorageError;
use crate::storage::nats::wire::jetstream::{self, ANSWER_WAIT};
use crate::storage::nats::wire::names::{self, STREAM};

/// Subjects that `multi_last` takes.
const FEW_MAX: usize = 1_024;

/// Messages of a sample, from each of [`SAMPLE_PLACES`] places of the stream.
const SAMPLE_MESSAGES: usize = 64;
const SAMPLE_PLACES: u64 = 4;

/// Matches in a sample from which on there are many.
const SAMPLE_MANY: usize = 8;

/// The token messages on the subjects that match a filter, from `start` on, about `limit` of them,
/// departures included; fewer, though there are more, where they are large.
pub async fn tokens(
    reader: &Reader,
    filter: &str,
    start: u64,
    limit: usize,
    deadline: Instant,
) -> Result<Run, StorageError> {
    let limit = limit.clamp(1, RUN_MESSAGES_MAX);
    reader.repeated(deadline, || run(reader, filter, start, limit, deadline)).await
}

async fn run(
    reader: &Reader,
    filter: &str,
    start: u64,
    limit: usize,
    deadline: Instant,
) -> Result<Run, StorageError> {
    if !reader.is_only_copy() {
        return reader.leader_run(filter, start, limit, deadline).await;
    }
    let (hint, begun) = (reader.hints.of(filter), reader.epoch.now());
    // A sample costs more than the list of a place that has few, so it is not repeated.
    let is_known = hint.says_few() || reader.hints.is_small();
    let many = hint.says_many() || (!is_known && sample_has_many(reader, filter).await?);
    if !many && let Some(run) = few(reader, filter, start, limit).await? {
        if !is_known {
            reader.hints.few(filter, begun);
        }
        return Ok(run);
    }
    if !hint.says_many() {
        reader.hints.many(filter, begun);
    }
    search(reader, filter, start, limit, deadline).await
}

/// All that match in one snapshot; none if there are too many.
async fn few(
    reader: &Reader,
    filter: &str,
    start: u64,
    limit: usize,
) -> Result<Option<Run>, StorageError> {
    let request = json!({
        "multi_last": [filter], "seq": start.max(1), "batch": limit, "max_bytes": reader::RUN_BYTES_MAX,
    });
    match reader.batch(&request, limit.min(FEW_MAX)).await? {
        Ok(run) => Ok(Some(run)),
        Err((status, _)) if status.as_u16() == 413 => Ok(None),
        // The same status says that a message is there but cannot be read.
        Err((StatusCode::NOT_FOUND, Some(text))) if text == "No Results" => {
            Ok(Some(Run::default()))
        }
        Err((status, description)) => Err(reader::refused(status, description.as_deref())),
    }
}

/// Whether a few messages from all over the stream say that many match.
async fn sample_has_many(reader: &Reader, filter: &str) -> Result<bool, StorageError> {
    let last = reader.last_sequence();
    let mut found = 0;
    for part in 0..SAMPLE_PLACES {
        let start = last.saturating_sub(SAMPLE_MESSAGES as u64) * part / (SAMPLE_PLACES - 1);
        let messages = reader.from(start.max(1), SAMPLE_MESSAGES).await?.messages;
        found += messages.iter().filter(|stored| names::covers(filter, &stored.subject)).count();
    }
    Ok(found >= SAMPLE_MANY)
}

/// Message by message, or stretch by stretch: see [`Search`].
async fn search(
    reader: &Reader,
    filter: &str,
    start: u64,
    limit: usize,
    deadline: Instant,
) -> Result<Run, StorageError> {
    let begun = reader.epoch.now();
    let mut search = Search::new(filter, start, limit, &reader.hints.of(filter));
    loop {
        let step = search.next_step();
        if step != Step::Done && Instant::now() >= deadline {
            return Err(unavailable("the list took too long; ask for fewer rows"));
        }
        match step {
            Step::First => search.on_first(reader.at(1).await?),
            Step::Matches { from, distance, count } => {
                search.on_matches(ask(reader, filter, from, distance, count).await?);
            }
            Step::Stretch { from, count } => search.on_stretch(reader.from(from, count).await?),
            Step::Done => {
                reader.hints.learn(filter, search.learned(), begun);
                return Ok(search.into_run());
            }
        }
    }
}

async fn ask(
    reader: &Reader,
    filter: &str,
    position: u64,
    distance: u64,
    count: usize,
) -> Result<Vec<Next>, StorageError> {
    let _turn = reader.run_turn().await?;
    let mut asked = Vec::with_capacity(count);
    for n in 0..count as u64 {
        let from = position + n * distance;
        let request = jetstream::request(&json!({ "seq": from, "next_by_subj": filter }));
        let subject = format!("$JS.API.DIRECT.GET.{STREAM}");
        let replies = reader.link.request_many(subject, None, request, 1, ANSWER_WAIT).await;
        asked.push((from, replies.map_err(unavailable)?));
    }
    let mut answers = Vec::with_capacity(count);
    for (from, mut replies) in asked {
        let answer = replies.next().await.map_err(unavailable)?;
        let found = match answer.status {
            None | Some(StatusCode::OK) if reader::is_ours(&answer) => {
                Some(Stored::from_direct(answer)?)
            }
            None | Some(StatusCode::OK) => {
                return Err(unavailable("a mirror of the stream has answered"));
            }
            Some(StatusCode::NOT_FOUND) => None,
            Some(status) => return Err(reader::refused(status, answer.description.as_deref())),
        };
        answers.push(Next { from, found });
    }
    Ok(answers)
}
