//! Messages on their way to the stream.

use async_nats::HeaderMap;
use bytes::Bytes;
use uuid::Uuid;

use crate::domain::limits::RECORD_BYTES_MAX;
use crate::domain::{Token, WorkflowDefinition, WorkflowEvent};
use crate::storage::StorageError;
use crate::storage::nats::read::anchor::Next;
use crate::storage::nats::wire::jetstream::{self, Headers};
use crate::storage::nats::wire::names::{FORMAT, header};

/// A message on its way to the stream.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub subject: String,
    headers: Headers,
    pub payload: Bytes,
}

impl Outgoing {
    pub fn new(subject: String, payload: impl Into<Bytes>) -> Self {
        let headers = vec![(header::FORMAT, FORMAT.to_string())];
        Self { subject, headers, payload: payload.into() }
    }

    /// A server's own record.
    pub fn of(record: &Next) -> Self {
        let mut message = Self::new(record.subject.clone(), record.payload.clone());
        for (name, value) in &record.headers {
            message.set(name, value);
        }
        message
    }

    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.set(name, value);
        self
    }

    /// Sets a header, in place of what it was.
    pub fn set(&mut self, name: &'static str, value: impl ToString) {
        let value = value.to_string();
        match self.headers.iter_mut().find(|(there, _)| *there == name) {
            Some((_, there)) => *there = value,
            None => self.headers.push((name, value)),
        }
    }

    pub fn header(&self, name: &'static str) -> Option<&str> {
        let found = self.headers.iter().find(|(there, _)| *there == name);
        found.map(|(_, value)| value.as_str())
    }

    /// All of them, as they go out.
    pub fn headers(&self) -> HeaderMap {
        jetstream::headers(&self.headers)
    }

    /// Bytes on the wire, about: what the batch adds is within the allowance.
    pub fn bytes(&self) -> usize {
        const HEADERS: usize = 384;
        self.subject.len() + self.payload.len() + HEADERS
    }
}

fn checked(json: serde_json::Result<Vec<u8>>, what: String) -> Result<Vec<u8>, StorageError> {
    let json = json
        .map_err(|error| StorageError::Corrupt { what: what.clone(), reason: error.to_string() })?;
    if json.len() > RECORD_BYTES_MAX {
        return Err(StorageError::TooLarge {
            what,
            bytes: json.len(),
            bytes_max: RECORD_BYTES_MAX,
        });
    }
    Ok(json)
}

/// The payload of a token. Where it stands on the bus is not part of it.
pub fn token_payload(token: &Token) -> Result<Vec<u8>, StorageError> {
    checked(serde_json::to_vec(token), format!("token {}", token.id))
}

/// The payload of a definition.
pub fn definition_payload(definition: &WorkflowDefinition) -> Result<Vec<u8>, StorageError> {
    checked(serde_json::to_vec(definition), format!("workflow {}", definition.id))
}

/// The payload of an event: its JSON with an id of its own and, for a move, the sequence of the
/// token's event before it.
pub fn event_payload(
    event: &WorkflowEvent,
    id: Uuid,
    previous: Option<u64>,
) -> Result<Vec<u8>, StorageError> {
    let json = checked(serde_json::to_vec(event), "the event of this change".to_owned())?;
    let mut payload = format!(r#"{{"event_id":"{id}","#).into_bytes();
    if let Some(previous) = previous {
        payload.extend_from_slice(format!(r#""previous_sequence":{previous},"#).as_bytes());
    }
    // An event is an object with at least its kind, so a member follows.
    payload.extend_from_slice(&json[1..]);
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::domain::WorkflowId;
    use crate::storage::nats::read::stored::{Marks, Stored};

    #[test]
    fn an_event_carries_its_link_and_reads_as_itself() {
        let event =
            WorkflowEvent::workflow_created(WorkflowId::parse("w").unwrap(), DateTime::UNIX_EPOCH);
        for previous in [None, Some(u64::MAX)] {
            let id = Uuid::from_u128(3);
            let payload = event_payload(&event, id, previous).unwrap();
            let message = Stored {
                subject: "s".to_owned(),
                sequence: 9,
                time: DateTime::UNIX_EPOCH,
                marks: Marks::default(),
                payload: payload.into(),
            };
            assert_eq!(message.event().unwrap().event, event);
            let link = message.event_link().unwrap();
            assert_eq!((link.event_id, link.previous_sequence), (id, previous));
        }
    }
}
