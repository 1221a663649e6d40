//! A message as the stream holds it, and what it says: token, event, definition, departure.

use async_nats::Message;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use std::sync::Arc;
use uuid::Uuid;

use crate::domain::{EventKind, Token, WorkflowDefinition, WorkflowEvent};
use crate::storage::nats::wire::names::{self, FORMAT, header};
use crate::storage::{Sequence, StorageError, StoredEvent, StoredToken};

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
    pub format: u32,
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
        set_place_on_bus(&mut token, self.sequence, self.time, self.subject.clone());
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

/// Notes in a token where its message stands. The newest record of its moves gets the sequence, too,
/// as that message was made by that move.
pub fn set_place_on_bus(token: &mut Token, sequence: u64, time: DateTime<Utc>, subject: String) {
    token.nats_sequence = Some(sequence);
    token.nats_timestamp = Some(time);
    token.nats_subject = Some(subject);
    if let Some(newest) = token.transition_history.last_mut() {
        newest.nats_sequence = Some(sequence);
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

#[cfg(test)]
mod tests {
    use super::*;

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
