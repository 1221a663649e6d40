//! What one request may cost a server, and what many at once do.
//!
//! `cargo bench --bench attack` prints the tables of `docs/reliability.md`. It takes about five minutes.
//!
//! | variable | meaning |
//! |---|---|
//! | `ATTACK_ROW` | only the rows whose name contains it are done |
//! | `ATTACK_SECONDS` | how long all of them go on at once, in place of 20 s; 0 leaves that out |
//! | `ATTACK_SERVER` | the server binary to attack, such as one of an earlier version |

#![allow(clippy::print_stdout)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

mod all;
#[path = "../client.rs"]
mod client;
mod server;
mod shapes;
mod store;

use client::{Client, request};
use server::Server;
use shapes::{Shape, shapes};

fn main() {
    // Cargo passes flags such as --bench.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime starts").block_on(run());
}

async fn run() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the folder is writable");
    let filled = folder.path().join("filled.db");
    store::fill(&filled).await;
    let wanted = std::env::var("ATTACK_ROW").unwrap_or_default();
    let all = shapes();
    println!(
        "| request | MB sent | MiB more | CPU s | slowest probe ms | slowest move ms | told |"
    );
    println!("|---|---|---|---|---|---|---|");
    for shape in all.iter().filter(|shape| shape.name.contains(&wanted)) {
        row(shape, &copy(&filled).path().join(FILE)).await;
    }
    let seconds = std::env::var("ATTACK_SECONDS").ok().and_then(|text| text.parse().ok());
    let seconds = seconds.unwrap_or(if wanted.is_empty() { 20 } else { 0 });
    if seconds > 0 {
        let wanted = all.into_iter().filter(|shape| shape.name.contains(&wanted)).collect();
        let copied = copy(&filled);
        all::at_once(&copied.path().join(FILE), wanted, Duration::from_secs(seconds)).await;
    }
}

const FILE: &str = "attacked.db";

/// A folder with a copy of a file, and no log of another one beside it.
fn copy(filled: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the folder is writable");
    std::fs::copy(filled, folder.path().join(FILE)).expect("there is room on the disk");
    folder
}

/// One shape against a server of its own.
async fn row(shape: &Shape, path: &Path) {
    let server = Server::start(path);
    let beside = Beside::start(&server.address).await;
    // What it has at rest is had once it has answered something.
    let mut client = Client::connect(&server.address).await;
    for _ in 0..20 {
        client.answer(&request("{ workflows { id } }", &json!({}))).await;
    }
    server.forget_peak();
    let (rest, processor) = (server.peak(), server.processor_time());
    let mut told = String::new();
    let mut sent = 0;
    for body in &shape.requests {
        sent += body.len();
        told = says(client.answer(body).await);
    }
    let processor = server.processor_time() - processor - beside.processor_time();
    let more = (server.peak() - rest) / f64::from(1 << 20);
    let (probe, moved) = beside.end().await;
    println!(
        "| {} | {:.2} | {more:.0} | {:.2} | {probe} | {moved} | {told} |",
        shape.name,
        sent as f64 / 1e6,
        (processor / 1e6).max(0.0),
    );
}

/// The code of an answer's first error, or how long it is.
fn says(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    match text.split("\"code\":\"").nth(1).and_then(|rest| rest.split('"').next()) {
        Some(code) => format!("`{code}`"),
        None => format!("answered, {} bytes", body.len()),
    }
}

/// A client that asks how the server is and moves a token without pause.
struct Beside {
    stop: Arc<AtomicBool>,
    slowest: [Arc<AtomicU64>; 2],
    asked: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Beside {
    async fn start(address: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let slowest: [Arc<AtomicU64>; 2] = Default::default();
        let asked = Arc::new(AtomicU64::new(0));
        let probe = || b"GET /health/ready HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec();
        let mut tasks = Vec::new();
        for (kind, slowest) in slowest.iter().enumerate() {
            let (stop, slowest, asked) =
                (Arc::clone(&stop), Arc::clone(slowest), Arc::clone(&asked));
            let mut client = Client::connect(address).await;
            tasks.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let body = if kind == 0 { probe() } else { store::a_small_move() };
                    let began = Instant::now();
                    client.answer(&body).await;
                    let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                    slowest.fetch_max(took, Ordering::Relaxed);
                    asked.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }));
        }
        Self { stop, slowest, asked, tasks }
    }

    /// About what the server has spent on it, in microseconds.
    fn processor_time(&self) -> f64 {
        const OF_ONE: f64 = 300.0;
        self.asked.load(Ordering::Relaxed) as f64 * OF_ONE
    }

    /// The slowest of both, in milliseconds.
    async fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("it is answered");
        }
        let ms = |slowest: &AtomicU64| slowest.load(Ordering::Relaxed).div_ceil(1_000);
        (ms(&self.slowest[0]), ms(&self.slowest[1]))
    }
}
