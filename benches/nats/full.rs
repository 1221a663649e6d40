//! Moves in a stream that is full of tokens that can still move, and in one with room.
//!
//! Units: moves per second that were made, milliseconds from the request to its answer, and numbers
//! of moves that failed.

use std::sync::Arc;
use std::time::Duration;

use crate::bus::{Bus, ROOM, Server};
use crate::is_wanted_case;
use crate::load::{create_until_full, define};
use crate::tries::{Tokens, shown};

const CONNECTIONS: usize = 64;

/// Messages that the full stream may hold.
const LIMIT: u64 = 60_000;

/// Which token is next: random, and the same in every run.
const SEED: u64 = 7;

const FULL: &str = "STORAGE_FULL";

/// Fills a stream until creations are refused. Then a new server moves its tokens in random order,
/// each at most once, for the time of a measurement right after its start, and for as long again.
/// Then the same in the same stream with a higher limit.
pub async fn full(time: Duration) {
    println!("\n## Moves in a full stream of {LIMIT} messages, {CONNECTIONS} connections\n");
    println!(
        "| replicas | workflows | tokens | stream | moves/s | p50 | p99 | longest | {FULL} | other errors |"
    );
    println!("|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|");
    for replicas in [1, 3] {
        for workflows in [10, 4_000] {
            if is_wanted_case(replicas, workflows) {
                case(replicas, workflows, time).await;
            }
        }
    }
}

async fn case(replicas: usize, workflows: usize, time: Duration) {
    let bus = Bus::start(replicas);
    let server = Server::with_limit(&bus, LIMIT);
    let workflow_ids: Vec<_> = (0..workflows).map(|number| format!("bench-{number}")).collect();
    define(&server, workflow_ids.clone()).await;
    let mut ids = create_until_full(&server, &workflow_ids, LIMIT as usize).await;
    drop(server);
    let count = ids.len();
    ids.sort_unstable();
    fastrand::Rng::with_seed(SEED).shuffle(&mut ids);
    let tokens = Tokens::new(ids);
    for (stream, limit) in [("full", LIMIT), ("with room", ROOM)] {
        let server = Server::with_limit(&bus, limit);
        for when in ["after a start", "later"] {
            let next = Arc::clone(&tokens);
            let pick = move |_, _| next.next();
            let tries = tokens.run(&server.address, CONNECTIONS, time, pick).await;
            let times = tries.times();
            println!(
                "| {replicas} | {workflows} | {count} | {stream}, {when} | {:.0} | {} | {} | {} | {} | {} |",
                tries.per_second(),
                shown(times.as_ref(), 0.5),
                shown(times.as_ref(), 0.99),
                shown(times.as_ref(), 1.0),
                tries.failed(FULL),
                tries.failed_otherwise(&[FULL])
            );
        }
    }
}
