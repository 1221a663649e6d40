//! How an id is taken once in the whole store.
//!
//! A token whose id names its workflow, and that workflow is the first of its hash, is found there, so
//! that is where it is taken: by the check of its own message over all places. Every other token has a
//! pointer, written first, which nobody else may have written. For an id that could be found both ways
//! each of the two ways checks the other one, too, on the creation's event.
//!
//! A pointer whose token is not there is nobody's: a batch was cut right behind it, or the token has
//! aged. It is never removed, and whoever creates that id next takes it over.

use uuid::Uuid;

use crate::domain::WorkflowId;
use crate::storage::StorageError;
use crate::storage::nats::read::reader::Reader;
use crate::storage::nats::read::token;
use crate::storage::nats::read::workflow_index::{self, Pointer, WorkflowIndex};
use crate::storage::nats::wire::jetstream;
use crate::storage::nats::wire::names;

/// What the creation of a token checks, beside that its workflow has no such token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claim {
    /// It writes a pointer, and expects the one with this sequence there; 0 means none.
    pub pointer: Option<u64>,
    /// What its event checks.
    pub event: Option<Check>,
    /// The stream must end here: what follows may just be being stored.
    pub end: Option<u64>,
}

/// The sequence that a subject must have; 0 means none.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Check {
    pub subject: String,
    pub sequence: u64,
}

/// What a creation claims, given the `first` workflow of the hash that the id ends in and the sequence
/// of the pointer that is there and nobody's, else 0.
pub fn claim(
    token: Uuid,
    workflow: &WorkflowId,
    first: Option<&WorkflowId>,
    pointer: u64,
) -> Claim {
    let check = |subject, sequence| Some(Check { subject, sequence });
    let hash = names::named_hash(token);
    match (hash, first) {
        (Some(_), Some(first)) if first == workflow => {
            Claim { pointer: None, event: check(names::pointer(token), pointer), end: None }
        }
        (Some(_), Some(first)) => Claim {
            pointer: Some(pointer),
            event: check(names::token_anywhere(first, token), 0),
            end: None,
        },
        // Nor may one be created meanwhile, and in it such a token.
        (Some(hash), None) => {
            Claim { pointer: Some(pointer), event: check(names::hash_pointer(hash), 0), end: None }
        }
        (None, _) => Claim { pointer: Some(pointer), event: None, end: None },
    }
}

/// What a look at an id asks next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Asked {
    /// Which workflow is the first of the hash that the id ends in.
    First,
    /// The id's pointer.
    Pointer,
    /// The last sequence of the stream.
    Last,
    /// Whether the token is in this workflow.
    Token(WorkflowId),
}

/// What it hears.
#[derive(Debug, Clone)]
pub enum Heard {
    First(Option<WorkflowId>),
    Pointer(Option<Pointer>),
    Last(u64),
    Token(bool),
}

/// How it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// There is such a token.
    Taken,
    /// This can be claimed.
    Free(Claim),
}

/// A look at an id whose creation was refused, as a plan: what to ask, and what follows.
///
/// The end of the stream is read after the pointer and before the tokens: if anything stands behind the
/// pointer by then, its token does, too, or never will.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Look {
    token: Uuid,
    workflow: WorkflowId,
    first: Option<WorkflowId>,
    pointer: Option<Pointer>,
    last: u64,
    next: Asked,
    holders: Vec<WorkflowId>,
}

impl Look {
    pub fn new(token: Uuid, workflow: &WorkflowId) -> Self {
        let (next, workflow) = (Asked::First, workflow.clone());
        Self { token, workflow, first: None, pointer: None, last: 0, next, holders: Vec::new() }
    }

    /// What to ask.
    pub fn next(&self) -> &Asked {
        &self.next
    }

    /// Takes the answer. Gives the end, if this is it.
    pub fn on(&mut self, heard: Heard) -> Option<Outcome> {
        match heard {
            Heard::First(first) => {
                self.first = first;
                self.next = Asked::Pointer;
            }
            Heard::Pointer(pointer) => {
                self.pointer = pointer;
                self.next = Asked::Last;
            }
            Heard::Last(last) => {
                self.last = last;
                let others = self.first.iter().chain(self.pointer.iter().map(|p| &p.workflow));
                self.holders = others.filter(|other| **other != self.workflow).cloned().collect();
                self.next = Asked::Token(self.workflow.clone());
            }
            Heard::Token(true) => return Some(Outcome::Taken),
            Heard::Token(false) => match self.holders.pop() {
                Some(holder) => self.next = Asked::Token(holder),
                None => return Some(Outcome::Free(self.claim())),
            },
        }
        None
    }

    fn claim(&self) -> Claim {
        let sequence = self.pointer.as_ref().map_or(0, |pointer| pointer.sequence);
        let end = Some(self.last).filter(|last| sequence > 0 && sequence >= *last);
        Claim { end, ..claim(self.token, &self.workflow, self.first.as_ref(), sequence) }
    }
}

/// Looks at an id whose creation was refused.
pub async fn look(
    reader: &Reader,
    index: &WorkflowIndex,
    token: Uuid,
    workflow: &WorkflowId,
) -> Result<Outcome, StorageError> {
    let mut look = Look::new(token, workflow);
    loop {
        let heard = match look.next() {
            Asked::First => Heard::First(index.first_of(reader, token).await?),
            Asked::Pointer => Heard::Pointer(workflow_index::pointer_of(reader, token).await?),
            Asked::Last => Heard::Last(jetstream::stream_state(&reader.link).await?.last_sequence),
            Asked::Token(holder) => {
                Heard::Token(token::find(reader, holder, token).await?.is_some())
            }
        };
        if let Some(outcome) = look.on(heard) {
            return Ok(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::domain::new_token_id;

    #[test]
    fn each_way_to_find_an_id_is_claimed_or_checked() {
        let (own, other) = ("own".parse().unwrap(), "other".parse().unwrap());
        let ours = new_token_id(&own, DateTime::UNIX_EPOCH, [7; 10]);
        let foreign = new_token_id(&other, DateTime::UNIX_EPOCH, [7; 10]);
        let chosen = Uuid::from_u128(0x1234_4000_8000_0000_0000_0000);
        let claimed = |id, first: Option<&WorkflowId>, pointer| {
            let Claim { pointer, event, end } = claim(id, &own, first, pointer);
            assert_eq!(end, None);
            (pointer, event.map(|check| (check.subject, check.sequence)))
        };
        // Found by its id alone: no pointer may be there that leads elsewhere.
        assert_eq!(claimed(ours, Some(&own), 0), (None, Some((names::pointer(ours), 0))));
        assert_eq!(claimed(ours, Some(&own), 5), (None, Some((names::pointer(ours), 5))));
        // Not the first of its hash, or of another hash: a pointer, and not there either.
        for id in [ours, foreign] {
            let there = (names::token_anywhere(&other, id), 0);
            assert_eq!(claimed(id, Some(&other), 0), (Some(0), Some(there.clone())));
            assert_eq!(claimed(id, Some(&other), 9), (Some(9), Some(there)));
        }
        let hash = names::named_hash(foreign).unwrap();
        assert_eq!(claimed(foreign, None, 0), (Some(0), Some((names::hash_pointer(hash), 0))));
        assert_eq!(claimed(chosen, None, 0), (Some(0), None));
        assert_eq!(claimed(chosen, None, 3), (Some(3), None));
    }
}
