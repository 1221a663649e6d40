//! The processes that are measured: nats-servers and the servers on them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use circuit_breaker::NATSStorageConfig;

use crate::nats_server::{Cluster, NatsServer};

/// Messages that the stream may hold where its limit is not what is measured.
pub const ROOM: u64 = 20_000_000;

/// Time for a server to open its store.
const READY_TIME_MAX: Duration = Duration::from_secs(60);

/// nats-servers, and which server is measured on them.
pub struct Bus {
    nodes: Nodes,
    binary: PathBuf,
}

/// One nats-server or three.
enum Nodes {
    One(NatsServer),
    Three(Cluster),
}

impl Bus {
    /// For the server of this build, or the one that `BENCH_SERVER` names.
    pub fn start(replicas: usize) -> Self {
        let other = std::env::var_os("BENCH_SERVER");
        Self::start_for(replicas, other.unwrap_or_else(|| env!("CARGO_BIN_EXE_server").into()))
    }

    /// For this server binary.
    pub fn start_for(replicas: usize, binary: impl Into<PathBuf>) -> Self {
        let nodes = match replicas {
            1 => NatsServer::start().map(Nodes::One),
            _ => Cluster::start().map(Nodes::Three),
        };
        Self { nodes: nodes.expect("nats-server is there"), binary: binary.into() }
    }

    fn config(&self) -> NATSStorageConfig {
        match &self.nodes {
            Nodes::One(server) => server.config(),
            Nodes::Three(cluster) => cluster.config(0),
        }
    }

    /// Moves the stream's leader to the node that the server is connected to: from there each message and
    /// each read takes one way less, and where it is elected is chance.
    pub async fn lead_from_first(&self) {
        let Nodes::Three(cluster) = &self.nodes else { return };
        let client = async_nats::connect(cluster.nodes[0].url()).await.expect("it listens");
        let wanted = "\"leader\":\"n0\"";
        for _ in 0..50 {
            let ask = |what: &str| format!("$JS.API.STREAM.{what}.CIRCUIT_BREAKER_GLOBAL");
            let info = client.request(ask("INFO"), "".into()).await.expect("it answers");
            if String::from_utf8_lossy(&info.payload).contains(wanted) {
                return;
            }
            let to = "{\"placement\":{\"preferred\":\"n0\"}}";
            client.request(ask("LEADER.STEPDOWN"), to.into()).await.expect("it answers");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("the stream gets no leader on the first node");
    }

    /// The nats-server that the limit is sent to.
    pub fn url(&self) -> String {
        self.config().nats_urls.swap_remove(0)
    }
}

/// A server process, killed at the end.
pub struct Server {
    child: Child,
    pub address: String,
}

impl Server {
    pub fn start(bus: &Bus) -> Self {
        Self::with_limit(bus, ROOM)
    }

    /// One whose stream may hold so many messages.
    pub fn with_limit(bus: &Bus, messages: u64) -> Self {
        let replicas = if matches!(bus.nodes, Nodes::One(_)) { "1" } else { "3" };
        let mut child = Command::new(&bus.binary)
            .env_clear()
            .env("LISTEN_ADDR", "127.0.0.1:0")
            .env("STORAGE_BACKEND", "nats")
            // Of several it would take a random one, and it costs whether that one leads the stream.
            .env("NATS_URL", bus.url())
            .env("NATS_REPLICAS", replicas)
            .env("NATS_MAX_MESSAGES", messages.to_string())
            .env("NATS_MAX_BYTES", (16_u64 << 30).to_string())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", bus.binary.display()));
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let address = lines.find_map(|line| {
            let line = line.expect("the log is text");
            let rest = line.split("listening on http://").nth(1)?;
            rest.split(',').next().map(str::to_owned)
        });
        // The pipe must not fill up.
        std::thread::spawn(move || lines.for_each(drop));
        let server = Self { child, address: address.expect("it says where it listens") };
        server.wait_until_ready();
        server
    }

    /// It listens before a cluster of nats-servers has formed.
    fn wait_until_ready(&self) {
        let start = Instant::now();
        while !self.is_ready().expect("the server answers") {
            assert!(start.elapsed() < READY_TIME_MAX, "the store opens");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn is_ready(&self) -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(&self.address)?;
        let request = "GET /health/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    }

    /// Resident memory in MB.
    pub fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("Linux tells");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        kib.expect("it is a number") * 1_024.0 / 1e6
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
