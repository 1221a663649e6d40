//! The parts of a store, put together, and its tasks.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::health::Monitor;
use super::readiness::Readiness;
use crate::storage::nats::read::life::Life;
use crate::storage::nats::read::reader::Reader;
use crate::storage::nats::read::workflow_index::WorkflowIndex;
use crate::storage::nats::upkeep::beat;
use crate::storage::nats::upkeep::cleaner::Cleaner;
use crate::storage::nats::upkeep::notices::Notices;
use crate::storage::nats::upkeep::retention::Retention;
use crate::storage::nats::upkeep::supervisor::{Looks, Standing, Supervisor};
use crate::storage::nats::wire::config::{NATSStorageConfig, NATSStorageOptions};
use crate::storage::nats::wire::link::Link;
use crate::storage::nats::wire::meter::Meter;
use crate::storage::nats::write::arbiter::Arbiter;
use crate::storage::nats::write::committer::Committer;
use crate::storage::nats::write::doubts::Doubts;
use crate::storage::nats::write::end_of_stream::{EndOfStream, Signals};
use crate::storage::nats::write::mend::Mender;
use crate::storage::nats::write::preceding::Preceding;
use crate::storage::nats::write::queue::Queue;

/// A store that works.
pub struct Assembly {
    pub parts: Parts,
    pub queue: Queue,
    pub readiness: Readiness,
    pub monitor: Monitor,
    /// The committer is the first of them.
    pub tasks: Vec<JoinHandle<()>>,
}

/// What several tasks share.
#[derive(Clone)]
pub struct Parts {
    pub link: Arc<Link>,
    pub reader: Arc<Reader>,
    pub index: Arc<WorkflowIndex>,
    pub life: Arc<Life>,
    pub retention: Arc<Retention>,
    pub meter: Arc<Meter>,
}

impl Parts {
    fn new(link: Link, config: &NATSStorageConfig) -> Self {
        let link = Arc::new(link);
        let attempts = usize::try_from(config.max_deliver).unwrap_or(usize::MAX);
        let reader = Arc::new(Reader::new(Arc::clone(&link), attempts));
        let index = Arc::new(WorkflowIndex::new(Arc::clone(&reader.epoch)));
        let life = Arc::new(Life::new(Arc::clone(&reader), Arc::clone(&index)));
        let least = [config.default_max_messages, config.default_max_bytes];
        let retention = Arc::new(Retention::new(Arc::clone(&reader), Arc::clone(&life), least));
        Self { link, reader, index, life, retention, meter: Arc::new(Meter::default()) }
    }

    fn mender(self, config: &NATSStorageConfig) -> Mender {
        let Parts { link, reader, index, meter, .. } = self;
        Mender { link, reader, meter, index, age: config.default_max_age }
    }
}

/// Puts a store together and starts its tasks.
pub fn assemble(link: Link, config: &NATSStorageConfig, options: NATSStorageOptions) -> Assembly {
    let parts = Parts::new(link, config);
    let Parts { link, reader, life, retention, meter, .. } = parts.clone();
    let doubts = Arc::new(Doubts::default());
    let (queue, waiting) = Queue::new(
        Arc::clone(&link),
        Arc::clone(&life),
        Arc::clone(&meter),
        Arc::clone(&doubts),
        config.reconnect_buffer_size,
    );
    let (set_standing, standing) =
        watch::channel(Standing::NotYet("it has not connected yet".into()));
    let (set_looked, looked) = watch::channel(None);
    let (set_settled, settled) = watch::channel(None);
    let (set_clean, clean) = watch::channel(String::new());
    let (set_seen, seen) = watch::channel(None);
    let (set_looks, looks) = watch::channel(Looks::default());
    let notices = Arc::new(Notices::default());
    let monitor = Monitor {
        link: Arc::clone(&link),
        reader: Arc::clone(&reader),
        retention: Arc::clone(&retention),
        meter: Arc::clone(&meter),
        life: Arc::clone(&life),
        standing: standing.clone(),
        notices: Arc::clone(&notices),
        looks,
    };
    let readiness = Readiness::new(Arc::clone(&link), standing.clone(), looked, clean);
    let signals = Signals { standing, settled, looked: set_looked };
    let (mender, preceding) =
        (Arc::new(parts.clone().mender(config)), Arc::new(Preceding::default()));
    let end = EndOfStream::new(signals, Arc::clone(&preceding));
    let looked_at = Arc::clone(&preceding).run(Arc::clone(&mender));
    let arbiter = Arbiter { mender, preceding };
    let committer =
        Committer::new(arbiter, Arc::clone(&retention), Arc::clone(&life), waiting, doubts, end);
    let cleaner = Cleaner {
        link: Arc::clone(&link),
        reader: Arc::clone(&reader),
        notices: Arc::clone(&notices),
        seen,
        clean: set_clean,
    };
    let (room_maker, beaten) = (Arc::clone(&retention), Arc::clone(&link));
    let supervisor = Supervisor {
        link,
        reader,
        retention,
        life,
        meter,
        config: config.clone(),
        options,
        notices,
        standing: set_standing,
        settled: set_settled,
        looks: set_looks,
        seen: set_seen,
    };
    let tasks = vec![
        tokio::spawn(committer.run()),
        tokio::spawn(supervisor.run()),
        tokio::spawn(cleaner.run()),
        tokio::spawn(async move { room_maker.run().await }),
        tokio::spawn(beat::run(beaten)),
        tokio::spawn(looked_at),
    ];
    Assembly { parts, queue, readiness, monitor, tasks }
}
