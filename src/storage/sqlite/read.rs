//! Connections that read, and the queries they run.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::schema::{OpenError, open_reader};
use crate::domain::{Token, WorkflowDefinition, WorkflowEvent, WorkflowId};
use crate::storage::{
    Item, Page, PageLimit, Sequence, StorageError, StoredEvent, StoredToken, TokenScope,
};

/// Connections, and so queries at once.
const READERS: usize = 4;

/// Time that a query waits for a connection.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// A few connections that read, each used by one query at a time.
#[derive(Debug)]
pub struct Readers {
    free: Arc<Semaphore>,
    connections: Arc<Mutex<Vec<Connection>>>,
}

impl Readers {
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let connections = (0..READERS).map(|_| open_reader(path)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            free: Arc::new(Semaphore::new(READERS)),
            connections: Arc::new(Mutex::new(connections)),
        })
    }

    /// Runs a query on a thread where blocking is allowed.
    pub async fn run<T, F>(&self, query: F) -> Result<T, StorageError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StorageError> + Send + 'static,
    {
        let unavailable = |reason: &str| StorageError::Unavailable { reason: reason.to_owned() };
        let acquire = Arc::clone(&self.free).acquire_owned();
        let permit = match tokio::time::timeout(WAIT_MAX, acquire).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(unavailable("it was closed")),
            Err(_) => return Err(unavailable("all readers were busy for 5 s")),
        };
        let connections = Arc::clone(&self.connections);
        let done = tokio::task::spawn_blocking(move || {
            let lock = || connections.lock().unwrap_or_else(PoisonError::into_inner);
            let connection = lock().pop().expect("there are as many connections as permits");
            let outcome = catch_unwind(AssertUnwindSafe(|| query(&connection)));
            // The connection goes back before the permit does, also when the caller has gone away.
            lock().push(connection);
            drop(permit);
            outcome.unwrap_or_else(|panic| resume_unwind(panic))
        });
        match done.await {
            Ok(outcome) => outcome,
            Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
            Err(_) => Err(unavailable("the server is stopping")),
        }
    }

    pub fn is_closed(&self) -> bool {
        self.free.is_closed()
    }

    /// Waits for the queries under way, lets no further one begin, and closes the connections.
    pub async fn close(&self) {
        let all = u32::try_from(READERS).unwrap_or(u32::MAX);
        let quiet = tokio::time::timeout(WAIT_MAX, self.free.acquire_many(all)).await;
        self.free.close();
        if quiet.is_err() {
            tracing::warn!("queries were still running when the database was closed");
        }
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

pub fn workflow(
    connection: &Connection,
    id: &str,
) -> Result<Option<WorkflowDefinition>, StorageError> {
    let find = || {
        let mut select = connection.prepare_cached("SELECT body FROM workflows WHERE id = ?1")?;
        select.query_row([id], |row| row.get::<_, String>(0)).optional()
    };
    let body = find().map_err(|error| read_error(&error))?;
    body.map(|body| parse(&body, || format!("workflow {id}"))).transpose()
}

pub fn workflows(
    connection: &Connection,
    after: Option<&WorkflowId>,
    limit: PageLimit,
) -> Result<Page<WorkflowDefinition>, StorageError> {
    let sql = "SELECT 0, body FROM workflows WHERE id > ?1 ORDER BY id LIMIT ?2";
    // Every id comes after the empty string.
    let after = after.map_or("", WorkflowId::as_str);
    page(connection, sql, params![after, sql_limit(limit)], limit, |_, definition| definition)
}

pub fn token(
    connection: &Connection,
    id: Uuid,
    workflow: Option<&WorkflowId>,
) -> Result<Option<StoredToken>, StorageError> {
    let find = || {
        let mut select = connection.prepare_cached(
            "SELECT revision, body FROM tokens WHERE id = ?1 AND (?2 IS NULL OR workflow = ?2)",
        )?;
        let row = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?));
        select.query_row(params![id.as_bytes(), workflow.map(WorkflowId::as_str)], row).optional()
    };
    let found = find().map_err(|error| read_error(&error))?;
    let stored = |(revision, body): (i64, String)| stored_token(sequence(revision), &body, id);
    found.map(stored).transpose()
}

/// A token from its stored form.
pub fn stored_token(revision: Sequence, body: &str, id: Uuid) -> Result<StoredToken, StorageError> {
    let token: Token = parse(body, || format!("token {id}"))?;
    Ok(StoredToken { token: Arc::new(token), revision })
}

pub fn tokens(
    connection: &Connection,
    scope: &TokenScope,
    after: Option<Sequence>,
    limit: PageLimit,
) -> Result<Page<StoredToken>, StorageError> {
    let (after, rows) = (key(after, 0), sql_limit(limit));
    let stored = |revision, token| StoredToken { token: Arc::new(token), revision };
    match scope {
        TokenScope::All => {
            let sql =
                "SELECT revision, body FROM tokens WHERE revision > ?1 ORDER BY revision LIMIT ?2";
            page(connection, sql, params![after, rows], limit, stored)
        }
        TokenScope::Workflow(workflow) => {
            // Without the hint SQLite may walk the index by place and sort.
            let sql = "SELECT revision, body FROM tokens INDEXED BY tokens_by_workflow
                WHERE workflow = ?3 AND revision > ?1 ORDER BY revision LIMIT ?2";
            page(connection, sql, params![after, rows, workflow.as_str()], limit, stored)
        }
        TokenScope::Place(workflow, place) => {
            let sql = "SELECT revision, body FROM tokens INDEXED BY tokens_by_place
                WHERE workflow = ?3 AND place = ?4 AND revision > ?1 ORDER BY revision LIMIT ?2";
            page(
                connection,
                sql,
                params![after, rows, workflow.as_str(), place.as_str()],
                limit,
                stored,
            )
        }
    }
}

/// The moves of a token, newest first: a chain from its newest event, or from the cursor's, to its creation.
pub fn moves(
    connection: &Connection,
    token: Uuid,
    before: Option<Sequence>,
    limit: PageLimit,
) -> Result<Page<StoredEvent>, StorageError> {
    let (mut next, mut page) = (newest_move(connection, token, before)?, Page::empty());
    while let Some(at) = next {
        let Some(link) = link(connection, at)? else { break };
        if !link.is_move || link.token.as_deref() != Some(token.as_bytes().as_slice()) {
            break;
        }
        let event = parse(&link.body, || format!("record {at}"))?;
        if !page.push(stored_event(sequence(at), event), limit) {
            break;
        }
        next = link.previous;
        if next.is_none() {
            // It was written before there were chains, and all before it, too.
            older_moves(connection, token, at, limit, &mut page)?;
        }
    }
    Ok(page)
}

/// The move of a token before its event `before`, or its newest one.
fn newest_move(
    connection: &Connection,
    token: Uuid,
    before: Option<Sequence>,
) -> Result<Option<i64>, StorageError> {
    let Some(cursor) = before else {
        let mut select = connection
            .prepare_cached("SELECT revision FROM tokens WHERE id = ?1")
            .map_err(|error| read_error(&error))?;
        let newest = select.query_row([token.as_bytes()], |row| row.get(0)).optional();
        return newest.map_err(|error| read_error(&error));
    };
    let Some(of) = link(connection, key(before, 0))? else { return Ok(None) };
    if of.token.as_deref() != Some(token.as_bytes().as_slice()) {
        return Err(StorageError::ForeignCursor { cursor, token });
    }
    if of.previous.is_some() {
        return Ok(of.previous);
    }
    // It was written before there were chains, or is the first.
    let mut select = connection
        .prepare_cached(
            "SELECT max(sequence) FROM events INDEXED BY moves_by_token
            WHERE token = ?1 AND is_move = 1 AND previous IS NULL AND sequence < ?2",
        )
        .map_err(|error| read_error(&error))?;
    let parameters = params![token.as_bytes(), key(before, 0)];
    select.query_row(parameters, |row| row.get(0)).map_err(|error| read_error(&error))
}

/// One event as a part of a chain.
struct Link {
    token: Option<Vec<u8>>,
    is_move: bool,
    previous: Option<i64>,
    body: String,
}

fn link(connection: &Connection, sequence: i64) -> Result<Option<Link>, StorageError> {
    let sql = "SELECT token, is_move, previous, body FROM events WHERE sequence = ?1";
    let of = |row: &Row<'_>| {
        Ok(Link {
            token: row.get(0)?,
            is_move: row.get(1)?,
            previous: row.get(2)?,
            body: row.get(3)?,
        })
    };
    let found = connection
        .prepare_cached(sql)
        .and_then(|mut select| select.query_row([sequence], of).optional());
    found.map_err(|error| read_error(&error))
}

/// Adds the moves of a token below a sequence that are in no chain.
fn older_moves(
    connection: &Connection,
    token: Uuid,
    below: i64,
    limit: PageLimit,
    page: &mut Page<StoredEvent>,
) -> Result<(), StorageError> {
    let sql = "SELECT sequence, body FROM events INDEXED BY moves_by_token
        WHERE token = ?2 AND is_move = 1 AND previous IS NULL AND sequence < ?1 ORDER BY sequence DESC";
    let parameters = params![below, token.as_bytes()];
    fill(connection, sql, parameters, limit, stored_event, page)
}

pub fn events(
    connection: &Connection,
    workflow: Option<&WorkflowId>,
    after: Option<Sequence>,
    limit: PageLimit,
) -> Result<Page<StoredEvent>, StorageError> {
    let (after, rows) = (key(after, 0), sql_limit(limit));
    match workflow {
        None => {
            let sql =
                "SELECT sequence, body FROM events WHERE sequence > ?1 ORDER BY sequence LIMIT ?2";
            page(connection, sql, params![after, rows], limit, stored_event)
        }
        Some(workflow) => {
            let sql = "SELECT sequence, body FROM events INDEXED BY events_by_workflow
                WHERE workflow = ?3 AND sequence > ?1 ORDER BY sequence LIMIT ?2";
            page(connection, sql, params![after, rows, workflow.as_str()], limit, stored_event)
        }
    }
}

fn stored_event(sequence: Sequence, event: WorkflowEvent) -> StoredEvent {
    StoredEvent { sequence, nats_sequence: None, event }
}

/// Reads rows of (key, JSON) until a limit is reached. The statement asks for one row more than
/// the page may hold, to know whether there are more.
fn page<T: DeserializeOwned, I: Item>(
    connection: &Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
    limit: PageLimit,
    item: impl Fn(Sequence, T) -> I,
) -> Result<Page<I>, StorageError> {
    let mut page = Page::empty();
    fill(connection, sql, parameters, limit, item, &mut page)?;
    Ok(page)
}

/// The same into a page that is begun.
fn fill<T: DeserializeOwned, I: Item>(
    connection: &Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
    limit: PageLimit,
    item: impl Fn(Sequence, T) -> I,
    page: &mut Page<I>,
) -> Result<(), StorageError> {
    let mut select = connection.prepare_cached(sql).map_err(|error| read_error(&error))?;
    let mut rows = select.query(parameters).map_err(|error| read_error(&error))?;
    while let Some(row) = rows.next().map_err(|error| read_error(&error))? {
        let columns = row.get::<_, i64>(0).and_then(|key| Ok((key, row.get_ref(1)?)));
        let (key, body) = columns.map_err(|error| read_error(&error))?;
        let what = || format!("record {key}");
        let body = body.as_str().map_err(|error| corrupt(what(), &error))?;
        if !page.push(item(sequence(key), parse(body, what)?), limit) {
            break;
        }
    }
    Ok(())
}

fn sql_limit(limit: PageLimit) -> i64 {
    i64::try_from(limit.rows).unwrap_or(i64::MAX).saturating_add(1)
}

fn key(sequence: Option<Sequence>, none: i64) -> i64 {
    sequence.map_or(none, |sequence| i64::try_from(sequence.0).unwrap_or(i64::MAX))
}

fn sequence(key: i64) -> Sequence {
    Sequence(u64::try_from(key).unwrap_or(0))
}

fn parse<T: DeserializeOwned>(body: &str, what: impl Fn() -> String) -> Result<T, StorageError> {
    serde_json::from_str(body).map_err(|error| corrupt(what(), &error))
}

fn corrupt(what: String, error: &dyn std::error::Error) -> StorageError {
    StorageError::Corrupt { what, reason: error.to_string() }
}

fn read_error(error: &rusqlite::Error) -> StorageError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            corrupt("the database".to_owned(), error)
        }
        _ => StorageError::Unavailable { reason: error.to_string() },
    }
}
