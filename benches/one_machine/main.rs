//! What one machine does: the server with SQLite over HTTP, beside SQLite alone on the same disk in
//! the same minutes.
//!
//! `cargo bench` runs it and prints the tables of `docs/benchmarks.md`. It takes about four minutes
//! and 2 GB of disk in the folder `target`. With `BENCH_SECONDS` each measurement takes another
//! time than 3 s; with `BENCH_BEFORE`, the server binary of an earlier version, both versions are measured in
//! turn, and nothing else.

#![allow(clippy::print_stdout)]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use circuit_breaker::domain::{
    Caller, NewToken, TransitionDraft, Workflow, WorkflowDraft, WorkflowEvent,
};
use circuit_breaker::storage::WorkflowStorage;
use circuit_breaker::{SqliteStorage, SqliteStorageConfig};
use serde_json::{Value, json};
use uuid::Uuid;

mod bare;
mod beside;
#[path = "../client.rs"]
mod client;
#[path = "../times.rs"]
mod times;

use bare::Bare;
use client::{Client, request};
use times::{Times, hammer};

/// Rounds of a pair of measurements; the tables show the medians, so that a disk or a neighbour
/// that stalls once does not decide.
const ROUNDS: usize = 5;

/// Tokens that take turns moving.
const MOVING: usize = 10_240;

const FIRE: &str =
    "mutation($i: TransitionFireInput!) { fireTransition(input: $i) { id place version } }";

fn main() {
    // Cargo passes flags such as --bench.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime starts").block_on(run());
}

async fn run() {
    let seconds = std::env::var("BENCH_SECONDS").ok().and_then(|text| text.parse().ok());
    let time = Duration::from_secs_f64(seconds.unwrap_or(3.0));
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the folder is writable");
    if let Some(before) = std::env::var_os("BENCH_BEFORE") {
        return beside::beside(&before, folder.path(), time).await;
    }
    moves(folder.path(), time).await;
    long_life(folder.path()).await;
    sizes(folder.path(), time).await;
}

/// A server process, killed at the end.
struct Server {
    child: Child,
    address: String,
    /// From its start until it listens.
    start: Duration,
}

impl Server {
    fn start(path: &Path) -> Self {
        Self::of(OsStr::new(env!("CARGO_BIN_EXE_server")), path)
    }

    /// The server of this binary.
    fn of(binary: &OsStr, path: &Path) -> Self {
        let began = Instant::now();
        let mut child = Command::new(binary)
            .env_clear()
            .env("LISTEN_ADDR", "127.0.0.1:0")
            .env("SQLITE_PATH", path)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let address = lines.find_map(|line| {
            let line = line.expect("the log is text");
            let rest = line.split("listening on http://").nth(1)?;
            rest.split(',').next().map(str::to_owned)
        });
        let start = began.elapsed();
        // The pipe must not fill up.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address: address.expect("it says where it listens"), start }
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

impl Server {
    /// Processor time that it has taken, in microseconds.
    fn processor_time(&self) -> f64 {
        /// Of one tick of what Linux tells, on every machine of today.
        const TICK: f64 = 1e4;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let stat = stat.expect("Linux tells");
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks = after_name.split_whitespace().skip(11).take(2);
        ticks.map(|ticks| ticks.parse::<f64>().expect("it is a number")).sum::<f64>() * TICK
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn workflow() -> Workflow {
    let transition = |id: &str, from: &str, to: &str| TransitionDraft {
        id: id.to_owned(),
        from_places: vec![from.to_owned()],
        to_place: to.to_owned(),
        conditions: vec!["token.data.amount < 1000000".to_owned()],
        ..TransitionDraft::default()
    };
    let draft = WorkflowDraft {
        id: Some("bench".to_owned()),
        name: "Benchmark".to_owned(),
        places: ["open", "review", "done"].map(str::to_owned).to_vec(),
        transitions: vec![
            transition("submit", "open", "review"),
            transition("reject", "review", "open"),
            transition("finish", "review", "done"),
        ],
        initial_place: "open".to_owned(),
        ..WorkflowDraft::default()
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

/// Makes a file with the workflow and `count` tokens in its first place; gives some of their ids.
async fn fill(path: &Path, count: usize) -> Vec<Uuid> {
    const WRITERS: usize = 512;
    let storage = SqliteStorage::open(&SqliteStorageConfig::new(path)).expect("the file is new");
    let (storage, workflow) = (Arc::new(storage), Arc::new(workflow()));
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
                let id = Uuid::new_v4();
                let change = workflow.create_token(new, id, &Caller::anyone(), chrono::Utc::now());
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

    fn fire(&self, index: usize) -> Vec<u8> {
        fire(self.ids[index], self.moves[index].fetch_add(1, Ordering::Relaxed))
    }

    /// Each connection has tokens of its own and moves them in turn.
    async fn run(self: &Arc<Self>, server: &Server, connections: usize, time: Duration) -> Times {
        let movers = Arc::clone(self);
        let own = self.ids.len() / connections;
        hammer(&server.address, connections, time, move |connection, count| {
            movers.fire(connection * own + count % own)
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

fn copy(path: &Path) -> PathBuf {
    let copy = path.with_extension("copy.db");
    std::fs::copy(path, &copy).expect("there is room on the disk");
    copy
}

async fn moves(folder: &Path, time: Duration) {
    println!("\n## Moves over HTTP, SQLite with `synchronous=FULL`\n");
    println!(
        "| connections | moves/s | p50 | p99 | SQLite alone, groups of as many: moves/s | p50 of a commit | moves/s, ratio | p50, ratio |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|");
    for connections in [1, 64, 256] {
        let mut rows = Vec::new();
        for round in 0..ROUNDS {
            let path = folder.join(format!("moves-{connections}-{round}.db"));
            // As many tokens as make every one move, so that the limit can repeat those moves.
            let mut ids = fill(&path, MOVING).await;
            ids.truncate(connections * (if connections == 1 { 200 } else { 40 }));
            let (movers, server) = (Movers::new(ids), Server::start(&path));
            // Fills the caches and the embedded history of the tokens.
            movers.run(&server, connections, time / 2).await;
            let moved = movers.run(&server, connections, time).await;
            drop(server);
            // What the killed server left in its log, another start folds into the file.
            let storage = SqliteStorage::open(&SqliteStorageConfig::new(&path)).expect("it opens");
            storage.close().await;
            let mut bare = Bare::open(&copy(&path), movers.ids.len().min(1_000));
            bare.run(connections, time / 4);
            let limit = bare.run(connections, time);
            let limit_rate = limit.per_second() * connections as f64;
            rows.push([
                moved.per_second(),
                ms(moved.quantile(0.5)),
                ms(moved.quantile(0.99)),
                limit_rate,
                ms(limit.quantile(0.5)),
                moved.per_second() / limit_rate,
                ms(moved.quantile(0.5)) / ms(limit.quantile(0.5)),
            ]);
        }
        let at = |column: usize| median(rows.iter().map(|row| row[column]).collect());
        println!(
            "| {connections} | {:.0} | {:.2} ms | {:.2} ms | {:.0} | {:.2} ms | {:.0} % | {:.2} |",
            at(0),
            at(1),
            at(2),
            at(3),
            at(4),
            100.0 * at(5),
            at(6)
        );
    }
}

/// What a move costs when its token has made many.
async fn long_life(folder: &Path) {
    println!("\n## A token that has made many moves, one connection\n");
    println!(
        "| moves made | p50 of the next 200 moves | bytes of the token | bytes of the event |"
    );
    println!("|---:|---:|---:|---:|");
    let path = folder.join("long-life.db");
    let ids = fill(&path, MOVING).await;
    let server = Server::start(&path);
    let mut client = Client::connect(&server.address).await;
    let mut made = 0;
    // The token grows old while others rest; the first row is of one as young as possible.
    for target in [10, 1_000, 10_000] {
        while made < target {
            client.ask(&fire(ids[0], made)).await;
            made += 1;
        }
        let mut times = Vec::new();
        for _ in 0..200 {
            let asked = Instant::now();
            client.ask(&fire(ids[0], made)).await;
            times.push(asked.elapsed());
            made += 1;
        }
        let times = Times::new(times, Duration::from_secs(1));
        let bytes = stored_bytes(&path, ids[0]);
        println!("| {target} | {:.2} ms | {} | {} |", ms(times.quantile(0.5)), bytes.0, bytes.1);
    }
}

fn stored_bytes(path: &Path, token: Uuid) -> (i64, i64) {
    let connection = rusqlite::Connection::open(path).expect("it opens beside the server");
    let sql = "SELECT length(t.body), length(e.body) FROM tokens t JOIN events e ON e.sequence = t.revision WHERE t.id = ?1";
    connection
        .query_row(sql, [token.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
        .expect("the token is there")
}

/// What does not depend on the number of tokens, and what a million cost.
async fn sizes(folder: &Path, time: Duration) {
    println!("\n## Reads, memory and start, by the number of tokens in the file\n");
    println!(
        "| tokens | read by id, 1 connection: p50 | p99 | SQLite alone: p50 | read by id, 64 connections: reads/s | first 100 of a place: p50 | first 100 after the middle: p50 | start until it listens | memory after the start | memory after these reads and 3 s of moves |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for count in [1_000, 1_000_000] {
        let path = folder.join(format!("size-{count}.db"));
        let ids = Arc::new(fill(&path, count).await);
        let starts = (0..ROUNDS).map(|_| ms(Server::start(&path).start)).collect();
        let server = Server::start(&path);
        let fresh = server.memory();
        let read = {
            let ids = Arc::clone(&ids);
            move |connection: usize, count: usize| {
                let id = ids[(connection * 7_919 + count) % ids.len()];
                request(
                    "query($id: String!) { token(id: $id) { id place version data } }",
                    &json!({ "id": id }),
                )
            }
        };
        let page = |after: Option<String>| {
            let query = "query($after: String) { tokenConnection(workflowId: \"bench\", placeId: \"open\", first: 100, after: $after)
                { edges { cursor node { id place version data } } pageInfo { hasNextPage endCursor } } }";
            let request = request(query, &json!({ "after": after }));
            move |_: usize, _: usize| request.clone()
        };
        let one = hammer(&server.address, 1, time, read.clone()).await;
        let many = hammer(&server.address, 64, time, read).await;
        let bare = bare::reads(&path, &ids, time);
        let first = hammer(&server.address, 1, time, page(None)).await;
        let middle = hammer(&server.address, 1, time, page(Some((count / 2).to_string()))).await;
        Movers::new(ids.to_vec()).run(&server, 64, time).await;
        println!(
            "| {count} | {:.3} ms | {:.3} ms | {:.3} ms | {:.0} | {:.2} ms | {:.2} ms | {:.0} ms | {fresh:.0} MB | {:.0} MB |",
            ms(one.quantile(0.5)),
            ms(one.quantile(0.99)),
            ms(bare.quantile(0.5)),
            many.per_second(),
            ms(first.quantile(0.5)),
            ms(middle.quantile(0.5)),
            median(starts),
            server.memory()
        );
    }
}
