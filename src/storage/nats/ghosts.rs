//! Removes states of tokens that a crash of nats-server has brought back.
//!
//! When a token moves, its message in the place that it leaves is removed. nats-server notes that in
//! its files, but loses such notes when it is killed and, while it recovers, compacts the file that
//! they are in; once it is killed again, what they removed is there again (seen on 2.14.4 and
//! 2.15.1; issue 8505 there is about the same). The newest message of a token is always right, so
//! reads by id and moves are. Lists of a place would show the token twice, so after every start of
//! nats-server, and every change of the stream's leader, what is older than a token's newest message
//! is removed, in a walk through the subjects and sizes of all token messages.

use std::collections::HashSet;
use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::api::{self, ApiError, ask};
use super::link::Link;
use super::names::{self, ALL_TOKENS, STREAM};
use super::read::{Reader, unavailable};
use super::subjects;
use crate::domain::WorkflowId;
use crate::storage::StorageError;

/// Messages asked for at once; without their payloads.
const STEP_MESSAGES: usize = 1_000;

/// Time for one step; it takes some milliseconds.
const STEP_WAIT: Duration = Duration::from_secs(5);

/// After this nats-server forgets a walk that was not ended.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// Removes every message of a token that is older than its newest one. Gives how many went.
pub async fn remove(link: &Link, reader: &Reader) -> Result<u64, StorageError> {
    let mut walk = Walk::start(link).await?;
    // Half of an id is enough: two tokens that share it are looked at in vain.
    let mut seen: HashSet<u64> = HashSet::new();
    let mut removed = 0;
    while let Some(step) = walk.step(link).await? {
        for (workflow, token) in step {
            let (high, low) = token.as_u64_pair();
            if !seen.insert(high ^ low) {
                removed += remove_older(link, reader, &workflow, token).await?;
            }
        }
    }
    walk.end(link).await?;
    Ok(removed)
}

/// A token that moves during the walk is seen twice, too; then there is nothing to remove.
async fn remove_older(
    link: &Link,
    reader: &Reader,
    workflow: &WorkflowId,
    token: Uuid,
) -> Result<u64, StorageError> {
    let anywhere = names::token_anywhere(workflow, token);
    let Some(newest) = reader.last(&anywhere).await? else { return Ok(0) };
    let mut subjects = Vec::new();
    subjects::visit(link, &anywhere, |subject, count| {
        if subject != newest.subject || count > 1 {
            subjects.push(subject.to_owned());
        }
        true
    })
    .await?;
    let mut removed = 0;
    for subject in subjects {
        // Whatever comes there meanwhile is newer.
        let older = json!({ "filter": subject, "seq": newest.sequence });
        let answer = ask(link, &format!("STREAM.PURGE.{STREAM}"), &older).await?;
        removed += answer["purged"].as_u64().unwrap_or(0);
    }
    Ok(removed)
}

/// A consumer of the subjects of all tokens, gone at the end.
struct Walk {
    consumer: String,
    inbox: String,
    messages: Subscriber,
    pending: u64,
}

impl Walk {
    async fn start(link: &Link) -> Result<Self, StorageError> {
        let (inbox, messages) = link.subscribe_inbox().await.map_err(unavailable)?;
        let config = json!({
            "filter_subject": ALL_TOKENS, "deliver_policy": "all", "ack_policy": "none", "headers_only": true,
            "mem_storage": true, "num_replicas": 1, "inactive_threshold": FORGOTTEN_AFTER.as_nanos() as u64,
        });
        let request = json!({ "stream_name": STREAM, "config": config });
        let made = ask(link, &format!("CONSUMER.CREATE.{STREAM}"), &request).await?;
        let unreadable = || ApiError::Unreadable(made.to_string());
        let consumer = made["name"].as_str().ok_or_else(unreadable)?.to_owned();
        let pending = made["num_pending"].as_u64().ok_or_else(unreadable)?;
        Ok(Self { consumer, inbox, messages, pending })
    }

    /// The tokens of the next messages that hold one; none at the end.
    async fn step(&mut self, link: &Link) -> Result<Option<Vec<(WorkflowId, Uuid)>>, StorageError> {
        if self.pending == 0 {
            return Ok(None);
        }
        let deadline = Instant::now() + STEP_WAIT;
        let request = json!({ "batch": STEP_MESSAGES, "expires": STEP_WAIT.as_nanos() as u64 });
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{}", self.consumer);
        let sent = link.publish_for(subject, &self.inbox, request.to_string().into(), deadline);
        sent.await.map_err(unavailable)?;
        let mut tokens = Vec::new();
        for _ in 0..STEP_MESSAGES.min(usize::try_from(self.pending).unwrap_or(usize::MAX)) {
            let message = timeout_at(deadline, self.messages.next()).await;
            let message = message.ok().flatten().ok_or_else(|| unavailable("no answer in time"))?;
            self.pending = pending_after(&message).ok_or_else(|| {
                unavailable(format!("{:?} in place of a message", message.status))
            })?;
            let state = size(&message).is_some_and(|bytes| bytes > 0);
            tokens.extend(
                names::parse_token(&message.subject)
                    .filter(|_| state)
                    .map(|(workflow, _, token)| (workflow, token)),
            );
        }
        Ok(Some(tokens))
    }

    async fn end(self, link: &Link) -> Result<(), ApiError> {
        let subject = format!("CONSUMER.DELETE.{STREAM}.{}", self.consumer);
        api::ask(link, &subject, &Value::Null).await.map(drop)
    }
}

/// How many bytes the message has whose headers these are.
fn size(message: &Message) -> Option<u64> {
    message.headers.as_ref()?.get("Nats-Msg-Size")?.as_str().parse().ok()
}

/// How many messages come after this one: the last number of its reply subject, which may be
/// followed by one more part (architecture decision record 15 of NATS).
fn pending_after(message: &Message) -> Option<u64> {
    let reply: Vec<_> = message.reply.as_ref()?.split('.').collect();
    let place = if reply.len() == 9 { 8 } else { 10 };
    reply.get(place)?.parse().ok()
}
