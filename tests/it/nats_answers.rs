//! An answer that is wrong, or is never heard, is no proof: what is told as not done is not done.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use circuit_breaker::domain::{Caller, Workflow, WorkflowEvent};
use circuit_breaker::storage::{PageLimit, StorageError, StoredToken, TokenScope, WorkflowStorage};
use circuit_breaker::{NATSStorage, NATSStorageConfig, NATSStorageOptions};
use futures_util::StreamExt;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::nats_bus::{Bus, STREAM, next, so_far};
use crate::nats_life::Node;
use crate::nats_outage::signal;
use crate::nats_permissions::{engine_config, permissions};
use crate::nats_server::{Cluster, NatsServer, configured};
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
        let limit = PageLimit { rows: 100_000, bytes: 1 << 30 };
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

/// The same one answers reads, too, with what it knew before: that a look at the leader has shown more must
/// not be forgotten in the next look.
#[test]
fn what_was_seen_of_a_change_is_not_forgotten_for_one_that_leads_no_more() {
    let Some(cluster) = Cluster::start() else { return };
    runtime().block_on(async {
        cluster.open(0).await.close().await;
        let node = beside_the_leader(&cluster).await;
        let storage = Arc::new(open_at(&cluster, node).await);
        let told = Arc::new(Told::default());
        let movers = movers(&storage, &told).await;
        until_more_are_done(&told, MOVERS).await;

        let bus = Bus::connect(node).await;
        let get = format!("STREAM.MSG.GET.{STREAM}");
        let mut before = HashMap::new();
        for (subject, _) in bus.subjects("cb.workflows.*.places.*.tokens.*").await {
            let state = bus.ask(&get, &json!({ "last_by_subj": subject })).await;
            let has_data = state["message"]["data"].is_string();
            let id = subject.rsplit('.').next().unwrap().to_owned();
            before.extend(has_data.then_some((id, state.to_string())));
        }
        assert!(before.len() >= MOVERS / 2, "{}", before.len());
        until_more_are_done(&told, MOVERS).await;
        let (mut commits, mut reads) =
            (bus.subscribe("cb.>").await, bus.subscribe(&format!("$JS.API.{get}")).await);
        let client = bus.client.clone();
        let refuses = async {
            let (mut heard, mut lies) = (0, 0);
            while lies < 60 {
                let message = commits.next().await.unwrap();
                let commits = message.headers.is_some_and(|h| h.get("Nats-Batch-Commit").is_some());
                let (Some(reply), true) = (message.reply, commits) else { continue };
                heard += 1;
                if heard % 3 == 0 {
                    let error = json!({ "code": 400, "err_code": 10_071, "description": "wrong last sequence: 1" });
                    let answer = json!({ "stream": STREAM, "seq": 0, "error": error });
                    client.publish(reply, answer.to_string().into()).await.unwrap();
                    lies += 1;
                }
            }
        };
        let shows_less = async {
            let mut heard = 0;
            loop {
                let question = reads.next().await.unwrap();
                let asked = String::from_utf8_lossy(&question.payload).into_owned();
                let id = asked.rsplit('.').next().unwrap_or_default().trim_matches(['"', '}']);
                if let (Some(reply), Some(before)) = (question.reply, before.get(id)) {
                    heard += 1;
                    if heard % 2 == 0 {
                        client.publish(reply, before.clone().into()).await.unwrap();
                    }
                }
            }
        };
        let lies = async { tokio::select! { () = refuses => {}, () = shows_less => {} } };
        tokio::time::timeout(2 * WAIT_MAX, lies).await.expect("it is over soon");
        until_more_are_done(&told, 4 * MOVERS).await;
        end(&storage, &told, movers).await;
    });
}

/// Refuses each commit for want of room, as a leader that does not hear the others, and shows these messages of
/// tokens as the newest.
async fn lies_of_being_full(
    bus: Bus,
    before: HashMap<String, String>,
    lies: Arc<AtomicUsize>,
) -> impl Future<Output = ()> {
    let mut info = bus.stream().await;
    for replica in info["cluster"]["replicas"].as_array_mut().unwrap() {
        replica["active"] = json!(5_000_000_000_u64);
    }
    let error =
        json!({ "code": 400, "err_code": 10_077, "description": "maximum messages exceeded" });
    let full = json!({ "stream": STREAM, "seq": 0, "error": error }).to_string();
    let info = info.to_string();
    let api = bus.subscribe(&format!("$JS.API.STREAM.*.{STREAM}")).await;
    let reads = bus.subscribe(&format!("$JS.API.STREAM.MSG.GET.{STREAM}")).await;
    let mut heard = futures_util::stream::select_all([bus.subscribe("cb.>").await, api, reads]);
    async move {
        while let Some(message) = heard.next().await {
            let asked = String::from_utf8_lossy(&message.payload).into_owned();
            let id = asked.rsplit('.').next().unwrap_or_default().trim_matches(['"', '}']);
            let commits = message.headers.is_some_and(|h| h.get("Nats-Batch-Commit").is_some());
            let lie = match message.subject.as_str() {
                subject if subject.starts_with("$JS.API.STREAM.INFO") => Some(info.clone()),
                subject if subject.starts_with("$JS.API.STREAM.MSG") => before.get(id).cloned(),
                subject if subject.starts_with("cb.") && commits => Some(full.clone()),
                _ => None,
            };
            if let (Some(reply), Some(lie)) = (message.reply, lie) {
                lies.fetch_add(1, Ordering::Relaxed);
                bus.client.publish(reply, lie.into()).await.unwrap();
            }
        }
    }
}

/// The same one refuses each try for want of room, and shows the token as it was before: that its own change is
/// not there is no proof, as it does not hear the others any more.
#[test]
fn what_one_that_is_cut_off_does_not_show_may_be_done() {
    let Some(cluster) = Cluster::start() else { return };
    runtime().block_on(async {
        cluster.open(0).await.close().await;
        let node = beside_the_leader(&cluster).await;
        let storage = Arc::new(open_at(&cluster, node).await);
        let workflow = Arc::new(review_workflow("w"));
        let event = WorkflowEvent::workflow_created(workflow.definition().id.clone(), now());
        storage.insert_workflow(workflow.definition().clone(), event).await.unwrap();
        let bus = Bus::connect(node).await;
        let get = format!("STREAM.MSG.GET.{STREAM}");
        let (mut drafts, mut before) = (Vec::new(), HashMap::new());
        for _ in 0..MOVERS {
            let draft = storage.insert_token(new_token(&workflow, json!({}))).await.unwrap();
            let state = bus.ask(&get, &json!({ "seq": draft.revision.0 })).await;
            before.insert(draft.token.id.to_string(), state.to_string());
            drafts.push(draft);
        }
        let lies = Arc::new(AtomicUsize::new(0));
        let liar = tokio::spawn(lies_of_being_full(bus, before, Arc::clone(&lies)).await);
        // The leader takes all of it, and is heard late.
        let leader = leading(&cluster).await;
        let slow = async {
            loop {
                signal(&cluster.nodes[leader], "-STOP");
                sleep(Duration::from_millis(40)).await;
                signal(&cluster.nodes[leader], "-CONT");
                sleep(Duration::from_millis(8)).await;
            }
        };
        let mut moves = JoinSet::new();
        for draft in drafts {
            let (storage, workflow) = (Arc::clone(&storage), Arc::clone(&workflow));
            moves.spawn(async move {
                let told = storage.commit(draft.revision, fired(&workflow, &draft, "submit")).await;
                (draft, told)
            });
        }
        let told = tokio::select! { told = moves.join_all() => told, () = slow => unreachable!() };
        liar.abort();
        signal(&cluster.nodes[leader], "-CONT");
        assert!(lies.load(Ordering::Relaxed) > MOVERS);
        for (draft, told) in told {
            let there = now_there(&storage, &draft).await;
            match told {
                Ok(moved) => assert_eq!(there.token.version, moved.token.version),
                Err(StorageError::OutcomeUnknown { .. }) => {}
                Err(error) => assert_eq!(there.token.version, 1, "told not to be done: {error}"),
            }
        }
        storage.close().await;
    });
}

/// Which node leads the stream.
async fn leading(cluster: &Cluster) -> usize {
    let bus = Bus::connect(&cluster.nodes[0]).await;
    let leader = bus.stream().await["cluster"]["leader"].as_str().unwrap().to_owned();
    (0..3).find(|n| leader == format!("n{n}")).unwrap()
}

/// A node that does not lead: there somebody else is often heard before the leader.
async fn beside_the_leader(cluster: &Cluster) -> &NatsServer {
    &cluster.nodes[(leading(cluster).await + 1) % 3]
}

/// The store over this node alone.
async fn open_at(cluster: &Cluster, node: &NatsServer) -> NATSStorage {
    let config = NATSStorageConfig { nats_urls: vec![node.url()], ..cluster.config(0) };
    let options = NATSStorageOptions { replicas: 3, ..NATSStorageOptions::new() };
    NATSStorage::with_options(config, options).await.unwrap()
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

/// The leader stands still for a moment, and one that leads no more answers in its stead what it knows: here
/// somebody else who hears the question, with what the token was before, or that there is none.
#[test]
fn a_read_that_shows_less_than_was_written_here_is_asked_again() {
    let Some(cluster) = Cluster::start() else { return };
    runtime().block_on(async {
        let storage = cluster.open(0).await;
        let workflow = review_workflow("w");
        let event = WorkflowEvent::workflow_created(workflow.definition().id.clone(), now());
        storage.insert_workflow(workflow.definition().clone(), event).await.unwrap();
        storage.close().await;
        let leads = leading(&cluster).await;
        let node = &cluster.nodes[(leads + 1) % 3];
        let storage = open_at(&cluster, node).await;
        let fresh = open_at(&cluster, node).await;
        let bus = Bus::connect(node).await;
        let get = format!("$JS.API.STREAM.MSG.GET.{STREAM}");
        // Also one that has not seen it, for somebody who has heard of it.
        for (is_gone, is_fresh) in [(false, false), (true, false), (false, true), (true, true)] {
            let draft = storage.insert_token(new_token(&workflow, json!({}))).await.unwrap();
            let id = draft.token.id;
            let question = json!({ "seq": draft.revision.0 });
            let mut before = bus.ask(&format!("STREAM.MSG.GET.{STREAM}"), &question).await;
            if is_gone {
                let error =
                    json!({ "code": 404, "err_code": 10_037, "description": "no message found" });
                before = json!({ "error": error });
            }
            let moved =
                storage.commit(draft.revision, fired(&workflow, &draft, "submit")).await.unwrap();
            let mut heard = bus.subscribe(&get).await;
            signal(&cluster.nodes[leads], "-STOP");
            let client = bus.client.clone();
            let lies = tokio::spawn(async move {
                let question = next(&mut heard).await;
                client.publish(question.reply.unwrap(), before.to_string().into()).await.unwrap();
                // It is asked again.
                drop(next(&mut heard).await);
            });
            let read = async {
                let version = moved.token.version;
                if is_fresh {
                    return fresh.load_token_at(id, version).await;
                }
                storage.load_token(id, None).await
            };
            let (read, lied) = tokio::join!(read, async {
                let lied = tokio::time::timeout(WAIT_MAX, lies).await;
                signal(&cluster.nodes[leads], "-CONT");
                lied
            });
            lied.expect("it was asked again").unwrap();
            assert_eq!(read.unwrap().expect("it is there").token.version, moved.token.version);
        }
        storage.close().await;
        fresh.close().await;
    });
}

/// Where the stream has one replica in a cluster, it may have had more until a moment ago, or get more.
#[test]
fn in_a_cluster_only_the_leader_is_asked() {
    let Some(cluster) = Cluster::start() else { return };
    runtime().block_on(async {
        let storage = NATSStorage::new(cluster.config(0)).await.unwrap();
        let bus = Bus::connect(&cluster.nodes[0]).await;
        assert_eq!(bus.stream().await["config"]["num_replicas"], 1);
        let mut heard = bus.subscribe("$JS.API.DIRECT.GET.>").await;
        let workflow = review_workflow("w");
        let event = WorkflowEvent::workflow_created(workflow.definition().id.clone(), now());
        storage.insert_workflow(workflow.definition().clone(), event).await.unwrap();
        let stored = storage.insert_token(new_token(&workflow, json!({}))).await.unwrap();
        let stored = storage.commit(stored.revision, fired(&workflow, &stored, "submit")).await;
        let limit = PageLimit { rows: 10, bytes: 1 << 20 };
        let read = storage.load_token(stored.unwrap().token.id, None).await.unwrap().unwrap();
        let listed = WorkflowStorage::list_tokens(&storage, &TokenScope::All, None, limit).await;
        assert_eq!(listed.unwrap().items.len(), 1);
        let moves = storage.token_moves(&read.token, None, limit).await.unwrap();
        assert_eq!(moves.items.len(), 1);
        let asked = so_far(&bus, &mut heard, "$JS.API.DIRECT.GET.marker").await;
        // Whether the node is there is asked all the time.
        let asked: Vec<_> = asked.iter().map(|it| String::from_utf8_lossy(&it.payload)).collect();
        assert!(asked.iter().all(|question| question.contains("cb.store.identity")), "{asked:?}");
        storage.close().await;
    });
}

/// In a cluster a list asks the leader message by message, while the tokens that it is to show move on
/// before it, each with a departure.
#[test]
fn a_list_of_tokens_that_move_all_the_time_ends_and_shows_each_once() {
    const LISTS: usize = 5;
    let Some(cluster) = Cluster::start() else { return };
    runtime().block_on(async {
        let storage = Arc::new(NATSStorage::new(cluster.config(0)).await.unwrap());
        let other = NATSStorage::new(cluster.config(1)).await.unwrap();
        let bus = Bus::connect(&cluster.nodes[0]).await;
        let told = Arc::<Told>::default();
        let movers = movers(&storage, &told).await;
        until_more_are_done(&told, 500).await;
        let mut heard = bus.subscribe("$JS.API.STREAM.MSG.GET.>").await;
        let limit = PageLimit { rows: 1_000, bytes: 1 << 30 };
        let mut seen = HashMap::new();
        for _ in 0..LISTS {
            let list = WorkflowStorage::list_tokens(&other, &TokenScope::All, None, limit).await;
            let list = list.unwrap();
            assert!(!list.more);
            let rows: HashMap<_, _> =
                list.items.iter().map(|row| (row.token.id, row.token.version)).collect();
            assert_eq!((rows.len(), list.items.len()), (MOVERS, MOVERS));
            assert!(list.items.is_sorted_by_key(|row| row.revision));
            for (id, version) in rows {
                let before = seen.insert(id, version).unwrap_or(0);
                assert!(before <= version, "{id} was at version {before}, and is at {version}");
            }
        }
        let asked = so_far(&bus, &mut heard, "$JS.API.STREAM.MSG.GET.marker").await;
        let is_listed = |message: &&async_nats::Message| {
            String::from_utf8_lossy(&message.payload).contains("next_by_subj")
        };
        let count = asked.iter().filter(is_listed).count();
        assert!(count <= LISTS * 100, "{count} messages were read for {LISTS} lists");
        // Behind a cursor it shows what it comes to, and says that there is more.
        let mut after = None;
        for _ in 0..20 {
            let page = WorkflowStorage::list_tokens(&other, &TokenScope::All, after, limit).await;
            let page = page.unwrap();
            after = page.items.last().map(|row| row.revision).or(after);
            assert!(!page.more || !page.items.is_empty(), "a page to go on from");
        }
        end(&storage, &told, movers).await;
        storage.close().await;
        other.close().await;
    });
}

/// Moves a token to its other place and back, so many times.
async fn move_to_and_fro(storage: &NATSStorage, workflow: &Workflow, id: Uuid, times: usize) {
    let mut stored = storage.load_token(id, None).await.unwrap().unwrap();
    for _ in 0..times {
        for next in ["submit", "reject"] {
            stored = storage.commit(stored.revision, fired(workflow, &stored, next)).await.unwrap();
        }
    }
}

/// In a cluster a refusal alone is no proof, so what was refused is looked for. That others have moved the
/// token often, or that its history is gone, makes that neither long nor unclear.
#[test]
fn what_was_refused_is_looked_for_only_where_it_can_be() {
    /// Gets for a creation whose id is taken: its claim, the token, what stood in its way, what others wrote.
    const ASKED_MAX: usize = 30;
    let Some(cluster) = Cluster::start() else { return };
    runtime().block_on(async {
        let (one, other) = (Arc::new(cluster.open(0).await), cluster.open(1).await);
        let age = Duration::from_secs(2);
        let hasty = NATSStorageConfig { default_max_age: age, ..cluster.config(2) };
        let hasty = NATSStorage::new(hasty).await.unwrap();
        let node = Node::over(Arc::clone(&one));
        let workflow = review_workflow("w");
        node.define("w").await;
        let bus = Bus::connect(&cluster.nodes[0]).await;

        // Long lives, and one whose history is gone but for its newest event.
        let moved = [node.create("w").await, node.create("w").await];
        let [busy, old] = moved.clone().map(|id| id.parse::<Uuid>().unwrap());
        move_to_and_fro(&hasty, &workflow, old, 5).await;
        move_to_and_fro(&other, &workflow, busy, 150).await;
        let deadline = Instant::now() + WAIT_MAX;
        let limit = PageLimit { rows: 100, bytes: 1 << 30 };
        loop {
            let stored = hasty.load_token(old, None).await.unwrap().unwrap();
            let history = hasty.token_moves(&stored.token, None, limit).await.unwrap();
            if history.items.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "it ages");
            sleep(Duration::from_millis(50)).await;
        }
        move_to_and_fro(&hasty, &workflow, old, 1).await;
        let mut heard = bus.subscribe("$JS.API.STREAM.MSG.GET.>").await;
        for (id, storage) in [(busy, &*one), (busy, &other), (old, &*one), (old, &other)] {
            let again =
                workflow.create_token(Default::default(), id, &Caller::anyone(), now()).unwrap();
            let error = storage.insert_token(again).await.unwrap_err();
            assert!(matches!(error, StorageError::TokenExists { .. }), "{error}");
            let asked = so_far(&bus, &mut heard, "$JS.API.STREAM.MSG.GET.marker").await;
            let asked: Vec<_> =
                asked.iter().map(|it| String::from_utf8_lossy(&it.payload)).collect();
            assert!(asked.len() <= ASKED_MAX, "{asked:#?}");
        }

        // A server decides on what it remembers of a token, or has not written for long.
        let id = node.create("w").await;
        for writes in [true, false] {
            move_to_and_fro(&other, &workflow, id.parse().unwrap(), 150).await;
            if writes {
                node.create("w").await;
            }
            for next in ["submit", "reject"] {
                assert_eq!(node.fire(&id, next).await, "", "it writes: {writes}");
            }
        }
        for storage in [&*one, &other, &hasty] {
            storage.close().await;
        }
    });
}

/// To see that nothing comes after the last token of a place takes nats-server the longer, the more there is
/// of others.
#[test]
fn a_page_of_few_among_many_asks_for_these_alone() {
    let Some(cluster) = Cluster::start() else { return };
    runtime().block_on(async {
        let storage = Arc::new(cluster.open(0).await);
        let node = Node::over(Arc::clone(&storage));
        let (workflow, bus) = (review_workflow("w"), Bus::connect(&cluster.nodes[0]).await);
        node.define("w").await;
        let few = [node.create("w").await, node.create("w").await];
        for id in &few {
            assert_eq!(node.fire(id, "submit").await, "");
        }
        for _ in 0..100 {
            node.create("w").await;
        }
        bus.until_each_token_is_there_once().await;
        let scope = TokenScope::Place(workflow.definition().id.clone(), "review".parse().unwrap());
        let limit = PageLimit { rows: 100, bytes: 1 << 30 };
        let mut heard = bus.subscribe("$JS.API.STREAM.MSG.GET.>").await;
        for round in 0..3 {
            let after = None;
            let page = WorkflowStorage::list_tokens(&*storage, &scope, after, limit).await.unwrap();
            let ids: Vec<_> = page.items.iter().map(|row| row.token.id.to_string()).collect();
            assert_eq!((ids, page.more), (few.to_vec(), false));
            let after = page.items.first().map(|row| row.revision);
            let page = WorkflowStorage::list_tokens(&*storage, &scope, after, limit).await.unwrap();
            assert_eq!((page.items.len(), page.more), (1, false));
            let asked = so_far(&bus, &mut heard, "$JS.API.STREAM.MSG.GET.marker").await;
            let asked: Vec<_> =
                asked.iter().map(|it| String::from_utf8_lossy(&it.payload)).collect();
            let walks = asked.iter().filter(|question| question.contains("next_by_subj")).count();
            assert!(round == 0 || walks == 0, "{asked:#?}");
        }
        // Once there are many, they are walked through, and all are there.
        let mut all = few.to_vec();
        for _ in 0..300 {
            all.push(node.create("w").await);
            assert_eq!(node.fire(all.last().unwrap(), "submit").await, "");
        }
        let page = WorkflowStorage::list_tokens(&*storage, &scope, None, limit).await.unwrap();
        let ids: Vec<_> = page.items.iter().map(|row| row.token.id.to_string()).collect();
        assert_eq!((&ids[..], page.more), (&all[..100], true));
        storage.close().await;
    });
}
