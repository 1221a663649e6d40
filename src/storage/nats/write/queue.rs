//! The way of a change to the task that commits it, and of its outcome back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::commit::Commit;
use super::doubts::Doubts;
use super::pending::Pending;
use crate::storage::nats::read::life::Life;
use crate::storage::nats::read::reader::unavailable;
use crate::storage::nats::wire::link::{self, HEADERS_BYTES_MAX, Link};
use crate::storage::nats::wire::meter::Meter;
use crate::storage::{Sequence, StorageError};

/// Time after which a write is not begun any more; one that is under way may take a few seconds
/// longer.
const WRITE_WAIT_MAX: Duration = Duration::from_secs(6);

/// Time after which a write is given up even if its outcome is unknown; only a defect takes that long.
const OUTCOME_WAIT_MAX: Duration = Duration::from_secs(18);

/// Writes that wait at once, beside the bound on their bytes.
const WRITES_MAX: usize = 4_096;

/// Where writes wait for the committer: so many, and so many bytes of them.
pub struct Queue {
    link: Arc<Link>,
    life: Arc<Life>,
    meter: Arc<Meter>,
    doubts: Arc<Doubts>,
    bytes_max: usize,
    /// Bytes that writes may still take while they wait.
    room: Arc<Semaphore>,
    /// None once the store is closed.
    sender: Mutex<Option<mpsc::Sender<Pending>>>,
}

impl Queue {
    /// A queue for `bytes_max` bytes, and its end for the committer.
    pub fn new(
        link: Arc<Link>,
        life: Arc<Life>,
        meter: Arc<Meter>,
        doubts: Arc<Doubts>,
        bytes_max: usize,
    ) -> (Self, mpsc::Receiver<Pending>) {
        let (sender, waiting) = mpsc::channel(WRITES_MAX);
        let (bytes_max, sender) = (bytes_max.max(1), Mutex::new(Some(sender)));
        let room = Arc::new(Semaphore::new(bytes_max));
        (Self { link, life, meter, doubts, bytes_max, room, sender }, waiting)
    }

    fn sender(&self) -> Option<mpsc::Sender<Pending>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether somebody takes writes.
    pub fn usable(&self) -> Result<(), StorageError> {
        match self.sender() {
            Some(sender) if !sender.is_closed() => Ok(()),
            Some(_) => Err(unavailable("the task that writes has ended")),
            None => Err(unavailable("it was closed")),
        }
    }

    /// Takes no more writes; the committer ends once those that wait are answered. Whether it took
    /// some until now.
    pub fn close(&self) -> bool {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    /// Hands a commit to the committer and waits for its outcome.
    pub async fn write(&self, commit: Commit) -> Result<Sequence, StorageError> {
        let deadline = Instant::now() + WRITE_WAIT_MAX;
        let outcome = self.write_until(commit, deadline).await;
        self.meter.record_write(&outcome);
        outcome
    }

    async fn write_until(
        &self,
        commit: Commit,
        deadline: Instant,
    ) -> Result<Sequence, StorageError> {
        self.fits(&commit)?;
        let life = commit.life.unwrap_or_else(|| self.life.number());
        let connect_by = deadline.min(Instant::now() + link::CONNECT_WAIT_MAX);
        self.link.connected(connect_by).await.map_err(unavailable)?;
        let bytes = commit.bytes();
        let share = u32::try_from(bytes.min(self.bytes_max));
        let share = share.unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(share);
        let busy = || unavailable("too many writes wait for nats-server");
        let room = timeout_at(deadline, room).await.map_err(|_| busy())?.map_err(unavailable)?;
        let queue = self.sender().ok_or_else(|| unavailable("it was closed"))?;
        let (answer, outcome) = oneshot::channel();
        let pending = Pending {
            commit,
            bytes,
            accepted: Instant::now(),
            life,
            deadline,
            maybe_done: false,
            contested: false,
            reason: String::new(),
            told: 0,
            refusals: 0,
            full_since: None,
            doubts: Arc::clone(&self.doubts),
            answer,
            room,
        };
        let sent = timeout_at(deadline, queue.send(pending)).await.map_err(|_| busy())?;
        sent.map_err(|_| unavailable("it was closed"))?;
        drop(queue);
        let unknown =
            |reason: &str| Err(StorageError::OutcomeUnknown { reason: reason.to_owned() });
        match timeout(OUTCOME_WAIT_MAX, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => unknown("the task that writes has ended"),
            Err(_) => unknown("the task that writes did not answer in time"),
        }
    }

    /// Whether nats-server takes messages as large as these.
    fn fits(&self, commit: &Commit) -> Result<(), StorageError> {
        let most = self.link.payload_max();
        let largest = commit.messages.iter().map(|(_, message)| message.payload.len()).max();
        match largest {
            Some(bytes) if bytes + HEADERS_BYTES_MAX > most => {
                let what = format!("what is to be written of {}", commit.target);
                let bytes_max = most.saturating_sub(HEADERS_BYTES_MAX);
                Err(StorageError::TooLarge { what, bytes, bytes_max })
            }
            _ => Ok(()),
        }
    }
}
