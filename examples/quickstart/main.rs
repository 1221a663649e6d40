//! A real workflow in one command: stores a definition, creates a token for each row of a file,
//! moves them, and shows where everything is.
//!
//! `cargo run --example quickstart [-- document_review | order_fulfilment | incident_response]`
//!
//! It speaks GraphQL over HTTP, as any client does, to the server at `CIRCUIT_BREAKER_URL`. Without
//! that variable it takes the one at <http://127.0.0.1:4000>, or starts its own in memory.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;
use std::sync::Arc;

use circuit_breaker::InMemoryStorage;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

#[path = "../common/client.rs"]
mod client;
mod data;
mod picture;
#[path = "../common/server.rs"]
mod server;

use client::{Client, Failure};
use data::{Move, Row};
use server::OwnServer;

const WORKFLOWS: [(&str, &str); 3] = [
    ("document_review", "documents.csv"),
    ("order_fulfilment", "orders.json"),
    ("incident_response", "incidents.json"),
];

const USAGE: &str = "Usage: quickstart [document_review | order_fulfilment | incident_response]\n\n\
    Moves the documents, orders or incidents in examples/data through that workflow. CIRCUIT_BREAKER_URL names\n\
    the server; without it, it is http://127.0.0.1:4000 or, if nothing answers there, one of its own.";

/// Tokens of one page.
const PAGE_ROWS: usize = 100;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let name = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => WORKFLOWS[0].0,
        ["--help" | "-h"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        [name] => name,
        _ => "",
    };
    let Some((workflow, file)) = WORKFLOWS.iter().find(|(known, _)| *known == name) else {
        eprintln!("error: there is no example {:?}\n{USAGE}", arguments.join(" "));
        return ExitCode::from(2);
    };
    match run(workflow, file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(workflow: &str, file: &str) -> Result<(), String> {
    let definition = data::definition(workflow)?;
    let rows = data::rows(file)?;
    let (client, own) = connect()?;

    let create =
        "mutation($input: WorkflowDefinitionInput!) { createWorkflow(input: $input) { id name } }";
    let created = client.ask(create, &json!({ "input": definition }))?;
    println!("workflow {} is stored: {}", workflow, created["createWorkflow"]["name"]);

    let mut counts = Counts::default();
    for row in &rows {
        go_through(&client, workflow, row, &mut counts)?;
    }
    println!(
        "{} tokens created from examples/data/{file}, {} moves made, {} refused by the workflow\n",
        rows.len(),
        counts.made,
        counts.refused
    );

    let mut places = Vec::new();
    for place in definition["places"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        places.push((place.to_owned(), titles_in(&client, workflow, place)?));
    }
    println!("{}", picture::table(&places));
    println!("{}", picture::mermaid(&definition, &places));
    match own {
        Some((server, runtime)) => server.stop(&runtime),
        None => {
            println!("The tokens are in the server now. Ask it about them at {}/", client.url());
            Ok(())
        }
    }
}

/// Finds the server to speak to, or starts one.
fn connect() -> Result<(Client, Option<(OwnServer, Runtime)>), String> {
    if let Some(client) = client::find()? {
        return Ok((client, None));
    }
    let none_starts = |error: std::io::Error| format!("this run's own server fails: {error}");
    let runtime = Runtime::new().map_err(none_starts)?;
    let storage = Arc::new(InMemoryStorage::new());
    let (server, url) = OwnServer::start(&runtime, storage).map_err(none_starts)?;
    println!("this run has its own, in memory");
    Ok((Client::new(&url), Some((server, runtime))))
}

#[derive(Default)]
struct Counts {
    made: usize,
    refused: usize,
}

/// Creates the token of a row and makes its moves; goes on where the workflow refuses one.
fn go_through(
    client: &Client,
    workflow: &str,
    row: &Row,
    counts: &mut Counts,
) -> Result<(), String> {
    let create = "mutation($input: CreateWorkflowInstanceInput!) { createWorkflowInstance(input: $input) { id } }";
    let input = json!({
        "workflowId": workflow, "initialData": row.data, "metadata": row.metadata, "triggeredBy": "quickstart",
    });
    let created = client.ask(create, &json!({ "input": input }))?;
    let id = &created["createWorkflowInstance"]["id"];

    let fire = "mutation($input: TransitionFireInput!) { fireTransition(input: $input) { place } }";
    for Move { transition, by, data } in &row.moves {
        let input =
            json!({ "tokenId": id, "transitionId": transition, "triggeredBy": by, "data": data });
        match client.ask(fire, &json!({ "input": input })) {
            Ok(_) => counts.made += 1,
            Err(Failure::Refused { code, details }) => {
                counts.refused += 1;
                let reason = details["condition"].as_str().unwrap_or(transition);
                println!("  {}: {transition} by {by} is refused, {code}: {reason}", row.title());
            }
            Err(broken) => return Err(broken.into()),
        }
    }
    Ok(())
}

/// The titles of all tokens that are in a place, read page by page.
fn titles_in(client: &Client, workflow: &str, place: &str) -> Result<Vec<String>, String> {
    let query = "query($workflow: String!, $place: String!, $first: Int!, $after: String) {
        tokenConnection(workflowId: $workflow, placeId: $place, first: $first, after: $after) {
            edges { node { id data } } pageInfo { hasNextPage endCursor } } }";
    let mut titles = Vec::new();
    let mut after = Value::Null;
    loop {
        let variables =
            json!({ "workflow": workflow, "place": place, "first": PAGE_ROWS, "after": after });
        let page = client.ask(query, &variables)?["tokenConnection"].take();
        for edge in page["edges"].as_array().into_iter().flatten() {
            let node = &edge["node"];
            let title = node["data"]["title"].as_str().or(node["id"].as_str());
            titles.push(title.unwrap_or_default().to_owned());
        }
        if page["pageInfo"]["hasNextPage"] != true {
            return Ok(titles);
        }
        after = page["pageInfo"]["endCursor"].clone();
    }
}
