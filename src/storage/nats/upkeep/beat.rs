//! The task that asks the nats-server process that holds the stream whether it is there, where the
//! connection does not tell.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Message;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::storage::nats::wire::jetstream::{self, StreamState};
use crate::storage::nats::wire::link::{Link, LinkError};
use crate::storage::nats::wire::names::{IDENTITY, STREAM};
use crate::storage::nats::wire::pulse;

/// How long it waits for an answer, and for how many at once.
const WAIT: Duration = Duration::from_millis(500);
const AT_ONCE_MAX: usize = 24;

/// How often it looks whether it is to ask.
const IDLE_PAUSE: Duration = Duration::from_millis(500);

/// Whether another process holds the stream than the one that the connection stands to, and nobody
/// else tells of its restarts.
pub fn is_needed(link: &Link, state: &StreamState) -> bool {
    let Some(server) = link.server() else { return false };
    let is_elsewhere = match &state.leader {
        Some(leader) => *leader != server.server_name,
        // It may stand behind a leaf node.
        None => !server.jetstream,
    };
    state.leader_since.is_empty() && is_elsewhere
}

/// Asks for as long as it is needed, for ever. The next question does not wait for the answer to the one
/// before: that may have a long way.
pub async fn run(link: Arc<Link>) {
    let mut beats = interval(pulse::PERIOD);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut asked, mut missed) = (FuturesUnordered::new(), false);
    loop {
        tokio::select! {
            Some((at, outcome)) = asked.next() => match outcome {
                Ok(_) => {
                    if link.pulse().answered(at, Instant::now(), missed) {
                        link.disturb();
                    }
                    missed = false;
                }
                // Who waits for what is written now is told by that.
                Err(LinkError::NoAnswer(_) | LinkError::NoResponders(_)) => missed = true,
                Err(LinkError::NotSent(_) | LinkError::Denied(_)) => {}
            },
            _ = beats.tick() => {
                if !link.pulse().is_wanted() || !link.is_connected() {
                    sleep(IDLE_PAUSE).await;
                } else if asked.len() < AT_ONCE_MAX {
                    asked.push(ask(&link));
                }
            }
        }
    }
}

async fn ask(link: &Link) -> (Instant, Result<Message, LinkError>) {
    let asked = Instant::now();
    let subject = format!("$JS.API.DIRECT.GET.{STREAM}");
    let question = jetstream::request(&json!({ "last_by_subj": IDENTITY }));
    (asked, link.request(subject, None, question, WAIT).await)
}
