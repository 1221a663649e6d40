//! Moves by how long ago their token moved last.
//!
//! Units: moves per second, and milliseconds from the request to its answer.

use std::time::Duration;

use crate::bare::Bare;
use crate::bus::{Bus, Server};
use crate::load::fill;
use crate::movers::{MOVING, Movers};
use crate::moves::payloads;
use crate::{ROUNDS, is_wanted_case, medians, ms};

const CONNECTIONS: usize = 64;

/// Few tokens: each moves again while its departure is still there.
const FEW: usize = 256;

/// Tokens at rest: more than the server keeps at hand, and none of them moved since it started.
const AT_REST: usize = 100_000;

/// Which token is next at rest: random, and the same in every run.
const SEED: u64 = 7;

/// Moves at 64 connections: of 256 tokens in turn, of 10,240 in turn (the row of `moves`), and of
/// 100,000 at rest in random order, each once. A token at rest has no history yet, so it is shorter
/// than one that has moved.
///
/// Each case has a store of its own, and each of its rounds a new server on it. Beside it stands what
/// async-nats alone does, in batches of as many moves, in the same rounds on other nats-servers, so
/// that no server meets what it has not written. Each figure is the median of the rounds, the ratio,
/// too; compare ratios, where the machine has other work.
pub async fn turns(time: Duration) {
    println!(
        "\n## Moves at {CONNECTIONS} connections, by how long their tokens have been at rest\n"
    );
    println!(
        "| replicas | tokens | moves/s | p50 | p99 | async-nats alone: moves/s | moves/s, ratio |"
    );
    println!("|---:|---|---:|---:|---:|---:|---:|");
    for replicas in [1, 3] {
        for (count, order) in
            [(FEW, "in turn"), (MOVING, "in turn"), (AT_REST, "at rest, in random order")]
        {
            if is_wanted_case(replicas, count) {
                let [rate, p50, p99, limit, ratio] = case(replicas, count, time).await;
                println!(
                    "| {replicas} | {count} {order} | {rate:.0} | {p50:.2} ms | {p99:.2} ms | {limit:.0} | {:.0} % |",
                    100.0 * ratio
                );
            }
        }
    }
}

async fn case(replicas: usize, count: usize, time: Duration) -> [f64; 5] {
    let bus = Bus::start(replicas);
    let mut ids = fill(&bus, count, count).await;
    ids.sort_unstable();
    fastrand::Rng::with_seed(SEED).shuffle(&mut ids);
    let movers = Movers::new(ids);
    let other = Bus::start(replicas);
    // It makes the stream.
    drop(Server::start(&other));
    let mut rows = Vec::new();
    for _ in 0..ROUNDS {
        let (token, event) = payloads();
        let server = Server::start(&bus);
        // The walk that cleans up after each start is not what is measured.
        Bare::new(&bus.url(), 0, token.clone(), event.clone()).await.quiet().await;
        let mut moved = None;
        // The first run fills what the server keeps at hand.
        for time in [time / 2, time] {
            let run = if count == AT_REST {
                movers.run_once_each(&server, CONNECTIONS, time).await
            } else {
                movers.run(&server, CONNECTIONS, time).await
            };
            moved = Some(run);
        }
        let moved = moved.expect("it ran");
        drop(server);
        let mut bare = Bare::new(&other.url(), 1_000, token, event).await;
        let (limit, group) = bare.run(CONNECTIONS, time).await;
        let limit = limit.per_second() * group as f64;
        rows.push([
            moved.per_second(),
            ms(moved.quantile(0.5)),
            ms(moved.quantile(0.99)),
            limit,
            moved.per_second() / limit,
        ]);
    }
    medians(&rows)
}
