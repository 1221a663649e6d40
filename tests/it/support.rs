//! What several tests need: workflows, schemas, a server in a process of its own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use async_graphql::Request;
use circuit_breaker::domain::limits::STEPS_MAX;
use circuit_breaker::domain::{
    Caller, Change, Deciding, MoveError, MoveRequest, NewToken, Steps, Token, TransitionDraft,
    Workflow, WorkflowDefinition, WorkflowDraft, WorkflowId,
};
use circuit_breaker::graphql::CircuitBreakerSchema;
use circuit_breaker::storage::{PageLimit, StoredEvent, StoredToken, TokenScope, WorkflowStorage};
use circuit_breaker::{
    InMemoryStorage, NATSStorage, NATSStorageConfig, SqliteStorage, SqliteStorageConfig,
    create_schema_with_storage,
};
use serde_json::{Value, json};

use crate::nats_server::{self, NatsServer};

/// Makes a test of each function of the module `case`: it gets an [`Api`] over each backend in turn.
macro_rules! on_every_backend {
    ($($case:ident)*) => {
        $(#[test] fn $case() {
            for backend in crate::support::Backend::all() {
                let api = crate::support::Api::new(backend);
                crate::support::runtime().block_on(case::$case(api));
            }
        })*
    };
}
pub(crate) use on_every_backend;

/// The backends that every case runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Memory,
    Sqlite,
    Nats,
    /// On the oldest nats-server that the product works with.
    NatsOldest,
}

impl Backend {
    /// Those that can be tested here: without a nats-server all but one.
    pub fn all() -> Vec<Backend> {
        let mut all = vec![Backend::Memory, Backend::Sqlite];
        all.extend(nats_server::binary().map(|_| Backend::Nats));
        all
    }

    pub fn is_here(self) -> bool {
        self == Backend::NatsOldest && nats_server::oldest_binary().is_some()
            || Backend::all().contains(&self)
    }

    pub fn open(self) -> TestStorage {
        match self {
            Backend::Memory => TestStorage::new(Arc::new(InMemoryStorage::new())),
            Backend::Sqlite => {
                let folder = tempfile::tempdir().unwrap();
                let storage = open_sqlite(&folder.path().join("test.db"));
                TestStorage { folder: Some(folder), ..TestStorage::new(storage) }
            }
            Backend::Nats => TestStorage::on(NatsServer::start().expect("see is_here")),
            Backend::NatsOldest => {
                let binary = nats_server::oldest_binary().expect("see is_here");
                TestStorage::on(NatsServer::with(binary, &["-js"]))
            }
        }
    }
}

pub fn open_sqlite(path: &Path) -> Arc<SqliteStorage> {
    Arc::new(SqliteStorage::open(&SqliteStorageConfig::new(path)).unwrap())
}

/// A store that is gone, with its files and servers, when the test ends.
pub struct TestStorage {
    pub storage: Arc<dyn WorkflowStorage>,
    pub folder: Option<tempfile::TempDir>,
    pub nats: Option<NatsServer>,
    /// Where the tasks of a store run that has some; it ends with the store.
    pub _runtime: Option<BackgroundRuntime>,
}

pub struct BackgroundRuntime(Option<tokio::runtime::Runtime>);

impl TestStorage {
    pub fn new(storage: Arc<dyn WorkflowStorage>) -> Self {
        Self { storage, folder: None, nats: None, _runtime: None }
    }

    /// A store on a nats-server that is there already.
    pub fn on(server: NatsServer) -> Self {
        let runtime = runtime();
        // Not built for speed, and beside other tests, 10,000 rows take longer than in a release.
        let consumer_timeout = Duration::from_secs(30);
        let config = NATSStorageConfig { consumer_timeout, ..server.config() };
        let storage = runtime.block_on(NATSStorage::new(config)).unwrap();
        let _runtime = Some(BackgroundRuntime(Some(runtime)));
        Self { nats: Some(server), _runtime, ..Self::new(Arc::new(storage)) }
    }
}

impl Drop for BackgroundRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Also where a test drops it in a task, which must not block.
            runtime.shutdown_background();
        }
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub fn transition(id: &str, from: &[&str], to: &str) -> TransitionDraft {
    TransitionDraft {
        id: id.to_owned(),
        from_places: from.iter().map(ToString::to_string).collect(),
        to_place: to.to_owned(),
        ..TransitionDraft::default()
    }
}

/// draft -> review -> done, back from review to draft, and a loop on draft.
pub fn review_draft(id: &str) -> WorkflowDraft {
    WorkflowDraft {
        id: Some(id.to_owned()),
        name: "Document review".to_owned(),
        places: ["draft", "review", "done"].map(str::to_owned).to_vec(),
        transitions: vec![
            transition("submit", &["draft"], "review"),
            transition("reject", &["review"], "draft"),
            transition("finish", &["review"], "done"),
            transition("edit", &["draft"], "draft"),
        ],
        initial_place: "draft".to_owned(),
        ..WorkflowDraft::default()
    }
}

pub fn review_workflow(id: &str) -> Workflow {
    Workflow::check(review_draft(id), now()).unwrap()
}

pub fn now() -> chrono::DateTime<chrono::Utc> {
    chrono::DateTime::from_timestamp_millis(1_764_000_000_123).unwrap()
}

pub fn new_token(workflow: &Workflow, data: Value) -> Change {
    let request = NewToken { data, triggered_by: Some("tester".to_owned()), ..NewToken::default() };
    let id: [u8; 16] = std::array::from_fn(|_| fastrand::u8(..));
    workflow
        .create_token(
            request,
            uuid::Builder::from_random_bytes(id).into_uuid(),
            &Caller::anyone(),
            now(),
        )
        .unwrap()
}

pub fn fired(workflow: &Workflow, stored: &StoredToken, transition: &str) -> Change {
    decided(workflow, &stored.token, &move_request(transition)).unwrap()
}

/// The decision on a request of somebody.
pub fn decided(
    workflow: &Workflow,
    token: &Token,
    request: &MoveRequest,
) -> Result<Change, MoveError> {
    let steps = Arc::new(Steps::new(STEPS_MAX));
    workflow.fire(
        token,
        request,
        &Deciding { caller: &Caller::anyone(), now: now(), steps: &steps },
    )
}

pub fn move_request(transition: &str) -> MoveRequest {
    MoveRequest {
        transition: transition.parse().unwrap(),
        new_place: None,
        data: None,
        triggered_by: None,
        expected_version: None,
    }
}

/// The token as the domain knows it; where it stands on the bus, only the bus knows.
pub fn without_place_on_bus(token: &Token) -> Token {
    let mut token = token.clone();
    (token.nats_sequence, token.nats_timestamp, token.nats_subject) = (None, None, None);
    token.transition_history.iter_mut().for_each(|record| record.nats_sequence = None);
    token
}

/// A token that was read, as the write that made it has answered: without the time of its message.
pub fn as_written(stored: &StoredToken) -> StoredToken {
    let token = Token { nats_timestamp: None, ..Token::clone(&stored.token) };
    StoredToken { token: Arc::new(token), revision: stored.revision }
}

pub fn workflow_id(id: &str) -> WorkflowId {
    id.parse().unwrap()
}

/// A schema over a store, asked as a client would.
pub struct Api {
    pub schema: CircuitBreakerSchema,
    store: TestStorage,
}

/// All that a store holds, down to the last event.
#[derive(Debug, PartialEq)]
pub struct Everything {
    pub workflows: Vec<WorkflowDefinition>,
    pub tokens: Vec<StoredToken>,
    pub events: Vec<StoredEvent>,
}

impl Api {
    pub fn new(backend: Backend) -> Self {
        Self::over(backend.open())
    }

    pub fn over(store: TestStorage) -> Self {
        Self { schema: create_schema_with_storage(Arc::clone(&store.storage)), store }
    }

    pub fn storage(&self) -> &Arc<dyn WorkflowStorage> {
        &self.store.storage
    }

    /// The nats-server under a store on NATS.
    pub fn nats(&self) -> &NatsServer {
        self.store.nats.as_ref().unwrap()
    }

    /// All that the store holds now.
    pub async fn everything(&self) -> Everything {
        let limit = PageLimit { rows: 100_000, bytes: 1 << 30 };
        let storage = self.storage();
        Everything {
            workflows: storage.list_workflows(None, limit).await.unwrap().items,
            tokens: storage.list_tokens(&TokenScope::All, None, limit).await.unwrap().items,
            events: storage.list_events(None, None, limit).await.unwrap().items,
        }
    }

    /// The whole answer.
    pub async fn ask(&self, query: &str, variables: Value) -> Value {
        let request = Request::new(query).variables(async_graphql::Variables::from_json(variables));
        serde_json::to_value(self.schema.execute(request).await).unwrap()
    }

    /// The data of an answer that must have no error.
    pub async fn data(&self, query: &str, variables: Value) -> Value {
        let mut answer = self.ask(query, variables).await;
        assert!(answer.get("errors").is_none(), "{query}\n{answer:#}");
        answer["data"].take()
    }

    /// The one error of an answer that must have one, and whose fields must be null.
    pub async fn error(&self, query: &str, variables: Value) -> Value {
        let mut answer = self.ask(query, variables).await;
        let errors = answer["errors"].as_array().cloned().unwrap_or_default();
        assert_eq!(errors.len(), 1, "{query}\n{answer:#}");
        assert!(
            answer["data"].take().as_object().is_none_or(|data| data.values().all(Value::is_null))
        );
        errors[0].clone()
    }

    /// Creates the review workflow.
    pub async fn create_review(&self, id: &str) {
        self.data(CREATE_WORKFLOW, json!({ "input": review_input(id) })).await;
    }

    /// Creates a token in it.
    pub async fn create_token(&self, workflow: &str, data: Value) -> String {
        let query = "mutation($input: TokenCreateInput!) { createToken(input: $input) { id } }";
        let created =
            self.data(query, json!({ "input": { "workflowId": workflow, "data": data } })).await;
        created["createToken"]["id"].as_str().unwrap().to_owned()
    }

    /// Asks, and checks that the answer is this one error and that nothing has changed. Gives the
    /// message. Without details, `details` is null.
    pub async fn refused(
        &self,
        query: &str,
        variables: Value,
        code: &str,
        details: Value,
    ) -> String {
        let before = self.everything().await;
        let error = self.error(query, variables.clone()).await;
        let mut expected = json!({ "code": code, "retryable": false });
        if !details.is_null() {
            expected["details"] = details;
        }
        assert_eq!(error["extensions"], expected, "{query} {variables:.200}\n{error:#}");
        assert_eq!(self.everything().await, before, "{query} {variables:.200}");
        error["message"].as_str().unwrap().to_owned()
    }

    /// The review workflow as `w` with a token in `draft` that has been to `review` and back.
    pub async fn create_reviewed(&self) -> String {
        self.create_review("w").await;
        let token = self.create_token("w", json!({ "title": "Plan" })).await;
        self.fire(&token, "submit").await;
        self.fire(&token, "reject").await;
        token
    }

    /// Fires a transition and gives the token's place, version and data.
    pub async fn fire(&self, token: &str, transition: &str) -> Value {
        self.data(FIRE, json!({ "input": { "tokenId": token, "transitionId": transition } })).await
            ["fireTransition"]
            .take()
    }
}

pub const CREATE_WORKFLOW: &str =
    "mutation($input: WorkflowDefinitionInput!) { createWorkflow(input: $input) { id } }";
pub const FIRE: &str = "mutation($input: TransitionFireInput!) { fireTransition(input: $input) { id place version data } }";

pub const CREATE_INSTANCE: &str = "mutation($input: CreateWorkflowInstanceInput!) { createWorkflowInstance(input: $input) { id } }";
pub const CREATE_TOKEN: &str =
    "mutation($input: TokenCreateInput!) { createToken(input: $input) { id } }";
pub const MOVE: &str = "mutation($input: TransitionTokenWithNATSInput!) { transitionTokenWithNats(input: $input) { id } }";

/// [`review_draft`] as a client sends it.
pub fn review_input(id: &str) -> Value {
    json!({
        "id": id, "name": "Document review", "places": ["draft", "review", "done"], "initialPlace": "draft",
        "transitions": [
            { "id": "submit", "fromPlaces": ["draft"], "toPlace": "review" },
            { "id": "reject", "fromPlaces": ["review"], "toPlace": "draft" },
            { "id": "finish", "fromPlaces": ["review"], "toPlace": "done" },
            { "id": "edit", "fromPlaces": ["draft"], "toPlace": "draft" },
        ],
    })
}

/// The real binary, killed when the test ends.
pub struct Server {
    child: Child,
    pub address: String,
    log: Arc<Log>,
    reader: Option<std::thread::JoinHandle<()>>,
}

/// What a server has written so far.
#[derive(Default)]
struct Log {
    text: Mutex<String>,
    grown: Condvar,
}

impl Log {
    /// Waits until some text is there, or the reader has ended without it.
    fn wait_for(&self, text: &str) {
        let log = self.text.lock().unwrap();
        let missing = |log: &mut String| !log.contains(text);
        let (log, outcome) = self.grown.wait_timeout_while(log, PROCESS_TIME_MAX, missing).unwrap();
        assert!(!outcome.timed_out(), "the server did not say {text:?}:\n{log}");
    }
}

/// Time for a server to start or stop; it takes milliseconds, but machines can be busy.
const PROCESS_TIME_MAX: Duration = Duration::from_secs(60);

pub fn server_binary() -> PathBuf {
    env!("CARGO_BIN_EXE_server").into()
}

/// The command that starts a server with nothing but `variables` in its environment.
pub fn server_command(variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(server_binary());
    command.env_clear().env("LISTEN_ADDR", "127.0.0.1:0").envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Server {
    /// Starts one and waits until it says where it listens.
    pub fn start(variables: &[(&str, &str)]) -> Self {
        let mut child = server_command(variables).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let (mut log, mut address) = (String::new(), None);
        while address.is_none() {
            let mut line = String::new();
            assert_ne!(
                lines.read_line(&mut line).unwrap(),
                0,
                "the server ended before it listened:\n{log}"
            );
            address = line
                .split("listening on http://")
                .nth(1)
                .map(|rest| rest.split(',').next().unwrap().to_owned());
            log.push_str(&line);
        }
        let log = Arc::new(Log { text: Mutex::new(log), grown: Condvar::new() });
        let shared = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in lines.lines() {
                *shared.text.lock().unwrap() += &(line.unwrap() + "\n");
                shared.grown.notify_all();
            }
        });
        Self { child, address: address.unwrap(), log, reader: Some(reader) }
    }

    /// kill -9. Gives the log.
    pub fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.whole_log()
    }

    /// SIGTERM, and waits for the end. Gives the exit status and the log.
    pub fn stop(mut self) -> (ExitStatus, String) {
        self.terminate();
        let deadline = Instant::now() + PROCESS_TIME_MAX;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the server did not stop");
            std::thread::sleep(Duration::from_millis(2));
        };
        (status, self.whole_log())
    }

    /// Waits until the server has logged some text.
    pub fn wait_for_log(&self, text: &str) {
        self.log.wait_for(text);
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.text.lock().unwrap().clone()
    }

    fn whole_log(&mut self) -> String {
        self.reader.take().unwrap().join().unwrap();
        std::mem::take(&mut self.log.text.lock().unwrap())
    }

    pub fn terminate(&self) {
        let status =
            Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn client(&self) -> Client {
        Client::new(&self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended; and after a failed test there is nobody to tell.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// An HTTP client with one connection.
pub struct Client {
    agent: ureq::Agent,
    base: String,
}

impl Client {
    pub fn new(address: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(PROCESS_TIME_MAX))
            .max_idle_connections(1);
        Self { agent: config.build().into(), base: format!("http://{address}") }
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        let mut answer = self.agent.get(format!("{}{path}", self.base)).call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    }

    /// Posts a body. An error is one of the connection, as after a kill.
    pub fn post(&self, content_type: &str, body: &[u8]) -> Result<(u16, Value), ureq::Error> {
        let request =
            self.agent.post(format!("{}/graphql", self.base)).header("content-type", content_type);
        let mut answer = request.send(body)?;
        let text = answer.body_mut().with_config().limit(64 << 20).read_to_string()?;
        let value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"));
        Ok((answer.status().as_u16(), value))
    }

    pub fn ask(&self, query: &str, variables: &Value) -> Result<Value, ureq::Error> {
        let body = json!({ "query": query, "variables": variables }).to_string();
        Ok(self.post("application/json", body.as_bytes())?.1)
    }
}
