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

/// Single messages asked for at once.
const AT_ONCE_MAX: usize = 64;

/// Bytes of single messages asked for at once, as far as can be foreseen.
const AT_ONCE_BYTES: usize = 8 << 20;

/// Messages from one match to the next, up to which whole stretches of the stream are read, and
/// matches after which that is known.
const DENSE_MAX: u64 = 4;
const DENSE_AFTER: usize = 4;

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
    let hint = reader.hints.of(filter);
    let known_many = hint.says_many();
    let many = known_many || (!reader.hints.is_small() && sample_has_many(reader, filter).await?);
    if !many {
        if let Some(run) = few(reader, filter, start, limit).await? {
            return Ok(run);
        }
        reader.hints.many(filter);
    } else if !hint.says_many() {
        reader.hints.many(filter);
    }
    singles(reader, filter, start, limit, deadline).await
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

/// One answer to the question for the next match from a sequence on.
struct Next {
    from: u64,
    found: Option<Stored>,
}

/// Message by message. Several are asked for at once, each from further on than the one before, by
/// the distance that matches have had so far; an answer counts where no match can lie between it
/// and the one before. nats-server takes the questions up in their order, so a token that moves
/// meanwhile is found where it was or where it comes to.
async fn singles(
    reader: &Reader,
    filter: &str,
    start: u64,
    limit: usize,
    deadline: Instant,
) -> Result<Run, StorageError> {
    let hint = reader.hints.of(filter);
    let mut run = Run::default();
    let mut position = start.max(hint.floor).max(1);
    let from_floor = start <= hint.floor.max(1);
    if position == 1 {
        // A search from the very first message on looks at all subjects that match first.
        if let Some(first) = reader.at(1).await?
            && names::covers(filter, &first.subject)
        {
            run.messages.push(first);
        }
        position = 2;
    }
    let mut distance = hint.distance.unwrap_or(1);
    let (mut at_once, mut largest) = (1_usize, 1_024_usize);
    let mut bytes = 0;
    while run.messages.len() < limit && bytes < reader::RUN_BYTES_MAX {
        if Instant::now() >= deadline {
            return Err(unavailable("the list took too long; ask for fewer rows"));
        }
        let known = hint.distance.is_some() || run.messages.len() >= DENSE_AFTER;
        if distance <= DENSE_MAX && known {
            reader.hints.set_distance(filter, distance);
            let found = stretch(reader, filter, position, distance, limit, &mut run).await?;
            let Some(scanned) = found else { return Ok(run) };
            distance = scanned.distance;
            reader.hints.set_distance(filter, distance);
            position = scanned.next;
            bytes += scanned.bytes;
            continue;
        }
        let wanted = at_once.min(limit - run.messages.len()).min(AT_ONCE_BYTES / largest).max(1);
        let answers = ask(reader, filter, position, distance, wanted).await?;
        let (asked, before, begin) = (answers.len(), run.messages.len(), position);
        let mut ended = false;
        for Next { from, found } in answers {
            if from > position {
                // Between the last match and this question there may be others.
                break;
            }
            match found {
                None => ended = true,
                Some(found) if found.sequence >= position => {
                    position = found.sequence + 1;
                    largest = largest.max(found.payload.len());
                    bytes += found.payload.len();
                    run.messages.push(found);
                }
                Some(_) => {}
            }
        }
        if from_floor
            && before == 0
            && let Some(first) = run.messages.first()
        {
            reader.hints.raise_floor(filter, first.sequence);
        }
        if ended {
            return Ok(run);
        }
        let found = (run.messages.len() - before).max(1);
        distance = ((position - begin) / found as u64).max(1);
        at_once =
            if 2 * found >= asked { (2 * at_once).min(AT_ONCE_MAX) } else { (at_once / 2).max(1) };
    }
    run.more = true;
    Ok(run)
}

/// How far a stretch of the stream went, and how many bytes of it matched.
struct Scanned {
    next: u64,
    distance: u64,
    bytes: usize,
}

/// All messages of a stretch of the stream in one request, where so many of them match that the
/// others cost less than questions of their own. None at the end of the list, or once it is full.
async fn stretch(
    reader: &Reader,
    filter: &str,
    position: u64,
    distance: u64,
    limit: usize,
    run: &mut Run,
) -> Result<Option<Scanned>, StorageError> {
    let missing = limit - run.messages.len();
    let wanted = missing.saturating_mul(usize::try_from(distance).unwrap_or(1)).saturating_add(8);
    let all = reader.from(position, wanted).await?;
    let Some(last) = all.messages.last() else { return Ok(None) };
    let (next, mut bytes, mut found) = (last.sequence + 1, 0, 0);
    for stored in all.messages {
        if !names::covers(filter, &stored.subject) {
            continue;
        }
        if run.messages.len() == limit {
            run.more = true;
            return Ok(None);
        }
        // Only what is kept counts: a run that found nothing must go on, or the list would end here.
        bytes += stored.payload.len();
        run.messages.push(stored);
        found += 1;
    }
    let distance = (next - position).div_ceil(found.max(1));
    Ok(all.more.then_some(Scanned { next, distance, bytes }))
}

async fn ask(
    reader: &Reader,
    filter: &str,
    position: u64,
    distance: u64,
    count: usize,
) -> Result<Vec<Next>, StorageError> {
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
