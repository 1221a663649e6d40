//! What a change of the store becomes on the bus: the messages of one commit, in their order.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::claim::Claim;
use super::outgoing::{self, Outgoing};
use super::pieces::{Piece, Shape};
use crate::domain::{
    Cause, Change, Completion, Token, WorkflowDefinition, WorkflowEvent, WorkflowId, workflow_hash,
};
use crate::storage::nats::read::known::events_after;
use crate::storage::nats::read::stored::{Stored, pointer_payload};
use crate::storage::nats::wire::link::{Link, LinkError};
use crate::storage::nats::wire::names::{self, header};
use crate::storage::{Sequence, StorageError};

/// How long the empty message stays that takes a token out of a place; nats-server knows nothing
/// shorter.
const DEPARTURE_TTL: &str = "1s";

/// What a commit changes. No two commits of one batch may change the same thing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    Workflow(WorkflowId),
    Token(Uuid),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Workflow(workflow) => write!(f, "workflow {workflow}"),
            Target::Token(token) => write!(f, "token {token}"),
        }
    }
}

/// What kind of change it is, with what it relies on.
#[derive(Debug, Clone)]
pub enum Kind {
    CreateWorkflow,
    CreateToken { workflow: WorkflowId, created_at: DateTime<Utc> },
    Move { workflow: WorkflowId, expected: Sequence },
}

/// The messages of one change.
#[derive(Debug)]
pub struct Commit {
    pub target: Target,
    pub kind: Kind,
    /// In the order in which they must be stored.
    pub messages: Vec<(Piece, Outgoing)>,
    /// The id of its event, by which it is found again.
    pub event_id: Uuid,
    /// The token's version after it.
    pub version: u32,
    /// What it expects as the token's newest sequence, and the ids of the token's newest events
    /// before it; of a move, once that is known.
    newest: Option<u64>,
    earlier: Vec<Uuid>,
    /// The stream must end here when it is committed, which then is alone in its batch.
    pub end: Option<u64>,
    /// The life of the store that it was decided in, if that is known.
    pub life: Option<u64>,
    /// What was acknowledged to this server before it was sent for the first time: if it is stored, then
    /// behind that.
    pub sent_behind: Option<u64>,
}

impl Commit {
    /// A new definition: nobody may have one of this id. Where it is the `first` of its hash, that is
    /// claimed, too.
    pub fn create_workflow(
        definition: &WorkflowDefinition,
        event: &WorkflowEvent,
        first: bool,
        age: Duration,
    ) -> Result<Self, StorageError> {
        let subject = names::definition(&definition.id);
        let event_id = Uuid::new_v4();
        let state = Outgoing::new(subject, outgoing::definition_payload(definition)?)
            .with(header::EVENTS, event_id)
            .with(header::AGE, age.as_secs().max(1))
            .with(header::EXPECTED_LAST_SUBJECT_SEQUENCE, 0);
        let event = event_message(event, event_id, None, age)?;
        let mut messages = Vec::with_capacity(3);
        if first {
            let subject = names::hash_pointer(workflow_hash(&definition.id));
            let pointer = Outgoing::new(subject, pointer_payload(&definition.id))
                .with(header::EXPECTED_LAST_SUBJECT_SEQUENCE, 0);
            messages.push((Piece::Pointer, pointer));
        }
        messages.extend([(Piece::State, state), (Piece::Event, event)]);
        Ok(Self {
            target: Target::Workflow(definition.id.clone()),
            kind: Kind::CreateWorkflow,
            messages,
            event_id,
            version: 0,
            newest: None,
            earlier: Vec::new(),
            end: None,
            life: None,
            sent_behind: None,
        })
    }

    /// A definition whose hash another one has: it claims none.
    pub fn without_pointer(&mut self) {
        self.messages.retain(|(piece, _)| *piece != Piece::Pointer);
    }

    /// A new token, whose id is taken as the claim says.
    pub fn create_token(
        change: &Change,
        claim: &Claim,
        age: Duration,
    ) -> Result<Self, StorageError> {
        let workflow = change.token.workflow_id.clone();
        let anywhere = names::token_anywhere(&workflow, change.token.id);
        let kind = Kind::CreateToken { workflow, created_at: change.token.created_at };
        let pointer = claim.pointer.is_some();
        let mut commit = Self::of_token(change, Uuid::new_v4(), kind, pointer, None, age)?;
        commit.name_events();
        let state = commit.state();
        state.set(header::EXPECTED_LAST_SUBJECT_SEQUENCE, 0);
        state.set(header::EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT, anywhere);
        commit.claim(claim);
        Ok(commit)
    }

    /// Lets a creation claim its id as that is now.
    pub fn claim(&mut self, claim: &Claim) {
        for (piece, message) in &mut self.messages {
            match (piece, claim.pointer, &claim.event) {
                (Piece::Pointer, Some(sequence), _) => {
                    message.set(header::EXPECTED_LAST_SUBJECT_SEQUENCE, sequence);
                    if sequence > 0 {
                        message.set(header::ROLLUP, "sub");
                    }
                }
                (Piece::Event, _, Some(check)) => {
                    message.set(header::EXPECTED_LAST_SUBJECT_SEQUENCE, check.sequence);
                    message.set(header::EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT, &check.subject);
                }
                _ => {}
            }
        }
        self.end = claim.end;
    }

    /// A move, decided on the token's message `expected`; the token has a `pointer` or none. Before it is sent, it must be told what it
    /// can rely on: [`Commit::rely_on`].
    pub fn move_token(
        expected: Sequence,
        change: &Change,
        pointer: bool,
        age: Duration,
    ) -> Result<Self, StorageError> {
        let token = &change.token;
        if change.from_place().is_none() {
            return Err(StorageError::Unfit {
                what: format!("the move of token {}", token.id),
                reason: "it does not say where it starts".to_owned(),
            });
        }
        let workflow = token.workflow_id.clone();
        let anywhere = names::token_anywhere(&workflow, token.id);
        // The event of the change before stands right after its token.
        let (previous, kind) = (Some(expected.0 + 1), Kind::Move { workflow, expected });
        let mut commit = Self::of_token(change, Uuid::new_v4(), kind, pointer, previous, age)?;
        commit.state().set(header::EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT, anywhere);
        Ok(commit)
    }

    /// The commit that made a token what it is, as far as the token's message tells, with the data of
    /// its own event, where the message of that is at hand.
    pub fn of_stored(
        state: &Stored,
        event: Option<Outgoing>,
        pointer: bool,
        age: Duration,
    ) -> Result<Self, StorageError> {
        let mut token = Token::clone(&state.token()?.token);
        forget_place_on_bus(&mut token);
        let cause = match &state.marks.created_by {
            Some(by) => Cause::Created { by: Some(by.clone()).filter(|by| !by.is_empty()) },
            None if token.version == 1 => Cause::Created { by: None },
            None => Cause::Moved,
        };
        let workflow = token.workflow_id.clone();
        let kind = match cause {
            Cause::Created { .. } => Kind::CreateToken { workflow, created_at: token.created_at },
            Cause::Moved => Kind::Move { workflow, expected: Sequence(state.sequence) },
        };
        let event_id = state.event_id().unwrap_or_else(|| {
            // The first version put it into the event alone.
            let name = format!("{} {} {:?}", token.id, token.version, cause);
            Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
        });
        let change = Change::newest_of(token, cause, state.marks.completion());
        let mut commit =
            Self::of_token(&change, event_id, kind, pointer, state.marks.previous, age)?;
        let first = commit.state();
        // Byte for byte what is stored, with what a later version may have added.
        first.payload = state.payload.clone();
        commit.earlier = state.marks.events.iter().skip(1).copied().collect();
        commit.name_events();
        let mut messages = commit.messages.iter_mut();
        if let Some(event) = event
            && let Some((_, message)) = messages.find(|(piece, _)| *piece == Piece::Event)
        {
            *message = event;
        }
        Ok(commit)
    }

    fn of_token(
        change: &Change,
        event_id: Uuid,
        kind: Kind,
        pointer: bool,
        previous: Option<u64>,
        age: Duration,
    ) -> Result<Self, StorageError> {
        let token = &change.token;
        let left = change.from_place().filter(|from| **from != token.place);
        let (creates, ends) = (matches!(kind, Kind::CreateToken { .. }), change.ends());
        let completes = change.completes();
        let shape = Shape { creates, pointer, leaves: left.is_some(), completes, ends };
        let mut events = change.events.iter();
        let mut messages = Vec::with_capacity(5);
        for piece in shape.pieces() {
            let message = match piece {
                Piece::Pointer => pointer_message(token, Some(age).filter(|_| ends)),
                Piece::PointerTtl => pointer_message(token, Some(age)).with(header::ROLLUP, "sub"),
                Piece::State => token_message(change, previous, age)?,
                Piece::Event => match events.next() {
                    Some(event) => event_message(event, event_id, previous, age)?,
                    None => continue,
                },
                // It follows its move, so it needs no link of its own.
                Piece::Completion => match events.next() {
                    Some(event) => event_message(event, completion_id(event_id), None, age)?,
                    None => continue,
                },
                Piece::Departure => match left {
                    Some(left) => {
                        let left = names::token(&token.workflow_id, left, token.id);
                        departure(left, token.place.as_str())
                    }
                    None => continue,
                },
                Piece::RepairRecord => continue,
            };
            messages.push((piece, message));
        }
        Ok(Self {
            target: Target::Token(token.id),
            kind,
            messages,
            event_id,
            version: token.version,
            newest: None,
            earlier: Vec::new(),
            end: None,
            life: change.life,
            sent_behind: None,
        })
    }

    /// The message that holds the token or the definition.
    pub fn state(&mut self) -> &mut Outgoing {
        let at = self.state_at();
        &mut self.messages[at].1
    }

    /// Where among its messages that stands. Every commit has one, and only a pointer before it.
    pub fn state_at(&self) -> usize {
        usize::from(self.messages.first().is_some_and(|(piece, _)| *piece == Piece::Pointer))
    }

    /// What is stored of the token or the definition.
    pub fn state_payload(&self) -> &Bytes {
        &self.messages[self.state_at()].1.payload
    }

    /// Tells a move the sequence of the token's newest message, and the ids of its newest events.
    pub fn rely_on(&mut self, newest: u64, events: &[Uuid]) {
        if self.newest == Some(newest) {
            return;
        }
        self.newest = Some(newest);
        events.clone_into(&mut self.earlier);
        self.name_events();
        self.state().set(header::EXPECTED_LAST_SUBJECT_SEQUENCE, newest);
    }

    /// Lets the token and its event name its newest events.
    fn name_events(&mut self) {
        let events = list(&self.events());
        for (piece, message) in &mut self.messages {
            if matches!(piece, Piece::State | Piece::Event) {
                message.set(header::EVENTS, &events);
            }
        }
    }

    /// Of a move: the workflow, the token, and its message that the move was decided on.
    pub fn moves(&self) -> Option<(&WorkflowId, Uuid, u64)> {
        match (&self.kind, &self.target) {
            (Kind::Move { workflow, expected }, Target::Token(token)) => {
                Some((workflow, *token, expected.0))
            }
            _ => None,
        }
    }

    /// Whether it can only be stored behind this sequence.
    pub fn is_behind(&self, sequence: u64) -> bool {
        self.sent_behind.is_some_and(|acknowledged| sequence <= acknowledged)
    }

    /// The token that it creates or moves, and its workflow.
    pub fn token(&self) -> Option<(&WorkflowId, Uuid)> {
        match (&self.kind, &self.target) {
            (
                Kind::Move { workflow, .. } | Kind::CreateToken { workflow, .. },
                Target::Token(token),
            ) => Some((workflow, *token)),
            _ => None,
        }
    }

    /// The ids of the token's newest events once it is committed, the newest first.
    pub fn events(&self) -> Vec<Uuid> {
        events_after(self.event_id, &self.earlier)
    }

    /// Whether it relies on this subject being empty, or writes to it.
    pub fn expects(&self, subject: &str) -> bool {
        let checks = |message: &Outgoing| {
            let checked = message.header(header::EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT);
            message.subject == subject || checked == Some(subject)
        };
        self.messages.iter().any(|(_, message)| checks(message))
    }

    /// What nats-server has just said that may not be published of it.
    pub fn denied(&self, link: &Link) -> Option<LinkError> {
        self.messages.iter().find_map(|(_, message)| link.denied(&message.subject))
    }

    /// Whether its last message is a departure.
    pub fn leaves(&self) -> bool {
        self.messages.last().is_some_and(|(piece, _)| *piece == Piece::Departure)
    }

    pub fn bytes(&self) -> usize {
        self.messages.iter().map(|(_, message)| message.bytes()).sum()
    }

    /// What it says when another change of the same thing came first.
    pub fn lost(&self) -> StorageError {
        match (&self.target, &self.kind) {
            (Target::Workflow(workflow), _) => {
                StorageError::WorkflowExists { workflow: workflow.clone() }
            }
            (Target::Token(token), Kind::Move { expected, .. }) => {
                StorageError::Conflict { token: *token, expected: *expected }
            }
            (Target::Token(token), _) => StorageError::TokenExists { token: *token },
        }
    }

    /// Whether it adds something live; a move only changes it.
    pub fn creates(&self) -> bool {
        !matches!(self.kind, Kind::Move { .. })
    }
}

/// Clears what a token says of where it stands: its next message knows that itself.
pub fn forget_place_on_bus(token: &mut Token) {
    (token.nats_sequence, token.nats_timestamp, token.nats_subject) = (None, None, None);
    if let Some(newest) = token.transition_history.last_mut() {
        newest.nats_sequence = None;
    }
}

/// The id of the completion that follows this event.
pub fn completion_id(event: Uuid) -> Uuid {
    Uuid::new_v5(&event, b"token_completed")
}

fn list(ids: &[Uuid]) -> String {
    ids.iter().map(Uuid::to_string).collect::<Vec<_>>().join(",")
}

/// Leads from a token's id to its workflow.
fn pointer_message(token: &Token, age: Option<Duration>) -> Outgoing {
    let payload = pointer_payload(&token.workflow_id);
    let message = Outgoing::new(names::pointer(token.id), payload);
    match age {
        Some(age) => message.with(header::TTL, names::ttl(age)),
        None => message,
    }
}

/// Takes a token out of a place; it tells readers where the token went.
fn departure(subject: String, place: &str) -> Outgoing {
    Outgoing::new(subject, Vec::new())
        .with(header::ROLLUP, "sub")
        .with(header::TTL, DEPARTURE_TTL)
        .with(header::MOVED_TO, place)
}

fn token_message(
    change: &Change,
    previous: Option<u64>,
    age: Duration,
) -> Result<Outgoing, StorageError> {
    let token = &change.token;
    let subject = names::token(&token.workflow_id, &token.place, token.id);
    let mut message = Outgoing::new(subject, outgoing::token_payload(token)?)
        .with(header::AGE, age.as_secs().max(1));
    if change.from_place() == Some(&token.place) {
        message.set(header::ROLLUP, "sub");
    }
    if let Some(previous) = previous {
        message.set(header::PREVIOUS, previous);
    }
    if let Cause::Created { by } = change.cause() {
        // What no header can hold is left out; the event has it.
        let by = by.filter(|by| !by.chars().any(char::is_control)).unwrap_or_default();
        message.set(header::CREATED_BY, by);
    }
    match change.completion {
        Completion::Open => {}
        Completion::Reopens => message.set(header::COMPLETED, 1),
        // It is history.
        Completion::ForGood => message.set(header::TTL, names::ttl(age)),
    }
    Ok(message)
}

fn event_message(
    event: &WorkflowEvent,
    id: Uuid,
    previous: Option<u64>,
    age: Duration,
) -> Result<Outgoing, StorageError> {
    let subject = names::event(&event.workflow_id, event.kind);
    let payload = outgoing::event_payload(event, id, previous)?;
    Ok(Outgoing::new(subject, payload).with(header::TTL, names::ttl(age)))
}
