//! How the store does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::storage::nats::read::life::Life;
use crate::storage::nats::read::reader::Reader;
use crate::storage::nats::upkeep::notices::Notices;
use crate::storage::nats::upkeep::retention::Retention;
use crate::storage::nats::upkeep::supervisor::{Looks, Standing};
use crate::storage::nats::wire::jetstream::{self, StreamState};
use crate::storage::nats::wire::link::{Link, PAYLOAD_MIN};
use crate::storage::nats::wire::meter::Meter;
use crate::storage::{Figure, FigureKind, StorageError, StorageHealth};

/// How long a broken connection counts as being mended.
pub const RECONNECTING_MAX: Duration = Duration::from_secs(5);

/// How long health waits for a look at the stream.
const FRESH_WAIT: Duration = Duration::from_secs(1);

/// How a store does, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthStatus {
    /// Reads and writes work.
    Healthy,
    /// It works, but something needs a look: the connection is being made anew, a replica is
    /// missing, or the stream is full.
    Degraded,
    /// It does not work.
    Unhealthy,
}

/// How the connection to the bus stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionStatus {
    /// It stands.
    Connected,
    /// It broke a moment ago and is being made anew.
    Reconnecting,
    /// There is none.
    Disconnected,
}

/// Figures of a store, for monitoring.
#[derive(Debug, Clone, PartialEq)]
pub struct NATSMetrics {
    /// Messages in the stream: tokens, definitions and history.
    pub stream_message_count: u64,
    /// How long the write that was taken up last had waited for its turn.
    pub consumer_lag: Duration,
    /// How the connection stands.
    pub connection_status: ConnectionStatus,
    /// The part of the writes since the start that failed for want of the store, 0 to 1. Lost
    /// races and refused input do not count.
    pub error_rate: f64,
}

/// Looks at the store, for whoever monitors it.
pub struct Monitor {
    pub link: Arc<Link>,
    pub reader: Arc<Reader>,
    pub retention: Arc<Retention>,
    pub meter: Arc<Meter>,
    pub life: Arc<Life>,
    pub standing: watch::Receiver<Standing>,
    pub notices: Arc<Notices>,
    pub looks: watch::Receiver<Looks>,
}

impl Monitor {
    /// Figures as they are now. [`StorageError::Unavailable`] if the stream cannot be asked.
    pub async fn metrics(&self) -> Result<NATSMetrics, StorageError> {
        let state = jetstream::stream_state(&self.link).await?;
        Ok(NATSMetrics {
            stream_message_count: state.messages,
            consumer_lag: self.meter.lag(),
            connection_status: self.connection_status(),
            error_rate: self.meter.error_rate(),
        })
    }

    /// Figures for monitoring; those that cannot be had now are left out.
    pub async fn figures(&self) -> Vec<Figure> {
        let connected = f64::from(u8::from(self.link.is_connected()));
        let lag = self.meter.lag().as_secs_f64();
        let mut figures = vec![
            Figure::gauge("nats_connected", "1 while the connection to NATS stands.", connected),
            Figure::gauge(
                "nats_write_wait_seconds",
                "How long the write that was taken up last had waited for its turn.",
                lag,
            ),
            Figure::gauge(
                "nats_write_error_ratio",
                "The part of the writes since the start that failed for want of NATS.",
                self.meter.error_rate(),
            ),
            Figure {
                kind: FigureKind::Counter,
                ..Figure::gauge(
                    "nats_torn_changes_mended_total",
                    "Changes that nats-server had cut off in the middle and that were finished here.",
                    self.meter.mended() as f64,
                )
            },
        ];
        if let Ok(state) = jetstream::stream_state(&self.link).await {
            let of = |count: u64| count as f64;
            let messages = of(state.messages);
            figures.extend([
                Figure::gauge("nats_stream_messages", "Messages in the stream.", messages),
                Figure::gauge("nats_stream_bytes", "Bytes in the stream.", of(state.bytes)),
                Figure::gauge(
                    "nats_stream_subjects",
                    "Subjects in the stream.",
                    of(state.subjects),
                ),
            ]);
        }
        figures
    }

    /// How the connection stands.
    pub fn connection_status(&self) -> ConnectionStatus {
        if self.link.is_connected() {
            return ConnectionStatus::Connected;
        }
        match self.meter.disconnected_since() {
            Some(since) if since.elapsed() >= RECONNECTING_MAX => ConnectionStatus::Disconnected,
            // It broke so lately that nobody has noticed yet.
            _ => ConnectionStatus::Reconnecting,
        }
    }

    /// How an open store does.
    pub async fn look(&self) -> StorageHealth {
        match self.connection_status() {
            ConnectionStatus::Connected => self.fresh_look().await,
            ConnectionStatus::Reconnecting => {}
            ConnectionStatus::Disconnected => {
                return StorageHealth::Unhealthy(self.link.no_connection());
            }
        }
        // What did not work before the connection was given up does not work now.
        if let Some(reason) = self.known_trouble() {
            return StorageHealth::Unhealthy(reason);
        }
        if !self.link.is_connected() {
            return StorageHealth::Degraded(format!("reconnecting to {}", self.link.urls()));
        }
        match jetstream::stream_state(&self.link).await {
            Ok(state) => {
                self.reader.set_stream(&state);
                self.retention.counted(&state);
                let mut notices = self.notices.all();
                notices.extend(self.retention.full());
                notices.extend(small_payload(self.link.payload_max()));
                let limit = self.meter.limit();
                notices.extend(limit.map(|limit| {
                    format!("some changes were refused, and none as large was made since: {limit}")
                }));
                judge(&state, notices, self.reader.mirror())
            }
            Err(error) => StorageHealth::Unhealthy(error.to_string()),
        }
    }

    /// Why it does not work, as the last look or write has found.
    fn known_trouble(&self) -> Option<String> {
        if let Standing::Broken(reason) = &*self.standing.borrow() {
            return Some(reason.clone());
        }
        if let Some(reason) = self.notices.unlooked() {
            return Some(format!("the stream cannot be looked at: {reason}"));
        }
        self.meter.trouble().map(|reason| format!("nothing can be written: {reason}"))
    }

    /// Waits for the end of a look at the stream that begins from now on, for a moment.
    async fn fresh_look(&self) {
        let mut looks = self.looks.clone();
        let wanted = looks.borrow_and_update().begun + 1;
        self.life.want_look();
        // What takes longer is told by what is asked next.
        drop(timeout(FRESH_WAIT, looks.wait_for(|looks| looks.ended >= wanted)).await);
    }
}

fn small_payload(most: usize) -> Option<String> {
    (most < PAYLOAD_MIN).then(|| {
        format!("nats-server takes messages of {most} bytes at most, so larger tokens are refused; raise its max_payload to 1MB")
    })
}

fn judge(state: &StreamState, notices: Vec<String>, mirror: Option<String>) -> StorageHealth {
    if state.replicas > 1 && state.leader.is_none() {
        return StorageHealth::Unhealthy(
            "the stream has no leader; too few of its nodes are there, or their max_file_store or disk is used up"
                .to_owned(),
        );
    }
    let mut wrong = state.wrong_replicas();
    wrong.extend(notices);
    wrong.extend(mirror.map(|mirror| {
        format!("stream {mirror} mirrors ours and answers its direct gets, so reads are slower; delete it, and copy by a source instead of a mirror")
    }));
    if wrong.is_empty() {
        StorageHealth::Healthy
    } else {
        StorageHealth::Degraded(wrong.join("; "))
    }
}
