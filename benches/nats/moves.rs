//! Moves over HTTP beside the same messages sent by async-nats alone.

use std::sync::Arc;
use std::time::Duration;

use circuit_breaker::domain::limits::STEPS_MAX;
use circuit_breaker::domain::{Caller, Deciding, MoveRequest, NewToken, Steps};
use uuid::Uuid;

use crate::bare::Bare;
use crate::bus::{Bus, Server};
use crate::load::{data, fill, workflow};
use crate::movers::{MOVING, Movers};
use crate::{ROUNDS, is_wanted_case, median, ms};

pub async fn all_moves(time: Duration) {
    println!("\n## Moves over HTTP on NATS\n");
    println!(
        "| replicas | concurrent | moves/s | p50 | p99 | async-nats alone, batches of as many: moves/s | p50 of a batch | moves/s, ratio | p50, more |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for replicas in [1, 3] {
        for connections in [1, 64, 512] {
            if is_wanted_case(replicas, connections) {
                moves(replicas, connections, time).await;
            }
        }
    }
}

/// Payloads of a token that has made five moves and of its newest event.
pub fn payloads() -> (bytes::Bytes, bytes::Bytes) {
    let workflow = workflow("bench");
    let (id, now) = (Uuid::new_v4(), chrono::Utc::now());
    let (caller, steps) = (Caller::anyone(), Arc::new(Steps::new(STEPS_MAX)));
    let by = Deciding { caller: &caller, now, steps: &steps };
    let new = NewToken { data: data(7), ..NewToken::default() };
    let mut change = workflow.create_token(new, id, &caller, now).expect("the place is there");
    for n in 0..6 {
        let request = MoveRequest {
            transition: (if n % 2 == 0 { "submit" } else { "reject" }).parse().expect("a name"),
            new_place: None,
            data: None,
            triggered_by: None,
            expected_version: None,
        };
        change.token.transition_history.iter_mut().for_each(|r| r.nats_sequence = Some(100_000));
        change = workflow.fire(&change.token, &request, &by).expect("it may move");
    }
    let json = |value: serde_json::Result<Vec<u8>>| bytes::Bytes::from(value.expect("it is JSON"));
    // What the store adds to an event: an id and the sequence of the one before.
    let mut event = serde_json::to_value(&change.events[0]).expect("it is JSON");
    event["event_id"] = Uuid::new_v4().to_string().into();
    event["previous_sequence"] = 100_000.into();
    (json(serde_json::to_vec(&change.token)), json(serde_json::to_vec(&event)))
}

async fn moves(replicas: usize, connections: usize, time: Duration) {
    let mut rows = Vec::new();
    for _ in 0..ROUNDS {
        let bus = Bus::start(replicas);
        let ids = fill(&bus, MOVING, MOVING).await;
        let (movers, server) = (Movers::new(ids), Server::start(&bus));
        // Fills the caches and the embedded history of the tokens.
        movers.run(&server, connections, time / 2).await;
        let moved = movers.run(&server, connections, time).await;
        drop(server);
        let (token, event) = payloads();
        let mut bare = Bare::new(&bus.url(), 1_000, token, event).await;
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
