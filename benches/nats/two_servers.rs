//! Two servers on one stream that move the same tokens.
//!
//! Units: moves per second that were made, and milliseconds from the request to its answer. Moves
//! that were refused are counted by the code of their error.

use std::sync::Arc;
use std::time::Duration;

use crate::bus::{Bus, Server};
use crate::is_wanted_case;
use crate::load::fill;
use crate::tries::{Tokens, Tries, shown};

const TOKENS: usize = 2_560;

/// Connections in all.
const CONNECTIONS: usize = 64;

/// Who moves a token that comes around: each connection begins at a token of its own and goes through
/// all of them, so behind one another they all come to each token.
#[derive(Clone, Copy)]
struct Turns {
    servers: usize,
    /// How often one server moves a token before another one does.
    each: usize,
    name: &'static str,
}

const TURNS: [Turns; 3] = [
    Turns { servers: 1, each: 1, name: "A" },
    Turns { servers: 2, each: 1, name: "A, B, A, B" },
    // What A keeps at hand is then two moves old: in the right place, of the wrong version.
    Turns { servers: 2, each: 2, name: "A, A, B, B" },
];

/// The error of a move that came too late, by the code: without an expected version, the loser of a
/// race finds the token elsewhere.
const LATE: &str = "TRANSITION_NOT_ALLOWED";
const CONFLICT: &str = "CONFLICT";

/// One server with 64 connections, and two with 32 each, on the same 2,560 tokens. No move has an
/// expected version, so `CONFLICT` means that a server gave up after 64 attempts.
pub async fn two_servers(time: Duration) {
    println!("\n## Two servers move the same {TOKENS} tokens, {CONNECTIONS} connections in all\n");
    println!(
        "| replicas | servers | who moves a token, in turn | moves/s | of them the slower server | p50 | p99 | {CONFLICT} | {LATE} | other errors |"
    );
    println!("|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|");
    for replicas in [1, 3] {
        for turns in TURNS {
            if is_wanted_case(replicas, turns.servers) {
                case(replicas, turns, time).await;
            }
        }
    }
}

async fn case(replicas: usize, turns: Turns, time: Duration) {
    let bus = Bus::start(replicas);
    let tokens = Tokens::new(fill(&bus, TOKENS, TOKENS).await);
    let servers: Vec<_> = (0..turns.servers).map(|_| Server::start(&bus)).collect();
    // Fills what the servers keep at hand.
    run(&tokens, &servers, turns, time / 2).await;
    let tries = run(&tokens, &servers, turns, time).await;
    let slower = tries.iter().map(Tries::per_second).fold(f64::INFINITY, f64::min);
    let all = tries.into_iter().fold(Tries::default(), Tries::and);
    let times = all.times();
    println!(
        "| {replicas} | {} | {} | {:.0} | {slower:.0} | {} | {} | {} | {} | {} |",
        turns.servers,
        turns.name,
        all.per_second(),
        shown(times.as_ref(), 0.5),
        shown(times.as_ref(), 0.99),
        all.failed(CONFLICT),
        all.failed(LATE),
        all.failed_otherwise(&[CONFLICT, LATE])
    );
}

/// All servers at once; what came of the moves of each.
async fn run(tokens: &Arc<Tokens>, servers: &[Server], turns: Turns, time: Duration) -> Vec<Tries> {
    let own = CONNECTIONS / servers.len();
    let runs = servers.iter().enumerate().map(|(server, process)| {
        let pick = move |connection: usize, count: usize| {
            // The connections of the servers alternate, so many of each at a time.
            let group = connection / turns.each * turns.servers + server;
            let of_all = group * turns.each + connection % turns.each;
            (of_all * (TOKENS / CONNECTIONS) + count) % TOKENS
        };
        tokens.run(&process.address, own, time, pick)
    });
    futures_util::future::join_all(runs).await
}
