//! NATS that is not there, goes away, says nothing, or breaks off in the middle of a commit.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use circuit_breaker::domain::EventKind;
use circuit_breaker::storage::{PageLimit, StorageError, WorkflowStorage};
use circuit_breaker::{NATSStorage, NATSStorageConfig, NATSStorageOptions};
use serde_json::{Value, json};

use crate::nats_proxy::{Cut, Proxy};
use crate::nats_server::{self, Cluster, NatsServer};
use crate::support::{
    CREATE_WORKFLOW, Client, FIRE, Server, as_written, fired, new_token, review_input,
    review_workflow, runtime, workflow_id,
};

/// What a request may take when nobody answers it.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);

/// Time for a state to be reached; it takes seconds, but machines can be busy.
const WAIT_MAX: Duration = Duration::from_secs(60);

fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !reached() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn status(client: &Client) -> String {
    let health = client.ask("{ health { status } }", &json!({})).unwrap();
    health["data"]["health"]["status"].as_str().unwrap().to_owned()
}

const TOKEN: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

/// Each kind of request gets the one honest answer, in time. Gives what the slowest took.
fn everything_is_unavailable(client: &Client, outcomes: &[&str]) -> Duration {
    let mut slowest = Duration::ZERO;
    let fire = json!({ "input": { "tokenId": TOKEN, "transitionId": "submit" } });
    for (query, variables) in [
        (format!("{{ token(id: \"{TOKEN}\") {{ id }} }}"), json!({})),
        (format!("{{ natsToken(id: \"{TOKEN}\") {{ id }} }}"), json!({})),
        (format!("{{ findToken(workflowId: \"w\", tokenId: \"{TOKEN}\") {{ id }} }}"), json!({})),
        ("{ tokensInPlace(workflowId: \"w\", placeId: \"draft\") { id } }".to_owned(), json!({})),
        ("{ tokens { id } }".to_owned(), json!({})),
        ("{ workflow(id: \"other\") { id } }".to_owned(), json!({})),
        ("{ workflows { id } }".to_owned(), json!({})),
        (format!("{{ tokenHistory(tokenId: \"{TOKEN}\") {{ edges {{ cursor }} }} }}"), json!({})),
        ("mutation { createToken(input: { workflowId: \"w\" }) { id } }".to_owned(), json!({})),
        (CREATE_WORKFLOW.to_owned(), json!({ "input": review_input("another") })),
        (FIRE.to_owned(), fire),
    ] {
        let begun = Instant::now();
        let answer = client.ask(&query, &variables).unwrap();
        slowest = slowest.max(begun.elapsed());
        let error = &answer["errors"][0]["extensions"];
        assert_eq!(error["code"], "STORAGE_UNAVAILABLE", "{query}: {answer}");
        assert_eq!(error["retryable"], true, "{answer}");
        let outcome = error["details"]["outcome"].as_str().unwrap();
        assert!(outcomes.contains(&outcome), "{query}: {answer}");
    }
    assert!(slowest < ANSWER_TIME_MAX, "{slowest:?}");
    slowest
}

#[test]
fn a_server_that_starts_before_nats_says_so_and_goes_on_by_itself_when_nats_is_there() {
    let Some(binary) = nats_server::binary() else { return };
    let mut nats = NatsServer::stopped(binary, &["-js"]);
    let server = Server::start(&[
        ("STORAGE_BACKEND", "nats"),
        ("NATS_URL", &nats.url()),
        ("HEALTH_CHECK_INTERVAL", "3600"),
    ]);
    let client = server.client();
    assert_eq!(client.get("/health/live").0, 200);
    let (code, body) = client.get("/health/ready");
    assert_eq!(code, 503, "{body}");
    assert!(body.contains("UNHEALTHY") && body.contains("no connection to nats://"), "{body}");
    everything_is_unavailable(&client, &["NOT_DONE"]);
    server.wait_for_log("cannot be opened yet");
    nats.run();
    until("it becomes ready", || client.get("/health/ready").0 == 200);
    let created = client.ask(CREATE_WORKFLOW, &json!({ "input": review_input("w") })).unwrap();
    assert!(created.get("errors").is_none(), "{created}");
    let (_, log) = server.stop();
    assert_eq!(
        log.matches("cannot be opened yet").count(),
        1,
        "once a period, which is long:\n{log}"
    );
    assert!(log.contains("the store is open"), "{log}");
}

#[test]
fn while_it_waits_for_nats_it_says_so_once_a_period() {
    let Some(binary) = nats_server::binary() else { return };
    let nats = NatsServer::stopped(binary, &["-js"]);
    let server = Server::start(&[
        ("STORAGE_BACKEND", "nats"),
        ("NATS_URL", &nats.url()),
        ("HEALTH_CHECK_INTERVAL", "1"),
    ]);
    let said = || server.log().matches("cannot be opened yet").count();
    let (begun, before) = (Instant::now(), said());
    until("it says so again", || said() >= before + 3);
    assert!(begun.elapsed() > Duration::from_millis(1_900), "not all the time");
}

#[test]
fn with_nats_gone_every_request_says_so_and_work_goes_on_once_it_is_back() {
    let Some(mut nats) = NatsServer::start() else { return };
    let server = Server::start(&[("STORAGE_BACKEND", "nats"), ("NATS_URL", &nats.url())]);
    let client = server.client();
    client.ask(CREATE_WORKFLOW, &json!({ "input": review_input("w") })).unwrap();
    let create = json!({ "input": { "id": TOKEN, "workflowId": "w" } });
    client.ask(crate::support::CREATE_TOKEN, &create).unwrap();
    assert_eq!(status(&client), "HEALTHY");

    nats.kill();
    // What was sent at the very moment may have no answer; nothing after it was sent at all.
    let mut seen = Vec::new();
    until("it notices", || {
        let now = status(&client);
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        seen.last().is_some_and(|last| last == "UNHEALTHY")
    });
    assert!(seen.contains(&"DEGRADED".to_owned()), "first it reconnects: {seen:?}");
    assert_eq!(client.get("/health/ready").0, 503);
    let slowest = everything_is_unavailable(&client, &["NOT_DONE"]);
    assert!(slowest < Duration::from_secs(10), "a few seconds, not {slowest:?}");

    nats.run();
    until("it is back", || status(&client) == "HEALTHY");
    assert_eq!(client.get("/health/ready").0, 200);
    let read =
        client.ask(&format!("{{ token(id: \"{TOKEN}\") {{ version }} }}"), &json!({})).unwrap();
    assert_eq!(read["data"]["token"]["version"], 1, "{read}");
    let fire = json!({ "input": { "tokenId": TOKEN, "transitionId": "submit" } });
    assert_eq!(client.ask(FIRE, &fire).unwrap()["data"]["fireTransition"]["place"], "review");
    let (_, log) = server.stop();
    assert_eq!(log.matches("the connection broke").count(), 1, "{log}");
    assert!(log.contains("the connection is back"), "{log}");
}

pub fn signal(nats: &NatsServer, name: &str) {
    let status = Command::new("kill").args([name, &nats.pid().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_nats_server_that_says_nothing_hangs_no_request() {
    let Some(nats) = NatsServer::start() else { return };
    let server = Server::start(&[("STORAGE_BACKEND", "nats"), ("NATS_URL", &nats.url())]);
    let client = server.client();
    client.ask(CREATE_WORKFLOW, &json!({ "input": review_input("w") })).unwrap();
    let create = json!({ "input": { "id": TOKEN, "workflowId": "w" } });
    client.ask(crate::support::CREATE_TOKEN, &create).unwrap();
    signal(&nats, "-STOP");
    let begun = Instant::now();
    // Several at once: they must not wait for one another either.
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let client = server.client();
            std::thread::spawn(move || everything_is_unavailable(&client, &["NOT_DONE", "UNKNOWN"]))
        })
        .collect();
    for caller in callers {
        caller.join().unwrap();
    }
    assert!(begun.elapsed() < 8 * ANSWER_TIME_MAX);
    // Once it is unhealthy it stays so, also while the connection is given up and made anew.
    let mut last = (0, String::new());
    until("the connection is given up", || {
        last = client.get("/health/ready");
        assert_eq!(last.0, 503, "{}", last.1);
        last.1.contains("no connection to nats://")
    });
    assert_eq!(client.get("/health/ready").0, 503, "after {}", last.1);
    signal(&nats, "-CONT");
    until("it goes on", || status(&client) == "HEALTHY");
    // Whatever came of the moves that had no answer: it is in one place, with one event a move.
    let read = client.ask(&format!("{{ token(id: \"{TOKEN}\") {{ version }} tokenHistory(tokenId: \"{TOKEN}\") {{ edges {{ cursor }} }} }}"), &json!({})).unwrap();
    let version = read["data"]["token"]["version"].as_u64().unwrap_or_else(|| panic!("{read}"));
    let moves = read["data"]["tokenHistory"]["edges"].as_array().unwrap().len() as u64;
    assert!(version == 1 + moves && version <= 2, "{read}");
}

/// A store behind a proxy, with one token.
fn behind_a_proxy(then: impl AsyncFnOnce(Arc<NATSStorage>, &Proxy)) {
    let Some(nats) = NatsServer::start() else { return };
    let proxy = Proxy::before(nats.port);
    runtime().block_on(async {
        let config =
            NATSStorageConfig { nats_urls: vec![proxy.url()], ..NATSStorageConfig::default() };
        let storage = Arc::new(NATSStorage::new(config).await.unwrap());
        then(Arc::clone(&storage), &proxy).await;
        storage.close().await;
    });
}

#[test]
fn a_commit_whose_answer_is_lost_is_found_and_answered_once() {
    behind_a_proxy(async |storage, proxy| {
        let workflow = review_workflow("w");
        for cut in [Cut::InPlaceOfAnswer, Cut::BeforeCommit] {
            let cuts = proxy.cuts();
            proxy.cut(cut);
            let definition = review_workflow(&format!("w{}", cut as u8)).definition().clone();
            let id = definition.id.clone();
            let event =
                circuit_breaker::domain::WorkflowEvent::workflow_created(id, definition.created_at);
            storage.insert_workflow(definition, event).await.unwrap();
            assert_eq!(proxy.cuts(), cuts + 1, "{cut:?}");

            proxy.cut(cut);
            let created =
                storage.insert_token(new_token(&workflow, json!({ "n": 1 }))).await.unwrap();
            assert_eq!(proxy.cuts(), cuts + 2, "{cut:?}");
            proxy.cut(cut);
            let change = fired(&workflow, &created, "submit");
            let moved = storage.commit(created.revision, change.clone()).await.unwrap();
            assert_eq!(proxy.cuts(), cuts + 3, "{cut:?}");
            let read = storage.load_token(created.token.id, None).await.unwrap();
            assert_eq!(as_written(&read.unwrap()), moved, "{cut:?}");
            let moves =
                storage.token_moves(&moved.token, None, PageLimit { rows: 9, bytes: 1 << 20 });
            assert_eq!(moves.await.unwrap().items.len(), 1, "{cut:?}: one event");
            // A move of the same version is another move: it has lost.
            let late = storage.commit(created.revision, change).await;
            assert!(matches!(late, Err(StorageError::Conflict { .. })), "{late:?}");
        }
    });
}

#[test]
fn many_commits_whose_answer_is_lost_are_each_found() {
    behind_a_proxy(async |storage, proxy| {
        const MOVERS: usize = 40;
        const MOVES: usize = 12;
        let workflow = Arc::new(review_workflow("w"));
        let mut movers = tokio::task::JoinSet::new();
        for _ in 0..MOVERS {
            let (storage, workflow) = (Arc::clone(&storage), Arc::clone(&workflow));
            movers.spawn(async move {
                let mut stored =
                    storage.insert_token(new_token(&workflow, json!({}))).await.unwrap();
                for n in 0..MOVES {
                    let transition = ["submit", "reject", "edit"][n % 3];
                    let change = fired(&workflow, &stored, transition);
                    stored = storage.commit(stored.revision, change).await.unwrap();
                }
            });
        }
        let mut n = 0;
        while let Some(ended) = movers.join_next().await {
            ended.unwrap();
            n += 1;
            proxy.cut(if n % 2 == 0 { Cut::InPlaceOfAnswer } else { Cut::BeforeCommit });
        }
        let (of, limit) = (workflow_id("w"), PageLimit { rows: 5_000, bytes: 1 << 30 });
        let events = storage.list_events(Some(&of), None, limit).await.unwrap().items;
        let count = |kind| events.iter().filter(|stored| stored.event.kind == kind).count();
        assert_eq!(count(EventKind::TokenCreated), MOVERS);
        assert_eq!(count(EventKind::TokenTransitioned), MOVERS * MOVES);
    });
}

/// Asks until the store is there: while a cluster elects, it is not, for some seconds. What was
/// done by a request without an answer shows by its code.
fn answered(client: &Client, query: &str, variables: &Value) -> Value {
    let mut answer = Value::Null;
    until("it answers", || {
        answer = client.ask(query, variables).unwrap();
        answer["errors"][0]["extensions"]["code"] != "STORAGE_UNAVAILABLE"
    });
    let code = &answer["errors"][0]["extensions"]["code"];
    assert!(code.is_null() || code == "TOKEN_EXISTS" || code == "CONFLICT", "{answer}");
    answer
}

#[test]
fn a_cluster_without_a_replica_is_degraded_and_without_two_it_is_unavailable() {
    let Some(mut cluster) = Cluster::start() else { return };
    let urls = cluster.config(0).nats_urls.join(",");
    let variables =
        [("STORAGE_BACKEND", "nats"), ("NATS_URL", urls.as_str()), ("NATS_REPLICAS", "3")];
    let server = Server::start(&variables);
    let client = server.client();
    until("the cluster is whole", || status(&client) == "HEALTHY");
    answered(&client, CREATE_WORKFLOW, &json!({ "input": review_input("w") }));
    let create = json!({ "input": { "id": TOKEN, "workflowId": "w" } });
    answered(&client, crate::support::CREATE_TOKEN, &create);

    cluster.nodes[2].kill();
    let mut health = Value::Null;
    until("it notices", || {
        health = client.ask("{ health { status detail } }", &json!({})).unwrap()["data"]["health"]
            .take();
        health["status"] == "DEGRADED"
            && health["detail"].as_str().is_some_and(|text| text.contains("replica n2"))
    });
    until("it works", || client.get("/health/ready").0 == 200);
    let fire =
        json!({ "input": { "tokenId": TOKEN, "transitionId": "edit", "expectedVersion": 1 } });
    answered(&client, FIRE, &fire);

    cluster.nodes[1].kill();
    let begun = Instant::now();
    let fire = json!({ "input": { "tokenId": TOKEN, "transitionId": "edit" } });
    let answer = client.ask(FIRE, &fire).unwrap();
    assert!(begun.elapsed() < ANSWER_TIME_MAX, "{:?}", begun.elapsed());
    assert_eq!(answer["errors"][0]["extensions"]["code"], "STORAGE_UNAVAILABLE", "{answer}");
    until("it notices", || status(&client) == "UNHEALTHY");
    assert_eq!(client.get("/health/ready").0, 503);

    cluster.nodes[1].run();
    cluster.nodes[2].run();
    until("it is whole again", || status(&client) == "HEALTHY");
    let log = server.log();
    let lost = log.find("not all replicas of the stream are there").expect("the log names it");
    assert!(log[lost..].lines().next().is_some_and(|line| line.contains("replica n2")), "{log}");
    assert!(log[lost..].contains("all replicas of the stream are there again"), "{log}");
    let query = format!(
        "{{ token(id: \"{TOKEN}\") {{ version }} tokenHistory(tokenId: \"{TOKEN}\") {{ edges {{ cursor }} }} }}"
    );
    let read = answered(&client, &query, &json!({}));
    let version = read["data"]["token"]["version"].as_u64().unwrap_or_else(|| panic!("{read}"));
    let moves = read["data"]["tokenHistory"]["edges"].as_array().unwrap().len() as u64;
    assert!(version == 1 + moves && (2..=3).contains(&version), "{read}");
}

#[test]
fn replicas_without_a_cluster_are_refused() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let options = NATSStorageOptions { replicas: 3, ..NATSStorageOptions::new() };
        let error =
            NATSStorage::with_options(nats.config(), options).await.unwrap_err().to_string();
        assert!(error.contains("3 replicas were asked for"), "{error}");
        assert!(error.contains("not part of a cluster"), "{error}");
    });
}
