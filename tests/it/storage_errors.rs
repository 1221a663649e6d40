//! What clients see when the store refuses, is full, is gone, or is wrong; and when an answer would
//! be too large.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use circuit_breaker::domain::{Change, Token, WorkflowDefinition, WorkflowEvent, WorkflowId};
use circuit_breaker::storage::{
    Figure, Page, PageLimit, Sequence, StorageError, StorageHealth, StoredEvent, StoredToken,
    TokenScope, WorkflowStorage,
};
use circuit_breaker::{InMemoryStorage, SqliteStorage, SqliteStorageConfig};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::support::{
    Api, CREATE_INSTANCE, CREATE_TOKEN, CREATE_WORKFLOW, FIRE, MOVE, TestStorage, new_token,
    on_every_backend, review_input, review_workflow, runtime,
};

on_every_backend! {
    a_token_over_the_limit_is_refused_with_both_sizes
    a_definition_over_the_limit_is_refused
    a_list_of_more_than_ten_thousand_rows_is_refused
    a_list_of_too_many_bytes_is_refused
    an_answer_of_too_many_values_is_refused
    a_closed_store_is_unavailable_and_nothing_was_done
}

/// The code of an error, and its details.
fn code(error: &Value) -> (&str, &Value) {
    (error["extensions"]["code"].as_str().unwrap(), &error["extensions"]["details"])
}

mod case {
    use super::*;

    pub async fn a_token_over_the_limit_is_refused_with_both_sizes(api: Api) {
        let token = api.create_reviewed().await;
        let text = |bytes: usize| json!({ "text": "x".repeat(bytes) });
        let other =
            json!({ "input": { "tokenId": token, "transitionId": "edit", "data": text(600_000) } });
        api.data(FIRE, other).await;
        let merged = json!({ "tokenId": token, "transitionId": "edit", "data": { "more": "x".repeat(500_000) } });
        let mut moved = json!({ "tokenId": token, "transitionId": "submit", "newPlace": "review" });
        moved["data"] = merged["data"].clone();
        let quotes = json!({ "\"": "\u{1}".repeat(200_000) });
        let before = api.everything().await;
        for (query, input, bytes) in [
            (CREATE_TOKEN, json!({ "workflowId": "w", "data": text(1_000_000) }), 1_000_000),
            (CREATE_TOKEN, json!({ "workflowId": "w", "metadata": text(1_000_000) }), 1_000_000),
            // What counts is how long it is as JSON.
            (CREATE_TOKEN, json!({ "workflowId": "w", "data": quotes }), 1_200_000),
            (CREATE_INSTANCE, json!({ "workflowId": "w", "initialData": text(999_900) }), 999_900),
            (FIRE, merged, 1_100_000),
            (MOVE, moved, 1_100_000),
        ] {
            let error = api.error(query, json!({ "input": input })).await;
            let (code, details) = code(&error);
            assert_eq!((code, &details["bytesMax"]), ("PAYLOAD_TOO_LARGE", &json!(1_000_000)));
            assert_eq!(error["extensions"]["retryable"], false);
            let found = details["bytes"].as_u64().unwrap();
            assert!((bytes..bytes + 3_000).contains(&found), "{found} for {bytes}");
            let message = error["message"].as_str().unwrap();
            assert!(message.starts_with("token "), "{message}");
            let sizes = format!(" has {found} bytes in the store, at most 1000000 are allowed");
            assert!(message.ends_with(&sizes), "{message}");
        }
        assert_eq!(api.everything().await, before);
    }

    pub async fn a_definition_over_the_limit_is_refused(api: Api) {
        let described = |text: &str, count: usize| {
            let mut input = review_input("large");
            for n in 0..count {
                let transition = json!({ "id": format!("t{n}"), "description": text.repeat(4_096), "fromPlaces": ["draft"], "toPlace": "done" });
                input["transitions"].as_array_mut().unwrap().push(transition);
            }
            json!({ "input": input })
        };
        let error = api.error(CREATE_WORKFLOW, described("x", 127)).await;
        let (found, details) = code(&error);
        let problem = &details["problems"][0];
        assert_eq!((found, &problem["problem"]), ("INVALID_WORKFLOW", &json!("TOO_LARGE")));
        let message = problem["message"].as_str().unwrap();
        assert!(message.ends_with("bytes, at most 524288 are allowed"), "{message}");

        // Short as text and long as JSON: this only the store sees.
        let error = api.error(CREATE_WORKFLOW, described("\"", 123)).await;
        let (found, details) = code(&error);
        assert_eq!((found, &details["bytesMax"]), ("PAYLOAD_TOO_LARGE", &json!(1_000_000)));
        let bytes = details["bytes"].as_u64().unwrap();
        let message =
            format!("workflow large has {bytes} bytes in the store, at most 1000000 are allowed");
        assert_eq!(error["message"], message);
        assert!((1_007_616..1_030_000).contains(&bytes), "{bytes}");
        let all = api.everything().await;
        assert!(all.workflows.is_empty() && all.events.is_empty());
        api.data(CREATE_WORKFLOW, described("x", 120)).await;
    }

    pub async fn a_list_of_more_than_ten_thousand_rows_is_refused(api: Api) {
        api.create_review("w").await;
        let workflow = review_workflow("w");
        for _ in 0..20 {
            let mut inserts = JoinSet::new();
            for _ in 0..500 {
                let (storage, token) = (Arc::clone(api.storage()), new_token(&workflow, json!({})));
                inserts.spawn(async move { storage.insert_token(token).await.unwrap() });
            }
            inserts.join_all().await;
        }
        let lists = [
            "{ tokens { id } }",
            "{ tokens(workflowId: \"w\") { id } }",
            "{ tokensInPlace(workflowId: \"w\", placeId: \"draft\") { id } }",
        ];
        let all = api.data(lists[0], json!({})).await;
        assert_eq!(all["tokens"].as_array().map(Vec::len), Some(10_000), "so many fit");
        api.create_token("w", json!({})).await;
        let details = json!({ "rowsMax": 10_000, "bytesMax": 50_331_648 });
        for list in lists {
            let error = api.error(list, json!({})).await;
            assert_eq!(code(&error), ("RESULT_TOO_LARGE", &details), "{list}");
            assert_eq!(error["extensions"]["retryable"], false);
            let message = error["message"].as_str().unwrap();
            assert!(
                message.contains("10000 rows") && message.contains("tokenConnection"),
                "{message}"
            );
        }
        let page = "{ tokenConnection(first: 1000) { edges { cursor } pageInfo { hasNextPage } } }";
        let page = api.data(page, json!({})).await["tokenConnection"].take();
        assert_eq!(page["edges"].as_array().map(Vec::len), Some(1_000));
        assert_eq!(page["pageInfo"]["hasNextPage"], true);
    }

    pub async fn a_list_of_too_many_bytes_is_refused(api: Api) {
        api.create_review("w").await;
        let workflow = review_workflow("w");
        // Small values take far more in memory than as JSON: 5 MB each.
        for _ in 0..12 {
            let token = new_token(&workflow, json!(vec![0; 150_000]));
            api.storage().insert_token(token).await.unwrap();
        }
        let details = json!({ "rowsMax": 10_000, "bytesMax": 50_331_648 });
        for list in
            ["{ tokens { id } }", "{ tokensInPlace(workflowId: \"w\", placeId: \"draft\") { id } }"]
        {
            let error = api.error(list, json!({})).await;
            assert_eq!(code(&error), ("RESULT_TOO_LARGE", &details));
        }
        // A page ends early instead, and all pages of one request together are bounded.
        let page = "tokenConnection(first: 1000) { edges { cursor } pageInfo { hasNextPage } }";
        let pages = |count: usize| (0..count).map(|n| format!("p{n}: {page} ")).collect::<String>();
        let answer = api.data(&format!("{{ {} }}", pages(2)), json!({})).await;
        assert_eq!(answer["p0"]["edges"].as_array().map(Vec::len), Some(1));
        assert_eq!(answer["p1"]["pageInfo"]["hasNextPage"], true);
        let answer = api.ask(&format!("{{ {} }}", pages(20)), json!({})).await;
        assert_eq!(code(&answer["errors"][0]).0, "RESULT_TOO_LARGE");
    }

    pub async fn an_answer_of_too_many_values_is_refused(api: Api) {
        api.create_review("w").await;
        let token = api.create_token("w", json!(vec![0; 90_000])).await;
        let again = |count: usize| {
            let one = |n: usize| format!("a{n}: token(id: \"{token}\") {{ data }} ");
            format!("{{ {} }}", (0..count).map(one).collect::<String>())
        };
        api.data(&again(2), json!({})).await;
        let answer = api.ask(&again(30), json!({})).await;
        let details = json!({ "rowsMax": 10_000, "bytesMax": 33_554_432 });
        for error in answer["errors"].as_array().unwrap() {
            assert_eq!(code(error), ("RESULT_TOO_LARGE", &details));
        }
        assert_eq!(answer["data"]["a29"], Value::Null, "it is nullable, so the others stand");
        assert_eq!(answer["data"]["a0"]["data"].as_array().map(Vec::len), Some(90_000));
    }

    pub async fn a_closed_store_is_unavailable_and_nothing_was_done(api: Api) {
        let token = api.create_reviewed().await;
        api.storage().close().await;
        for query in [
            "{ token(id: \"TOKEN\") { id } }",
            "{ natsToken(id: \"TOKEN\") { id } }",
            "{ findToken(workflowId: \"w\", tokenId: \"TOKEN\") { id } }",
            "{ workflow(id: \"other\") { id } }",
            "{ workflows { id } }",
            "{ tokens { id } }",
            "{ tokens(workflowId: \"w\") { id } }",
            "{ tokensInPlace(workflowId: \"w\", placeId: \"draft\") { id } }",
            "{ tokenConnection { edges { cursor } } }",
            "{ tokenHistory(tokenId: \"TOKEN\") { edges { cursor } } }",
            "{ availableTransitions(tokenId: \"TOKEN\") { id } }",
            "mutation { createWorkflow(input: { name: \"W\", places: [\"a\"], initialPlace: \"a\", transitions: [] }) { id } }",
            "mutation { createToken(input: { workflowId: \"w\" }) { id } }",
            "mutation { createToken(input: { workflowId: \"other\" }) { id } }",
            "mutation { createWorkflowInstance(input: { workflowId: \"w\" }) { id } }",
            "mutation { fireTransition(input: { tokenId: \"TOKEN\", transitionId: \"submit\" }) { id } }",
            "mutation { transitionTokenWithNats(input: { tokenId: \"TOKEN\", transitionId: \"submit\", newPlace: \"review\" }) { id } }",
        ] {
            let error = api.error(&query.replace("TOKEN", &token), json!({})).await;
            assert_eq!(
                code(&error),
                ("STORAGE_UNAVAILABLE", &json!({ "outcome": "NOT_DONE" })),
                "{query}"
            );
            assert_eq!(error["extensions"]["retryable"], true);
            assert_eq!(error["message"], "the store is not available: it was closed");
        }
        let health = api.data("{ health { status detail } }", json!({})).await;
        assert_eq!(health["health"]["status"], "UNHEALTHY");
    }
}

/// Stores that hold 256 KiB.
fn small_stores() -> Vec<Api> {
    let folder = tempfile::tempdir().unwrap();
    let mut config = SqliteStorageConfig::new(folder.path().join("small.db"));
    config.bytes_max = Some(256 << 10);
    let sqlite = SqliteStorage::open(&config).unwrap();
    vec![
        Api::over(TestStorage::new(Arc::new(InMemoryStorage::with_bytes_max(256 << 10)))),
        Api::over(TestStorage { folder: Some(folder), ..TestStorage::new(Arc::new(sqlite)) }),
    ]
}

#[test]
fn a_full_store_refuses_writes_and_goes_on_reading() {
    for api in small_stores() {
        runtime().block_on(async move {
            let token = api.create_reviewed().await;
            let large = json!({ "text": "x".repeat(20_000) });
            let create = json!({ "input": { "workflowId": "w", "data": large } });
            let mut created = 0;
            while api.ask(CREATE_TOKEN, create.clone()).await.get("errors").is_none() {
                created += 1;
                assert!(created < 13, "it holds no more than 256 KiB");
            }
            assert!(created > 2, "{created}");
            let patch = json!({ "tokenId": token, "transitionId": "edit", "data": large });
            let mut moved =
                json!({ "tokenId": token, "transitionId": "submit", "newPlace": "review" });
            moved["data"] = large.clone();
            let mut definition = review_input("large");
            definition["places"] =
                (0..800).map(|n| json!(format!("{n}{}", "x".repeat(120)))).collect();
            definition["places"]
                .as_array_mut()
                .unwrap()
                .extend(["draft", "review", "done"].map(|place| json!(place)));
            for (query, input) in [
                (CREATE_TOKEN, create["input"].clone()),
                (CREATE_INSTANCE, json!({ "workflowId": "w", "initialData": large })),
                (FIRE, patch),
                (MOVE, moved),
                (CREATE_WORKFLOW, definition),
            ] {
                let message = api
                    .refused(query, json!({ "input": input }), "STORAGE_FULL", Value::Null)
                    .await;
                assert!(message.starts_with("the store is full: "), "{message}");
            }
            let read = api
                .data(
                    "query($id: String!) { token(id: $id) { place version } }",
                    json!({ "id": token }),
                )
                .await;
            assert_eq!(read["token"], json!({ "place": "draft", "version": 3 }));
        });
    }
}

/// How the writes of a [`Faulty`] store end.
#[derive(Clone, Copy)]
enum Fault {
    /// They are done, but nobody hears of it.
    AnswerLost,
    /// Others always come first.
    Conflict,
    /// The same, and by then the id is another token's.
    IdUsedAgain,
    /// What is stored cannot be read; reads end so, too.
    Corrupt,
}

/// A store in memory whose writes fail after the first few.
struct Faulty {
    inner: InMemoryStorage,
    fault: Fault,
    good_writes: usize,
    writes: AtomicUsize,
}

const SECRET: &str = "the password is hunter2";

impl Faulty {
    fn fault<T>(&self, done: Result<T, StorageError>) -> Result<T, StorageError> {
        if self.writes.fetch_add(1, Ordering::SeqCst) < self.good_writes {
            return done;
        }
        done?;
        let reason = SECRET.to_owned();
        match self.fault {
            Fault::AnswerLost => {
                Err(StorageError::OutcomeUnknown { reason: "no answer came".to_owned() })
            }
            Fault::Conflict | Fault::IdUsedAgain => {
                Err(StorageError::Conflict { token: Uuid::nil(), expected: Sequence(1) })
            }
            Fault::Corrupt => Err(StorageError::Corrupt { what: "a record".to_owned(), reason }),
        }
    }
}

#[async_trait]
impl WorkflowStorage for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }
    async fn insert_workflow(
        &self,
        definition: WorkflowDefinition,
        event: WorkflowEvent,
    ) -> Result<(), StorageError> {
        self.fault(self.inner.insert_workflow(definition, event).await)
    }
    async fn load_workflow(
        &self,
        id: &WorkflowId,
    ) -> Result<Option<WorkflowDefinition>, StorageError> {
        self.inner.load_workflow(id).await
    }
    async fn list_workflows(
        &self,
        after: Option<&WorkflowId>,
        limit: PageLimit,
    ) -> Result<Page<WorkflowDefinition>, StorageError> {
        WorkflowStorage::list_workflows(&self.inner, after, limit).await
    }
    async fn insert_token(&self, change: Change) -> Result<StoredToken, StorageError> {
        self.fault(self.inner.insert_token(change).await)
    }
    async fn commit(
        &self,
        expected: Sequence,
        change: Change,
    ) -> Result<StoredToken, StorageError> {
        if matches!(self.fault, Fault::Conflict | Fault::IdUsedAgain) {
            let nothing = self.inner.load_token(change.token.id, None).await?;
            return self.fault(Ok(nothing.unwrap()));
        }
        self.fault(self.inner.commit(expected, change).await)
    }
    async fn load_token(
        &self,
        id: Uuid,
        workflow: Option<&WorkflowId>,
    ) -> Result<Option<StoredToken>, StorageError> {
        let found = self.inner.load_token(id, workflow).await?;
        let refused = self.writes.load(Ordering::SeqCst) > self.good_writes;
        Ok(match found {
            Some(found) if refused && matches!(self.fault, Fault::IdUsedAgain) => {
                let mut token = found.token.as_ref().clone();
                token.created_at += chrono::TimeDelta::seconds(1);
                Some(StoredToken { token: Arc::new(token), ..found })
            }
            found => found,
        })
    }
    fn life(&self) -> u64 {
        self.inner.life()
    }

    fn token_at_hand(&self, id: uuid::Uuid) -> Option<StoredToken> {
        self.inner.token_at_hand(id)
    }

    async fn message_time(
        &self,
        revision: Sequence,
    ) -> Result<Option<chrono::DateTime<chrono::Utc>>, StorageError> {
        self.inner.message_time(revision).await
    }

    async fn list_tokens(
        &self,
        scope: &TokenScope,
        after: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredToken>, StorageError> {
        WorkflowStorage::list_tokens(&self.inner, scope, after, limit).await
    }
    async fn token_moves(
        &self,
        token: &Token,
        before: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredEvent>, StorageError> {
        match self.fault {
            Fault::Corrupt => Err(StorageError::Corrupt {
                what: "an event".to_owned(),
                reason: SECRET.to_owned(),
            }),
            _ => self.inner.token_moves(token, before, limit).await,
        }
    }
    async fn list_events(
        &self,
        workflow: Option<&WorkflowId>,
        after: Option<Sequence>,
        limit: PageLimit,
    ) -> Result<Page<StoredEvent>, StorageError> {
        self.inner.list_events(workflow, after, limit).await
    }
    async fn figures(&self) -> Vec<Figure> {
        self.inner.figures().await
    }

    async fn health(&self) -> StorageHealth {
        self.inner.health().await
    }
    async fn close(&self) {
        self.inner.close().await;
    }
}

/// A store that begins to fail once the review workflow and one token are there; the token's id.
async fn failing(fault: Fault) -> (Arc<Faulty>, Api, String) {
    let storage = Arc::new(Faulty {
        inner: InMemoryStorage::new(),
        fault,
        good_writes: 2,
        writes: AtomicUsize::new(0),
    });
    let api = Api::over(TestStorage::new(Arc::clone(&storage) as Arc<dyn WorkflowStorage>));
    api.create_review("w").await;
    let token = api.create_token("w", json!({})).await;
    (storage, api, token)
}

#[test]
fn a_lost_answer_is_an_unknown_outcome_that_a_careful_retry_clears_up() {
    runtime().block_on(async {
        let (_, api, token) = failing(Fault::AnswerLost).await;
        let id = "01890a5d-ac96-774b-bcce-b302099a8057";
        let moves = json!({ "tokenId": token, "transitionId": "submit", "expectedVersion": 1 });
        let moved = json!({ "tokenId": token, "transitionId": "reject", "newPlace": "draft", "expectedVersion": 2 });
        for (query, input, on_retry) in [
            (CREATE_TOKEN, json!({ "id": id, "workflowId": "w" }), Some("TOKEN_EXISTS")),
            (FIRE, moves, Some("CONFLICT")),
            (MOVE, moved, Some("CONFLICT")),
            (CREATE_WORKFLOW, review_input("new"), None),
        ] {
            let input = json!({ "input": input });
            let error = api.error(query, input.clone()).await;
            assert_eq!(code(&error), ("STORAGE_UNAVAILABLE", &json!({ "outcome": "UNKNOWN" })), "{query}");
            assert_eq!(error["extensions"]["retryable"], true);
            assert_eq!(error["message"], "the store did not confirm the write: no answer came");
            let again = api.ask(query, input).await;
            let again = again.get("errors").map(|errors| code(&errors[0]).0);
            assert_eq!(again, on_retry, "{query}: the retry finds it done");
        }
        let stored = api.everything().await;
        assert_eq!((stored.workflows.len(), stored.tokens.len()), (2, 2));
        assert_eq!(stored.tokens[1].token.version, 3, "each move was made once");
    });
}

#[test]
fn a_token_that_others_always_move_first_is_a_conflict_after_64_attempts() {
    runtime().block_on(async {
        let (storage, api, token) = failing(Fault::Conflict).await;
        let details = json!({ "tokenId": token, "attempts": 64 });
        for (round, version) in [(1, Value::Null), (2, json!(1))] {
            let input = json!({ "input": { "tokenId": token, "transitionId": "submit", "expectedVersion": version } });
            let message = api.refused(FIRE, input, "CONFLICT", details.clone()).await;
            assert!(message.starts_with(&format!("token {token} was moved by others during each of 64")), "{message}");
            assert_eq!(storage.writes.load(Ordering::SeqCst), 2 + 64 * round);
        }
    });
}

/// A token is completed and ages, and its id is used again, while a move of it is tried.
#[test]
fn a_move_does_not_reach_another_token_that_has_got_the_id() {
    runtime().block_on(async {
        let (storage, api, token) = failing(Fault::IdUsedAgain).await;
        let input = json!({ "input": { "tokenId": token, "transitionId": "submit" } });
        let error = api.error(FIRE, input).await;
        assert_eq!(error["extensions"]["code"], "TOKEN_NOT_FOUND", "{error}");
        assert_eq!(storage.writes.load(Ordering::SeqCst), 3, "it was tried once");
    });
}

#[test]
fn a_defect_is_told_by_an_id_and_by_nothing_else() {
    runtime().block_on(async {
        let (_, api, token) = failing(Fault::Corrupt).await;
        let create = "mutation { createToken(input: { workflowId: \"w\" }) { id } }";
        let history = format!("{{ tokenHistory(tokenId: \"{token}\") {{ edges {{ cursor }} }} }}");
        let mut ids = Vec::new();
        for query in [create, &history, create] {
            let error = api.error(query, json!({})).await;
            let (code, details) = code(&error);
            assert_eq!((code, details.as_object().unwrap().len()), ("INTERNAL", 1));
            assert_eq!(error["extensions"]["retryable"], false);
            let id = details["errorId"].as_str().unwrap().to_owned();
            assert_eq!(
                error["message"],
                format!("internal error {id}; the server's log says more under this id")
            );
            assert!(
                !error.to_string().contains("hunter2") && !error.to_string().contains("record")
            );
            ids.push(Uuid::parse_str(&id).unwrap());
        }
        ids.dedup();
        assert_eq!(ids.len(), 3, "each has an id of its own");
    });
}
