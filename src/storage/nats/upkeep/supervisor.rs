//! Opens the store and watches over it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{error, info, warn};

use super::retention::Retention;
use super::stale_states;
use super::stream::{self, OpenError};
use crate::storage::nats::read::reader::Reader;
use crate::storage::nats::read::workflow_index::WorkflowIndex;
use crate::storage::nats::wire::config::{NATSConfigError, NATSStorageConfig, NATSStorageOptions};
use crate::storage::nats::wire::jetstream::{self, StreamState};
use crate::storage::nats::wire::link::Link;
use crate::storage::nats::wire::meter::Meter;
use crate::storage::nats::wire::subjects;

/// Pause between two tries to open the store.
const OPEN_PAUSE: Duration = Duration::from_millis(250);

/// Pause before what did not work is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The least time between two scans of which nothing but an unanswered request is the reason.
const SCAN_PAUSE: Duration = Duration::from_secs(300);

/// Time for one scan of all tokens: a million take some seconds.
const CLEANING_MAX: Duration = Duration::from_secs(120);

/// What the stream comes from: where it is another, a server may have crashed in between.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    created: String,
    server_id: String,
    leader: Option<String>,
    leader_since: String,
    /// Without replicas nats-server does not tell that the stream's server was restarted.
    unanswered: u64,
}

impl Origin {
    fn of(link: &Link, state: &StreamState) -> Self {
        Self {
            created: state.created.clone(),
            server_id: link.server_id(),
            leader: state.leader.clone(),
            leader_since: state.leader_since.clone(),
            unanswered: link.unanswered(),
        }
    }
}

/// Why a store could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NATSOpenError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] NATSConfigError),
    /// A person must change something first: the server is too old or without JetStream, or the
    /// stream that is there has other settings.
    #[error("{reason}")]
    Refused {
        /// What was found, and what is needed.
        reason: String,
    },
    /// Nobody answered in time, or the cluster was not ready.
    #[error("{reason}")]
    NotNow {
        /// What was tried and what came of it.
        reason: String,
    },
}

/// Whether the store can be used.
#[derive(Debug, Clone)]
pub enum Opened {
    NotYet(String),
    Yes,
    Refused(String),
}

/// The task that opens the store and looks at it from time to time.
pub struct Supervisor {
    pub link: Arc<Link>,
    pub reader: Arc<Reader>,
    pub retention: Arc<Retention>,
    pub index: Arc<WorkflowIndex>,
    pub meter: Arc<Meter>,
    pub config: NATSStorageConfig,
    pub options: NATSStorageOptions,
    pub opened: watch::Sender<Opened>,
    /// The server process whose stream was cleaned last.
    pub clean: watch::Sender<String>,
}

impl Supervisor {
    pub async fn run(self) {
        if !self.open().await {
            return;
        }
        let mut changes = self.link.changes();
        let (mut was_connected, mut cleaned, mut retry) = (true, None, RETRY_PAUSE);
        let mut scanned = None;
        loop {
            let connected = self.link.is_connected();
            self.meter.set_connected(connected);
            match (was_connected, connected) {
                (true, false) => warn!(servers = self.link.urls(), "the connection broke"),
                (false, true) => info!(servers = self.link.urls(), "the connection is back"),
                (false, false) => warn!(servers = self.link.urls(), "no connection yet"),
                (true, true) => {}
            }
            was_connected = connected;
            let period = self.options.health_check_interval;
            let period = if !connected || self.look(&mut cleaned, &mut scanned).await {
                retry = RETRY_PAUSE;
                period
            } else {
                retry = (2 * retry).min(period);
                retry
            };
            // Whether the connection changed or time passed, it looks.
            drop(timeout(period, changes.changed()).await);
        }
    }

    /// Looks at the stream, and cleans up if a server of it may have crashed since. Whether all of
    /// it worked.
    async fn look(&self, cleaned: &mut Option<Origin>, scanned: &mut Option<Instant>) -> bool {
        let state = match jetstream::stream_state(&self.link).await {
            Ok(state) => state,
            Err(error) => {
                warn!(error = %error, "the stream cannot be looked at");
                return false;
            }
        };
        self.reader.set_stream(&state);
        self.retention.counted(&state);
        match jetstream::mirror(&self.link).await {
            Ok(mirror) => self.reader.set_mirror(mirror),
            Err(error) => warn!(error = %error, "whether the stream has a mirror cannot be seen"),
        }
        let origin = Origin::of(&self.link, &state);
        if cleaned.as_ref() == Some(&origin) {
            return true;
        }
        if let Some(cleaned) = cleaned {
            if cleaned.leader_since != origin.leader_since {
                self.link.disturb();
            }
            // That a request had no answer is seldom a restart, and a scan goes through all tokens.
            let same = Origin { unanswered: origin.unanswered, ..cleaned.clone() };
            if same == origin && scanned.is_some_and(|at| at.elapsed() < SCAN_PAUSE) {
                return true;
            }
        }
        let removing = stale_states::remove(&self.link, &self.reader, &state);
        match timeout(CLEANING_MAX, removing).await {
            Ok(Ok(removed)) => {
                if removed > 0 {
                    warn!(
                        messages = removed,
                        "nats-server had brought removed states of tokens back, after a crash of its own; they are removed again"
                    );
                }
                self.clean.send_replace(origin.server_id.clone());
                (*cleaned, *scanned) = (Some(origin), Some(Instant::now()));
                return true;
            }
            Ok(Err(error)) => {
                warn!(error = %error, "what a crash may have brought back cannot be looked for")
            }
            Err(_) => warn!("looking for what a crash may have brought back took too long"),
        }
        false
    }

    /// Tries until the store is open; says once a period why it is not. False if it cannot be.
    async fn open(&self) -> bool {
        let mut told = None::<Instant>;
        loop {
            let connected = self.link.connected(Instant::now() + OPEN_PAUSE).await;
            let outcome = match connected {
                Ok(()) => stream::open(&self.link, &self.config, &self.options).await,
                Err(error) => Err(OpenError::NotNow(error.to_string())),
            };
            match outcome {
                Ok(state) => {
                    self.reader.set_stream(&state);
                    self.retention.counted(&state);
                    self.learn_workflows().await;
                    if told.is_some() {
                        info!(servers = self.link.urls(), "the store is open");
                    }
                    self.opened.send_replace(Opened::Yes);
                    return true;
                }
                Err(OpenError::Refused(reason)) => {
                    error!(reason, "the store cannot be opened");
                    self.opened.send_replace(Opened::Refused(reason));
                    return false;
                }
                Err(OpenError::NotNow(reason)) => {
                    if told.is_none_or(|at| at.elapsed() >= self.options.health_check_interval) {
                        warn!(reason, "the store cannot be opened yet, trying on");
                        told = Some(Instant::now());
                    }
                    self.opened.send_replace(Opened::NotYet(reason));
                    tokio::time::sleep(OPEN_PAUSE).await;
                }
            }
        }
    }

    /// Without it the first read of a token of each workflow would look in all of them.
    async fn learn_workflows(&self) {
        match subjects::workflows(&self.link).await {
            Ok(workflows) => {
                workflows.iter().take_while(|_| self.index.has_room()).for_each(|workflow| {
                    self.index.learn(workflow);
                });
            }
            Err(error) => warn!(error = %error, "the workflows could not be listed"),
        }
    }
}
