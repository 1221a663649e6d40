//! What the server does over HTTP on NATS, beside the same messages sent by async-nats alone to the
//! same nats-servers in the same minutes.
//!
//! `cargo bench --bench nats` runs it and prints the tables of `docs/benchmarks.md`. It needs a
//! nats-server, in `NATS_SERVER` or on the PATH.
//!
//! | variable | |
//! |---|---|
//! | `BENCH_SECONDS` | how long each measurement takes, in place of 3 s |
//! | `BENCH_PART` | only one part is done: `moves`, `workflows`, `tokens`, `turns`, `two_servers`, `ids`, `full`, `beside` |
//! | `BENCH_CASE` | only one row of `moves` is done, such as `3x64`: replicas and connections; or of `turns` (replicas and tokens), `two_servers` (replicas and servers), `full` (replicas and workflows) |
//! | `BENCH_BEFORE` | the server binary of an earlier version; with it the part `beside` is done, too |
//! | `BENCH_ROW` | only the rows of `beside` are done whose name contains it, such as `reads` |
//! | `BENCH_TOKENS` | the part `tokens` has another number of tokens than a million |
//! | `BENCH_SERVER` | the server binary to measure, such as one of an earlier version; it fills its stores itself |

#![allow(clippy::print_stdout)]

use std::time::Duration;

mod bare;
mod beside;
mod bus;
#[path = "../client.rs"]
mod client;
mod full;
mod ids;
mod load;
mod movers;
mod moves;
#[path = "../../tests/it/nats_server.rs"]
#[allow(clippy::unwrap_used, clippy::print_stderr, dead_code)]
mod nats_server;
mod reads;
#[path = "../times.rs"]
mod times;
mod tries;
mod turns;
mod two_servers;

/// Rounds of a measurement; the tables show the medians.
const ROUNDS: usize = 3;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime starts").block_on(run());
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
        moves::all_moves(time).await;
    }
    if wanted("workflows") {
        reads::many_workflows(time).await;
    }
    if wanted("tokens") {
        reads::sizes(time).await;
    }
    if wanted("turns") {
        turns::turns(time).await;
    }
    if wanted("two_servers") {
        two_servers::two_servers(time).await;
    }
    if wanted("ids") {
        ids::ids(time).await;
    }
    if wanted("full") {
        full::full(time).await;
    }
    if let Some(before) = std::env::var_os("BENCH_BEFORE")
        && wanted("beside")
    {
        beside::beside(before.into(), time / 4).await;
    }
}

fn from_environment(name: &str) -> Option<f64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Whether `BENCH_CASE` asks for this row, or for none in particular.
fn is_wanted_case(replicas: usize, other: usize) -> bool {
    std::env::var("BENCH_CASE").map_or(true, |case| case == format!("{replicas}x{other}"))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median of each column.
fn medians<const N: usize>(rows: &[[f64; N]]) -> [f64; N] {
    std::array::from_fn(|column| median(rows.iter().map(|row| row[column]).collect()))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
