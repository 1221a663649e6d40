//! A batch that nats-server has cut: what is left of it, whatever that is, becomes whole again.
//!
//! A change is made and its messages are written down. Then, for each number of them, a nats-server
//! gets exactly the first so many, as a cut leaves them, and a server is started on it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use circuit_breaker::NATSStorage;
use circuit_breaker::domain::{
    Caller, EventKind, Workflow, WorkflowDraft, WorkflowEvent, WorkflowId,
};
use circuit_breaker::storage::{PageLimit, StorageError, StoredToken, TokenScope, WorkflowStorage};
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use crate::nats_bus::{Bus, Raw, STREAM};
use crate::nats_proxy::{Cut, Proxy};
use crate::nats_server::NatsServer;
use crate::support::{
    decided, fired, move_request, new_token, now, review_draft, review_workflow, runtime,
    workflow_id,
};

const ALL: PageLimit = PageLimit { rows: 10_000, bytes: 1 << 30 };

/// Within which time what others left is mended by who goes on.
const MENDED_WITHIN: Duration = Duration::from_secs(10);

/// Records of servers behind it.
const RECORDS: usize = 40;

/// An event's workflow, token, version, and whether it is a completion.
type EventKey = (WorkflowId, Option<Uuid>, Option<u32>, bool);

/// What is in a store: the tokens with their versions and places, and the events.
#[derive(Debug, Clone, PartialEq)]
struct Contents {
    tokens: BTreeMap<Uuid, (u32, String)>,
    events: HashMap<EventKey, WorkflowEvent>,
}

/// A change that can be cut.
struct Scene {
    /// The nats-server as it was before, stopped.
    before: NatsServer,
    was: Contents,
    /// What the server had written of itself before the change.
    prelude: Vec<Raw>,
    messages: Vec<Raw>,
    will_be: Contents,
}

async fn contents(storage: &NATSStorage) -> Contents {
    let listed = WorkflowStorage::list_tokens(storage, &TokenScope::All, None, ALL).await.unwrap();
    let mut tokens = BTreeMap::new();
    for stored in &listed.items {
        let token = &stored.token;
        let known = tokens.insert(token.id, (token.version, token.place.to_string()));
        assert_eq!(known, None, "a token is listed twice");
    }
    for place in ["draft", "review", "done"] {
        let scope = TokenScope::Place(workflow_id("w"), place.parse().unwrap());
        let there = WorkflowStorage::list_tokens(storage, &scope, None, ALL).await.unwrap().items;
        let there: Vec<_> = there.iter().map(|stored| stored.token.id).collect();
        let wanted = tokens.iter().filter(|(_, (_, at))| at == place).count();
        assert_eq!(there.len(), wanted, "{place}");
        assert!(there.iter().all(|id| tokens[id].1 == place), "{place}");
    }
    let mut events = HashMap::new();
    for stored in storage.list_events(None, None, ALL).await.unwrap().items {
        let event = stored.event;
        let completed = event.kind == EventKind::TokenCompleted;
        let key = (event.workflow_id.clone(), event.token_id, event.token_version, completed);
        assert_eq!(events.insert(key.clone(), event), None, "two events of {key:?}");
    }
    Contents { tokens, events }
}

/// Makes a change and writes down what it was made of.
async fn scene(act: impl AsyncFn(&Arc<NATSStorage>, &Workflow, Vec<StoredToken>)) -> Option<Scene> {
    let mut before = NatsServer::start()?;
    let workflow = review_workflow("w");
    let storage = before.open().await;
    let created = WorkflowEvent::workflow_created(workflow.definition().id.clone(), now());
    storage.insert_workflow(workflow.definition().clone(), created).await.unwrap();
    // The last one waits in review.
    for n in 0..5 {
        let stored = storage.insert_token(new_token(&workflow, json!({ "n": n }))).await.unwrap();
        let stored = storage.commit(stored.revision, fired(&workflow, &stored, "submit")).await;
        let stored = stored.unwrap();
        if n < 4 {
            storage.commit(stored.revision, fired(&workflow, &stored, "reject")).await.unwrap();
        }
    }
    Bus::connect(&before).await.until_each_token_is_there_once().await;
    let was = contents(&storage).await;
    storage.close().await;
    before.kill();

    let nats = NatsServer::on_copy_of(&before);
    let bus = Bus::connect(&nats).await;
    let begin = bus.last_sequence().await + 1;
    let storage = Arc::new(nats.open().await);
    let tokens = WorkflowStorage::list_tokens(&*storage, &TokenScope::All, None, ALL).await;
    let first = bus.last_sequence().await + 1;
    act(&storage, &workflow, tokens.unwrap().items).await;
    let last = bus.last_sequence().await;
    let mut prelude = Vec::new();
    for sequence in begin..=last {
        // Of the server's own record only the newest is left.
        prelude.push(bus.raw(sequence).await.unwrap_or_else(|| filler(sequence)));
    }
    // It is the first message of each batch, and no part of the change.
    let own = |message: &Raw| message.subject.starts_with("cb.store.");
    let mut begins = (first - begin) as usize;
    while own(&prelude[begins]) {
        begins += 1;
    }
    let messages = prelude.split_off(begins);
    let will_be = contents(&storage).await;
    storage.close().await;
    Some(Scene { before, was, prelude, messages, will_be })
}

/// A part of the change that a cut has left, as a server finds it whose own messages stand before.
async fn publish_shifted(bus: &Bus, messages: &[Raw]) {
    for message in messages {
        let mut message = message.clone();
        message.sequence = bus.last_sequence().await + 1;
        // What they expect of the sender's own records is not there.
        let kept = message.headers.iter();
        let kept = kept.filter(|(name, _)| !name.to_string().starts_with("Nats-Expected"));
        message.headers = kept.map(|(name, values)| (name.clone(), values[0].clone())).collect();
        bus.publish_raw(&message).await;
    }
}

/// What stands where another message has gone.
fn filler(sequence: u64) -> Raw {
    let (subject, headers) = ("cb.store.filler".to_owned(), async_nats::HeaderMap::new());
    Raw { sequence, subject, headers, payload: Vec::new() }
}

/// What a server writes of itself, in place of what it wrote before.
fn record(sequence: u64) -> Raw {
    let mut record = filler(sequence);
    record.headers.insert("Nats-Rollup", "sub");
    record
}

/// What nobody can read: no version has written it.
fn unreadable(sequence: u64) -> Raw {
    let mut record = filler(sequence);
    record.subject = "cb.store.unreadable".to_owned();
    record.headers.insert("Cb-Format", "none");
    record
}

/// What there is after a part of a change: what has its first message has happened, all else has not.
fn after(was: &Contents, will_be: &Contents, part: &[Raw]) -> Contents {
    let happened = |id: &Uuid| {
        part.iter().any(|message| {
            !message.payload.is_empty()
                && message.subject.contains(".places.")
                && message.subject.ends_with(&id.to_string())
        })
    };
    let mut expected = was.clone();
    for (id, token) in will_be.tokens.iter().filter(|(id, _)| happened(id)) {
        expected.tokens.insert(*id, token.clone());
    }
    for (key, event) in &will_be.events {
        let defined = part.iter().any(|m| m.subject.ends_with(".definition"));
        if key.1.map_or(defined, |id| happened(&id)) {
            expected.events.insert(key.clone(), event.clone());
        }
    }
    expected
}

/// Waits until so many tokens stand in the places, and so many events are there.
async fn until_there_are(storage: &NATSStorage, tokens: usize, events: usize) {
    let deadline = Instant::now() + MENDED_WITHIN;
    loop {
        let mut there = 0;
        for place in ["draft", "review", "done"] {
            let scope = TokenScope::Place(workflow_id("w"), place.parse().unwrap());
            let listed = WorkflowStorage::list_tokens(storage, &scope, None, ALL).await;
            there += listed.unwrap().items.len();
        }
        let told = storage.list_events(None, None, ALL).await.unwrap().items.len();
        // What is there else, the comparison tells.
        if (there, told) == (tokens, events) || Instant::now() >= deadline {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Moves a token as it is now. If it was cut, it is mended first, and stands elsewhere then.
async fn move_on(storage: &NATSStorage, workflow: &Workflow, id: Uuid, transition: &str) {
    loop {
        let stored = storage.load_token(id, None).await.unwrap().unwrap();
        let version = stored.token.version + 1;
        match storage.commit(stored.revision, fired(workflow, &stored, transition)).await {
            Ok(moved) => return assert_eq!(moved.token.version, version),
            Err(StorageError::Conflict { .. }) => {}
            Err(error) => panic!("{transition}: {error}"),
        }
    }
}

/// How another server goes on behind a change that was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GoesOn {
    /// It writes something else.
    Elsewhere,
    /// It moves what was cut.
    There,
    /// It writes something else, and does not hear that this is stored; then it moves what was cut.
    Unheard,
    /// Somebody else has written in between, and has not looked yet; then it writes something else, and moves
    /// what was cut.
    Third,
}

/// A whole change of another token, as another server writes it, and that token.
async fn change_of_another(before: &NatsServer) -> (Vec<Raw>, Uuid) {
    let nats = NatsServer::on_copy_of(before);
    let (storage, bus) = (nats.open().await, Bus::connect(&nats).await);
    let first = bus.last_sequence().await + 1;
    let new = new_token(&review_workflow("w"), json!({ "another": 1 }));
    let id = storage.insert_token(new).await.unwrap().token.id;
    let mut messages = Vec::new();
    for sequence in first..=bus.last_sequence().await {
        messages.extend(bus.raw(sequence).await);
    }
    messages.retain(|message| !message.subject.starts_with("cb.store."));
    storage.close().await;
    (messages, id)
}

/// The sender dies with its change cut, such as by a limit, and nats-server goes on, so nobody has a reason
/// to look at the end of the stream.
async fn every_cut_is_mended_by_who_goes_on(scene: &Scene) {
    let Scene { before, was, messages, will_be, .. } = scene;
    let (workflow, w) = (review_workflow("w"), workflow_id("w"));
    let ways = [GoesOn::Elsewhere, GoesOn::There, GoesOn::Unheard, GoesOn::Third];
    let (by_another, another) = change_of_another(before).await;
    for (cut, how) in (1..=messages.len()).flat_map(|cut| ways.map(|how| (cut, how))) {
        let nats = NatsServer::on_copy_of(before);
        let (proxy, bus) = (Proxy::before(nats.port), Bus::connect(&nats).await);
        let config =
            circuit_breaker::NATSStorageConfig { nats_urls: vec![proxy.url()], ..nats.config() };
        let storage = NATSStorage::new(config).await.unwrap();
        let other = new_token(&workflow, json!({ "other": 1 }));
        let other = storage.insert_token(other).await.unwrap().token.id;
        publish_shifted(&bus, &messages[..cut]).await;
        if how == GoesOn::Third {
            publish_shifted(&bus, &by_another).await;
        }
        // Servers go on to write of themselves.
        let records = if how == GoesOn::Third { 0 } else { RECORDS };
        for n in 0..records {
            let sequence = bus.last_sequence().await + 1;
            let message = if n == RECORDS / 2 { unreadable(sequence) } else { record(sequence) };
            bus.publish_raw(&message).await;
        }
        let mut expected = after(was, will_be, &messages[..cut]);
        expected.tokens.insert(other, (1, "draft".to_owned()));
        let mut wanted: Vec<EventKey> = expected.events.keys().cloned().collect();
        wanted.push((w.clone(), Some(other), Some(1), false));
        if how == GoesOn::Third {
            expected.tokens.insert(another, (1, "draft".to_owned()));
            wanted.push((w.clone(), Some(another), Some(1), false));
        }
        if matches!(how, GoesOn::Unheard | GoesOn::Third) {
            let unheard = usize::from(how == GoesOn::Unheard);
            if unheard == 1 {
                proxy.cut(Cut::InPlaceOfAnswer);
            }
            move_on(&storage, &workflow, other, "edit").await;
            assert_eq!(proxy.cuts(), unheard);
            expected.tokens.insert(other, (2, "draft".to_owned()));
            wanted.push((w.clone(), Some(other), Some(2), false));
        }
        let mut moving: Vec<_> = expected.tokens.keys().copied().collect();
        moving.retain(|id| {
            how != GoesOn::Elsewhere
                && *id != other
                && expected.tokens[id] != was.tokens.get(id).cloned().unwrap_or_default()
        });
        moving.retain(|id| expected.tokens[id].1 != "done");
        if moving.is_empty() {
            moving.push(other);
        }
        for id in moving {
            let (version, place) = expected.tokens.get_mut(&id).unwrap();
            let next = if place == "draft" { "edit" } else { "reject" };
            move_on(&storage, &workflow, id, next).await;
            *version += 1;
            "draft".clone_into(place);
            wanted.push((w.clone(), Some(id), Some(*version), false));
        }
        wanted.sort_unstable();
        until_there_are(&storage, expected.tokens.len(), wanted.len()).await;
        let there = contents(&storage).await;
        assert_eq!(there.tokens, expected.tokens, "cut after {cut}, {how:?}");
        let mut told: Vec<_> = there.events.keys().cloned().collect();
        told.sort_unstable();
        assert_eq!(told, wanted, "cut after {cut}, {how:?}");
        storage.close().await;
    }
}

/// Starts a server on each part of the change that a cut can leave.
async fn every_cut_is_mended(scene: Scene) {
    let Scene { before, was, prelude, messages, will_be } = scene;
    assert!(messages.len() >= 2, "{messages:?}");
    // Another message may have stood behind it, and have gone since.
    for (cut, gone) in (0..=messages.len()).flat_map(|cut| [(cut, false), (cut, true)]) {
        let nats = NatsServer::on_copy_of(&before);
        let bus = Bus::connect(&nats).await;
        for message in prelude.iter().chain(&messages[..cut]) {
            bus.publish_raw(message).await;
        }
        if gone {
            bus.publish_raw(&filler(bus.last_sequence().await + 1)).await;
            let filter = json!({ "filter": "cb.store.filler" });
            bus.done(&format!("STREAM.PURGE.{STREAM}"), &filter).await;
        }
        let expected = after(&was, &will_be, &messages[..cut]);
        let storage = nats.open().await;
        let of = messages.len();
        assert_eq!(contents(&storage).await, expected, "cut after {cut} of {of}: {messages:#?}");
        bus.until_each_token_is_there_once().await;
        let workflow = review_workflow("w");
        let all = WorkflowStorage::list_tokens(&storage, &TokenScope::All, None, ALL).await;
        for stored in all.unwrap().items {
            let moves = storage.token_moves(&stored.token, None, ALL).await.unwrap().items.len();
            assert_eq!(moves as u32 + 1, stored.token.version, "cut after {cut}: its history");
            let next = match stored.token.place.as_str() {
                "draft" => "edit",
                "review" => "finish",
                _ => continue,
            };
            let moved = storage.commit(stored.revision, fired(&workflow, &stored, next)).await;
            let moved = moved.unwrap_or_else(|error| panic!("cut after {cut}: {next}: {error}"));
            assert_eq!(moved.token.version, stored.token.version + 1);
        }
        storage.close().await;
    }
}

/// Moves a token, with data of its own.
async fn fire(
    storage: &NATSStorage,
    workflow: &Workflow,
    stored: &StoredToken,
    transition: &str,
) -> StoredToken {
    let mut request = move_request(transition);
    request.data = Some(json!({ "by": transition, "none": null }));
    request.triggered_by = Some("Zoë".to_owned());
    let change = decided(workflow, &stored.token, &request).unwrap();
    storage.commit(stored.revision, change).await.unwrap()
}

/// The same workflow where a draft is completed, too.
fn reopening() -> Workflow {
    let final_places = Some(vec!["draft".to_owned(), "done".to_owned()]);
    Workflow::check(WorkflowDraft { final_places, ..review_draft("w") }, now()).unwrap()
}

/// What is completed where a transition still leaves is live: neither it nor its pointer ages.
#[test]
fn a_completion_that_can_be_taken_back_lets_nothing_age() {
    runtime().block_on(async {
        let Some(nats) = NatsServer::start() else { return };
        let (storage, workflow) = (nats.open().await, reopening());
        let created = WorkflowEvent::workflow_created(workflow.definition().id.clone(), now());
        storage.insert_workflow(workflow.definition().clone(), created).await.unwrap();
        let stored = storage.insert_token(new_token(&workflow, json!({}))).await.unwrap();
        let stored = fire(&storage, &workflow, &stored, "submit").await;
        let bus = Bus::connect(&nats).await;
        let first = bus.last_sequence().await + 1;
        let stored = fire(&storage, &workflow, &stored, "reject").await;
        let mut subjects = Vec::new();
        for sequence in first..=bus.last_sequence().await {
            let message = bus.raw(sequence).await.unwrap();
            let ages = message.headers.get("Nats-TTL").is_some();
            let is_state = message.headers.get("Cb-Completed").is_some();
            if !message.subject.starts_with("cb.store.") {
                subjects.push((message.subject, ages, is_state));
            }
        }
        let id = stored.token.id;
        let expected = [
            (format!("cb.workflows.w.places.draft.tokens.{id}"), false, true),
            ("cb.workflows.w.events.transitions".to_owned(), true, false),
            ("cb.workflows.w.events.lifecycle".to_owned(), true, false),
            (format!("cb.workflows.w.places.review.tokens.{id}"), true, false),
        ];
        assert_eq!(subjects, expected);
        // It goes on, and is no longer completed.
        let stored = fire(&storage, &workflow, &stored, "submit").await;
        assert_eq!((stored.token.version, stored.token.place.as_str()), (4, "review"));
        let kinds = storage.list_events(None, None, ALL).await.unwrap().items;
        let completed =
            kinds.iter().filter(|stored| stored.event.kind == EventKind::TokenCompleted);
        assert_eq!(completed.count(), 2, "as it was created, and as it came back");
    });
}

macro_rules! cuts {
    ($($name:ident: $act:expr;)*) => {
        $(
            #[test]
            fn $name() {
                runtime().block_on(async {
                    let Some(scene) = scene($act).await else { return };
                    every_cut_is_mended_by_who_goes_on(&scene).await;
                    every_cut_is_mended(scene).await;
                });
            }
        )*
    };
}

cuts! {
    a_move_that_was_cut_is_mended: async |storage, workflow, tokens| {
        fire(storage, workflow, &tokens[0], "submit").await;
    };
    a_move_to_the_same_place_that_was_cut_is_mended: async |storage, workflow, tokens| {
        fire(storage, workflow, &tokens[1], "edit").await;
    };
    a_creation_that_was_cut_is_mended: async |storage, workflow, _| {
        storage.insert_token(new_token(workflow, json!({ "text": "ü" }))).await.unwrap();
    };
    a_creation_of_what_is_completed_that_was_cut_is_mended: async |storage, workflow, _| {
        let mut new = circuit_breaker::domain::NewToken::default();
        new.place = Some("done".parse().unwrap());
        new.data = json!({});
        let change = workflow.create_token(new, Uuid::new_v4(), &Caller::anyone(), now()).unwrap();
        storage.insert_token(change).await.unwrap();
    };
    a_completion_that_was_cut_is_mended: async |storage, workflow, tokens| {
        fire(storage, workflow, &tokens[4], "finish").await;
    };
    a_completion_that_can_be_taken_back_and_was_cut_is_mended: async |storage, _, tokens| {
        fire(storage, &reopening(), &tokens[4], "reject").await;
    };
    a_definition_that_was_cut_is_mended: async |storage, _, _| {
        let definition = review_workflow("v").definition().clone();
        let event = WorkflowEvent::workflow_created(definition.id.clone(), now());
        storage.insert_workflow(definition, event).await.unwrap();
    };
    many_moves_in_one_batch_that_was_cut_are_mended: async |storage, workflow, tokens| {
        let mut movers = tokio::task::JoinSet::new();
        for (stored, transition) in tokens.into_iter().zip(["submit", "edit", "submit", "edit", "finish"]) {
            let (storage, change) = (Arc::clone(storage), fired(workflow, &stored, transition));
            movers.spawn(async move { storage.commit(stored.revision, change).await.unwrap() });
        }
        movers.join_all().await;
    };
}

/// A nats-server that does not let the engine write what a repair needs.
#[test]
fn where_a_cut_cannot_be_mended_writes_are_refused_in_time_and_say_why() {
    runtime().block_on(async {
        let act = async |storage: &Arc<NATSStorage>, workflow: &Workflow, all: Vec<StoredToken>| {
            fire(storage, workflow, &all[0], "submit").await;
        };
        let Some(Scene { before, was, prelude, messages, .. }) = scene(act).await else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nats.conf");
        let config = "authorization { users: [ { user: admin, password: a }
            { user: engine, password: e, permissions { subscribe: \"_INBOX.>\"
              publish: { allow: [ \"cb.>\", \"$JS.API.>\", \"_INBOX.>\" ]
                deny: [ \"cb.store.repairs.>\" ] } } } ] }";
        std::fs::write(&path, config).unwrap();
        let nats = NatsServer::on_copy_with(&before, &["-c", path.to_str().unwrap()]);
        let bus = Bus::log_in(&nats.url(), "admin", "a").await;
        for message in prelude.iter().chain(&messages[..1]) {
            bus.publish_raw(message).await;
        }

        let url = nats.url().replace("nats://", "nats://engine:e@");
        let config = circuit_breaker::NATSStorageConfig { nats_urls: vec![url], ..nats.config() };
        let storage = NATSStorage::new(config).await.unwrap();
        let begun = std::time::Instant::now();
        let refused = storage.insert_token(new_token(&review_workflow("w"), json!({}))).await;
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("cannot be mended") && error.contains("cb.store"), "{error}");
        let took = begun.elapsed();
        assert!(took < std::time::Duration::from_secs(15), "{took:?}");
        // Reads go on, and have waited long enough.
        let begun = std::time::Instant::now();
        for id in was.tokens.keys().chain(was.tokens.keys()) {
            assert!(storage.load_token(*id, None).await.unwrap().is_some());
        }
        let took = begun.elapsed();
        assert!(took < std::time::Duration::from_secs(8), "ten reads took {took:?}");
        storage.close().await;
    });
}

/// What the first version wrote: departures before their tokens, and no headers but the format.
#[test]
fn a_store_of_the_first_version_is_read_and_goes_on() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let storage = nats.open().await;
        let workflow = review_workflow("w");
        let created = WorkflowEvent::workflow_created(workflow.definition().id.clone(), now());
        storage.insert_workflow(workflow.definition().clone(), created).await.unwrap();
        let bus = Bus::connect(&nats).await;
        let first = bus.last_sequence().await + 1;
        let draft = storage.insert_token(new_token(&workflow, json!({ "n": 1 }))).await.unwrap();
        let review = fire(&storage, &workflow, &draft, "submit").await;
        let mut messages = Vec::new();
        for sequence in first..=bus.last_sequence().await {
            messages.extend(bus.raw(sequence).await);
        }
        storage.close().await;
        // The creation's token was rolled up, so: its pointer and event, then token, event, departure of
        // the move.
        messages.retain(|message: &Raw| message.subject.starts_with("cb.workflows."));
        let [born, token, event, departure] = messages.try_into().unwrap();
        let id = review.token.id;

        for cut in [2, 3] {
            let nats = NatsServer::start().unwrap();
            let (storage, bus) = (nats.open().await, Bus::connect(&nats).await);
            let created = WorkflowEvent::workflow_created(workflow.definition().id.clone(), now());
            storage.insert_workflow(workflow.definition().clone(), created).await.unwrap();
            storage.close().await;
            // The first version says nothing of the store itself.
            for filter in ["cb.store.>", "cb.tokens.>"] {
                bus.done(&format!("STREAM.PURGE.{STREAM}"), &json!({ "filter": filter })).await;
            }
            let before = bus.last_sequence().await;
            let old = [&born, &departure, &token, &event];
            for (n, message) in (1..).zip(&old[..=cut]) {
                let mut message = Raw::clone(message);
                message.sequence = before + n;
                let ages = message.headers.get("Nats-TTL").cloned();
                message.headers = async_nats::HeaderMap::new();
                message.headers.insert("Cb-Format", "1");
                if let Some(ages) = ages.filter(|ages| ages.as_str() != "1s") {
                    message.headers.insert("Nats-TTL", ages);
                }
                if message.subject.ends_with("transitions") {
                    let mut payload: serde_json::Value =
                        serde_json::from_slice(&message.payload).unwrap();
                    payload["previous_sequence"] = (before + 1).into();
                    message.payload = payload.to_string().into();
                }
                bus.publish_raw(&message).await;
            }
            // Whether its event is there or was cut off, it is there once.
            let storage = nats.open().await;
            let found = storage.load_token(id, None).await.unwrap().unwrap();
            assert_eq!((found.token.version, found.token.place.as_str()), (2, "review"));
            // Its id is not one that was made here, so it has got a pointer.
            let pointers = bus.subjects("cb.tokens.*").await;
            assert!(pointers.into_iter().map(|(name, _)| name).eq([format!("cb.tokens.{id}")]));
            let by = Caller::anyone();
            let again = workflow.create_token(Default::default(), id, &by, now()).unwrap();
            assert!(matches!(
                storage.insert_token(again).await,
                Err(StorageError::TokenExists { .. })
            ));
            let moved = fire(&storage, &workflow, &found, "finish").await;
            let all = contents(&storage).await;
            assert_eq!(all.tokens[&id], (3, "done".to_owned()));
            let versions = |completed| {
                let of_token = all.events.keys().filter(|key| key.1 == Some(id));
                of_token.filter(|key| key.3 == completed).count()
            };
            assert_eq!((versions(false), versions(true)), (3, 1), "{all:#?}");
            let moves = storage.token_moves(&moved.token, None, ALL).await.unwrap().items.len();
            assert_eq!(moves, 2);
            storage.close().await;
        }
    });
}
