//! The database file: who may open it, what is in it, how it moves to a newer version.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags};

/// Written into the header of every database of ours: "CBRK". It never changes.
const APPLICATION_ID: i32 = 0x4342_524b;

/// The steps from an empty file to today's schema. The file's `user_version` counts those that
/// were taken. A step that was released never changes; new ones are added at the end.
const MIGRATIONS: [&str; 2] = [
    "
    CREATE TABLE workflows (
        id TEXT NOT NULL PRIMARY KEY,
        body TEXT NOT NULL
    ) STRICT;

    -- The revision is the sequence of the token's newest change. As the row's key it orders every
    -- index below by arrival, too.
    CREATE TABLE tokens (
        revision INTEGER NOT NULL PRIMARY KEY,
        id BLOB NOT NULL UNIQUE,
        workflow TEXT NOT NULL,
        place TEXT NOT NULL,
        body TEXT NOT NULL
    ) STRICT;
    CREATE INDEX tokens_by_place ON tokens (workflow, place);
    CREATE INDEX tokens_by_workflow ON tokens (workflow);

    CREATE TABLE events (
        sequence INTEGER NOT NULL PRIMARY KEY,
        workflow TEXT NOT NULL,
        token BLOB,
        is_move INTEGER NOT NULL,
        body TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_by_workflow ON events (workflow);
    CREATE INDEX moves_by_token ON events (token) WHERE is_move = 1;
    ",
    "
    -- The sequence of the token's event before, so that the moves of a token are a chain that begins with its
    -- revision. An index by token had each move write one page more, somewhere in the file; it stays for
    -- the moves of before.
    ALTER TABLE events ADD COLUMN previous INTEGER;
    DROP INDEX moves_by_token;
    CREATE INDEX moves_by_token ON events (token) WHERE is_move = 1 AND previous IS NULL;
    ",
];

/// Why a database file cannot be used. It was not changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "{path} is in use by another server (process {holder}); stop that one, or give this one a file of its own with SQLITE_PATH"
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// The process id that the other one left in the lock file.
        holder: String,
    },
    /// It is not a SQLite database, or is damaged.
    #[error(
        "{path} is not a database that can be read ({reason}); it was not touched, set SQLITE_PATH to another file"
    )]
    NotADatabase {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        reason: String,
    },
    /// It is a SQLite database, but not one of ours.
    #[error(
        "{path} is a SQLite database of another program; it was not touched, set SQLITE_PATH to another file"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A newer version of this program wrote it.
    #[error(
        "{path} has format {found}, this program knows formats up to {known}; start a newer version of it"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: i64,
        /// The newest version that this program knows.
        known: usize,
    },
    /// It cannot be written.
    #[error(
        "{path} cannot be written ({reason}); check the permissions of the file and of its folder"
    )]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// What was tried and what came of it.
        reason: String,
    },
    /// The disk is full.
    #[error("{path} cannot be prepared: the disk is full")]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// Anything else that the operating system or SQLite refuses.
    #[error("{path} cannot be opened: {reason}")]
    Failed {
        /// The file.
        path: PathBuf,
        /// What was tried and what came of it.
        reason: String,
    },
}

/// Proof that this process alone uses the file; held as long as the file is open.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

/// Locks the file at `path` for this process.
///
/// The lock is on a file of its own beside it (`….lock`), which stays: closing any handle on the
/// database itself would drop the locks that SQLite holds there (POSIX advisory locks).
pub fn lock(path: &Path) -> Result<(PathBuf, FileLock), OpenError> {
    let failed = |path: &Path, reason: String| OpenError::Failed { path: path.to_owned(), reason };
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let folder = folder.canonicalize().map_err(|error| {
        failed(path, format!("its folder {} cannot be used: {error}", folder.display()))
    })?;
    let name = path.file_name().ok_or_else(|| failed(path, "it names no file".to_owned()))?;
    let mut target = folder.join(name);
    if target.exists() {
        // Two names of one file, by a symbolic link, are one file with one lock.
        target = target.canonicalize().map_err(|error| failed(path, error.to_string()))?;
    }
    if target.is_dir() {
        return Err(failed(&target, "it is a folder".to_owned()));
    }
    let mut lock_name = target.clone().into_os_string();
    lock_name.push(".lock");
    let lock_path = PathBuf::from(lock_name);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(|error| not_writable(&target, &lock_path, &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            if (&file).take(32).read_to_string(&mut holder).is_err() || holder.is_empty() {
                holder = "unknown".to_owned();
            }
            return Err(OpenError::InUse { path: target, holder: holder.trim().to_owned() });
        }
        Err(TryLockError::Error(error)) => {
            return Err(failed(
                &target,
                format!("{} cannot be locked: {error}", lock_path.display()),
            ));
        }
    }
    let note = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    note(&mut file).map_err(|error| not_writable(&target, &lock_path, &error))?;
    Ok((target, FileLock { _file: file }))
}

fn not_writable(path: &Path, tried: &Path, error: &std::io::Error) -> OpenError {
    let (path, reason) = (path.to_owned(), format!("{}: {error}", tried.display()));
    match error.kind() {
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            OpenError::ReadOnly { path, reason }
        }
        std::io::ErrorKind::StorageFull => OpenError::Full { path },
        _ => OpenError::Failed { path, reason },
    }
}

/// Opens the connection that writes, and brings the file to today's schema.
pub fn open_writer(path: &Path, bytes_max: Option<u64>) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(path, flags).and_then(|connection| {
        // The first statement reads the header, so what is no database shows here.
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let application: i32 =
            connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
        let tables: i64 =
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        let read_only = connection.is_readonly("main")?;
        Ok((connection, version, application, tables, read_only))
    });
    let (mut connection, version, application, tables, read_only) =
        opened.map_err(|error| explain(path, &error))?;
    if application != APPLICATION_ID && (application != 0 || version != 0 || tables != 0) {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    let Some(pending) = usize::try_from(version).ok().and_then(|taken| MIGRATIONS.get(taken..))
    else {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            found: version,
            known: MIGRATIONS.len(),
        });
    };
    if read_only {
        let reason = "SQLite could open it for reading only".to_owned();
        return Err(OpenError::ReadOnly { path: path.to_owned(), reason });
    }
    prepare(&mut connection, pending, bytes_max).map_err(|error| explain(path, &error))?;
    Ok(connection)
}

fn prepare(
    connection: &mut Connection,
    pending: &[&str],
    bytes_max: Option<u64>,
) -> rusqlite::Result<()> {
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode != "wal" {
        let text = format!("the journal mode is {mode}, but this file system must support wal");
        return Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN),
            Some(text),
        ));
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    // In pages, 16 MiB: the more moves lie between two checkpoints, the fewer pages each copies into the file.
    connection.pragma_update(None, "wal_autocheckpoint", 4_000)?;
    connection.pragma_update(None, "cache_size", -8 * 1024)?;
    if let Some(bytes_max) = bytes_max {
        let page: u32 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let pages = i64::try_from(bytes_max / u64::from(page.max(1))).unwrap_or(i64::MAX);
        connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
    }
    if pending.is_empty() {
        return Ok(());
    }
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for step in pending {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    transaction.commit()
}

/// Opens a connection that only reads.
pub fn open_reader(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(path, flags).and_then(|connection| {
        connection.pragma_update(None, "cache_size", -2 * 1024)?;
        Ok(connection)
    });
    opened.map_err(|error| explain(path, &error))
}

fn explain(path: &Path, error: &rusqlite::Error) -> OpenError {
    let (path, reason) = (path.to_owned(), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            OpenError::NotADatabase { path, reason }
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            OpenError::ReadOnly { path, reason }
        }
        Some(ErrorCode::DiskFull) => OpenError::Full { path },
        _ => OpenError::Failed { path, reason },
    }
}
