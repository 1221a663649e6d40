//! What a plain NATS client sees of places, moves and refused moves; and what it cannot disturb.

use std::collections::HashSet;
use std::sync::{Arc, Barrier};

use serde_json::{Value, json};

use crate::bad_input;
use crate::nats_bus::{Bus, next, so_far};
use crate::nats_server::NatsServer;
use crate::support::{
    Api, CREATE_WORKFLOW, FIRE, Server, TestStorage, fired, new_token, review_input,
    review_workflow, runtime,
};

fn on_nats(nats: &NatsServer) -> Server {
    Server::start(&[("STORAGE_BACKEND", "nats"), ("NATS_URL", &nats.url())])
}

#[test]
fn a_live_subscriber_sees_each_arrival_once_and_nothing_of_lost_races() {
    const TOKENS: usize = 20;
    const RACERS: usize = 8;
    let Some(nats) = NatsServer::start() else { return };
    let runtime = runtime();
    let servers = [on_nats(&nats), on_nats(&nats)];
    for workflow in ["w", "v"] {
        let input = json!({ "input": review_input(workflow) });
        let created = servers[0].client().ask(CREATE_WORKFLOW, &input).unwrap();
        assert!(created.get("errors").is_none(), "{created}");
    }
    let bus = runtime.block_on(Bus::connect(&nats));
    let mut live = runtime.block_on(bus.subscribe("cb.live.*.places.review.tokens.*"));
    let mut expected = HashSet::new();
    for number in 0..TOKENS {
        let workflow = ["w", "v"][number % 2];
        let create = "mutation($w: String!) { createToken(input: { workflowId: $w }) { id } }";
        let created = servers[0].client().ask(create, &json!({ "w": workflow })).unwrap();
        let id = created["data"]["createToken"]["id"].as_str().unwrap().to_owned();
        expected.insert(format!("cb.live.{workflow}.places.review.tokens.{id}"));
        let start = Arc::new(Barrier::new(RACERS));
        let racers: Vec<_> = (0..RACERS)
            .map(|n| {
                let (client, start) = (servers[n % 2].client(), Arc::clone(&start));
                let input = json!({ "input": { "tokenId": id, "transitionId": "submit", "expectedVersion": 1 } });
                std::thread::spawn(move || {
                    start.wait();
                    client.ask(FIRE, &input).unwrap()
                })
            })
            .collect();
        for racer in racers {
            racer.join().unwrap();
        }
    }
    // Everybody has an answer, so what is republished of it all comes before this.
    let seen = runtime.block_on(so_far(&bus, &mut live, "cb.live.w.places.review.tokens.marker"));
    let tokens: Vec<_> = seen.iter().filter(|message| !message.payload.is_empty()).collect();
    let subjects: HashSet<_> = tokens.iter().map(|message| message.subject.to_string()).collect();
    assert_eq!(tokens.len(), TOKENS, "each once");
    assert_eq!(subjects, expected);
    for message in tokens {
        let token: Value = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!((&token["place"], &token["version"]), (&json!("review"), &json!(2)));
        // It tells its place in the stream, so that a listener can go on with a consumer.
        assert!(message.headers.as_ref().unwrap().get("Nats-Sequence").is_some());
    }
}

#[test]
fn a_live_subscriber_sees_departures_as_empty_messages() {
    let Some(nats) = NatsServer::start() else { return };
    let api = Api::over(TestStorage::on(nats));
    runtime().block_on(async {
        api.create_review("w").await;
        let bus = Bus::connect(api.nats()).await;
        let mut live = bus.subscribe("cb.live.>").await;
        let id = api.create_token("w", json!({})).await;
        api.fire(&id, "submit").await;
        api.fire(&id, "finish").await;
        let at = |place: &str| format!("cb.live.w.places.{place}.tokens.{id}");
        let event = |kind: &str| format!("cb.live.w.events.{kind}");
        for (subject, empty) in [
            (at("draft"), false),
            (event("lifecycle"), false),
            (at("review"), false),
            (event("transitions"), false),
            (at("draft"), true),
            (at("done"), false),
            (event("transitions"), false),
            (event("lifecycle"), false),
            (at("review"), true),
        ] {
            let message = next(&mut live).await;
            assert_eq!((message.subject.to_string(), message.payload.is_empty()), (subject, empty));
        }
    });
}

#[test]
fn a_new_durable_consumer_gets_the_tokens_that_are_there_and_takes_none_away() {
    let Some(nats) = NatsServer::start() else { return };
    let api = Api::over(TestStorage::on(nats));
    runtime().block_on(async {
        api.create_review("w").await;
        api.create_review("v").await;
        let mut there = HashSet::new();
        for n in 0..30 {
            let id = api.create_token(if n % 5 == 0 { "v" } else { "w" }, json!({ "n": n })).await;
            api.fire(&id, "submit").await;
            match n % 3 {
                0 => drop(api.fire(&id, "reject").await),
                1 => {
                    // Away and back: it is there once.
                    api.fire(&id, "reject").await;
                    api.fire(&id, "submit").await;
                }
                _ => {}
            }
            if n % 3 != 0 && n % 5 != 0 {
                there.insert(id);
            }
        }
        let bus = Bus::connect(api.nats()).await;
        bus.consumer("worker", "cb.workflows.w.places.review.tokens.*").await;
        // For a second after a token left, an empty message says so; then nothing is left of it.
        let messages = bus.take("worker").await;
        let ids: Vec<String> = messages
            .iter()
            .filter(|message| !message.payload.is_empty())
            .map(|message| message.subject.rsplit('.').next().unwrap().to_owned())
            .collect();
        assert_eq!(ids.len(), there.len(), "each once");
        assert_eq!(ids.into_iter().collect::<HashSet<_>>(), there);

        // Everything was acknowledged, and everything is still there.
        let read =
            api.data("{ tokensInPlace(workflowId: \"w\", placeId: \"review\") { id } }", json!({}));
        let read = read.await["tokensInPlace"].take();
        let listed =
            read.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned());
        assert_eq!(listed.collect::<HashSet<_>>(), there);
        assert!(bus.take("worker").await.iter().all(|message| message.payload.is_empty()));
        let first = there.iter().next().unwrap();
        assert_eq!(api.fire(first, "finish").await["place"], "done");
        assert_eq!(api.fire(&api.create_token("w", json!({})).await, "submit").await["version"], 2);
        let after = bus.take("worker").await;
        assert_eq!(after.iter().filter(|message| !message.payload.is_empty()).count(), 1);
    });
}

#[test]
fn once_departures_have_expired_a_place_holds_its_tokens_alone() {
    let Some(nats) = NatsServer::start() else { return };
    let api = Api::over(TestStorage::on(nats));
    runtime().block_on(async {
        let gone = api.create_reviewed().await;
        let here = api.create_token("w", json!({})).await;
        api.fire(&here, "submit").await;
        let bus = Bus::connect(api.nats()).await;
        let tokens = "cb.workflows.*.places.*.tokens.*";
        let expected = [
            (format!("cb.workflows.w.places.draft.tokens.{gone}"), 1),
            (format!("cb.workflows.w.places.review.tokens.{here}"), 1),
        ];
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while bus.subjects(tokens).await != expected {
            let found = bus.subjects(tokens).await;
            assert!(std::time::Instant::now() < deadline, "{found:?}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn reads_leave_no_consumer_behind_however_many_there_are_at_once() {
    // Each waits for one of eight places of lists for 5 s at most.
    const CALLERS: usize = 24;
    const TOKENS: usize = 10_000;
    let Some(nats) = NatsServer::start() else { return };
    let api = Arc::new(Api::over(TestStorage::on(nats)));
    runtime().block_on(async {
        api.create_review("w").await;
        let mut inserts = tokio::task::JoinSet::new();
        for _ in 0..TOKENS / 10 {
            let storage = Arc::clone(api.storage());
            inserts.spawn(async move {
                let workflow = review_workflow("w");
                let mut ids = Vec::new();
                for _ in 0..10 {
                    let stored = storage.insert_token(new_token(&workflow, json!({}))).await;
                    let stored = stored.unwrap();
                    let moved = fired(&workflow, &stored, "edit");
                    ids.push(storage.commit(stored.revision, moved).await.unwrap().token.id);
                }
                ids
            });
        }
        let ids: Vec<_> = inserts.join_all().await.into_iter().flatten().collect();
        let ids = Arc::new(ids);
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..CALLERS {
            let (api, ids) = (Arc::clone(&api), Arc::clone(&ids));
            callers.spawn(async move {
                for n in 0..8 {
                    let id = ids[(caller * 31 + n * 97) % ids.len()];
                    let query = "query($id: String!) { natsToken(id: $id) { version }
                        tokenHistory(tokenId: $id) { edges { node { toPlace } } }
                        tokenConnection(workflowId: \"w\", first: 20) { edges { node { id } } } }";
                    let read = api.data(query, json!({ "id": id })).await;
                    assert_eq!(read["natsToken"]["version"], 2);
                    assert_eq!(read["tokenHistory"]["edges"].as_array().unwrap().len(), 1);
                    assert_eq!(read["tokenConnection"]["edges"].as_array().unwrap().len(), 20);
                }
            });
        }
        callers.join_all().await;
        let bus = Bus::connect(api.nats()).await;
        assert_eq!(bus.stream().await["state"]["consumer_count"], 0);
    });
}

/// Each request that `bad_input` sends with a hostile name, with the bus listened to.
#[test]
fn no_name_from_a_client_reaches_a_subject() {
    let Some(nats) = NatsServer::start() else { return };
    let api = Api::over(TestStorage::on(nats));
    runtime().block_on(async {
        api.create_reviewed().await;
        let bus = Bus::connect(api.nats()).await;
        let mut all = bus.subscribe("cb.>").await;
        let mut attacked = bus.subscribe("attacked.>").await;
        let mut asked = 0;
        for name in bad_input::HOSTILE_IDS.into_iter().chain([
            "a\r\nPUB attacked.x 5\r\nhello\r\n",
            "a 5\r\nhello\r\nPUB attacked.y 0\r\n\r\n",
            "a\tb",
            "draft.tokens.*",
        ]) {
            for query in bad_input::QUERIES_WITH_AN_ID {
                let error = api.error(query, json!({ "id": name })).await;
                assert_eq!(error["extensions"]["code"], "INVALID_ID", "{query} {name:?}");
                asked += 1;
            }
        }
        assert!(asked > 100);
        assert!(so_far(&bus, &mut all, "cb.marker").await.is_empty());
        assert!(so_far(&bus, &mut attacked, "attacked.marker").await.is_empty());
        let both = api
            .error("{ tokensInPlace(workflowId: \"*\", placeId: \"*\") { id } }", json!({}))
            .await;
        assert_eq!(both["extensions"]["code"], "INVALID_ID");
    });
}
