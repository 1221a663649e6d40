//! The JetStream API: requests and answers in JSON.

use std::time::Duration;

use async_nats::{HeaderMap, HeaderName, Message};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::link::{Link, LinkError};
use super::names::{FORMAT, STREAM, header};

/// Time that nats-server has for one answer; it usually takes a fraction of a millisecond.
pub const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// Time for an answer that goes through many messages or subjects: 100,000 of them take 1.4 s.
const LONG_ANSWER_WAIT: Duration = Duration::from_secs(8);

/// What a person is told where nats-server answers nothing that is written, or cannot keep a batch, and
/// does not say why. After a write that its disk refused it answers reads alone, until it is restarted.
pub const WHY_UNANSWERED: &str = "if that lasts, its disk is full or fails, or too few of its nodes are there: its log tells which; make room and restart it";

/// From how many writes on a replica that is behind counts as faulty, and after how long a silence, which
/// nats-server itself notices after 10 s (2.15.1).
const LAG_MAX: u64 = 256;
const SILENT_MAX: Duration = Duration::from_secs(3);

/// After which silence of most replicas a leader may be none any more.
const CUT_OFF_MIN: Duration = Duration::from_secs(2);

/// How many are heard that say to be the leader of the stream.
const LEADERS_MAX: usize = 2;

/// Error codes of nats-server (`server/errors.json` there).
pub mod code {
    pub const ACCOUNT_LIMIT: u64 = 10_002;
    pub const INSUFFICIENT_RESOURCES: u64 = 10_023;
    pub const NO_MESSAGE: u64 = 10_037;
    pub const NOT_ENABLED_FOR_ACCOUNT: u64 = 10_039;
    pub const STORAGE_EXCEEDED: u64 = 10_047;
    pub const STREAM_IN_USE: u64 = 10_058;
    pub const STREAM_NOT_FOUND: u64 = 10_059;
    pub const SUBJECTS_OVERLAP: u64 = 10_065;
    pub const WRONG_LAST_SEQUENCE: u64 = 10_071;
    pub const REPLICAS_NOT_SUPPORTED: u64 = 10_074;
    pub const NOT_ENABLED: u64 = 10_076;
    pub const STORE_FAILED: u64 = 10_077;
    pub const WRITE_UNDER_WAY: u64 = 10_164;
    pub const BATCH_INCOMPLETE: u64 = 10_176;
    pub const BATCH_TOO_LARGE: u64 = 10_199;
    pub const TEMPORARILY_UNAVAILABLE: u64 = 10_008;
}

/// Why the API did not do what it was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    /// No answer.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The server refused.
    #[error("{description} (error code {err_code})")]
    Refused {
        /// nats-server's code for it.
        err_code: u64,
        /// nats-server's words.
        description: String,
    },
    /// The answer is not what the API promises.
    #[error("an answer that cannot be read: {0}")]
    Unreadable(String),
}

impl ApiError {
    /// Whether the server refused with this code.
    pub fn is(&self, code: u64) -> bool {
        matches!(self, ApiError::Refused { err_code, .. } if *err_code == code)
    }
}

/// Asks the JetStream API; `subject` is what follows `$JS.API.`.
pub async fn ask(link: &Link, subject: &str, request: &Value) -> Result<Value, ApiError> {
    parse(&ask_raw(link, subject, request).await?.payload)
}

/// The same for what takes long: to go through many messages or subjects.
pub async fn ask_long(link: &Link, subject: &str, request: &Value) -> Result<Value, ApiError> {
    let (subject, request) = (format!("$JS.API.{subject}"), request.to_string());
    let answer = link.request(subject, None, request.into(), LONG_ANSWER_WAIT).await?;
    parse(&answer.payload)
}

/// The same, with the answer as it came.
pub async fn ask_raw(link: &Link, subject: &str, request: &Value) -> Result<Message, LinkError> {
    let payload = if request.is_null() { Bytes::new() } else { request.to_string().into() };
    link.request(format!("$JS.API.{subject}"), None, payload, ANSWER_WAIT).await
}

/// Headers of a message: names of ours or of nats-server, each once.
pub type Headers = Vec<(&'static str, String)>;

/// The same as the client wants them.
pub fn headers(headers: &[(&'static str, String)]) -> HeaderMap {
    let each = headers.iter();
    each.map(|(name, value)| (HeaderName::from_static(name), value.as_str().into())).collect()
}

/// Stores one message outside of batches, such as what belongs to the store itself. Gives its sequence.
pub async fn store(
    link: &Link,
    subject: String,
    more: &[(&'static str, String)],
    payload: Bytes,
) -> Result<u64, ApiError> {
    let mut all = headers(more);
    all.insert(header::FORMAT, FORMAT.to_string().as_str());
    let answer = link.request(subject, Some(all), payload, ANSWER_WAIT).await?;
    let answer = parse(&answer.payload)?;
    let sequence = answer["seq"].as_u64();
    sequence.ok_or_else(|| ApiError::Unreadable(answer.to_string()))
}

/// Removes messages: `seq` is the first to stay, `keep` how many stay. Gives how many went.
pub async fn purge(link: &Link, request: &Value) -> Result<u64, ApiError> {
    let answer = ask_long(link, &format!("STREAM.PURGE.{STREAM}"), request).await?;
    Ok(answer["purged"].as_u64().unwrap_or(0))
}

/// Removes one message. Where nats-server refuses that, it is mostly gone already: a read tells.
pub async fn delete(link: &Link, sequence: u64) -> Result<(), ApiError> {
    let request = json!({ "seq": sequence, "no_erase": true });
    match ask(link, &format!("STREAM.MSG.DELETE.{STREAM}"), &request).await {
        Ok(_) | Err(ApiError::Refused { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The answer as JSON, or the error in it.
pub fn parse(payload: &[u8]) -> Result<Value, ApiError> {
    match parse_error(payload) {
        None => serde_json::from_slice(payload).map_err(|e| ApiError::Unreadable(e.to_string())),
        Some(error) => Err(error),
    }
}

/// The error that an answer holds, if it holds one.
fn parse_error(payload: &[u8]) -> Option<ApiError> {
    #[derive(Deserialize)]
    struct Answer {
        error: Option<Refusal>,
    }
    match serde_json::from_slice::<Answer>(payload) {
        Ok(Answer { error }) => error.map(ApiError::from),
        Err(error) => Some(ApiError::Unreadable(error.to_string())),
    }
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

impl From<Refusal> for ApiError {
    fn from(Refusal { err_code, description }: Refusal) -> Self {
        Self::Refused { err_code, description }
    }
}

/// A message as the leader gives it.
#[derive(Debug, Deserialize)]
pub struct LeaderMessage<'a> {
    pub subject: String,
    pub seq: u64,
    pub time: &'a str,
    /// Headers and payload, in base64.
    #[serde(default)]
    pub hdrs: &'a str,
    #[serde(default)]
    pub data: &'a str,
}

/// The message in the leader's answer, or none where it has none. The answer is gone through once: that
/// is much of what a read costs this process.
pub fn leader_message(answer: &[u8]) -> Result<Option<LeaderMessage<'_>>, ApiError> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        error: Option<Refusal>,
        #[serde(borrow)]
        message: Option<LeaderMessage<'a>>,
    }
    match serde_json::from_slice(answer) {
        Ok(Answer { error: None, message: Some(message) }) => Ok(Some(message)),
        Ok(Answer { error: None, message: None }) => {
            Err(ApiError::Unreadable("neither a message nor an error".to_owned()))
        }
        Ok(Answer { error: Some(error), .. }) => match ApiError::from(error) {
            error if error.is(code::NO_MESSAGE) => Ok(None),
            error => Err(error),
        },
        Err(error) => Err(ApiError::Unreadable(error.to_string())),
    }
}

/// What the stream holds and how it does.
#[derive(Debug, Clone, Default)]
pub struct StreamState {
    /// When it was made: another time means another stream.
    pub created: String,
    pub messages: u64,
    pub bytes: u64,
    pub last_sequence: u64,
    pub subjects: u64,
    /// The configured limits; none where there is no limit.
    pub messages_max: Option<u64>,
    pub bytes_max: Option<u64>,
    pub replicas: u64,
    /// Whether the nats-server that holds it is part of a cluster: then others may hold it, too, or have
    /// held it until a moment ago.
    pub clustered: bool,
    pub leader: Option<String>,
    /// Since when it leads.
    pub leader_since: String,
    /// Replicas other than the leader, with what is wrong with each, if something is.
    pub peers: Vec<(String, Option<String>)>,
    /// Whether who answers as the leader has not heard of most of the others for some time: there may be
    /// another leader by now, which knows more.
    pub is_cut_off: bool,
}

/// Looks at the stream.
pub async fn stream_state(link: &Link) -> Result<StreamState, ApiError> {
    let info = ask(link, &format!("STREAM.INFO.{STREAM}"), &Value::Null).await?;
    Ok(StreamState::read(&info))
}

/// Who answers as the leader of the stream: for a moment there may be another one, which does not know yet that
/// it leads no more. Whoever is heard `wait` after the first or later is not among them.
pub async fn leaders(link: &Link, wait: Duration) -> Result<Vec<StreamState>, ApiError> {
    let subject = format!("$JS.API.STREAM.INFO.{STREAM}");
    let asked = link.request_many(subject, None, Bytes::new(), LEADERS_MAX, ANSWER_WAIT);
    let mut answers = asked.await?;
    let mut leaders = vec![StreamState::read(&parse(&answers.next().await?.payload)?)];
    let until = Instant::now() + wait;
    while leaders.len() < LEADERS_MAX
        && let Ok(Ok(answer)) = timeout_at(until, answers.next()).await
    {
        leaders.push(StreamState::read(&parse(&answer.payload)?));
    }
    Ok(leaders)
}

impl StreamState {
    pub fn read(info: &Value) -> Self {
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let limit = |value: &Value| value.as_i64().and_then(|n| u64::try_from(n).ok());
        let (state, config) = (&info["state"], &info["config"]);
        let peers = info["cluster"]["replicas"].as_array().map(Vec::as_slice).unwrap_or_default();
        let heard = 1 + peers.iter().filter(|peer| is_heard(peer)).count();
        Self {
            created: info["created"].as_str().unwrap_or_default().to_owned(),
            messages: number(&state["messages"]),
            bytes: number(&state["bytes"]),
            last_sequence: number(&state["last_seq"]),
            subjects: number(&state["num_subjects"]),
            messages_max: limit(&config["max_msgs"]),
            bytes_max: limit(&config["max_bytes"]),
            replicas: number(&config["num_replicas"]).max(1),
            clustered: info["cluster"]["name"].as_str().is_some_and(|name| !name.is_empty()),
            leader: info["cluster"]["leader"].as_str().map(str::to_owned),
            leader_since: info["cluster"]["leader_since"].as_str().unwrap_or_default().to_owned(),
            peers: peers.iter().map(peer).collect(),
            is_cut_off: heard <= peers.len().div_ceil(2),
        }
    }

    /// What is wrong with its replicas, in words.
    pub fn wrong_replicas(&self) -> Vec<String> {
        let each = self.peers.iter();
        let mut wrong: Vec<String> = each
            .filter_map(|(name, wrong)| Some(format!("replica {name} {}", wrong.as_ref()?)))
            .collect();
        let copies = 1 + self.peers.len() as u64;
        if copies < self.replicas {
            wrong.push(format!("{copies} of {} replicas are there", self.replicas));
        }
        wrong
    }
}

/// The name of a stream that mirrors ours and answers direct gets in its stead, if there is one
/// among the first few hundred streams.
pub async fn mirror(link: &Link) -> Result<Option<String>, ApiError> {
    let list = ask(link, "STREAM.LIST", &Value::Null).await?;
    let mut streams = list["streams"].as_array().map(Vec::as_slice).unwrap_or_default().iter();
    let mirror = streams.find(|stream| {
        let config = &stream["config"];
        config["mirror"]["name"] == STREAM && config["mirror_direct"] == true
    });
    Ok(mirror.and_then(|stream| Some(stream["config"]["name"].as_str()?.to_owned())))
}

/// Whether the leader has heard of a replica lately; they tell of themselves each second.
fn is_heard(peer: &Value) -> bool {
    let silent = Duration::from_nanos(peer["active"].as_u64().unwrap_or(0));
    peer["offline"] != true
        && silent < CUT_OFF_MIN
        && !(silent.is_zero() && peer["current"] == false)
}

fn peer(peer: &Value) -> (String, Option<String>) {
    let name = peer["name"].as_str().unwrap_or("?").to_owned();
    let lag = peer["lag"].as_u64().unwrap_or(0);
    let silent = Duration::from_nanos(peer["active"].as_u64().unwrap_or(0));
    // Under load each is some writes behind, and counts as not current, while it keeps up.
    let wrong = if peer["offline"] == true {
        Some("is offline".to_owned())
    } else if silent >= SILENT_MAX {
        Some(format!("was heard of last {} s ago", silent.as_secs()))
    } else if peer["current"] != false {
        None
    } else if silent.is_zero() {
        Some("has not been heard of by the leader".to_owned())
    } else if lag >= LAG_MAX {
        Some(format!("is {lag} writes behind"))
    } else {
        None
    };
    (name, wrong)
}

/// A JSON request, as bytes.
pub fn request(json: &Value) -> Bytes {
    json.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_that_does_not_hear_most_of_the_others_may_be_none() {
        for (silences, cut_off) in [
            (vec![], false),
            (vec![1_900, 5_000], false),
            (vec![2_000, 2_000], true),
            (vec![0, 5_000], true),
            (vec![1, 1, 9_000, 9_000], false),
            (vec![1, 9_000, 9_000, 9_000], true),
            (vec![9_000], true),
        ] {
            let replicas: Vec<_> = silences
                .iter()
                .map(|millis: &u64| json!({ "active": millis * 1_000_000, "current": *millis > 0 }))
                .collect();
            let info = json!({ "cluster": { "name": "c", "replicas": replicas } });
            assert_eq!(StreamState::read(&info).is_cut_off, cut_off, "{silences:?}");
        }
    }

    #[test]
    fn a_replica_that_keeps_up_is_not_faulty() {
        for (offline, current, lag, millis, wrong) in [
            (false, true, 0, 0, None),
            (false, false, 1, 1, None),
            (false, false, 255, 2_000, None),
            (false, false, 256, 1, Some("is 256 writes behind")),
            (false, false, 1, 3_000, Some("was heard of last 3 s ago")),
            (false, true, 0, 2_900, None),
            // nats-server notices that after 10 s.
            (false, true, 0, 9_000, Some("was heard of last 9 s ago")),
            // One that has just been elected.
            (false, false, 7, 0, Some("has not been heard of by the leader")),
            (true, false, 300, 12_000, Some("is offline")),
        ] {
            let replica = json!({
                "name": "n2", "offline": offline, "current": current, "lag": lag,
                "active": millis * 1_000_000_u64,
            });
            let info = json!({ "cluster": { "replicas": [replica] } });
            let wrong = wrong.map(str::to_owned);
            assert_eq!(StreamState::read(&info).peers, [("n2".to_owned(), wrong)], "{info}");
        }
    }
}
