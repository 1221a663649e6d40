//! The product's NATS guide: its examples, as they stand there.

use std::sync::Arc;
use std::time::Duration;

use circuit_breaker::domain::TransitionRecord;
use circuit_breaker::graphql::CircuitBreakerSchema;
use circuit_breaker::storage::{StorageError, WorkflowStorage};
use circuit_breaker::{
    ConnectionStatus, HealthStatus, InMemoryStorage, NATSMetrics, NATSStorage, NATSStorageConfig,
    StorageBackend, Token, create_schema_with_nats, create_schema_with_storage, nats_health_check,
};
use serde_json::{Value, json};

use crate::nats_bus::Bus;
use crate::nats_server::NatsServer;
use crate::support::{
    Api, Backend, CREATE_WORKFLOW, Server, TestStorage, fired, new_token, now, review_workflow,
    runtime, without_place_on_bus, workflow_id,
};

/// "Setting up NATS Storage"; only the address and the end are ours.
async fn set_up(url: &str) -> Result<CircuitBreakerSchema, Box<dyn std::error::Error>> {
    // Configure NATS storage
    let nats_config = NATSStorageConfig {
        nats_urls: vec![url.to_string()],
        default_max_messages: 100_000,
        default_max_bytes: 512 * 1024 * 1024, // 512MB
        default_max_age: Duration::from_secs(7 * 24 * 60 * 60), // 7 days
        consumer_timeout: Duration::from_secs(30),
        max_deliver: 3,
        connection_timeout: Duration::from_secs(10),
        reconnect_buffer_size: 4 * 1024 * 1024, // 4MB
    };

    // Create NATS storage instance
    let nats_storage = std::sync::Arc::new(NATSStorage::new(nats_config).await?);

    // Create GraphQL schema with NATS storage
    let schema = create_schema_with_nats(nats_storage);

    // Start your GraphQL server...
    Ok(schema)
}

/// "Configuration Tuning". The guide leaves fields out, which Rust does not allow without a rest.
fn tuned() -> [NATSStorageConfig; 3] {
    [
        NATSStorageConfig {
            consumer_timeout: Duration::from_secs(5),
            max_deliver: 3,
            connection_timeout: Duration::from_secs(10),
            // Lower timeouts for faster feedback
            ..NATSStorageConfig::default()
        },
        NATSStorageConfig {
            consumer_timeout: Duration::from_secs(30),
            max_deliver: 5,
            connection_timeout: Duration::from_secs(30),
            // Higher timeouts for reliability
            ..NATSStorageConfig::default()
        },
        NATSStorageConfig {
            default_max_messages: 10000,
            default_max_bytes: 50 * 1024 * 1024,    // 50MB
            reconnect_buffer_size: 2 * 1024 * 1024, // 2MB
            // Larger buffers for high volume
            ..NATSStorageConfig::default()
        },
    ]
}

/// "Schema Not Including NATS Mutations".
fn schema_for(
    storage_backend: StorageBackend,
    nats_storage: Arc<NATSStorage>,
    memory_storage: Arc<InMemoryStorage>,
) -> CircuitBreakerSchema {
    #[allow(clippy::let_and_return)]
    let schema = match storage_backend {
        StorageBackend::NATS => create_schema_with_nats(nats_storage),
        StorageBackend::Memory => create_schema_with_storage(memory_storage),
    };
    schema
}

/// "Health Checks and Monitoring".
async fn guide_s_health_check(nats_storage: &NATSStorage) -> HealthStatus {
    match nats_storage.health_check().await {
        Ok(true) => HealthStatus::Healthy,
        Ok(false) => HealthStatus::Degraded,
        Err(_) => HealthStatus::Unhealthy,
    }
}

/// "Data Migration Script".
async fn migrate_to_nats(
    source: &InMemoryStorage,
    target: &NATSStorage,
) -> Result<(), Box<dyn std::error::Error>> {
    // Export all workflows from in-memory storage
    let workflows = source.list_workflows().await?;

    for workflow in workflows {
        // Create workflow in NATS
        target.create_workflow(workflow.clone()).await?;

        // Migrate all tokens
        let tokens = source.list_tokens(&workflow.id).await?;
        for token in tokens {
            target.create_token_with_event(token, Some("migration".to_string())).await?;
        }
    }

    Ok(())
}

/// "Enhanced Token Structure": what a program reads that knows the guide alone.
mod as_in_the_guide {
    use chrono::{DateTime, Utc};
    use serde::{Deserialize, Serialize};
    use uuid::Uuid;

    type PlaceId = String;
    type TransitionId = String;
    type TokenMetadata = serde_json::Map<String, serde_json::Value>;

    #[derive(Debug, Clone, Serialize, Deserialize)]
    pub struct HistoryEvent {
        pub timestamp: DateTime<Utc>,
        pub transition: TransitionId,
        pub from_place: PlaceId,
        pub to_place: PlaceId,
        pub data: Option<serde_json::Value>,
    }

    #[derive(Debug, Clone, Serialize, Deserialize)]
    pub struct Token {
        // Existing core fields
        pub id: Uuid,
        pub workflow_id: String,
        pub place: PlaceId,
        pub data: serde_json::Value,
        pub metadata: TokenMetadata,
        pub created_at: DateTime<Utc>,
        pub updated_at: DateTime<Utc>,
        pub history: Vec<HistoryEvent>,

        // New NATS-specific fields (optional for backward compatibility)
        pub nats_sequence: Option<u64>, // NATS stream sequence number
        pub nats_timestamp: Option<DateTime<Utc>>, // NATS timestamp
        pub nats_subject: Option<String>, // Current NATS subject
        pub transition_history: Vec<TransitionRecord>, // NATS transition tracking
    }

    // NATS-specific transition record for detailed tracking
    #[derive(Debug, Clone, Serialize, Deserialize)]
    pub struct TransitionRecord {
        pub from_place: PlaceId,
        pub to_place: PlaceId,
        pub transition_id: TransitionId,
        pub timestamp: DateTime<Utc>,
        pub triggered_by: Option<String>,
        pub nats_sequence: Option<u64>,
        pub metadata: Option<serde_json::Value>,
    }
}

#[test]
fn the_guide_s_set_up_serves_the_guide_s_operations() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let schema = set_up(&nats.url()).await.unwrap();
        let answer = schema.execute("{ health { status storage } }").await;
        let health = answer.data.into_json().unwrap();
        assert_eq!(health, json!({ "health": { "status": "HEALTHY", "storage": "nats" } }));
        let config = Bus::connect(&nats).await.stream().await["config"].take();
        assert_eq!(config["max_msgs"], 100_000);
        assert_eq!(config["max_bytes"], 512 * 1024 * 1024);
    });
}

#[test]
fn the_guide_s_tuned_configurations_work() {
    for (n, config) in tuned().into_iter().enumerate() {
        let Some(nats) = NatsServer::start() else { return };
        let config = NATSStorageConfig { nats_urls: vec![nats.url()], ..config };
        runtime().block_on(async {
            let storage = NATSStorage::new(config).await.unwrap();
            assert!(storage.health_check().await.unwrap(), "{n}");
            storage.close().await;
        });
    }
}

#[test]
fn a_schema_is_made_for_each_of_the_guide_s_backends() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let (on_nats, in_memory) = (Arc::new(nats.open().await), Arc::new(InMemoryStorage::new()));
        for (backend, name) in [(StorageBackend::NATS, "nats"), (StorageBackend::Memory, "memory")]
        {
            let schema = schema_for(backend, Arc::clone(&on_nats), Arc::clone(&in_memory));
            let answer = schema.execute("{ health { storage } }").await.data.into_json().unwrap();
            assert_eq!(answer["health"]["storage"], name);
        }
    });
}

#[test]
fn health_and_metrics_are_told_as_in_the_guide() {
    let Some(mut nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let storage = nats.open().await;
        assert_eq!(nats_health_check(&storage).await, HealthStatus::Healthy);
        assert_eq!(guide_s_health_check(&storage).await, HealthStatus::Healthy);
        let before = storage.metrics().await.unwrap().stream_message_count;
        let first = storage.insert_token(new_token(&review_workflow("w"), json!({}))).await;
        let NATSMetrics { stream_message_count, consumer_lag, connection_status, error_rate } =
            storage.metrics().await.unwrap();
        assert_eq!(stream_message_count, before + 3, "the token, its event and its pointer");
        assert!(consumer_lag < Duration::from_secs(60), "{consumer_lag:?}");
        assert_eq!((connection_status, error_rate), (ConnectionStatus::Connected, 0.0));

        nats.kill();
        let lost = storage.insert_token(new_token(&review_workflow("w"), json!({}))).await;
        assert!(first.is_ok() && lost.is_err(), "{first:?} {lost:?}");
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while storage.connection_status() != ConnectionStatus::Disconnected {
            assert!(std::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(nats_health_check(&storage).await, HealthStatus::Unhealthy);
        assert!(matches!(storage.metrics().await, Err(StorageError::Unavailable { .. })));
        nats.run();
        while nats_health_check(&storage).await != HealthStatus::Healthy {
            assert!(std::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(storage.metrics().await.unwrap().error_rate, 0.5, "one of two writes failed");
    });
}

#[test]
fn the_guide_s_migration_brings_everything_over() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let source = InMemoryStorage::new();
        let mut expected = Vec::new();
        for id in ["a", "b"] {
            let workflow = review_workflow(id);
            let event =
                circuit_breaker::domain::WorkflowEvent::workflow_created(workflow_id(id), now());
            source.insert_workflow(workflow.definition().clone(), event).await.unwrap();
            for n in 0..30 {
                let data = json!({ "n": n, "max": u64::MAX });
                let mut stored = source.insert_token(new_token(&workflow, data)).await.unwrap();
                for transition in ["submit", "finish"].into_iter().take(n % 3) {
                    let change = fired(&workflow, &stored, transition);
                    stored = source.commit(stored.revision, change).await.unwrap();
                }
                expected.push(Token::clone(&stored.token));
            }
        }
        let target = nats.open().await;
        migrate_to_nats(&source, &target).await.unwrap();

        let workflows = target.list_workflows().await.unwrap();
        assert_eq!(workflows, source.list_workflows().await.unwrap());
        let mut found = Vec::new();
        for workflow in workflows {
            let tokens = target.list_tokens(&workflow.id).await.unwrap();
            found.extend(tokens.iter().map(without_place_on_bus));
        }
        let by_id = |tokens: &mut Vec<Token>| tokens.sort_by_key(|token| token.id);
        by_id(&mut found);
        by_id(&mut expected);
        assert_eq!(found, expected, "history and all");

        // They move on there; and a second run says what stands in its way.
        let workflow = review_workflow("a");
        let draft = found.iter().find(|token| &*token.place == "draft").unwrap();
        let stored = target.load_token(draft.id, None).await.unwrap().unwrap();
        let moved = target.commit(stored.revision, fired(&workflow, &stored, "submit")).await;
        assert_eq!(moved.unwrap().token.version, draft.version + 1);
        let again = migrate_to_nats(&source, &target).await.unwrap_err().to_string();
        assert!(again.contains("there is a token"), "{again}");
    });
}

#[test]
fn what_does_not_fit_is_not_taken_from_elsewhere() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let target = nats.open().await;
        let token = new_token(&review_workflow("w"), json!({})).token;
        let error = target.create_token_with_event(token.clone(), None).await.unwrap_err();
        assert!(error.to_string().ends_with("create it first"), "{error}");
        let definition = review_workflow("w").definition().clone();
        assert_eq!(target.create_workflow(definition.clone()).await.unwrap(), definition);
        assert_eq!(target.create_workflow(definition.clone()).await.unwrap(), definition, "again");
        let other = circuit_breaker::WorkflowDefinition { name: "Other".to_owned(), ..definition };
        let error = target.create_workflow(other).await.unwrap_err();
        assert!(matches!(error, StorageError::WorkflowExists { .. }), "{error}");
        let elsewhere = Token { place: "nowhere".parse().unwrap(), ..token.clone() };
        let error = target.create_token_with_event(elsewhere, None).await.unwrap_err();
        assert!(error.to_string().contains("no such place"), "{error}");
        assert_eq!(target.list_tokens(&workflow_id("w")).await.unwrap(), []);
        let created = target.create_token_with_event(token, Some("me".to_owned())).await.unwrap();
        assert!(created.has_nats_metadata());
    });
}

#[test]
fn a_token_has_the_guide_s_methods() {
    let mut token = new_token(&review_workflow("document_review"), json!({})).token;
    let id = token.id;
    assert!(!token.has_nats_metadata());
    let subject = format!("cb.workflows.document_review.places.draft.tokens.{id}");
    assert_eq!(token.nats_subject_for_place(), subject);
    token.set_nats_metadata(7, now(), subject.clone());
    assert!(token.has_nats_metadata());
    assert_eq!((token.nats_sequence, token.nats_timestamp), (Some(7), Some(now())));
    assert_eq!(token.nats_subject, Some(subject));
    let (place, transition) = ("review".parse().unwrap(), "submit".parse().unwrap());
    token.transition_to_with_nats(place, transition, Some("ann".to_owned()), Some(9));
    assert_eq!((&*token.place, token.version, token.history.len()), ("review", 2, 1));
    let TransitionRecord { from_place, to_place, triggered_by, nats_sequence, .. } =
        token.transition_history[0].clone();
    assert_eq!((&*from_place, &*to_place), ("draft", "review"));
    assert_eq!((triggered_by.as_deref(), nats_sequence), (Some("ann"), Some(9)));
}

#[test]
fn what_a_plain_client_reads_is_the_guide_s_token() {
    let Some(nats) = NatsServer::start() else { return };
    let api = Api::over(TestStorage::on(nats));
    runtime().block_on(async {
        let id = api.create_reviewed().await;
        api.fire(&id, "submit").await;
        let bus = Bus::connect(api.nats()).await;
        let subject = format!("cb.workflows.w.places.review.tokens.{id}");
        let message = bus.last(&subject).await.unwrap();
        let token: as_in_the_guide::Token = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!((token.id.to_string(), token.place.as_str()), (id, "review"));
        assert_eq!(token.data, json!({ "title": "Plan" }));
        assert_eq!((token.history.len(), token.transition_history.len()), (3, 3));
        assert_eq!(token.transition_history[2].transition_id, "submit");
        // Where it stands, the headers of the message say; the payload never does.
        assert_eq!((token.nats_sequence, token.nats_subject), (None, None));
        assert!(token.transition_history.iter().all(|record| record.metadata.is_none()));
    });
}

fn document_review() -> Value {
    json!({
        "id": "document_review", "name": "Document review", "initialPlace": "draft",
        "places": ["draft", "review", "pending_approval", "approved"],
        "transitions": [
            { "id": "submit_for_review", "fromPlaces": ["draft"], "toPlace": "review" },
            { "id": "request_approval", "fromPlaces": ["review"], "toPlace": "pending_approval" },
            { "id": "approve", "fromPlaces": ["review", "pending_approval"], "toPlace": "approved" },
        ],
    })
}

/// "Example Usage" and "Using NATS-Enhanced GraphQL API", letter by letter.
const CREATE_INSTANCE: &str = r#"
# Create a workflow instance with NATS tracking
mutation CreateInstance {
  createWorkflowInstance(input: {
    workflowId: "document_review"
    initialData: {
      title: "Quarterly Report"
      priority: "high"
    }
    metadata: {
      department: "finance"
      created_by: "user@example.com"
    }
    triggeredBy: "api_client"
  }) {
    id
    workflowId
    place
    natsSequence
    natsSubject
    transitionHistory {
      fromPlace
      toPlace
      timestamp
      triggeredBy
    }
  }
}
"#;

const TRANSITION_TOKEN: &str = r#"
# Transition with NATS event tracking
mutation TransitionToken {
  transitionTokenWithNats(input: {
    tokenId: "token-uuid-here"
    transitionId: "approve"
    newPlace: "approved"
    triggeredBy: "manager@example.com"
  }) {
    id
    place
    natsSequence
    transitionHistory {
      transitionId
      timestamp
      triggeredBy
    }
  }
}
"#;

const TOKENS_IN_PLACE: &str = r#"
# Query tokens in a specific place (NATS-optimized)
query TokensInPlace {
  tokensInPlace(workflowId: "document_review", placeId: "pending_approval") {
    id
    data
    natsSequence
    transitionHistory {
      fromPlace
      toPlace
      timestamp
    }
  }
}
"#;

const CREATE_IN_USAGE: &str = r#"
# Create a workflow instance with NATS tracking
mutation {
  createWorkflowInstance(input: {
    workflowId: "document_review"
    initialData: {
      title: "Project Proposal"
      department: "engineering"
    }
    triggeredBy: "api_client"
  }) {
    id
    place
    natsSequence
    natsSubject
  }
}
"#;

const IN_PLACE_IN_USAGE: &str = r#"
# Query tokens in a specific place (NATS-optimized)
query {
  tokensInPlace(workflowId: "document_review", placeId: "draft") {
    id
    data
    natsSequence
    transitionHistory {
      fromPlace
      toPlace
      timestamp
      triggeredBy
    }
  }
}
"#;

const TRANSITION_IN_USAGE: &str = r#"
# Perform NATS-tracked transitions
mutation {
  transitionTokenWithNats(input: {
    tokenId: "your-token-id"
    transitionId: "submit_for_review"
    newPlace: "review"
    triggeredBy: "user@example.com"
  }) {
    id
    place
    natsSequence
  }
}
"#;

/// "GraphQL Queries and Mutations": the look-ups and the lists that the guide names.
const LOOK_UPS: &str = "query($id: String!) {
    natsToken(id: $id) { id workflowId place data metadata createdAt updatedAt history { transition }
        natsSequence natsTimestamp natsSubject transitionHistory { natsSequence metadata } }
    findToken(workflowId: \"document_review\", tokenId: $id) { natsSequence natsTimestamp natsSubject }
    token(id: $id) { id place }
    tokens(workflowId: \"document_review\") { id }
    workflows { id }
}";

#[test]
fn the_guide_s_queries_and_mutations_answer_as_it_says() {
    if !Backend::Nats.is_here() {
        return;
    }
    let api = Api::new(Backend::Nats);
    runtime().block_on(async {
        api.data(CREATE_WORKFLOW, json!({ "input": document_review() })).await;
        let created = api.data(CREATE_INSTANCE, json!({})).await["createWorkflowInstance"].take();
        let id = created["id"].as_str().unwrap().to_owned();
        assert_eq!(
            (&created["workflowId"], &created["place"]),
            (&json!("document_review"), &json!("draft"))
        );
        let subject = format!("cb.workflows.document_review.places.draft.tokens.{id}");
        assert_eq!(created["natsSubject"], subject);
        assert_eq!(created["transitionHistory"], json!([]));

        let second = api.data(CREATE_IN_USAGE, json!({})).await["createWorkflowInstance"].take();
        let drafts = api.data(IN_PLACE_IN_USAGE, json!({})).await["tokensInPlace"].take();
        assert_eq!((&drafts[0]["id"], &drafts[1]["id"]), (&created["id"], &second["id"]));
        assert_eq!(drafts[0]["natsSequence"], created["natsSequence"]);
        assert_eq!(drafts[0]["data"], json!({ "title": "Quarterly Report", "priority": "high" }));

        // The guide's placeholders are no ids of tokens.
        let error = api.error(TRANSITION_TOKEN, json!({})).await;
        assert_eq!(error["extensions"]["code"], "INVALID_ID");
        let submit = TRANSITION_IN_USAGE.replace("your-token-id", &id);
        let moved = api.data(&submit, json!({})).await["transitionTokenWithNats"].take();
        assert_eq!(moved["place"], "review");
        api.fire(&id, "request_approval").await;
        let pending = api.data(TOKENS_IN_PLACE, json!({})).await["tokensInPlace"].take();
        assert_eq!(pending[0]["transitionHistory"].as_array().unwrap().len(), 2);
        let approve = TRANSITION_TOKEN.replace("token-uuid-here", &id);
        let approved = api.data(&approve, json!({})).await["transitionTokenWithNats"].take();
        assert_eq!(approved["place"], "approved");
        assert_eq!(approved["transitionHistory"][2]["triggeredBy"], "manager@example.com");
        assert_eq!(api.data(TOKENS_IN_PLACE, json!({})).await["tokensInPlace"], json!([]));

        let read = api.data(LOOK_UPS, json!({ "id": id })).await;
        assert_eq!(read["natsToken"]["natsSequence"], approved["natsSequence"]);
        assert_eq!(read["token"]["place"], "approved");
        assert_eq!(read["tokens"].as_array().unwrap().len(), 2);
        assert_eq!(read["workflows"], json!([{ "id": "document_review" }]));
        assert_eq!(
            read["natsToken"]["metadata"],
            json!({ "department": "finance", "created_by": "user@example.com" })
        );
    });
}

/// What a server says of where a token stands, and what the bus itself says.
#[test]
fn sequence_time_and_subject_are_those_of_the_message_right_after_each_write() {
    let Some(nats) = NatsServer::start() else { return };
    let url = nats.url();
    let servers =
        [(); 2].map(|()| Server::start(&[("STORAGE_BACKEND", "nats"), ("NATS_URL", &url)]));
    let fields =
        "id place natsSequence natsTimestamp natsSubject transitionHistory { natsSequence }";
    let created =
        servers[0].client().ask(CREATE_WORKFLOW, &json!({ "input": document_review() })).unwrap();
    assert!(created.get("errors").is_none(), "{created}");
    let runtime = runtime();
    let bus = runtime.block_on(Bus::connect(&nats));
    let check = |token: &Value| {
        let subject = format!(
            "cb.workflows.document_review.places.{}.tokens.{}",
            token["place"].as_str().unwrap(),
            token["id"].as_str().unwrap()
        );
        let message = runtime.block_on(bus.last(&subject)).unwrap();
        let header = |name: &str| message.headers.as_ref().unwrap().get(name).unwrap().to_string();
        assert_eq!(token["natsSubject"], subject);
        assert_eq!(token["natsSequence"], header("Nats-Sequence"));
        let time = |text: &str| chrono::DateTime::parse_from_rfc3339(text).unwrap();
        let shown = token["natsTimestamp"].as_str().unwrap();
        assert_eq!(time(shown), time(&header("Nats-Time-Stamp")));
        if let Some(newest) = token["transitionHistory"].as_array().unwrap().last() {
            assert_eq!(newest["natsSequence"], token["natsSequence"], "{token}");
        }
        // Whichever server is asked, and however, says the same.
        for server in &servers {
            let query = format!(
                "query($id: String!, $p: String!) {{ natsToken(id: $id) {{ {fields} }} findToken(workflowId: \"document_review\", tokenId: $id) {{ {fields} }}
                 tokensInPlace(workflowId: \"document_review\", placeId: $p) {{ {fields} }} }}"
            );
            let asked = json!({ "id": token["id"], "p": token["place"] });
            let read = server.client().ask(&query, &asked).unwrap()["data"].take();
            assert_eq!(&read["natsToken"], token);
            assert_eq!(&read["findToken"], token);
            assert_eq!(&read["tokensInPlace"][0], token);
        }
    };
    let create = format!(
        "mutation {{ createWorkflowInstance(input: {{ workflowId: \"document_review\" }}) {{ {fields} }} }}"
    );
    let created = servers[1].client().ask(&create, &json!({})).unwrap();
    let created = &created["data"]["createWorkflowInstance"];
    check(created);
    let fire = format!(
        "mutation($i: TransitionTokenWithNATSInput!) {{ transitionTokenWithNats(input: $i) {{ {fields} }} }}"
    );
    let steps = [
        ("submit_for_review", "review"),
        ("request_approval", "pending_approval"),
        ("approve", "approved"),
    ];
    for (n, (transition, place)) in steps.into_iter().enumerate() {
        let input =
            json!({ "tokenId": created["id"], "transitionId": transition, "newPlace": place });
        let moved = servers[n % 2].client().ask(&fire, &json!({ "i": input })).unwrap();
        check(&moved["data"]["transitionTokenWithNats"]);
    }
}
