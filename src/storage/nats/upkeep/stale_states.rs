//! Removes states of tokens that a crash of nats-server has brought back.
//!
//! When a token moves, its message in the place that it leaves is removed. nats-server notes that in
//! its files, but loses such notes when it is killed and, while it recovers, compacts the file that
//! they are in; once it is killed again, what they removed is there again (seen on 2.14.4 and
//! 2.15.1; issue 8505 there is about the same). The newest message of a token is always right, so
//! reads by id and moves are. Lists of a place would show the token twice, so after every start of
//! nats-server, and every change of the stream's leader, what is older than a token's newest message
//! is removed, in a scan of the subjects and sizes of all token messages.
//!
//! A token that moves while the scan goes on can show it an old state alone: its newest message is gone
//! before the scan comes to it, and the next one stands behind. So what has been stored meanwhile is
//! scanned, too, and a token that is seen in both is looked at.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tracing::debug;
use uuid::Uuid;

use crate::domain::WorkflowId;
use crate::storage::StorageError;
use crate::storage::nats::read::reader::{Reader, unavailable};
use crate::storage::nats::read::token;
use crate::storage::nats::wire::jetstream::{self, ApiError, StreamState, ask};
use crate::storage::nats::wire::link::Link;
use crate::storage::nats::wire::names::{self, ALL_TOKENS, STREAM, header};
use crate::storage::nats::wire::subjects;

/// Messages asked for at once; without their payloads.
const STEP_MESSAGES: usize = 1_000;

/// Time for one step; it takes some milliseconds.
const STEP_WAIT: Duration = Duration::from_secs(5);

/// After this nats-server forgets a scan that was not ended.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// Removes every message of a token that is older than its newest one. Gives how many went.
///
/// It looks at what was there when `state` was read. What was stored since, nothing has brought back.
pub async fn remove(
    link: &Link,
    reader: &Reader,
    state: &StreamState,
) -> Result<u64, StorageError> {
    let mut seen = Seen::default();
    if state.replicas > 1 {
        // A consumer may read from any replica, and each has files of its own.
        see_all_at_leader(link, &mut seen).await?;
        see_all_at_leader(link, &mut seen).await?;
    } else {
        Scan::run(link, 1, state.last_sequence, &mut seen).await?;
        let meanwhile = jetstream::stream_state(link).await?.last_sequence;
        Scan::run(link, state.last_sequence + 1, meanwhile, &mut seen).await?;
    }
    let mut removed = 0;
    for (workflow, token) in seen.again {
        removed += remove_older(link, reader, &workflow, token).await?;
    }
    Ok(removed)
}

/// The tokens seen so far, each with where, and those of them that were seen elsewhere, too.
#[derive(Default)]
struct Seen {
    // Half of an id is enough: two tokens that share it are looked at in vain.
    once: HashMap<u64, u64>,
    again: HashSet<(WorkflowId, Uuid)>,
}

impl Seen {
    /// Sees a token on a subject; `place` tells one message from another.
    fn see(&mut self, subject: &str, place: u64, count: u64) {
        let Some((workflow, _, token)) = names::parse_token(subject) else { return };
        let (high, low) = token.as_u64_pair();
        let before = self.once.insert(high ^ low, place);
        if before.is_some_and(|before| before != place) || count > 1 {
            self.again.insert((workflow, token));
        }
    }
}

/// Sees all tokens as the leader of the stream has them. It takes three times as long as a scan.
async fn see_all_at_leader(link: &Link, seen: &mut Seen) -> Result<(), StorageError> {
    let each = |subject: &str, count| {
        let mut hasher = DefaultHasher::new();
        subject.hash(&mut hasher);
        seen.see(subject, hasher.finish(), count);
    };
    Ok(subjects::visit(link, ALL_TOKENS, each).await?)
}

/// Removes what is older than the token's message. A token that has just moved has a departure beside
/// it for a second, which is newer; then there is nothing to remove.
pub async fn remove_older(
    link: &Link,
    reader: &Reader,
    workflow: &WorkflowId,
    id: Uuid,
) -> Result<u64, StorageError> {
    let Some(found) = token::find(reader, workflow, id).await? else { return Ok(0) };
    let state = found.state;
    let mut subjects = Vec::new();
    subjects::visit(link, &names::token_anywhere(workflow, id), |subject, count| {
        if subject != state.subject || count > 1 {
            subjects.push((subject.to_owned(), count));
        }
    })
    .await?;
    let mut removed = 0;
    for (subject, count) in subjects {
        // Departures vanish by themselves, and are nothing that has come back.
        let oldest = reader.first(&subject).await?;
        let is_back =
            oldest.is_some_and(|oldest| oldest.sequence < state.sequence && !oldest.is_departure());
        // A stream that was restored meanwhile has its own idea of what is old.
        if (is_back || count > 1) && is_still_there(reader, workflow, id, state.sequence).await? {
            // Whatever comes there meanwhile is newer.
            let older = json!({ "filter": subject, "seq": state.sequence });
            let gone = jetstream::purge(link, &older).await?;
            removed += if is_back { gone } else { 0 };
        }
    }
    Ok(removed)
}

/// Whether the newest message of a token is still this one, or one that came later.
async fn is_still_there(
    reader: &Reader,
    workflow: &WorkflowId,
    id: Uuid,
    sequence: u64,
) -> Result<bool, StorageError> {
    let found = token::find(reader, workflow, id).await?;
    Ok(found.is_some_and(|found| found.state.sequence >= sequence))
}

/// A scan: a consumer of the subjects of all tokens, gone at the end.
struct Scan {
    consumer: String,
    inbox: String,
    messages: Subscriber,
    /// The last sequence that it looks at.
    last: u64,
    pending: u64,
}

impl Scan {
    /// Sees all tokens whose messages stand between two sequences.
    async fn run(link: &Link, first: u64, last: u64, seen: &mut Seen) -> Result<(), StorageError> {
        if first > last {
            return Ok(());
        }
        let mut scan = Self::start(link, first, last).await?;
        let outcome = scan.see_all(link, seen).await;
        scan.end(link).await;
        outcome
    }

    async fn start(link: &Link, first: u64, last: u64) -> Result<Self, StorageError> {
        let (inbox, messages) = link.subscribe_inbox().await.map_err(unavailable)?;
        let config = json!({
            "filter_subject": ALL_TOKENS, "deliver_policy": "by_start_sequence", "opt_start_seq": first, "ack_policy": "none", "headers_only": true,
            "mem_storage": true, "num_replicas": 1, "inactive_threshold": FORGOTTEN_AFTER.as_nanos() as u64,
        });
        let request = json!({ "stream_name": STREAM, "config": config });
        let made = ask(link, &format!("CONSUMER.CREATE.{STREAM}"), &request).await?;
        let unreadable = || ApiError::Unreadable(made.to_string());
        let consumer = made["name"].as_str().ok_or_else(unreadable)?.to_owned();
        let pending = made["num_pending"].as_u64().ok_or_else(unreadable)?;
        Ok(Self { consumer, inbox, messages, last, pending })
    }

    async fn see_all(&mut self, link: &Link, seen: &mut Seen) -> Result<(), StorageError> {
        while self.pending > 0 && self.step(link, seen).await? {}
        Ok(())
    }

    /// Whether there may be more.
    async fn step(&mut self, link: &Link, seen: &mut Seen) -> Result<bool, StorageError> {
        let deadline = Instant::now() + STEP_WAIT;
        let request = json!({ "batch": STEP_MESSAGES, "no_wait": true }).to_string();
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{}", self.consumer);
        let sent = link.publish_for(subject, &self.inbox, None, request.into(), deadline);
        sent.await.map_err(unavailable)?;
        for number in 0..STEP_MESSAGES {
            let message = timeout_at(deadline, self.messages.next()).await;
            let message = message.ok().flatten().ok_or_else(|| unavailable("no answer in time"))?;
            // It has fewer than it said: some have expired meanwhile.
            if message.status.is_some() {
                return Ok(number > 0);
            }
            let place = Place::of(&message).ok_or_else(|| unavailable("no reply subject"))?;
            if place.sequence > self.last {
                return Ok(false);
            }
            if size(&message).is_some_and(|bytes| bytes > 0) {
                seen.see(&message.subject, place.sequence, 1);
            }
            self.pending = place.pending;
            if self.pending == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// If this does not work, nats-server forgets it by itself.
    async fn end(self, link: &Link) {
        let subject = format!("CONSUMER.DELETE.{STREAM}.{}", self.consumer);
        if let Err(error) = ask(link, &subject, &Value::Null).await {
            debug!(error = %error, "the consumer of a scan could not be deleted");
        }
    }
}

/// How many bytes the message has whose headers these are.
fn size(message: &Message) -> Option<u64> {
    message.headers.as_ref()?.get(header::MESSAGE_SIZE)?.as_str().parse().ok()
}

/// Where a message of a consumer stands, as its reply subject says: nine parts, or eleven and more
/// (architecture decision record 15 of NATS).
struct Place {
    sequence: u64,
    pending: u64,
}

impl Place {
    fn of(message: &Message) -> Option<Self> {
        let reply: Vec<_> = message.reply.as_ref()?.split('.').collect();
        let offset = if reply.len() == 9 { 0 } else { 2 };
        let number = |place: usize| reply.get(place + offset)?.parse().ok();
        Some(Self { sequence: number(5)?, pending: number(8)? })
    }
}
