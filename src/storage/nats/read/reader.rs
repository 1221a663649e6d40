//! Reads of single messages and of runs of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{Message, StatusCode};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout_at};

use super::anchor::Whole;
use super::epoch::Epoch;
use super::hints::Hints;
use super::known::KnownTokens;
use super::stored::Stored;
use crate::domain::{WorkflowDefinition, WorkflowId};
use crate::storage::nats::wire::jetstream::{self, ANSWER_WAIT, ApiError, StreamState};
use crate::storage::nats::wire::link::{Link, LinkError};
use crate::storage::nats::wire::names::{self, STREAM, header};
use crate::storage::{StorageError, StoredToken};

/// Messages asked for at once; the connection to nats-server queues them for us.
pub const RUN_MESSAGES_MAX: usize = 2_048;

/// Bytes asked for at once: a run is in memory as a whole.
pub const RUN_BYTES_MAX: usize = 4 << 20;

/// Time for one run within a read of something else.
pub const RUN_WAIT_MAX: Duration = Duration::from_secs(5);

/// Markers of nats-server that one read removes.
const MARKERS_MAX: usize = 16;

/// Answers that are under way at once. nats-server cuts a connection on which more than 64 MB wait (its
/// `max_pending`), and everything else goes over this one, too. So single messages, of up to 1 MiB, may
/// take up to 42 MiB together, in parts of a third of one, and [`RUNS_MAX`] runs 20.
const SINGLES_PARTS: usize = 3 * 42;
const RUNS_MAX: usize = 4;

/// Parts of a message as it is, and in the JSON of the leader's answer, which encodes it in base64.
const DIRECT_PARTS: u32 = 3;
const LEADER_PARTS: u32 = 4;

/// How long a read waits for its turn, and a large token to be decoded.
pub const TURN_WAIT_MAX: Duration = Duration::from_secs(5);

/// Bytes of a token from which on it is decoded on a thread of its own, and from which on it is one of
/// the largest: of these and of the others so many are decoded at once, so none waits for larger ones.
const LARGE_BYTES: usize = 64 << 10;
const LARGEST_BYTES: usize = 256 << 10;
const DECODED_AT_ONCE: usize = 1;

/// Pause before it is asked again where nobody answered.
const NOBODY_PAUSE: Duration = Duration::from_millis(100);

/// Reads from the stream such that no answer is older than an earlier answer or acknowledgement.
///
/// A direct get is answered by any copy of the stream: each of its replicas, wherever the request
/// came in, also one that was a replica until a moment ago, and each stream that mirrors it, which applies
/// no rollup. So direct gets are asked only where there is one copy, outside a cluster; else the leader is
/// asked through the API. An answer that comes from another stream, or says that there is nothing, is
/// asked again there.
pub struct Reader {
    pub link: Arc<Link>,
    pub hints: Hints,
    pub known: KnownTokens,
    /// Which life of the store is read.
    pub epoch: Arc<Epoch>,
    attempts: usize,
    singles: Semaphore,
    runs: Semaphore,
    decoders: [Semaphore; 2],
    copies: Copies,
    /// The highest sequence that is known of.
    last: AtomicU64,
    /// The highest that was acknowledged here. What was only read, a kill of nats-server can take back.
    acknowledged: AtomicU64,
    /// Where all changes were seen to be whole, and in which life of the store.
    whole: Mutex<(u64, Whole)>,
}

/// What copies of the stream there are.
#[derive(Debug, Default)]
struct Copies {
    /// Whether several nats-servers may hold it.
    several: AtomicBool,
    /// A stream that mirrors it and answers its direct gets, and whether there is one.
    mirror: Mutex<Option<String>>,
    is_mirrored: AtomicBool,
}

/// Part of the messages on a subject, in their order.
#[derive(Debug, Default)]
pub struct Run {
    pub messages: Vec<Stored>,
    /// Whether more came after them.
    pub more: bool,
    /// How many, where nats-server has told.
    pub left: u64,
}

/// A failed read as the caller of the store sees it: nothing was changed.
pub fn unavailable(error: impl ToString) -> StorageError {
    StorageError::Unavailable { reason: error.to_string() }
}

impl Reader {
    pub fn new(link: Arc<Link>, attempts: usize) -> Self {
        let [last, acknowledged] = [0; 2].map(AtomicU64::new);
        let (epoch, copies) = (Arc::<Epoch>::default(), Copies::default());
        let (hints, known) = (Hints::new(Arc::clone(&epoch)), KnownTokens::new(Arc::clone(&epoch)));
        let [singles, runs] = [SINGLES_PARTS, RUNS_MAX].map(Semaphore::new);
        let decoders = [DECODED_AT_ONCE; 2].map(Semaphore::new);
        Self {
            link,
            hints,
            known,
            epoch,
            attempts,
            singles,
            runs,
            decoders,
            copies,
            last,
            acknowledged,
            whole: Mutex::default(),
        }
    }

    fn mirrored(&self) -> MutexGuard<'_, Option<String>> {
        self.copies.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was known of the stream: it is another one. The epoch ends last: then nothing is left.
    pub fn forget(&self) {
        self.last.store(0, Ordering::Release);
        self.acknowledged.store(0, Ordering::Release);
        self.epoch.end();
        self.known.forget();
    }

    /// Notes how the stream is now.
    pub fn set_stream(&self, state: &StreamState) {
        self.set_copies(state);
        self.hints.set_subjects(state.subjects);
        self.last.fetch_max(state.last_sequence, Ordering::AcqRel);
    }

    /// Notes whether there may be several copies of it.
    pub fn set_copies(&self, state: &StreamState) {
        self.copies.several.store(state.clustered || state.replicas > 1, Ordering::Release);
    }

    /// Notes the stream that mirrors ours, if there is one.
    pub fn set_mirror(&self, mirror: Option<String>) {
        self.copies.is_mirrored.store(mirror.is_some(), Ordering::Release);
        *self.mirrored() = mirror;
    }

    /// The stream that mirrors ours and answers its direct gets, if there is one.
    pub fn mirror(&self) -> Option<String> {
        self.mirrored().clone()
    }

    /// Whether a direct get is answered by the stream's only copy.
    pub fn is_only_copy(&self) -> bool {
        !self.has_copies() && !self.copies.is_mirrored.load(Ordering::Acquire)
    }

    /// Whether several nats-servers may hold the stream.
    pub fn has_copies(&self) -> bool {
        self.copies.several.load(Ordering::Acquire)
    }

    /// The highest sequence that is known of.
    pub fn last_sequence(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    /// Notes that there is a message with this sequence.
    pub fn record_sequence(&self, sequence: u64) {
        self.last.fetch_max(sequence, Ordering::AcqRel);
    }

    /// The highest sequence that was acknowledged to this server: the stream never ends before it.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Notes that nats-server has acknowledged a message with this sequence.
    pub fn record_acknowledged(&self, sequence: u64) {
        self.acknowledged.fetch_max(sequence, Ordering::AcqRel);
        self.record_sequence(sequence);
    }

    /// Where all changes were seen to be whole.
    pub fn whole(&self) -> Whole {
        let (life, whole) = *self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        if life == self.epoch.now() { whole } else { Whole::default() }
    }

    /// Notes that, unless it is of a life that has ended.
    pub fn set_whole(&self, of: (u64, Whole)) {
        let mut there = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        *there = if of.0 >= there.0 { of } else { *there };
    }

    /// The newest message on a subject, which may have wildcards.
    pub async fn last(&self, subject: &str) -> Result<Option<Stored>, StorageError> {
        self.one(&json!({ "last_by_subj": subject })).await
    }

    /// The message with this sequence, if it is still there.
    pub async fn at(&self, sequence: u64) -> Result<Option<Stored>, StorageError> {
        if sequence == 0 {
            return Ok(None);
        }
        self.one(&json!({ "seq": sequence })).await
    }

    /// A definition and its bytes.
    pub async fn definition(
        &self,
        workflow: &WorkflowId,
    ) -> Result<Option<WorkflowDefinition>, StorageError> {
        let stored = self.last(&names::definition(workflow)).await?;
        stored.map(|stored| stored.definition()).transpose()
    }

    /// How many messages from a sequence on match a filter.
    pub async fn matching_from(&self, filter: &str, sequence: u64) -> Result<u64, StorageError> {
        let request = json!({ "seq": sequence.max(1), "next_by_subj": filter, "batch": 1 });
        match self.batch(&request, 1).await? {
            Ok(run) => Ok(run.left + run.messages.len() as u64),
            Err((StatusCode::NOT_FOUND, _)) => Ok(0),
            Err((status, description)) => Err(refused(status, description.as_deref())),
        }
    }

    /// The oldest message on the subjects that match a filter.
    pub async fn first(&self, filter: &str) -> Result<Option<Stored>, StorageError> {
        self.one(&json!({ "seq": 1, "next_by_subj": filter })).await
    }

    /// A marker of nats-server hides what stands before it, so it goes.
    async fn one(&self, request: &Value) -> Result<Option<Stored>, StorageError> {
        let request = jetstream::request(request);
        for _ in 0..MARKERS_MAX {
            match self.one_or_marker(&request).await? {
                Some(marker) if marker.marks.is_marker => {
                    jetstream::delete(&self.link, marker.sequence).await?;
                }
                found => return Ok(found),
            }
        }
        Err(unavailable(
            "nats-server leaves markers where messages vanish; unset subject_delete_marker_ttl",
        ))
    }

    async fn one_or_marker(&self, request: &Bytes) -> Result<Option<Stored>, StorageError> {
        let mut found = None;
        if self.is_only_copy() {
            let answer = self.asked("DIRECT.GET", DIRECT_PARTS, request).await?;
            match answer.status {
                None | Some(StatusCode::OK) if is_ours(&answer) => {
                    found = Some(Stored::from_direct(answer)?);
                }
                None | Some(StatusCode::OK | StatusCode::NOT_FOUND) => {}
                Some(status) => return Err(refused(status, answer.description.as_deref())),
            }
        }
        if found.is_none() {
            let answer = self.asked("STREAM.MSG.GET", LEADER_PARTS, request).await?;
            let message = jetstream::leader_message(&answer.payload)?;
            found = message.map(Stored::from_leader).transpose()?;
        }
        if let Some(found) = &found {
            self.record_sequence(found.sequence);
        }
        Ok(found)
    }

    /// One answer to one question, asked again where it was lost on its way.
    async fn asked(&self, get: &str, parts: u32, request: &Bytes) -> Result<Message, StorageError> {
        let _turn = turn(&self.singles, parts, Instant::now() + TURN_WAIT_MAX).await?;
        let subject = format!("$JS.API.{get}.{STREAM}");
        let mut attempt = 1;
        loop {
            let asked = self.link.request(subject.clone(), None, request.clone(), ANSWER_WAIT);
            match asked.await {
                Ok(answer) => return Ok(answer),
                Err(LinkError::NotSent(reason)) => return Err(unavailable(reason)),
                Err(error @ LinkError::Denied(_)) => return Err(unavailable(error)),
                Err(error) if attempt >= self.attempts => return Err(unavailable(error)),
                Err(LinkError::NoResponders(_)) => sleep(NOBODY_PAUSE).await,
                Err(LinkError::NoAnswer(_)) => {}
            }
            attempt += 1;
        }
    }

    /// The messages on the subjects that match a filter, which must be few, from `start` on, about
    /// `limit` of them; fewer, though there are more, where they are large.
    pub async fn events(
        &self,
        filter: &str,
        start: u64,
        limit: usize,
        deadline: Instant,
    ) -> Result<Run, StorageError> {
        let limit = limit.clamp(1, RUN_MESSAGES_MAX);
        let run = || async {
            if self.is_only_copy() {
                self.direct_run(filter, start, limit).await
            } else {
                self.leader_run(filter, start, limit, deadline).await
            }
        };
        self.repeated(deadline, run).await
    }

    /// Asks again where an answer was lost on its way.
    pub async fn repeated<F: Future<Output = Result<Run, StorageError>>>(
        &self,
        deadline: Instant,
        mut ask: impl FnMut() -> F,
    ) -> Result<Run, StorageError> {
        let mut attempt = 1;
        loop {
            match ask().await {
                Err(StorageError::Unavailable { .. })
                    if attempt < self.attempts
                        && Instant::now() < deadline
                        && self.link.is_connected() =>
                {
                    attempt += 1;
                }
                Ok(run) => {
                    if let Some(newest) = run.messages.last() {
                        self.record_sequence(newest.sequence);
                    }
                    return Ok(run);
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn direct_run(
        &self,
        subject: &str,
        start: u64,
        limit: usize,
    ) -> Result<Run, StorageError> {
        let request = json!({
            "seq": start.max(1), "next_by_subj": subject, "batch": limit, "max_bytes": RUN_BYTES_MAX,
        });
        match self.batch(&request, limit).await? {
            Ok(run) => Ok(run),
            Err((StatusCode::NOT_FOUND, _)) => Ok(Run::default()),
            Err((status, description)) => Err(refused(status, description.as_deref())),
        }
    }

    /// A direct get that answers with several messages; the inner error is the server's refusal.
    pub async fn batch(
        &self,
        request: &Value,
        limit: usize,
    ) -> Result<Result<Run, (StatusCode, Option<String>)>, StorageError> {
        let _turn = self.run_turn().await?;
        let subject = format!("$JS.API.DIRECT.GET.{STREAM}");
        let asked = self.link.request_many(
            subject,
            None,
            jetstream::request(request),
            limit + 1,
            ANSWER_WAIT,
        );
        let mut replies = asked.await.map_err(unavailable)?;
        let (mut run, mut last) = (Run::default(), 0);
        loop {
            let message = replies.next().await.map_err(unavailable)?;
            match message.status {
                None | Some(StatusCode::OK) => {
                    if number(&message, header::LAST_SEQUENCE) != Some(last) {
                        return Err(unavailable("a message of a list was lost on its way"));
                    }
                    if !is_ours(&message) {
                        return Err(unavailable("a mirror of the stream has answered"));
                    }
                    let stored = Stored::from_direct(message)?;
                    last = stored.sequence;
                    run.messages.push(stored);
                }
                // The end of a batch.
                Some(status) if status.as_u16() == 204 => {
                    if number(&message, header::LAST_SEQUENCE) != Some(last) {
                        return Err(unavailable("a message of a list was lost on its way"));
                    }
                    run.left = number(&message, header::NUM_PENDING).unwrap_or(0);
                    run.more = run.left > 0;
                    return Ok(Ok(run));
                }
                Some(status) => return Ok(Err((status, message.description))),
            }
        }
    }

    /// The same, message by message, as the leader has them.
    pub async fn leader_run(
        &self,
        subject: &str,
        start: u64,
        limit: usize,
        deadline: Instant,
    ) -> Result<Run, StorageError> {
        let (mut run, mut next, mut bytes) = (Run::default(), start.max(1), 0);
        loop {
            if Instant::now() >= deadline {
                return Err(unavailable("the list took too long"));
            }
            let request = json!({ "seq": next, "next_by_subj": subject });
            let api_subject = format!("STREAM.MSG.GET.{STREAM}");
            let answer = jetstream::ask_raw(&self.link, &api_subject, &request);
            let answer = answer.await.map_err(unavailable)?;
            let Some(message) = jetstream::leader_message(&answer.payload)? else { return Ok(run) };
            let stored = Stored::from_leader(message)?;
            if run.messages.len() == limit || bytes >= RUN_BYTES_MAX {
                run.more = true;
                return Ok(run);
            }
            next = stored.sequence + 1;
            bytes += stored.payload.len();
            run.messages.push(stored);
        }
    }

    /// Waits until a run of messages may be asked for.
    pub async fn run_turn(&self) -> Result<SemaphorePermit<'_>, StorageError> {
        turn(&self.runs, 1, Instant::now() + TURN_WAIT_MAX).await
    }

    /// The token that a message holds. A large one takes long enough that others would wait, so it waits
    /// for its turn, at most `until` then.
    pub async fn token(&self, stored: Stored, until: Instant) -> Result<StoredToken, StorageError> {
        if stored.payload.len() < LARGE_BYTES {
            return stored.token();
        }
        let lane = usize::from(stored.payload.len() >= LARGEST_BYTES);
        let _turn = turn(&self.decoders[lane], 1, until).await?;
        let decoded = tokio::task::spawn_blocking(move || stored.token()).await;
        decoded.unwrap_or_else(|error| match error.try_into_panic() {
            // A defect: it goes on to whoever turns panics into answers.
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(unavailable("the server ends")),
        })
    }

    /// The messages of the stream from a sequence on, whatever their subject.
    pub async fn from(&self, first: u64, count: usize) -> Result<Run, StorageError> {
        self.direct_run(">", first, count.clamp(1, RUN_MESSAGES_MAX)).await
    }
}

async fn turn(
    places: &Semaphore,
    count: u32,
    until: Instant,
) -> Result<SemaphorePermit<'_>, StorageError> {
    if let Ok(turn) = places.try_acquire_many(count) {
        return Ok(turn);
    }
    let turn = timeout_at(until, places.acquire_many(count)).await;
    turn.map_err(|_| unavailable("too many tokens are being read"))?.map_err(unavailable)
}

/// Whether a direct get was answered by our stream, and not by a mirror of it.
pub fn is_ours(answer: &Message) -> bool {
    let stream = answer.headers.as_ref().and_then(|headers| headers.get(header::STREAM));
    stream.is_some_and(|stream| stream.as_str() == STREAM)
}

fn number(message: &Message, header: &str) -> Option<u64> {
    message.headers.as_ref()?.get(header)?.as_str().parse().ok()
}

pub fn refused(status: StatusCode, description: Option<&str>) -> StorageError {
    unavailable(format!("nats-server refused a read: {status} {}", description.unwrap_or_default()))
}

impl From<ApiError> for StorageError {
    fn from(error: ApiError) -> Self {
        unavailable(error)
    }
}
