//! What an operator changes in the stream by hand, under running servers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use circuit_breaker::storage::{StorageHealth, WorkflowStorage as _};
use circuit_breaker::{NATSStorage, NATSStorageConfig, NATSStorageOptions};
use serde_json::{Value, json};

use crate::nats_bus::{Bus, STREAM};
use crate::nats_life::{Node, WAIT_MAX, healthy, known_store, unhealthy};
use crate::nats_server::{NatsServer, configured};
use crate::support::{CREATE_TOKEN, FIRE, runtime};

async fn change(bus: &Bus, change: impl Fn(&mut Value)) -> Value {
    let mut config = bus.stream().await["config"].take();
    change(&mut config);
    bus.ask(&format!("STREAM.UPDATE.{STREAM}"), &config).await
}

#[test]
fn settings_that_an_operator_changes_are_set_right() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let nodes = Node::two(&nats).await;
        let bus = Bus::connect(&nats).await;
        let ids = known_store(&nodes).await;
        let right = bus.stream().await["config"].take();
        for (field, value) in [
            ("discard", json!("old")),
            ("max_consumers", json!(5)),
            ("allow_rollup_hdrs", json!(false)),
            ("max_msgs", json!(5_000)),
            ("max_bytes", json!(50 << 20)),
            ("duplicate_window", json!(10_000_000_000_u64)),
            ("subjects", json!(["cb.workflows.>"])),
        ] {
            let changed = change(&bus, |config| config[field] = value.clone()).await;
            assert!(changed["error"].is_null(), "{field}: {changed}");
            for node in &nodes {
                node.health(field, healthy).await;
            }
            let now = bus.stream().await["config"].take();
            if field != "subjects" {
                assert_eq!(now[field], right[field], "{field}");
            }
            for (n, id) in ids.iter().enumerate() {
                assert_eq!(nodes[n % 2].fire(id, "reject").await, "", "{field}");
                assert_eq!(nodes[n % 2].fire(id, "submit").await, "", "{field}");
            }
        }
    });
}

#[test]
fn a_max_age_that_an_operator_sets_is_set_right_and_health_says_what_it_may_have_cost() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let nodes = Node::two(&nats).await;
        let bus = Bus::connect(&nats).await;
        let ids = known_store(&nodes).await;
        let changed = change(&bus, |config| config["max_age"] = json!(3_600_000_000_000_u64)).await;
        assert!(changed["error"].is_null(), "{changed}");
        let said = nodes[0].health("max_age", |health| !healthy(health)).await;
        assert!(said.contains("max_age") && said.contains("3600 s"), "{said}");
        assert_eq!(bus.stream().await["config"]["max_age"].as_u64().unwrap_or(0), 0);
        for node in &nodes {
            assert_eq!(node.tokens().await.len(), ids.len(), "an hour is long");
            assert_eq!(node.fire(&ids[0], "reject").await, "");
            assert_eq!(node.fire(&ids[0], "submit").await, "");
        }
    });
}

/// Without `republish` nats-server takes any subjects, but not `republish` for these.
#[test]
fn a_setting_that_nats_server_does_not_take_back_keeps_no_other_wrong() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let nodes = Node::two(&nats).await;
        let bus = Bus::connect(&nats).await;
        let ids = known_store(&nodes).await;
        let changed = change(&bus, |config| {
            config["subjects"] = json!(["cb.>"]);
            config["republish"] = Value::Null;
            config["max_age"] = json!(3_600_000_000_000_u64);
            config["max_msgs"] = json!(5_000);
        });
        let changed = changed.await;
        assert!(changed["error"].is_null(), "{changed}");
        let said = nodes[0].health("republish", unhealthy).await;
        assert!(said.contains("republish"), "{said}");
        let now = bus.stream().await["config"].take();
        assert_eq!(now["max_age"].as_u64().unwrap_or(0), 0, "{now}");
        assert_ne!(now["max_msgs"], 5_000, "{now}");
        // Once a person has taken the subjects back, it goes on by itself, and says what it may have cost.
        let subjects = json!(["cb.workflows.>", "cb.tokens.*", "cb.store.>"]);
        let changed = change(&bus, |config| config["subjects"] = subjects.clone()).await;
        assert!(changed["error"].is_null(), "{changed}");
        let told = |health: &_| matches!(health, StorageHealth::Degraded(_));
        let said = nodes[0].health("max_age", told).await;
        assert!(said.contains("max_age of the stream to 3600 s"), "{said}");
        assert_eq!(nodes[0].tokens().await.len(), ids.len());
        assert_eq!(nodes[0].fire(&ids[0], "reject").await, "");
    });
}

/// nats-server reserves what a stream may hold, and an account may have less by now.
#[test]
fn a_limit_above_that_of_the_account_keeps_no_other_setting_wrong() {
    let account = |most: &str| {
        format!(
            "accounts {{ OURS {{ jetstream {{ max_file: {most} }}, users: [{{ user: a, password: a }}] }} }}"
        )
    };
    let Some((nats, folder)) = configured(&account("200MB")) else { return };
    runtime().block_on(async {
        let urls = vec![nats.url().replace("nats://", "nats://a:a@")];
        let config =
            NATSStorageConfig { nats_urls: urls, default_max_bytes: 100 << 20, ..nats.config() };
        let storage = NATSStorage::with_options(config, NATSStorageOptions::new()).await.unwrap();
        let node = Node::over(Arc::new(storage));
        node.define("w").await;
        let id = node.create("w").await;
        let client = async_nats::ConnectOptions::with_user_and_password("a".into(), "a".into());
        let client = client.connect(nats.url()).await.unwrap();
        let ask = async |subject: &str, request: String| -> Value {
            let subject = format!("$JS.API.{subject}.{STREAM}");
            let answer = client.request(subject, request.into()).await.unwrap();
            serde_json::from_slice(&answer.payload).unwrap()
        };
        let mut config = ask("STREAM.INFO", String::new()).await["config"].take();
        config["max_bytes"] = json!(20 << 20);
        let changed = ask("STREAM.UPDATE", config.to_string()).await;
        assert!(changed["error"].is_null(), "{changed}");
        std::fs::write(folder.path().join("nats.conf"), account("50MB")).unwrap();
        nats.reload();
        config["max_age"] = json!(3_600_000_000_000_u64);
        let changed = ask("STREAM.UPDATE", config.to_string()).await;
        assert!(changed["error"].is_null(), "{changed}");
        node.health("the limit is told", unhealthy).await;
        let now = ask("STREAM.INFO", String::new()).await["config"].take();
        assert_eq!(now["max_age"].as_u64().unwrap_or(0), 0, "{now}");
        std::fs::write(folder.path().join("nats.conf"), account("200MB")).unwrap();
        nats.reload();
        let told = |health: &_| matches!(health, StorageHealth::Degraded(_));
        let said = node.health("max_age", told).await;
        assert!(said.contains("max_age of the stream to 3600 s"), "{said}");
        assert_eq!(node.fire(&id, "submit").await, "");
    });
}

/// Whether a server runs meanwhile, or is started on it: who sets it right says so until he is restarted.
#[test]
fn what_settings_may_have_cost_is_told_by_who_sets_them_right() {
    let changes = [
        (json!({ "max_age": 3_600_000_000_000_u64 }), "max_age of the stream to 3600 s"),
        (json!({ "max_msgs_per_subject": 1 }), "max_msgs_per_subject of the stream to 1"),
        (json!({ "discard": "old", "max_msgs": 30 }), "discard of the stream to old and max_msgs"),
        (json!({ "discard": "old", "max_bytes": 9_000 }), "old and max_bytes to 9000"),
    ];
    for (fields, told) in changes {
        for is_running in [true, false] {
            let Some(nats) = NatsServer::start() else { return };
            runtime().block_on(async {
                let bus = Bus::connect(&nats).await;
                let mut node = Node::start(&nats, NATSStorageOptions::new()).await;
                node.define("w").await;
                if !is_running {
                    node.storage.close().await;
                }
                let changed = change(&bus, |config| {
                    for (field, value) in fields.as_object().unwrap() {
                        config[field] = value.clone();
                    }
                });
                let changed = changed.await;
                assert!(changed["error"].is_null(), "{changed}");
                if !is_running {
                    node = Node::start(&nats, NATSStorageOptions::new()).await;
                }
                let is_told = |health: &_| matches!(health, StorageHealth::Degraded(_));
                for _ in 0..2 {
                    let said = node.health(told, is_told).await;
                    assert!(said.contains(told), "running: {is_running}: {said}");
                }
                node.storage.close().await;
                // It is set right, and the next one has nothing to tell.
                let node = Node::start(&nats, NATSStorageOptions::new()).await;
                assert_eq!(node.health("the next one", healthy).await, "");
            });
        }
    }
}

#[test]
fn what_cannot_be_set_right_is_told_and_nothing_is_written() {
    for field in ["sealed", "deny_delete"] {
        let Some(nats) = NatsServer::start() else { return };
        runtime().block_on(async {
            let nodes = Node::two(&nats).await;
            let bus = Bus::connect(&nats).await;
            let ids = known_store(&nodes).await;
            let changed = change(&bus, |config| config[field] = json!(true)).await;
            assert!(changed["error"].is_null(), "{field}: {changed}");
            for node in &nodes {
                // Without a look it is told by what nats-server says, with one at once.
                let begun = Instant::now();
                if field == "sealed" {
                    assert_eq!(node.fire(&ids[0], "reject").await, "STORAGE_UNAVAILABLE");
                }
                let said = node.health(field, unhealthy).await;
                assert!(said.contains(field), "{said}");
                let refused = node.storage.health().await;
                assert!(unhealthy(&refused));
                let answer = node.ask(CREATE_TOKEN, json!({ "workflowId": "w" })).await;
                let message = answer["errors"][0]["message"].as_str().unwrap().to_owned();
                assert!(message.contains(field), "{message}");
                assert!(begun.elapsed() < Duration::from_secs(4), "{field}: {:?}", begun.elapsed());
                assert_eq!(node.tokens().await.len(), ids.len(), "reads go on");
            }
        });
    }
}

/// With `interest` nats-server drops at once what no consumer asks for.
#[test]
fn a_retention_that_empties_the_stream_leaves_nothing_that_is_answered() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let nodes = Node::two(&nats).await;
        let bus = Bus::connect(&nats).await;
        known_store(&nodes).await;
        let changed = change(&bus, |config| config["retention"] = json!("interest")).await;
        assert!(changed["error"].is_null(), "{changed}");
        for node in &nodes {
            let said = node.health("retention", unhealthy).await;
            assert!(said.contains("retention is \"interest\""), "{said}");
            assert_eq!(node.tokens().await, []);
            let found = node.storage.load_workflow(&"w".parse().unwrap()).await;
            assert!(found.unwrap().is_none());
            let code = node.code(CREATE_TOKEN, json!({ "workflowId": "w" })).await;
            assert!(
                ["STORAGE_UNAVAILABLE", "WORKFLOW_NOT_FOUND"].contains(&code.as_str()),
                "{code}"
            );
        }
        change(&bus, |config| config["retention"] = json!("limits")).await;
        // What that has cost is told until a restart. Each server may write once that another life has begun,
        // as its own record went, too: the second look of each knows of all that the others have written.
        for node in nodes.iter().chain(&nodes) {
            let said = node.health("limits", |now| matches!(now, StorageHealth::Degraded(_))).await;
            assert!(said.contains("had set retention of the stream to interest"), "{said}");
        }
        known_store(&nodes).await;
    });
}

/// Events that the stream holds.
async fn events(bus: &Bus) -> u64 {
    bus.subjects("cb.workflows.*.events.*").await.iter().map(|(_, count)| count).sum()
}

/// A lowered limit is raised again; until then it is no reason to remove history.
#[test]
fn history_does_not_go_for_a_limit_that_somebody_has_lowered() {
    for (field, value) in [("max_msgs", json!(30)), ("max_bytes", json!(20_000))] {
        let Some(nats) = NatsServer::start() else { return };
        runtime().block_on(async {
            let nodes = Node::two(&nats).await;
            let bus = Bus::connect(&nats).await;
            let ids = known_store(&nodes).await;
            let before = events(&bus).await;
            let right = bus.stream().await["config"].take();
            let changed = change(&bus, |config| config[field] = value.clone()).await;
            assert!(changed["error"].is_null(), "{field}: {changed}");
            // Whoever writes meets the limit before a look does, waits a moment for room, and goes on.
            for (n, id) in ids.iter().enumerate() {
                assert_eq!(nodes[n % 2].fire(id, "reject").await, "", "{field}");
            }
            for node in &nodes {
                node.health(field, healthy).await;
            }
            assert_eq!(bus.stream().await["config"][field], right[field]);
            assert_eq!(events(&bus).await, before + ids.len() as u64, "{field}");
        });
    }
}

/// nats-server writes a marker where a departure vanishes, with a lifetime of the operator's: it is then
/// the newest message of the token.
#[test]
fn markers_that_nats_server_leaves_hide_no_token() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let nodes = Node::two(&nats).await;
        let bus = Bus::connect(&nats).await;
        let ids = known_store(&nodes).await;
        let marker_ttl = |config: &mut Value| {
            config["subject_delete_marker_ttl"] = json!(3_600_000_000_000_u64);
        };
        let mut moves = tokio::task::JoinSet::new();
        let nodes = nodes.map(std::sync::Arc::new);
        for (n, id) in ids.iter().cloned().enumerate() {
            let node = std::sync::Arc::clone(&nodes[n % 2]);
            moves.spawn(async move { assert_eq!(node.fire(&id, "reject").await, "") });
        }
        moves.join_all().await;
        // A departure vanishes after 1.0 to 1.3 s, and what comes there then is a marker. (Those that are
        // written from now on get the lifetime of markers themselves.)
        let changed = change(&bus, marker_ttl).await;
        assert!(changed["error"].is_null(), "{changed}");
        let marked = async || {
            let mut found = 0;
            for id in &ids {
                let subject = format!("cb.workflows.w.places.review.tokens.{id}");
                let marker = bus.last(&subject).await.and_then(|message| message.headers);
                found +=
                    usize::from(marker.is_some_and(|it| it.get("Nats-Marker-Reason").is_some()));
            }
            found
        };
        let deadline = Instant::now() + WAIT_MAX;
        while marked().await == 0 {
            assert!(Instant::now() < deadline, "no markers");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for node in &nodes {
            node.health("markers", healthy).await;
            for id in &ids {
                let read = node.storage.load_token(id.parse().unwrap(), None).await.unwrap();
                assert_eq!(read.map(|stored| stored.token.version), Some(3), "{id}");
            }
        }
        let config = bus.stream().await["config"].take();
        assert_eq!(config["subject_delete_marker_ttl"].as_u64().unwrap_or(0), 0, "it is set right");
        for (n, id) in ids.iter().enumerate() {
            let again = json!({ "workflowId": "w", "id": id });
            assert_eq!(nodes[n % 2].code(CREATE_TOKEN, again).await, "TOKEN_EXISTS");
            assert_eq!(nodes[n % 2].fire(id, "submit").await, "");
        }
        assert_eq!(nodes[1].tokens().await.len(), ids.len());
    });
}

/// A server that nobody sends a write to is ready again all the same: a balancer sends none before.
#[test]
fn trouble_that_is_over_is_over_without_a_write() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let node = Node::start(&nats, NATSStorageOptions::new()).await;
        let bus = Bus::connect(&nats).await;
        node.define("w").await;
        let id = node.create("w").await;
        let changed = change(&bus, |config| config["max_msg_size"] = json!(100)).await;
        assert!(changed["error"].is_null(), "{changed}");
        let said = node.health("too small", unhealthy).await;
        assert!(said.contains("max_msg_size"), "{said}");
        // One that was taken before that look, and goes on being tried.
        let storage = std::sync::Arc::clone(&node.storage);
        change(&bus, |config| config["max_msg_size"] = json!(-1)).await;
        node.health("large again", healthy).await;
        change(&bus, |config| config["max_msg_size"] = json!(100)).await;
        let refused = node.ask(FIRE, json!({ "tokenId": id, "transitionId": "submit" })).await;
        assert_eq!(refused["errors"][0]["extensions"]["code"], "STORAGE_UNAVAILABLE", "{refused}");
        change(&bus, |config| config["max_msg_size"] = json!(-1)).await;
        // Longer than what counts as a moment's trouble.
        let until = Instant::now() + Duration::from_millis(3_500);
        while Instant::now() < until {
            drop(storage.health().await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let health = storage.health().await;
        assert!(healthy(&health), "{health:?}");
        assert_eq!(node.fire(&id, "submit").await, "");
    });
}

/// nats-server is started with less room than the stream takes.
#[test]
fn a_limit_of_nats_server_itself_is_told_by_name() {
    let text = |most: &str| format!("jetstream {{ max_file_store: {most} }}");
    let Some((mut nats, folder)) = configured(&text("1GB")) else { return };
    runtime().block_on(async {
        let config = NATSStorageConfig { default_max_bytes: 2 << 20, ..nats.config() };
        let storage = Arc::new(NATSStorage::new(config).await.unwrap());
        let node = Node::over(storage);
        node.define("w").await;
        let data = json!({ "text": "x".repeat(100_000) });
        let input = json!({ "workflowId": "w", "data": data });
        for _ in 0..3 {
            assert_eq!(node.code(CREATE_TOKEN, input.clone()).await, "");
        }
        let id = node.create("w").await;
        nats.kill();
        std::fs::write(folder.path().join("nats.conf"), text("64KB")).unwrap();
        nats.run_without("-js");
        let deadline = Instant::now() + WAIT_MAX;
        let message = loop {
            let input = json!({ "tokenId": id, "transitionId": "edit" });
            let answer = node.ask(FIRE, input).await;
            if answer["errors"][0]["extensions"]["code"] == "STORAGE_FULL" {
                break answer["errors"][0]["message"].to_string();
            }
            assert!(Instant::now() < deadline, "{answer}");
        };
        assert!(message.contains("raise max_file_store"), "{message}");
        let said = node.health("full", unhealthy).await;
        assert!(
            said.contains("nothing can be written") && said.contains("max_file_store"),
            "{said}"
        );
        nats.kill();
        std::fs::write(folder.path().join("nats.conf"), text("1GB")).unwrap();
        nats.run_without("-js");
        node.health("raised", healthy).await;
        assert_eq!(node.fire(&id, "submit").await, "");
    });
}

/// Another stream has taken nearly all that the account may store. The limit refuses any message of a
/// batch, and of those before the last one nats-server's answer to the batch tells nothing.
#[test]
fn a_limit_of_the_account_is_told_by_name_whichever_message_it_refuses() {
    let text = "accounts { OURS { jetstream { max_file: 8MB }, users: [{ user: a, password: a }] } }\n\
                no_auth_user: a\n";
    let Some((nats, _folder)) = configured(text) else { return };
    runtime().block_on(async {
        let config = NATSStorageConfig { default_max_bytes: 4 << 20, ..nats.config() };
        let node = Node::over(Arc::new(NATSStorage::new(config).await.unwrap()));
        node.define("w").await;
        let bus = Bus::connect(&nats).await;
        let other = json!({ "name": "OTHER", "subjects": ["other"], "storage": "file" });
        let made = bus.ask("STREAM.CREATE.OTHER", &other).await;
        assert!(made["error"].is_null(), "{made}");
        let fill = async |each: usize| loop {
            let sent = bus.client.request("other", vec![b'x'; each].into()).await.unwrap();
            if String::from_utf8_lossy(&sent.payload).contains("error") {
                break;
            }
        };
        let data = json!({ "text": "x".repeat(60_000) });
        let input = json!({ "workflowId": "w", "data": data });
        let told = async || {
            // Whether nothing or only smaller ones can be written.
            let health = format!("{:?}", node.storage.health().await);
            assert!(health.contains("raise max_file of the account"), "{health}");
        };
        let mut ids = Vec::new();
        for _ in 0..4 {
            let made = node.ask(CREATE_TOKEN, input.clone()).await;
            ids.push(made["data"]["createToken"]["id"].as_str().unwrap().to_owned());
        }
        // A token with its data does not fit, the small messages do: the event of its move, and the
        // departure, whose answer is that of the batch.
        fill(900_000).await;
        fill(10_000).await;
        for some in [&ids[..1], &ids[..]] {
            let moves = some.iter().map(|id| json!({ "tokenId": id, "transitionId": "submit" }));
            let moves = moves.map(|input| node.ask(FIRE, input));
            for answer in futures_util::future::join_all(moves).await {
                let message = answer["errors"][0]["message"].to_string();
                assert!(message.contains("raise max_file of the account"), "{message}");
            }
        }
        let many = (0..16).map(|_| node.ask(CREATE_TOKEN, input.clone()));
        for answer in futures_util::future::join_all(many).await {
            let message = answer["errors"][0]["message"].to_string();
            assert!(message.contains("raise max_file of the account"), "{message}");
        }
        told().await;
        assert_eq!(node.create("w").await.len(), 36, "none of those is in the way");
        told().await;
        // Each fits, but not all of a batch: it is cut, and what is missing does not fit either.
        bus.done("STREAM.PURGE.OTHER", &Value::Null).await;
        fill(900_000).await;
        let (mut made, mut refused) = (0, Vec::new());
        while refused.len() < 2 {
            let some = (0..4).map(|_| node.ask(CREATE_TOKEN, input.clone()));
            for answer in futures_util::future::join_all(some).await {
                match answer["errors"][0]["message"].as_str() {
                    None => made += 1,
                    Some(message) => refused.push(message.to_owned()),
                }
            }
        }
        assert!(made > 0 && made < 20, "{made} {refused:?}");
        for message in &refused {
            assert!(message.contains("raise max_file of the account"), "{message}");
        }
        told().await;
        bus.done("STREAM.PURGE.OTHER", &Value::Null).await;
        assert_eq!(node.code(CREATE_TOKEN, input).await, "");
        node.health("purged", healthy).await;
    });
}

/// The scan after a restart needs a consumer, and here there can be none.
#[test]
fn a_scan_that_is_impossible_is_told() {
    let Some(mut nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let nodes = Node::two(&nats).await;
        let bus = Bus::connect(&nats).await;
        known_store(&nodes).await;
        let short = json!({ "inactive_threshold": 1_000_000_000 });
        let changed = change(&bus, |config| config["consumer_limits"] = short.clone()).await;
        assert!(changed["error"].is_null(), "{changed}");
        nats.kill();
        nats.run();
        for node in &nodes {
            let told = |health: &StorageHealth| {
                matches!(health, StorageHealth::Degraded(said) if said.contains("consumer_limits"))
            };
            node.health("no scan", told).await;
        }
        change(&bus, |config| config["consumer_limits"] = json!({})).await;
        for node in &nodes {
            node.health("scanned", healthy).await;
        }
    });
}

#[test]
fn what_a_transform_of_subjects_may_have_cost_is_told_after_it() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let nodes = Node::two(&nats).await;
        let bus = Bus::connect(&nats).await;
        known_store(&nodes).await;
        let transform = json!({ "src": "cb.workflows.w.places.draft.>", "dest": "cb.workflows.w.moved.draft.>" });
        change(&bus, |config| config["subject_transform"] = transform.clone()).await;
        for node in &nodes {
            let said = node.health("set", unhealthy).await;
            assert!(said.contains("subject_transform"), "{said}");
        }
        change(&bus, |config| config["subject_transform"] = Value::Null).await;
        for node in &nodes {
            let told = |health: &StorageHealth| matches!(health, StorageHealth::Degraded(_));
            let said = node.health("unset", told).await;
            assert!(said.contains("subject_transform"), "{said}");
        }
    });
}

#[test]
fn subjects_that_are_too_narrow_are_set_right() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let nodes = Node::two(&nats).await;
        let bus = Bus::connect(&nats).await;
        let ids = known_store(&nodes).await;
        let narrow = json!(["cb.workflows.w.>", "cb.store.>"]);
        let changed = change(&bus, |config| config["subjects"] = narrow.clone()).await;
        assert!(changed["error"].is_null(), "{changed}");
        for node in &nodes {
            node.health("narrow", healthy).await;
            node.define("another").await;
            assert_eq!(node.fire(&ids[0], "edit").await, "TRANSITION_NOT_ALLOWED");
        }
    });
}

/// Without them a server that has not read them yet finds no token by id.
#[test]
fn pointers_of_workflows_that_an_operator_has_purged_come_back_with_the_identity() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let nodes = Node::two(&nats).await;
        let bus = Bus::connect(&nats).await;
        let ids = known_store(&nodes).await;
        for filter in ["cb.store.hashes.>", "cb.store.identity"] {
            let purge = json!({ "filter": filter });
            bus.done(&format!("STREAM.PURGE.{STREAM}"), &purge).await;
        }
        for node in &nodes {
            node.health("purged", healthy).await;
        }
        let third = Node::start(&nats, NATSStorageOptions::new()).await;
        for id in &ids {
            assert_eq!(third.fire(id, "reject").await, "");
        }
        assert_eq!(third.tokens().await.len(), ids.len());
    });
}

/// What begins another life of the store under the running servers.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Life {
    GoesOn,
    IsDeclared,
    IsRestored,
}

/// Begins that life. What is under way meanwhile is refused, and goes then.
async fn begin(life: Life, nats: &mut NatsServer, nodes: &[Node; 2], token: &str) {
    if life == Life::IsDeclared {
        let filter = json!({ "filter": "cb.store.identity" });
        Bus::connect(nats).await.done(&format!("STREAM.PURGE.{STREAM}"), &filter).await;
    }
    if life == Life::IsRestored {
        nats.kill();
        let backup = nats.copy_of_files();
        nats.run();
        nodes[0].health("it is back", healthy).await;
        assert_eq!(nodes[0].fire(token, "edit").await, "");
        nats.kill();
        nats.put_back(&backup);
        nats.run();
    }
    let deadline = Instant::now() + WAIT_MAX;
    for node in nodes {
        node.health("it is back, in whichever life", healthy).await;
        while !node.code(CREATE_TOKEN, json!({ "workflowId": "w" })).await.is_empty() {
            assert!(Instant::now() < deadline, "nothing is written");
        }
    }
}

/// A token is written anew only where its change was cut: else it would be delivered again to all who wait
/// in its place, and what was removed would come back.
#[test]
fn history_that_an_operator_purges_is_not_taken_for_cut_changes() {
    let lives = [Life::GoesOn, Life::IsDeclared, Life::IsRestored];
    let filters = ["cb.workflows.*.events.>", "cb.workflows.w.events.transitions"];
    for (filter, life) in filters.iter().flat_map(|filter| lives.map(|life| (*filter, life))) {
        let Some(mut nats) = NatsServer::start() else { return };
        runtime().block_on(async {
            let nodes = Node::two(&nats).await;
            let ids = known_store(&nodes).await;
            // Moves within a place leave no departure, which would show that they were whole.
            for id in &ids[..10] {
                assert_eq!(nodes[0].fire(id, "reject").await, "");
                assert_eq!(nodes[0].fire(id, "edit").await, "");
            }
            let bus = Bus::connect(&nats).await;
            let tokens = || async {
                let mut all = Vec::new();
                for (subject, _) in bus.subjects("cb.workflows.*.places.*.tokens.*").await {
                    let message = bus.last(&subject).await;
                    let message = message.filter(|message| !message.payload.is_empty());
                    all.extend(message.map(|message| (subject, nats_sequence(&message))));
                }
                all.sort();
                all
            };
            let before = tokens().await;
            assert_eq!(before.len(), ids.len());
            // A look notes what was seen to be whole.
            let (last, deadline) = (bus.last_sequence().await, Instant::now() + WAIT_MAX);
            let seen = || async {
                nodes[0].health("a look", healthy).await;
                let record = bus.last("cb.store.servers.*").await.unwrap();
                let record: Value = serde_json::from_slice(&record.payload).unwrap();
                record["whole"]["to"].as_u64().unwrap()
            };
            while seen().await < last {
                assert!(Instant::now() < deadline, "nobody notes that all is whole");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            bus.done(&format!("STREAM.PURGE.{STREAM}"), &json!({ "filter": filter })).await;
            begin(life, &mut nats, &nodes, &ids[0]).await;
            let third = Node::start(&nats, NATSStorageOptions::new()).await;
            for id in &ids[15..] {
                assert_eq!(third.fire(id, "reject").await, "");
            }
            nats.kill();
            nats.run();
            for (n, node) in nodes.iter().chain([&third]).enumerate() {
                node.health("it is back", healthy).await;
                assert_eq!(node.tokens().await.len(), ids.len() + nodes.len() + n);
                // Each looks at what stands before its own.
                let id = node.create("w").await;
                assert_eq!(node.fire(&id, "submit").await, "");
            }
            let after = tokens().await;
            let moved = after.iter().filter(|token| !before.contains(token)).count();
            assert_eq!(moved, 5 + 3 + 2, "those that were moved or made since: {filter} {life:?}");
            assert_eq!(bus.subjects("cb.store.repairs.*").await, [], "{filter} {life:?}");
        });
    }
}

fn nats_sequence(message: &async_nats::Message) -> u64 {
    let headers = message.headers.as_ref().unwrap();
    headers.get("Nats-Sequence").unwrap().as_str().parse().unwrap()
}
