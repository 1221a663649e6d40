//! kill -9 of the server and of nats-servers under load: nothing acknowledged is lost, nothing
//! happens twice or by half, and no request waits long.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use circuit_breaker::NATSStorage;
use circuit_breaker::storage::WorkflowStorage;
use serde_json::{Value, json};

use crate::crash::{Known, compare};
use crate::nats_server::{Cluster, NatsServer};
use crate::support::{CREATE_WORKFLOW, Client, Server, review_input, runtime};

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

fn create_workflow(server: &Server) {
    let created =
        server.client().ask(CREATE_WORKFLOW, &json!({ "input": review_input("w") })).unwrap();
    assert_eq!(created["data"]["createWorkflow"]["id"], "w", "{created}");
}

fn check(storage: NATSStorage, known: &Mutex<HashMap<String, Known>>, round: usize) {
    let known = &mut *known.lock().unwrap();
    let unknown = known.values().filter(|known| known.outstanding).count();
    // A killed server leaves each client without an answer; else an unknown outcome is an exception.
    let unknown_max = CLIENTS + known.len() / 2;
    assert!(unknown <= unknown_max, "of {} tokens {unknown} have an unknown outcome", known.len());
    runtime().block_on(async {
        compare(&storage, known, round).await;
        storage.close().await;
    });
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
        check(runtime_open(&nats), &known, round);
    }
    assert!(known.lock().unwrap().len() > 40);
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
    check(runtime_open(&nats), &known, 0);
    assert!(known.lock().unwrap().len() > 20);
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
    check(on_a_runtime_of_its_own(cluster.open(0)), &known, 0);
    assert!(known.lock().unwrap().len() > 20);
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
