//! kill -9 of the server and of nats-servers under load: nothing acknowledged is lost, nothing
//! happens twice or by half, and no request waits long.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use circuit_breaker::storage::{PageLimit, StorageError, StoredToken, TokenScope, WorkflowStorage};
use circuit_breaker::{NATSStorage, NATSStorageConfig};
use serde_json::{Value, json};

use crate::crash::{Known, compare, compare_but_for_late, until_all_is_told};
use crate::nats_bus::{Bus, STREAM};
use crate::nats_races::create_workflow;
use crate::nats_server::{self, Cluster, NatsServer};
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

/// One replica in a cluster, on another node than the one that the server is connected to: the
/// connection does not break when that is killed.
#[test]
fn a_restart_of_the_node_that_holds_the_stream_is_noticed_from_another_node() {
    let Some(mut cluster) = Cluster::start() else { return };
    runtime().block_on(async {
        let first = NATSStorage::new(cluster.config(0)).await.unwrap();
        let workflow = review_workflow("w");
        let draft = first.insert_token(new_token(&workflow, json!({}))).await.unwrap();
        let bus = Bus::connect(&cluster.nodes[0]).await;
        let leader = bus.stream().await["cluster"]["leader"].as_str().unwrap().to_owned();
        let leader = usize::from(leader.as_bytes()[1] - b'0');
        let other = (leader + 1) % 3;
        let config = NATSStorageConfig {
            nats_urls: vec![cluster.nodes[other].url()],
            ..cluster.config(other)
        };
        let storage = NATSStorage::new(config).await.unwrap();
        let bus = Bus::connect(&cluster.nodes[other]).await;
        let id = draft.token.id;
        let at = |place: &str| format!("cb.workflows.w.places.{place}.tokens.{id}");
        let old = bus.last(&at("draft")).await.unwrap().payload;
        first.commit(draft.revision, fired(&workflow, &draft, "submit")).await.unwrap();
        let new = bus.last(&at("review")).await.unwrap().payload;
        bus.until_each_token_is_there_once().await;
        first.close().await;
        for (place, payload) in [("draft", &old), ("review", &old), ("review", &new)] {
            let sent = bus.client.request(at(place), payload.clone()).await.unwrap();
            assert!(!String::from_utf8_lossy(&sent.payload).contains("error"));
        }
        assert_eq!(bus.subjects("cb.workflows.w.places.*.tokens.*").await.len(), 2);
        cluster.nodes[leader].kill();
        cluster.nodes[leader].run();
        // Who asks in the meantime is not our server.
        let last = json!({ "last_by_subj": at("review") }).to_string();
        let subject = format!("$JS.API.DIRECT.GET.{STREAM}");
        let asked = until_answered(|| async {
            let asked = bus.client.request(subject.clone(), last.clone().into()).await;
            asked.map_err(|error| StorageError::Unavailable { reason: error.to_string() })
        });
        assert_eq!(asked.await.payload, new);
        bus.until_each_token_is_there_once().await;
        let found = until_answered(|| storage.load_token(id, None)).await.unwrap();
        assert_eq!((found.token.place.as_str(), found.token.version), ("review", 2));
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
pub async fn until_answered<T, F: Future<Output = Result<T, StorageError>>>(
    ask: impl Fn() -> F,
) -> T {
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

/// Kills of nats-server while it applies large batches, `CB_KILLS` of them (4 if it is not set). In
/// every second round the sender dies with it.
#[test]
fn a_kill_while_batches_are_applied_loses_nothing() {
    let kills = std::env::var("CB_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    for binary in [nats_server::binary(), nats_server::oldest_binary()].into_iter().flatten() {
        let nats = NatsServer::with(binary, &["-js"]);
        runtime().block_on(killed_while_applying(nats, kills));
    }
}

/// Kills a nats-server while it writes a batch into the files of the stream, once they have grown by
/// some part of it. It has a thread of its own, so that it does not wait for those who send.
fn killer(nats: &NatsServer, bytes: u64) -> JoinHandle<()> {
    let (pid, folder) = (nats.pid().to_string(), nats.stream_folder());
    let size = move || -> u64 {
        let files = std::fs::read_dir(&folder).unwrap();
        files.filter_map(|file| file.ok()?.metadata().ok()).map(|file| file.len()).sum()
    };
    // It goes on for a moment until it dies.
    let until = size() + fastrand::u64(bytes / 50..bytes / 3);
    let deadline = Instant::now() + Duration::from_secs(10);
    // A shell that waits for a line is quicker than one that must be started.
    let mut shell = std::process::Command::new("sh")
        .args(["-c", &format!("read line; kill -9 {pid}")])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::spawn(move || {
        while size() < until && Instant::now() < deadline {
            std::hint::spin_loop();
        }
        shell.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert!(shell.wait().unwrap().success());
    })
}

#[allow(clippy::too_many_lines, clippy::print_stderr)]
async fn killed_while_applying(mut nats: NatsServer, kills: usize) {
    // A batch takes 4 MiB, and nats-server some ten milliseconds for it.
    const TOKENS: usize = 400;
    const BYTES: usize = 8_000;
    let workflow = Arc::new(review_workflow("w"));
    let mut storage = Arc::new(nats.open().await);
    let mut known = HashMap::new();
    let mut creations = tokio::task::JoinSet::new();
    for _ in 0..TOKENS {
        let (storage, change) =
            (Arc::clone(&storage), new_token(&workflow, json!({ "text": "x".repeat(BYTES) })));
        creations.spawn(async move { storage.insert_token(change).await.unwrap().token.id });
    }
    for id in creations.join_all().await {
        known.insert(id.to_string(), Known { version: 1, outstanding: false });
    }
    let (mut told, mut unknown, mut torn) = (0, 0, 0);
    for round in 0..kills {
        let (mut moves, mut decided) = (tokio::task::JoinSet::new(), Vec::new());
        for id in known.keys() {
            let id: uuid::Uuid = id.parse().unwrap();
            let stored = until_answered(|| storage.load_token(id, None)).await.unwrap();
            let transition = match stored.token.place.as_str() {
                "draft" => ["submit", "edit"][fastrand::usize(..2)],
                _ => "reject",
            };
            decided.push((id, stored.revision, fired(&workflow, &stored, transition)));
        }
        let killer = killer(&nats, (TOKENS * BYTES) as u64);
        for (id, revision, change) in decided {
            let storage = Arc::clone(&storage);
            moves.spawn(async move { (id, storage.commit(revision, change).await) });
        }
        tokio::task::spawn_blocking(move || killer.join().unwrap()).await.unwrap();
        nats.kill();
        let sender_dies = round % 2 == 1;
        let mut outcomes = Vec::new();
        if sender_dies {
            while let Some(finished) = moves.try_join_next() {
                outcomes.push(finished.unwrap());
            }
            // Of the others nobody knows any more whether they were done.
            moves.shutdown().await;
            known.values_mut().for_each(|known| known.outstanding = true);
            drop(storage);
            nats.run();
            torn += usize::from(Bus::connect(&nats).await.ends_torn().await);
            storage = Arc::new(nats.open().await);
        } else {
            nats.run();
            outcomes = moves.join_all().await;
        }
        for (id, outcome) in outcomes {
            let known = known.get_mut(&id.to_string()).unwrap();
            known.outstanding = false;
            match outcome {
                Ok(stored) => {
                    assert_eq!(u64::from(stored.token.version), known.version + 1);
                    known.version += 1;
                    told += 1;
                }
                Err(StorageError::Unavailable { .. }) => {}
                Err(StorageError::OutcomeUnknown { .. }) => {
                    known.outstanding = true;
                    unknown += 1;
                }
                Err(error) => panic!("round {round}: {error}"),
            }
        }
        until_answered(|| {
            let limit = PageLimit { rows: 1, bytes: 1 << 20 };
            WorkflowStorage::list_tokens(&*storage, &TokenScope::All, None, limit)
        })
        .await;
        compare(&*storage, &mut known, round).await;
        Bus::connect(&nats).await.until_each_token_is_there_once().await;
    }
    assert!(told > TOKENS, "{told} moves of killed rounds were acknowledged");
    assert!(unknown < told, "{unknown} outcomes unknown, {told} told");
    eprintln!(
        "{kills} kills: {told} acknowledged, {unknown} unknown, {torn} of {} torn batches seen",
        kills / 2
    );
    storage.close().await;
}

pub fn next_of(stored: &StoredToken) -> &'static str {
    if stored.token.place.as_str() == "draft" { "submit" } else { "reject" }
}

/// How many torn changes a store has mended.
pub async fn mended(storage: &NATSStorage) -> f64 {
    let figures = storage.figures().await;
    figures.iter().find(|figure| figure.name == "nats_torn_changes_mended_total").unwrap().value
}

/// Another stream takes what is left of nats-server's storage, so that a limit is reached in the
/// middle of a batch, `CB_LIMITS` times (4 if it is not set): no connection breaks, and nobody but the
/// sender knows. Another server goes on from what is there.
#[test]
fn a_limit_that_is_reached_within_a_batch_loses_nothing() {
    let config = format!("jetstream {{ max_file_store: {STORE_BYTES_MAX} }}");
    let Some((nats, _folder)) = nats_server::configured(&config) else { return };
    runtime().block_on(limited_within_batches(nats));
}

const STORE_BYTES_MAX: usize = 48 << 20;

#[allow(clippy::print_stderr, clippy::too_many_lines)]
async fn limited_within_batches(nats: NatsServer) {
    const TOKENS: usize = 150;
    let limits = std::env::var("CB_LIMITS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let workflow = Arc::new(review_workflow("w"));
    let config =
        circuit_breaker::NATSStorageConfig { default_max_bytes: 24 << 20, ..nats.config() };
    let storage = Arc::new(NATSStorage::new(config.clone()).await.unwrap());
    let other = Arc::new(NATSStorage::new(config).await.unwrap());
    let bus = Bus::connect(&nats).await;
    bus.done(
        "STREAM.CREATE.OTHER",
        &json!({ "name": "OTHER", "subjects": ["other"], "storage": "file", "retention": "limits" }),
    )
    .await;
    let mut known = HashMap::new();
    for _ in 0..TOKENS {
        let change = new_token(&workflow, json!({ "text": "x".repeat(8_000) }));
        let id = storage.insert_token(change).await.unwrap().token.id;
        known.insert(id.to_string(), Known { version: 1, outstanding: false });
    }
    let (mut told, mut refused) = (0, 0);
    for round in 0..limits {
        let mut decided = Vec::new();
        for id in known.keys() {
            let id: uuid::Uuid = id.parse().unwrap();
            let stored = storage.load_token(id, None).await.unwrap().unwrap();
            let transition =
                if stored.token.place.as_str() == "draft" { "submit" } else { "reject" };
            decided.push((id, stored.revision, fired(&workflow, &stored, transition)));
        }
        // Room for a part of the batch: a move takes a token's 8 KB, and gives them back at its end.
        let left = fastrand::usize(4_000..90_000);
        let used = bus.ask("INFO", &serde_json::Value::Null).await["storage"].as_u64().unwrap();
        let mut fill = STORE_BYTES_MAX - usize::try_from(used).unwrap() - left;
        while fill > 1_000 {
            let bytes = fill.min(500_000);
            bus.client.request("other", vec![b'x'; bytes - 100].into()).await.unwrap();
            fill -= bytes;
        }
        let mut moves = tokio::task::JoinSet::new();
        for (id, revision, change) in decided {
            let storage = Arc::clone(&storage);
            moves.spawn(async move { (id, storage.commit(revision, change).await) });
        }
        // Somebody makes room again, before, while or after the moves are given up.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(500..8_000))).await;
        bus.done("STREAM.PURGE.OTHER", &serde_json::Value::Null).await;
        // Another server goes on from whatever it finds.
        for id in known.keys() {
            let (other, workflow, id) = (Arc::clone(&other), Arc::clone(&workflow), id.clone());
            moves.spawn(async move {
                let id: uuid::Uuid = id.parse().unwrap();
                let stored = other.load_token(id, None).await.unwrap().unwrap();
                let change = fired(&workflow, &stored, next_of(&stored));
                (id, other.commit(stored.revision, change).await)
            });
        }
        for (id, outcome) in moves.join_all().await {
            let known = known.get_mut(&id.to_string()).unwrap();
            match outcome {
                Ok(_) => (known.version, told) = (known.version + 1, told + 1),
                Err(
                    StorageError::Full { .. }
                    | StorageError::Unavailable { .. }
                    | StorageError::Conflict { .. },
                ) => refused += 1,
                Err(StorageError::OutcomeUnknown { .. }) => known.outstanding = true,
                Err(error) => panic!("round {round}: {error}"),
            }
        }
        until_all_is_told(&*storage).await;
        compare_but_for_late(&*storage, &mut known, round, true).await;
        bus.until_each_token_is_there_once().await;
        let history = PageLimit { rows: 1_000, bytes: 1 << 30 };
        for id in known.keys() {
            let stored = other.load_token(id.parse().unwrap(), None).await.unwrap().unwrap();
            let moves = other.token_moves(&stored.token, None, history).await.unwrap().items;
            let versions: Vec<_> =
                moves.iter().rev().filter_map(|moved| moved.event.token_version).collect();
            assert_eq!(versions, (2..=stored.token.version).collect::<Vec<_>>(), "round {round}");
        }
    }
    assert!(told > TOKENS / 2, "{told} told, {refused} refused");
    let mended = mended(&storage).await + mended(&other).await;
    eprintln!("{limits} limits: {told} acknowledged, {refused} not, {mended} torn changes mended");
    other.close().await;
    storage.close().await;
}
