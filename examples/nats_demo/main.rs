//! The NATS backend step by step: a workflow, its instances and their moves over GraphQL, with a
//! plain NATS client listening to what is committed.
//!
//! `cargo run --example nats_demo`
//!
//! It speaks to the server at `CIRCUIT_BREAKER_URL`, else to the one at <http://127.0.0.1:4000>, and
//! listens at `NATS_URL`, else at `nats://localhost:4222`. If no server answers and nats-server is
//! installed (on the PATH, or where `NATS_SERVER` says), it starts its own of both.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;
use std::sync::Arc;

use circuit_breaker::{NATSStorage, NATSStorageConfig};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

mod bus;
#[path = "../common/client.rs"]
mod client;
#[path = "../common/server.rs"]
mod server;

use bus::{Listener, OwnNats};
use client::{Client, Failure};
use server::OwnServer;

const WORKFLOW: &str = "nats_demo";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Servers that this run has started.
struct Own {
    server: OwnServer,
    nats: OwnNats,
}

fn run() -> Result<(), String> {
    let runtime = Runtime::new().map_err(|error| error.to_string())?;
    step(1, "Connect to a Circuit Breaker server with NATS storage");
    let (client, own) = connect(&runtime)?;
    let health = client.ask("{ health { status storage detail } }", &json!({}))?["health"].take();
    println!("    health: {health}");
    if health["storage"] != "nats" {
        return Err(format!(
            "the server at {} stores in {}; start it with STORAGE_BACKEND=nats and NATS_URL",
            client.url(),
            health["storage"]
        ));
    }
    let url = match &own {
        Some(own) => own.nats.url.clone(),
        None => std::env::var("NATS_URL").unwrap_or_else(|_| "nats://localhost:4222".to_owned()),
    };
    let mut listener = Listener::start(&runtime, &url, WORKFLOW)?;
    println!("    a plain NATS client listens to cb.live.{WORKFLOW}.>");

    create_workflow(&client)?;
    let ids = create_instances(&client)?;
    make_moves(&client, &ids, &mut listener)?;
    ask_where_they_are(&client, &ids, &listener)?;
    show_refusals(&client, &ids)?;

    match own {
        Some(own) => {
            println!("\nstopping the servers of this run");
            own.server.stop(&runtime)
        }
        None => {
            println!("\nThe tokens are in the stream now. Ask for them at {}/", client.url());
            Ok(())
        }
    }
}

fn step(number: usize, what: &str) {
    println!("\n{number}. {what}");
}

/// Finds the servers to speak to, or starts them.
fn connect(runtime: &Runtime) -> Result<(Client, Option<Own>), String> {
    if let Some(client) = client::find()? {
        return Ok((client, None));
    }
    let nats = OwnNats::start()?.ok_or(
        "nats-server is not installed either; install it, or start a server with STORAGE_BACKEND=nats",
    )?;
    println!("this run has its own nats-server at {}", nats.url);
    let config =
        NATSStorageConfig { nats_urls: vec![nats.url.clone()], ..NATSStorageConfig::default() };
    let storage = runtime.block_on(NATSStorage::new(config)).map_err(|e| e.to_string())?;
    let (server, url) = OwnServer::start(runtime, Arc::new(storage)).map_err(|e| e.to_string())?;
    println!("this run has its own server at {url}");
    Ok((Client::new(&url), Some(Own { server, nats })))
}

fn create_workflow(client: &Client) -> Result<(), String> {
    step(2, "Create a workflow, stored on cb.workflows.nats_demo.definition");
    let definition = json!({
        "id": WORKFLOW, "name": "Document review on NATS", "initialPlace": "draft",
        "places": ["draft", "review", "approved", "rejected"],
        "transitions": [
            { "id": "submit", "fromPlaces": ["draft"], "toPlace": "review", "conditions": ["size(token.data.title) > 0"] },
            { "id": "approve", "fromPlaces": ["review"], "toPlace": "approved" },
            { "id": "reject", "fromPlaces": ["review"], "toPlace": "rejected" },
        ],
    });
    let create = "mutation($input: WorkflowDefinitionInput!) { createWorkflow(input: $input) { id places } }";
    let created = client.ask(create, &json!({ "input": definition }))?;
    println!("    {}", created["createWorkflow"]);
    Ok(())
}

const TOKEN_FIELDS: &str = "id place natsSequence natsTimestamp natsSubject \
    transitionHistory { transitionId fromPlace toPlace triggeredBy natsSequence }";

fn create_instances(client: &Client) -> Result<Vec<Value>, String> {
    step(3, "Create workflow instances with metadata; each is a message on its place's subject");
    let create = format!(
        "mutation($input: CreateWorkflowInstanceInput!) {{ createWorkflowInstance(input: $input) {{ {TOKEN_FIELDS} }} }}"
    );
    let mut ids = Vec::new();
    for (title, department) in
        [("Quarterly report", "finance"), ("Project proposal", "engineering")]
    {
        let input = json!({
            "workflowId": WORKFLOW, "initialData": { "title": title, "priority": "high" },
            "metadata": { "department": department }, "triggeredBy": "nats_demo",
        });
        let token =
            client.ask(&create, &json!({ "input": input }))?["createWorkflowInstance"].take();
        println!("    {title}: message {} on {}", token["natsSequence"], token["natsSubject"]);
        ids.push(token["id"].clone());
    }
    Ok(ids)
}

const MOVE: &str = "mutation($input: TransitionTokenWithNATSInput!) { transitionTokenWithNats(input: $input) \
    { place natsSequence } }";

fn make_moves(client: &Client, ids: &[Value], listener: &mut Listener) -> Result<(), String> {
    step(4, "Make transitions; each is one atomic batch, and whoever listens hears it");
    for (id, transition, place) in [
        (&ids[0], "submit", "review"),
        (&ids[0], "approve", "approved"),
        (&ids[1], "submit", "review"),
    ] {
        let input = json!({
            "tokenId": id, "transitionId": transition, "newPlace": place, "triggeredBy": "manager@example.com",
        });
        let moved = client.ask(MOVE, &json!({ "input": input }))?["transitionTokenWithNats"].take();
        println!("    {transition}: now in {}, message {}", moved["place"], moved["natsSequence"]);
        listener.show_move()?;
    }
    Ok(())
}

fn ask_where_they_are(client: &Client, ids: &[Value], listener: &Listener) -> Result<(), String> {
    step(5, "Ask where everything is: by place, by id, by workflow and id, through its history");
    let query = format!(
        "query($id: String!) {{
            tokensInPlace(workflowId: \"{WORKFLOW}\", placeId: \"review\") {{ id data natsSequence }}
            natsToken(id: $id) {{ {TOKEN_FIELDS} metadata }}
            findToken(workflowId: \"{WORKFLOW}\", tokenId: $id) {{ place natsSequence }}
            tokenHistory(tokenId: $id) {{ edges {{ node {{ transitionId fromPlace toPlace timestamp }} }} }} }}"
    );
    let read = client.ask(&query, &json!({ "id": ids[0] }))?;
    println!("    in review now: {}", read["tokensInPlace"].as_array().map_or(0, Vec::len));
    println!("    by id: {}", read["natsToken"]);
    println!("    by workflow and id: {}", read["findToken"]);
    for edge in read["tokenHistory"]["edges"].as_array().into_iter().flatten() {
        println!("    newest first: {}", edge["node"]);
    }
    let subject = read["natsToken"]["natsSubject"].as_str().unwrap_or_default();
    let stored = listener.read(subject)?;
    println!("    any NATS client reads the same on {subject}: place {}", stored["place"]);
    Ok(())
}

fn show_refusals(client: &Client, ids: &[Value]) -> Result<(), String> {
    step(6, "What must not happen is refused, with a code");
    let wrong_place =
        json!({ "tokenId": ids[1], "transitionId": "approve", "newPlace": "rejected" });
    let not_allowed = json!({ "tokenId": ids[0], "transitionId": "submit", "newPlace": "review" });
    let too_late = json!({
        "tokenId": ids[1], "transitionId": "approve", "newPlace": "approved", "expectedVersion": 1,
    });
    for input in [wrong_place, not_allowed, too_late] {
        match client.ask(MOVE, &json!({ "input": input })) {
            Err(Failure::Refused { code, details }) => println!("    {code}: {details}"),
            Err(broken) => return Err(broken.into()),
            Ok(moved) => return Err(format!("{input} was not refused: {moved}")),
        }
    }
    Ok(())
}
