//! The task that removes what a crash of nats-server has brought back.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::notices::Notices;
use super::stale_states;
use crate::storage::nats::read::reader::Reader;
use crate::storage::nats::wire::jetstream::StreamState;
use crate::storage::nats::wire::link::Link;
use crate::storage::nats::wire::meter::Meter;

/// Pause before what did not work is tried again, the first time and at most.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30);

/// The least time between two scans of which nothing but an unanswered request is the reason, or a part
/// of a batch that may have been stored.
const UNANSWERED_PAUSE: Duration = Duration::from_secs(300);
const PARTIAL_PAUSE: Duration = Duration::from_secs(10);

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
    /// How often a part of a batch may have been stored: then states may be left, too.
    partial: u64,
}

impl Origin {
    pub fn of(link: &Link, meter: &Meter, state: &StreamState) -> Self {
        Self {
            created: state.created.clone(),
            server_id: link.server_id(),
            leader: state.leader.clone(),
            leader_since: state.leader_since.clone(),
            unanswered: link.unanswered(),
            partial: meter.partial(),
        }
    }

    /// Whether another server leads than the one that led then.
    pub fn has_other_leader(&self, before: &Self) -> bool {
        self.leader_since != before.leader_since
    }

    /// How long a scan may wait, given the stream as it was at the last one: a request without an answer
    /// is seldom a restart, and a part of a batch is mostly mended by its sender.
    fn patience(&self, before: &Self) -> Duration {
        if *self == (Self { unanswered: self.unanswered, ..before.clone() }) {
            UNANSWERED_PAUSE
        } else if *self
            == (Self { unanswered: self.unanswered, partial: self.partial, ..before.clone() })
        {
            PARTIAL_PAUSE
        } else {
            Duration::ZERO
        }
    }
}

/// Scans all tokens whenever the stream has another origin.
pub struct Cleaner {
    pub link: Arc<Link>,
    pub reader: Arc<Reader>,
    pub notices: Arc<Notices>,
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
            let patience = match &cleaned {
                Some(cleaned) if *cleaned == origin => continue,
                Some(cleaned) => origin.patience(cleaned).saturating_sub(scanned.elapsed()),
                None => Duration::ZERO,
            };
            if patience > Duration::ZERO {
                // Unless it is another one by then.
                drop(timeout(patience, self.seen.changed()).await);
                self.seen.mark_changed();
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
        let wrong = match timeout(SCAN_MAX, removing).await {
            Ok(Ok(0)) => None,
            Ok(Ok(removed)) => {
                warn!(
                    messages = removed,
                    "nats-server had brought removed states of tokens back, after a crash of its own; they are removed again"
                );
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("it took too long".to_owned()),
        };
        let (worked, reason) = (wrong.is_none(), wrong.clone());
        match (self.notices.set_unscanned(wrong), worked) {
            (true, false) => {
                warn!(reason, "what a crash may have brought back cannot be looked for");
            }
            (true, true) => info!("what a crash may have brought back was looked for"),
            (false, _) => {}
        }
        worked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seldom_a_reason_for_a_scan_waits() {
        let before = Origin::default();
        let unanswered = Origin { unanswered: 1, ..before.clone() };
        let partial = Origin { unanswered: 1, partial: 1, ..before.clone() };
        let restarted = Origin { server_id: "another".to_owned(), ..partial.clone() };
        for (now, patience) in [
            (&unanswered, UNANSWERED_PAUSE),
            (&partial, PARTIAL_PAUSE),
            (&restarted, Duration::ZERO),
        ] {
            assert_eq!(now.patience(&before), patience, "{now:?}");
        }
    }
}
