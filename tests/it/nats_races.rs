//! Several servers on one stream: of racing moves one wins, and every look shows a token once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use serde_json::{Value, json};

use crate::nats_server::{Cluster, NatsServer};
use crate::support::{CREATE_WORKFLOW, Client, FIRE, Server, review_input};

const RACERS: usize = 8;
const TOKENS: usize = 25;
const CHAIN: usize = 10;

fn two_servers(url: [&str; 2], replicas: &str) -> [Server; 2] {
    url.map(|url| {
        Server::start(&[
            ("STORAGE_BACKEND", "nats"),
            ("NATS_URL", url),
            ("NATS_REPLICAS", replicas),
        ])
    })
}

#[test]
fn of_racing_moves_through_two_servers_one_wins_with_one_replica() {
    let Some(nats) = NatsServer::start() else { return };
    race(&two_servers([&nats.url(), &nats.url()], "1"));
}

#[test]
fn of_racing_moves_through_two_servers_one_wins_with_three_replicas() {
    let Some(cluster) = Cluster::start() else { return };
    let urls = [0, 1].map(|first| cluster.config(first).nats_urls.join(","));
    let servers = two_servers([&urls[0], &urls[1]], "3");
    race(&servers);
}

/// Asks until the store is there; a cluster takes a moment to form.
pub fn create_workflow(server: &Server) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let input = json!({ "input": review_input("w") });
        let created = server.client().ask(CREATE_WORKFLOW, &input).unwrap();
        if created.get("errors").is_none() {
            return;
        }
        assert_eq!(created["errors"][0]["extensions"]["code"], "STORAGE_UNAVAILABLE", "{created}");
        assert!(std::time::Instant::now() < deadline, "{created}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn race(servers: &[Server; 2]) {
    create_workflow(&servers[0]);
    create_workflow(&servers[1]);
    let done = Arc::new(AtomicBool::new(false));
    let watchers: Vec<_> = servers
        .iter()
        .map(|server| {
            let (client, done) = (server.client(), Arc::clone(&done));
            std::thread::spawn(move || watch(&client, &done))
        })
        .collect();
    for number in 0..TOKENS {
        one_winner(servers, number);
    }
    chains(servers);
    done.store(true, Ordering::Release);
    for watcher in watchers {
        assert!(watcher.join().unwrap() > 5, "it looked while the tokens moved");
    }
}

fn create(client: &Client) -> String {
    let query = "mutation { createToken(input: { workflowId: \"w\" }) { id } }";
    let created = client.ask(query, &json!({})).unwrap();
    created["data"]["createToken"]["id"].as_str().unwrap_or_else(|| panic!("{created}")).to_owned()
}

/// All fire the same move of the same version at once.
fn one_winner(servers: &[Server; 2], number: usize) {
    let id = create(&servers[number % 2].client());
    let start = Arc::new(Barrier::new(RACERS));
    let racers: Vec<_> = (0..RACERS)
        .map(|n| {
            let (client, id, start) = (servers[n % 2].client(), id.clone(), Arc::clone(&start));
            std::thread::spawn(move || {
                let input = json!({ "input": { "tokenId": id, "transitionId": "submit", "expectedVersion": 1 } });
                start.wait();
                client.ask(FIRE, &input).unwrap()
            })
        })
        .collect();
    let answers: Vec<Value> = racers.into_iter().map(|racer| racer.join().unwrap()).collect();
    let (won, lost): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.get("errors").is_none());
    assert_eq!(won.len(), 1, "{answers:#?}");
    assert_eq!(won[0]["data"]["fireTransition"]["version"], 2);
    for answer in lost {
        assert_eq!(answer["errors"][0]["extensions"]["code"], "CONFLICT", "{answer}");
    }
    // The other server shows the winner's move at once.
    for server in servers {
        let query = "query($id: String!) { natsToken(id: $id) { place version natsSequence transitionHistory { natsSequence } } }";
        let read = server.client().ask(query, &json!({ "id": id })).unwrap();
        let read = &read["data"]["natsToken"];
        assert_eq!(read["place"], "review", "{read}");
        assert_eq!(read["version"], 2, "{read}");
        assert_eq!(read["transitionHistory"][0]["natsSequence"], read["natsSequence"], "{read}");
    }
}

/// All move one token again and again: every move is made, none twice.
fn chains(servers: &[Server; 2]) {
    let id = create(&servers[0].client());
    let racers: Vec<_> = (0..RACERS)
        .map(|n| {
            let (client, id) = (servers[n % 2].client(), id.clone());
            std::thread::spawn(move || {
                let input = json!({ "input": { "tokenId": id, "transitionId": "edit" } });
                for _ in 0..CHAIN {
                    let answer = client.ask(FIRE, &input).unwrap();
                    assert!(answer.get("errors").is_none(), "{answer}");
                }
            })
        })
        .collect();
    racers.into_iter().for_each(|racer| racer.join().unwrap());
    let query = "query($id: String!, $after: String) { token(id: $id) { version }
        tokenHistory(tokenId: $id, first: 7, after: $after) { edges { node { natsSequence } } pageInfo { hasNextPage endCursor } } }";
    for server in servers {
        let (mut moves, mut after) = (Vec::new(), Value::Null);
        loop {
            let read = server.client().ask(query, &json!({ "id": id, "after": after })).unwrap();
            assert_eq!(read["data"]["token"]["version"], 1 + RACERS * CHAIN, "{read}");
            let page = &read["data"]["tokenHistory"];
            moves.extend(page["edges"].as_array().unwrap().clone());
            if page["pageInfo"]["hasNextPage"] == false {
                break;
            }
            after = page["pageInfo"]["endCursor"].clone();
        }
        assert_eq!(moves.len(), RACERS * CHAIN, "every move has one event");
    }
}

/// Looks again and again: each token is in one place. Tokens only go on from draft to review.
fn watch(client: &Client, done: &AtomicBool) -> usize {
    let list = |place: &str| -> Vec<String> {
        let query = "query($p: String!) { tokensInPlace(workflowId: \"w\", placeId: $p) { id } }";
        let read = client.ask(query, &json!({ "p": place })).unwrap();
        let rows = read["data"]["tokensInPlace"].as_array().unwrap_or_else(|| panic!("{read}"));
        rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    };
    let (mut looks, mut seen) = (0, HashMap::new());
    while !done.load(Ordering::Acquire) {
        let read = client.ask("{ tokens(workflowId: \"w\") { id version } }", &json!({})).unwrap();
        let rows = read["data"]["tokens"].as_array().unwrap_or_else(|| panic!("{read}"));
        let mut now = HashMap::new();
        for row in rows {
            let (id, version) = (row["id"].as_str().unwrap(), row["version"].as_u64().unwrap());
            assert_eq!(now.insert(id.to_owned(), version), None, "twice in one list: {read}");
        }
        // Where it is later is looked at first: so none can be seen in both, and the other way
        // round none can be seen in neither.
        let (later, before) = (list("review"), list("draft"));
        assert!(later.iter().all(|id| !before.contains(id)), "in two places: {later:?} {before:?}");
        let (before, later) = (list("draft"), list("review"));
        for (id, version) in &now {
            assert!(before.contains(id) || later.contains(id), "{id} is nowhere");
            let seen = seen.insert(id.clone(), *version).unwrap_or(0);
            assert!(seen <= *version, "{id} went back from {seen} to {version}");
        }
        looks += 1;
    }
    looks
}
