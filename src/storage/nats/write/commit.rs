//! What a change of the store becomes on the bus: the messages of one commit.

use std::fmt;
use std::time::Duration;

use uuid::Uuid;

use super::outgoing::{self, Outgoing};
use crate::domain::{Change, EventKind, Token, WorkflowDefinition, WorkflowEvent, WorkflowId};
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
    CreateToken { workflow: WorkflowId },
    Move { workflow: WorkflowId, expected: Sequence },
}

/// The messages of one change.
#[derive(Debug)]
pub struct Commit {
    pub target: Target,
    pub kind: Kind,
    pub messages: Vec<Outgoing>,
    /// Which of the messages holds the token or the definition.
    pub state_index: usize,
    /// The id of its event, by which it is found again.
    pub event_id: Uuid,
    /// The token's version after it.
    pub version: u32,
}

impl Commit {
    /// A new definition: nobody may have one of this id.
    pub fn create_workflow(
        definition: &WorkflowDefinition,
        event: &WorkflowEvent,
        age: Duration,
    ) -> Result<Self, StorageError> {
        let subject = names::definition(&definition.id);
        let state = Outgoing::new(subject, outgoing::definition_payload(definition)?)
            .with(header::EXPECTED_LAST_SUBJECT_SEQUENCE, 0);
        let event_id = Uuid::new_v4();
        let event = event_message(event, event_id, None, age)?;
        Ok(Self {
            target: Target::Workflow(definition.id.clone()),
            kind: Kind::CreateWorkflow,
            messages: vec![state, event],
            state_index: 0,
            event_id,
            version: 0,
        })
    }

    /// A new token: its id is in no place of its workflow and, unless it names its workflow, in
    /// no other workflow.
    pub fn create_token(change: &Change, age: Duration) -> Result<Self, StorageError> {
        let token = &change.token;
        let workflow = token.workflow_id.clone();
        // Who creates the same id must look at the same subjects, or two could come at once.
        let anywhere = if names::id_names_workflow(token.id, &workflow) {
            names::token_anywhere(&workflow, token.id)
        } else {
            names::token_in_any_workflow(token.id)
        };
        let state = token_message(change, age)?
            .with(header::EXPECTED_LAST_SUBJECT_SEQUENCE, 0)
            .with(header::EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT, anywhere);
        let event_id = Uuid::new_v4();
        let mut messages = vec![state];
        push_events(&mut messages, change, event_id, None, age)?;
        Ok(Self {
            target: Target::Token(token.id),
            kind: Kind::CreateToken { workflow },
            messages,
            state_index: 0,
            event_id,
            version: token.version,
        })
    }

    /// A move: the token must still be where it was, with the sequence that was read.
    pub fn move_token(
        expected: Sequence,
        change: &Change,
        age: Duration,
    ) -> Result<Self, StorageError> {
        let token = &change.token;
        let workflow = token.workflow_id.clone();
        let from = change.events.iter().find_map(|event| event.from_place.as_ref());
        let from = from.ok_or_else(|| StorageError::Unfit {
            what: format!("the move of token {}", token.id),
            reason: "it does not say where it starts".to_owned(),
        })?;
        let checked = |message: Outgoing| {
            message
                .with(header::EXPECTED_LAST_SUBJECT_SEQUENCE, expected)
                .with(header::ROLLUP, "sub")
        };
        let mut messages = Vec::with_capacity(4);
        if *from == token.place {
            messages.push(checked(token_message(change, age)?));
        } else {
            let departure = Outgoing::new(names::token(&workflow, from, token.id), Vec::new());
            messages.push(checked(departure).with(header::TTL, DEPARTURE_TTL));
            messages.push(token_message(change, age)?);
        }
        let state_index = messages.len() - 1;
        let event_id = Uuid::new_v4();
        // The event of the change before stands right after its token.
        push_events(&mut messages, change, event_id, Some(expected.0 + 1), age)?;
        Ok(Self {
            target: Target::Token(token.id),
            kind: Kind::Move { workflow, expected },
            messages,
            state_index,
            event_id,
            version: token.version,
        })
    }

    pub fn bytes(&self) -> usize {
        self.messages.iter().map(Outgoing::bytes).sum()
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

fn token_message(change: &Change, age: Duration) -> Result<Outgoing, StorageError> {
    let token = &change.token;
    let subject = names::token(&token.workflow_id, &token.place, token.id);
    let message = Outgoing::new(subject, outgoing::token_payload(token)?);
    // What is completed is history.
    let completed = change.events.iter().any(|event| event.kind == EventKind::TokenCompleted);
    Ok(if completed { message.with(header::TTL, ttl(age)) } else { message })
}

fn push_events(
    messages: &mut Vec<Outgoing>,
    change: &Change,
    id: Uuid,
    previous: Option<u64>,
    age: Duration,
) -> Result<(), StorageError> {
    for (n, event) in change.events.iter().enumerate() {
        // The completion follows its move, so it needs no link of its own.
        let (id, previous) = if n == 0 { (id, previous) } else { (Uuid::new_v4(), None) };
        messages.push(event_message(event, id, previous, age)?);
    }
    Ok(())
}

fn event_message(
    event: &WorkflowEvent,
    id: Uuid,
    previous: Option<u64>,
    age: Duration,
) -> Result<Outgoing, StorageError> {
    let subject = names::event(&event.workflow_id, event.kind);
    let payload = outgoing::event_payload(event, id, previous)?;
    Ok(Outgoing::new(subject, payload).with(header::TTL, ttl(age)))
}

fn ttl(age: Duration) -> String {
    format!("{}s", age.as_secs().max(1))
}
