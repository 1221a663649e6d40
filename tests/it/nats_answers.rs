//! An answer that is wrong, or is never heard, is no proof: what is told as not done is not done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use circuit_breaker::NATSStorage;
use circuit_breaker::domain::{Workflow, WorkflowEvent};
use circuit_breaker::storage::{StorageError, StoredToken, WorkflowStorage};
use futures_util::StreamExt;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::nats_bus::Bus;
use crate::nats_life::{engine_config, permissions};
use crate::nats_server::{Cluster, configured};
use crate::support::{fired, new_token, now, review_workflow, runtime};

/// Tokens that are moved at once, each by one mover alone.
const MOVERS: usize = 24;

/// How long something may take that was disturbed.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// What movers were told.
#[derive(Default)]
struct Told {
    stop: AtomicBool,
    done: AtomicUsize,
    not_done: AtomicUsize,
    unknown: AtomicUsize,
}

async fn now_there(storage: &NATSStorage, of: &StoredToken) -> StoredToken {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        match storage.load_token(of.token.id, None).await {
            Ok(found) => return found.expect("it is not lost"),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Moves one token there and back. Nobody else does, so nothing but its own move can be in its way.
async fn keep_moving(
    storage: Arc<NATSStorage>,
    workflow: Arc<Workflow>,
    mut stored: StoredToken,
    told: Arc<Told>,
) -> StoredToken {
    while !told.stop.load(Ordering::Relaxed) {
        let next = if stored.token.place.as_str() == "draft" { "submit" } else { "reject" };
        match storage.commit(stored.revision, fired(&workflow, &stored, next)).await {
            Ok(moved) => {
                told.done.fetch_add(1, Ordering::Relaxed);
                stored = moved;
            }
            Err(StorageError::OutcomeUnknown { .. }) => {
                told.unknown.fetch_add(1, Ordering::Relaxed);
                stored = now_there(&storage, &stored).await;
            }
            Err(error) => {
                told.not_done.fetch_add(1, Ordering::Relaxed);
                let there = now_there(&storage, &stored).await;
                assert_eq!(
                    there.token.version, stored.token.version,
                    "told not to be done: {error}"
                );
                stored = there;
            }
        }
    }
    stored
}

/// Starts the movers.
async fn movers(storage: &Arc<NATSStorage>, told: &Arc<Told>) -> JoinSet<StoredToken> {
    let workflow = Arc::new(review_workflow("w"));
    let event = WorkflowEvent::workflow_created(workflow.definition().id.clone(), now());
    storage.insert_workflow(workflow.definition().clone(), event).await.unwrap();
    let mut movers = JoinSet::new();
    for n in 0..MOVERS {
        let stored = storage.insert_token(new_token(&workflow, json!({ "n": n }))).await.unwrap();
        let (storage, workflow) = (Arc::clone(storage), Arc::clone(&workflow));
        movers.spawn(keep_moving(storage, workflow, stored, Arc::clone(told)));
    }
    movers
}

async fn until_more_are_done(told: &Told, count: usize) {
    let (before, deadline) = (told.done.load(Ordering::Relaxed), Instant::now() + WAIT_MAX);
    while told.done.load(Ordering::Relaxed) < before + count {
        assert!(Instant::now() < deadline, "no move is done any more");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Stops the movers: each token has as many versions as it was moved, and an event of each.
async fn end(storage: &NATSStorage, told: &Told, movers: JoinSet<StoredToken>) {
    told.stop.store(true, Ordering::Relaxed);
    for stored in movers.join_all().await {
        let there = now_there(storage, &stored).await;
        assert_eq!(there.token.version, stored.token.version);
        let limit = circuit_breaker::storage::PageLimit { rows: 100_000, bytes: 1 << 30 };
        let moves = storage.token_moves(&there.token, None, limit).await.unwrap().items.len();
        assert_eq!(moves as u32 + 1, there.token.version);
    }
}

/// A leader that was cut off, comes back, and does not know yet that it leads no more, hears what is sent to
/// the stream, and refuses what the leader takes. Here somebody else who hears it does so.
#[test]
fn a_refusal_of_one_that_leads_no_more_is_no_proof() {
    let Some(cluster) = Cluster::start() else { return };
    runtime().block_on(async {
        let (storage, told) = (Arc::new(cluster.open(0).await), Arc::new(Told::default()));
        let movers = movers(&storage, &told).await;
        let bus = Bus::connect(&cluster.nodes[0]).await;
        let identity = bus.last("cb.store.identity").await.unwrap().payload;
        until_more_are_done(&told, 2 * MOVERS).await;
        let mut heard = bus.subscribe("cb.>").await;
        let client = bus.client.clone();
        let liar = tokio::spawn(async move {
            let (mut commits, mut lies) = (0, 0);
            while let Some(message) = heard.next().await {
                let Some(headers) = &message.headers else { continue };
                let (Some(reply), Some(_)) = (message.reply, headers.get("Nats-Batch-Commit"))
                else {
                    continue;
                };
                commits += 1;
                let (err_code, description) = match commits % 12 {
                    0 => (10_071, "wrong last sequence: 1"),
                    3 => (10_071, "wrong last sequence"),
                    6 => (10_164, "wrong last sequence"),
                    9 => (10_008, "JetStream system temporarily unavailable"),
                    _ => continue,
                };
                let error =
                    json!({ "code": 400, "err_code": err_code, "description": description });
                let answer =
                    json!({ "stream": "CIRCUIT_BREAKER_GLOBAL", "seq": 0, "error": error });
                client.publish(reply, answer.to_string().into()).await.unwrap();
                lies += 1;
                if lies == 40 {
                    return;
                }
            }
        });
        tokio::time::timeout(WAIT_MAX, liar).await.expect("it is over soon").unwrap();
        until_more_are_done(&told, 4 * MOVERS).await;
        end(&storage, &told, movers).await;
        let is = bus.last("cb.store.identity").await.unwrap().payload;
        assert_eq!(is, identity, "it is still the same life of the store");
    });
}

/// The permission to hear answers is taken away under load and given back.
#[test]
fn what_was_sent_and_whose_answer_may_not_be_heard_is_unknown() {
    let all = permissions("[ \"cb.>\", \"$JS.API.>\" ]");
    let Some((nats, folder)) = configured(&all) else { return };
    runtime().block_on(async {
        let storage = Arc::new(NATSStorage::new(engine_config(&nats)).await.unwrap());
        let told = Arc::new(Told::default());
        let movers = movers(&storage, &told).await;
        let path = folder.path().join("nats.conf");
        let deaf = all.replace("subscribe: \"_INBOX.>\"", "subscribe: \"other.>\"");
        for _ in 0..3 {
            until_more_are_done(&told, 2 * MOVERS).await;
            std::fs::write(&path, &deaf).unwrap();
            nats.reload();
            let deadline = Instant::now() + WAIT_MAX;
            while told.not_done.load(Ordering::Relaxed) + told.unknown.load(Ordering::Relaxed) == 0
            {
                assert!(Instant::now() < deadline, "nothing was refused");
                sleep(Duration::from_millis(20)).await;
            }
            std::fs::write(&path, &all).unwrap();
            nats.reload();
        }
        until_more_are_done(&told, 2 * MOVERS).await;
        end(&storage, &told, movers).await;
    });
}
