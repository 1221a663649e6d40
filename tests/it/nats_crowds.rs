//! Many at once who want the same: nobody is refused because there are many.

use std::collections::HashMap;
use std::sync::Arc;

use circuit_breaker::NATSStorageOptions;
use circuit_breaker::storage::WorkflowStorage as _;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::nats_life::Node;
use crate::nats_server::NatsServer;
use crate::support::{CREATE_TOKEN, CREATE_WORKFLOW, FIRE, review_input, runtime};

/// The same request from each of a crowd; the codes of the answers, with how often each came.
async fn crowd(
    node: &Arc<Node>,
    size: usize,
    query: &'static str,
    input: &Value,
) -> HashMap<String, usize> {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..size {
        let (node, input) = (Arc::clone(node), input.clone());
        tasks.spawn(async move { node.code(query, input).await });
    }
    let mut codes = HashMap::new();
    for code in tasks.join_all().await {
        *codes.entry(code).or_default() += 1;
    }
    codes
}

fn only(code: &str, count: usize) -> HashMap<String, usize> {
    HashMap::from([(code.to_owned(), count)])
}

#[test]
fn a_crowd_that_creates_the_same_gets_the_same_answer() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let node = Arc::new(Node::start(&nats, NATSStorageOptions::new()).await);
        let workflow = review_input("w");
        assert_eq!(crowd(&node, 300, CREATE_WORKFLOW, &workflow).await, only("", 300), "new");
        assert_eq!(crowd(&node, 600, CREATE_WORKFLOW, &workflow).await, only("", 600), "there");
        let token = json!({ "workflowId": "w", "id": Uuid::from_u128(7).to_string() });
        let codes = crowd(&node, 600, CREATE_TOKEN, &token).await;
        let expected = [(String::new(), 1), ("TOKEN_EXISTS".to_owned(), 599)];
        assert_eq!(codes, HashMap::from(expected), "new");
        let codes = crowd(&node, 600, CREATE_TOKEN, &token).await;
        assert_eq!(codes, only("TOKEN_EXISTS", 600), "there");
    });
}

#[test]
fn a_crowd_that_moves_one_token_takes_turns() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let node = Arc::new(Node::start(&nats, NATSStorageOptions::new()).await);
        node.define("w").await;
        let id = node.create("w").await;
        let input = json!({ "tokenId": id, "transitionId": "edit" });
        assert_eq!(crowd(&node, 200, FIRE, &input).await, only("", 200));
        assert_eq!(node.tokens().await, [(id, 201)]);
    });
}

#[test]
fn a_crowd_that_reads_a_large_token_does_not_cut_the_connection() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let node = Arc::new(Node::start(&nats, NATSStorageOptions::new()).await);
        node.define("w").await;
        let input = json!({ "workflowId": "w", "data": { "text": "x".repeat(900_000) } });
        let answer = node.ask(CREATE_TOKEN, input).await;
        let id: Uuid = answer["data"]["createToken"]["id"].as_str().unwrap().parse().unwrap();
        for _ in 0..4 {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..256 {
                let storage = Arc::clone(&node.storage);
                tasks.spawn(async move { storage.load_token(id, None).await });
            }
            for found in tasks.join_all().await {
                assert_eq!(found.unwrap().unwrap().token.id, id);
            }
        }
    });
}
