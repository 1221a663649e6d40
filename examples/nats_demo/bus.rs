//! The NATS side of the demo: a plain client that listens, and a nats-server for when there is none.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::time::timeout;

const STREAM: &str = "CIRCUIT_BREAKER_GLOBAL";

/// Time for one message; it takes a millisecond.
const MESSAGE_TIME_MAX: Duration = Duration::from_secs(10);

/// A nats-server of this run alone: killed, and its store removed, at the end.
pub struct OwnNats {
    child: Child,
    pub url: String,
    folder: PathBuf,
}

impl OwnNats {
    /// Starts the one in `NATS_SERVER`, or on the PATH; none if there is none.
    pub fn start() -> Result<Option<Self>, String> {
        let binary = std::env::var_os("NATS_SERVER").unwrap_or_else(|| "nats-server".into());
        let folder = std::env::temp_dir().join(format!("nats_demo-{}", std::process::id()));
        let mut command = Command::new(&binary);
        command.args(["--jetstream", "-a", "127.0.0.1", "-p", "-1", "-sd"]);
        command.arg(&folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{}: {error}", binary.display())),
        };
        let lines = child.stderr.take().map(|log| BufReader::new(log).lines());
        let mut lines = lines.into_iter().flatten().map_while(Result::ok);
        let mut url = None;
        let ready = lines.by_ref().any(|line| {
            let address = line.split("Listening for client connections on ").nth(1);
            url = address.map(|address| format!("nats://{address}")).or(url.take());
            line.ends_with("Server is ready")
        });
        // It goes on writing; somebody must read, or it would stop once the pipe is full.
        std::thread::spawn(move || lines.for_each(drop));
        let own = Self { child, url: url.unwrap_or_default(), folder };
        if ready { Ok(Some(own)) } else { Err(format!("{} does not start", binary.display())) }
    }
}

impl Drop for OwnNats {
    fn drop(&mut self) {
        // It is the end of the run; there is nobody left to tell.
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// What any program in any language can do: no word of Circuit Breaker in here but its subjects.
pub struct Listener<'a> {
    runtime: &'a Runtime,
    client: Client,
    live: Subscriber,
}

impl<'a> Listener<'a> {
    /// Listens to what is committed for a workflow from now on.
    pub fn start(runtime: &'a Runtime, url: &str, workflow: &str) -> Result<Self, String> {
        let subject = format!("cb.live.{workflow}.>");
        let started = runtime.block_on(async {
            let client = async_nats::connect(url).await.map_err(|error| error.to_string())?;
            let live = client.subscribe(subject).await.map_err(|error| error.to_string())?;
            client.flush().await.map_err(|error| error.to_string())?;
            Ok((client, live))
        });
        let (client, live) = started.map_err(|error: String| format!("{url}: {error}"))?;
        Ok(Self { runtime, client, live })
    }

    /// Prints what arrives until a token has left its place: the last message of a move.
    pub fn show_move(&mut self) -> Result<(), String> {
        loop {
            let next = async { timeout(MESSAGE_TIME_MAX, self.live.next()).await };
            let message = self.runtime.block_on(next);
            let message = message.ok().flatten().ok_or("nothing arrives on cb.live")?;
            let what = match message.payload.len() {
                0 => "left".to_owned(),
                bytes => format!("{bytes} bytes of JSON"),
            };
            println!("    heard on {}: {what}", message.subject);
            if message.payload.is_empty() {
                return Ok(());
            }
        }
    }

    /// Reads the message on a subject with one request.
    pub fn read(&self, subject: &str) -> Result<Value, String> {
        let request = json!({ "last_by_subj": subject }).to_string();
        let asked = self.client.request(format!("$JS.API.DIRECT.GET.{STREAM}"), request.into());
        let answer = self.runtime.block_on(async { timeout(MESSAGE_TIME_MAX, asked).await });
        let answer = answer.map_err(|_| "no answer".to_owned())?.map_err(|e| e.to_string())?;
        serde_json::from_slice(&answer.payload).map_err(|error| format!("{subject}: {error}"))
    }
}
