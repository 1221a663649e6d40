//! What the server does over HTTP on NATS, beside the same messages sent by async-nats alone to the
//! same nats-servers in the same minutes.
//!
//! `cargo bench --bench nats` runs it and prints the tables of `docs/benchmarks.md`. It needs a
//! nats-server, in `NATS_SERVER` or on the PATH. With `BENCH_SECONDS` each measurement takes
//! another time than 3 s, with `BENCH_PART` only one part is done (`moves`, `workflows`, `tokens`),
//! with `BENCH_CASE` (such as `3x64`: replicas and connections) only one row of the first, and with
//! `BENCH_TOKENS` the last part has another number of tokens than a million.

#![allow(clippy::print_stdout)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use circuit_breaker::domain::{
    MoveRequest, NewToken, TransitionDraft, Workflow, WorkflowDraft, WorkflowEvent, new_token_id,
};
use circuit_breaker::storage::WorkflowStorage;
use circuit_breaker::{NATSStorage, NATSStorageConfig, NATSStorageOptions};
use serde_json::{Value, json};
use uuid::Uuid;

mod bare;
#[path = "../client.rs"]
mod client;
#[path = "../../tests/it/nats_server.rs"]
#[allow(clippy::unwrap_used, clippy::print_stderr, dead_code)]
mod nats_server;

use bare::Bare;
use client::{Times, hammer, request};
use nats_server::{Cluster, NatsServer};

/// Rounds of a pair of measurements; the tables show the medians.
const ROUNDS: usize = 3;

/// Tokens that take turns moving.
const MOVING: usize = 10_240;

const FIRE: &str =
    "mutation($i: TransitionFireInput!) { fireTransition(input: $i) { id place version } }";

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime starts").block_on(run());
}

fn from_environment(name: &str) -> Option<f64> {
    std::env::var(name).ok()?.parse().ok()
}

async fn run() {
    let time = Duration::from_secs_f64(from_environment("BENCH_SECONDS").unwrap_or(3.0));
    assert!(
        nats_server::binary().is_some(),
        "a nats-server is needed, see the first lines of this file"
    );
    let part = std::env::var("BENCH_PART").ok();
    let wanted = |name: &str| part.as_deref().is_none_or(|part| part == name);
    if wanted("moves") {
        all_moves(time).await;
    }
    if wanted("workflows") {
        many_workflows(time).await;
    }
    if wanted("tokens") {
        sizes(time).await;
    }
}

async fn all_moves(time: Duration) {
    println!("\n## Moves over HTTP on NATS\n");
    println!(
        "| replicas | concurrent | moves/s | p50 | p99 | async-nats alone, batches of as many: moves/s | p50 of a batch | moves/s, ratio | p50, more |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    let case = std::env::var("BENCH_CASE").ok();
    for replicas in [1, 3] {
        for connections in [1, 64, 512] {
            if case.as_deref().is_some_and(|case| case != format!("{replicas}x{connections}")) {
                continue;
            }
            moves(replicas, connections, time).await;
        }
    }
}

/// One nats-server or three.
enum Bus {
    One(NatsServer),
    Three(Cluster),
}

impl Bus {
    fn start(replicas: usize) -> Self {
        let bus = match replicas {
            1 => NatsServer::start().map(Bus::One),
            _ => Cluster::start().map(Bus::Three),
        };
        bus.expect("nats-server is there")
    }

    fn config(&self) -> NATSStorageConfig {
        let config = match self {
            Bus::One(server) => server.config(),
            Bus::Three(cluster) => cluster.config(0),
        };
        NATSStorageConfig {
            default_max_messages: 20_000_000,
            default_max_bytes: 16 << 30,
            ..config
        }
    }

    async fn open(&self) -> NATSStorage {
        let replicas = if matches!(self, Bus::One(_)) { 1 } else { 3 };
        let options = NATSStorageOptions { replicas, ..NATSStorageOptions::new() };
        NATSStorage::with_options(self.config(), options).await.expect("the store opens")
    }
}

/// A server process, killed at the end.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(bus: &Bus) -> Self {
        let config = bus.config();
        let replicas = if matches!(bus, Bus::One(_)) { "1" } else { "3" };
        let mut child = Command::new(env!("CARGO_BIN_EXE_server"))
            .env_clear()
            .env("LISTEN_ADDR", "127.0.0.1:0")
            .env("STORAGE_BACKEND", "nats")
            .env("NATS_URL", config.nats_urls.join(","))
            .env("NATS_REPLICAS", replicas)
            .env("NATS_MAX_MESSAGES", config.default_max_messages.to_string())
            .env("NATS_MAX_BYTES", config.default_max_bytes.to_string())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let address = lines.find_map(|line| {
            let line = line.expect("the log is text");
            let rest = line.split("listening on http://").nth(1)?;
            rest.split(',').next().map(str::to_owned)
        });
        // The pipe must not fill up.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address: address.expect("it says where it listens") }
    }

    /// Resident memory in MB.
    fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("Linux tells");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        kib.expect("it is a number") * 1_024.0 / 1e6
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn workflow(id: &str) -> Workflow {
    let transition = |id: &str, from: &str, to: &str| TransitionDraft {
        id: id.to_owned(),
        from_places: vec![from.to_owned()],
        to_place: to.to_owned(),
        conditions: vec!["token.data.amount < 1000000".to_owned()],
        ..TransitionDraft::default()
    };
    let draft = WorkflowDraft {
        id: Some(id.to_owned()),
        name: "Benchmark".to_owned(),
        description: None,
        places: ["open", "review", "done"].map(str::to_owned).to_vec(),
        transitions: vec![
            transition("submit", "open", "review"),
            transition("reject", "review", "open"),
            transition("finish", "review", "done"),
        ],
        initial_place: "open".to_owned(),
    };
    Workflow::check(draft, chrono::Utc::now()).expect("the definition is right")
}

/// About what an order is: 200 bytes of JSON.
fn data(number: usize) -> Value {
    json!({
        "order": format!("A-{number:08}"), "customer": "Example Trading GmbH", "amount": number % 10_000,
        "currency": "EUR", "lines": [{ "sku": "BK-1042", "quantity": 3 }, { "sku": "BK-2001", "quantity": 1 }],
    })
}

/// Puts `count` tokens into the first place; gives some of their ids.
async fn fill(bus: &Bus, workflow: Workflow, count: usize) -> Vec<Uuid> {
    const WRITERS: usize = 512;
    let (storage, workflow) = (Arc::new(bus.open().await), Arc::new(workflow));
    let definition = workflow.definition().clone();
    let event = WorkflowEvent::workflow_created(definition.id.clone(), definition.created_at);
    storage.insert_workflow(definition, event).await.expect("it is stored");
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (storage, workflow) = (Arc::clone(&storage), Arc::clone(&workflow));
        tasks.spawn(async move {
            let mut ids = Vec::new();
            for number in (writer..count).step_by(WRITERS) {
                let new = NewToken { data: data(number), ..NewToken::default() };
                let now = chrono::Utc::now();
                let random = std::array::from_fn(|_| fastrand::u8(..));
                let id = new_token_id(&workflow.definition().id, now, random);
                let change = workflow.create_token(new, id, now);
                let stored = storage.insert_token(change.expect("the place is there")).await;
                stored.expect("it is stored");
                if ids.len() < MOVING / WRITERS {
                    ids.push(id);
                }
            }
            ids
        });
    }
    let ids = tasks.join_all().await.into_iter().flatten().collect();
    storage.close().await;
    ids
}

/// Payloads of a token that has made five moves and of its newest event.
fn payloads() -> (bytes::Bytes, bytes::Bytes) {
    let workflow = workflow("bench");
    let (id, now) = (Uuid::new_v4(), chrono::Utc::now());
    let new = NewToken { data: data(7), ..NewToken::default() };
    let mut change = workflow.create_token(new, id, now).expect("the place is there");
    for n in 0..6 {
        let request = MoveRequest {
            transition: (if n % 2 == 0 { "submit" } else { "reject" }).parse().expect("a name"),
            new_place: None,
            data: None,
            triggered_by: None,
            expected_version: None,
        };
        change.token.transition_history.iter_mut().for_each(|r| r.nats_sequence = Some(100_000));
        change = workflow.fire(&change.token, &request, now).expect("it may move");
    }
    let json = |value: serde_json::Result<Vec<u8>>| bytes::Bytes::from(value.expect("it is JSON"));
    // What the store adds to an event: an id and the sequence of the one before.
    let mut event = serde_json::to_value(&change.events[0]).expect("it is JSON");
    event["event_id"] = Uuid::new_v4().to_string().into();
    event["previous_sequence"] = 100_000.into();
    (json(serde_json::to_vec(&change.token)), json(serde_json::to_vec(&event)))
}

fn fire(token: Uuid, count: usize) -> Vec<u8> {
    let transition = if count.is_multiple_of(2) { "submit" } else { "reject" };
    request(FIRE, &json!({ "i": { "tokenId": token, "transitionId": transition } }))
}

/// Tokens that move there and back, and how often each has moved.
struct Movers {
    ids: Vec<Uuid>,
    moves: Vec<AtomicUsize>,
}

impl Movers {
    fn new(ids: Vec<Uuid>) -> Arc<Self> {
        let moves = ids.iter().map(|_| AtomicUsize::new(0)).collect();
        Arc::new(Self { ids, moves })
    }

    /// Each connection has tokens of its own and moves them in turn.
    async fn run(self: &Arc<Self>, server: &Server, connections: usize, time: Duration) -> Times {
        let movers = Arc::clone(self);
        let own = self.ids.len() / connections;
        hammer(&server.address, connections, time, move |connection, count| {
            let index = connection * own + count % own;
            fire(movers.ids[index], movers.moves[index].fetch_add(1, Ordering::Relaxed))
        })
        .await
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

async fn moves(replicas: usize, connections: usize, time: Duration) {
    let mut rows = Vec::new();
    for _ in 0..ROUNDS {
        let bus = Bus::start(replicas);
        let ids = fill(&bus, workflow("bench"), MOVING).await;
        let (movers, server) = (Movers::new(ids), Server::start(&bus));
        // Fills the caches and the embedded history of the tokens.
        movers.run(&server, connections, time / 2).await;
        let moved = movers.run(&server, connections, time).await;
        drop(server);
        let (token, event) = payloads();
        let mut bare = Bare::new(&bus.config().nats_urls[0], 1_000, token, event).await;
        bare.run(connections, time / 4).await;
        let (limit, group) = bare.run(connections, time).await;
        let limit_rate = limit.per_second() * group as f64;
        rows.push([
            moved.per_second(),
            ms(moved.quantile(0.5)),
            ms(moved.quantile(0.99)),
            limit_rate,
            ms(limit.quantile(0.5)),
            moved.per_second() / limit_rate,
            ms(moved.quantile(0.5)) - ms(limit.quantile(0.5)),
        ]);
    }
    let at = |column: usize| median(rows.iter().map(|row| row[column]).collect());
    println!(
        "| {replicas} | {connections} | {:.0} | {:.2} ms | {:.2} ms | {:.0} | {:.2} ms | {:.0} % | {:.2} ms |",
        at(0),
        at(1),
        at(2),
        at(3),
        at(4),
        100.0 * at(5),
        at(6)
    );
}

fn read(ids: Arc<Vec<Uuid>>) -> impl Fn(usize, usize) -> Vec<u8> + Clone + Send + 'static {
    move |connection, count| {
        let id = ids[(connection * 7_919 + count) % ids.len()];
        let query = "query($id: String!) { token(id: $id) { id place version data } }";
        request(query, &json!({ "id": id }))
    }
}

/// Reads by id alone, by the number of workflows that the token could be in.
async fn many_workflows(time: Duration) {
    println!("\n## Reads by id, by the number of workflows\n");
    println!(
        "| replicas | workflows | p50 | p99 | bare direct get: p50 | 64 connections: reads/s |"
    );
    println!("|---:|---:|---:|---:|---:|---:|");
    for (replicas, count) in [(1, 10), (1, 10_000), (3, 10)] {
        let bus = Bus::start(replicas);
        let ids = Arc::new(fill(&bus, workflow("bench"), MOVING).await);
        let storage = Arc::new(bus.open().await);
        let mut tasks = tokio::task::JoinSet::new();
        for number in 1..count {
            let storage = Arc::clone(&storage);
            let definition = workflow(&format!("other-{number}")).definition().clone();
            let event =
                WorkflowEvent::workflow_created(definition.id.clone(), definition.created_at);
            tasks.spawn(async move {
                storage.insert_workflow(definition, event).await.expect("it is stored");
            });
            if tasks.len() >= 512 {
                tasks.join_next().await;
            }
        }
        tasks.join_all().await;
        storage.close().await;
        let server = Server::start(&bus);
        let one = hammer(&server.address, 1, time, read(Arc::clone(&ids))).await;
        let many = hammer(&server.address, 64, time, read(Arc::clone(&ids))).await;
        let (token, event) = payloads();
        let bare = Bare::new(&bus.config().nats_urls[0], 1, token, event).await;
        let subjects: Vec<_> =
            ids.iter().map(|id| format!("cb.workflows.bench.places.open.tokens.{id}")).collect();
        let limit = bare.gets(&subjects, time).await;
        println!(
            "| {replicas} | {count} | {:.3} ms | {:.3} ms | {:.3} ms | {:.0} |",
            ms(one.quantile(0.5)),
            ms(one.quantile(0.99)),
            ms(limit.quantile(0.5)),
            many.per_second()
        );
    }
}

/// What does not depend on the number of tokens.
async fn sizes(time: Duration) {
    let most = from_environment("BENCH_TOKENS").unwrap_or(1e6) as usize;
    println!("\n## Reads and memory, by the number of tokens\n");
    println!(
        "| tokens | read by id: p50 | bare direct get: p50 | first 100 of a place: p50 | bare page: p50 | first 100 after the middle: p50 | memory of the server after the start | after these reads and moves |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|");
    for count in [1_000.min(most), most] {
        let bus = Bus::start(1);
        let ids = Arc::new(fill(&bus, workflow("bench"), count).await);
        let server = Server::start(&bus);
        let fresh = server.memory();
        let (token, event) = payloads();
        let bare = Bare::new(&bus.config().nats_urls[0], 1, token, event).await;
        bare.quiet().await;
        let one = hammer(&server.address, 1, time, read(Arc::clone(&ids))).await;
        let page = |after: Option<String>| {
            let query = "query($after: String) { tokenConnection(workflowId: \"bench\", placeId: \"open\", first: 100, after: $after)
                { edges { cursor node { id place version data } } pageInfo { hasNextPage endCursor } } }";
            let request = request(query, &json!({ "after": after }));
            move |_: usize, _: usize| request.clone()
        };
        let first = hammer(&server.address, 1, time, page(None)).await;
        let middle = hammer(&server.address, 1, time, page(Some(count.to_string()))).await;
        let subjects: Vec<_> =
            ids.iter().map(|id| format!("cb.workflows.bench.places.open.tokens.{id}")).collect();
        let get = bare.gets(&subjects, time).await;
        let bare_page = bare.pages("cb.workflows.bench.places.open.tokens.*", time).await;
        Movers::new(ids.to_vec()).run(&server, 64, time).await;
        println!(
            "| {count} | {:.3} ms | {:.3} ms | {:.2} ms | {:.2} ms | {:.2} ms | {fresh:.0} MB | {:.0} MB |",
            ms(one.quantile(0.5)),
            ms(get.quantile(0.5)),
            ms(first.quantile(0.5)),
            ms(bare_page.quantile(0.5)),
            ms(middle.quantile(0.5)),
            server.memory()
        );
    }
}
