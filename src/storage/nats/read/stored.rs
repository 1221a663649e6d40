//! A message as the stream holds it, and what it says: token, event, definition, departure.

use async_nats::Message;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::sync::Arc;
use uuid::Uuid;

use super::identity::Identity;
use crate::domain::{
    Completion, EventKind, PlaceId, Token, WorkflowDefinition, WorkflowEvent, WorkflowId,
};
use crate::storage::nats::wire::jetstream::LeaderMessage;
use crate::storage::nats::wire::names::{self, FORMAT, header};
use crate::storage::{Sequence, StorageError, StoredEvent, StoredToken};

/// What an event's payload says beside the event.
#[derive(Debug, Deserialize)]
pub struct EventLink {
    pub event_id: Uuid,
    #[serde(default)]
    pub previous_sequence: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Purged {
    sequence: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Pointer {
    workflow_id: WorkflowId,
}

/// The payload of a pointer that leads to a workflow.
pub fn pointer_payload(workflow: &WorkflowId) -> Bytes {
    let pointer = Pointer { workflow_id: workflow.clone() };
    // An object with a name in it: nothing of that can fail.
    serde_json::to_vec(&pointer).unwrap_or_default().into()
}

/// A message as the stream holds it.
#[derive(Debug, Clone)]
pub struct Stored {
    pub subject: String,
    pub sequence: u64,
    pub time: DateTime<Utc>,
    pub marks: Marks,
    pub payload: Bytes,
}

/// What the headers of a message say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// The format; none means 1.
    pub format: Option<u32>,
    /// The ids of the newest events of a token or definition, the newest first.
    pub events: Vec<Uuid>,
    /// The sequence of the event before a token's newest one.
    pub previous: Option<u64>,
    /// Of a token that this message created: who asked for it, or an empty text.
    pub created_by: Option<String>,
    /// Where the token went that has left this place.
    pub moved_to: Option<PlaceId>,
    /// Where this event should have stood, which a repair has written.
    pub repaired: Option<u64>,
    /// For how many seconds the event of this token or definition was to be kept.
    pub age: Option<u64>,
    /// Whether it vanishes with time: of a token, that it is completed for good.
    pub ages: bool,
    /// Of a token, that it is completed where a transition still leaves.
    pub reopens: bool,
    /// Which message of its batch it is, from 1 on.
    pub in_batch: Option<u64>,
    /// Whether nats-server has written it where something vanished, as it does under
    /// `subject_delete_marker_ttl`: it is none of ours.
    pub is_marker: bool,
}

impl Marks {
    /// Takes one header; what is not of ours says nothing.
    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = || value.parse().map_err(|_| format!("{value:?} is not a number"));
        if name.eq_ignore_ascii_case(header::FORMAT) {
            let format = value.parse().map_err(|_| format!("{value:?} is not a number"))?;
            self.format = Some(format);
        } else if name.eq_ignore_ascii_case(header::EVENTS) {
            let ids = value.split(',').map(|id| id.trim().parse());
            self.events = ids.collect::<Result<_, _>>().map_err(|e| format!("{value:?}: {e}"))?;
        } else if name.eq_ignore_ascii_case(header::PREVIOUS) {
            self.previous = Some(number()?);
        } else if name.eq_ignore_ascii_case(header::CREATED_BY) {
            self.created_by = Some(value.to_owned());
        } else if name.eq_ignore_ascii_case(header::AGE) {
            self.age = Some(number()?);
        } else if name.eq_ignore_ascii_case(header::REPAIRED) {
            self.repaired = Some(number()?);
        } else if name.eq_ignore_ascii_case(header::MOVED_TO) {
            self.moved_to = Some(PlaceId::parse(value).map_err(|error| error.to_string())?);
        } else if name.eq_ignore_ascii_case(header::TTL) {
            self.ages = true;
        } else if name.eq_ignore_ascii_case(header::COMPLETED) {
            self.reopens = true;
        } else if name.eq_ignore_ascii_case(header::BATCH_SEQUENCE) {
            self.in_batch = value.parse().ok();
        } else if name.eq_ignore_ascii_case(header::MARKER_REASON) {
            self.is_marker = true;
        }
        Ok(())
    }

    /// Whether the token of this message is completed.
    pub fn completion(&self) -> Completion {
        match (self.ages, self.reopens) {
            (true, _) => Completion::ForGood,
            (false, true) => Completion::Reopens,
            (false, false) => Completion::Open,
        }
    }

    fn of<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Self, String> {
        let mut marks = Self::default();
        for (name, value) in headers {
            marks.take(name, value).map_err(|reason| format!("its header {name}: {reason}"))?;
        }
        Ok(marks)
    }
}

fn unreadable(what: &str, reason: impl ToString) -> StorageError {
    StorageError::Corrupt { what: what.to_owned(), reason: reason.to_string() }
}

impl Stored {
    /// A message as a direct get gives it, with the facts in its headers.
    pub fn from_direct(message: Message) -> Result<Self, StorageError> {
        let headers = message.headers.unwrap_or_default();
        let each = headers.iter();
        let each =
            each.filter_map(|(name, values)| Some((name.as_ref(), values.first()?.as_str())));
        let (mut subject, mut sequence, mut time) = ("", "", "");
        // Each is looked at once: to look one up by its name takes longer.
        let ours = each.filter(|(name, value): &(&str, &str)| {
            match *name {
                header::SUBJECT => subject = value,
                header::SEQUENCE => sequence = value,
                header::TIME_STAMP => time = value,
                _ => return true,
            }
            false
        });
        let marks = Marks::of(ours);
        Ok(Self {
            sequence: sequence.parse().map_err(|e| unreadable(subject, e))?,
            time: parse_time(time).map_err(|e| unreadable(subject, e))?,
            marks: marks
                .map_err(|reason| unreadable(&format!("a message on {subject}"), reason))?,
            subject: subject.to_owned(),
            payload: message.payload,
        })
    }

    /// A message as the leader gives it.
    pub fn from_leader(message: LeaderMessage<'_>) -> Result<Self, StorageError> {
        let subject = message.subject;
        let decode = |text: &str| BASE64.decode(text).map_err(|e| unreadable(&subject, e));
        let headers = decode(message.hdrs)?;
        // Those of others may hold anything.
        let headers = str::from_utf8(&headers)
            .map_or_else(|_| String::from_utf8_lossy(&headers), Cow::Borrowed);
        let lines = headers.lines().filter_map(|line| line.split_once(':'));
        let marks = Marks::of(lines.map(|(name, value)| (name, value.trim())));
        let marks = marks.map_err(|e| unreadable(&format!("a message on {subject}"), e))?;
        Ok(Self {
            sequence: message.seq,
            time: parse_time(message.time).map_err(|e| unreadable(&subject, e))?,
            marks,
            payload: decode(message.data)?.into(),
            subject,
        })
    }

    /// The sequence of the first message of its batch. What was written alone says nothing of a batch.
    pub fn first_in_batch(&self) -> u64 {
        let before = self.marks.in_batch.unwrap_or(1).saturating_sub(1);
        self.sequence.saturating_sub(before).max(1)
    }

    /// Whether it only marks that a token left its place.
    pub fn is_departure(&self) -> bool {
        self.payload.is_empty()
    }

    fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, StorageError> {
        let what = || format!("message {} on {}", self.sequence, self.subject);
        let format = self.marks.format.unwrap_or(1);
        if format > FORMAT {
            let reason = format!(
                "it has format {format}, and this program reads formats up to {FORMAT}; use a newer one"
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
        // Where a repair has written it, it stands elsewhere than right after what it tells of.
        let place = self.marks.repaired.unwrap_or(self.sequence);
        // What completed the token is the event before; all others stand right after what they made.
        let after_state = event.kind != EventKind::TokenCompleted;
        let nats_sequence = place.checked_sub(if after_state { 1 } else { 2 });
        Ok(StoredEvent { sequence: Sequence(self.sequence), nats_sequence, event })
    }

    /// What its event says beside itself.
    pub fn event_link(&self) -> Result<EventLink, StorageError> {
        self.json()
    }

    /// What identifies the store.
    pub fn identity(&self) -> Result<Identity, StorageError> {
        self.json()
    }

    /// Up to which sequence events may be gone, if that can be read.
    pub fn purged(&self) -> Option<u64> {
        serde_json::from_slice::<Purged>(&self.payload).ok().map(|purged| purged.sequence)
    }

    /// The workflow that a pointer leads to.
    pub fn pointer(&self) -> Result<WorkflowId, StorageError> {
        Ok(self.json::<Pointer>()?.workflow_id)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::nats::wire::jetstream;

    #[test]
    fn a_later_format_is_refused_by_name() {
        let answer = |headers: &str| {
            let headers = BASE64.encode(format!("NATS/1.0\r\n{headers}\r\n\r\n"));
            let message = serde_json::json!({"subject": "s", "seq": 4, "time": "2026-01-02T03:04:05.000000006Z",
                "hdrs": headers, "data": BASE64.encode("{}")});
            serde_json::json!({ "message": message }).to_string()
        };
        let stored = |headers: &str| {
            let answer = answer(headers);
            Stored::from_leader(jetstream::leader_message(answer.as_bytes()).unwrap().unwrap())
        };
        let later = stored("Cb-Format: 3").unwrap();
        let error = later.definition().unwrap_err().to_string();
        assert!(error.contains("message 4 on s") && error.contains("format 3"), "{error}");
        let other = stored("Cb-Format: x").unwrap_err();
        assert!(other.to_string().contains("not a number"), "{other}");
        let none = stored("A: b").unwrap();
        assert_eq!((none.marks, none.sequence), (Marks::default(), 4));
    }

    #[test]
    fn what_a_message_says_of_itself_is_read() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let headers = format!(
            "Cb-Format: 2\r\nCb-Events: {a},{b}\r\nCb-Previous: 7\r\nNats-TTL: 1s\r\nCb-Moved-To: review\r\nOther: x"
        );
        let lines = headers.lines().filter_map(|line| line.split_once(": "));
        let marks = Marks::of(lines).unwrap();
        assert_eq!((marks.format, marks.events, marks.previous), (Some(2), vec![a, b], Some(7)));
        assert_eq!(marks.moved_to.unwrap().as_str(), "review");
        assert!(marks.ages && marks.repaired.is_none());
        for (name, value) in
            [("Cb-Events", "x"), ("Cb-Previous", "-1"), ("Cb-Repaired", ""), ("Cb-Moved-To", "*")]
        {
            let error = Marks::of([(name, value)].into_iter()).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
    }
}
