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
use crate::storage::nats::read::workflow_index::{self, WorkflowIndex};
use crate::storage::nats::wire::jetstream;
use crate::storage::nats::wire::names;

/// What the creation of a token checks, beside that its workflow has no such token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// It writes a pointer, and expects the one with this sequence there; 0 means none.
    pub pointer: Option<u64>,
    /// What its event checks.
    pub event: Option<Check>,
    /// The stream must end here: what follows may just be being stored.
    pub end: Option<u64>,
}

/// The sequence that a subject must have; 0 means none.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// What a creation can claim after a fresh look, as it was refused; none if the id is taken.
pub async fn look(
    reader: &Reader,
    index: &WorkflowIndex,
    token: Uuid,
    workflow: &WorkflowId,
) -> Result<Option<Claim>, StorageError> {
    let first = index.first_of(reader, token).await?;
    let pointer = workflow_index::pointer_of(reader, token).await?;
    // Read after the pointer and before the token: if anything stands behind the pointer, its token
    // does, or never will.
    let last = jetstream::stream_state(&reader.link).await?.last_sequence;
    let mut holders = vec![workflow];
    holders.extend(first.iter().filter(|first| *first != workflow));
    holders.extend(pointer.iter().map(|pointer| &pointer.workflow));
    for holder in holders {
        if token::find(reader, holder, token).await?.is_some() {
            return Ok(None);
        }
    }
    let sequence = pointer.map_or(0, |pointer| pointer.sequence);
    let end = Some(last).filter(|last| sequence > 0 && sequence >= *last);
    Ok(Some(Claim { end, ..claim(token, workflow, first.as_ref(), sequence) }))
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
