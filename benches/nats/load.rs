//! Fills a store, over HTTP: so a server of another version finds what it has written itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use circuit_breaker::domain::{TransitionDraft, Workflow, WorkflowDraft};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::bus::{Bus, Server};
use crate::client::{Client, request, request_of};

/// Connections that fill a store.
const WRITERS: usize = 512;

/// Requests that the server takes in one body.
const BATCH: usize = 10;

const DEFINE: &str = "mutation($i: WorkflowDefinitionInput!) { createWorkflow(input: $i) { id } }";
const CREATE: &str = "mutation($i: TokenCreateInput!) { createToken(input: $i) { id } }";

pub fn workflow(id: &str) -> Workflow {
    let transition = |id: &str, from: &str, to: &str| TransitionDraft {
        id: id.to_owned(),
        from_places: vec![from.to_owned()],
        to_place: to.to_owned(),
        conditions: vec!["token.data.amount < 1000000".to_owned()],
        ..TransitionDraft::default()
    };
    let draft = WorkflowDraft {
        id: Some(id.to_owned()),
        name: "Benchmark".to_owned(),
        places: ["open", "review", "done"].map(str::to_owned).to_vec(),
        transitions: vec![
            transition("submit", "open", "review"),
            transition("reject", "review", "open"),
            transition("finish", "review", "done"),
        ],
        initial_place: "open".to_owned(),
        ..WorkflowDraft::default()
    };
    Workflow::check(draft, chrono::Utc::now()).expect("the definition is right")
}

/// The same workflow as a client defines it.
fn definition(id: &str) -> Value {
    let workflow = workflow(id);
    let definition = workflow.definition();
    let transitions: Vec<_> = definition
        .transitions
        .iter()
        .map(|transition| {
            json!({
                "id": transition.id, "fromPlaces": transition.from_places,
                "toPlace": transition.to_place, "conditions": transition.conditions,
            })
        })
        .collect();
    json!({
        "id": id, "name": definition.name, "places": definition.places,
        "transitions": transitions, "initialPlace": definition.initial_place,
    })
}

/// About what an order is: 200 bytes of JSON.
pub fn data(number: usize) -> Value {
    json!({
        "order": format!("A-{number:08}"), "customer": "Example Trading GmbH", "amount": number % 10_000,
        "currency": "EUR", "lines": [{ "sku": "BK-1042", "quantity": 3 }, { "sku": "BK-2001", "quantity": 1 }],
    })
}

/// Defines these workflows.
pub async fn define(server: &Server, ids: Vec<String>) {
    let (count, ids) = (ids.len(), Arc::new(ids));
    let input = move |number: usize| definition(&ids[number]);
    let made = write(server, DEFINE, "createWorkflow", count, input).await;
    assert_eq!(made.len(), count, "all are defined");
}

/// Creates `count` tokens in the first place of these workflows, in turn; gives their ids, which the
/// server makes, or which are random UUIDs of the client (`chosen`).
pub async fn create(
    server: &Server,
    workflows: &[String],
    count: usize,
    chosen: bool,
) -> Vec<Uuid> {
    let ids = create_some(server, workflows, count, chosen).await;
    assert_eq!(ids.len(), count, "all are created");
    ids
}

/// Creates tokens until the stream is full, at most `count`; gives their ids.
pub async fn create_until_full(server: &Server, workflows: &[String], count: usize) -> Vec<Uuid> {
    let mut ids = Vec::new();
    loop {
        let more = create_some(server, workflows, count - ids.len(), false).await;
        let is_full = more.len() < 100;
        ids.extend(more);
        // While history makes room, some are refused that would fit a moment later.
        if is_full {
            return ids;
        }
    }
}

async fn create_some(
    server: &Server,
    workflows: &[String],
    count: usize,
    chosen: bool,
) -> Vec<Uuid> {
    let workflows = workflows.to_vec();
    let input = move |number: usize| {
        let workflow = &workflows[number % workflows.len()];
        let mut input = json!({ "workflowId": workflow, "data": data(number) });
        if chosen {
            input["id"] = Uuid::new_v4().to_string().into();
        }
        input
    };
    let ids = write(server, CREATE, "createToken", count, input).await;
    ids.iter().map(|id| id.parse().expect("the id of a token is a UUID")).collect()
}

/// Asks for `count` writes in batches, over many connections, each of which ends early once the
/// stream is full; gives the ids of what was made.
async fn write(
    server: &Server,
    query: &'static str,
    field: &'static str,
    count: usize,
    input: impl Fn(usize) -> Value + Send + Sync + 'static,
) -> Vec<String> {
    let (input, next) = (Arc::new(input), Arc::new(AtomicUsize::new(0)));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..WRITERS.min(count.div_ceil(BATCH)) {
        let (input, next) = (Arc::clone(&input), Arc::clone(&next));
        let mut client = Client::connect(&server.address).await;
        tasks.spawn(async move {
            let mut ids = Vec::new();
            loop {
                let first = next.fetch_add(BATCH, Ordering::Relaxed);
                let batch: Vec<_> = (first..count.min(first + BATCH))
                    .map(|number| json!({ "query": query, "variables": { "i": input(number) } }))
                    .collect();
                if batch.is_empty() {
                    return ids;
                }
                let answer = client.answer(&request_of(&Value::from(batch))).await;
                let answers: Vec<Value> =
                    serde_json::from_slice(answer).expect("an answer is JSON");
                let mut is_full = false;
                for answer in answers {
                    match answer["data"][field]["id"].as_str() {
                        Some(id) => ids.push(id.to_owned()),
                        None => {
                            let code = &answer["errors"][0]["extensions"]["code"];
                            assert_eq!(code, "STORAGE_FULL", "{answer}");
                            is_full = true;
                        }
                    }
                }
                if is_full {
                    return ids;
                }
            }
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

/// Puts `count` tokens into the first place of the workflow `bench`; gives the ids of at most `most`
/// of them, picked evenly.
pub async fn fill(bus: &Bus, count: usize, most: usize) -> Vec<Uuid> {
    let server = Server::start(bus);
    let workflows = ["bench".to_owned()];
    define(&server, workflows.to_vec()).await;
    let ids = create(&server, &workflows, count, false).await;
    ids.into_iter().step_by((count / most).max(1)).take(most).collect()
}

/// A read of one token by its id alone.
pub fn read(id: impl serde::Serialize) -> Vec<u8> {
    let query = "query($id: String!) { token(id: $id) { id place version data } }";
    request(query, &json!({ "id": id }))
}
