//! Random operations, the same on two backends, must give the same answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, Utc};
use circuit_breaker::domain::{Caller, MoveRequest, NewToken, WorkflowDraft};
use circuit_breaker::engine::{Engine, EngineError, Session, TokenPageRequest, World};
use circuit_breaker::storage::{Sequence, StoredToken};
use fastrand::Rng;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    Backend, TestStorage, now, open_sqlite, review_draft, runtime, transition,
    without_place_on_bus, workflow_id,
};

const OPERATIONS: usize = 4_000;

/// A world in which every moment and every random number is the next of a list.
struct Listed(AtomicU64);

impl World for Listed {
    fn now(&self) -> DateTime<Utc> {
        let step = self.0.fetch_add(1, Ordering::Relaxed);
        now() + chrono::TimeDelta::microseconds(i64::try_from(step).unwrap())
    }
    fn random(&self) -> [u8; 16] {
        Rng::with_seed(self.0.fetch_add(1, Ordering::Relaxed)).u128(..).to_be_bytes()
    }
}

struct Subject {
    world: Arc<Listed>,
    engine: Arc<Engine>,
    store: TestStorage,
}

impl Subject {
    fn new(backend: Backend) -> Self {
        let (store, world) = (backend.open(), Arc::new(Listed(AtomicU64::new(0))));
        let engine = Arc::new(Engine::with_world(
            Arc::clone(&store.storage),
            Arc::clone(&world) as Arc<dyn World>,
        ));
        Self { world, engine, store }
    }
}

#[derive(Debug, Clone)]
enum Operation {
    CreateWorkflow(WorkflowDraft),
    CreateToken { workflow: String, id: Option<Uuid>, place: Option<String>, data: Value },
    Fire { token: Uuid, request: MoveRequest },
    Read { token: Uuid, workflow: Option<String> },
    Available { token: Uuid },
    List { workflow: Option<String>, place: Option<String>, first: usize },
    History { token: Uuid, first: usize },
    Events { workflow: Option<String> },
}

fn pick<'a, T>(random: &mut Rng, from: &'a [T]) -> &'a T {
    &from[random.usize(..from.len())]
}

const WORKFLOWS: [&str; 3] = ["alpha", "beta", "gamma"];
const PLACES: [&str; 4] = ["draft", "review", "done", "nowhere"];
const TRANSITIONS: [&str; 6] = ["submit", "reject", "finish", "edit", "approve", "unknown"];

fn draft(random: &mut Rng) -> WorkflowDraft {
    let mut draft = review_draft(pick::<&str>(random, &WORKFLOWS));
    let mut approve = transition("approve", &["review", "draft"], "done");
    approve.conditions =
        vec!["token.data.amount < 50".to_owned(), "!has(token.data.blocked)".to_owned()];
    draft.transitions.push(approve);
    match random.u8(..10) {
        0 => draft.places.push("draft".to_owned()),
        1 => draft.transitions[0].conditions.push("token.data. <".to_owned()),
        2 => draft.name = "Another".to_owned(),
        _ => {}
    }
    draft
}

fn data(random: &mut Rng) -> Value {
    match random.u8(..6) {
        0 => json!({ "amount": random.u32(..100) }),
        1 => json!({ "amount": null, "note": "x".repeat(random.usize(..2_000)) }),
        2 => json!({ "blocked": random.bool() }),
        3 => json!({ "blocked": null, "nested": { "a": [1, 2.5, "three", random.u64(..)] } }),
        4 => json!([random.u8(..), "an array"]),
        _ => json!({}),
    }
}

fn operation(random: &mut Rng, tokens: &[Uuid]) -> Operation {
    let some_workflow =
        |random: &mut Rng| random.bool().then(|| (*pick(random, &WORKFLOWS[..])).to_owned());
    let token = if tokens.is_empty() || random.u8(..20) == 0 {
        Uuid::from_u128(random.u128(..))
    } else {
        *pick(random, tokens)
    };
    match random.u8(..100) {
        0..5 => Operation::CreateWorkflow(draft(random)),
        5..25 => Operation::CreateToken {
            workflow: (*pick(random, &WORKFLOWS[..])).to_owned(),
            id: (random.u8(..4) == 0).then_some(token),
            place: (random.u8(..3) == 0).then(|| (*pick(random, &PLACES)).to_owned()),
            data: data(random),
        },
        25..70 => Operation::Fire {
            token,
            request: MoveRequest {
                transition: pick(random, &TRANSITIONS).parse().unwrap(),
                new_place: (random.u8(..4) == 0).then(|| pick(random, &PLACES).parse().unwrap()),
                data: random.bool().then(|| data(random)),
                triggered_by: random.bool().then(|| "model".to_owned()),
                expected_version: (random.u8(..4) == 0).then(|| random.u32(1..4)),
            },
        },
        70..80 => Operation::Read { token, workflow: some_workflow(random) },
        80..85 => Operation::Available { token },
        85..92 => {
            let (workflow, first) = (some_workflow(random), random.usize(0..20));
            Operation::List {
                workflow,
                place: random.bool().then(|| (*pick(random, &PLACES)).to_owned()),
                first,
            }
        }
        92..97 => Operation::History { token, first: random.usize(1..10) },
        _ => Operation::Events { workflow: some_workflow(random) },
    }
}

/// Does one operation and tells all of the answer that does not depend on the backend.
async fn perform(subject: &Subject, operation: Operation) -> Result<String, EngineError> {
    let session = || subject.engine.session(Caller::anyone());
    let engine = &session();
    let shown = |stored: &StoredToken| format!("{:?}", without_place_on_bus(&stored.token));
    match operation {
        Operation::CreateWorkflow(draft) => {
            Ok(format!("{:?}", engine.create_workflow(draft).await?.definition()))
        }
        Operation::CreateToken { workflow, id, place, data } => {
            let place = place.map(|place| place.parse().unwrap());
            let request = NewToken { place, data, ..NewToken::default() };
            engine
                .create_token(&workflow_id(&workflow), id, request)
                .await
                .map(|stored| shown(&stored))
        }
        Operation::Fire { token, request } => {
            engine.fire(token, request).await.map(|stored| shown(&stored))
        }
        Operation::Read { token, workflow: None } => {
            Ok(format!("{:?}", engine.token(token).await?.map(|read| shown(&read))))
        }
        Operation::Read { token, workflow: Some(workflow) } => Ok(format!(
            "{:?}",
            engine.token_of(&workflow_id(&workflow), token).await?.map(|read| shown(&read))
        )),
        Operation::Available { token } => {
            Ok(format!("{:?}", engine.available_transitions(token, None).await?))
        }
        Operation::List { workflow, place, first } => list(session, workflow, place, first).await,
        Operation::History { token, first } => {
            let (mut text, mut before) = (String::new(), None::<Sequence>);
            loop {
                let page = session().token_history(token, first, before).await?;
                before = page.items.last().map(|stored| stored.sequence);
                text += &format!(
                    "{:?} {}\n",
                    page.items.iter().map(|item| &item.event).collect::<Vec<_>>(),
                    page.more
                );
                if !page.more {
                    return Ok(text);
                }
            }
        }
        Operation::Events { workflow } => {
            let workflow = workflow.map(|id| workflow_id(&id));
            let limit =
                circuit_breaker::storage::PageLimit { rows: usize::MAX / 2, bytes: usize::MAX };
            let page = subject.store.storage.list_events(workflow.as_ref(), None, limit).await?;
            Ok(format!("{:?}", page.items.iter().map(|item| &item.event).collect::<Vec<_>>()))
        }
    }
}

/// Each page is a request of its own, as a client asks for it.
async fn list(
    session: impl Fn() -> Session,
    workflow: Option<String>,
    place: Option<String>,
    first: usize,
) -> Result<String, EngineError> {
    let (mut text, mut after) = (String::new(), None);
    loop {
        let request = TokenPageRequest {
            workflow: workflow.as_deref().map(workflow_id),
            place: place.as_deref().map(|place| place.parse().unwrap()),
            first,
            after,
        };
        let page = session().token_page(request).await?;
        after = page.items.last().map(|stored| stored.revision);
        text += &format!(
            "{:?} {}\n",
            page.items.iter().map(|item| without_place_on_bus(&item.token)).collect::<Vec<_>>(),
            page.more
        );
        if !page.more {
            return Ok(text);
        }
    }
}

fn agree(seed: u64, backend: Backend) {
    if !backend.is_here() {
        return;
    }
    let (memory, other) = (Subject::new(Backend::Memory), Subject::new(backend));
    runtime().block_on(compare(seed, memory, other));
}

async fn compare(seed: u64, memory: Subject, mut other: Subject) {
    let mut random = Rng::with_seed(seed);
    let mut tokens = Vec::new();
    let mut worked = 0;
    for step in 0..OPERATIONS {
        let operation = operation(&mut random, &tokens);
        let expected = perform(&memory, operation.clone()).await;
        let answer = perform(&other, operation.clone()).await;
        let show = |answer: &Result<String, EngineError>| match answer {
            Ok(text) => text.clone(),
            Err(error) => format!("{error:?}"),
        };
        let (expected, found) = (show(&expected), show(&answer));
        if expected != found {
            let same = expected.bytes().zip(found.bytes()).take_while(|(a, b)| a == b).count();
            let part = |text: &str| text.chars().skip(same.saturating_sub(200)).take(600).collect();
            let (expected, found): (String, String) = (part(&expected), part(&found));
            panic!(
                "seed {seed}, step {step}: {operation:?}\nbyte {same}\nmemory: {expected}\n other: {found}"
            );
        }
        worked += usize::from(answer.is_ok());
        if let (Operation::CreateToken { .. }, Ok(text)) = (&operation, &answer) {
            let id = text.split("id: ").nth(1).unwrap().split(',').next().unwrap();
            tokens.push(id.parse().unwrap());
        }
        if step % 1_000 == 999 {
            reopen(&mut other).await;
        }
    }
    assert!(worked > OPERATIONS / 3, "seed {seed}: only {worked} operations did something");
    assert!(tokens.len() > 100);
}

/// Closes the store and opens it again; time goes on where it was.
async fn reopen(subject: &mut Subject) {
    subject.store.storage.close().await;
    subject.store.storage = match &subject.store.nats {
        Some(server) => Arc::new(server.open().await),
        None => open_sqlite(&subject.store.folder.as_ref().unwrap().path().join("test.db")),
    };
    let world = Arc::clone(&subject.world) as Arc<dyn World>;
    subject.engine = Arc::new(Engine::with_world(Arc::clone(&subject.store.storage), world));
}

#[test]
fn sqlite_answers_as_memory_does_on_fixed_seeds() {
    for seed in [1, 2] {
        agree(seed, Backend::Sqlite);
    }
}

#[test]
fn sqlite_answers_as_memory_does_on_a_new_seed() {
    agree(fastrand::u64(..), Backend::Sqlite);
}

#[test]
fn nats_answers_as_memory_does_on_a_fixed_seed() {
    agree(3, Backend::Nats);
}

#[test]
fn nats_answers_as_memory_does_on_a_new_seed() {
    agree(fastrand::u64(..), Backend::Nats);
}

#[test]
fn the_oldest_nats_server_answers_as_memory_does() {
    agree(fastrand::u64(..), Backend::NatsOldest);
}
