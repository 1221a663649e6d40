//! A GraphQL client in a page of code.

use std::time::Duration;

use serde_json::{Value, json};

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
    pub fn new(url: &str) -> Self {
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

/// The server that is there: the one at `CIRCUIT_BREAKER_URL`, which must answer, or the one at
/// <http://127.0.0.1:4000>, if it answers.
pub fn find() -> Result<Option<Client>, String> {
    let (url, named) = match std::env::var("CIRCUIT_BREAKER_URL") {
        Ok(url) => (url, true),
        Err(_) => (DEFAULT_URL.to_owned(), false),
    };
    let client = Client::new(&url);
    match client.is_alive() {
        Ok(()) => {
            println!("speaking to the server at {}", client.url());
            Ok(Some(client))
        }
        Err(error) if named => Err(format!(
            "CIRCUIT_BREAKER_URL: no server answers there: {error}; start one with `cargo run`"
        )),
        Err(_) => {
            println!("no server answers at {DEFAULT_URL}");
            Ok(None)
        }
    }
}
