//! This version beside an earlier one, each on nats-servers of its own, in windows that alternate.
//!
//! Units: moves or reads per second, and the ratio of this version to the earlier one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::bus::{Bus, Server};
use crate::load::{fill, read};
use crate::movers::Movers;
use crate::times::{Times, hammer};
use crate::{is_wanted_case, median, ms};

/// Windows of each version in each row, after one that is not counted.
const WINDOWS: usize = 15;

/// Tokens in each store.
const TOKENS: usize = 100_000;

/// Tokens that move in turn: many, and so few that each moves again while its departure is there.
const MANY: usize = 10_240;
const FEW: usize = 256;

/// What is done in a row.
#[derive(Clone, Copy)]
enum Work {
    Many,
    Few,
    /// Moves of tokens that have not moved since the server was started, each once.
    AtRest,
    Reads,
}

const ROWS: [(Work, usize, &str); 8] = [
    (Work::Many, 1, "moves, 10,240 in turn"),
    (Work::Many, 64, "moves, 10,240 in turn"),
    (Work::Many, 512, "moves, 10,240 in turn"),
    (Work::Few, 64, "moves, 256 in turn"),
    (Work::AtRest, 1, "moves, 100,000 at rest, in random order"),
    (Work::AtRest, 64, "moves, 100,000 at rest, in random order"),
    (Work::Reads, 1, "reads by id"),
    (Work::Reads, 64, "reads by id"),
];

/// A version with a store that it has filled itself.
struct Version {
    server: Server,
    many: Arc<Movers>,
    few: Arc<Movers>,
    at_rest: Arc<Movers>,
    ids: Arc<Vec<Uuid>>,
    _bus: Bus,
}

impl Version {
    async fn start(bus: Bus) -> Self {
        let mut ids = fill(&bus, TOKENS, TOKENS).await;
        // Random, and the same in every run.
        ids.sort_unstable();
        fastrand::Rng::with_seed(7).shuffle(&mut ids);
        bus.lead_from_first().await;
        let server = Server::start(&bus);
        let of = |from: usize, to: usize| Movers::new(ids[from..to].to_vec());
        let (few, many) = (of(0, FEW), of(FEW, FEW + MANY));
        let at_rest = of(FEW + MANY, TOKENS);
        for (movers, count) in [(&few, FEW), (&many, MANY)] {
            movers.run_count(&server, 64, 2 * count).await;
        }
        Self { server, many, few, at_rest, ids: Arc::new(ids), _bus: bus }
    }

    async fn run(&self, work: Work, connections: usize, time: Duration) -> Times {
        let movers = match work {
            Work::Many => &self.many,
            Work::Few => &self.few,
            Work::AtRest => &self.at_rest,
            Work::Reads => {
                let ids = Arc::clone(&self.ids);
                let one = move |_, _| read(ids[fastrand::usize(..ids.len())]);
                return hammer(&self.server.address, connections, time, one).await;
            }
        };
        movers.run_once_each(&self.server, connections, time).await
    }
}

/// Both versions do the same in turn, for `time` each; the ratio of each pair of windows is taken, and
/// of those the median and the middle half. What the machine does meanwhile meets both alike.
pub async fn beside(before: PathBuf, time: Duration) {
    println!(
        "\n## This version beside the one before, windows of {:.1} s in turn\n",
        time.as_secs_f64()
    );
    println!(
        "| replicas | connections | what | before | p50 | now | p50 | now/before, median | middle half |"
    );
    println!("|---:|---:|---|---:|---:|---:|---:|---:|---:|");
    let row = std::env::var("BENCH_ROW").ok();
    for replicas in [1, 3] {
        let rows: Vec<_> = ROWS
            .iter()
            .filter(|(_, connections, _)| is_wanted_case(replicas, *connections))
            .filter(|(_, _, name)| row.as_ref().is_none_or(|row| name.contains(row)))
            .collect();
        if rows.is_empty() {
            continue;
        }
        let old = Version::start(Bus::start_for(replicas, &before)).await;
        let new = Version::start(Bus::start(replicas)).await;
        for (work, connections, name) in rows {
            let mut windows = Vec::new();
            for window in 0..=WINDOWS {
                let was = old.run(*work, *connections, time).await;
                let is = new.run(*work, *connections, time).await;
                if window > 0 {
                    let half = |times: &Times| ms(times.quantile(0.5));
                    windows.push([was.per_second(), half(&was), is.per_second(), half(&is)]);
                }
            }
            let at = |column: usize| median(windows.iter().map(|row| row[column]).collect());
            let mut ratios: Vec<f64> = windows.iter().map(|row| row[2] / row[0]).collect();
            ratios.sort_unstable_by(f64::total_cmp);
            let part = |share: usize| ratios[WINDOWS * share / 4];
            println!(
                "| {replicas} | {connections} | {name} | {:.0} | {:.2} ms | {:.0} | {:.2} ms | {:.2} | {:.2} to {:.2} |",
                at(0),
                at(1),
                at(2),
                at(3),
                part(2),
                part(1),
                part(3)
            );
        }
    }
}
