//! What a store of an older version lacks: pointers of token ids and of hashes.
//!
//! It is written once, before the store is open. Several servers may do so at the same time; each
//! pointer is written by one of them. A server of an older version must not write any more by then.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tracing::{info, warn};
use uuid::Uuid;

use crate::domain::{WorkflowId, workflow_hash};
use crate::storage::StorageError;
use crate::storage::nats::read::known::Standing;
use crate::storage::nats::read::reader::Reader;
use crate::storage::nats::read::stored::pointer_payload;
use crate::storage::nats::read::token;
use crate::storage::nats::read::workflow_index::{self, Pointer};
use crate::storage::nats::wire::jetstream::{self, ApiError, code};
use crate::storage::nats::wire::names::{self, ALL_TOKENS, header};
use crate::storage::nats::wire::subjects::{self, Pages};

/// Pointers that are written at once.
const AT_ONCE: usize = 64;

/// First workflows by the hash of their id.
type Firsts = HashMap<u32, WorkflowId>;

/// Writes the pointers that are missing. `age` is how long a completed token is kept.
pub async fn complete(reader: &Reader, age: Duration) -> Result<(), StorageError> {
    let link = &reader.link;
    let workflows = subjects::workflows(link).await?;
    let firsts: Firsts = stream::iter(workflows)
        .map(|workflow| async move { first_of_hash(reader, workflow).await })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    let (mut written, mut pages) = (0_usize, Pages::new());
    while pages.more() {
        let page = subjects::page(link, ALL_TOKENS, &mut pages).await?;
        let tokens = page.iter().filter_map(|(subject, _)| names::parse_token(subject));
        let tokens = tokens.map(|(workflow, _, id)| (workflow, id));
        let lacking: Vec<_> =
            tokens.filter(|(workflow, id)| !is_found_by_id(*id, workflow, &firsts)).collect();
        let firsts = &firsts;
        let count = stream::iter(lacking)
            .map(|(workflow, id)| async move { point(reader, firsts, &workflow, id, age).await })
            .buffer_unordered(AT_ONCE)
            .try_fold(0, |count, is_new| async move { Ok(count + usize::from(is_new)) })
            .await?;
        written += count;
        if count > 0 {
            info!(tokens = written, "the ids of older tokens got their pointers");
        }
    }
    Ok(())
}

fn is_found_by_id(id: Uuid, workflow: &WorkflowId, firsts: &Firsts) -> bool {
    names::id_names_workflow(id, workflow) && firsts.get(&workflow_hash(workflow)) == Some(workflow)
}

/// Claims the hash of a workflow for it, unless another one has it. Gives who has it.
async fn first_of_hash(
    reader: &Reader,
    workflow: WorkflowId,
) -> Result<(u32, WorkflowId), StorageError> {
    let hash = workflow_hash(&workflow);
    let (subject, payload) = (names::hash_pointer(hash), pointer_payload(&workflow));
    if write_new(reader, subject.clone(), payload, &[]).await? {
        return Ok((hash, workflow));
    }
    let there = reader.last(&subject).await?.map(|stored| stored.pointer()).transpose()?;
    Ok((hash, there.unwrap_or(workflow)))
}

/// Writes the pointer of one token. Whether there was none.
async fn point(
    reader: &Reader,
    firsts: &Firsts,
    workflow: &WorkflowId,
    id: Uuid,
    age: Duration,
) -> Result<bool, StorageError> {
    // It may have been a departure, or have aged meanwhile.
    let Some(found) = token::find(reader, workflow, id).await? else { return Ok(false) };
    // One that is found by the id itself has none, and is found first.
    if let Some(first) = firsts.get(&names::named_hash(id).unwrap_or_default())
        && first != workflow
        && names::named_hash(id).is_some()
        && token::find(reader, first, id).await?.is_some()
    {
        tell_double(reader, id, first, workflow).await?;
    }
    let headers = ttl_of(&found, age);
    if write_new(reader, names::pointer(id), pointer_payload(workflow), &headers).await? {
        return Ok(true);
    }
    match workflow_index::pointer_of(reader, id).await? {
        Some(pointer) if pointer.workflow != *workflow => {
            two_of_one_id(reader, &found, pointer, age).await?;
        }
        Some(_) | None => {}
    }
    Ok(false)
}

/// Two tokens of an older store have one id, and neither is found by it. Both stay; a read by id alone
/// answers the older one.
async fn two_of_one_id(
    reader: &Reader,
    found: &Standing,
    pointer: Pointer,
    age: Duration,
) -> Result<(), StorageError> {
    let token = found.state.token()?.token;
    let (id, workflow) = (token.id, &token.workflow_id);
    let Some(other) = token::find(reader, &pointer.workflow, id).await? else { return Ok(()) };
    let other = other.state.token()?.token;
    let (older, newer) = if token.created_at < other.created_at {
        (workflow, &pointer.workflow)
    } else {
        (&pointer.workflow, workflow)
    };
    if older == workflow {
        let mut headers = ttl_of(found, age);
        headers.extend([
            (header::ROLLUP, "sub".to_owned()),
            (header::EXPECTED_LAST_SUBJECT_SEQUENCE, pointer.sequence.to_string()),
        ]);
        jetstream::store(&reader.link, names::pointer(id), &headers, pointer_payload(older))
            .await?;
    }
    tell_double(reader, id, older, newer).await
}

/// Writes down that two tokens have one id, and which of them a read by id alone answers.
async fn tell_double(
    reader: &Reader,
    id: Uuid,
    answered: &WorkflowId,
    hidden: &WorkflowId,
) -> Result<(), StorageError> {
    warn!(
        token = %id, %answered, %hidden,
        "two tokens of an older store have the same id, in these workflows; both stay, and a read by id alone answers the first"
    );
    let both = serde_json::json!({ "answered": answered, "hidden": hidden }).to_string();
    write_new(reader, names::double_id(id), both.into(), &[]).await?;
    Ok(())
}

/// A completed token ages, and its pointer with it.
fn ttl_of(found: &Standing, age: Duration) -> Vec<(&'static str, String)> {
    if found.state.marks.ages { vec![(header::TTL, names::ttl(age))] } else { Vec::new() }
}

/// Writes the first message of a subject. False if there is one.
async fn write_new(
    reader: &Reader,
    subject: String,
    payload: Bytes,
    more: &[(&'static str, String)],
) -> Result<bool, StorageError> {
    let mut headers = more.to_vec();
    headers.push((header::EXPECTED_LAST_SUBJECT_SEQUENCE, "0".to_owned()));
    match jetstream::store(&reader.link, subject, &headers, payload).await {
        Ok(_) => Ok(true),
        Err(error) if error.is(code::WRONG_LAST_SEQUENCE) => Ok(false),
        Err(error @ ApiError::Refused { .. }) if error.is(code::STORE_FAILED) => {
            let reason = format!(
                "the pointers of older tokens do not fit: {error}; raise NATS_MAX_MESSAGES or NATS_MAX_BYTES"
            );
            Err(StorageError::Full { reason })
        }
        Err(error) => Err(error.into()),
    }
}
