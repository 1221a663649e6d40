//! Opens the store and watches over it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
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
use crate::storage::nats::wire::outage::{Line, Outage};

/// Pause between two tries to open the store.
const OPEN_PAUSE: Duration = Duration::from_millis(250);

/// Pause after a look that did not work: first, and at most.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);

/// The least time between two log lines that say that looks fail.
const TELL_PERIOD: Duration = Duration::from_secs(30);

/// Pause between two looks whether the connection stands again, at most.
const DISCONNECTED_PAUSE: Duration = Duration::from_secs(1);

/// The longest rest after a look before one that is only asked for.
const REST_MAX: Duration = Duration::from_secs(2);

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
    retry: Duration,
    /// Since when there is no connection, or looks fail.
    disconnected_since: Option<Instant>,
    failing_since: Option<Instant>,
    /// Until when the next look waits that is only asked for.
    rests_until: Instant,
    connection: Outage,
    looks: Outage,
    mirror: Outage,
    /// The replicas that were told to be lost last, and how many more.
    lost_replicas: (Vec<String>, u64),
}

impl Memory {
    fn new(keeper: Keeper, period: Duration) -> Self {
        let [connection, looks] = [period, TELL_PERIOD].map(Outage::new);
        Self {
            keeper,
            retry: RETRY_PAUSE,
            disconnected_since: None,
            failing_since: None,
            rests_until: Instant::now(),
            connection,
            looks,
            mirror: Outage::new(TELL_PERIOD),
            lost_replicas: (Vec::new(), 0),
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
        let period = self.options.health_check_interval;
        let mut memory = Memory::new(keeper, period);
        let (mut disturbed, mut connection) = (self.link.disturbed(), self.link.changes());
        loop {
            disturbed.mark_unchanged();
            connection.mark_unchanged();
            let connected = self.tell_connection(&mut memory);
            if connected {
                let begun = Instant::now();
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
                // Nothing is written while it is seen which store it is; where the way is long, that takes
                // long.
                memory.rests_until = Instant::now() + begun.elapsed().min(REST_MAX);
            }
            let wanted = async {
                sleep_until(memory.rests_until).await;
                self.life.look_wanted().await;
            };
            // Whatever happened, or if time passed, it looks.
            tokio::select! {
                _ = disturbed.changed() => {}
                () = wanted => {}
                () = sleep(if connected { period } else { period.min(DISCONNECTED_PAUSE) }) => {}
            }
        }
    }

    fn tell_connection(&self, memory: &mut Memory) -> bool {
        let (connected, now) = (self.link.is_connected(), Instant::now());
        self.meter.set_connected(connected);
        if connected {
            memory.disconnected_since = None;
            if memory.connection.works() {
                info!(servers = self.link.urls(), "the connection is back");
            }
            return true;
        }
        let since = *memory.disconnected_since.get_or_insert(now);
        match memory.connection.broken(since, now) {
            Some(Line::Begins) => warn!(servers = self.link.urls(), "the connection broke"),
            Some(Line::GoesOn) => warn!(reason = self.link.no_connection(), "no connection yet"),
            None => {}
        }
        false
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
                memory.failing_since = None;
                if memory.looks.works() {
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
                let now = Instant::now();
                let since = *memory.failing_since.get_or_insert(now);
                if memory.looks.broken(since, now).is_some() {
                    warn!(reason, "the stream cannot be looked at");
                }
                self.go_elsewhere(memory, since);
                false
            }
        }
    }

    /// Where looks go on to fail, another one of the servers may do better: one that is cut off from the
    /// others keeps its connections.
    fn go_elsewhere(&self, memory: &mut Memory, since: Instant) {
        if since.elapsed() >= ELSEWHERE_AFTER && self.config.nats_urls.len() > 1 {
            debug!("connecting anew, perhaps to another server");
            memory.connection.expected(Instant::now());
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
        self.note_too_few_replicas(looked.too_few);
        self.note_lost(looked.lost);
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
        self.tell_replicas(memory, &state);
        match jetstream::mirror(&self.link).await {
            Ok(mirror) => {
                if memory.mirror.works() {
                    info!("whether the stream has a mirror can be seen again");
                }
                self.note_mirror(mirror);
            }
            // A permission that may be missing.
            Err(ApiError::Link(LinkError::Denied(_))) => {}
            Err(error) => {
                let now = Instant::now();
                if memory.mirror.broken(now, now).is_some() {
                    warn!(%error, "whether the stream has a mirror cannot be seen");
                }
            }
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

    /// Says which replicas are missing: one more loss may stop everything, and health is not all that is
    /// watched.
    fn tell_replicas(&self, memory: &mut Memory, state: &StreamState) {
        let wrong = state.peers.iter().filter(|(_, wrong)| wrong.is_some());
        let missing = state.replicas.saturating_sub(1 + state.peers.len() as u64);
        let which = (wrong.map(|(name, _)| name.clone()).collect(), missing);
        if which == memory.lost_replicas {
            return;
        }
        memory.lost_replicas = which;
        let wrong = state.wrong_replicas();
        if wrong.is_empty() {
            info!(replicas = state.replicas, "all replicas of the stream are there again");
        } else {
            warn!(wrong = wrong.join("; "), "not all replicas of the stream are there");
        }
    }

    /// Says what somebody's changes of the stream may have cost.
    fn note_lost(&self, lost: Vec<String>) {
        for text in lost {
            if self.notices.lost(&text) {
                error!("{text}");
            }
        }
    }

    /// Says that the stream has fewer replicas than it should, or that it has as many again.
    fn note_too_few_replicas(&self, reason: Option<String>) {
        if self.notices.set_too_few_replicas(reason.clone()) {
            match reason {
                Some(reason) => warn!("{reason}"),
                None => info!("the stream has as many replicas as it should"),
            }
        }
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
        let opened = stream::open(&self.link, &self.config, &self.options).await?;
        self.note_too_few_replicas(opened.too_few);
        self.note_lost(opened.lost);
        let state = opened.state;
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
