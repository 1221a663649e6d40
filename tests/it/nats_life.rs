//! A store that goes back in time, is emptied, made anew, or changed by an operator's hand under
//! running servers: each is noticed within one look, and nothing of another life is answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use circuit_breaker::domain::Change;
use circuit_breaker::storage::{StorageError, StorageHealth, TokenScope, WorkflowStorage};
use circuit_breaker::{
    NATSStorage, NATSStorageConfig, NATSStorageOptions, create_schema_with_storage,
};
use serde_json::{Value, json};

use crate::nats_bus::{Bus, STREAM};
use crate::nats_server::{self, Cluster, NatsServer};
use crate::support::{
    CREATE_TOKEN, CREATE_WORKFLOW, FIRE, new_token, review_input, review_workflow, runtime,
};

/// A look takes milliseconds; machines can be busy.
pub const WAIT_MAX: Duration = Duration::from_secs(20);

/// A server without its process: its store, and its schema over that.
pub struct Node {
    pub storage: Arc<NATSStorage>,
    schema: circuit_breaker::graphql::CircuitBreakerSchema,
}

impl Node {
    pub async fn start(nats: &NatsServer, options: NATSStorageOptions) -> Self {
        let storage = NATSStorage::with_options(nats.config(), options).await.unwrap();
        Self::over(Arc::new(storage))
    }

    pub fn over(storage: Arc<NATSStorage>) -> Self {
        let schema = create_schema_with_storage(Arc::clone(&storage) as Arc<dyn WorkflowStorage>);
        Self { storage, schema }
    }

    pub async fn two(nats: &NatsServer) -> [Self; 2] {
        let options = NATSStorageOptions::new();
        [Self::start(nats, options.clone()).await, Self::start(nats, options).await]
    }

    pub async fn ask(&self, query: &str, input: Value) -> Value {
        let variables = async_graphql::Variables::from_json(json!({ "input": input }));
        let request = async_graphql::Request::new(query).variables(variables);
        serde_json::to_value(self.schema.execute(request).await).unwrap()
    }

    /// The code of the answer's error, or nothing.
    pub async fn code(&self, query: &str, input: Value) -> String {
        let answer = self.ask(query, input).await;
        answer["errors"][0]["extensions"]["code"].as_str().unwrap_or_default().to_owned()
    }

    pub async fn define(&self, id: &str) {
        let answer = self.ask(CREATE_WORKFLOW, review_input(id)).await;
        assert_eq!(answer["data"]["createWorkflow"]["id"], id, "{answer}");
    }

    pub async fn create(&self, workflow: &str) -> String {
        let answer = self.ask(CREATE_TOKEN, json!({ "workflowId": workflow })).await;
        let id = answer["data"]["createToken"]["id"].as_str();
        id.unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    pub async fn fire(&self, token: &str, transition: &str) -> String {
        self.code(FIRE, json!({ "tokenId": token, "transitionId": transition })).await
    }

    /// Each token that is listed, with its version.
    pub async fn tokens(&self) -> Vec<(String, u32)> {
        let limit = circuit_breaker::storage::PageLimit { rows: 10_000, bytes: 1 << 30 };
        let all = WorkflowStorage::list_tokens(&*self.storage, &TokenScope::All, None, limit).await;
        let mut all: Vec<_> = all
            .unwrap()
            .items
            .iter()
            .map(|stored| (stored.token.id.to_string(), stored.token.version))
            .collect();
        all.sort();
        all
    }

    /// What health says, once `good` is so.
    pub async fn health(&self, what: &str, good: impl Fn(&StorageHealth) -> bool) -> String {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            let health = self.storage.health().await;
            if good(&health) {
                return match health {
                    StorageHealth::Healthy => String::new(),
                    StorageHealth::Degraded(reason) | StorageHealth::Unhealthy(reason) => reason,
                };
            }
            assert!(Instant::now() < deadline, "{what}: {health:?}");
        }
    }
}

pub fn healthy(health: &StorageHealth) -> bool {
    *health == StorageHealth::Healthy
}

pub fn unhealthy(health: &StorageHealth) -> bool {
    matches!(health, StorageHealth::Unhealthy(_))
}

async fn identity(bus: &Bus) -> Value {
    let message = bus.last("cb.store.identity").await.expect("it says what store it is");
    serde_json::from_slice(&message.payload).unwrap()
}

/// A store with a workflow and tokens, which both servers know well.
pub async fn known_store(nodes: &[Node; 2]) -> Vec<String> {
    nodes[0].define("w").await;
    let mut ids = Vec::new();
    for n in 0..20 {
        let id = nodes[n % 2].create("w").await;
        assert_eq!(nodes[n % 2].fire(&id, "submit").await, "");
        ids.push(id);
    }
    for node in nodes {
        assert_eq!(node.tokens().await.len(), 20);
    }
    ids
}

/// What was made after the backup is gone, what was before is there as it was, and it goes on.
async fn restored(nodes: &[Node; 2], bus: &Bus, ids: &[String], before: &Value) {
    // One look each, as a health probe makes it.
    for node in nodes {
        node.health("after the restore", healthy).await;
    }
    for node in nodes {
        let expected: Vec<_> = node.tokens().await;
        assert_eq!(expected.len(), ids.len());
        assert!(ids.iter().all(|id| expected.contains(&(id.clone(), 2))), "{expected:?}");
        assert_eq!(
            node.code(CREATE_TOKEN, json!({ "workflowId": "later" })).await,
            "WORKFLOW_NOT_FOUND"
        );
    }
    let now = identity(bus).await;
    assert_eq!(now["store_id"], before["store_id"], "the same store");
    assert_ne!(now["generation"], before["generation"], "in another life");
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(nodes[n % 2].fire(id, "reject").await, "");
        assert_eq!(nodes[(n + 1) % 2].fire(id, "submit").await, "");
    }
    assert!(nodes[0].tokens().await.iter().all(|(_, version)| *version == 4));
}

/// Goes on after the backup.
async fn go_on(nodes: &[Node; 2], ids: &[String]) {
    nodes[1].define("later").await;
    for n in 0..10 {
        nodes[n % 2].create("later").await;
        nodes[n % 2].create("w").await;
    }
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(nodes[n % 2].fire(id, "reject").await, "");
        assert_eq!(nodes[n % 2].fire(id, "submit").await, "");
    }
}

#[test]
fn a_stream_that_is_restored_by_the_official_way_is_another_life() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let nodes = Node::two(&nats).await;
        let ids = known_store(&nodes).await;
        let bus = Bus::connect(&nats).await;
        let before = identity(&bus).await;
        let backup = bus.snapshot().await;
        go_on(&nodes, &ids).await;
        bus.done(&format!("STREAM.DELETE.{STREAM}"), &Value::Null).await;
        bus.restore(&backup).await;
        restored(&nodes, &bus, &ids, &before).await;
        // And once more from the same backup: its generation is not the one of then either.
        let second = identity(&bus).await;
        bus.done(&format!("STREAM.DELETE.{STREAM}"), &Value::Null).await;
        bus.restore(&backup).await;
        restored(&nodes, &bus, &ids, &before).await;
        assert_ne!(identity(&bus).await["generation"], second["generation"]);
    });
}

/// Nothing that the stream says of itself tells it: as old as it was, and longer than it was.
#[test]
fn a_store_that_went_back_and_has_caught_up_is_another_life() {
    let Some(mut nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let nodes = Node::two(&nats).await;
        let ids = known_store(&nodes).await;
        let before = identity(&Bus::connect(&nats).await).await;
        nats.kill();
        let backup = nats.copy_of_files();
        nats.run();
        let bus = Bus::connect(&nats).await;
        let anchors = async || {
            let mut all = Vec::new();
            for (subject, _) in bus.subjects("cb.store.servers.*").await {
                all.push(bus.last(&subject).await.unwrap().payload);
            }
            all
        };
        let old = anchors().await;
        assert_eq!(old.len(), 2);
        for node in &nodes {
            node.health("after the start", healthy).await;
        }
        go_on(&nodes, &ids).await;
        // Each server has looked since, and has written so.
        let deadline = Instant::now() + WAIT_MAX;
        while anchors().await.iter().any(|anchor| old.contains(anchor)) {
            assert!(Instant::now() < deadline);
            for node in &nodes {
                node.health("a look", healthy).await;
            }
        }
        let last = bus.last_sequence().await;
        nats.kill();
        // Somebody else writes to it, before these servers see it.
        let mut elsewhere = NatsServer::start().unwrap();
        elsewhere.kill();
        elsewhere.put_back(&backup);
        elsewhere.run();
        let bus = Bus::connect(&elsewhere).await;
        while bus.last_sequence().await <= last + 100 {
            bus.client.publish("cb.store.filler", "".into()).await.unwrap();
        }
        elsewhere.kill();
        nats.put_back(&elsewhere.copy_of_files());
        nats.run();
        restored(&nodes, &Bus::connect(&nats).await, &ids, &before).await;
    });
}

#[test]
fn files_of_nats_server_that_are_put_back_are_another_life() {
    let Some(mut nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let nodes = Node::two(&nats).await;
        let ids = known_store(&nodes).await;
        let before = identity(&Bus::connect(&nats).await).await;
        nats.kill();
        let backup = nats.copy_of_files();
        nats.run();
        for node in &nodes {
            node.health("after the start", healthy).await;
        }
        go_on(&nodes, &ids).await;
        nats.kill();
        nats.put_back(&backup);
        nats.run();
        let bus = Bus::connect(&nats).await;
        restored(&nodes, &bus, &ids, &before).await;
    });
}

/// What was only read a kill can take back, but nothing that was acknowledged.
#[test]
fn load_and_kills_of_nats_server_are_no_other_life() {
    let Some(mut nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let nodes = Node::two(&nats).await.map(Arc::new);
        nodes[0].define("w").await;
        let before = identity(&Bus::connect(&nats).await).await;
        let mut movers = tokio::task::JoinSet::new();
        for n in 0..32 {
            let node = Arc::clone(&nodes[n % 2]);
            movers.spawn(async move {
                let id = node.create("w").await;
                loop {
                    // Those of the moments without nats-server fail.
                    node.fire(&id, "edit").await;
                }
            });
        }
        for round in 0..5 {
            let until = Instant::now() + Duration::from_millis(400);
            while Instant::now() < until {
                for node in &nodes {
                    node.health("under load", healthy).await;
                }
            }
            if round % 2 == 1 {
                nats.kill();
                nats.run();
            }
            let now = identity(&Bus::connect(&nats).await).await;
            assert_eq!(now, before, "round {round}");
        }
        movers.shutdown().await;
    });
}

/// 2.14.4 tells another time of creation after the second restart, if the stream was changed between
/// the two.
#[test]
fn restarts_and_a_change_of_the_stream_are_no_other_life() {
    for binary in [nats_server::binary(), nats_server::oldest_binary()].into_iter().flatten() {
        let mut nats = NatsServer::with(binary, &["-js"]);
        runtime().block_on(async {
            let nodes = Node::two(&nats).await;
            let bus = Bus::connect(&nats).await;
            let ids = known_store(&nodes).await;
            let before = identity(&bus).await;
            nats.kill();
            nats.run();
            for node in &nodes {
                node.health("after the restart", healthy).await;
            }
            let mut config = bus.stream().await["config"].take();
            config["description"] = json!("changed");
            bus.done(&format!("STREAM.UPDATE.{STREAM}"), &config).await;
            nats.kill();
            nats.run();
            for node in &nodes {
                node.health("after the second one", healthy).await;
            }
            assert_eq!(identity(&bus).await, before, "the same life");
            go_on(&nodes, &ids).await;
        });
    }
}

#[test]
fn a_stream_that_is_purged_is_another_life() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let nodes = Node::two(&nats).await;
        let ids = known_store(&nodes).await;
        let bus = Bus::connect(&nats).await;
        let before = identity(&bus).await;
        bus.done(&format!("STREAM.PURGE.{STREAM}"), &Value::Null).await;
        for node in &nodes {
            node.health("after the purge", healthy).await;
        }
        for node in &nodes {
            assert_eq!(node.tokens().await, []);
            assert_eq!(
                node.code(CREATE_TOKEN, json!({ "workflowId": "w" })).await,
                "WORKFLOW_NOT_FOUND"
            );
            assert_eq!(node.fire(&ids[0], "reject").await, "TOKEN_NOT_FOUND");
        }
        assert_ne!(identity(&bus).await, before);
        known_store(&nodes).await;
    });
}

/// With replicas a purge can come between the check of a batch and its place in the stream: then all is
/// gone but what that batch holds, the server's new record with it.
#[test]
fn a_purge_that_a_batch_has_slipped_through_is_noticed_with_the_next_batch() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let options = NATSStorageOptions {
            health_check_interval: Duration::from_secs(60),
            ..NATSStorageOptions::new()
        };
        let node = Node::start(&nats, options).await;
        node.define("w").await;
        node.create("w").await;
        let bus = Bus::connect(&nats).await;
        for gone in ["cb.workflows.>", "cb.tokens.>", "cb.store.identity", "cb.store.hashes.>"] {
            bus.done(&format!("STREAM.PURGE.{STREAM}"), &json!({ "filter": gone })).await;
        }
        let witnesses = bus.subjects("cb.store.servers.*.witness").await;
        assert_eq!(witnesses.len(), 1);
        bus.done(&format!("STREAM.PURGE.{STREAM}"), &json!({ "filter": witnesses[0].0 })).await;
        assert_eq!(bus.subjects("cb.store.servers.*").await.len(), 1);
        let answer = node.ask(CREATE_TOKEN, json!({ "workflowId": "w" })).await;
        let code = answer["errors"][0]["extensions"]["code"].as_str();
        assert_eq!(code, Some("STORAGE_UNAVAILABLE"), "{answer}");
        node.define("w").await;
        node.create("w").await;
    });
}

/// Without its witness a server's batches are refused, so one that somebody removes must come again.
#[test]
fn a_witness_that_alone_is_removed_stops_no_writes() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let nodes = Node::two(&nats).await;
        let ids = known_store(&nodes).await;
        let bus = Bus::connect(&nats).await;
        let before = identity(&bus).await;
        let gone = json!({ "filter": "cb.store.servers.*.witness" });
        bus.done(&format!("STREAM.PURGE.{STREAM}"), &gone).await;
        for (n, id) in ids.iter().enumerate() {
            assert_eq!(nodes[n % 2].fire(id, "reject").await, "");
        }
        assert_eq!(bus.subjects("cb.store.servers.*.witness").await.len(), 2);
        assert_eq!(identity(&bus).await, before, "it is the same life");
    });
}

/// An id is free again once its token has aged; a server may remember the one that had it, and decide a
/// move on that. Where a refusal alone proves nothing, it must find out that the token is gone.
async fn move_what_has_aged(open: impl AsyncFn() -> NATSStorage) {
    let (one, other) = (Node::over(Arc::new(open().await)), Node::over(Arc::new(open().await)));
    for workflow in ["w", "elsewhere"] {
        one.define(workflow).await;
    }
    // Whose the id is by then, who completes the token that had it, and what becomes of the move.
    let cases = [
        (Some("w"), &one, ""),
        (Some("w"), &other, ""),
        (Some("elsewhere"), &one, ""),
        (Some("elsewhere"), &other, ""),
        (None, &one, "TOKEN_NOT_FOUND"),
        (None, &other, "TOKEN_NOT_FOUND"),
    ];
    let id = |n: usize| format!("7b1c3a52-0d0e-4c8f-9a37-2f6f3f1f0a{n:02}");
    let token = |n, workflow| json!({ "workflowId": workflow, "id": id(n) });
    for (n, (_, mover, _)) in cases.iter().enumerate() {
        assert_eq!(one.code(CREATE_TOKEN, token(n, "w")).await, "");
        for transition in ["submit", "finish"] {
            assert_eq!(mover.fire(&id(n), transition).await, "");
        }
    }
    let deadline = Instant::now() + WAIT_MAX;
    for (n, (workflow, ..)) in cases.iter().enumerate() {
        let is_gone = async || match workflow {
            Some(workflow) => other.code(CREATE_TOKEN, token(n, workflow)).await.is_empty(),
            None => !other.tokens().await.iter().any(|(there, _)| *there == id(n)),
        };
        while !is_gone().await {
            assert!(Instant::now() < deadline, "it ages");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    for (n, (workflow, _, code)) in cases.iter().enumerate() {
        assert_eq!(one.fire(&id(n), "submit").await, *code, "{n}: {workflow:?}");
    }
}

const AGE: Duration = Duration::from_secs(3);

#[test]
fn a_move_of_an_id_whose_token_has_aged_is_made_where_it_is_another_tokens() {
    let Some(nats) = NatsServer::start() else { return };
    let config = NATSStorageConfig { default_max_age: AGE, ..nats.config() };
    let open = async || NATSStorage::new(config.clone()).await.unwrap();
    runtime().block_on(move_what_has_aged(open));
}

#[test]
fn a_move_of_an_id_whose_token_has_aged_is_made_in_a_cluster_too() {
    let Some(cluster) = Cluster::start() else { return };
    let config = NATSStorageConfig { default_max_age: AGE, ..cluster.config(0) };
    let options = NATSStorageOptions { replicas: 3, ..NATSStorageOptions::new() };
    let open = async || NATSStorage::with_options(config.clone(), options.clone()).await.unwrap();
    runtime().block_on(move_what_has_aged(open));
}

#[test]
fn a_workflow_that_was_answered_is_in_the_next_list() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let [one, other] = Node::two(&nats).await;
        let limit = circuit_breaker::storage::PageLimit { rows: 100, bytes: 1 << 30 };
        let listed = async || {
            let page = WorkflowStorage::list_workflows(&*other.storage, None, limit).await.unwrap();
            page.items.iter().map(|workflow| workflow.id.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(listed().await, [""; 0]);
        one.define("read").await;
        let read = other.storage.load_workflow(&"read".parse().unwrap()).await.unwrap();
        assert!(read.is_some());
        assert_eq!(listed().await, ["read"]);
        one.define("there").await;
        other.define("there").await;
        assert_eq!(listed().await, ["read", "there"]);
    });
}

#[test]
fn a_stream_that_is_deleted_is_not_made_anew_unless_that_is_asked_for() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let mut nodes = Node::two(&nats).await;
        let ids = known_store(&nodes).await;
        let bus = Bus::connect(&nats).await;
        bus.done(&format!("STREAM.DELETE.{STREAM}"), &Value::Null).await;
        for node in &nodes {
            let said = node.health("deleted", unhealthy).await;
            for part in ["is gone", "nats stream restore", "NATS_RECREATE_STREAM"] {
                assert!(said.contains(part), "{said}");
            }
            // Told at once, and by name; by reads, too.
            let begun = Instant::now();
            let unread = node.storage.load_token(ids[0].parse().unwrap(), None).await.unwrap_err();
            assert!(unread.to_string().contains("nats stream restore"), "{unread}");
            let answer = node.ask(CREATE_TOKEN, json!({ "workflowId": "w" })).await;
            let error = &answer["errors"][0];
            assert_eq!(error["extensions"]["code"], "STORAGE_UNAVAILABLE", "{answer}");
            assert_eq!(error["extensions"]["details"]["outcome"], "NOT_DONE", "{answer}");
            assert!(error["message"].as_str().unwrap().contains("is gone"), "{answer}");
            assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
            assert_eq!(node.fire(&ids[0], "reject").await, "STORAGE_UNAVAILABLE");
        }
        let names = bus.done("STREAM.NAMES", &json!({})).await;
        assert!(names["streams"].is_null(), "{names}");

        // One that may make it anew does, and the others go on with it.
        let recreate = NATSStorageOptions { recreate_stream: true, ..NATSStorageOptions::new() };
        nodes[0] = Node::start(&nats, recreate).await;
        nodes[1].health("there again", healthy).await;
        known_store(&nodes).await;
        bus.done(&format!("STREAM.DELETE.{STREAM}"), &Value::Null).await;
        for node in &nodes {
            node.health("made anew by the one that may", healthy).await;
        }
        for node in &nodes {
            assert_eq!(node.tokens().await, []);
            assert_eq!(
                node.code(CREATE_TOKEN, json!({ "workflowId": "w" })).await,
                "WORKFLOW_NOT_FOUND"
            );
        }
        known_store(&nodes).await;
    });
}

/// Nobody has to wait for a look: each batch expects what this server has written last.
#[test]
fn a_write_that_was_decided_on_another_life_is_refused() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let node = Node::start(&nats, NATSStorageOptions::new()).await;
        let bus = Bus::connect(&nats).await;
        node.define("w").await;
        let backup = bus.snapshot().await;
        for _ in 0..50 {
            node.create("w").await;
        }
        let known = node.create("w").await;
        let before = identity(&bus).await;
        bus.done(&format!("STREAM.DELETE.{STREAM}"), &Value::Null).await;
        bus.restore(&backup).await;
        // The first write is refused, as it was decided on another store; and then nothing is as it was.
        let refused = node.ask(CREATE_TOKEN, json!({ "workflowId": "w" })).await;
        let error = &refused["errors"][0];
        assert!(error["message"].as_str().unwrap().contains("went back in time"), "{refused}");
        assert_eq!(error["extensions"]["details"]["outcome"], "NOT_DONE", "{refused}");
        let created = node.create("w").await;
        let deadline = Instant::now() + WAIT_MAX;
        while identity(&bus).await["generation"] == before["generation"] {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(node.tokens().await, [(created, 1)]);
        assert_eq!(node.fire(&known, "submit").await, "TOKEN_NOT_FOUND");

        // One that was decided before that was noticed, and is handed over only now.
        let workflow = review_workflow("w");
        let life = Some(node.storage.life());
        bus.done(&format!("STREAM.PURGE.{STREAM}"), &Value::Null).await;
        node.health("after the purge", healthy).await;
        let late = Change { life, ..new_token(&workflow, json!({})) };
        let refused = node.storage.insert_token(late).await.unwrap_err();
        assert!(matches!(refused, StorageError::Unavailable { .. }), "{refused}");
        assert_eq!(node.tokens().await, []);
    });
}
