//! The disk of nats-server fills up under load, and it is restarted while it is full.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use circuit_breaker::storage::{PageLimit, StorageError, StorageHealth, WorkflowStorage};
use circuit_breaker::{NATSStorage, NATSStorageConfig};
use serde_json::json;
use uuid::Uuid;

use crate::crash::{Known, compare_but_for_late};
use crate::nats_bus::Bus;
use crate::nats_crash::{mended, next_of, until_answered};
use crate::nats_server::{self, NatsServer};
use crate::support::{fired, new_token, review_workflow, runtime};

const TOKENS: usize = 64;
const DISK_MEGABYTES: usize = 24;

/// `CB_DISKS` rounds on each version (1 if it is not set).
#[test]
fn a_disk_that_fills_up_and_a_restart_while_it_is_full_lose_nothing() {
    let rounds = std::env::var("CB_DISKS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    for binary in [nats_server::binary(), nats_server::oldest_binary()].into_iter().flatten() {
        for _ in 0..rounds {
            runtime().block_on(filled(binary));
        }
    }
}

#[allow(clippy::print_stderr, clippy::too_many_lines)]
async fn filled(binary: &Path) {
    let Some(mut nats) = NatsServer::on_small_disk(binary, DISK_MEGABYTES) else { return };
    let bus = Bus::connect(&nats).await;
    bus.done(
        "STREAM.CREATE.OTHER",
        &json!({ "name": "OTHER", "subjects": ["other"], "storage": "file", "retention": "limits" }),
    )
    .await;
    // The disk is smaller than what nats-server may store, so it is the disk that ends first.
    let config = NATSStorageConfig { default_max_bytes: 12 << 20, ..nats.config() };
    let open = async || Arc::new(NATSStorage::new(config.clone()).await.unwrap());
    let servers = [open().await, open().await];
    let mut known = HashMap::new();
    for _ in 0..TOKENS {
        let change = new_token(&review_workflow("w"), json!({ "text": "x".repeat(8_000) }));
        let id = servers[0].insert_token(change).await.unwrap().token.id;
        known.insert(id.to_string(), Known { version: 1, outstanding: false });
    }

    // Each mover has tokens of its own, so what it hears is all that has happened to them.
    let stop = Arc::new(AtomicBool::new(false));
    let mut movers = tokio::task::JoinSet::new();
    let ids: Vec<Uuid> = known.keys().map(|id| id.parse().unwrap()).collect();
    for (n, ids) in ids.chunks(2).enumerate() {
        let (storage, stop) = (Arc::clone(&servers[n % 2]), Arc::clone(&stop));
        let ids = ids.to_vec();
        movers.spawn(async move { moved(&storage, &ids, &stop).await });
    }
    tokio::time::sleep(Duration::from_millis(fastrand::u64(100..600))).await;
    // Somebody else takes the rest of the disk.
    let filling = Instant::now();
    while filling.elapsed() < Duration::from_secs(4) {
        let sent = bus.client.request("other", vec![b'x'; 200_000].into());
        if !matches!(tokio::time::timeout(Duration::from_secs(1), sent).await, Ok(Ok(_))) {
            break;
        }
    }
    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..800))).await;
    nats.kill();
    let started = nats.try_run();
    if let Err(log) = &started {
        // It cannot write what it needs to begin with, and says so in its way.
        eprintln!("nats-server does not start on the full disk: {}", first_words(log));
    }
    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..3_000))).await;
    nats.kill();
    nats.resize_disk(8 * DISK_MEGABYTES);
    nats.run();
    let deadline = Instant::now() + Duration::from_secs(60);
    for storage in &servers {
        while matches!(storage.health().await, StorageHealth::Unhealthy(_)) {
            assert!(Instant::now() < deadline, "{:?}", storage.health().await);
        }
    }
    stop.store(true, Ordering::SeqCst);
    let (mut told, mut unknown) = (0, 0);
    for (id, version, outstanding, acknowledged) in movers.join_all().await.into_iter().flatten() {
        let known = known.get_mut(&id.to_string()).unwrap();
        (known.version, known.outstanding) = (version, outstanding);
        told += acknowledged;
        unknown += usize::from(outstanding);
    }
    compare_but_for_late(&*servers[0], &mut known, 0, true).await;
    Bus::connect(&nats).await.until_each_token_is_there_once().await;
    let history = PageLimit { rows: 100_000, bytes: 1 << 30 };
    for id in known.keys() {
        let load = || servers[1].load_token(id.parse().unwrap(), None);
        let stored = until_answered(load).await.unwrap();
        let moves = servers[1].token_moves(&stored.token, None, history).await.unwrap().items;
        let versions: Vec<_> =
            moves.iter().rev().filter_map(|moved| moved.event.token_version).collect();
        assert_eq!(versions, (2..=stored.token.version).collect::<Vec<_>>(), "{id}");
    }
    let mended = mended(&servers[0]).await + mended(&servers[1]).await;
    eprintln!("a full disk: {told} acknowledged, {unknown} unknown, {mended} torn changes mended");
    assert!(told > TOKENS, "{told} moves were acknowledged");
    for storage in servers {
        storage.close().await;
    }
}

/// nats-server goes on to answer reads then, and does not answer what is written.
#[test]
fn a_full_disk_is_told_in_health_and_to_who_writes() {
    for binary in [nats_server::binary(), nats_server::oldest_binary()].into_iter().flatten() {
        runtime().block_on(told_to_be_full(binary));
    }
}

async fn told_to_be_full(binary: &Path) {
    let Some(nats) = NatsServer::on_small_disk(binary, DISK_MEGABYTES) else { return };
    let config = NATSStorageConfig { default_max_bytes: 64 << 20, ..nats.config() };
    let storage = Arc::new(NATSStorage::new(config).await.unwrap());
    let workflow = review_workflow("w");
    let large = || new_token(&workflow, json!({ "text": "x".repeat(200_000) }));
    let first = storage.insert_token(new_token(&workflow, json!({}))).await.unwrap();
    while storage.insert_token(large()).await.is_ok() {}
    let is_named = |text: &str| text.contains("disk") || text.contains("no space left");
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match storage.health().await {
            StorageHealth::Unhealthy(reason) if is_named(&reason) => break,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
    }
    let refused = storage.insert_token(large()).await.unwrap_err().to_string();
    assert!(is_named(&refused), "{refused}");
    assert!(storage.load_token(first.token.id, None).await.unwrap().is_some());
    storage.close().await;
}

fn first_words(log: &str) -> &str {
    let line = log.lines().find(|line| line.contains("panic") || line.contains("FTL"));
    line.unwrap_or_default()
}

/// Moves tokens until it is told to stop. Gives of each the version that it knows of, whether a move
/// has no outcome, and how many were acknowledged.
async fn moved(
    storage: &NATSStorage,
    ids: &[Uuid],
    stop: &AtomicBool,
) -> Vec<(Uuid, u64, bool, usize)> {
    let workflow = review_workflow("w");
    let mut all: Vec<_> = ids.iter().map(|id| (*id, 1, false, 0)).collect();
    while !stop.load(Ordering::SeqCst) {
        for (id, version, outstanding, told) in &mut all {
            // What became of a move without an outcome is asked at the end.
            if *outstanding {
                continue;
            }
            let Ok(Some(stored)) = storage.load_token(*id, None).await else { continue };
            assert_eq!(u64::from(stored.token.version), *version, "nobody else moves it");
            let change = fired(&workflow, &stored, next_of(&stored));
            match storage.commit(stored.revision, change).await {
                Ok(_) => (*version, *told) = (*version + 1, *told + 1),
                // A repair writes a token once more, so its message is another one.
                Err(
                    StorageError::Full { .. }
                    | StorageError::Unavailable { .. }
                    | StorageError::Conflict { .. },
                ) => {}
                Err(StorageError::OutcomeUnknown { .. }) => *outstanding = true,
                Err(error) => panic!("{error}"),
            }
        }
    }
    all
}
