//! Files that are not what they should be, and a server that was killed.

use std::fs;
use std::path::Path;
use std::process::Command;

use circuit_breaker::domain::WorkflowEvent;
use circuit_breaker::storage::sqlite::OpenError;
use circuit_breaker::storage::{
    PageLimit, Sequence, StorageError, StorageHealth, StoredToken, TokenScope, WorkflowStorage,
};
use circuit_breaker::{SqliteStorage, SqliteStorageConfig};
use serde_json::json;

use crate::support::{
    fired, new_token, now, open_sqlite, review_workflow, runtime, server_command,
};

fn open(path: &Path) -> Result<SqliteStorage, OpenError> {
    SqliteStorage::open(&SqliteStorageConfig::new(path))
}

fn refused(path: &Path) -> OpenError {
    open(path).expect_err("it must be refused")
}

#[test]
fn a_file_that_is_no_database_is_refused_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    let text = "dear diary, ".repeat(1_000);
    fs::write(&path, &text).unwrap();
    let error = refused(&path);
    assert!(matches!(error, OpenError::NotADatabase { .. }), "{error}");
    assert!(error.to_string().contains("notes.txt"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn a_database_of_another_program_is_refused_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.db");
    rusqlite::Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE things (x); INSERT INTO things VALUES (1)")
        .unwrap();
    let before = fs::read(&path).unwrap();
    let error = refused(&path);
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_file_of_a_newer_version_is_refused_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new.db");
    let storage = open(&path).unwrap();
    runtime().block_on(storage.close());
    drop(storage);
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let before = fs::read(&path).unwrap();
    let error = refused(&path);
    assert!(matches!(error, OpenError::Newer { found: 99, known: 2, .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

/// A file of the first format, whose moves are in no chain: what is written to it from now on is.
#[test]
fn the_moves_of_a_file_of_the_first_format_are_one_history_with_those_that_follow() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.db");
    let workflow = review_workflow("w");
    let moved = |count: usize, first: Option<StoredToken>| {
        let (path, workflow) = (path.clone(), &workflow);
        async move {
            let storage = open(&path).unwrap();
            let mut stored = match first {
                Some(stored) => stored,
                None => {
                    let definition = workflow.definition().clone();
                    let created = WorkflowEvent::workflow_created(definition.id.clone(), now());
                    storage.insert_workflow(definition, created).await.unwrap();
                    storage.insert_token(new_token(workflow, json!({}))).await.unwrap()
                }
            };
            for _ in 0..count {
                let other = new_token(workflow, json!({}));
                storage.insert_token(other).await.unwrap();
                let change = fired(workflow, &stored, "edit");
                stored = storage.commit(stored.revision, change).await.unwrap();
            }
            storage.close().await;
            stored
        }
    };
    runtime().block_on(async {
        let stored = moved(5, None).await;
        rusqlite::Connection::open(&path)
            .unwrap()
            .execute_batch(
                "DROP INDEX moves_by_token; ALTER TABLE events DROP COLUMN previous;
                CREATE INDEX moves_by_token ON events (token) WHERE is_move = 1; PRAGMA user_version = 1",
            )
            .unwrap();
        let stored = moved(5, Some(stored)).await;
        let storage = open(&path).unwrap();
        for rows in [1, 2, 3, 5, 7, 10, 100] {
            let (mut versions, mut before) = (Vec::new(), None);
            loop {
                let limit = PageLimit { rows, bytes: 1 << 20 };
                let page = storage.token_moves(&stored.token, before, limit).await.unwrap();
                versions.extend(page.items.iter().map(|stored| stored.event.token_version.unwrap()));
                before = page.items.last().map(|stored| stored.sequence);
                if !page.more {
                    break;
                }
            }
            assert_eq!(versions, (2..=11).rev().collect::<Vec<_>>(), "{rows} a page");
        }
        storage.close().await;
    });
}

#[test]
fn a_damaged_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.db");
    let storage = open(&path).unwrap();
    runtime().block_on(storage.close());
    drop(storage);
    let mut bytes = fs::read(&path).unwrap();
    bytes[100..4_000].fill(0xff);
    fs::write(&path, bytes).unwrap();
    let error = refused(&path);
    assert!(matches!(error, OpenError::NotADatabase { .. }), "{error}");
}

#[test]
fn a_folder_and_a_missing_folder_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(refused(folder.path()), OpenError::Failed { .. }));
    let error = refused(&folder.path().join("missing/x.db"));
    assert!(error.to_string().contains("missing"), "{error}");
    assert!(!folder.path().join("missing").exists());
}

#[test]
fn a_file_is_one_process_s_also_by_another_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.db");
    let first = open_sqlite(&path);
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for name in [&path, &link] {
        let error = refused(name);
        assert!(matches!(error, OpenError::InUse { .. }), "{error}");
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    }
    runtime().block_on(first.close());
    open(&path).unwrap();
}

#[test]
fn a_file_that_may_not_be_written_stops_the_start() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.db");
    runtime().block_on(open(&path).unwrap().close());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let binary = copy_of_the_server();
    let mut command = server_command(&[("SQLITE_PATH", path.to_str().unwrap())]);
    if is_root() {
        // Permissions do not bind root: run it as nobody.
        let mut unprivileged = Command::new(binary.path().join("server"));
        unprivileged
            .uid(65_534)
            .gid(65_534)
            .env_clear()
            .env("SQLITE_PATH", &path)
            .env("LISTEN_ADDR", "127.0.0.1:0");
        command = unprivileged;
    }
    let output = command.output().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("cannot be written"), "{text}");
    assert!(text.contains("check the permissions"), "{text}");
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim() == "0"
}

/// Where nobody may execute it, too.
fn copy_of_the_server() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(crate::support::server_binary(), folder.path().join("server")).unwrap();
    folder
}

#[test]
fn a_full_store_refuses_writes_whole_and_goes_on_reading() {
    let folder = tempfile::tempdir().unwrap();
    let config = SqliteStorageConfig { path: folder.path().join("x.db"), bytes_max: Some(1 << 20) };
    let workflow = review_workflow("w");
    runtime().block_on(async {
        let storage = std::sync::Arc::new(SqliteStorage::open(&config).unwrap());
        let mut stored = Vec::new();
        let error = loop {
            match storage.insert_token(new_token(&workflow, json!("x".repeat(20_000)))).await {
                Ok(token) => stored.push(token),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, StorageError::Full { .. }), "{error}");
        assert!(matches!(storage.health().await, StorageHealth::Degraded(_)));
        // A lost race writes nothing, so it does not make the store healthy.
        let stale = StoredToken { revision: Sequence(u64::MAX), ..stored[0].clone() };
        let lost = storage.commit(stale.revision, fired(&workflow, &stale, "submit")).await;
        assert!(matches!(lost, Err(StorageError::Conflict { .. })), "{lost:?}");
        assert!(matches!(storage.health().await, StorageHealth::Degraded(_)));
        // Many at once: the group fails, then each alone, and none by half.
        let tasks: Vec<_> = (0..20)
            .map(|n| {
                let (storage, bytes) =
                    (std::sync::Arc::clone(&storage), if n % 2 == 0 { 100_000 } else { 10 });
                let change = new_token(&workflow, json!("x".repeat(bytes)));
                tokio::spawn(async move { storage.insert_token(change).await })
            })
            .collect();
        for task in tasks {
            match task.await.unwrap() {
                Ok(token) => stored.push(token),
                Err(error) => assert!(matches!(error, StorageError::Full { .. }), "{error}"),
            }
        }
        let limit = PageLimit { rows: 10_000, bytes: usize::MAX };
        let mut there = storage.list_tokens(&TokenScope::All, None, limit).await.unwrap().items;
        there.sort_by_key(|stored| stored.revision);
        stored.sort_by_key(|stored| stored.revision);
        assert_eq!(there, stored, "what was acknowledged is there, and nothing else");
        let events = storage.list_events(None, None, limit).await.unwrap().items;
        assert_eq!(events.len(), stored.len());
        storage.close().await;
    });
    // With room, work goes on.
    runtime().block_on(async {
        let storage = open(&config.path).unwrap();
        let stored =
            storage.insert_token(new_token(&workflow, json!("x".repeat(100_000)))).await.unwrap();
        storage.commit(stored.revision, fired(&workflow, &stored, "submit")).await.unwrap();
        storage.close().await;
    });
}

#[test]
fn a_clean_stop_leaves_one_file_and_no_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.db");
    runtime().block_on(async {
        let storage = open(&path).unwrap();
        storage.insert_token(new_token(&review_workflow("w"), json!({}))).await.unwrap();
        storage.close().await;
    });
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["x.db", "x.db.lock"]);
}

#[test]
fn readers_that_always_overlap_do_not_let_the_log_grow_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.db");
    let workflow = review_workflow("w");
    runtime().block_on(async {
        let storage = std::sync::Arc::new(open(&path).unwrap());
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let (storage, stop) =
                    (std::sync::Arc::clone(&storage), std::sync::Arc::clone(&stop));
                tokio::spawn(async move {
                    let limit = PageLimit { rows: 1_000, bytes: usize::MAX };
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        storage.list_tokens(&TokenScope::All, None, limit).await.unwrap();
                    }
                })
            })
            .collect();
        let mut longest = 0;
        let mut stored =
            storage.insert_token(new_token(&workflow, json!("x".repeat(500_000)))).await.unwrap();
        for _ in 0..500 {
            stored =
                storage.commit(stored.revision, fired(&workflow, &stored, "edit")).await.unwrap();
            longest = longest.max(fs::metadata(folder.path().join("x.db-wal")).unwrap().len());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for reader in readers {
            reader.await.unwrap();
        }
        storage.close().await;
        // 250 MB were written.
        assert!(longest < 160 << 20, "the log grew to {longest} bytes");
    });
}
