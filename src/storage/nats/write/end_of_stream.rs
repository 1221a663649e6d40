//! When the end of the stream is looked at: nothing is written before it is whole.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::mend::Mender;
use super::preceding::Preceding;
use crate::storage::StorageError;
use crate::storage::nats::read::life::Life;
use crate::storage::nats::read::reader::{Reader, unavailable};
use crate::storage::nats::upkeep::supervisor::Standing;
use crate::storage::nats::wire::link::Link;

/// Pause before it is looked at again where that did not work.
const LOOK_AGAIN_PAUSE: Duration = Duration::from_millis(200);

/// How long it waits for the look at what store it is.
const SETTLE_WAIT: Duration = Duration::from_millis(200);

/// The most time for one look.
const LOOK_WAIT_MAX: Duration = Duration::from_secs(5);

/// What the committer and others tell one another.
pub struct Signals {
    /// Whether anything can be written.
    pub standing: watch::Receiver<Standing>,
    /// What had disturbed the connection when the stream was looked at last: before that has seen what
    /// store it is, its end is not looked at.
    pub settled: watch::Receiver<Option<u64>>,
    /// The same for the end of the stream; readers wait for it.
    pub looked: watch::Sender<Option<u64>>,
}

/// What is known of the end of the stream.
pub struct EndOfStream {
    pub signals: Signals,
    /// The sequence up to which the stream is known to be whole, in which life of the store.
    whole: (u64, u64),
    /// What others wrote right before batches of this server, and is still to be looked at.
    preceding: Arc<Preceding>,
    /// When it is looked at again, if a look has failed.
    look_at: Option<Instant>,
}

impl EndOfStream {
    pub fn new(signals: Signals, preceding: Arc<Preceding>) -> Self {
        Self { signals, whole: (0, 0), preceding, look_at: None }
    }

    /// Whether what stands at this sequence is known to be part of a whole change: it was written by this
    /// server, or was there when the end was looked at, or before a batch of this server.
    pub fn is_whole(&self, sequence: u64, life: u64) -> bool {
        self.whole.0 == life && sequence <= self.whole.1 && !self.preceding.holds(sequence)
    }

    /// When it is looked at again, if a look has failed.
    pub fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// Whether nats-server may have been restarted since the last look, and can be asked.
    pub fn wants_look(&self, link: &Link) -> bool {
        *self.signals.looked.borrow() != *self.signals.settled.borrow()
            && *self.signals.standing.borrow() == Standing::Open
            && link.is_connected()
            && self.look_at.is_none_or(|at| at <= Instant::now())
    }

    /// A batch of this server was stored whole, with these sequences.
    pub fn written(&mut self, sequences: RangeInclusive<u64>, life: u64, reader: &Reader) {
        if self.whole.0 == life {
            let foreign = self.whole.1 + 1..=sequences.start() - 1;
            self.whole.1 = self.whole.1.max(*sequences.end());
            self.preceding.push_new(foreign, self.whole.1, life);
            reader.set_whole(self.preceding.whole());
        }
    }

    /// Mends what a restart of nats-server may have cut off, unless that was done since.
    pub async fn look(&mut self, mender: &Mender, life: &Life) -> Result<(), StorageError> {
        let disturbances = Some(mender.link.disturbances());
        if *self.signals.looked.borrow() == disturbances {
            return Ok(());
        }
        // It is seen first whether it is still the same store.
        let settled = self.signals.settled.wait_for(|settled| *settled >= disturbances);
        match timeout(SETTLE_WAIT, settled).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(unavailable("it was closed")),
            Err(_) => {
                let why = mender.meter.trouble().map_or_else(String::new, |why| format!(": {why}"));
                return Err(unavailable(format!("the stream cannot be looked at yet{why}")));
            }
        }
        let life = life.number();
        if self.whole.0 != life {
            self.whole = (life, 0);
            self.preceding.begin(life, mender.reader.whole());
        }
        let look = timeout(LOOK_WAIT_MAX, mender.end_of_stream(self.whole.1)).await;
        match look.unwrap_or_else(|_| Err(unavailable("the end of the stream is read too slowly")))
        {
            Ok(last) => {
                // That the end is whole does not say that all before it is: this server's own batches, or
                // those of the one that ran here before, may stand behind what others left.
                self.preceding.push_new(self.whole.1 + 1..=last, last, life);
                self.whole = (life, last);
                mender.reader.set_whole(self.preceding.whole());
                self.look_at = None;
                self.signals.looked.send_replace(disturbances);
                Ok(())
            }
            Err(error) => {
                mender
                    .meter
                    .record_trouble(&format!("the end of the stream cannot be looked at: {error}"));
                self.look_at = Some(Instant::now() + LOOK_AGAIN_PAUSE);
                Err(error)
            }
        }
    }
}
