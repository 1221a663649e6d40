//! One atomic batch: all of its messages are stored, unbroken and in order, or none.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use uuid::Uuid;

use super::outgoing::Outgoing;
use super::refusal::Refusal;
use crate::storage::nats::read::anchor::Expected;
use crate::storage::nats::wire::jetstream::{self, code};
use crate::storage::nats::wire::link::{Link, LinkError, Replies};
use crate::storage::nats::wire::names::header;

/// Messages in one batch: nats-server's own limit.
pub const BATCH_MESSAGES_MAX: usize = 1_000;

/// Time that nats-server has to commit a batch before its outcome counts as unknown.
pub const COMMIT_WAIT: Duration = Duration::from_secs(3);

/// Why a batch was not acknowledged.
#[derive(Debug)]
pub enum BatchError {
    /// The server says no: nothing is stored.
    Refused(Refusal),
    /// It cannot be stored: not everything of it was sent, or nobody took it.
    NotDone(String),
    /// No answer: it is stored, or not, or will yet be.
    Unknown(String),
}

/// Which messages of a batch are answered. The last one's is the outcome, but of another one that was
/// refused it tells only that it is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    Last,
    Each,
}

/// What makes a batch check the witness of its server.
pub enum Check {
    /// This message, in the place of the one there.
    Instead(usize, Outgoing),
    /// This message, which must be added.
    Beside(Outgoing),
}

impl Check {
    /// Makes it a part of the messages.
    pub fn join<'a>(&'a self, messages: &mut Vec<&'a Outgoing>) {
        match self {
            Check::Instead(place, message) => messages[*place] = message,
            Check::Beside(message) => messages.insert(0, message),
        }
    }
}

/// Lets the first message check the witness that checks nothing yet, or one of its own.
pub fn check(witness: &Expected, messages: &[&Outgoing]) -> Check {
    const CHECK: &str = header::EXPECTED_LAST_SUBJECT_SEQUENCE;
    match messages.iter().position(|message| message.header(CHECK).is_none()) {
        Some(place) => {
            let each = witness.headers().into_iter();
            let message = messages[place].clone();
            Check::Instead(
                place,
                each.fold(message, |message, (name, value)| message.with(name, value)),
            )
        }
        None => {
            let each = witness.headers_alone().into_iter();
            let message = Outgoing::new(witness.checked_by.clone(), Bytes::new());
            Check::Beside(each.fold(message, |message, (name, value)| message.with(name, value)))
        }
    }
}

/// Sends the messages as one batch and waits for its commit. Gives the sequence of the last one;
/// the others have those right before it.
pub async fn send(
    link: &Link,
    messages: &[&Outgoing],
    answered: Answered,
) -> Result<u64, BatchError> {
    let id = Uuid::new_v4().simple().to_string();
    let outcome = match send_all(link, messages, &id, answered).await {
        Ok(replies) => outcome(replies, messages.len()).await,
        Err(error) => Err(error),
    };
    let stays_open = match &outcome {
        Err(BatchError::Refused(refusal)) => !refusal.is_whole(),
        // Its last message was not sent, or may not be published: those before it were.
        Err(BatchError::NotDone(_)) => link.is_connected(),
        // It may yet be committed.
        Ok(_) | Err(BatchError::Unknown(_)) => false,
    };
    if stays_open && let Some(first) = messages.first() {
        abandon(link, first.subject.clone(), &id, messages.len()).await;
    }
    // One that lacks a message which may not be published is refused as incomplete.
    if let Err(BatchError::Refused(refusal)) = &outcome
        && refusal.err_code == code::BATCH_INCOMPLETE
        && let Some(denied) = messages.iter().find_map(|message| link.denied(&message.subject))
    {
        return Err(not_done(denied));
    }
    outcome
}

/// Without the last message the batch is nothing, so whatever happens before it is no commit.
async fn send_all(
    link: &Link,
    messages: &[&Outgoing],
    id: &str,
    answered: Answered,
) -> Result<Replies, BatchError> {
    let Some(last) = messages.last() else {
        return Err(BatchError::NotDone("it is empty".to_owned()));
    };
    let sending_by = Instant::now() + COMMIT_WAIT;
    let mut replies = None;
    for (number, message) in (1..).zip(messages) {
        let mut headers = message.headers();
        headers.insert(header::BATCH_ID, id);
        headers.insert(header::BATCH_SEQUENCE, number.to_string().as_str());
        let is_last = number == messages.len();
        if is_last {
            headers.insert(header::BATCH_COMMIT, "1");
        }
        if replies.is_none() && (is_last || answered == Answered::Each) {
            let expected = link.expect(&last.subject, messages.len(), COMMIT_WAIT).await;
            replies = Some(expected.map_err(not_done)?);
        }
        let (subject, payload) = (message.subject.clone(), message.payload.clone());
        let sent = match &replies {
            Some(replies) => {
                let reply = link.reply_of(replies);
                link.publish_for(subject, &reply, Some(headers), payload, sending_by).await
            }
            None => link.publish(subject, headers, payload, sending_by).await,
        };
        sent.map_err(not_done)?;
    }
    replies.ok_or_else(|| BatchError::NotDone("it has no end".to_owned()))
}

/// The first answer that says something: a message that is taken but is not the last has an empty one.
async fn outcome(mut replies: Replies, count: usize) -> Result<u64, BatchError> {
    loop {
        match replies.next().await {
            Ok(answer) if answer.payload.is_empty() && answer.status.is_none() => {}
            answer => return read(answer, count as u64),
        }
    }
}

/// Lets nats-server forget a batch. What it refuses for a limit, and what has no end, it keeps open for 10 s
/// otherwise, and with 50 open ones it takes no other (2.15.1). A number that cannot come next ends it, whatever was taken.
async fn abandon(link: &Link, subject: String, id: &str, count: usize) {
    let headers =
        [(header::BATCH_ID, id.to_owned()), (header::BATCH_SEQUENCE, (count + 2).to_string())];
    let until = Instant::now() + COMMIT_WAIT;
    // If it does not arrive, the batch ends by itself.
    drop(link.publish(subject, jetstream::headers(&headers), Bytes::new(), until).await);
}

fn not_done(error: LinkError) -> BatchError {
    BatchError::NotDone(error.to_string())
}

fn read(answer: Result<async_nats::Message, LinkError>, count: u64) -> Result<u64, BatchError> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(LinkError::NoAnswer(reason)) => return Err(BatchError::Unknown(reason)),
        Err(error) => return Err(not_done(error)),
    };
    let acknowledged = match jetstream::parse(&answer.payload) {
        Ok(acknowledged) => acknowledged,
        Err(jetstream::ApiError::Refused { err_code, description }) => {
            return Err(BatchError::Refused(Refusal { err_code, description }));
        }
        Err(error) => return Err(BatchError::Unknown(error.to_string())),
    };
    // An acknowledgement of fewer messages is none of this batch.
    if acknowledged["count"].as_u64().is_some_and(|stored| stored != count) {
        return Err(BatchError::Unknown(format!(
            "it answered {acknowledged}, of {count} messages"
        )));
    }
    let sequence = acknowledged["seq"].as_u64().filter(|sequence| *sequence >= count);
    sequence.ok_or_else(|| BatchError::Unknown(format!("it answered {acknowledged}")))
}
