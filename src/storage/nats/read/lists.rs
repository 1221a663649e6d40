//! Lists: pages of tokens, events, moves and definitions, each at the cost of what it returns.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::chain;
use super::hints::{FEW_MORE, by_subject_max};
use super::known::Standing;
use super::reader::{Reader, Run, unavailable};
use super::scan;
use super::stored::Stored;
use super::token;
use super::workflow_index::WorkflowIndex;
use crate::domain::{EventKind, Token, WorkflowDefinition, WorkflowId};
use crate::storage::nats::wire::jetstream;
use crate::storage::nats::wire::link::Link;
use crate::storage::nats::wire::names;
use crate::storage::nats::wire::subjects;
use crate::storage::{Item, Page, PageLimit, Sequence, StorageError, StoredEvent, StoredToken};

/// Definitions that are read at once.
const DEFINITIONS_AT_ONCE: usize = 16;

/// Messages after which a list that the leader is asked for sees whether it still gets further.
const LEADER_RUN: usize = 32;

/// Tokens that are read at once by their subjects.
const TOKENS_AT_ONCE: usize = 32;

/// Messages asked for beyond the rows of a page: departures stand among the tokens for a second.
const SLACK: usize = 16;

/// Tokens on the subjects that match a filter, in the order of their messages.
///
/// Where the leader is asked message by message, a list could follow tokens that move for as long as they
/// do, through the departures that they leave. So where these begin, or the stream ended when the list
/// began, the tokens are asked for by their subjects, if these are not many more than the rows. So they are where
/// the last list has shown that there are few: to see that nothing comes after the last one takes nats-server
/// the longer, the more there is of others.
pub async fn tokens(
    reader: &Reader,
    filter: &str,
    after: Option<Sequence>,
    limit: PageLimit,
    time_max: Duration,
) -> Result<Page<StoredToken>, StorageError> {
    let deadline = Instant::now() + time_max;
    let mut next = first_after(after);
    let (is_by_leader, begun) = (!reader.is_only_copy(), reader.epoch.now());
    // Behind a cursor nothing tells how many stand before it.
    let mut are_few = is_by_leader && (after.is_none() || reader.hints.is_small());
    if is_by_leader && reader.hints.of(filter).says_by_subject(limit.rows) {
        if let Some(page) = by_subject(reader, filter, after, limit, deadline).await? {
            return Ok(page);
        }
        are_few = false;
    }
    let (end, run_max) = if is_by_leader {
        (jetstream::stream_state(&reader.link).await?.last_sequence, LEADER_RUN)
    } else {
        (u64::MAX, usize::MAX)
    };
    let mut all_stay = true;
    let mut rows: Vec<Option<StoredToken>> = Vec::new();
    // Where each token is in `rows`: one that moves between two runs is seen again.
    let mut places: HashMap<Uuid, usize> = HashMap::new();
    let (mut count, mut bytes, mut read) = (0_usize, 0_usize, 0_usize);
    loop {
        let wanted = limit.rows.saturating_sub(count).saturating_add(1 + SLACK);
        let run = scan::tokens(reader, filter, next, wanted.min(run_max), deadline).await?;
        let Some(newest) = run.messages.last() else { break };
        next = newest.sequence + 1;
        let Run { messages, more, .. } = run;
        read += messages.len();
        let departures = messages.iter().filter(|stored| stored.is_departure()).count();
        all_stay &= departures == 0;
        if are_few && more && (next > end || departures > SLACK) {
            if let Some(page) = by_subject(reader, filter, after, limit, deadline).await? {
                return Ok(page);
            }
            are_few = false;
        }
        for stored in messages.into_iter().filter(|stored| !stored.is_departure()) {
            // The waits of large ones together have the time of the list.
            let token = reader.token(stored, deadline).await?;
            if let Some(seen) = places.insert(token.token.id, rows.len())
                && let Some(seen) = rows[seen].take()
            {
                (count, bytes) = (count - 1, bytes - seen.memory());
            }
            (count, bytes) = (count + 1, bytes + token.memory());
            rows.push(Some(token));
        }
        if !more && is_by_leader && all_stay && after.is_none() && count <= FEW_MORE {
            reader.hints.counted(filter, count, false, begun);
        }
        if !more || count > limit.rows || (bytes > limit.bytes && count > 1) {
            break;
        }
        if Instant::now() >= deadline {
            return Err(late());
        }
    }
    Ok(Page { read, ..Page::collect(rows.into_iter().flatten(), limit) })
}

fn late() -> StorageError {
    unavailable("the list took too long; ask for fewer rows")
}

/// The same by the subjects that there are; none if they are of many more tokens than rows are wanted. One
/// that moves meanwhile is seen where it is then.
async fn by_subject(
    reader: &Reader,
    filter: &str,
    after: Option<Sequence>,
    limit: PageLimit,
    deadline: Instant,
) -> Result<Option<Page<StoredToken>>, StorageError> {
    let (mut tokens, mut subjects, begun) = (HashSet::new(), 0_usize, reader.epoch.now());
    let visited = subjects::visit(&reader.link, filter, |subject, _| {
        tokens.extend(names::parse_token(subject).map(|(workflow, _, id)| (workflow, id)));
        subjects += 1;
    });
    timeout_at(deadline, visited).await.map_err(|_| late())??;
    if tokens.len() > by_subject_max(limit.rows) {
        reader.hints.many(filter, begun);
        return Ok(None);
    }
    let (read, mut there) = (tokens.len(), 0_usize);
    let find = |(workflow, id)| async move { token::find(reader, &workflow, id).await };
    let mut found = stream::iter(tokens).map(find).buffer_unordered(TOKENS_AT_ONCE);
    let mut rows = BTreeMap::new();
    let (mut bytes, mut more) = (0, false);
    while let Some(found) = timeout_at(deadline, found.next()).await.map_err(|_| late())? {
        let Some(Standing { state, .. }) = found? else { continue };
        if !names::covers(filter, &state.subject) {
            continue;
        }
        there += 1;
        if state.sequence < first_after(after) {
            continue;
        }
        let token = reader.token(state, deadline).await?;
        bytes += token.memory();
        rows.insert(token.revision, token);
        // What does not fit the page is not held until all are read.
        while rows.len() > limit.rows || (bytes > limit.bytes && rows.len() > 1) {
            let Some((_, last)) = rows.pop_last() else { break };
            (bytes, more) = (bytes - last.memory(), true);
        }
    }
    reader.hints.counted(filter, read, subjects > there, begun);
    let page = Page::collect(rows.into_values(), limit);
    Ok(Some(Page { more: more || page.more, read, ..page }))
}

/// Events on the subjects that match a filter, in their order.
pub async fn events(
    reader: &Reader,
    filter: &str,
    after: Option<Sequence>,
    limit: PageLimit,
    time_max: Duration,
) -> Result<Page<StoredEvent>, StorageError> {
    let deadline = Instant::now() + time_max;
    let mut next = first_after(after);
    let mut page = Page::empty();
    loop {
        let wanted = limit.rows.saturating_sub(page.items.len()).saturating_add(1);
        let run = reader.events(filter, next, wanted, deadline).await?;
        let Some(newest) = run.messages.last() else { return Ok(page) };
        next = newest.sequence + 1;
        for stored in run.messages.iter().filter(|stored| !stored.marks.is_marker) {
            if !page.push(stored.event()?, limit) {
                return Ok(page);
            }
        }
        if !run.more {
            return Ok(page);
        }
        if Instant::now() >= deadline {
            return Err(unavailable("the list took too long; ask for fewer rows"));
        }
    }
}

/// The moves of a token, newest first, along the chain of its events.
pub async fn moves(
    reader: &Reader,
    token: &Token,
    before: Option<Sequence>,
    limit: PageLimit,
    time_max: Duration,
) -> Result<Page<StoredEvent>, StorageError> {
    let deadline = Instant::now() + time_max;
    let mut page = Page::empty();
    let mut event = newest_before(reader, token, before).await?;
    while let Some(stored) = event {
        let read = stored.event()?;
        if !chain::is_move(read.event.kind) {
            break;
        }
        if !page.push(read, limit) {
            break;
        }
        if Instant::now() >= deadline {
            return Err(unavailable("the history took too long; ask for fewer rows"));
        }
        event = chain::event_before(reader, &stored).await?;
    }
    Ok(page)
}

async fn newest_before(
    reader: &Reader,
    token: &Token,
    before: Option<Sequence>,
) -> Result<Option<Stored>, StorageError> {
    if let Some(cursor) = before {
        return match reader.at(cursor.0).await? {
            Some(stored) if chain::is_of(&stored, token.id) => {
                if stored.event()?.event.kind == EventKind::TokenCompleted {
                    // It stands behind all moves, and names none of them.
                    return newest(reader, token).await;
                }
                chain::event_before(reader, &stored).await
            }
            // Searched for along the chain, it would cost the whole history.
            Some(_) => Err(StorageError::ForeignCursor { cursor, token: token.id }),
            None => Ok(None),
        };
    }
    newest(reader, token).await
}

async fn newest(reader: &Reader, token: &Token) -> Result<Option<Stored>, StorageError> {
    match token::find(reader, &token.workflow_id, token.id).await? {
        Some(found) => chain::event_of(reader, &found.state).await,
        None => Ok(None),
    }
}

/// Definitions ordered by id, those after `after`.
pub async fn workflows(
    link: &Link,
    reader: &Reader,
    index: &WorkflowIndex,
    after: Option<&WorkflowId>,
    limit: PageLimit,
) -> Result<Page<WorkflowDefinition>, StorageError> {
    let names = index.all(link).await?;
    let first = after.map_or(0, |after| names.partition_point(|name| name <= after));
    let mut page = Page::empty();
    let wanted = names.iter().skip(first).take(limit.rows.saturating_add(1)).cloned();
    let definition = |name: WorkflowId| async move { reader.definition(&name).await };
    let mut found = stream::iter(wanted).map(definition).buffered(DEFINITIONS_AT_ONCE);
    while let Some(definition) = found.try_next().await? {
        // It was there a moment ago, and definitions stay.
        let Some(definition) = definition else { continue };
        if !page.push(definition, limit) {
            break;
        }
    }
    Ok(page)
}

fn first_after(after: Option<Sequence>) -> u64 {
    after.map_or(1, |after| after.0.saturating_add(1))
}
