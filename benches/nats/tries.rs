//! Moves over HTTP that may fail: what came of them, by the code of the error.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use uuid::Uuid;

use crate::client::Client;
use crate::movers::fire;
use crate::times::Times;

/// What came of many moves.
#[derive(Default)]
pub struct Tries {
    /// How long each took that was made.
    made: Vec<Duration>,
    /// How many of them were answered before the time was over.
    in_time: usize,
    time: Duration,
    /// The others by their code.
    failed: BTreeMap<String, usize>,
}

impl Tries {
    /// Moves that were made in each second of the time.
    pub fn per_second(&self) -> f64 {
        self.in_time as f64 / self.time.as_secs_f64()
    }

    /// The times of the moves that were made, if any was.
    pub fn times(&self) -> Option<Times> {
        (!self.made.is_empty()).then(|| Times::new(self.made.clone(), self.time))
    }

    pub fn failed(&self, code: &str) -> usize {
        self.failed.get(code).copied().unwrap_or(0)
    }

    /// Those that failed with any other code than these, as text.
    pub fn failed_otherwise(&self, codes: &[&str]) -> String {
        let others = self.failed.iter().filter(|(code, _)| !codes.contains(&code.as_str()));
        let others: Vec<_> = others.map(|(code, count)| format!("{count} {code}")).collect();
        if others.is_empty() { "0".to_owned() } else { others.join(", ") }
    }

    /// Both together; they were made at the same time.
    pub fn and(mut self, other: Self) -> Self {
        self.made.extend(other.made);
        self.in_time += other.in_time;
        self.time = self.time.max(other.time);
        for (code, count) in other.failed {
            *self.failed.entry(code).or_default() += count;
        }
        self
    }
}

/// Tokens that several move, and the version that each has as far as the answers tell.
pub struct Tokens {
    ids: Vec<Uuid>,
    versions: Vec<AtomicU64>,
    next: AtomicUsize,
}

impl Tokens {
    /// Tokens that have made no move.
    pub fn new(ids: Vec<Uuid>) -> Arc<Self> {
        let versions = ids.iter().map(|_| AtomicU64::new(1)).collect();
        Arc::new(Self { ids, versions, next: AtomicUsize::new(0) })
    }

    /// The next token of all, for whoever asks.
    pub fn next(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed) % self.ids.len()
    }

    /// Takes the answer to a move from this version; gives the code of its error, if it is one.
    fn answered(&self, index: usize, from: u64, answer: &[u8]) -> Result<(), String> {
        let answer: Value = serde_json::from_slice(answer).expect("an answer is JSON");
        if let Some(version) = answer["data"]["fireTransition"]["version"].as_u64() {
            self.versions[index].fetch_max(version, Ordering::Relaxed);
            return Ok(());
        }
        let facts = &answer["errors"][0]["extensions"];
        let code = facts["code"].as_str().unwrap_or_else(|| panic!("{answer}"));
        let details = &facts["details"];
        if code == "TRANSITION_NOT_ALLOWED" {
            // It is not where it was believed to be; unless an answer says more, it is one move on.
            self.versions[index].fetch_max(from + 1, Ordering::Relaxed);
        }
        Err(match details["outcome"].as_str() {
            Some(outcome) => format!("{code} ({outcome})"),
            None => code.to_owned(),
        })
    }

    /// Each connection moves the token that `pick` names (by connection and by count), until the
    /// time is over.
    pub async fn run(
        self: &Arc<Self>,
        address: &str,
        connections: usize,
        time: Duration,
        pick: impl Fn(usize, usize) -> usize + Clone + Send + 'static,
    ) -> Tries {
        let mut clients = Vec::new();
        for _ in 0..connections {
            clients.push(Client::connect(address).await);
        }
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for (connection, mut client) in clients.into_iter().enumerate() {
            let (tokens, pick) = (Arc::clone(self), pick.clone());
            tasks.spawn(async move {
                let mut tries = Tries { time, ..Tries::default() };
                let mut count = 0;
                while start.elapsed() < time {
                    let index = pick(connection, count);
                    let from = tokens.versions[index].load(Ordering::Relaxed);
                    let request = fire(tokens.ids[index], from as usize - 1);
                    let asked = Instant::now();
                    let answer = client.answer(&request).await;
                    let took = asked.elapsed();
                    match tokens.answered(index, from, answer) {
                        Ok(()) => {
                            tries.made.push(took);
                            tries.in_time += usize::from(start.elapsed() <= time);
                        }
                        Err(code) => *tries.failed.entry(code).or_default() += 1,
                    }
                    count += 1;
                }
                tries
            });
        }
        tasks.join_all().await.into_iter().fold(Tries::default(), Tries::and)
    }
}

/// Milliseconds as a table shows them, or that there is nothing to show.
pub fn shown(times: Option<&Times>, share: f64) -> String {
    times.map_or("none".to_owned(), |times| format!("{:.2} ms", crate::ms(times.quantile(share))))
}
