//! Requests under way, who waits for their answers, and what nats-server does not allow.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{Message, StatusCode};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, timeout_at};

/// How long a permission that was missing counts as missing: then it is tried again.
const DENIED_FOR: Duration = Duration::from_secs(2);

/// What an account may do without: whether another stream mirrors ours is then not seen.
const OPTIONAL: &str = "$JS.API.STREAM.LIST";

/// Missing permissions that are remembered.
const DENIED_MAX: usize = 64;

/// For how long what the server said explains why the client has no connection; it is said with each try.
const SAID_FOR: Duration = Duration::from_secs(5);

/// Why a request has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// Nothing of it was handed to the connection.
    #[error("{0}")]
    NotSent(String),
    /// It may have reached the server or may yet reach it.
    #[error("{0}")]
    NoAnswer(String),
    /// The server says that nobody takes such requests now.
    #[error("nobody answers {0} at the moment")]
    NoResponders(String),
    /// The server does not let the account do this; nothing of it was done.
    #[error(
        "nats-server does not let the account that is used {0}; see docs/operating.md for the permissions that it needs"
    )]
    Denied(String),
}

/// Requests under way, by the last part of the subject that their answers go to.
///
/// The client has such a table of its own, but keeps what was never answered for ever.
#[derive(Default)]
pub struct Waiters {
    replies: Mutex<HashMap<u64, Waiter>>,
    next: AtomicU64,
    /// Requests that nobody answered.
    unanswered: AtomicU64,
    /// How often something happened that may hide a restart of nats-server.
    disturbances: watch::Sender<u64>,
    /// Tells that answers do not arrive on this connection.
    deaf: Notify,
    /// What nats-server does not let the account do, as it said a moment ago.
    denied: Mutex<Vec<(Denied, Instant)>>,
    /// What the server or the client said last that was not an answer, such as a refused permission.
    complaint: Mutex<Option<Complaint>>,
}

struct Complaint {
    said: String,
    by_server: bool,
    at: Instant,
}

struct Waiter {
    subject: String,
    answers: mpsc::Sender<Message>,
}

/// What nats-server does not let the account do.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Denied {
    Publish(String),
    Subscribe(String),
}

impl Denied {
    /// Reads what nats-server says, such as `Permissions Violation for Publish to "cb.tokens.x"`.
    fn read(said: &str) -> Option<Self> {
        let lower = said.to_ascii_lowercase();
        let subject = said.split('"').nth(1)?.to_owned();
        if !lower.contains("permissions violation") {
            None
        } else if lower.contains("for publish to") {
            Some(Self::Publish(subject))
        } else if lower.contains("for subscription to") {
            Some(Self::Subscribe(subject))
        } else {
            None
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Publish(subject) => write!(f, "publish to {subject}"),
            Self::Subscribe(subject) => write!(f, "subscribe to {subject}"),
        }
    }
}

impl Waiters {
    fn replies(&self) -> MutexGuard<'_, HashMap<u64, Waiter>> {
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn denied(&self) -> MutexGuard<'_, Vec<(Denied, Instant)>> {
        self.denied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a request wait for its answers.
    pub fn register(
        self: &Arc<Self>,
        subject: String,
        answers_max: usize,
        deadline: Instant,
    ) -> Replies {
        let (sender, messages) = mpsc::channel(answers_max);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let waiter = Waiter { subject: subject.clone(), answers: sender };
        self.replies().insert(id, waiter);
        Replies { id, messages, waiters: Arc::clone(self), subject, deadline }
    }

    /// How many requests nobody has answered.
    pub fn unanswered(&self) -> u64 {
        self.unanswered.load(Ordering::Relaxed)
    }

    /// How often something happened that may hide a restart of nats-server.
    pub fn disturbances(&self) -> &watch::Sender<u64> {
        &self.disturbances
    }

    /// Waits until it is clear that no answer can arrive on this connection; for one waiter.
    pub async fn deaf(&self) {
        self.deaf.notified().await;
    }

    /// The connection stands.
    pub fn connected(&self) {
        *self.complaint() = None;
        self.denied().clear();
        self.disturb();
    }

    /// The connection broke: whatever was asked on it is not answered on the next one.
    pub fn broken(&self) {
        self.replies().clear();
        self.disturb();
    }

    /// The server has said something that is no answer.
    pub fn note(&self, said: String) {
        if let Some(denied) = Denied::read(&said) {
            self.deny(denied);
        }
        *self.complaint() = Some(Complaint { said, by_server: true, at: Instant::now() });
    }

    /// The client has. Mostly it is only that the connection was closed, and the server said why before.
    pub fn note_of_client(&self, said: String) {
        let mut complaint = self.complaint();
        let explains = |there: &Complaint| there.by_server && there.at.elapsed() < SAID_FOR;
        if !complaint.as_ref().is_some_and(explains) {
            *complaint = Some(Complaint { said, by_server: false, at: Instant::now() });
        }
    }

    /// What was said last that was no answer, as the end of a message.
    pub fn said(&self) -> Option<String> {
        self.complaint().as_ref().map(|complaint| complaint.said.clone())
    }

    /// Whether the server said it: then the two understand one another.
    pub fn said_by_server(&self) -> bool {
        self.complaint().as_ref().is_some_and(|complaint| complaint.by_server)
    }

    /// Nobody waits any more.
    pub fn close(&self) {
        self.replies().clear();
    }

    /// Why nothing may be published to this subject, if nats-server has just said that it may not.
    pub fn denied_to(&self, subject: &str) -> Option<LinkError> {
        Some(LinkError::Denied(self.why_denied(subject)?.to_string()))
    }

    /// The permissions that are missing, as nats-server said a moment ago; without those that a store
    /// can do without.
    pub fn all_denied(&self) -> Option<String> {
        let all = self.denied();
        let needed = |denied: &Denied| *denied != Denied::Publish(OPTIONAL.to_owned());
        let lately = all.iter().filter(|(denied, at)| at.elapsed() < DENIED_FOR && needed(denied));
        let all: Vec<_> = lately.map(|(denied, _)| denied.to_string()).collect();
        (!all.is_empty()).then(|| LinkError::Denied(all.join(", ")).to_string())
    }

    /// Counts something that may hide a restart of nats-server.
    pub fn disturb(&self) {
        self.disturbances.send_modify(|number| *number += 1);
    }

    /// Notes a missing permission, and lets nobody wait for what it forbids.
    fn deny(&self, denied: Denied) {
        let mut all = self.denied();
        all.retain(|(there, at)| *there != denied && at.elapsed() < DENIED_FOR);
        if all.len() < DENIED_MAX {
            all.push((denied.clone(), Instant::now()));
        }
        drop(all);
        match denied {
            Denied::Publish(subject) => {
                self.replies().retain(|_, waiter| waiter.subject != subject)
            }
            // The one subscription that must work is that of all answers.
            Denied::Subscribe(_) => {
                self.replies().clear();
                self.deaf.notify_one();
            }
        }
    }

    /// What stands in the way of a request to this subject, if anything does.
    fn why_denied(&self, subject: &str) -> Option<Denied> {
        let all = self.denied();
        let forbids = |denied: &Denied| match denied {
            Denied::Publish(there) => there == subject,
            Denied::Subscribe(_) => true,
        };
        let found = all.iter().find(|(denied, at)| forbids(denied) && at.elapsed() < DENIED_FOR);
        found.map(|(denied, _)| denied.clone())
    }

    fn complaint(&self) -> MutexGuard<'_, Option<Complaint>> {
        self.complaint.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands an answer to who waits for it.
    pub fn deliver(&self, token: &str, message: Message) {
        let Ok(id) = token.parse::<u64>() else { return };
        if let Some(Waiter { answers, .. }) = self.replies().get(&id) {
            // Nobody asks for more messages than the channel has room for; who sends more all the
            // same loses them, and the reader sees that the end is missing.
            drop(answers.try_send(message));
        }
    }
}

/// The answers to one request.
pub struct Replies {
    pub id: u64,
    messages: mpsc::Receiver<Message>,
    waiters: Arc<Waiters>,
    subject: String,
    deadline: Instant,
}

impl Drop for Replies {
    fn drop(&mut self) {
        self.waiters.replies().remove(&self.id);
    }
}

impl Replies {
    /// Until when they are waited for.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The next answer.
    pub async fn next(&mut self) -> Result<Message, LinkError> {
        let answer = self.try_next().await;
        if matches!(answer, Err(LinkError::NoAnswer(_) | LinkError::NoResponders(_))) {
            self.waiters.unanswered.fetch_add(1, Ordering::Relaxed);
            self.waiters.disturb();
        }
        answer
    }

    async fn try_next(&mut self) -> Result<Message, LinkError> {
        match timeout_at(self.deadline, self.messages.recv()).await {
            Ok(Some(message)) if message.status == Some(StatusCode::NO_RESPONDERS) => {
                Err(LinkError::NoResponders(self.subject.clone()))
            }
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(match self.waiters.why_denied(&self.subject) {
                Some(denied @ Denied::Publish(_)) => LinkError::Denied(denied.to_string()),
                // It was taken, perhaps; only the answer cannot be heard.
                Some(denied @ Denied::Subscribe(_)) => {
                    LinkError::NoAnswer(LinkError::Denied(denied.to_string()).to_string())
                }
                None => LinkError::NoAnswer("the connection broke".to_owned()),
            }),
            Err(_) => {
                let said = self.waiters.said();
                let said = said.map_or_else(String::new, |said| format!(" (it said: {said})"));
                Err(LinkError::NoAnswer(format!("nats-server did not answer in time{said}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nats_server_forbids_is_read_from_its_words() {
        let publish = |subject: &str| Some(Denied::Publish(subject.to_owned()));
        for (said, denied) in [
            ("nats: Permissions Violation for Publish to \"cb.tokens.x\"", publish("cb.tokens.x")),
            (
                "nats: permissions violation for subscription to \"_INBOX.a.*\" using queue \"q\"",
                Some(Denied::Subscribe("_INBOX.a.*".to_owned())),
            ),
            ("nats: authorization violation", None),
            ("nats: maximum payload violation", None),
        ] {
            assert_eq!(Denied::read(said), denied, "{said}");
        }
    }

    #[test]
    fn nobody_waits_for_what_is_forbidden() {
        let waiters = Waiters::default();
        let waiters = Arc::new(waiters);
        let deadline = Instant::now() + Duration::from_secs(60);
        let wait = |subject: &str| waiters.register(subject.to_owned(), 1, deadline);
        let (mut a, mut b) = (wait("a"), wait("b"));
        waiters.deny(Denied::Publish("a".to_owned()));
        assert!(matches!(a.messages.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
        assert!(matches!(b.messages.try_recv(), Err(mpsc::error::TryRecvError::Empty)));
        assert_eq!(waiters.why_denied("a"), Some(Denied::Publish("a".to_owned())));
        assert_eq!(waiters.why_denied("b"), None);
        // Without its answers nothing can be asked.
        waiters.deny(Denied::Subscribe("inbox".to_owned()));
        assert!(matches!(b.messages.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
        assert_eq!(waiters.why_denied("b"), Some(Denied::Subscribe("inbox".to_owned())));
        for n in 0..2 * DENIED_MAX {
            waiters.deny(Denied::Publish(n.to_string()));
        }
        assert_eq!(waiters.denied().len(), DENIED_MAX);
    }
}
