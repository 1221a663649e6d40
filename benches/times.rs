//! How long requests take.

use std::time::{Duration, Instant};

use super::client::Client;

/// How long many requests took.
pub struct Times {
    sorted: Vec<Duration>,
    pub elapsed: Duration,
}

impl Times {
    pub fn new(mut times: Vec<Duration>, elapsed: Duration) -> Self {
        times.sort_unstable();
        Self { sorted: times, elapsed }
    }

    pub fn per_second(&self) -> f64 {
        self.sorted.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// The time within which `share` of the requests were answered.
    pub fn quantile(&self, share: f64) -> Duration {
        let last = self.sorted.len().checked_sub(1).expect("something was measured");
        self.sorted[((last as f64) * share).round() as usize]
    }
}

/// Each connection asks what `next` gives it (by connection and by count), until the time is over.
pub async fn hammer(
    address: &str,
    connections: usize,
    time: Duration,
    next: impl Fn(usize, usize) -> Vec<u8> + Clone + Send + 'static,
) -> Times {
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(Client::connect(address).await);
    }
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for (connection, mut client) in clients.into_iter().enumerate() {
        let next = next.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            while start.elapsed() < time {
                let request = next(connection, times.len());
                let asked = Instant::now();
                client.ask(&request).await;
                times.push(asked.elapsed());
            }
            times
        });
    }
    let times = tasks.join_all().await.into_iter().flatten().collect();
    Times::new(times, start.elapsed())
}
