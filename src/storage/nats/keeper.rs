//! Opens the store and watches over it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{error, info, warn};

use super::api;
use super::config::{NATSConfigError, NATSStorageConfig, NATSStorageOptions};
use super::health::Meter;
use super::index::WorkflowIndex;
use super::link::Link;
use super::read::Reader;
use super::retention::Retention;
use super::stream::{self, OpenError};
use super::subjects;
use crate::domain::Token;

/// Pause between two tries to open the store.
const OPEN_PAUSE: Duration = Duration::from_millis(250);

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
pub struct Keeper {
    pub link: Arc<Link>,
    pub reader: Arc<Reader>,
    pub retention: Arc<Retention>,
    pub index: Arc<WorkflowIndex>,
    pub meter: Arc<Meter>,
    pub config: NATSStorageConfig,
    pub options: NATSStorageOptions,
    pub opened: watch::Sender<Opened>,
}

impl Keeper {
    pub async fn run(self) {
        if !self.open().await {
            return;
        }
        let mut changes = self.link.changes();
        let mut was_connected = true;
        loop {
            // Whether the connection changed or time passed, it looks.
            drop(timeout(self.options.health_check_interval, changes.changed()).await);
            let connected = self.link.is_connected();
            self.meter.set_connected(connected);
            match (was_connected, connected) {
                (true, false) => warn!(servers = self.link.urls(), "the connection broke"),
                (false, true) => info!(servers = self.link.urls(), "the connection is back"),
                (false, false) => warn!(servers = self.link.urls(), "no connection yet"),
                (true, true) => {}
            }
            was_connected = connected;
            if connected {
                match api::stream_state(&self.link).await {
                    Ok(state) => {
                        self.reader.set_placement(&state);
                        self.retention.counted(&state);
                    }
                    Err(error) => warn!(error = %error, "the stream cannot be looked at"),
                }
            }
        }
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
                    self.reader.set_placement(&state);
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

/// Clears what a token says of where it stands: its next message knows that itself.
pub fn forget_place_on_bus(token: &mut Token) {
    (token.nats_sequence, token.nats_timestamp, token.nats_subject) = (None, None, None);
    if let Some(newest) = token.transition_history.last_mut() {
        newest.nats_sequence = None;
    }
}
