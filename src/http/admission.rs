//! Who is let in, and who gives way.
//!
//! Connections, large bodies and large answers each have room that all clients share. Where it is used up,
//! whoever has let the server wait the longest leaves: a head or a body that does not come, an answer that is not
//! taken, a connection that lies idle. So none of these keeps anybody else out. The table of all that waits stands
//! in ARCHITECTURE.md.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout};

/// How long a client may let the server wait before it may have to leave for others.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often whoever waits for room looks for those who have to leave.
const LOOK_PERIOD: Duration = Duration::from_millis(50);

/// One connection, as those see it who wait for what it holds.
pub struct Client {
    /// Since when the server waits for it: for its head, its body, or until it takes its answer. None while
    /// its request is worked on.
    waited_for_since: Mutex<Option<Instant>>,
    leaves: Notify,
}

/// A request of a client is worked on for as long as this is there.
pub struct Working(Arc<Client>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.heard();
    }
}

impl Client {
    pub fn new() -> Arc<Self> {
        let waited_for_since = Mutex::new(Some(Instant::now()));
        Arc::new(Self { waited_for_since, leaves: Notify::new() })
    }

    fn since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.waited_for_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its request has come whole, and is worked on from now on.
    pub fn work(self: &Arc<Self>) -> Working {
        *self.since() = None;
        Working(Arc::clone(self))
    }

    /// It has sent or taken something; the server waits for more from now on.
    pub fn heard(&self) {
        *self.since() = Some(Instant::now());
    }

    /// Waits until it has to leave.
    pub async fn has_to_leave(&self) {
        self.leaves.notified().await;
    }

    /// How long the server has been waiting for it, if it is.
    fn waited_for(&self, now: Instant) -> Option<Duration> {
        self.since().map(|since| now.saturating_duration_since(since))
    }

    /// Sends it away if the server has been waiting for it for so long; whether it has.
    fn leave(&self, now: Instant, patience: Duration) -> bool {
        let mut since = self.since();
        let is_late = since.is_some_and(|since| now.saturating_duration_since(since) >= patience);
        if is_late {
            // Nobody sends it away a second time.
            *since = None;
            self.leaves.notify_one();
        }
        is_late
    }
}

/// Room that large requests share, each in KiB.
pub struct Admission {
    /// Bodies that are being read, wait for their turn or are answered.
    bodies: Arc<Room>,
    /// Texts of answers that their clients have not taken yet.
    answers: Arc<Room>,
    /// Those that are being answered, by how much they weigh.
    medium: Semaphore,
    large: Semaphore,
}

/// KiB of the bodies, and of the answers that wait for their clients.
const BODIES_KIB: usize = 32 << 10;
const ANSWERS_KIB: usize = 64 << 10;

/// What a byte of a request weighs, and one of its JSON values: about what they take in memory until it is answered,
/// as measured, as they are there as the body, as variables and as data.
const WEIGHT_OF_BYTE: usize = 4;
const WEIGHT_OF_VALUE: usize = 400;

/// KiB up to which a request is answered at once, as all connections together can have no more than
/// 64 MiB of such; and up to which it waits only for others like it.
const SMALL_KIB: usize = 64;
const MEDIUM_KIB: usize = 1 << 10;

/// KiB that those of each kind weigh together that are answered at once: of the large ones one of the largest.
const MEDIUM_TOGETHER: usize = 32 << 10;
const LARGE_TOGETHER: usize = 64 << 10;

/// Time that a large request waits for its turn, a large body and a large answer for room.
const TURN_WAIT: Duration = Duration::from_secs(10);
const ROOM_WAIT: Duration = Duration::from_secs(10);

impl Default for Admission {
    fn default() -> Self {
        Self {
            bodies: Room::new(BODIES_KIB),
            answers: Room::new(ANSWERS_KIB),
            medium: Semaphore::new(MEDIUM_TOGETHER),
            large: Semaphore::new(LARGE_TOGETHER),
        }
    }
}

fn kib(bytes: usize) -> usize {
    bytes.div_ceil(1 << 10)
}

impl Admission {
    /// Room for a body that is to be read.
    pub async fn body(&self, client: &Arc<Client>, bytes: usize) -> Option<Held> {
        let kib = u32::try_from(kib(bytes)).ok()?;
        self.bodies.take(client, kib, ROOM_WAIT).await
    }

    /// Room for an answer that its client is to take.
    pub async fn answer(&self, client: &Arc<Client>, bytes: usize) -> Option<Held> {
        let kib = u32::try_from(kib(bytes)).ok()?;
        self.answers.take(client, kib, ROOM_WAIT).await
    }

    /// The turn of a request with so many bytes and JSON values to be answered. Small ones need not wait, and
    /// those of a medium size wait for no large one.
    pub async fn turn(&self, bytes: usize, values: usize) -> Option<Turn<'_>> {
        let bytes = bytes.saturating_mul(WEIGHT_OF_BYTE);
        let kib = kib(bytes.saturating_add(values.saturating_mul(WEIGHT_OF_VALUE)));
        if kib <= SMALL_KIB {
            return Some(Turn { _permit: None });
        }
        let is_medium = kib <= MEDIUM_KIB;
        let medium = (&self.medium, MEDIUM_TOGETHER);
        let (turns, together) = if is_medium { medium } else { (&self.large, LARGE_TOGETHER) };
        let kib = u32::try_from(kib.min(together)).ok()?;
        let turn = timeout(TURN_WAIT, turns.acquire_many(kib)).await.ok()?;
        Some(Turn { _permit: Some(turn.ok()?) })
    }
}

/// The turn of a request, until it is answered.
pub struct Turn<'a> {
    _permit: Option<SemaphorePermit<'a>>,
}

/// Room that all clients share, in units of something.
pub struct Room {
    free: Arc<Semaphore>,
    /// How long a client may let the server wait before it may have to leave.
    patience: Duration,
    holders: Mutex<HashMap<u64, (Arc<Client>, u32)>>,
    next: AtomicU64,
}

/// A part of a room that one client holds.
pub struct Held {
    room: Arc<Room>,
    number: u64,
    _part: OwnedSemaphorePermit,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.holders().remove(&self.number);
    }
}

impl Room {
    pub fn new(units: usize) -> Arc<Self> {
        Self::with_patience(units, PATIENCE)
    }

    fn with_patience(units: usize, patience: Duration) -> Arc<Self> {
        let (holders, next) = (Mutex::default(), AtomicU64::new(0));
        Arc::new(Self { free: Arc::new(Semaphore::new(units)), patience, holders, next })
    }

    fn holders(&self) -> MutexGuard<'_, HashMap<u64, (Arc<Client>, u32)>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(self: &Arc<Self>, client: &Arc<Client>, part: OwnedSemaphorePermit) -> Held {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let units = u32::try_from(part.num_permits()).unwrap_or(u32::MAX);
        self.holders().insert(number, (Arc::clone(client), units));
        Held { room: Arc::clone(self), number, _part: part }
    }

    /// Gives a part of it to a client, in the order in which they come. None if there is none within `wait`,
    /// though whoever has let the server wait for long has had to leave.
    pub async fn take(
        self: &Arc<Self>,
        client: &Arc<Client>,
        units: u32,
        wait: Duration,
    ) -> Option<Held> {
        let (until, mut pause) = (Instant::now() + wait, Duration::ZERO);
        let mut part = std::pin::pin!(Arc::clone(&self.free).acquire_many_owned(units));
        loop {
            tokio::select! {
                biased;
                part = &mut part => return part.ok().map(|part| self.hold(client, part)),
                () = sleep(pause) => {}
            }
            if Instant::now() >= until {
                return None;
            }
            self.show_out(units);
            pause = LOOK_PERIOD.min(wait);
        }
    }

    /// Sends those away who have let the server wait the longest, as far as so many units need it.
    pub fn show_out(&self, units: u32) {
        let now = Instant::now();
        let mut late: Vec<_> = self
            .holders()
            .values()
            .filter_map(|(client, held)| {
                let waited = client.waited_for(now).filter(|waited| *waited >= self.patience)?;
                Some((waited, Arc::clone(client), *held))
            })
            .collect();
        late.sort_by_key(|(waited, ..)| std::cmp::Reverse(*waited));
        let mut missing = units;
        for (_, client, held) in late {
            if missing == 0 {
                break;
            }
            if client.leave(now, self.patience) {
                missing = missing.saturating_sub(held);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(20);
    const PATIENCE: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn whoever_lets_the_server_wait_the_longest_leaves_and_who_works_does_not() {
        let room = Room::with_patience(3, PATIENCE);
        let [works, longest, shorter] = [(); 3].map(|()| Client::new());
        let _held = room.take(&works, 1, WAIT).await.unwrap();
        let longest_held = room.take(&longest, 1, WAIT).await.unwrap();
        let _working = works.work();
        sleep(PATIENCE).await;
        shorter.heard();
        let _shorter_held = room.take(&shorter, 1, WAIT).await.unwrap();
        let leaves = tokio::spawn(async move {
            longest.has_to_leave().await;
            drop(longest_held);
        });
        let next = Client::new();
        let _next_held = room.take(&next, 1, WAIT).await.expect("one has left");
        leaves.await.unwrap();
        assert!(shorter.waited_for(Instant::now()).is_some(), "one was enough");
        // Who works is not sent away, however long that takes.
        let _all = [shorter.work(), next.work()];
        assert!(room.take(&Client::new(), 1, 2 * PATIENCE).await.is_none());
    }

    #[tokio::test]
    async fn as_many_leave_as_are_in_the_way() {
        let room = Room::with_patience(8, PATIENCE);
        let clients: Vec<_> = (0..8).map(|_| Client::new()).collect();
        let mut held = Vec::new();
        for client in &clients {
            held.push(room.take(client, 1, WAIT).await.unwrap());
        }
        sleep(PATIENCE).await;
        room.show_out(4);
        let left = |client: &&Arc<Client>| client.waited_for(Instant::now()).is_none();
        assert_eq!(clients.iter().filter(left).count(), 4);
        drop(held);
        assert!(room.take(&clients[0], 8, WAIT).await.is_some(), "all is given back");
    }
}
