//! What the account of the engine may do: what is missing, or is taken away, is told by name.

use std::sync::Arc;
use std::time::{Duration, Instant};

use circuit_breaker::storage::{StorageError, StorageHealth, WorkflowStorage};
use circuit_breaker::{NATSStorage, NATSStorageConfig, NATSStorageOptions};
use serde_json::json;

use crate::nats_life::{Node, WAIT_MAX, healthy, unhealthy};
use crate::nats_server::{NatsServer, configured};
use crate::support::{CREATE_TOKEN, CREATE_WORKFLOW, FIRE, review_input, runtime};

const ADMIN: &str = "{ user: admin, password: a }";

/// A configuration in which the engine may publish to these alone.
pub fn permissions(publish: &str) -> String {
    format!(
        "authorization {{ users: [ {ADMIN}
           {{ user: engine, password: e, permissions {{ subscribe: \"_INBOX.>\", publish: {publish} }} }} ] }}"
    )
}

/// A server that logs in as the engine.
async fn engine(nats: &NatsServer) -> Node {
    Node::over(Arc::new(NATSStorage::new(engine_config(nats)).await.unwrap()))
}

pub fn engine_config(nats: &NatsServer) -> NATSStorageConfig {
    let url = nats.url().replace("nats://", "nats://engine:e@");
    NATSStorageConfig { nats_urls: vec![url], ..nats.config() }
}

#[test]
fn a_permission_that_is_missing_at_the_start_is_told_by_name() {
    for (publish, missing) in [
        ("[ \"cb.workflows.>\", \"cb.store.>\", \"$JS.API.>\" ]", "cb.tokens."),
        ("[ \"cb.tokens.>\", \"cb.store.>\", \"$JS.API.>\" ]", "cb.workflows."),
        ("[ \"cb.tokens.>\", \"cb.workflows.>\", \"$JS.API.>\" ]", "cb.store."),
        ("[ \"cb.>\", \"$JS.API.DIRECT.>\", \"$JS.API.INFO\" ]", "$JS.API.STREAM.INFO"),
        ("[ \"cb.>\" ]", "$JS.API.INFO"),
    ] {
        let Some((nats, _folder)) = configured(&permissions(publish)) else { return };
        runtime().block_on(async {
            let begun = Instant::now();
            let error = NATSStorage::new(engine_config(&nats)).await.unwrap_err().to_string();
            assert!(error.contains("publish to") && error.contains(missing), "{error}");
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        });
    }
    let text = permissions("\">\"").replace("_INBOX.>", "other.>");
    let Some((nats, _folder)) = configured(&text) else { return };
    runtime().block_on(async {
        let begun = Instant::now();
        let error = NATSStorage::new(engine_config(&nats)).await.unwrap_err().to_string();
        assert!(error.contains("subscribe to _INBOX."), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_permission_that_is_taken_away_is_told_at_once_and_given_back_all_goes_on() {
    for (publish, missing) in [
        ("[ \"cb.tokens.>\", \"cb.store.>\", \"$JS.API.>\" ]", "publish to cb.workflows."),
        (
            "[ \"cb.workflows.*.places.>\", \"cb.tokens.>\", \"cb.store.>\", \"$JS.API.>\" ]",
            "publish to cb.workflows.",
        ),
        ("[ \"cb.>\" ]", "publish to $JS.API."),
    ] {
        let all = permissions("[ \"cb.>\", \"$JS.API.>\" ]");
        let Some((nats, folder)) = configured(&all) else { return };
        runtime().block_on(async {
            let node = engine(&nats).await;
            node.define("w").await;
            let id = node.create("w").await;
            let path = folder.path().join("nats.conf");
            let reload = |text: &str| {
                std::fs::write(&path, text).unwrap();
                nats.reload();
            };
            reload(&permissions(publish));
            let said = node.health(missing, unhealthy).await;
            assert!(said.contains(missing), "{said}");
            // Health may have met it itself, after a look that did not: one look later all know it.
            let said = node.health(missing, unhealthy).await;
            assert!(said.contains(missing), "{said}");
            let begun = Instant::now();
            let answer = node.ask(FIRE, json!({ "tokenId": id, "transitionId": "submit" })).await;
            let error = &answer["errors"][0];
            assert_eq!(error["extensions"]["code"], "STORAGE_UNAVAILABLE", "{answer}");
            assert!(error["message"].as_str().unwrap().contains(missing), "{answer}");
            assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
            reload(&all);
            node.health("given back", healthy).await;
            assert_eq!(node.fire(&id, "submit").await, "");
        });
    }
}

/// Without it history cannot make room: what is refused then is refused with its name.
#[test]
fn a_permission_that_is_missing_where_room_is_made_is_told_by_name() {
    let no_purge =
        permissions("{ allow: [ \"cb.>\", \"$JS.API.>\" ], deny: [ \"$JS.API.STREAM.PURGE.>\" ] }");
    let Some((nats, folder)) = configured(&no_purge) else { return };
    runtime().block_on(async {
        let config = NATSStorageConfig { default_max_messages: 1_000, ..engine_config(&nats) };
        let options = NATSStorageOptions::new();
        let storage = NATSStorage::with_options(config, options).await.unwrap();
        let node = Node::over(Arc::new(storage));
        node.define("w").await;
        let mut ids = Vec::new();
        for _ in 0..20 {
            ids.push(node.create("w").await);
        }
        let missing = "publish to $JS.API.STREAM.PURGE.";
        let (mut moves, deadline) = (0, Instant::now() + WAIT_MAX);
        let refused = loop {
            let next = if moves / ids.len() % 2 == 0 { "submit" } else { "reject" };
            let said = node.fire(&ids[moves % ids.len()], next).await;
            if !said.is_empty() {
                break said;
            }
            moves += 1;
            assert!(Instant::now() < deadline, "{moves} moves, and the stream is not full");
        };
        assert_eq!(refused, "STORAGE_FULL");
        let said = node.health(missing, |health| !healthy(health)).await;
        assert!(said.contains(missing), "{said}");
        let all = permissions("[ \"cb.>\", \"$JS.API.>\" ]");
        std::fs::write(folder.path().join("nats.conf"), all).unwrap();
        nats.reload();
        node.health("given back", healthy).await;
        let next = if moves / ids.len() % 2 == 0 { "submit" } else { "reject" };
        assert_eq!(node.fire(&ids[moves % ids.len()], next).await, "");
    });
}

#[test]
fn jetstream_that_is_switched_off_is_told_by_name() {
    let Some((mut nats, folder)) = configured("jetstream: enabled") else { return };
    runtime().block_on(async {
        let node = Node::start(&nats, NATSStorageOptions::new()).await;
        node.define("w").await;
        nats.kill();
        std::fs::write(folder.path().join("nats.conf"), "debug: false").unwrap();
        nats.run_without("-js");
        let said = node.health("off", |health| {
            matches!(health, StorageHealth::Unhealthy(reason) if reason.contains("JetStream is not enabled"))
        });
        said.await;
        let begun = Instant::now();
        let refused = node.ask(CREATE_TOKEN, json!({ "workflowId": "w" })).await;
        let message = refused["errors"][0]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("JetStream is not enabled"), "{message}");
        assert!(begun.elapsed() < Duration::from_secs(3));
        nats.kill();
        nats.run();
        node.health("on again", healthy).await;
        node.create("w").await;
        let error = node.storage.insert_workflow(
            crate::support::review_workflow("w").definition().clone(),
            circuit_breaker::domain::WorkflowEvent::workflow_created("w".parse().unwrap(), crate::support::now()),
        );
        assert!(matches!(error.await, Err(StorageError::WorkflowExists { .. })));
    });
}

/// nats-server says what it takes when the connection is made, and not when that changes.
#[test]
fn a_payload_that_is_made_smaller_is_told_and_made_larger_again_all_goes_on() {
    let text = |most: &str| format!("max_payload: {most}");
    let Some((nats, folder)) = configured(&text("1MB")) else { return };
    runtime().block_on(async {
        let node = Node::start(&nats, NATSStorageOptions::new()).await;
        node.define("w").await;
        let id = node.create("w").await;
        let reload = |most: &str| {
            std::fs::write(folder.path().join("nats.conf"), text(most)).unwrap();
            nats.reload();
        };
        reload("300");
        // Who sends more is cut off, and hears of it when he comes back.
        let fire =
            || async { node.ask(FIRE, json!({ "tokenId": id, "transitionId": "edit" })).await };
        let deadline = Instant::now() + WAIT_MAX;
        while fire().await["errors"][0]["extensions"]["code"] != "PAYLOAD_TOO_LARGE" {
            assert!(Instant::now() < deadline, "it takes what it does not take");
        }
        let said = node.health("small", |health| !healthy(health)).await;
        assert!(said.contains("max_payload"), "{said}");
        reload("1MB");
        node.health("large again", healthy).await;
        assert_eq!(node.fire(&id, "submit").await, "");
    });
}

/// A subscription that was refused stays so on its connection.
#[test]
fn answers_that_are_forbidden_for_a_while_come_again() {
    let all = permissions("[ \"cb.>\", \"$JS.API.>\" ]");
    let Some((nats, folder)) = configured(&all) else { return };
    runtime().block_on(async {
        let node = engine(&nats).await;
        node.define("w").await;
        let path = folder.path().join("nats.conf");
        let deaf = all.replace("subscribe: \"_INBOX.>\"", "subscribe: \"other.>\"");
        assert_ne!(deaf, all);
        std::fs::write(&path, &deaf).unwrap();
        nats.reload();
        node.health("deaf", |health| !healthy(health)).await;
        std::fs::write(&path, &all).unwrap();
        nats.reload();
        node.health("heard again", healthy).await;
        node.create("w").await;
    });
}

/// A part of what the engine must publish, without which nothing can be written, though looks work.
#[test]
fn a_permission_that_is_taken_away_in_part_is_told_where_nothing_can_be_written() {
    for denied in ["cb.workflows.*.events.>", "cb.store.servers.>"] {
        let all = permissions("[ \"cb.>\", \"$JS.API.>\" ]");
        let Some((nats, folder)) = configured(&all) else { return };
        runtime().block_on(async {
            let node = engine(&nats).await;
            node.define("w").await;
            let id = node.create("w").await;
            let path = folder.path().join("nats.conf");
            let reload = |text: &str| {
                std::fs::write(&path, text).unwrap();
                nats.reload();
            };
            reload(&permissions(&format!(
                "{{ allow: [ \"cb.>\", \"$JS.API.>\" ], deny: [ \"{denied}\" ] }}"
            )));
            let (deadline, prefix) = (Instant::now() + WAIT_MAX, denied.split('*').next().unwrap());
            let missing = format!("publish to {}", prefix.trim_end_matches('>'));
            loop {
                // The first of these may come before nats-server has read its file.
                let answer = node.ask(FIRE, json!({ "tokenId": id, "transitionId": "edit" })).await;
                let health = node.storage.health().await;
                let said = answer["errors"][0]["message"].as_str().unwrap_or_default();
                if matches!(&health, StorageHealth::Unhealthy(why) if why.contains(&missing))
                    && said.contains(&missing)
                {
                    break;
                }
                assert!(Instant::now() < deadline, "{denied}: {health:?} {answer}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            reload(&all);
            node.health("given back", healthy).await;
            assert_eq!(node.fire(&id, "submit").await, "");
        });
    }
}

/// What an account may do without, and a workflow that it may not write: all else goes on.
#[test]
fn a_permission_that_is_missing_for_one_workflow_stops_that_one_alone() {
    let text = permissions(
        "{ allow: [ \"cb.>\", \"$JS.API.>\" ], deny: [ \"cb.workflows.secret.>\", \"$JS.API.STREAM.LIST\" ] }",
    );
    let Some((nats, _folder)) = configured(&text) else { return };
    runtime().block_on(async {
        let node = Arc::new(engine(&nats).await);
        node.define("w").await;
        assert_eq!(node.health("without a list", healthy).await, "");
        let mut all = tokio::task::JoinSet::new();
        let begun = Instant::now();
        for n in 0..40 {
            let node = Arc::clone(&node);
            all.spawn(async move {
                if n % 4 > 0 {
                    let id = node.create("w").await;
                    assert_eq!(node.fire(&id, "submit").await, "");
                    return;
                }
                let answer = node.ask(CREATE_WORKFLOW, review_input("secret")).await;
                let message = answer["errors"][0]["message"].as_str().unwrap();
                assert!(message.contains("publish to cb.workflows.secret."), "{message}");
            });
        }
        all.join_all().await;
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert_eq!(node.tokens().await.len(), 30);
    });
}

/// Whichever message of a batch may not be published, the first, one within or the last: nats-server keeps 50
/// open batches at most, and takes none of anybody then.
#[test]
fn a_place_that_may_not_be_published_stops_no_other_workflow() {
    const MOVES: usize = 80;
    for place in ["draft", "review"] {
        let all = permissions("[ \"cb.>\", \"$JS.API.>\" ]");
        let Some((nats, folder)) = configured(&all) else { return };
        runtime().block_on(async {
            let node = engine(&nats).await;
            node.define("w").await;
            node.define("other").await;
            let mut ids = Vec::new();
            for _ in 0..MOVES {
                ids.push(node.create("w").await);
            }
            let denied = permissions(&format!(
                "{{ allow: [ \"cb.>\", \"$JS.API.>\" ], deny: [ \"cb.workflows.w.places.{place}.>\" ] }}"
            ));
            std::fs::write(folder.path().join("nats.conf"), denied).unwrap();
            nats.reload();
            let missing = format!("publish to cb.workflows.w.places.{place}.");
            // Whether the permission is gone already, a move tells.
            let deadline = Instant::now() + WAIT_MAX;
            let refusal = async |id: &str| {
                let answer = node.ask(FIRE, json!({ "tokenId": id, "transitionId": "submit" })).await;
                answer["errors"][0]["message"].as_str().map(ToOwned::to_owned)
            };
            for id in &ids {
                let Some(said) = refusal(id).await else {
                    assert!(Instant::now() < deadline, "it may still be published");
                    continue;
                };
                assert!(said.contains(&missing), "{said}");
                let begun = Instant::now();
                assert_eq!(node.code(CREATE_TOKEN, json!({ "workflowId": "other" })).await, "");
                assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
            }
        });
    }
}
