//! The task that removes what a crash of nats-server has brought back.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use super::stale_states;
use crate::storage::nats::read::reader::Reader;
use crate::storage::nats::wire::jetstream::StreamState;
use crate::storage::nats::wire::link::Link;

/// Pause before what did not work is tried again, the first time and at most.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30);

/// The least time between two scans of which nothing but an unanswered request is the reason.
const SCAN_PAUSE: Duration = Duration::from_secs(300);

/// Time for one scan of all tokens: a million take some seconds.
const SCAN_MAX: Duration = Duration::from_secs(120);

/// What the stream comes from: where it is another, a server may have crashed in between.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    created: String,
    server_id: String,
    leader: Option<String>,
    leader_since: String,
    /// Without replicas nats-server does not tell that the stream's server was restarted.
    unanswered: u64,
}

impl Origin {
    pub fn of(link: &Link, state: &StreamState) -> Self {
        Self {
            created: state.created.clone(),
            server_id: link.server_id(),
            leader: state.leader.clone(),
            leader_since: state.leader_since.clone(),
            unanswered: link.unanswered(),
        }
    }

    /// Whether another server leads than the one that led then.
    pub fn has_other_leader(&self, before: &Self) -> bool {
        self.leader_since != before.leader_since
    }

    /// Whether nothing has changed but that a request had no answer, which is seldom a restart.
    fn is_only_unanswered(&self, before: &Self) -> bool {
        *self == Self { unanswered: self.unanswered, ..before.clone() }
    }
}

/// Scans all tokens whenever the stream has another origin.
pub struct Cleaner {
    pub link: Arc<Link>,
    pub reader: Arc<Reader>,
    /// What the looks at the stream have seen last.
    pub seen: watch::Receiver<Option<(Origin, StreamState)>>,
    /// The server process whose stream was cleaned last.
    pub clean: watch::Sender<String>,
}

impl Cleaner {
    pub async fn run(mut self) {
        let (mut cleaned, mut scanned) = (None::<Origin>, Instant::now());
        let mut retry = RETRY_PAUSE;
        while self.seen.changed().await.is_ok() {
            let Some((origin, state)) = self.seen.borrow_and_update().clone() else { continue };
            let rests = cleaned.as_ref().is_some_and(|cleaned| {
                *cleaned == origin
                    || origin.is_only_unanswered(cleaned) && scanned.elapsed() < SCAN_PAUSE
            });
            if rests {
                continue;
            }
            if self.scan(&state).await {
                self.clean.send_replace(origin.server_id.clone());
                (cleaned, scanned, retry) = (Some(origin), Instant::now(), RETRY_PAUSE);
            } else {
                // Unless it is another one by then, the same is tried again.
                drop(timeout(retry, self.seen.changed()).await);
                retry = (2 * retry).min(RETRY_PAUSE_MAX);
                self.seen.mark_changed();
                sleep(RETRY_PAUSE.min(retry) / 10).await;
            }
        }
    }

    /// Whether it worked.
    async fn scan(&self, state: &StreamState) -> bool {
        let removing = stale_states::remove(&self.link, &self.reader, state);
        match timeout(SCAN_MAX, removing).await {
            Ok(Ok(removed)) => {
                if removed > 0 {
                    warn!(
                        messages = removed,
                        "nats-server had brought removed states of tokens back, after a crash of its own; they are removed again"
                    );
                }
                return true;
            }
            Ok(Err(error)) => {
                warn!(error = %error, "what a crash may have brought back cannot be looked for");
            }
            Err(_) => warn!("looking for what a crash may have brought back took too long"),
        }
        false
    }
}
