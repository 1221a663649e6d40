//! Reads of single messages and of runs of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_nats::StatusCode;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::api::{self, ANSWER_WAIT, ApiError, StreamState, code};
use super::codec::{self, Stored};
use super::link::{Link, LinkError};
use super::names::STREAM;
use super::walk::{self, Hints};
use crate::storage::StorageError;

/// Messages asked for at once; the connection to nats-server queues them for us.
const RUN_MESSAGES_MAX: usize = 2_048;

/// Bytes asked for at once: a run is in memory as a whole.
pub const RUN_BYTES_MAX: usize = 8 << 20;

/// Pause before a replica that lags is asked again.
const LAG_PAUSE: Duration = Duration::from_millis(5);

/// How often a replica that lags is asked again before the leader is asked instead.
const LAG_LOOKS: usize = 20;

/// Reads from the stream such that no answer is older than an earlier answer or acknowledgement
/// of this process.
pub struct Reader {
    pub link: Arc<Link>,
    pub hints: Hints,
    attempts: usize,
    placement: Mutex<Placement>,
    /// The highest sequence that was acknowledged or read here.
    seen: AtomicU64,
    /// The highest sequence that is known of.
    last: AtomicU64,
}

/// Where the copies of the stream are.
#[derive(Debug, Clone, Default)]
struct Placement {
    replicas: u64,
    members: Vec<String>,
}

/// Part of the messages on a subject, in their order.
#[derive(Debug, Default)]
pub struct Run {
    pub messages: Vec<Stored>,
    /// Whether more came after them.
    pub more: bool,
}

/// A failed read as the caller of the store sees it: nothing was changed.
pub fn unavailable(error: impl ToString) -> StorageError {
    StorageError::Unavailable { reason: error.to_string() }
}

impl Reader {
    pub fn new(link: Arc<Link>, attempts: usize) -> Self {
        let (placement, seen) = (Mutex::default(), AtomicU64::new(0));
        Self { link, hints: Hints::new(), attempts, placement, seen, last: AtomicU64::new(0) }
    }

    /// Notes where the copies of the stream are now.
    pub fn set_placement(&self, state: &StreamState) {
        let members = state.leader.iter().chain(state.peers.iter().map(|(name, _)| name)).cloned();
        let placement = Placement { replicas: state.replicas, members: members.collect() };
        *self.placement.lock().unwrap_or_else(PoisonError::into_inner) = placement;
        self.hints.set_subjects(state.subjects);
        self.last.fetch_max(state.last_sequence, Ordering::AcqRel);
    }

    /// The highest sequence that is known of.
    pub fn last_sequence(&self) -> u64 {
        self.last.load(Ordering::Acquire).max(self.seen.load(Ordering::Acquire))
    }

    fn placement(&self) -> Placement {
        self.placement.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Copies of the stream.
    pub fn replicas(&self) -> u64 {
        self.placement.lock().unwrap_or_else(PoisonError::into_inner).replicas
    }

    /// Notes that this sequence was shown to somebody; no later list may be older.
    pub fn note(&self, sequence: u64) {
        self.seen.fetch_max(sequence, Ordering::AcqRel);
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

    /// One message as the leader has it. With one replica a direct get asks it; with more it may
    /// ask a replica that lags, so the leader is asked through the API.
    async fn one(&self, request: &Value) -> Result<Option<Stored>, StorageError> {
        let request = codec::request(request);
        let direct = self.replicas() <= 1;
        let subject = if direct {
            format!("$JS.API.DIRECT.GET.{STREAM}")
        } else {
            format!("$JS.API.STREAM.MSG.GET.{STREAM}")
        };
        let mut attempt = 1;
        let answer = loop {
            let asked =
                self.link.request(subject.clone(), None, request.clone(), ANSWER_WAIT).await;
            match asked {
                Ok(answer) => break answer,
                Err(LinkError::NotSent(reason)) => return Err(unavailable(reason)),
                Err(error) if attempt >= self.attempts => return Err(unavailable(error)),
                Err(LinkError::NoResponders(_)) => sleep(LAG_PAUSE * 20).await,
                Err(LinkError::NoAnswer(_)) => {}
            }
            attempt += 1;
        };
        let found = if direct {
            match answer.status {
                Some(StatusCode::NOT_FOUND) => None,
                None | Some(StatusCode::OK) => Some(Stored::from_direct(answer)?),
                Some(status) => return Err(refused(status, answer.description.as_deref())),
            }
        } else {
            match api::parse_error(&answer.payload) {
                None => Some(Stored::from_leader(&answer.payload)?),
                Some(error) if error.is(code::NO_MESSAGE) => None,
                Some(error) => return Err(unavailable(error)),
            }
        };
        if let Some(found) = &found {
            self.note(found.sequence);
        }
        Ok(found)
    }

    /// The token messages on the subjects that match a filter, from `start` on, about `limit` of
    /// them; fewer, though there are more, where they are large.
    pub async fn tokens(
        &self,
        filter: &str,
        start: u64,
        limit: usize,
        deadline: Instant,
    ) -> Result<Run, StorageError> {
        let limit = limit.clamp(1, RUN_MESSAGES_MAX);
        self.repeated(deadline, || walk::run(self, filter, start, limit, deadline)).await
    }

    /// The same of events, whose subjects are few.
    pub async fn events(
        &self,
        filter: &str,
        start: u64,
        limit: usize,
        deadline: Instant,
    ) -> Result<Run, StorageError> {
        let limit = limit.clamp(1, RUN_MESSAGES_MAX);
        let run = || async {
            if self.replica_is_near().await {
                self.direct_run(filter, start, limit).await
            } else {
                self.leader_run(filter, start, limit, deadline).await
            }
        };
        self.repeated(deadline, run).await
    }

    /// Asks again where an answer was lost on its way.
    async fn repeated<F: Future<Output = Result<Run, StorageError>>>(
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
                        self.note(newest.sequence);
                    }
                    return Ok(run);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether direct gets are answered by one copy that has all that was shown here before.
    ///
    /// nats-server gives a request to the subscriber on the server that it came in at, if there is
    /// one. So if that server holds a copy, that copy answers the question here and the one after.
    pub async fn replica_is_near(&self) -> bool {
        let placement = self.placement();
        if placement.replicas <= 1 {
            return true;
        }
        let here = self.link.server().map(|server| server.server_name).unwrap_or_default();
        if !placement.members.contains(&here) {
            return false;
        }
        let seen = self.seen.load(Ordering::Acquire);
        if seen == 0 {
            return true;
        }
        let question = codec::request(&json!({ "seq": seen, "batch": 1, "no_hdr": true }));
        for _ in 0..LAG_LOOKS {
            let subject = format!("$JS.API.DIRECT.GET.{STREAM}");
            let asked = self.link.request(subject, None, question.clone(), ANSWER_WAIT).await;
            match asked {
                Ok(answer) if answer.status.is_none() => return true,
                Ok(_) => sleep(LAG_PAUSE).await,
                Err(_) => return false,
            }
        }
        false
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
        let subject = format!("$JS.API.DIRECT.GET.{STREAM}");
        let asked =
            self.link.request_many(subject, None, codec::request(request), limit + 1, ANSWER_WAIT);
        let mut replies = asked.await.map_err(unavailable)?;
        let (mut run, mut last) = (Run::default(), 0);
        loop {
            let message = replies.next().await.map_err(unavailable)?;
            match message.status {
                None | Some(StatusCode::OK) => {
                    if number(&message, "Nats-Last-Sequence") != Some(last) {
                        return Err(unavailable("a message of a list was lost on its way"));
                    }
                    let stored = Stored::from_direct(message)?;
                    last = stored.sequence;
                    run.messages.push(stored);
                }
                // The end of a batch.
                Some(status) if status.as_u16() == 204 => {
                    if number(&message, "Nats-Last-Sequence") != Some(last) {
                        return Err(unavailable("a message of a list was lost on its way"));
                    }
                    run.more = number(&message, "Nats-Num-Pending").is_some_and(|left| left > 0);
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
            let answer = api::ask_raw(&self.link, &api_subject, &request);
            let answer = answer.await.map_err(unavailable)?;
            let stored = match api::parse_error(&answer.payload) {
                None => Stored::from_leader(&answer.payload)?,
                Some(error) if error.is(code::NO_MESSAGE) => return Ok(run),
                Some(error) => return Err(unavailable(error)),
            };
            if run.messages.len() == limit || bytes >= RUN_BYTES_MAX {
                run.more = true;
                return Ok(run);
            }
            next = stored.sequence + 1;
            bytes += stored.payload.len();
            run.messages.push(stored);
        }
    }

    /// All messages between two sequences, as a batch left them.
    pub async fn between(&self, first: u64, last: u64) -> Result<Vec<Stored>, StorageError> {
        let count = usize::try_from(last.saturating_sub(first) + 1).unwrap_or(RUN_MESSAGES_MAX);
        let mut messages = self.direct_run(">", first, count.min(RUN_MESSAGES_MAX)).await?.messages;
        messages.retain(|message| message.sequence <= last);
        Ok(messages)
    }
}

fn number(message: &async_nats::Message, header: &str) -> Option<u64> {
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
