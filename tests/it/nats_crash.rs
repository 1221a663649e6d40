//! kill -9 of the server and of nats-servers under load: nothing acknowledged is lost, nothing
//! happens twice or by half, and no request waits long.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use circuit_breaker::NATSStorage;
use circuit_breaker::storage::{PageLimit, StorageError, TokenScope, WorkflowStorage};
use serde_json::{Value, json};

use crate::crash::{Known, compare};
use crate::nats_bus::Bus;
use crate::nats_races::create_workflow;
use crate::nats_server::{Cluster, NatsServer};
use crate::support::{
    Client, Server, as_written, fired, new_token, review_workflow, runtime, workflow_id,
};

const CLIENTS: usize = 8;

/// What a request may take at most, whatever happens.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(20);

/// Clients that move tokens until they are told to stop, or their server is gone.
struct Load {
    known: Arc<Mutex<HashMap<String, Known>>>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(known: &Arc<Mutex<HashMap<String, Known>>>, servers: &[&Server]) -> Self {
        let (stop, acknowledged) = (Arc::default(), Arc::default());
        let clients = (0..CLIENTS).map(|n| {
            let work = Work {
                client: servers[n % servers.len()].client(),
                other: servers[(n + 1) % servers.len()].client(),
                known: Arc::clone(known),
                stop: Arc::clone(&stop),
                acknowledged: Arc::clone(&acknowledged),
            };
            std::thread::spawn(move || work.run())
        });
        let clients = clients.collect();
        Self { known: Arc::clone(known), stop, acknowledged, clients }
    }

    /// Waits until so many more changes were acknowledged.
    fn wait_for(&self, more: usize) {
        let target = self.acknowledged.load(Ordering::Acquire) + more;
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.acknowledged.load(Ordering::Acquire) < target {
            assert!(Instant::now() < deadline, "work does not go on");
            assert!(!self.clients.iter().all(JoinHandle::is_finished), "the clients gave up");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn end(self) -> Arc<Mutex<HashMap<String, Known>>> {
        self.stop.store(true, Ordering::Release);
        for client in self.clients {
            client.join().unwrap();
        }
        self.known
    }
}

struct Work {
    client: Client,
    /// Another server, if there are two.
    other: Client,
    known: Arc<Mutex<HashMap<String, Known>>>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
}

/// How a request ended.
enum Outcome {
    Done,
    NotDone,
    Unknown,
    Gone,
}

impl Work {
    fn run(self) {
        while !self.stop.load(Ordering::Acquire) {
            if !self.one_token() {
                return;
            }
        }
    }

    /// Creates a token and moves it to its end. False once the server is gone.
    fn one_token(&self) -> bool {
        let create = "mutation($i: CreateWorkflowInstanceInput!) { createWorkflowInstance(input: $i) { id version } }";
        let fire = "mutation($i: TransitionFireInput!) { fireTransition(input: $i) { version } }";
        // The client chooses the id, so that a creation without an answer can be looked for.
        let id = uuid::Uuid::from_u128(fastrand::u128(..)).to_string();
        let input = json!({ "i": { "id": id, "workflowId": "w", "initialData": { "n": 1 } } });
        for (version, transition) in
            (1..).zip(["create", "submit", "reject", "edit", "submit", "finish"])
        {
            self.note(&id, version - 1, true);
            let outcome = if transition == "create" {
                self.ask(create, &input)
            } else {
                let input = json!({ "i": { "tokenId": id, "transitionId": transition, "data": { "step": version }, "expectedVersion": version - 1 } });
                self.ask(fire, &input)
            };
            match outcome {
                Outcome::Done => {
                    self.note(&id, version, false);
                    self.read_back(&id, version);
                    self.acknowledged.fetch_add(1, Ordering::Release);
                }
                Outcome::NotDone => {
                    self.note(&id, version - 1, false);
                    return true;
                }
                // It stays as it is; the end shows whether it was done.
                Outcome::Unknown => return true,
                Outcome::Gone => return false,
            }
        }
        true
    }

    /// What was acknowledged shows at once, on another server, too; or the store is not there.
    fn read_back(&self, id: &str, version: u64) {
        let query = "query($id: String!) { token(id: $id) { version } }";
        let Ok(read) = self.other.ask(query, &json!({ "id": id })) else { return };
        match read["errors"].get(0) {
            Some(error) => assert_eq!(error["extensions"]["code"], "STORAGE_UNAVAILABLE", "{read}"),
            None => assert_eq!(read["data"]["token"]["version"], version, "{read}"),
        }
    }

    fn note(&self, id: &str, version: u64, outstanding: bool) {
        self.known.lock().unwrap().insert(id.to_owned(), Known { version, outstanding });
    }

    fn ask(&self, query: &str, input: &Value) -> Outcome {
        let begun = Instant::now();
        let Ok(answer) = self.client.ask(query, input) else { return Outcome::Gone };
        let took = begun.elapsed();
        assert!(took < REQUEST_TIME_MAX, "{took:?} for {answer}");
        let Some(error) = answer["errors"].get(0) else { return Outcome::Done };
        let extensions = &error["extensions"];
        assert_eq!(extensions["code"], "STORAGE_UNAVAILABLE", "{answer}");
        assert_eq!(extensions["retryable"], true, "{answer}");
        match extensions["details"]["outcome"].as_str() {
            Some("NOT_DONE") => Outcome::NotDone,
            Some("UNKNOWN") => Outcome::Unknown,
            other => panic!("{other:?}: {answer}"),
        }
    }
}

fn check(storage: NATSStorage, bus: &Bus, known: &Mutex<HashMap<String, Known>>, round: usize) {
    let known = &mut *known.lock().unwrap();
    let unknown = known.values().filter(|known| known.outstanding).count();
    // A killed server leaves each client without an answer; else an unknown outcome is an exception.
    let unknown_max = CLIENTS + known.len() / 2;
    assert!(unknown <= unknown_max, "of {} tokens {unknown} have an unknown outcome", known.len());
    runtime().block_on(async {
        compare(&storage, known, round).await;
        bus.until_each_token_is_there_once().await;
        storage.close().await;
    });
}

/// A plain client of its own runtime.
fn bus(nats: &NatsServer) -> Bus {
    on_a_runtime_of_its_own(Bus::connect(nats))
}

/// What nats-server does to a place when it was killed twice: a state that a token has left is there
/// again, older than the newest one.
#[test]
fn what_a_crash_of_nats_server_brought_back_is_removed() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let storage = nats.open().await;
        let workflow = review_workflow("w");
        let draft = storage.insert_token(new_token(&workflow, json!({ "n": 1 }))).await.unwrap();
        let bystander = storage.insert_token(new_token(&workflow, json!({}))).await.unwrap();
        let bus = Bus::connect(&nats).await;
        let id = draft.token.id;
        let at = |place: &str| format!("cb.workflows.w.places.{place}.tokens.{id}");
        let old = bus.last(&at("draft")).await.unwrap().payload;
        let moved =
            storage.commit(draft.revision, fired(&workflow, &draft, "submit")).await.unwrap();
        let new = bus.last(&at("review")).await.unwrap().payload;
        storage.close().await;
        bus.until_each_token_is_there_once().await;
        // Its old state twice, then its newest one, as nobody but the engine would write them.
        for (place, payload) in [("draft", &old), ("review", &old), ("review", &new)] {
            let sent = bus.client.request(at(place), payload.clone()).await.unwrap();
            assert!(!String::from_utf8_lossy(&sent.payload).contains("error"));
        }
        assert_eq!(bus.subjects("cb.workflows.w.places.*.tokens.*").await.len(), 3);

        let storage = nats.open().await;
        let place = |place: &str| TokenScope::Place(workflow_id("w"), place.parse().unwrap());
        let limit = PageLimit { rows: 10, bytes: 1 << 20 };
        let drafts =
            WorkflowStorage::list_tokens(&storage, &place("draft"), None, limit).await.unwrap();
        let ids: Vec<_> = drafts.items.iter().map(|stored| stored.token.id).collect();
        assert_eq!(ids, [bystander.token.id]);
        bus.until_each_token_is_there_once().await;
        let found = storage.load_token(id, None).await.unwrap().unwrap();
        assert_eq!((&found.token.place, found.token.version), (&moved.token.place, 2));
        storage.close().await;
    });
}

/// Files of nats-server as large as those that it compacts, and killed again and again.
#[test]
fn kill_after_kill_a_place_holds_its_tokens_alone() {
    const TOKENS: usize = 60;
    let Some(mut nats) = NatsServer::start() else { return };
    let workflow = Arc::new(review_workflow("w"));
    runtime().block_on(async {
        let storage = Arc::new(nats.open().await);
        let bus = Bus::connect(&nats).await;
        let mut tokens = Vec::new();
        for _ in 0..TOKENS {
            let data = json!({ "text": "x".repeat(20_000) });
            tokens.push(storage.insert_token(new_token(&workflow, data)).await.unwrap());
        }
        for round in 0..4 {
            let mut movers = tokio::task::JoinSet::new();
            for mut stored in tokens {
                let (storage, workflow) = (Arc::clone(&storage), Arc::clone(&workflow));
                movers.spawn(async move {
                    for transition in ["submit", "reject", "edit", "submit", "reject", "edit"] {
                        let change = fired(&workflow, &stored, transition);
                        stored = storage.commit(stored.revision, change).await.unwrap();
                    }
                    stored
                });
            }
            tokens = movers.join_all().await;
            nats.kill();
            nats.run();
            // A list waits for the walk that removes what came back.
            let limit = PageLimit { rows: 1_000, bytes: 1 << 30 };
            let listed = until_answered(|| {
                WorkflowStorage::list_tokens(&*storage, &TokenScope::All, None, limit)
            });
            assert_eq!(listed.await.items.len(), TOKENS, "round {round}");
            bus.until_each_token_is_there_once().await;
            for stored in &tokens {
                let found = storage.load_token(stored.token.id, None).await.unwrap().unwrap();
                assert_eq!(as_written(&found), *stored, "round {round}");
            }
        }
        storage.close().await;
    });
}

/// Asks until nats-server is back.
async fn until_answered<T, F: Future<Output = Result<T, StorageError>>>(ask: impl Fn() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

/// Not a wait for something, but the moment of the kill: another one each time.
fn some_moment() {
    std::thread::sleep(Duration::from_millis(fastrand::u64(20..200)));
}

#[test]
fn what_a_killed_server_acknowledged_is_there() {
    let Some(nats) = NatsServer::start() else { return };
    let known = Arc::default();
    for round in 0..4 {
        let url = nats.url();
        let server = Server::start(&[("STORAGE_BACKEND", "nats"), ("NATS_URL", &url)]);
        create_workflow(&server);
        let load = Load::start(&known, &[&server]);
        load.wait_for(20);
        some_moment();
        server.kill();
        load.end();
        check(runtime_open(&nats), &bus(&nats), &known, round);
    }
    assert!(known.lock().unwrap().len() >= CLIENTS);
}

/// A store for one check; its runtime lives as long as the process.
fn runtime_open(nats: &NatsServer) -> NATSStorage {
    on_a_runtime_of_its_own(nats.open())
}

fn on_a_runtime_of_its_own<T>(open: impl Future<Output = T>) -> T {
    let runtime = Box::leak(Box::new(runtime()));
    runtime.block_on(open)
}

#[test]
fn what_was_acknowledged_survives_kill_9_of_nats_server() {
    let Some(mut nats) = NatsServer::start() else { return };
    let url = nats.url();
    let variables = [("STORAGE_BACKEND", "nats"), ("NATS_URL", url.as_str())];
    let servers = [Server::start(&variables), Server::start(&variables)];
    create_workflow(&servers[0]);
    let known = Arc::default();
    let load = Load::start(&known, &[&servers[0], &servers[1]]);
    for _ in 0..5 {
        load.wait_for(20);
        some_moment();
        nats.kill();
        some_moment();
        nats.run();
    }
    load.wait_for(20);
    load.end();
    check(runtime_open(&nats), &bus(&nats), &known, 0);
    assert!(known.lock().unwrap().len() >= CLIENTS);
}

#[test]
fn what_was_acknowledged_survives_the_loss_of_each_node_of_three() {
    let Some(mut cluster) = Cluster::start() else { return };
    let opened = on_a_runtime_of_its_own(cluster.open(0));
    runtime().block_on(opened.close());
    let urls = [0, 1].map(|first| cluster.config(first).nats_urls.join(","));
    let servers = urls.map(|url| {
        Server::start(&[("STORAGE_BACKEND", "nats"), ("NATS_URL", &url), ("NATS_REPLICAS", "3")])
    });
    create_workflow(&servers[0]);
    let known = Arc::default();
    let load = Load::start(&known, &[&servers[0], &servers[1]]);
    for node in 0..3 {
        load.wait_for(20);
        some_moment();
        cluster.nodes[node].kill();
        // Two of three go on.
        load.wait_for(20);
        cluster.nodes[node].run();
        wait_until_healthy(&servers[node % 2]);
    }
    load.wait_for(20);
    load.end();
    let storage = on_a_runtime_of_its_own(cluster.open(0));
    check(storage, &bus(&cluster.nodes[0]), &known, 0);
    assert!(known.lock().unwrap().len() >= CLIENTS);
}

/// Until every replica is there and has caught up: only then another one may be lost.
fn wait_until_healthy(server: &Server) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let health = server.client().ask("{ health { status detail } }", &json!({})).unwrap();
        if health["data"]["health"]["status"] == "HEALTHY" {
            return;
        }
        assert!(Instant::now() < deadline, "{health}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
