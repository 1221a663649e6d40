//! One atomic batch: all of its messages are stored, unbroken and in order, or none.

use std::time::Duration;

use async_nats::HeaderMap;
use tokio::time::Instant;
use uuid::Uuid;

use super::outgoing::Outgoing;
use super::refusal::Refusal;
use crate::storage::nats::wire::jetstream;
use crate::storage::nats::wire::link::{Link, LinkError};
use crate::storage::nats::wire::names::header;

/// Messages in one batch: nats-server's own limit.
pub const BATCH_MESSAGES_MAX: usize = 1_000;

/// Time that nats-server has to commit a batch before its outcome counts as unknown.
const COMMIT_WAIT: Duration = Duration::from_secs(3);

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

/// Sends the messages as one batch and waits for its commit. Gives the sequence of the last one;
/// the others have those right before it.
pub async fn send<'a>(
    link: &Link,
    messages: impl ExactSizeIterator<Item = &'a Outgoing>,
) -> Result<u64, BatchError> {
    let count = messages.len();
    let id = Uuid::new_v4().simple().to_string();
    let sending_by = Instant::now() + COMMIT_WAIT;
    for (number, message) in (1..).zip(messages) {
        let mut headers: HeaderMap = message.headers.clone();
        headers.insert(header::BATCH_ID, id.as_str());
        headers.insert(header::BATCH_SEQUENCE, number.to_string().as_str());
        let (subject, payload) = (message.subject.clone(), message.payload.clone());
        if number < count {
            // Without the last message the batch is nothing, so whatever happens here is no commit.
            link.publish(subject, headers, payload, sending_by).await.map_err(not_done)?;
        } else {
            headers.insert(header::BATCH_COMMIT, "1");
            let answer = link.request(subject, Some(headers), payload, COMMIT_WAIT).await;
            return answered(answer, count as u64);
        }
    }
    Err(BatchError::NotDone("it is empty".to_owned()))
}

fn not_done(error: LinkError) -> BatchError {
    BatchError::NotDone(error.to_string())
}

fn answered(answer: Result<async_nats::Message, LinkError>, count: u64) -> Result<u64, BatchError> {
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
