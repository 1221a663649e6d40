//! This version beside an earlier one: both have a file of their own on the same disk, filled by themselves,
//! and are asked in turn.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use super::client::{Client, request};
use super::times::hammer;
use super::{Movers, ROUNDS, Server, data, median, ms};

/// What was measured of the one before and of this one.
type Pair = ([f64; 3], [f64; 3]);

/// Tokens that one server has.
const TOKENS: usize = 5_120;

const CREATE_WORKFLOW: &str =
    "mutation($i: WorkflowDefinitionInput!) { createWorkflow(input: $i) { id } }";
const CREATE_TOKEN: &str = "mutation($i: TokenCreateInput!) { createToken(input: $i) { id } }";
const READ: &str = "query($id: String!) { token(id: $id) { id place version data } }";

struct Version {
    server: Server,
    movers: Arc<Movers>,
}

impl Version {
    async fn start(binary: &OsStr, path: &Path) -> Self {
        let server = Server::of(binary, path);
        let transition = |id: &str, from: &str, to: &str| json!({ "id": id, "fromPlaces": [from], "toPlace": to, "conditions": ["token.data.amount < 1000000"] });
        let workflow = json!({ "i": {
            "id": "bench", "name": "Benchmark", "places": ["open", "review", "done"], "initialPlace": "open",
            "transitions": [
                transition("submit", "open", "review"), transition("reject", "review", "open"),
                transition("finish", "review", "done"),
            ],
        } });
        let mut client = Client::connect(&server.address).await;
        client.ask(&request(CREATE_WORKFLOW, &workflow)).await;
        let ids: Vec<Uuid> = (0..TOKENS).map(|_| Uuid::new_v4()).collect();
        let mut tasks = tokio::task::JoinSet::new();
        for part in ids.chunks(TOKENS / 64) {
            let (address, part) = (server.address.clone(), part.to_vec());
            tasks.spawn(async move {
                let mut client = Client::connect(&address).await;
                for (number, id) in part.into_iter().enumerate() {
                    client.ask(&request(CREATE_TOKEN, &creation(id, number))).await;
                }
            });
        }
        tasks.join_all().await;
        Self { server, movers: Movers::new(ids) }
    }

    /// What a row measures: a second, the median of one request, and the processor time of each.
    async fn measure(&self, row: Row, connections: usize, time: Duration) -> [f64; 3] {
        let began = self.server.processor_time();
        let address = &self.server.address;
        let times = match row {
            Row::Moves => self.movers.run(&self.server, connections, time).await,
            Row::Creations => {
                let create = |_, number| request(CREATE_TOKEN, &creation(Uuid::new_v4(), number));
                hammer(address, connections, time, create).await
            }
            Row::Reads => {
                let movers = Arc::clone(&self.movers);
                let read = move |connection: usize, count: usize| {
                    let id = movers.ids[(connection * 7_919 + count) % movers.ids.len()];
                    request(READ, &json!({ "id": id }))
                };
                hammer(address, connections, time, read).await
            }
        };
        let processor = self.server.processor_time() - began;
        let requests = times.per_second() * time.as_secs_f64();
        [times.per_second(), ms(times.quantile(0.5)), processor / requests]
    }
}

fn creation(id: Uuid, number: usize) -> Value {
    json!({ "i": { "id": id, "workflowId": "bench", "data": data(number) } })
}

#[derive(Debug, Clone, Copy)]
enum Row {
    Moves,
    Creations,
    Reads,
}

pub async fn beside(before: &OsStr, folder: &Path, time: Duration) {
    println!("\n## This version beside the one before, SQLite, in turn\n");
    println!(
        "| | connections | before: a second | p50 | processor time of one | now: a second | p50 | processor time of one | a second, ratio of each pair | median | processor time, ratio |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|");
    let earlier = Version::start(before, &folder.join("before.db")).await;
    let now = OsStr::new(env!("CARGO_BIN_EXE_server"));
    let now = Version::start(now, &folder.join("now.db")).await;
    for (row, connections) in [
        (Row::Moves, 1),
        (Row::Moves, 64),
        (Row::Moves, 256),
        (Row::Creations, 64),
        (Row::Reads, 1),
        (Row::Reads, 64),
    ] {
        // Fills the caches and the embedded history of the tokens.
        for version in [&earlier, &now] {
            version.measure(row, connections, time / 2).await;
        }
        let mut pairs = Vec::new();
        for _ in 0..ROUNDS {
            let one = earlier.measure(row, connections, time).await;
            pairs.push((one, now.measure(row, connections, time).await));
        }
        let of = |value: fn(&Pair) -> f64| median(pairs.iter().map(value).collect());
        let each = pairs.iter().map(|(one, other)| format!("{:.2}", other[0] / one[0]));
        println!(
            "| {row:?} | {connections} | {:.0} | {:.2} ms | {:.0} µs | {:.0} | {:.2} ms | {:.0} µs | {} | {:.2} | {:.2} |",
            of(|pair| pair.0[0]),
            of(|pair| pair.0[1]),
            of(|pair| pair.0[2]),
            of(|pair| pair.1[0]),
            of(|pair| pair.1[1]),
            of(|pair| pair.1[2]),
            each.collect::<Vec<_>>().join(" "),
            of(|pair| pair.1[0] / pair.0[0]),
            of(|pair| pair.1[2] / pair.0[2])
        );
    }
}
