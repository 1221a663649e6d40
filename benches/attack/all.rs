//! All shapes at once, beside clients that do not behave.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Beside;
use super::server::Server;
use super::shapes::Shape;

/// What comes and stays, a second.
const UNREAD: u64 = 20;
const HALF_BODIES: u64 = 20;
const HEADS: u64 = 100;

pub async fn at_once(path: &Path, shapes: Vec<Shape>, time: Duration) {
    let server = Server::start(path);
    let rest = server.peak();
    let beside = Beside::start(&server.address).await;
    let (end, sent) = (Instant::now() + time, Arc::new(AtomicU64::new(0)));
    let large = super::shapes::large_answer();
    let mut tasks = tokio::task::JoinSet::new();
    for shape in shapes {
        let (address, sent) = (server.address.clone(), Arc::clone(&sent));
        tasks.spawn(async move {
            let requests: Vec<_> = shape.requests.iter().map(|body| closing(body)).collect();
            for body in requests.iter().cycle() {
                if Instant::now() >= end {
                    break;
                }
                let left = end.saturating_duration_since(Instant::now());
                drop(timeout(left, exchange(&address, body)).await);
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let mut kept = Vec::new();
    let pause = Duration::from_millis(1_000 / (UNREAD + HALF_BODIES + HEADS));
    let body = "POST /graphql HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 4000000\r\n\r\n";
    let half = [body.as_bytes(), &[b' '; 200_000]].concat();
    for n in 0.. {
        if Instant::now() >= end {
            break;
        }
        let begin: &[u8] = match n % 7 {
            0 => &large,
            1 => &half,
            _ => b"POST /graphql HTTP/1.1\r\nhost: x\r\n",
        };
        if let Ok(mut stream) = TcpStream::connect(&server.address).await {
            drop(timeout(Duration::from_millis(50), stream.write_all(begin)).await);
            kept.push(stream);
        }
        tokio::time::sleep(pause).await;
    }
    tasks.join_all().await;
    let peak = server.peak();
    let connections = kept.len();
    let (probe, moved) = beside.end().await;
    let ended = server.end();
    println!(
        "\nAll at once for {} s: {} requests, {connections} connections that do not go on. At rest {:.0} MiB, at most {:.0} MiB; slowest probe {probe} ms, slowest move {moved} ms; SIGTERM took {:.1} s.",
        time.as_secs(),
        sent.load(Ordering::Relaxed),
        rest / f64::from(1 << 20),
        peak / f64::from(1 << 20),
        ended.as_secs_f64()
    );
}

/// Sends a request on a connection of its own and reads whatever comes.
async fn exchange(address: &str, request: &[u8]) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request).await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    Ok(())
}

/// The same request, after whose answer the connection ends.
fn closing(request: &[u8]) -> Vec<u8> {
    let line = request.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    [&request[..line], b"connection: close\r\n", &request[line..]].concat()
}
