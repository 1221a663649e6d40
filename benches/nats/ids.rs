//! Reads by id among 10,000 workflows, by what the id tells; and moves beside many reads of ids that
//! nobody has.
//!
//! Units: milliseconds from the request to its answer; reads per second.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use circuit_breaker::domain::{WorkflowId, workflow_hash};
use uuid::Uuid;

use crate::bus::{Bus, Server};
use crate::client::Client;
use crate::load::{create, define, read};
use crate::movers::Movers;
use crate::reads::reads;
use crate::times::{Times, hammer};
use crate::{ROUNDS, medians, ms};

const WORKFLOWS: usize = 10_000;

/// Tokens of each kind.
const TOKENS: usize = 1_024;

/// Workflows whose ids have the same hash.
const SAME_HASH: usize = 5;

/// Clients that ask for ids that nobody has.
const FLOOD: usize = 16;

/// The store that is read from, and ids of its tokens.
struct Store {
    bus: Bus,
    made: Arc<Vec<Uuid>>,
    chosen: Arc<Vec<Uuid>>,
    same_hash: Arc<Vec<Uuid>>,
}

/// Reads, and moves beside reads, on one store for each number of replicas.
pub async fn ids(time: Duration) {
    let mut stores = Vec::new();
    println!("\n## Reads by id at {WORKFLOWS} workflows, one connection, by what the id tells\n");
    println!("| replicas | id | p50 | p99 |");
    println!("|---:|---|---:|---:|");
    for replicas in [1, 3] {
        let store = fill(replicas).await;
        by_id(replicas, &store, time).await;
        stores.push((replicas, store));
    }
    println!(
        "\n## Moves of one connection beside reads of {FLOOD} others, at {WORKFLOWS} workflows\n"
    );
    println!("| replicas | the others read | p50 of a move | p99 | reads/s of the others |");
    println!("|---:|---|---:|---:|---:|");
    for (replicas, store) in &stores {
        beside_reads(*replicas, store, time).await;
    }
}

/// The first ids of the form `same-{number}` of which so many have one hash, in their order.
fn same_hash() -> Vec<String> {
    let mut by_hash: HashMap<u32, Vec<u32>> = HashMap::new();
    for number in 0.. {
        let id = WorkflowId::parse(format!("same-{number:08}")).expect("it is a name");
        let found = by_hash.entry(workflow_hash(&id)).or_default();
        found.push(number);
        if found.len() == SAME_HASH {
            return found.iter().map(|number| format!("same-{number:08}")).collect();
        }
    }
    unreachable!("there are more names than hashes")
}

async fn fill(replicas: usize) -> Store {
    let bus = Bus::start(replicas);
    let server = Server::start(&bus);
    let (bench, same) = (["bench".to_owned()], same_hash());
    let others = (0..WORKFLOWS - SAME_HASH - 1).map(|number| format!("other-{number}"));
    define(&server, bench.iter().cloned().chain(others).collect()).await;
    // One after the other, so that the last one by name is the last one by age, too.
    for id in &same {
        define(&server, vec![id.clone()]).await;
    }
    let made = Arc::new(create(&server, &bench, TOKENS, false).await);
    let chosen = Arc::new(create(&server, &bench, TOKENS, true).await);
    let same_hash = Arc::new(create(&server, &same[SAME_HASH - 1..], TOKENS, false).await);
    drop(server);
    Store { bus, made, chosen, same_hash }
}

/// Whether a token is read under this id.
async fn is_there(server: &Server, id: Uuid) -> bool {
    let mut client = Client::connect(&server.address).await;
    !client.ask(&read(id)).await.starts_with(br#"{"data":{"token":null"#)
}

fn unknown(_: usize, _: usize) -> Vec<u8> {
    read(Uuid::new_v4())
}

async fn by_id(replicas: usize, store: &Store, time: Duration) {
    let server = Server::start(&store.bus);
    let shown = |name: &str, times: Times| {
        let (p50, p99) = (ms(times.quantile(0.5)), ms(times.quantile(0.99)));
        println!("| {replicas} | {name} | {p50:.3} ms | {p99:.3} ms |");
    };
    for (name, ids) in [
        ("made by the server", &store.made),
        ("chosen by the client", &store.chosen),
        ("made by the server, last of five workflows with the same hash", &store.same_hash),
    ] {
        assert!(is_there(&server, ids[0]).await, "{name}: it is there");
        shown(name, hammer(&server.address, 1, time, reads(Arc::clone(ids))).await);
    }
    assert!(!is_there(&server, Uuid::new_v4()).await, "a random id is unknown");
    shown("unknown", hammer(&server.address, 1, time, unknown).await);
}

/// Moves without other requests and beside two kinds of reads, by turns; the medians.
async fn beside_reads(replicas: usize, store: &Store, time: Duration) {
    let server = Server::start(&store.bus);
    // None that moves is read.
    let (moving, at_rest) = store.made.split_at(TOKENS / 2);
    let (movers, at_rest) = (Movers::new(moving.to_vec()), Arc::new(at_rest.to_vec()));
    movers.run(&server, 1, time / 2).await;
    let (mut alone, mut beside_known, mut beside_unknown) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let moved = movers.run(&server, 1, time).await;
        alone.push([ms(moved.quantile(0.5)), ms(moved.quantile(0.99)), 0.0]);
        beside_known.push(beside(&server, &movers, reads(Arc::clone(&at_rest)), time).await);
        beside_unknown.push(beside(&server, &movers, unknown, time).await);
    }
    for (name, rows) in [
        ("nothing", alone),
        ("ids made by the server", beside_known),
        ("unknown ids", beside_unknown),
    ] {
        let [p50, p99, rate] = medians(&rows);
        println!("| {replicas} | {name} | {p50:.2} ms | {p99:.2} ms | {rate:.0} |");
    }
}

/// Moves while others read: their p50 and p99, and how many are read in a second.
async fn beside(
    server: &Server,
    movers: &Arc<Movers>,
    read: impl Fn(usize, usize) -> Vec<u8> + Clone + Send + 'static,
    time: Duration,
) -> [f64; 3] {
    // On a thread of their own: the moves do not wait for the clients of the others.
    let (address, longer) = (server.address.clone(), time + time / 5);
    let flood = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime starts");
        runtime.block_on(hammer(&address, FLOOD, longer, read)).per_second()
    });
    tokio::time::sleep(time / 10).await;
    let moved = movers.run(server, 1, time).await;
    let rate = flood.join().expect("the clients get their answers");
    [ms(moved.quantile(0.5)), ms(moved.quantile(0.99)), rate]
}
