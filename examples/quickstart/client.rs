//! A GraphQL client in a page of code, and a server for when there is none.

use std::sync::Arc;
use std::time::Duration;

use circuit_breaker::{InMemoryStorage, create_schema_with_storage, http};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const DEFAULT_URL: &str = "http://127.0.0.1:4000";

/// Time for one answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);

/// Speaks to one server.
pub struct Client {
    agent: ureq::Agent,
    url: String,
}

/// Why there is no data.
pub enum Failure {
    /// The server says no, and by this code why.
    Refused { code: String, details: Value },
    /// Anything that this example cannot go on from.
    Broken(String),
}

impl From<Failure> for String {
    fn from(failure: Failure) -> String {
        match failure {
            Failure::Refused { code, details } => format!("the server refuses, {code}: {details}"),
            Failure::Broken(reason) => reason,
        }
    }
}

impl Client {
    fn new(url: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(ANSWER_TIME_MAX));
        Self { agent: config.build().into(), url: url.trim_end_matches('/').to_owned() }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sends a query or a mutation and gives its data.
    pub fn ask(&self, query: &str, variables: &Value) -> Result<Value, Failure> {
        let broken = |error: &dyn std::fmt::Display| {
            Failure::Broken(format!("{}/graphql: {error}", self.url))
        };
        let body = json!({ "query": query, "variables": variables }).to_string();
        let request = self.agent.post(format!("{}/graphql", self.url));
        let sent = request.header("content-type", "application/json").send(body);
        let text = sent.and_then(|mut answer| answer.body_mut().read_to_string());
        let text = text.map_err(|error| broken(&error))?;
        let mut answer: Value = serde_json::from_str(&text).map_err(|error| broken(&error))?;
        let Some(mut error) = answer.pointer_mut("/errors/0").map(Value::take) else {
            return Ok(answer["data"].take());
        };
        match error["extensions"]["code"].as_str() {
            Some(code) => Err(Failure::Refused {
                code: code.to_owned(),
                details: error["extensions"]["details"].take(),
            }),
            None => Err(broken(&error)),
        }
    }

    fn is_alive(&self) -> Result<(), String> {
        let answer = self.agent.get(format!("{}/health/live", self.url)).call();
        match answer {
            Ok(answer) if answer.status() == 200 => Ok(()),
            Ok(answer) => Err(format!("{}/health/live answers {}", self.url, answer.status())),
            Err(error) => Err(format!("{}: {error}", self.url)),
        }
    }
}

/// A server inside this process.
pub struct OwnServer {
    runtime: Runtime,
    serving: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

impl OwnServer {
    fn start() -> std::io::Result<(Self, String)> {
        let runtime = Runtime::new()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let url = format!("http://{}", listener.local_addr()?);
        let schema = create_schema_with_storage(Arc::new(InMemoryStorage::new()));
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = runtime.spawn(http::serve(listener, http::router(schema), async {
            // A sender that is gone is a signal, too.
            drop(stopped.await);
        }));
        Ok((Self { runtime, serving, stop }, url))
    }

    pub fn stop(self) -> Result<(), String> {
        // It may have ended by itself; waiting for it tells.
        self.stop.send(()).ok();
        let ended = self.runtime.block_on(self.serving);
        ended.map_err(|error| format!("the server of this example failed: {error}"))
    }
}

/// Finds the server to speak to, or starts one.
pub fn connect() -> Result<(Client, Option<OwnServer>), String> {
    if let Ok(url) = std::env::var("CIRCUIT_BREAKER_URL") {
        let client = Client::new(&url);
        client.is_alive().map_err(|error| {
            format!(
                "CIRCUIT_BREAKER_URL: no server answers there: {error}; start one with `cargo run`"
            )
        })?;
        println!("speaking to the server at {}", client.url());
        return Ok((client, None));
    }
    let client = Client::new(DEFAULT_URL);
    if client.is_alive().is_ok() {
        println!("speaking to the server at {DEFAULT_URL}");
        return Ok((client, None));
    }
    let (server, url) = OwnServer::start()
        .map_err(|error| format!("no server answers at {DEFAULT_URL}, and none starts: {error}"))?;
    println!("no server answers at {DEFAULT_URL}: this run has its own, in memory");
    Ok((Client::new(&url), Some(server)))
}
