//! Mends what nats-server has cut out of a batch.
//!
//! A batch that is cut leaves its first messages. What the rest must have been follows from the last
//! token among them, so whoever finds it writes the rest: the server that sent it and got no answer,
//! or each server that looks at the end of the stream, once nats-server may have been restarted,
//! before it writes anything.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::time::Instant;
use tracing::{error, warn};
use uuid::Uuid;

use super::batch::{self, Answered, BatchError};
use super::commit::{Commit, Kind, completion_id};
use super::outgoing::{self, Outgoing};
use super::pieces::{Piece, Presence, Shape};
use crate::domain::{Completion, EventKind, WorkflowEvent};
use crate::storage::StorageError;
use crate::storage::nats::read::anchor::Anchor;
use crate::storage::nats::read::chain;
use crate::storage::nats::read::known::Standing;
use crate::storage::nats::read::reader::{RUN_MESSAGES_MAX, RUN_WAIT_MAX, Reader, unavailable};
use crate::storage::nats::read::stored::Stored;
use crate::storage::nats::read::token;
use crate::storage::nats::read::workflow_index::WorkflowIndex;
use crate::storage::nats::wire::jetstream::{self, code};
use crate::storage::nats::wire::link::Link;
use crate::storage::nats::wire::meter::Meter;
use crate::storage::nats::wire::names::{
    self, ALL_DEFINITIONS, ALL_EVENTS, ALL_SERVERS, ALL_TOKENS, PURGED, header,
};

/// How often it looks anew where others mend or move the same token at the same time.
const ROUNDS_MAX: usize = 8;

/// Finds and mends torn changes.
pub struct Mender {
    pub link: Arc<Link>,
    pub reader: Arc<Reader>,
    pub meter: Arc<Meter>,
    pub index: Arc<WorkflowIndex>,
    /// How long events are kept.
    pub age: Duration,
}

/// How a change was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It was whole, or others have gone on from it, who have looked.
    Whole,
    /// It was cut, and is whole now.
    Mended,
    /// It is none.
    NoChange,
}

/// What came of a repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mended {
    /// It is done.
    Done,
    /// Somebody else was first: look again.
    Overtaken,
}

impl Mender {
    /// Looks at the end of the stream, behind `whole`, and mends the change that stands there if it is
    /// torn. Gives the last sequence up to which all is whole.
    pub async fn end_of_stream(&self, whole: u64) -> Result<u64, StorageError> {
        for _ in 0..ROUNDS_MAX {
            let newest = self.newest_change().await?;
            let last = jetstream::stream_state(&self.link).await?.last_sequence;
            // A stream that is shorter than it was is another one.
            let whole = if whole > last { 0 } else { whole };
            let Some(newest) = newest.filter(|newest| newest.sequence > whole) else {
                return Ok(last);
            };
            let (subject, sequence) = (&newest.subject, newest.sequence);
            match self.mend_newest(&newest, last).await {
                Ok(Some(Mended::Overtaken)) => continue,
                Ok(Some(Mended::Done)) => warn!(
                    subject,
                    sequence, "nats-server had cut off the rest of this change; it is written now"
                ),
                Ok(None) => {}
                // Nothing is mended by guessing.
                Err(error @ StorageError::Corrupt { .. }) => {
                    error!(subject, sequence, %error, "whether this change is whole cannot be told");
                }
                Err(error) => return Err(error),
            }
            return Ok(last);
        }
        Err(unavailable("the end of the stream changes faster than it can be looked at"))
    }

    /// Mends the change that this message is a part of, if it is the last one that a cut has left.
    pub async fn mend_change_of(&self, message: &Stored) -> Result<State, StorageError> {
        let subject = &message.subject;
        let (workflow, id) = if let Some((workflow, _, id)) = names::parse_token(subject) {
            (workflow, id)
        } else if let Some(id) = names::parse_pointer(subject) {
            (message.pointer()?, id)
        } else if names::covers(ALL_EVENTS, subject) {
            let event = message.event()?.event;
            // The event of a definition is its last message.
            let Some(id) = event.token_id else { return Ok(State::Whole) };
            (event.workflow_id, id)
        } else if names::covers(ALL_DEFINITIONS, subject) {
            return self.mend_definition_in_rounds(message).await;
        } else {
            return Ok(State::NoChange);
        };
        if message.is_departure() {
            return Ok(State::Whole);
        }
        for _ in 0..ROUNDS_MAX {
            let last = jetstream::stream_state(&self.link).await?.last_sequence;
            let Some(found) = token::find(&self.reader, &workflow, id).await? else { break };
            let state = found.state.sequence;
            if !(state..state + Shape::MESSAGES_MAX).contains(&message.sequence) {
                break;
            }
            match self.mend(&found, last, None).await? {
                None => break,
                Some(Mended::Done) => return Ok(State::Mended),
                Some(Mended::Overtaken) => {}
            }
        }
        Ok(State::Whole)
    }

    async fn mend_definition_in_rounds(&self, found: &Stored) -> Result<State, StorageError> {
        for _ in 0..ROUNDS_MAX {
            let last = jetstream::stream_state(&self.link).await?.last_sequence;
            match self.mend_definition(found, last).await? {
                None => break,
                Some(Mended::Done) => return Ok(State::Mended),
                Some(Mended::Overtaken) => {}
            }
        }
        Ok(State::Whole)
    }

    /// Whether the newest change of a token is whole. If not it is mended, and has to be read anew.
    pub async fn is_whole(&self, found: &Standing) -> Result<bool, StorageError> {
        // That is the last message of a change.
        if found.departure.is_some() {
            return Ok(true);
        }
        let state = &found.state;
        let token = state.token()?.token;
        let left = token.transition_history.last().map(|record| &record.from_place);
        let has_more = state.marks.completion() != Completion::Open
            || left.is_some_and(|left| *left != token.place);
        if !has_more
            && let Some(event) = self.reader.at(state.sequence + 1).await?
            && chain::is_event_of(&event, token.id, token.version, false)?
        {
            return Ok(true);
        }
        let last = jetstream::stream_state(&self.link).await?.last_sequence;
        Ok(self.mend(found, last, None).await?.is_none())
    }

    async fn mend_newest(
        &self,
        newest: &Stored,
        last: u64,
    ) -> Result<Option<Mended>, StorageError> {
        let Some((workflow, _, id)) = names::parse_token(&newest.subject) else {
            return self.mend_definition(newest, last).await;
        };
        match token::find(&self.reader, &workflow, id).await? {
            Some(found) if found.state.sequence == newest.sequence => {
                self.mend(&found, last, None).await
            }
            // It has moved on, or is gone: others write, and they have looked before.
            Some(_) | None => Ok(None),
        }
    }

    /// The last token or definition of the stream, unless it shows that its change is whole: a departure
    /// is always the last message of its change. What others write after it is whole, as they look first.
    async fn newest_change(&self) -> Result<Option<Stored>, StorageError> {
        let (token, definition) = futures_util::try_join!(
            self.reader.last(ALL_TOKENS),
            self.reader.last(ALL_DEFINITIONS)
        )?;
        let newest = token.into_iter().chain(definition).max_by_key(|message| message.sequence);
        Ok(newest.filter(|newest| !newest.is_departure()))
    }

    /// Mends a token's newest change. None if it is whole. `last` is the stream's last sequence as it
    /// was before the token was read; the event may be given as the sender has it.
    pub async fn mend(
        &self,
        found: &Standing,
        last: u64,
        event: Option<Outgoing>,
    ) -> Result<Option<Mended>, StorageError> {
        let token = found.state.token()?.token;
        let pointer = self.index.has_pointer(&self.reader, token.id, &token.workflow_id).await?;
        let commit = Commit::of_stored(&found.state, event, pointer, self.age)?;
        let Some(missing) = self.missing(&found.state, &commit, last).await? else {
            return Ok(Some(Mended::Overtaken));
        };
        if missing.is_empty() {
            return Ok(None);
        }
        // How far behind the token stands what is missing first.
        let place = if missing.contains(&Piece::Event) {
            1
        } else if missing.contains(&Piece::Completion) {
            2
        } else {
            0
        };
        let mut messages = self.repair_of(found, commit, &missing)?;
        if place > 0
            && found.state.sequence + place > last
            && let Some(first) = messages.first_mut()
        {
            still_the_end(first, last);
        }
        self.send(messages).await.map(Some)
    }

    /// The messages that a token's newest change lacks; none can be told if it has moved on meanwhile.
    async fn missing(
        &self,
        state: &Stored,
        commit: &Commit,
        last: u64,
    ) -> Result<Option<Vec<Piece>>, StorageError> {
        let left = commit.messages.iter().find(|(piece, _)| *piece == Piece::Departure);
        let has = |wanted| commit.messages.iter().any(|(piece, _)| *piece == wanted);
        let (completes, ages_pointer) = (has(Piece::Completion), has(Piece::PointerTtl));
        let shape = Shape {
            creates: matches!(commit.kind, Kind::CreateToken { .. }),
            pointer: has(Piece::Pointer) || ages_pointer,
            leaves: left.is_some(),
            completes,
            ends: ages_pointer,
        };
        let (token, version) = (state.token()?.token.id, commit.version);
        let there = |n: u64, completion: bool| async move {
            match self.reader.at(state.sequence + n).await? {
                Some(event) => chain::is_event_of(&event, token, version, completion),
                None => self.was_removed(state, state.sequence + n, last).await,
            }
        };
        let event = there(1, false).await? || self.was_told(commit.event_id).await?;
        let completion = !completes
            || !event
            || there(2, true).await?
            || self.was_told(completion_id(commit.event_id)).await?;
        let pointer_ages = !ages_pointer
            || self
                .reader
                .last(&names::pointer(token))
                .await?
                .is_some_and(|pointer| pointer.marks.ages);
        let left = match left {
            None => true,
            Some((_, departure)) => {
                let shown = self.reader.last(&departure.subject).await?;
                let shown = shown.filter(|shown| !shown.is_departure());
                // It has come back since, and may stand there twice.
                if shown.as_ref().is_some_and(|shown| shown.sequence > state.sequence) {
                    return Ok(None);
                }
                shown.is_none()
            }
        };
        Ok(Some(shape.mending(Presence { event, completion, pointer_ages, left })))
    }

    /// Whether an event at this sequence, which is not there, can have been there: events go with age,
    /// to make room, and by an operator's hand. A purge leaves no mark; but what some server has once seen to
    /// be whole was not cut. Anything else may have stood there that has gone since.
    async fn was_removed(
        &self,
        state: &Stored,
        sequence: u64,
        last: u64,
    ) -> Result<bool, StorageError> {
        if sequence > last {
            return Ok(false);
        }
        let age = (Utc::now() - state.time).to_std().unwrap_or_default();
        let kept = state.marks.age.map_or(self.age, Duration::from_secs);
        if age >= kept {
            return Ok(true);
        }
        let purged = self.reader.last(PURGED).await?.and_then(|stored| stored.purged());
        if purged.is_some_and(|purged| purged >= sequence) {
            return Ok(true);
        }
        let until = Instant::now() + RUN_WAIT_MAX;
        let servers = self.reader.events(ALL_SERVERS, 1, RUN_MESSAGES_MAX, until).await?.messages;
        Ok(servers.iter().any(|record| Anchor::whole(&record.payload).covers(sequence)))
    }

    /// Whether a repair has written this event.
    async fn was_told(&self, event: Uuid) -> Result<bool, StorageError> {
        Ok(self.reader.last(&names::repair(event)).await?.is_some())
    }

    /// The batch that writes what is missing; it checks that nobody else has written meanwhile.
    fn repair_of(
        &self,
        found: &Standing,
        commit: Commit,
        missing: &[Piece],
    ) -> Result<Vec<Outgoing>, StorageError> {
        let (workflow, _, id) = names::parse_token(&found.state.subject)
            .ok_or_else(|| unavailable("a token stands on a subject that is none"))?;
        let written = if missing.contains(&Piece::Event) {
            commit.event_id
        } else {
            completion_id(commit.event_id)
        };
        let mut all = commit.messages;
        let mut messages = Vec::with_capacity(missing.len());
        for piece in missing {
            if *piece == Piece::RepairRecord {
                messages.push(self.repair_record(written));
                continue;
            }
            let Some(place) = all.iter().position(|(there, _)| there == piece) else { continue };
            let (_, mut message) = all.swap_remove(place);
            match piece {
                // It stands on its place already.
                Piece::State => message.set(header::ROLLUP, "sub"),
                Piece::Event => message.set(header::REPAIRED, found.state.sequence + 1),
                Piece::Completion => message.set(header::REPAIRED, found.state.sequence + 2),
                Piece::Pointer | Piece::PointerTtl | Piece::Departure | Piece::RepairRecord => {}
            }
            messages.push(message);
        }
        if let Some(first) = messages.first_mut() {
            first.set(header::EXPECTED_LAST_SUBJECT_SEQUENCE, found.newest());
            let anywhere = names::token_anywhere(&workflow, id);
            first.set(header::EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT, anywhere);
        }
        Ok(messages)
    }

    /// That the event was written by a repair: of several repairs that write it one is taken. It lives
    /// as long as the event.
    fn repair_record(&self, event: Uuid) -> Outgoing {
        Outgoing::new(names::repair(event), Vec::new())
            .with(header::TTL, names::ttl(self.age))
            .with(header::EXPECTED_LAST_SUBJECT_SEQUENCE, 0)
    }

    /// Writes the event of a change alone, of which others have already gone on: the message of the
    /// change was `state`. If somebody has written it already, that is as good; but if it is missing at
    /// the `end` of the stream alone, and that has moved on, it must be looked at again.
    pub async fn tell_late(
        &self,
        mut event: Outgoing,
        event_id: Uuid,
        state: u64,
        end: Option<u64>,
    ) -> Result<Mended, StorageError> {
        event.set(header::REPAIRED, state + 1);
        if let Some(end) = end {
            still_the_end(&mut event, end);
        }
        self.send(vec![event, self.repair_record(event_id)]).await
    }

    /// A definition stays as it is; its event, where it is missing, is told late.
    pub async fn mend_definition(
        &self,
        found: &Stored,
        last: u64,
    ) -> Result<Option<Mended>, StorageError> {
        let definition = found.definition()?;
        let there = match self.reader.at(found.sequence + 1).await? {
            Some(event) if names::covers(ALL_EVENTS, &event.subject) => {
                let event = event.event()?.event;
                event.kind == EventKind::WorkflowCreated && event.workflow_id == definition.id
            }
            Some(_) => false,
            None => self.was_removed(found, found.sequence + 1, last).await?,
        };
        let Some(event_id) = found.event_id().filter(|_| !there) else { return Ok(None) };
        if self.was_told(event_id).await? {
            return Ok(None);
        }
        let event = WorkflowEvent::workflow_created(definition.id.clone(), definition.created_at);
        let payload = outgoing::event_payload(&event, event_id, None)?;
        let message = Outgoing::new(names::event(&definition.id, event.kind), payload)
            .with(header::TTL, names::ttl(self.age));
        let end = (found.sequence == last).then_some(last);
        self.tell_late(message, event_id, found.sequence, end).await.map(Some)
    }

    async fn send(&self, messages: Vec<Outgoing>) -> Result<Mended, StorageError> {
        let messages: Vec<_> = messages.iter().collect();
        match batch::send(&self.link, &messages, Answered::Each).await {
            Ok(last) => {
                self.reader.record_acknowledged(last);
                self.meter.record_mended();
                Ok(Mended::Done)
            }
            Err(BatchError::Refused(refusal)) => {
                let reason = format!("a torn change cannot be mended: {}", refusal.reason());
                match refusal.err_code {
                    code::WRONG_LAST_SEQUENCE | code::WRITE_UNDER_WAY => Ok(Mended::Overtaken),
                    code::STORE_FAILED => Err(StorageError::Full { reason }),
                    _ if refusal.advice().is_some() => Err(StorageError::Full { reason }),
                    _ => Err(unavailable(reason)),
                }
            }
            Err(BatchError::NotDone(reason)) => {
                Err(unavailable(format!("a torn change cannot be mended: {reason}")))
            }
            Err(BatchError::Unknown(reason)) => {
                let why = jetstream::WHY_UNANSWERED;
                Err(unavailable(format!("a torn change cannot be mended: {reason}; {why}")))
            }
        }
    }
}

/// What is missing at the end of the stream may be about to be stored: a batch is taken before all of
/// it can be read. So what mends it there must find the end as it was.
fn still_the_end(first: &mut Outgoing, last: u64) {
    first.set(header::EXPECTED_LAST_SEQUENCE, last);
}
