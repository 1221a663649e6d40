//! Gathers the changes that wait while a batch is under way and commits them as the next one.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::api::code;
use super::batch::{self, BATCH_MESSAGES_MAX, BatchError};
use super::change::{Done, Kind, Pending, Target};
use super::health::Meter;
use super::history;
use super::link::Link;
use super::read::Reader;
use super::retention::Retention;
use crate::storage::StorageError;

/// Bytes of a batch; a single change may be larger.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Changes of things that the batch under way changes, too, kept for the next one.
const HELD_MAX: usize = 4_096;

/// Pause before a change is tried again that the server could not take.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Pause before a change is tried again whose subject another server is just writing.
const BUSY_PAUSE: Duration = Duration::from_millis(3);

/// How long a move waits for room in a full stream.
const FULL_WAIT: Duration = Duration::from_millis(2_500);

/// Pause before it looks for room again.
const FULL_PAUSE: Duration = Duration::from_millis(100);

/// The one task that writes to the stream for this process.
pub struct Committer {
    link: Arc<Link>,
    reader: Arc<Reader>,
    retention: Arc<Retention>,
    meter: Arc<Meter>,
    queue: mpsc::Receiver<Pending>,
    /// Changes that wait for the end of a change of the same thing.
    held: VecDeque<Pending>,
    /// What the batch before changed: where it stands now.
    changed: HashMap<Target, u64>,
    /// Those who wait for the time of their message.
    finishing: JoinSet<()>,
}

impl Committer {
    pub fn new(
        link: Arc<Link>,
        reader: Arc<Reader>,
        retention: Arc<Retention>,
        meter: Arc<Meter>,
        queue: mpsc::Receiver<Pending>,
    ) -> Self {
        let (held, changed) = (VecDeque::new(), HashMap::new());
        Self { link, reader, retention, meter, queue, held, changed, finishing: JoinSet::new() }
    }

    /// Commits until nobody can send more and everything is answered.
    pub async fn run(mut self) {
        while let Some(batch) = self.gather().await {
            self.settle(batch).await;
            while self.finishing.try_join_next().is_some() {}
        }
        while self.finishing.join_next().await.is_some() {}
    }

    /// What waits, as far as it fits one batch; waits for the first.
    async fn gather(&mut self) -> Option<Vec<Pending>> {
        let mut gathered = Gathered::default();
        for pending in std::mem::take(&mut self.held) {
            self.sort_in(pending, &mut gathered);
        }
        self.changed.clear();
        if gathered.batch.is_empty() {
            let first = self.queue.recv().await?;
            self.sort_in(first, &mut gathered);
        }
        while self.held.len() < HELD_MAX && gathered.has_room() {
            let Ok(pending) = self.queue.try_recv() else { break };
            self.sort_in(pending, &mut gathered);
        }
        if let Some(first) = gathered.batch.first() {
            self.meter.waited(first.accepted.elapsed());
        }
        Some(gathered.batch)
    }

    /// Puts a change into the batch, or keeps it for a later one, or answers it.
    fn sort_in(&mut self, pending: Pending, gathered: &mut Gathered) {
        let target = &pending.commit.target;
        if let Some(now) = self.changed.get(target) {
            // The batch before changed the same thing. What relied on it as it was, has lost.
            let lost = match pending.commit.kind {
                Kind::Move { expected, .. } => expected.0 < *now,
                Kind::CreateToken { .. } | Kind::CreateWorkflow => true,
            };
            if lost && !pending.maybe_done {
                let lost = pending.commit.lost();
                answer(pending, Err(lost));
                return;
            }
        }
        if gathered.fits(&pending) {
            gathered.push(pending);
        } else {
            self.held.push_back(pending);
        }
    }

    /// Commits a batch, in parts where parts of it cannot be committed, until all are answered.
    async fn settle(&mut self, batch: Vec<Pending>) {
        let mut groups = vec![batch];
        while let Some(group) = groups.pop() {
            let mut group = self.worth_trying(group).await;
            if group.is_empty() {
                continue;
            }
            let messages: Vec<_> = group.iter().flat_map(|p| &p.commit.messages).collect();
            match batch::send(&self.link, messages.into_iter()).await {
                Ok(last) => self.done(group, last),
                Err(BatchError::Unknown(reason)) => {
                    debug!(reason, changes = group.len(), "a batch has no answer, looking for it");
                    for pending in &mut group {
                        pending.maybe_done = true;
                        pending.reason.clone_from(&reason);
                    }
                    sleep(RETRY_PAUSE).await;
                    groups.push(group);
                }
                Err(BatchError::NotDone(reason)) => {
                    for pending in &mut group {
                        pending.reason.clone_from(&reason);
                    }
                    sleep(RETRY_PAUSE).await;
                    groups.push(group);
                }
                Err(BatchError::Refused { err_code, description }) => {
                    self.refused(group, err_code, description, &mut groups).await;
                }
            }
        }
    }

    /// Drops what has run out of time or was done by an earlier try, or has no room.
    async fn worth_trying(&mut self, group: Vec<Pending>) -> Vec<Pending> {
        let mut worth = Vec::with_capacity(group.len());
        let (messages, bytes) = group.iter().fold((0, 0), |(messages, bytes), pending| {
            (messages + pending.commit.messages.len(), bytes + pending.bytes)
        });
        let full = self.retention.before_batch(messages as u64, bytes as u64).await;
        for pending in group {
            if pending.maybe_done {
                match history::find_commit(&self.reader, &pending.commit).await {
                    Ok(Some(done)) => {
                        answer(pending, Ok(done));
                        continue;
                    }
                    Ok(None) => {}
                    Err(error) if Instant::now() >= pending.deadline => {
                        out_of_time(pending, &error.to_string());
                        continue;
                    }
                    // It cannot be asked now; a try that fails says more.
                    Err(_) => {}
                }
            }
            if Instant::now() >= pending.deadline {
                let reason = pending.reason.clone();
                out_of_time(pending, &reason);
                continue;
            }
            match &full {
                Some(reason) if pending.commit.creates() && !pending.maybe_done => {
                    let reason = reason.clone();
                    answer(pending, Err(StorageError::Full { reason }));
                }
                _ => worth.push(pending),
            }
        }
        worth
    }

    async fn refused(
        &mut self,
        mut group: Vec<Pending>,
        err_code: u64,
        description: String,
        groups: &mut Vec<Vec<Pending>>,
    ) {
        let lost = err_code == code::WRONG_LAST_SEQUENCE || err_code == code::WRITE_UNDER_WAY;
        if lost && group.len() > 1 {
            // The server does not say which: halves, down to one.
            let second = group.split_off(group.len() / 2);
            groups.extend([second, group]);
            return;
        }
        if err_code == code::WRONG_LAST_SEQUENCE {
            for pending in group {
                self.lost(pending).await;
            }
            return;
        }
        let reason = format!("{description} (error code {err_code})");
        for pending in &mut group {
            pending.reason.clone_from(&reason);
        }
        if lost {
            sleep(BUSY_PAUSE).await;
        } else if err_code == code::STORE_FAILED {
            return self.no_room(group, groups).await;
        } else {
            sleep(RETRY_PAUSE).await;
        }
        groups.push(group);
    }

    /// The stream is at its limits, or its disk fails.
    async fn no_room(&mut self, mut group: Vec<Pending>, groups: &mut Vec<Vec<Pending>>) {
        if !self.retention.make_room().await && group.len() > 1 {
            // A batch needs room for all of its messages at once; smaller ones may fit.
            let second = group.split_off(group.len() / 2);
            groups.extend([second, group]);
            return;
        }
        let full = self.retention.full();
        let mut waiting = Vec::with_capacity(group.len());
        for mut pending in group {
            let since = *pending.full_since.get_or_insert_with(Instant::now);
            match &full {
                // Departures vanish within a second, so a move gets its room if there is any.
                Some(reason) if pending.commit.creates() || since.elapsed() > FULL_WAIT => {
                    let reason = reason.clone();
                    answer(pending, Err(StorageError::Full { reason }));
                }
                _ => waiting.push(pending),
            }
        }
        sleep(FULL_PAUSE).await;
        groups.push(waiting);
    }

    /// A change that another one came before, unless that was an earlier try of itself.
    async fn lost(&mut self, pending: Pending) {
        if !pending.maybe_done {
            let lost = pending.commit.lost();
            return answer(pending, Err(lost));
        }
        let outcome = match history::find_commit(&self.reader, &pending.commit).await {
            Ok(Some(done)) => Ok(done),
            Ok(None) => Err(pending.commit.lost()),
            Err(error) => Err(StorageError::OutcomeUnknown { reason: error.to_string() }),
        };
        answer(pending, outcome);
    }

    /// Notes where each change of an acknowledged batch stands and answers once their times are known.
    fn done(&mut self, group: Vec<Pending>, last: u64) {
        let count: usize = group.iter().map(|pending| pending.commit.messages.len()).sum();
        let first = last + 1 - count as u64;
        self.reader.note(last);
        let mut next = first;
        let mut finished = Vec::with_capacity(group.len());
        for pending in group {
            let sequence = next + pending.commit.state_index as u64;
            next += pending.commit.messages.len() as u64;
            self.changed.insert(pending.commit.target.clone(), sequence);
            finished.push((pending, sequence));
        }
        let reader = Arc::clone(&self.reader);
        self.finishing.spawn(async move {
            let times = history::times(&reader, first, last).await;
            for (pending, sequence) in finished {
                let time = times.of(sequence);
                answer(pending, Ok(Done { sequence, time }));
            }
        });
    }
}

/// A batch in the making.
#[derive(Default)]
struct Gathered {
    batch: Vec<Pending>,
    targets: std::collections::HashSet<Target>,
    messages: usize,
    bytes: usize,
}

impl Gathered {
    fn has_room(&self) -> bool {
        self.messages < BATCH_MESSAGES_MAX && self.bytes < BATCH_BYTES_MAX
    }

    fn fits(&self, pending: &Pending) -> bool {
        self.batch.is_empty()
            || (!self.targets.contains(&pending.commit.target)
                && self.messages + pending.commit.messages.len() <= BATCH_MESSAGES_MAX
                && self.bytes + pending.bytes <= BATCH_BYTES_MAX)
    }

    fn push(&mut self, pending: Pending) {
        self.targets.insert(pending.commit.target.clone());
        self.messages += pending.commit.messages.len();
        self.bytes += pending.bytes;
        self.batch.push(pending);
    }
}

fn answer(pending: Pending, outcome: Result<Done, StorageError>) {
    // Whoever asked may have gone away; the change stands all the same.
    drop(pending.answer.send(outcome));
    drop(pending.room);
}

fn out_of_time(pending: Pending, reason: &str) {
    let reason = if reason.is_empty() { "it did not get its turn in time" } else { reason };
    let outcome = if pending.maybe_done {
        StorageError::OutcomeUnknown { reason: reason.to_owned() }
    } else {
        StorageError::Unavailable { reason: reason.to_owned() }
    };
    answer(pending, Err(outcome));
}
