//! An id is taken once in the whole store, and is found at the same cost whatever it is.

use std::collections::HashMap;
use std::sync::Arc;

use circuit_breaker::NATSStorage;
use circuit_breaker::domain::{
    Caller, Change, NewToken, Workflow, WorkflowEvent, WorkflowId, new_token_id, workflow_hash,
};
use circuit_breaker::storage::{
    PageLimit, StorageError, StorageHealth, TokenScope, WorkflowStorage,
};
use serde_json::json;
use uuid::Uuid;

use crate::nats_bus::{Bus, Raw, STREAM, so_far};
use crate::nats_server::{Cluster, NatsServer};
use crate::support::{fired, now, review_workflow, runtime, workflow_id};

const ALL: PageLimit = PageLimit { rows: 10_000, bytes: 1 << 30 };

async fn define(storage: &NATSStorage, id: &str) -> Workflow {
    let workflow = review_workflow(id);
    let definition = workflow.definition().clone();
    let event = WorkflowEvent::workflow_created(definition.id.clone(), now());
    storage.insert_workflow(definition, event).await.unwrap();
    workflow
}

fn creation(workflow: &str, id: Uuid) -> Change {
    review_workflow(workflow)
        .create_token(NewToken::default(), id, &Caller::anyone(), now())
        .unwrap()
}

/// An id such as the engine makes for a workflow.
fn made_for(workflow: &str) -> Uuid {
    new_token_id(
        &workflow_id(workflow),
        chrono::Utc::now(),
        std::array::from_fn(|_| fastrand::u8(..)),
    )
}

/// Workflow ids of one hash.
fn of_one_hash(count: usize) -> Vec<String> {
    let mut by_hash: HashMap<u32, Vec<String>> = HashMap::new();
    for n in 0.. {
        let name = format!("flow-{n}");
        let same = by_hash.entry(workflow_hash(&workflow_id(&name))).or_default();
        same.push(name);
        if same.len() == count {
            return same.clone();
        }
    }
    unreachable!("there are more names than hashes")
}

/// In how many workflows a token is listed, and how often in all.
async fn listed(storage: &NATSStorage, id: Uuid) -> usize {
    let all = WorkflowStorage::list_tokens(storage, &TokenScope::All, None, ALL).await.unwrap();
    all.items.iter().filter(|stored| stored.token.id == id).count()
}

/// Ids by their form, and the workflows in which they are created: `a` is there, `late` comes into
/// being at the same time.
fn kinds() -> Vec<(&'static str, Uuid)> {
    vec![
        ("of no form", Uuid::from_u128(u128::from(fastrand::u64(..)) | 4 << 76 | 8 << 60)),
        ("ends in the hash of a", made_for("a")),
        ("ends in the hash of b", made_for("b")),
        ("ends in the hash of nothing", made_for("nothing")),
        ("ends in the hash of late", made_for("late")),
    ]
}

#[test]
fn one_id_created_in_several_workflows_at_once_is_one_token() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let servers = [Arc::new(nats.open().await), Arc::new(nats.open().await)];
        race(servers, 8).await;
    });
}

#[test]
fn one_id_created_in_several_workflows_at_once_is_one_token_with_three_replicas() {
    let Some(cluster) = Cluster::start() else { return };
    runtime().block_on(async {
        let servers = [Arc::new(cluster.open(0).await), Arc::new(cluster.open(1).await)];
        race(servers, 3).await;
    });
}

async fn race(servers: [Arc<NATSStorage>; 2], rounds: usize) {
    define(&servers[0], "a").await;
    define(&servers[1], "b").await;
    for round in 0..rounds {
        let late = format!("late{round}");
        for (kind, id) in kinds() {
            // Of its own hash in each round, so that it is new each time.
            let id = if kind.ends_with("late") { made_for(&late) } else { id };
            let mut creators = tokio::task::JoinSet::new();
            if kind.ends_with("late") {
                let (storage, late) = (Arc::clone(&servers[round % 2]), late.clone());
                creators.spawn(async move {
                    define(&storage, &late).await;
                    storage.insert_token(creation(&late, id)).await
                });
            }
            for storage in &servers {
                for workflow in ["a", "b", "a"] {
                    let (storage, change) = (Arc::clone(storage), creation(workflow, id));
                    creators.spawn(async move { storage.insert_token(change).await });
                }
            }
            let outcomes = creators.join_all().await;
            let made: Vec<_> =
                outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
            assert_eq!(made.len(), 1, "{kind}: {outcomes:?}");
            for outcome in &outcomes {
                assert!(
                    matches!(outcome, Ok(_) | Err(StorageError::TokenExists { .. })),
                    "{kind}: {outcome:?}"
                );
            }
            for storage in &servers {
                let found = storage.load_token(id, None).await.unwrap().unwrap();
                assert_eq!(found.token.workflow_id, made[0].token.workflow_id, "{kind}");
                assert_eq!(listed(storage, id).await, 1, "{kind}");
            }
        }
    }
}

/// Those that retry what was done must not hold up others: one refusal does not take one of them out.
#[test]
fn a_crowd_of_creations_of_what_is_there_costs_few_batches() {
    const CROWD: usize = 200;
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let storage = Arc::new(nats.open().await);
        define(&storage, "a").await;
        let ids: Vec<_> = (0..CROWD).map(|_| Uuid::new_v4()).collect();
        for id in &ids {
            storage.insert_token(creation("a", *id)).await.unwrap();
        }
        let bus = Bus::connect(&nats).await;
        // Each batch begins with the server's own record, and who listens hears those that are refused.
        let mut batches = bus.subscribe("cb.store.servers.*").await;
        let mut creators = tokio::task::JoinSet::new();
        for id in ids {
            let storage = Arc::clone(&storage);
            creators.spawn(async move { storage.insert_token(creation("a", id)).await });
        }
        for outcome in creators.join_all().await {
            assert!(matches!(outcome, Err(StorageError::TokenExists { .. })), "{outcome:?}");
        }
        let tried = so_far(&bus, &mut batches, "cb.store.servers.marker").await.len();
        assert!(tried <= CROWD / 4, "{tried} batches for {CROWD} creations");
    });
}

/// What the other server did before does not race, but must be seen.
#[test]
fn an_id_that_was_taken_elsewhere_is_taken() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let (one, other) = (nats.open().await, nats.open().await);
        for name in ["a", "b"] {
            define(&one, name).await;
        }
        for (kind, id) in kinds() {
            for (first, second) in [("a", "b"), ("b", "a")] {
                let id = Uuid::from_u128(id.as_u128() ^ (u128::from(first == "b") << 64));
                one.insert_token(creation(first, id)).await.unwrap();
                for (storage, workflow) in [(&other, second), (&one, second), (&other, first)] {
                    let again = storage.insert_token(creation(workflow, id)).await;
                    assert!(
                        matches!(again, Err(StorageError::TokenExists { .. })),
                        "{kind} {again:?}"
                    );
                }
                let stored = other.load_token(id, None).await.unwrap().unwrap();
                assert_eq!(stored.token.workflow_id.as_str(), first);
                let moved = fired(&review_workflow(first), &stored, "submit");
                other.commit(stored.revision, moved).await.unwrap();
                assert_eq!(one.load_token(id, None).await.unwrap().unwrap().token.version, 2);
                assert_eq!(one.load_token(id, Some(&workflow_id(second))).await.unwrap(), None);
            }
        }
    });
}

/// Two gets for any id, known or not; one more where it meets a departure or a new hash, or where
/// another workflow has the same hash. (That there
/// is nothing is asked once more, of the leader: a mirror of the stream that is new may have answered.)
#[test]
fn what_a_read_of_an_id_asks_does_not_depend_on_the_id() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let names = of_one_hash(5);
        let storage = nats.open().await;
        for name in names.iter().map(String::as_str).chain(["a"]) {
            define(&storage, name).await;
        }
        let bus = Bus::connect(&nats).await;
        let mut asked = bus.subscribe("$JS.API.*.GET.>").await;
        let mut reads = vec![("unknown, of no form", Uuid::new_v4(), None)];
        reads.push(("unknown, ends in a known hash", made_for("a"), None));
        reads.push(("unknown, ends in a hash of five", made_for(&names[0]), None));
        reads.push(("unknown, ends in no hash", made_for("nothing"), None));
        for name in names.iter().map(String::as_str).chain(["a"]) {
            for (kind, id) in [("made for it", made_for(name)), ("chosen", Uuid::new_v4())] {
                storage.insert_token(creation(name, id)).await.unwrap();
                reads.push((kind, id, Some(name)));
            }
        }
        for storage in [storage, nats.open().await] {
            // A server that has just started learns each hash with one get more.
            for round in 0..2 {
                for (kind, id, workflow) in &reads {
                    so_far(&bus, &mut asked, "$JS.API.DIRECT.GET.marker").await;
                    let found = storage.load_token(*id, None).await.unwrap();
                    let found = found.map(|stored| stored.token.workflow_id.to_string());
                    assert_eq!(found.as_deref(), *workflow, "{kind} {id}");
                    // Without what the look at the stream asks, which may be under way: it names no id.
                    let gets = so_far(&bus, &mut asked, "$JS.API.DIRECT.GET.marker").await;
                    let of_ids = [&id.to_string(), "cb.store.hashes."];
                    let gets = gets.iter().filter(|get| {
                        let request = String::from_utf8_lossy(&get.payload);
                        of_ids.iter().any(|of| request.contains(of))
                    });
                    let gets = gets.count();
                    // Its id leads to the first workflow of the hash, where it is not.
                    let is_later =
                        workflow.is_some_and(|name| names[1..].iter().any(|n| n == name));
                    let gets_max = 2 + usize::from(is_later && *kind == "made for it");
                    let gets_max = gets_max + usize::from(round == 0);
                    assert!((1..=gets_max).contains(&gets), "{kind}, round {round}: {gets} gets");
                }
            }
            storage.close().await;
        }
    });
}

/// A batch that was cut right behind its pointer, or a token that has aged.
#[test]
fn a_pointer_whose_token_is_not_there_is_nobody_s() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let storage = nats.open().await;
        for name in ["a", "b"] {
            define(&storage, name).await;
        }
        let bus = Bus::connect(&nats).await;
        for (kind, id) in kinds() {
            for (pointed, created) in [("a", "b"), ("b", "a"), ("a", "a")] {
                let id = Uuid::from_u128(id.as_u128() ^ (u128::from(fastrand::u16(..)) << 64));
                let mut headers = async_nats::HeaderMap::new();
                headers.insert("Cb-Format", "2");
                let pointer = Raw {
                    // The last message of the stream, so what follows may just be being stored.
                    sequence: bus.last_sequence().await + 1,
                    subject: format!("cb.tokens.{id}"),
                    headers,
                    payload: json!({ "workflow_id": pointed }).to_string().into(),
                };
                bus.publish_raw(&pointer).await;
                assert_eq!(storage.load_token(id, None).await.unwrap(), None, "{kind}");
                let created_token = storage.insert_token(creation(created, id)).await;
                created_token.unwrap_or_else(|error| panic!("{kind}, {pointed}: {error}"));
                let found = storage.load_token(id, None).await.unwrap().unwrap();
                assert_eq!(found.token.workflow_id.as_str(), created, "{kind}");
                for other in ["a", "b"] {
                    let again = storage.insert_token(creation(other, id)).await;
                    assert!(matches!(again, Err(StorageError::TokenExists { .. })), "{kind}");
                }
                assert_eq!(listed(&storage, id).await, 1);
            }
        }
    });
}

#[test]
fn a_pointer_ages_with_its_token() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let storage = nats.open().await;
        let workflow = define(&storage, "a").await;
        let bus = Bus::connect(&nats).await;
        let ages = async |id: Uuid| {
            let pointer = bus.last(&format!("cb.tokens.{id}")).await?;
            Some(pointer.headers.unwrap().get("Nats-TTL").map(ToString::to_string))
        };
        let (chosen, made) = (Uuid::new_v4(), made_for("a"));
        for id in [chosen, made] {
            let stored = storage.insert_token(creation("a", id)).await.unwrap();
            let lives = ages(id).await;
            let stored = storage.commit(stored.revision, fired(&workflow, &stored, "submit")).await;
            let stored = stored.unwrap();
            assert_eq!(ages(id).await, lives, "it lives");
            storage.commit(stored.revision, fired(&workflow, &stored, "finish")).await.unwrap();
        }
        assert_eq!(ages(chosen).await, Some(Some("604800s".to_owned())));
        assert_eq!(ages(made).await, None, "it needs none");
        let request = NewToken { place: Some("done".parse().unwrap()), ..NewToken::default() };
        let born_done =
            workflow.create_token(request, Uuid::new_v4(), &Caller::anyone(), now()).unwrap();
        let id = born_done.token.id;
        storage.insert_token(born_done).await.unwrap();
        assert_eq!(ages(id).await, Some(Some("604800s".to_owned())));
    });
}

/// The first version could make two tokens of one id.
#[test]
fn of_two_tokens_of_one_id_in_an_older_store_the_older_one_is_answered_and_health_says_so() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let (bus, storage) = (Bus::connect(&nats).await, nats.open().await);
        let names = of_one_hash(2);
        let all: Vec<&str> = names.iter().map(String::as_str).chain(["a", "b"]).collect();
        for name in &all {
            define(&storage, name).await;
        }
        let double = Uuid::new_v4();
        let older = storage.insert_token(creation("b", double)).await.unwrap();
        let mut others = Vec::new();
        for name in &all {
            for id in [made_for(name), Uuid::new_v4()] {
                storage.insert_token(creation(name, id)).await.unwrap();
                others.push((id, *name));
            }
        }
        storage.close().await;
        let subject = format!("cb.workflows.a.places.draft.tokens.{double}");
        let mut token = older.token.as_ref().clone();
        token.workflow_id = workflow_id("a");
        token.created_at += chrono::TimeDelta::seconds(1);
        let payload = serde_json::to_vec(&token).unwrap();
        let sequence = bus.last_sequence().await + 1;
        let headers = async_nats::HeaderMap::new();
        bus.publish_raw(&Raw { sequence, subject, headers, payload }).await;
        for filter in ["cb.store.>", "cb.tokens.>"] {
            bus.done(&format!("STREAM.PURGE.{STREAM}"), &json!({ "filter": filter })).await;
        }

        // Two servers complete it at the same time.
        let (one, other) = tokio::join!(nats.open(), nats.open());
        for storage in [&one, &other] {
            let found = storage.load_token(double, None).await.unwrap().unwrap();
            assert_eq!(found.token.workflow_id.as_str(), "b");
            let hidden = storage.load_token(double, Some(&workflow_id("a"))).await.unwrap();
            assert_eq!(hidden.unwrap().token.workflow_id.as_str(), "a");
            let StorageHealth::Degraded(health) = storage.health().await else {
                panic!("it must say so")
            };
            assert!(health.contains(&double.to_string()) && health.contains("older"), "{health}");
            for (id, name) in &others {
                let found = storage.load_token(*id, None).await.unwrap().unwrap();
                assert_eq!(found.token.workflow_id.as_str(), *name);
            }
        }
        for (id, name) in &others {
            let elsewhere: Vec<_> = all.iter().filter(|other| *other != name).collect();
            let taken = one.insert_token(creation(elsewhere[0], *id)).await;
            assert!(matches!(taken, Err(StorageError::TokenExists { .. })), "{taken:?}");
        }
        let ids: Vec<WorkflowId> = all.iter().map(|name| workflow_id(name)).collect();
        assert_eq!(one.load_workflow(&ids[0]).await.unwrap().unwrap().id, ids[0]);
    });
}
