//! The limit: the same messages sent by async-nats alone, no GraphQL, no decisions, one batch at a time.

use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::times::Times;

/// Messages of a move: the token, the event, the departure.
const MESSAGES: usize = 3;
/// nats-server's limit of a batch.
const BATCH_MESSAGES_MAX: usize = 1_000;
/// nats-server's code for a check that has failed.
const WRONG_LAST_SEQUENCE: u64 = 10_071;
const STREAM: &str = "CIRCUIT_BREAKER_GLOBAL";

/// Subject, payload, and the headers beside those of the batch.
type Sent<'a> = (String, Bytes, &'a [(&'a str, &'a str)]);

/// One token of the limit's own.
struct Moving {
    id: Uuid,
    /// The sequence of its newest message.
    newest: u64,
    place: usize,
}

/// Moves tokens there and back as the product does on the wire.
pub struct Bare {
    client: Client,
    tokens: Vec<Moving>,
    token: Bytes,
    event: Bytes,
}

/// Three ids, as a token's message names those of its newest events.
const EVENTS: &str = "01890a5d-ac96-774b-bcce-b302099a8057,01890a5d-ac96-774b-bcce-b302099a8058,01890a5d-ac96-774b-bcce-b302099a8059";

const PLACES: [&str; 2] = ["open", "review"];

fn subject(id: Uuid, place: usize) -> String {
    format!("cb.workflows.limit.places.{}.tokens.{id}", PLACES[place])
}

impl Bare {
    /// Creates `count` tokens with payloads as long as the product's.
    pub async fn new(url: &str, count: usize, token: Bytes, event: Bytes) -> Self {
        let client = async_nats::connect(url).await.expect("nats-server is there");
        let mut bare = Self { client, tokens: Vec::new(), token, event };
        for _ in 0..count {
            let id = Uuid::new_v4();
            let answer = bare.client.request(subject(id, 0), bare.token.clone());
            let answer: Value = parse(&answer.await.expect("it answers").payload);
            bare.tokens.push(Moving { id, newest: number(&answer["seq"]), place: 0 });
        }
        bare
    }

    /// One batch of moves; the tokens must all be different. False if a departure had gone by then, as on
    /// a machine that stood still for a second: then all are looked at, and it is to be sent again.
    async fn batch(&mut self, from: usize, moves: usize) -> bool {
        let id = Uuid::new_v4().simple().to_string();
        let count = moves * MESSAGES;
        let mut number_in_batch = 0;
        let mut answer = None;
        for index in 0..moves {
            let at = (from + index) % self.tokens.len();
            let token = &self.tokens[at];
            let (here, there) =
                (subject(token.id, token.place), subject(token.id, 1 - token.place));
            let expected = token.newest.to_string();
            let anywhere = format!("cb.workflows.limit.places.*.tokens.{}", token.id);
            let messages: [Sent; MESSAGES] = [
                (
                    there,
                    self.token.clone(),
                    &[
                        ("Nats-Expected-Last-Subject-Sequence", &expected),
                        ("Nats-Expected-Last-Subject-Sequence-Subject", &anywhere),
                        ("Cb-Format", "2"),
                        ("Cb-Events", EVENTS),
                        ("Cb-Previous", "100000"),
                    ],
                ),
                (
                    "cb.workflows.limit.events.transitions".to_owned(),
                    self.event.clone(),
                    &[("Nats-TTL", "604800s"), ("Cb-Format", "2")],
                ),
                (
                    here,
                    Bytes::new(),
                    &[
                        ("Nats-Rollup", "sub"),
                        ("Nats-TTL", "1s"),
                        ("Cb-Format", "2"),
                        ("Cb-Moved-To", PLACES[1 - token.place]),
                    ],
                ),
            ];
            for (subject, payload, more) in messages {
                number_in_batch += 1;
                let mut headers = HeaderMap::new();
                headers.insert("Nats-Batch-Id", id.as_str());
                headers.insert("Nats-Batch-Sequence", number_in_batch.to_string().as_str());
                more.iter().for_each(|(name, value)| headers.insert(*name, *value));
                if number_in_batch < count {
                    let sent = self.client.publish_with_headers(subject, headers, payload);
                    sent.await.expect("it is sent");
                } else {
                    headers.insert("Nats-Batch-Commit", "1");
                    let sent = self.client.request_with_headers(subject, headers, payload);
                    answer = Some(sent.await.expect("it answers"));
                }
            }
        }
        let Some(last) = last_of_batch(&answer.expect("a batch is not empty").payload) else {
            for index in 0..moves {
                self.look((from + index) % self.tokens.len()).await;
            }
            return false;
        };
        let first = last + 1 - count as u64;
        for index in 0..moves {
            let at = (from + index) % self.tokens.len();
            // The departure: it lives longer than the tokens need to take turns.
            self.tokens[at].newest = first + (index * MESSAGES) as u64 + 2;
            self.tokens[at].place = 1 - self.tokens[at].place;
        }
        true
    }

    /// Finds the newest message of a token.
    async fn look(&mut self, at: usize) {
        let token = &mut self.tokens[at];
        let anywhere = format!("cb.workflows.limit.places.*.tokens.{}", token.id);
        let request = json!({ "last_by_subj": anywhere }).to_string();
        let subject = format!("$JS.API.STREAM.MSG.GET.{STREAM}");
        let answer = self.client.request(subject, request.into()).await.expect("it answers");
        token.newest = number(&parse(&answer.payload)["message"]["seq"]);
    }

    /// Batches of as many moves as callers wait, one after the other, until the time is over.
    pub async fn run(&mut self, callers: usize, time: Duration) -> (Times, usize) {
        let moves = callers.min(BATCH_MESSAGES_MAX / MESSAGES).min(self.tokens.len());
        let (start, mut times, mut from) = (Instant::now(), Vec::new(), 0);
        while start.elapsed() < time {
            let began = Instant::now();
            if !self.batch(from, moves).await {
                continue;
            }
            times.push(began.elapsed());
            from = (from + moves) % self.tokens.len();
        }
        (Times::new(times, start.elapsed()), moves)
    }

    /// Waits until nobody walks through the stream any more.
    pub async fn quiet(&self) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let subject = format!("$JS.API.STREAM.INFO.{STREAM}");
            let answer = self.client.request(subject, Bytes::new()).await.expect("it answers");
            if parse(&answer.payload)["state"]["consumer_count"] == 0 {
                return;
            }
        }
    }

    /// Direct gets of single tokens, one at a time.
    pub async fn gets(&self, ids: &[String], time: Duration) -> Times {
        let (start, mut times) = (Instant::now(), Vec::new());
        while start.elapsed() < time {
            let subject = &ids[times.len() % ids.len()];
            let request = json!({ "last_by_subj": subject }).to_string();
            let began = Instant::now();
            let answer =
                self.client.request(format!("$JS.API.DIRECT.GET.{STREAM}"), request.into()).await;
            assert!(answer.expect("it answers").status.is_none(), "{subject} is there");
            times.push(began.elapsed());
        }
        Times::new(times, start.elapsed())
    }

    /// Pages of 100 of a place.
    pub async fn pages(&self, filter: &str, time: Duration) -> Times {
        let (start, mut times) = (Instant::now(), Vec::new());
        while start.elapsed() < time {
            let request = json!({ "seq": 1, "next_by_subj": filter, "batch": 100 }).to_string();
            let began = Instant::now();
            let inbox = self.client.new_inbox();
            let mut answers = self.client.subscribe(inbox.clone()).await.expect("it is sent");
            let subject = format!("$JS.API.DIRECT.GET.{STREAM}");
            let sent = self.client.publish_with_reply(subject, inbox, request.into());
            sent.await.expect("it is sent");
            while answers.next().await.expect("it goes on").status.is_none() {}
            times.push(began.elapsed());
        }
        Times::new(times, start.elapsed())
    }
}

/// The sequence of the last message of a batch; none if a check has failed.
fn last_of_batch(payload: &[u8]) -> Option<u64> {
    let answer: Value = serde_json::from_slice(payload).expect("an answer is JSON");
    if answer["error"]["err_code"] == WRONG_LAST_SEQUENCE {
        return None;
    }
    assert!(answer["error"].is_null(), "{answer}");
    Some(number(&answer["seq"]))
}

fn parse(payload: &[u8]) -> Value {
    let answer: Value = serde_json::from_slice(payload).expect("an answer is JSON");
    assert!(answer["error"].is_null(), "{answer}");
    answer
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("it is a number")
}
