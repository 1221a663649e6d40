//! Payloads and headers of the messages: what a change becomes, and what a message says.

use async_nats::{HeaderMap, Message};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;
use uuid::Uuid;

use crate::domain::limits::RECORD_BYTES_MAX;
use crate::domain::{EventKind, Token, WorkflowDefinition, WorkflowEvent};
use crate::storage::nats::wire::names::{self, FORMAT, header};
use crate::storage::{Sequence, StorageError, StoredEvent, StoredToken};

/// A message on its way to the stream.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub subject: String,
    pub headers: HeaderMap,
    pub payload: Bytes,
}

impl Outgoing {
    pub fn new(subject: String, payload: impl Into<Bytes>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::FORMAT, FORMAT.to_string().as_str());
        Self { subject, headers, payload: payload.into() }
    }

    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.insert(name, value.to_string().as_str());
        self
    }

    /// Bytes on the wire, about: what the batch adds is within the allowance.
    pub fn bytes(&self) -> usize {
        const HEADERS: usize = 256;
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

/// What an event's payload says beside the event.
#[derive(Debug, Deserialize)]
pub struct EventLink {
    pub event_id: Uuid,
    #[serde(default)]
    pub previous_sequence: Option<u64>,
}

/// A message as the stream holds it.
#[derive(Debug)]
pub struct Stored {
    pub subject: String,
    pub sequence: u64,
    pub time: DateTime<Utc>,
    /// The format that its header names.
    format: u32,
    pub payload: Bytes,
}

fn unreadable(what: &str, reason: impl ToString) -> StorageError {
    StorageError::Corrupt { what: what.to_owned(), reason: reason.to_string() }
}

impl Stored {
    /// A message as a direct get gives it, with the facts in its headers.
    pub fn from_direct(message: Message) -> Result<Self, StorageError> {
        let headers = message.headers.unwrap_or_default();
        let get = |name: &str| headers.get(name).map(|value| value.as_str()).unwrap_or_default();
        let subject = get(header::SUBJECT).to_owned();
        let time = get(header::TIME_STAMP);
        Ok(Self {
            sequence: get(header::SEQUENCE).parse().map_err(|e| unreadable(&subject, e))?,
            time: parse_time(time).map_err(|e| unreadable(&subject, e))?,
            format: parse_format(
                headers.get(header::FORMAT).map(|value| value.as_str()),
                &subject,
            )?,
            payload: message.payload,
            subject,
        })
    }

    /// A message as the leader gives it, as JSON.
    pub fn from_leader(answer: &[u8]) -> Result<Self, StorageError> {
        #[derive(Deserialize)]
        struct Answer {
            message: Inner,
        }
        #[derive(Deserialize)]
        struct Inner {
            subject: String,
            seq: u64,
            #[serde(default)]
            hdrs: String,
            #[serde(default)]
            data: String,
            time: String,
        }
        let Answer { message } =
            serde_json::from_slice(answer).map_err(|e| unreadable("an answer", e))?;
        let subject = message.subject;
        let decode = |text: &str| BASE64.decode(text).map_err(|e| unreadable(&subject, e));
        let headers = decode(&message.hdrs)?;
        let headers = String::from_utf8_lossy(&headers);
        let format = headers.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(header::FORMAT).then(|| value.trim())
        });
        Ok(Self {
            sequence: message.seq,
            time: parse_time(&message.time).map_err(|e| unreadable(&subject, e))?,
            format: parse_format(format, &subject)?,
            payload: decode(&message.data)?.into(),
            subject,
        })
    }

    /// Whether it only marks that a token left its place.
    pub fn is_departure(&self) -> bool {
        self.payload.is_empty()
    }

    fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, StorageError> {
        let what = || format!("message {} on {}", self.sequence, self.subject);
        if self.format > FORMAT {
            let reason = format!(
                "it has format {}, and this program reads formats up to {FORMAT}; use a newer one",
                self.format
            );
            return Err(unreadable(&what(), reason));
        }
        serde_json::from_slice(&self.payload).map_err(|error| unreadable(&what(), error))
    }

    /// The token that it holds, with where it stands filled in.
    pub fn token(&self) -> Result<StoredToken, StorageError> {
        let mut token: Token = self.json()?;
        let here = names::parse_token(&self.subject);
        if here != Some((token.workflow_id.clone(), token.place.clone(), token.id)) {
            let what = format!("message {} on {}", self.sequence, self.subject);
            let reason = format!(
                "its payload says token {} in {} of {}",
                token.id, token.place, token.workflow_id
            );
            return Err(unreadable(&what, reason));
        }
        token.set_nats_metadata(self.sequence, self.time, self.subject.clone());
        Ok(StoredToken { token: Arc::new(token), revision: Sequence(self.sequence) })
    }

    /// The event that it holds.
    pub fn event(&self) -> Result<StoredEvent, StorageError> {
        let event: WorkflowEvent = self.json()?;
        // What completed the token is the event before; all others stand right after what they made.
        let after_state = event.kind != EventKind::TokenCompleted;
        let nats_sequence = self.sequence.checked_sub(if after_state { 1 } else { 2 });
        Ok(StoredEvent { sequence: Sequence(self.sequence), nats_sequence, event })
    }

    /// What its event says beside itself.
    pub fn event_link(&self) -> Result<EventLink, StorageError> {
        self.json()
    }

    /// The definition that it holds.
    pub fn definition(&self) -> Result<WorkflowDefinition, StorageError> {
        self.json()
    }
}

fn parse_time(text: &str) -> Result<DateTime<Utc>, String> {
    let time = DateTime::parse_from_rfc3339(text);
    time.map(|time| time.to_utc()).map_err(|error| format!("its time {text:?}: {error}"))
}

fn parse_format(text: Option<&str>, subject: &str) -> Result<u32, StorageError> {
    match text {
        None => Ok(1),
        Some(text) => text.parse().map_err(|_| {
            let reason = format!("its header {} is {text:?}, not a number", header::FORMAT);
            unreadable(&format!("a message on {subject}"), reason)
        }),
    }
}

/// A JSON request, as bytes.
pub fn request(json: &Value) -> Bytes {
    json.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::WorkflowId;

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
                format: 1,
                payload: payload.into(),
            };
            assert_eq!(message.event().unwrap().event, event);
            let link = message.event_link().unwrap();
            assert_eq!((link.event_id, link.previous_sequence), (id, previous));
        }
    }

    #[test]
    fn a_later_format_is_refused_by_name() {
        let answer = |headers: &str| {
            let headers = BASE64.encode(format!("NATS/1.0\r\n{headers}\r\n\r\n"));
            let message = serde_json::json!({"subject": "s", "seq": 4, "time": "2026-01-02T03:04:05.000000006Z",
                "hdrs": headers, "data": BASE64.encode("{}")});
            serde_json::json!({ "message": message }).to_string()
        };
        let later = Stored::from_leader(answer("Cb-Format: 2").as_bytes()).unwrap();
        let error = later.definition().unwrap_err().to_string();
        assert!(error.contains("message 4 on s") && error.contains("format 2"), "{error}");
        let other = Stored::from_leader(answer("Cb-Format: x").as_bytes()).unwrap_err();
        assert!(other.to_string().contains("not a number"), "{other}");
        let none = Stored::from_leader(answer("A: b").as_bytes()).unwrap();
        assert_eq!((none.format, none.sequence), (1, 4));
    }
}
