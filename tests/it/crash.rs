//! kill -9 of the server under load: what was acknowledged is there, whole and once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::runtime;
use crate::support::{CREATE_WORKFLOW, Client, Server, review_input};
use circuit_breaker::domain::EventKind;
use circuit_breaker::storage::{PageLimit, TokenScope, WorkflowStorage};

const CLIENTS: usize = 8;
const ROUNDS: usize = 5;

/// What clients know of one token: the version of the last answer, and whether one is outstanding.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    pub version: u64,
    pub outstanding: bool,
}

/// Creates tokens and moves them round and round until the server is gone.
fn load(client: &Client, known: &Mutex<HashMap<String, Known>>, acknowledged: &AtomicBool) {
    let create = "mutation($i: CreateWorkflowInstanceInput!) { createWorkflowInstance(input: $i) { id version } }";
    let fire = "mutation($i: TransitionFireInput!) { fireTransition(input: $i) { version place } }";
    loop {
        // The client chooses the id, so that a creation without an answer can be looked for.
        let id = uuid::Uuid::from_u128(fastrand::u128(..)).to_string();
        known.lock().unwrap().insert(id.clone(), Known { version: 0, outstanding: true });
        let input = json!({ "i": { "id": id, "workflowId": "w", "initialData": { "n": 1 } } });
        let Ok(answer) = client.ask(create, &input) else { return };
        assert_eq!(answer["data"]["createWorkflowInstance"]["version"], 1, "{answer}");
        known.lock().unwrap().insert(id.clone(), Known { version: 1, outstanding: false });
        for (version, transition) in (2..).zip(["submit", "reject", "edit", "submit", "finish"]) {
            known.lock().unwrap().get_mut(&id).unwrap().outstanding = true;
            let input = json!({ "i": { "tokenId": id, "transitionId": transition, "data": { "step": version } } });
            let Ok(answer) = client.ask(fire, &input) else { return };
            assert_eq!(answer["data"]["fireTransition"]["version"], version, "{answer}");
            known.lock().unwrap().insert(id.clone(), Known { version, outstanding: false });
            acknowledged.store(true, Ordering::Release);
        }
    }
}

#[test]
fn every_acknowledged_move_survives_kill_9_with_its_event_and_none_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("crash.db");
    let variables = [("SQLITE_PATH", path.to_str().unwrap())];
    let known = Arc::new(Mutex::new(HashMap::new()));
    for round in 0..ROUNDS {
        let server = Server::start(&variables);
        let created =
            server.client().ask(CREATE_WORKFLOW, &json!({ "input": review_input("w") })).unwrap();
        assert_eq!(created["data"]["createWorkflow"]["id"], "w", "{created}");
        let acknowledged = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (client, known, acknowledged) =
                    (server.client(), Arc::clone(&known), Arc::clone(&acknowledged));
                std::thread::spawn(move || load(&client, &known, &acknowledged))
            })
            .collect();
        while !acknowledged.load(Ordering::Acquire) {
            assert!(
                !clients.iter().all(std::thread::JoinHandle::is_finished),
                "the clients gave up"
            );
            std::thread::yield_now();
        }
        // Not a wait for something, but the moment of the kill: another one each time.
        std::thread::sleep(std::time::Duration::from_millis(fastrand::u64(50..400)));
        server.kill();
        for client in clients {
            client.join().unwrap();
        }
        check(&path, &mut known.lock().unwrap(), round);
    }
    assert!(known.lock().unwrap().len() > ROUNDS * CLIENTS);
}

/// Holds the file against what the clients know, and takes what they could not know from the file.
fn check(path: &std::path::Path, known: &mut HashMap<String, Known>, round: usize) {
    let storage = crate::support::open_sqlite(path);
    runtime().block_on(async {
        compare(&*storage, known, round).await;
        storage.close().await;
    });
}

/// Holds a store against what the clients know, and takes what they could not know from the store.
pub async fn compare(
    storage: &dyn WorkflowStorage,
    known: &mut HashMap<String, Known>,
    round: usize,
) {
    compare_but_for_late(storage, known, round, false).await;
}

/// Waits until each token has an event of each version: whoever was told that an outcome is unknown
/// is still looked for. What stays missing, a comparison tells.
pub async fn until_all_is_told(storage: &dyn WorkflowStorage) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let limit = PageLimit { rows: 1_000_000, bytes: usize::MAX };
    loop {
        let tokens = storage.list_tokens(&TokenScope::All, None, limit).await.unwrap().items;
        let events = storage.list_events(None, None, limit).await.unwrap().items;
        let moves = events.iter().filter(|stored| stored.event.kind != EventKind::TokenCompleted);
        let told = moves.filter(|stored| stored.event.token_version.is_some()).count();
        let versions: usize = tokens.iter().map(|stored| stored.token.version as usize).sum();
        if told >= versions || Instant::now() >= deadline {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The same, where an event that a repair has written may stand `late`, behind that of a later version.
pub async fn compare_but_for_late(
    storage: &dyn WorkflowStorage,
    known: &mut HashMap<String, Known>,
    round: usize,
    late: bool,
) {
    let limit = PageLimit { rows: 1_000_000, bytes: usize::MAX };
    let tokens = storage.list_tokens(&TokenScope::All, None, limit).await.unwrap().items;
    let events = storage.list_events(None, None, limit).await.unwrap().items;
    let mut versions: HashMap<String, Vec<u64>> = HashMap::new();
    for stored in &events {
        if let (Some(token), Some(version)) = (stored.event.token_id, stored.event.token_version)
            && stored.event.kind != EventKind::TokenCompleted
        {
            versions.entry(token.to_string()).or_default().push(version.into());
        }
    }
    let found: HashMap<_, _> =
        tokens.iter().map(|stored| (stored.token.id.to_string(), &stored.token)).collect();
    assert_eq!(found.len(), tokens.len(), "round {round}: a token is there twice");
    for (id, known) in known.iter_mut() {
        let there = found.get(id).map_or(0, |token| u64::from(token.version));
        let may_be_one_more = u64::from(known.outstanding);
        assert!(
            there == known.version || there == known.version + may_be_one_more,
            "round {round}: token {id} is at version {there}, acknowledged was {known:?}"
        );
        let mut events = versions.remove(id).unwrap_or_default();
        if late {
            events.sort_unstable();
        }
        assert_eq!(
            events,
            (1..=there).collect::<Vec<_>>(),
            "round {round}: one event for each version of {id}"
        );
        *known = Known { version: there, outstanding: false };
    }
    assert!(
        versions.is_empty(),
        "round {round}: events of tokens that nobody created: {versions:?}"
    );
}

#[test]
fn requests_under_way_are_answered_when_the_server_is_told_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stop.db");
    let server = Server::start(&[("SQLITE_PATH", path.to_str().unwrap())]);
    server.client().ask(CREATE_WORKFLOW, &json!({ "input": review_input("w") })).unwrap();
    let known = Arc::new(Mutex::new(HashMap::new()));
    let acknowledged = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (client, known, acknowledged) =
                (server.client(), Arc::clone(&known), Arc::clone(&acknowledged));
            std::thread::spawn(move || load(&client, &known, &acknowledged))
        })
        .collect();
    while !acknowledged.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
    let (status, log) = server.stop();
    assert!(status.success(), "{log}");
    assert!(log.contains("stopped"), "{log}");
    for client in clients {
        client.join().unwrap();
    }
    check(&path, &mut known.lock().unwrap(), 0);
}
