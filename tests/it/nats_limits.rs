//! Retention: history goes, by age and for room; nothing live ever does.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use circuit_breaker::domain::WorkflowEvent;
use circuit_breaker::storage::{
    PageLimit, StorageError, StorageHealth, StoredToken, TokenScope, WorkflowStorage,
};
use circuit_breaker::{NATSStorage, NATSStorageConfig, NATSStorageOptions};
use serde_json::json;

use crate::nats_bus::Bus;
use crate::nats_server::{Cluster, NatsServer};
use crate::support::{
    CREATE_TOKEN, CREATE_WORKFLOW, FIRE, Server, as_written, fired, new_token, now, review_input,
    review_workflow, runtime, workflow_id,
};

const ALL: PageLimit = PageLimit { rows: 100_000, bytes: 1 << 30 };

/// Time for something to go; it takes a second or two.
const WAIT_MAX: Duration = Duration::from_secs(60);

async fn limited(
    nats: &NatsServer,
    change: impl FnOnce(&mut NATSStorageConfig),
) -> Arc<NATSStorage> {
    let mut config = nats.config();
    change(&mut config);
    Arc::new(NATSStorage::with_options(config, NATSStorageOptions::new()).await.unwrap())
}

async fn create_workflow(storage: &NATSStorage, id: &str) {
    let definition = review_workflow(id).definition().clone();
    let event = WorkflowEvent::workflow_created(definition.id.clone(), now());
    storage.insert_workflow(definition, event).await.unwrap();
}

async fn create(storage: &NATSStorage, bytes: usize) -> Result<StoredToken, StorageError> {
    let data = json!({ "text": "x".repeat(bytes) });
    storage.insert_token(new_token(&review_workflow("w"), data)).await
}

async fn fire(storage: &NATSStorage, stored: &StoredToken, transition: &str) -> StoredToken {
    let change = fired(&review_workflow("w"), stored, transition);
    storage
        .commit(stored.revision, change)
        .await
        .unwrap_or_else(|error| panic!("{transition}: {error}"))
}

/// The token as it is now.
async fn read(storage: &NATSStorage, stored: &StoredToken) -> StoredToken {
    as_written(&storage.load_token(stored.token.id, None).await.unwrap().unwrap())
}

async fn listed(storage: &NATSStorage) -> HashSet<uuid::Uuid> {
    let scope = TokenScope::Workflow(workflow_id("w"));
    let page = WorkflowStorage::list_tokens(storage, &scope, None, ALL).await.unwrap();
    assert!(!page.more);
    page.items.iter().map(|stored| stored.token.id).collect()
}

#[test]
fn events_and_completed_tokens_go_with_age_and_what_lives_stays() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let storage =
            limited(&nats, |config| config.default_max_age = Duration::from_secs(2)).await;
        create_workflow(&storage, "w").await;
        let lives = create(&storage, 10).await.unwrap();
        let lives = fire(&storage, &lives, "edit").await;
        let completed = create(&storage, 10).await.unwrap();
        let completed = fire(&storage, &completed, "submit").await;
        let completed = fire(&storage, &completed, "finish").await;
        assert_eq!(read(&storage, &completed).await, completed);

        let deadline = Instant::now() + WAIT_MAX;
        let bus = Bus::connect(&nats).await;
        // The definition with the pointer of its hash, the token that lives with its own, and what the
        // server says of the store and of itself, twice.
        while bus.stream().await["state"]["messages"] != 7 {
            assert!(Instant::now() < deadline, "{}", bus.stream().await["state"]);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(storage.load_token(completed.token.id, None).await.unwrap(), None);
        assert_eq!(
            storage.load_workflow(&workflow_id("w")).await.unwrap().as_ref(),
            Some(review_workflow("w").definition())
        );
        assert_eq!(read(&storage, &lives).await, lives);
        assert_eq!(storage.token_moves(&lives.token, None, ALL).await.unwrap().items, []);
        // It moves on, through a server that has just started, too; and its history begins anew.
        let other = nats.open().await;
        let moved = fire(&other, &lives, "submit").await;
        assert_eq!(moved.token.version, 3);
        assert_eq!(moved.token.transition_history.len(), 2, "it carries its newest moves itself");
        assert_eq!(storage.token_moves(&moved.token, None, ALL).await.unwrap().items.len(), 1);
        other.close().await;
        storage.close().await;
    });
}

/// There a refusal alone is no proof, so what was refused is looked for before that is said.
#[test]
fn in_a_cluster_a_full_store_is_told_as_full() {
    let Some(cluster) = Cluster::start() else { return };
    runtime().block_on(async {
        let config = NATSStorageConfig { default_max_messages: 150, ..cluster.config(0) };
        let options = NATSStorageOptions { replicas: 3, ..NATSStorageOptions::new() };
        let storage = Arc::new(NATSStorage::with_options(config, options).await.unwrap());
        create_workflow(&storage, "w").await;
        let (mut created, mut full) = (0, 0);
        while full < 40 {
            let creations = (0..20).map(|_| create(&storage, 10));
            for told in futures_util::future::join_all(creations).await {
                match told {
                    Ok(_) => created += 1,
                    Err(StorageError::Full { .. }) => full += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(created < 150);
        }
        assert_eq!(listed(&storage).await.len(), created);
        storage.close().await;
    });
}

#[test]
fn under_a_limit_of_messages_history_goes_first_and_moves_go_on() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let storage = limited(&nats, |config| config.default_max_messages = 400).await;
        create_workflow(&storage, "w").await;
        let mut tokens = Vec::new();
        for _ in 0..20 {
            tokens.push(create(&storage, 10).await.unwrap());
        }
        // Far more events than there is room for, from many callers at once.
        let mut movers = tokio::task::JoinSet::new();
        for mut stored in tokens {
            let storage = Arc::clone(&storage);
            movers.spawn(async move {
                for n in 0..100 {
                    let transition = ["edit", "submit", "reject"][n % 3];
                    stored = fire(&storage, &stored, transition).await;
                }
                stored
            });
        }
        let tokens = movers.join_all().await;
        let expected: HashSet<_> = tokens.iter().map(|stored| stored.token.id).collect();
        assert_eq!(listed(&storage).await, expected);
        for stored in &tokens {
            assert_eq!(read(&storage, stored).await, *stored);
            assert_eq!(stored.token.version, 101);
            // What is left of its history has no gap.
            let moves = storage.token_moves(&stored.token, None, ALL).await.unwrap().items;
            let versions: Vec<_> =
                moves.iter().map(|stored| stored.event.token_version.unwrap()).collect();
            let newest: Vec<_> = (0..versions.len() as u32).map(|n| 101 - n).collect();
            assert_eq!(versions, newest);
        }
        assert!(storage.load_workflow(&workflow_id("w")).await.unwrap().is_some());
        let state = Bus::connect(&nats).await.stream().await["state"].take();
        assert!(state["messages"].as_u64().unwrap() <= 400, "{state}");
        storage.close().await;
    });
}

/// Fills a store with live tokens until it is full, and gives them.
async fn fill(storage: &NATSStorage, bytes: usize) -> Vec<StoredToken> {
    let mut tokens = Vec::new();
    loop {
        match create(storage, bytes).await {
            Ok(stored) => tokens.push(stored),
            Err(StorageError::Full { reason }) => {
                assert!(reason.contains("NATS_MAX_MESSAGES or NATS_MAX_BYTES"), "{reason}");
                return tokens;
            }
            Err(error) => panic!("{error}"),
        }
        assert!(tokens.len() < 1_000);
    }
}

async fn full_of_what_lives(storage: Arc<NATSStorage>, bytes: usize) {
    create_workflow(&storage, "w").await;
    let tokens = fill(&storage, bytes).await;
    assert!(tokens.len() > 20, "{}", tokens.len());
    let expected: HashSet<_> = tokens.iter().map(|stored| stored.token.id).collect();
    assert_eq!(listed(&storage).await, expected, "nothing live went");
    let health = storage.health().await;
    assert!(
        matches!(&health, StorageHealth::Degraded(text) if text.contains("CIRCUIT_BREAKER_GLOBAL")),
        "{health:?}"
    );
    assert!(storage.load_workflow(&workflow_id("w")).await.unwrap().is_some());
    let error = storage.insert_workflow(
        review_workflow("v").definition().clone(),
        WorkflowEvent::workflow_created(workflow_id("v"), now()),
    );
    assert!(matches!(error.await, Err(StorageError::Full { .. })));

    // What is there can still move, a few at once, and come to its end.
    let (go, stay) = tokens.split_at(8);
    let mut movers = tokio::task::JoinSet::new();
    for stored in go {
        let stored = stored.clone();
        let storage = Arc::clone(&storage);
        movers.spawn(async move {
            let stored = fire(&storage, &stored, "submit").await;
            let stored = fire(&storage, &stored, "reject").await;
            fire(&storage, &stored, "submit").await
        });
    }
    let moved = movers.join_all().await;
    assert_eq!(listed(&storage).await, expected);
    for stored in &moved {
        fire(&storage, stored, "finish").await;
    }
    // Completed tokens are history, so there is room again.
    let deadline = Instant::now() + WAIT_MAX;
    let new = loop {
        match create(&storage, bytes).await {
            Ok(stored) => break stored,
            Err(StorageError::Full { .. }) => assert!(Instant::now() < deadline, "no room again"),
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let found = listed(&storage).await;
    assert!(found.contains(&new.token.id));
    for stored in stay {
        assert!(found.contains(&stored.token.id), "it lives");
    }
    storage.close().await;
}

#[test]
fn a_stream_full_of_live_tokens_takes_nothing_new_and_lets_what_is_there_go_on() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let storage = limited(&nats, |config| config.default_max_messages = 200).await;
        full_of_what_lives(storage, 10).await;
    });
}

#[test]
fn the_same_holds_for_a_limit_of_bytes() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let storage = limited(&nats, |config| config.default_max_bytes = 1 << 20).await;
        full_of_what_lives(storage, 10_000).await;
    });
}

#[test]
fn clients_hear_that_the_store_is_full_and_what_to_do() {
    let Some(nats) = NatsServer::start() else { return };
    let server = Server::start(&[
        ("STORAGE_BACKEND", "nats"),
        ("NATS_URL", &nats.url()),
        ("NATS_MAX_MESSAGES", "100"),
    ]);
    let client = server.client();
    client.ask(CREATE_WORKFLOW, &json!({ "input": review_input("w") })).unwrap();
    let create = json!({ "input": { "workflowId": "w" } });
    let mut created = Vec::new();
    let error = loop {
        let mut answer = client.ask(CREATE_TOKEN, &create).unwrap();
        match answer["data"]["createToken"]["id"].as_str() {
            Some(id) => created.push(id.to_owned()),
            None => break answer["errors"][0].take(),
        }
        assert!(created.len() < 100);
    };
    assert_eq!(error["extensions"]["code"], "STORAGE_FULL", "{error}");
    assert_eq!(error["extensions"]["retryable"], false);
    assert!(error["message"].as_str().unwrap().contains("raise NATS_MAX_MESSAGES"), "{error}");
    assert!(created.len() > 30, "{}", created.len());
    for id in &created {
        let fire = json!({ "input": { "tokenId": id, "transitionId": "submit" } });
        let moved = client.ask(FIRE, &fire).unwrap();
        assert_eq!(moved["data"]["fireTransition"]["place"], "review", "{moved}");
    }
    let (code, body) = client.get("/health/ready");
    assert_eq!(code, 200, "{body}");
    assert!(body.contains("DEGRADED"), "{body}");
    let (_, log) = server.stop();
    assert_eq!(log.matches("the stream is full").count(), 1, "{log}");
}

/// Several servers that make room at once remove what one of them would, and write down up to where.
#[test]
fn servers_that_make_room_at_once_remove_no_more_than_one_would() {
    const MAX: i64 = 2_000;
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let mut servers = Vec::new();
        for _ in 0..3 {
            servers.push(limited(&nats, |config| config.default_max_messages = MAX).await);
        }
        create_workflow(&servers[0], "w").await;
        let bus = Bus::connect(&nats).await;
        let mut movers = tokio::task::JoinSet::new();
        for n in 0..24 {
            let storage = Arc::clone(&servers[n % 3]);
            movers.spawn(async move {
                let mut stored = create(&storage, 10).await.unwrap();
                for _ in 0..200 {
                    stored = fire(&storage, &stored, "edit").await;
                }
                stored
            });
        }
        let (mut highest, mut fewest) = (0, u64::MAX);
        let mut filled = false;
        while !movers.is_empty() {
            while let Some(moved) = movers.try_join_next() {
                moved.unwrap();
            }
            let messages = bus.stream().await["state"]["messages"].as_u64().unwrap();
            filled |= messages > 1_500;
            if filled {
                fewest = fewest.min(messages);
            }
            let Some(purged) = bus.last("cb.store.purged").await else { continue };
            let purged: serde_json::Value = serde_json::from_slice(&purged.payload).unwrap();
            let purged = purged["sequence"].as_u64().unwrap();
            assert!(purged >= highest, "{purged} after {highest}");
            highest = purged;
            // What is above it is there.
            let oldest = servers[0].list_events(None, None, PageLimit { rows: 1, bytes: 1 << 20 });
            let oldest = oldest.await.unwrap().items[0].sequence.0;
            let again = bus.last("cb.store.purged").await.unwrap();
            let again: serde_json::Value = serde_json::from_slice(&again.payload).unwrap();
            let again = again["sequence"].as_u64().unwrap();
            assert!(
                oldest <= again + 4,
                "events up to {again} may be gone, the oldest is {oldest}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(highest > 0, "there was something to remove");
        // A tenth at a time, from a fifth below the limit on: so the rest is never gone.
        assert!(fewest > 1_100, "{fewest} of {MAX} were left");
    });
}
