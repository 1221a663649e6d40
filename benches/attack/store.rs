//! What the attacked server has in its store.

use std::path::Path;

use serde_json::{Value, json};
use uuid::Uuid;

use super::client::{Client, request, request_of};
use super::server::Server;

pub const CREATE_WORKFLOW: &str =
    "mutation($input: WorkflowDefinitionInput!) { createWorkflow(input: $input) { id } }";
pub const CREATE_TOKEN: &str =
    "mutation($input: TokenCreateInput!) { createToken(input: $input) { id } }";
const FIRE: &str =
    "mutation($input: TransitionFireInput!) { fireTransition(input: $input) { id } }";

/// Tokens of a few hundred bytes.
const SMALL: usize = 9_000;

/// Tokens of a text of 0.9 MB.
const LARGE: usize = 10;

/// The id of a token that stands for what its name says.
pub fn id(name: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
}

/// Fills a file by the server's own hand.
pub async fn fill(path: &Path) {
    let server = Server::start(path);
    let mut client = Client::connect(&server.address).await;
    for input in [small_workflow(), big_workflow(), costly_workflow()] {
        client.ask(&request(CREATE_WORKFLOW, &json!({ "input": input }))).await;
    }
    let create = |id: Uuid, workflow: &str, data: Value| {
        let input = json!({ "id": id, "workflowId": workflow, "data": data });
        json!({ "query": CREATE_TOKEN, "variables": { "input": input } })
    };
    let small: Vec<_> = (0..SMALL).map(|n| id(&format!("small {n}"))).collect();
    for part in small.chunks(10) {
        let data = |n: &Uuid| json!({ "order": n, "amount": 900, "lines": [{ "sku": "BK-1042" }] });
        let batch = part.iter().map(|id| create(*id, "small", data(id)));
        client.answer(&request_of(&batch.collect())).await;
    }
    // One of them has a history.
    for n in 0..5 {
        let data = json!({ "comment": "y".repeat(900), "n": n });
        let input = json!({ "tokenId": id("small 0"), "transitionId": "edit", "data": data });
        client.ask(&request(FIRE, &json!({ "input": input }))).await;
    }
    let members: serde_json::Map<_, _> = (0..48_000).map(|n| (format!("m{n}"), json!(n))).collect();
    let mut others = vec![
        ("numbers", "costly", json!(vec![1; 98_000])),
        ("members", "costly", Value::Object(members)),
        ("controls", "small", json!("\u{1}".repeat(160_000))),
        ("text", "costly", json!("x".repeat(900_000))),
        ("moving", "small", json!({ "amount": 1 })),
    ];
    let large: Vec<_> = (0..LARGE).map(|n| format!("large {n}")).collect();
    others.extend(large.iter().map(|name| (name.as_str(), "small", json!("x".repeat(900_000)))));
    for (name, workflow, data) in others {
        let created = request_of(&create(id(name), workflow, data));
        client.ask(&created).await;
    }
    drop(client);
    server.end();
}

/// A move of a small token.
pub fn a_small_move() -> Vec<u8> {
    let input = json!({ "tokenId": id("moving"), "transitionId": "edit" });
    request(FIRE, &json!({ "input": input }))
}

fn small_workflow() -> Value {
    json!({
        "id": "small", "name": "Small", "places": ["open", "done"], "initialPlace": "open",
        "transitions": [
            { "id": "edit", "fromPlaces": ["open"], "toPlace": "open" },
            { "id": "finish", "fromPlaces": ["open"], "toPlace": "done" },
        ],
    })
}

/// As large as a definition can be, about.
fn big_workflow() -> Value {
    let places: Vec<_> = (0..1_000).map(|n| format!("place-number-{n}")).collect();
    let transition = |n: usize| {
        let from: Vec<_> = (0..20).map(|m| &places[(n * 7 + m) % 1_000]).collect();
        json!({ "id": format!("t{n}"), "fromPlaces": from, "toPlace": places[(n * 11 + 500) % 1_000] })
    };
    let transitions: Vec<_> = (0..500).map(transition).collect();
    json!({
        "id": "big", "name": "Big", "places": places, "initialPlace": places[0], "transitions": transitions,
    })
}

/// One whose conditions go through all that there is, each in another way.
fn costly_workflow() -> Value {
    let conditions = [
        "token.data.all(x, token.data.all(y, y >= x))",
        "token.data.map(x, [x, x, x, x]).size() > 0",
        "(token.data + token.data + token.data + token.data).size() > 0",
        "token.data.map(x, {'a': x, 'b': string(x) + 'yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy'}).size() > 0",
        "token.data.map(x, token.data.map(y, string(x) + string(y))).size() > 0",
        "token.data.matches('(x{0,30}){30}y')",
        "!token.data.matches('^(a|b)*$')",
        "token.data.filter(x, x != 0).map(x, string(x).matches('^[0-9]+$')).all(x, x)",
        "token.data == next && next == token.data",
    ];
    let transition = |(n, condition): (usize, &&str)| json!({ "id": format!("c{n}"), "fromPlaces": ["open"], "toPlace": "done", "conditions": [condition] });
    let transitions: Vec<_> = conditions.iter().enumerate().map(transition).collect();
    json!({
        "id": "costly", "name": "Costly", "places": ["open", "done"], "initialPlace": "open", "transitions": transitions,
    })
}
