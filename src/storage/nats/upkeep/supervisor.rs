//! Opens the store and watches over it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, error, info, warn};

use super::beat;
use super::cleaner::Origin;
use super::identity::{CUT_OFF, Keeper};
use super::notices::Notices;
use super::retention::Retention;
use super::stream::{self, OpenError};
use crate::storage::StorageError;
use crate::storage::nats::read::life::Life;
use crate::storage::nats::read::reader::Reader;
use crate::storage::nats::wire::config::{NATSConfigError, NATSStorageConfig, NATSStorageOptions};
use crate::storage::nats::wire::jetstream::{self, ApiError, StreamState};
use crate::storage::nats::wire::link::{Link, LinkError};
use crate::storage::nats::wire::meter::Meter;
use crate::storage::nats::wire::names::ALL_DOUBLE_IDS;

/// Pause between two tries to open the store.
const OPEN_PAUSE: Duration = Duration::from_millis(250);

/// Pause after a look that did not work: first, and at most.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);

/// The least time between two log lines that say that looks fail.
const TELL_PERIOD: Duration = Duration::from_secs(30);

/// How long looks fail before another server is tried.
const ELSEWHERE_AFTER: Duration = Duration::from_secs(5);

/// Ids of two tokens that are named at once.
const DOUBLE_IDS_MAX: usize = 8;

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    NotYet(String),
    Open,
    /// It was open, and a person must change something before anything can be written again.
    Broken(String),
    /// It cannot be opened.
    Refused(String),
}

/// How many looks at the stream have begun, and ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct Looks {
    pub begun: u64,
    pub ended: u64,
}

/// The task that opens the store and looks at it from time to time.
pub struct Supervisor {
    pub link: Arc<Link>,
    pub reader: Arc<Reader>,
    pub retention: Arc<Retention>,
    pub life: Arc<Life>,
    pub meter: Arc<Meter>,
    pub config: NATSStorageConfig,
    pub options: NATSStorageOptions,
    pub notices: Arc<Notices>,
    pub standing: watch::Sender<Standing>,
    /// The number of disturbances that the last look knew of, once it has worked.
    pub settled: watch::Sender<Option<u64>>,
    pub looks: watch::Sender<Looks>,
    /// What the last look has seen.
    pub seen: watch::Sender<Option<(Origin, StreamState)>>,
}

/// What the task remembers from one look to the next.
struct Memory {
    keeper: Keeper,
    was_connected: bool,
    retry: Duration,
    told_at: Option<Instant>,
    /// When it was told last that the connection broke, and whether it is to be told that it is back.
    broke_at: Option<Instant>,
    tells_back: bool,
    /// Whether it is to be told that looks work again.
    tells_looked: bool,
    /// Since when looks fail.
    failing_since: Option<Instant>,
}

impl Memory {
    fn new(keeper: Keeper) -> Self {
        Self {
            keeper,
            was_connected: true,
            retry: RETRY_PAUSE,
            told_at: None,
            broke_at: None,
            tells_back: false,
            tells_looked: false,
            failing_since: None,
        }
    }
}

impl Supervisor {
    pub async fn run(self) {
        let mut keeper = Keeper::new(
            self.config.default_max_age,
            Arc::clone(&self.life),
            Arc::clone(&self.meter),
        );
        if !self.open(&mut keeper).await {
            return;
        }
        let mut memory = Memory::new(keeper);
        let (mut disturbed, mut connection) = (self.link.disturbed(), self.link.changes());
        loop {
            disturbed.mark_unchanged();
            connection.mark_unchanged();
            let connected = self.tell_connection(&mut memory);
            if connected {
                self.looks.send_modify(|looks| looks.begun += 1);
                let worked = self.look(&mut memory).await;
                self.looks.send_modify(|looks| looks.ended = looks.begun);
                if !worked {
                    // A connection that stands again is worth a try at once.
                    drop(timeout(memory.retry, connection.changed()).await);
                    memory.retry = (2 * memory.retry).min(RETRY_PAUSE_MAX);
                    continue;
                }
                memory.retry = RETRY_PAUSE;
            }
            // Whatever happened, or if time passed, it looks.
            tokio::select! {
                _ = disturbed.changed() => {}
                () = self.life.look_wanted() => {}
                () = sleep(self.options.health_check_interval) => {}
            }
        }
    }

    fn tell_connection(&self, memory: &mut Memory) -> bool {
        let connected = self.link.is_connected();
        self.meter.set_connected(connected);
        let period = self.options.health_check_interval;
        match (memory.was_connected, connected) {
            // One that breaks again and again is told of once in that time, also by the lines below.
            (true, false) if memory.broke_at.is_some_and(|at| at.elapsed() < period) => {}
            (true, false) => {
                warn!(servers = self.link.urls(), "the connection broke");
                (memory.broke_at, memory.tells_back) = (Some(Instant::now()), true);
            }
            (false, true) if std::mem::take(&mut memory.tells_back) => {
                info!(servers = self.link.urls(), "the connection is back");
            }
            (false, true) => {}
            (false, false) if memory.told_at.is_some_and(|at| at.elapsed() < period) => {}
            (false, false) => {
                warn!(servers = self.link.urls(), "no connection yet");
                memory.tells_back = true;
            }
            (true, true) => {}
        }
        if !connected && memory.told_at.is_none_or(|at| at.elapsed() >= period) {
            memory.told_at = Some(Instant::now());
        }
        memory.was_connected = connected;
        connected
    }

    /// Looks at the stream: whether it is the one that it was, with the settings that it must have.
    /// Whether that worked; then all can go on that waits for it.
    async fn look(&self, memory: &mut Memory) -> bool {
        let disturbances = self.link.disturbances();
        let outcome = self.try_look(memory).await.map_err(|error| match self.link.all_denied() {
            Some(denied) => OpenError::Refused(denied),
            None => error,
        });
        if let Err(OpenError::Behind(reason)) = &outcome {
            // What it would answer is less than was answered before.
            self.stand(Standing::NotYet(reason.clone()));
        }
        match outcome {
            Ok(()) => {
                self.notices.set_unlooked(None);
                (memory.told_at, memory.failing_since) = (None, None);
                if std::mem::take(&mut memory.tells_looked) {
                    info!("the stream can be looked at again");
                }
                self.stand(Standing::Open);
                self.settled.send_replace(Some(disturbances));
                true
            }
            Err(OpenError::Refused(reason)) => {
                self.stand(Standing::Broken(reason));
                false
            }
            Err(OpenError::NotNow(reason) | OpenError::Behind(reason)) => {
                self.notices.set_unlooked(Some(reason.clone()));
                self.go_elsewhere(memory);
                if memory.told_at.is_none_or(|at| at.elapsed() >= TELL_PERIOD) {
                    warn!(reason, "the stream cannot be looked at");
                    (memory.told_at, memory.tells_looked) = (Some(Instant::now()), true);
                }
                false
            }
        }
    }

    /// Where looks go on to fail, another one of the servers may do better: one that is cut off from the
    /// others keeps its connections.
    fn go_elsewhere(&self, memory: &mut Memory) {
        let since = *memory.failing_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= ELSEWHERE_AFTER && self.config.nats_urls.len() > 1 {
            debug!("connecting anew, perhaps to another server");
            self.link.leave();
            memory.failing_since = None;
        }
    }

    fn stand(&self, standing: Standing) {
        let before = self.standing.send_replace(standing.clone());
        match (&before, &standing) {
            _ if before == standing => {}
            (_, Standing::Broken(reason)) => {
                error!(reason, "nothing is written any more until this is put right");
            }
            (Standing::Broken(_), Standing::Open) => info!("the store works again"),
            _ => {}
        }
    }

    async fn try_look(&self, memory: &mut Memory) -> Result<(), OpenError> {
        let acknowledged = self.reader.acknowledged();
        let known = self.reader.last_sequence();
        let looked = stream::look(&self.link, &self.config, &self.options).await?;
        let state = looked.state;
        for text in looked.lost {
            if self.notices.lost(&text) {
                error!("{text}");
            }
        }
        if state.is_cut_off && state.last_sequence < known {
            return Err(OpenError::Behind(CUT_OFF.to_owned()));
        }
        if let Some(wrong) = looked.wrong {
            // What that has cost at once, such as all that no consumer asks for, is not answered any more.
            let was_broken = matches!(*self.standing.borrow(), Standing::Broken(_));
            if !was_broken && let Err(error) = self.look_at_life(memory, &state, acknowledged).await
            {
                debug!(%error, "what store it is cannot be seen or written");
            }
            return Err(OpenError::Refused(wrong));
        }
        stream::probe(&self.link).await?;
        self.reader.set_copies(&state);
        self.look_at_life(memory, &state, acknowledged).await?;
        self.reader.set_stream(&state);
        self.retention.counted(&state);
        match jetstream::mirror(&self.link).await {
            Ok(mirror) => self.note_mirror(mirror),
            // A permission that may be missing.
            Err(ApiError::Link(LinkError::Denied(_))) => {}
            Err(error) => warn!(error = %error, "whether the stream has a mirror cannot be seen"),
        }
        self.note_double_ids().await?;
        self.link.pulse().want(beat::is_needed(&self.link, &state));
        let origin = Origin::of(&self.link, &self.meter, &state);
        let before = self.seen.send_replace(Some((origin.clone(), state)));
        if before.is_some_and(|(before, _)| origin.has_other_leader(&before)) {
            self.link.disturb();
        }
        Ok(())
    }

    /// Looks whether it is the store that it was.
    async fn look_at_life(
        &self,
        memory: &mut Memory,
        state: &StreamState,
        acknowledged: u64,
    ) -> Result<(), StorageError> {
        let suspected = self.life.take_suspicion();
        let looked = memory.keeper.look(&self.reader, state, acknowledged, suspected).await;
        let another = looked.inspect_err(|_| {
            if suspected {
                self.life.suspect();
            }
        })?;
        if another {
            self.link.disturb();
        }
        Ok(())
    }

    fn note_mirror(&self, mirror: Option<String>) {
        match (self.reader.mirror(), &mirror) {
            (None, Some(mirror)) => {
                warn!(
                    mirror,
                    "a stream mirrors ours and answers its direct gets, so reads are slower"
                );
            }
            (Some(mirror), None) => info!(mirror, "no stream mirrors ours any more"),
            _ => {}
        }
        self.reader.set_mirror(mirror);
    }

    async fn note_double_ids(&self) -> Result<(), StorageError> {
        let deadline = Instant::now() + RETRY_PAUSE_MAX;
        let found = self.reader.events(ALL_DOUBLE_IDS, 1, DOUBLE_IDS_MAX, deadline).await?;
        let ids = found.messages.iter().filter_map(|stored| stored.subject.rsplit('.').next());
        let ids: Vec<_> = ids.collect();
        self.notices.set_double_ids((!ids.is_empty()).then(|| {
            format!(
                "two tokens of an older store have the same id, and a read by id alone answers one of them, mostly the older: {}{}; where one of them is gone, purge the id's subject {ALL_DOUBLE_IDS}",
                ids.join(", "),
                if found.more { " and others" } else { "" }
            )
        }));
        Ok(())
    }

    /// Tries until the store is open; says once a period why it is not. False if it cannot be.
    async fn open(&self, keeper: &mut Keeper) -> bool {
        let mut told = None::<Instant>;
        loop {
            match self.try_open(keeper).await {
                Ok(state) => {
                    self.reader.set_stream(&state);
                    self.retention.counted(&state);
                    if told.is_some() {
                        info!(servers = self.link.urls(), "the store is open");
                    }
                    self.standing.send_replace(Standing::Open);
                    return true;
                }
                Err(OpenError::Refused(reason)) => {
                    error!(reason, "the store cannot be opened");
                    self.standing.send_replace(Standing::Refused(reason));
                    return false;
                }
                Err(OpenError::NotNow(reason) | OpenError::Behind(reason)) => {
                    if told.is_none_or(|at| at.elapsed() >= self.options.health_check_interval) {
                        warn!(reason, "the store cannot be opened yet, trying on");
                        told = Some(Instant::now());
                    }
                    self.standing.send_replace(Standing::NotYet(reason));
                    sleep(OPEN_PAUSE).await;
                }
            }
        }
    }

    async fn try_open(&self, keeper: &mut Keeper) -> Result<StreamState, OpenError> {
        let connected = self.link.connected(Instant::now() + OPEN_PAUSE).await;
        connected.map_err(|error| OpenError::NotNow(error.to_string()))?;
        let state = stream::open(&self.link, &self.config, &self.options).await?;
        stream::probe(&self.link).await?;
        self.reader.set_stream(&state);
        keeper.begin(&self.reader, &state).await?;
        Ok(state)
    }
}

impl From<StorageError> for OpenError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Corrupt { .. } => OpenError::Refused(error.to_string()),
            StorageError::Unavailable { reason } => OpenError::NotNow(reason),
            _ => OpenError::NotNow(error.to_string()),
        }
    }
}
