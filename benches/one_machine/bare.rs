//! The limit: SQLite alone, committing the rows that the server has committed.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, params};

use crate::times::Times;

/// What one move writes, as it stands in the server's file.
struct Move {
    revision: i64,
    token: Vec<u8>,
    place: String,
    body: String,
    event: String,
}

/// A copy of a server's file, written to without the server.
pub struct Bare {
    connection: Connection,
    moves: Vec<Move>,
    next: usize,
    sequence: i64,
}

impl Bare {
    /// Takes the tokens that moved last, with the events of those moves, at most `count`.
    pub fn open(path: &Path, count: usize) -> Self {
        let connection = Connection::open(path).expect("the file is a database");
        for (name, value) in [("journal_mode", "wal"), ("synchronous", "full")] {
            connection.pragma_update(None, name, value).expect("SQLite takes it");
        }
        connection.pragma_update(None, "cache_size", -16 * 1024).expect("SQLite takes it");
        let mut moves = Vec::new();
        {
            let mut select = connection
                .prepare(
                    "SELECT t.revision, t.id, t.place, t.body, e.body FROM tokens t
                     JOIN events e ON e.sequence = t.revision WHERE e.is_move ORDER BY t.revision DESC LIMIT ?1",
                )
                .expect("the schema is the server's");
            let mut rows = select.query([count as i64]).expect("it reads");
            while let Some(row) = rows.next().expect("it reads") {
                moves.push(Move {
                    revision: row.get_unwrap(0),
                    token: row.get_unwrap(1),
                    place: row.get_unwrap(2),
                    body: row.get_unwrap(3),
                    event: row.get_unwrap(4),
                });
            }
        }
        assert_eq!(moves.len(), count, "as many tokens have moved");
        let sequence = connection
            .query_row("SELECT max(sequence) FROM events", [], |row| row.get(0))
            .expect("it reads");
        Self { connection, moves, next: 0, sequence }
    }

    /// Commits groups of moves until the time is over; the times are those of whole commits.
    pub fn run(&mut self, group: usize, time: Duration) -> Times {
        let start = Instant::now();
        let mut times = Vec::new();
        while start.elapsed() < time {
            let began = Instant::now();
            self.commit(group).expect("it commits");
            times.push(began.elapsed());
        }
        Times::new(times, start.elapsed())
    }

    fn commit(&mut self, group: usize) -> rusqlite::Result<()> {
        let transaction =
            self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for _ in 0..group {
            let count = self.moves.len();
            let moved = &mut self.moves[self.next % count];
            self.next += 1;
            self.sequence += 1;
            let updated = transaction
                .prepare_cached("UPDATE tokens SET revision = ?1, place = ?2, body = ?3 WHERE revision = ?4 AND id = ?5")?
                .execute(params![self.sequence, moved.place, moved.body, moved.revision, moved.token])?;
            assert_eq!(updated, 1);
            let previous = std::mem::replace(&mut moved.revision, self.sequence);
            transaction
                .prepare_cached("INSERT INTO events (sequence, workflow, token, is_move, body, previous) VALUES (?1, 'bench', ?2, 1, ?3, ?4)")?
                .execute(params![self.sequence, moved.token, moved.event, previous])?;
        }
        transaction.commit()
    }
}

/// Reads tokens by id without the server until the time is over.
pub fn reads(path: &Path, ids: &[uuid::Uuid], time: Duration) -> Times {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .expect("the file is a database");
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < time {
        let id = ids[times.len() % ids.len()];
        let began = Instant::now();
        let body: String = connection
            .prepare_cached("SELECT body FROM tokens WHERE id = ?1")
            .and_then(|mut select| select.query_row([id.as_bytes()], |row| row.get(0)))
            .expect("the token is there");
        assert!(!body.is_empty());
        times.push(began.elapsed());
    }
    Times::new(times, start.elapsed())
}
