//! The bus as a plain NATS client sees it: async-nats alone, nothing of ours.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use async_nats::{Client, ConnectOptions, HeaderMap, Message, Subscriber};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::nats_server::NatsServer;

pub const STREAM: &str = "CIRCUIT_BREAKER_GLOBAL";

/// Time for one answer or one message; it takes a fraction of a millisecond.
pub const MESSAGE_TIME_MAX: Duration = Duration::from_secs(20);

/// A message as it stands in the stream, without what belonged to its batch.
#[derive(Debug, Clone)]
pub struct Raw {
    pub sequence: u64,
    pub subject: String,
    pub headers: HeaderMap,
    pub payload: Vec<u8>,
}

/// Where the JetStream API is for who is in the account of the stream.
const API: &str = "$JS.API";

/// A plain client.
pub struct Bus {
    pub client: Client,
    /// Where the JetStream API is.
    api: &'static str,
}

impl Bus {
    pub async fn connect(server: &NatsServer) -> Self {
        Self { client: async_nats::connect(server.url()).await.unwrap(), api: API }
    }

    /// The client takes no notice of a login in an address.
    pub async fn log_in(url: &str, user: &str, password: &str) -> Self {
        let login = ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned());
        Self { client: login.connect(url).await.unwrap(), api: API }
    }

    /// The same with the API under another name, as an account imports it.
    pub fn through(self, api: &'static str) -> Self {
        Self { api, ..self }
    }

    /// Waits until each token has one message on one subject.
    pub async fn until_each_token_is_there_once(&self) {
        let deadline = Instant::now() + MESSAGE_TIME_MAX;
        loop {
            let subjects = self.subjects("cb.workflows.*.places.*.tokens.*").await;
            let ids: HashSet<_> =
                subjects.iter().map(|(name, _)| name.rsplit('.').next()).collect();
            if subjects.len() == ids.len() && subjects.iter().all(|(_, count)| *count == 1) {
                return;
            }
            if Instant::now() >= deadline {
                self.tell_doubled(&subjects).await;
                panic!("{} subjects for {} tokens", subjects.len(), ids.len());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Shows what there is of tokens that have several messages.
    #[allow(clippy::print_stderr)]
    async fn tell_doubled(&self, subjects: &[(String, u64)]) {
        let mut by_token: HashMap<&str, Vec<&String>> = HashMap::new();
        for (subject, count) in subjects {
            let of_token = by_token.entry(subject.rsplit('.').next().unwrap()).or_default();
            of_token.extend((0..*count).map(|_| subject));
        }
        let doubled: Vec<_> = by_token.keys().filter(|id| by_token[**id].len() > 1).collect();
        for sequence in 1..=self.last_sequence().await {
            let Some(message) = self.raw(sequence).await else { continue };
            let payload = String::from_utf8_lossy(&message.payload);
            if doubled.iter().any(|id| message.subject.ends_with(**id) || payload.contains(**id)) {
                eprintln!(
                    "{sequence} {} {:?} {} bytes {}",
                    message.subject,
                    message.headers,
                    payload.len(),
                    payload.get(..300).unwrap_or(&payload)
                );
            }
        }
    }

    /// Asks the JetStream API; the answer may hold an error.
    pub async fn ask(&self, subject: &str, request: &Value) -> Value {
        let payload = if request.is_null() { String::new() } else { request.to_string() };
        let asked = self.client.request(format!("{}.{subject}", self.api), payload.into());
        let answer = tokio::time::timeout(MESSAGE_TIME_MAX, asked).await.unwrap().unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    }

    /// The same for what must work.
    pub async fn done(&self, subject: &str, request: &Value) -> Value {
        let answer = self.ask(subject, request).await;
        assert!(answer["error"].is_null(), "{subject} {request}: {answer}");
        answer
    }

    pub async fn stream(&self) -> Value {
        self.done(&format!("STREAM.INFO.{STREAM}"), &Value::Null).await
    }

    /// The newest message on a subject, with its headers.
    pub async fn last(&self, subject: &str) -> Option<Message> {
        let request = json!({ "last_by_subj": subject }).to_string();
        let asked = self.client.request(format!("$JS.API.DIRECT.GET.{STREAM}"), request.into());
        let answer = tokio::time::timeout(MESSAGE_TIME_MAX, asked).await.unwrap().unwrap();
        answer.status.is_none().then_some(answer)
    }

    /// The highest sequence that the stream has given out.
    pub async fn last_sequence(&self) -> u64 {
        self.stream().await["state"]["last_seq"].as_u64().unwrap()
    }

    /// The message with this sequence.
    pub async fn raw(&self, sequence: u64) -> Option<Raw> {
        let request = json!({ "seq": sequence });
        let answer = self.ask(&format!("STREAM.MSG.GET.{STREAM}"), &request).await;
        let message = answer.get("message")?;
        let text =
            |field: &str| BASE64.decode(message[field].as_str().unwrap_or_default()).unwrap();
        let mut headers = HeaderMap::new();
        for line in String::from_utf8(text("hdrs")).unwrap().lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            if !name.starts_with("Nats-Batch") && !name.starts_with("Nats-Expected") {
                headers.insert(name, value.trim());
            }
        }
        let subject = message["subject"].as_str().unwrap().to_owned();
        Some(Raw { sequence, subject, headers, payload: text("data") })
    }

    /// Whether the last change in the stream lacks a part.
    pub async fn ends_torn(&self) -> bool {
        let last = self.last_sequence().await;
        for (after, sequence) in (last.saturating_sub(8)..=last).rev().enumerate() {
            let Some(message) = self.raw(sequence).await else { return false };
            let Ok(token) = serde_json::from_slice::<Value>(&message.payload) else { return false };
            if message.subject.contains(".places.") {
                let newest = token["transition_history"].as_array().and_then(|all| all.last());
                let leaves = newest.is_some_and(|moved| moved["from_place"] != moved["to_place"]);
                return after == 0 || leaves;
            }
        }
        false
    }

    /// Writes a message as it stood in a stream, at the same place.
    pub async fn publish_raw(&self, message: &Raw) {
        let Raw { sequence, subject, headers, payload } = message.clone();
        let sent = self.client.request_with_headers(subject, headers, payload.into());
        let answer = tokio::time::timeout(MESSAGE_TIME_MAX, sent).await.unwrap().unwrap();
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert_eq!(answer["seq"], sequence, "{answer}");
    }

    /// A backup of the stream, as the official tool makes it: what it was, and its chunks.
    pub async fn snapshot(&self) -> (Value, Vec<Message>) {
        let inbox = self.client.new_inbox();
        let mut chunks = self.subscribe(&inbox).await;
        let request = json!({ "deliver_subject": inbox, "no_consumers": true });
        let begun = self.done(&format!("STREAM.SNAPSHOT.{STREAM}"), &request).await;
        let mut all = Vec::new();
        loop {
            let chunk = next(&mut chunks).await;
            if chunk.payload.is_empty() {
                return (begun, all);
            }
            if let Some(reply) = chunk.reply.clone() {
                self.client.publish(reply, "".into()).await.unwrap();
            }
            all.push(chunk);
        }
    }

    /// Restores it.
    pub async fn restore(&self, (begun, chunks): &(Value, Vec<Message>)) {
        let request = json!({ "config": begun["config"], "state": begun["state"] });
        let to = self.done(&format!("STREAM.RESTORE.{STREAM}"), &request).await;
        let to = to["deliver_subject"].as_str().unwrap().to_owned();
        let end = Default::default();
        for payload in chunks.iter().map(|chunk| &chunk.payload).chain([&end]) {
            let sent = self.client.request(to.clone(), payload.clone());
            let answer = tokio::time::timeout(MESSAGE_TIME_MAX, sent).await.unwrap().unwrap();
            let answer = String::from_utf8_lossy(&answer.payload);
            assert!(!answer.contains("\"error\""), "{answer}");
        }
    }

    /// How many messages there are on each subject that matches.
    pub async fn subjects(&self, filter: &str) -> Vec<(String, u64)> {
        let request = json!({ "subjects_filter": filter });
        let info = self.done(&format!("STREAM.INFO.{STREAM}"), &request).await;
        let subjects = info["state"]["subjects"].as_object().cloned().unwrap_or_default();
        let mut subjects: Vec<_> =
            subjects.into_iter().map(|(name, count)| (name, count.as_u64().unwrap())).collect();
        subjects.sort();
        subjects
    }

    /// A subscription that is there when this returns.
    pub async fn subscribe(&self, subject: &str) -> Subscriber {
        let subscriber = self.client.subscribe(subject.to_owned()).await.unwrap();
        // An answer from the server shows that it has taken up what came before.
        if self.api == API {
            self.ask("INFO", &Value::Null).await;
        }
        subscriber
    }

    /// Makes a durable consumer that wants every message acknowledged.
    pub async fn consumer(&self, name: &str, filter: &str) {
        let config = json!({
            "durable_name": name, "filter_subject": filter, "ack_policy": "explicit", "deliver_policy": "all",
        });
        let request = json!({ "stream_name": STREAM, "config": config });
        self.done(&format!("CONSUMER.DURABLE.CREATE.{STREAM}.{name}"), &request).await;
    }

    /// What a consumer has not delivered yet; each message is acknowledged.
    pub async fn take(&self, consumer: &str) -> Vec<Message> {
        let info = self.done(&format!("CONSUMER.INFO.{STREAM}.{consumer}"), &Value::Null).await;
        let pending = usize::try_from(info["num_pending"].as_u64().unwrap()).unwrap();
        let inbox = self.client.new_inbox();
        let mut answers = self.subscribe(&inbox).await;
        let request = json!({ "batch": pending.max(1), "no_wait": true }).to_string();
        let subject = format!("{}.CONSUMER.MSG.NEXT.{STREAM}.{consumer}", self.api);
        self.client.publish_with_reply(subject, inbox, request.into()).await.unwrap();
        let mut taken = Vec::new();
        while taken.len() < pending {
            let message = next(&mut answers).await;
            assert!(message.status.is_none(), "{message:?}");
            let ack = message.reply.clone().unwrap();
            let acked = self.client.request(ack, "+ACK".into());
            tokio::time::timeout(MESSAGE_TIME_MAX, acked).await.unwrap().unwrap();
            taken.push(message);
        }
        taken
    }
}

/// The next message of a subscription.
pub async fn next(subscriber: &mut Subscriber) -> Message {
    tokio::time::timeout(MESSAGE_TIME_MAX, subscriber.next()).await.unwrap().unwrap()
}

/// What has arrived before a message that is sent now, without it.
pub async fn so_far(bus: &Bus, subscriber: &mut Subscriber, marker: &str) -> Vec<Message> {
    let headers = HeaderMap::from_iter([("Marker".parse().unwrap(), "1".parse().unwrap())]);
    bus.client.publish_with_headers(marker.to_owned(), headers, "".into()).await.unwrap();
    let mut found = Vec::new();
    loop {
        let message = next(subscriber).await;
        if message.headers.as_ref().is_some_and(|headers| headers.get("Marker").is_some()) {
            return found;
        }
        found.push(message);
    }
}
