//! What every backend promises. Each case is listed once and becomes a test per backend.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use circuit_breaker::domain::EventKind;
use circuit_breaker::domain::limits::RECORD_BYTES_MAX;
use circuit_breaker::storage::{
    Page, PageLimit, Sequence, StorageError, StorageHealth, StoredToken, TokenScope,
    WorkflowStorage,
};
use serde_json::json;
use uuid::Uuid;

use crate::support::{
    Backend, as_written, fired, new_token, now, review_workflow, runtime, without_place_on_bus,
    workflow_id,
};

macro_rules! storage_suite {
    ($($case:ident)*) => {
        mod memory {
            $(#[test] fn $case() { super::run(super::Backend::Memory, super::$case); })*
        }
        mod sqlite {
            $(#[test] fn $case() { super::run(super::Backend::Sqlite, super::$case); })*
        }
        mod nats {
            $(#[test] fn $case() { super::run(super::Backend::Nats, super::$case); })*
        }
        mod nats_oldest {
            $(#[test] fn $case() { super::run(super::Backend::NatsOldest, super::$case); })*
        }
    };
}

storage_suite! {
    a_workflow_is_stored_once_and_comes_back
    an_unknown_thing_is_none_and_no_error
    a_token_is_stored_once_and_comes_back
    json_comes_back_as_it_was_sent
    a_commit_replaces_the_token_and_appends_its_events
    second_mover_gets_a_conflict
    a_commit_of_a_token_that_is_not_there_is_a_conflict
    fifty_racing_movers_have_one_winner
    racing_creations_of_one_id_have_one_winner
    racing_chains_lose_no_move
    reads_never_go_back
    a_token_is_listed_where_it_is_and_nowhere_else
    lists_are_in_order_of_arrival_and_of_their_scope_alone
    pages_join_to_the_whole_list
    a_page_ends_at_its_bytes_but_holds_at_least_one_item
    a_walk_misses_no_token_that_stays_while_others_move
    history_is_newest_first_and_of_one_token_alone
    events_are_in_one_order_with_every_change_in_it
    events_after_a_sequence_join_to_all_of_them
    workflows_are_listed_by_id
    a_list_goes_on_behind_much_that_is_not_of_it
    a_large_token_lives_long_and_hides_no_other
    what_is_too_large_is_refused_whole
    a_closed_store_says_that_it_is
}

fn run<F: Future<Output = ()>>(backend: Backend, case: impl FnOnce(Arc<dyn WorkflowStorage>) -> F) {
    if !backend.is_here() {
        return;
    }
    let store = backend.open();
    runtime().block_on(async {
        case(Arc::clone(&store.storage)).await;
        store.storage.close().await;
    });
}

const ALL: PageLimit = PageLimit { rows: 1_000_000, bytes: usize::MAX };

fn rows(rows: usize) -> PageLimit {
    PageLimit { rows, bytes: usize::MAX }
}

async fn created(storage: &dyn WorkflowStorage, workflow: &str) -> StoredToken {
    storage.insert_token(new_token(&review_workflow(workflow), json!({"n": 1}))).await.unwrap()
}

/// The token as it is read, but for the time of its message, which a write does not tell.
async fn read(storage: &dyn WorkflowStorage, id: Uuid) -> Option<StoredToken> {
    let stored = storage.load_token(id, None).await.unwrap()?;
    let time = storage.message_time(stored.revision).await.unwrap();
    assert_eq!(stored.token.nats_timestamp, time, "it is that of the message");
    Some(as_written(&stored))
}

async fn moved(
    storage: &dyn WorkflowStorage,
    stored: &StoredToken,
    transition: &str,
) -> StoredToken {
    let workflow = review_workflow(&stored.token.workflow_id);
    storage.commit(stored.revision, fired(&workflow, stored, transition)).await.unwrap()
}

async fn listed(storage: &dyn WorkflowStorage, scope: TokenScope) -> Vec<Uuid> {
    storage
        .list_tokens(&scope, None, ALL)
        .await
        .unwrap()
        .items
        .iter()
        .map(|stored| stored.token.id)
        .collect()
}

fn place(workflow: &str, place: &str) -> TokenScope {
    TokenScope::Place(workflow_id(workflow), place.parse().unwrap())
}

async fn insert_workflow(storage: &dyn WorkflowStorage, id: &str) -> Result<(), StorageError> {
    let definition = review_workflow(id).definition().clone();
    let event =
        circuit_breaker::domain::WorkflowEvent::workflow_created(definition.id.clone(), now());
    storage.insert_workflow(definition, event).await
}

async fn a_workflow_is_stored_once_and_comes_back(storage: Arc<dyn WorkflowStorage>) {
    insert_workflow(&*storage, "w").await.unwrap();
    let again = insert_workflow(&*storage, "w").await;
    assert!(matches!(again, Err(StorageError::WorkflowExists { .. })), "{again:?}");
    let loaded = storage.load_workflow(&workflow_id("w")).await.unwrap().unwrap();
    assert_eq!(&loaded, review_workflow("w").definition());
    assert_eq!(
        storage.list_events(None, None, ALL).await.unwrap().items.len(),
        1,
        "one event for one creation"
    );
}

async fn an_unknown_thing_is_none_and_no_error(storage: Arc<dyn WorkflowStorage>) {
    assert_eq!(storage.load_workflow(&workflow_id("w")).await.unwrap(), None);
    assert_eq!(storage.load_token(Uuid::nil(), None).await.unwrap(), None);
    let there = created(&*storage, "w").await;
    let elsewhere = storage.load_token(there.token.id, Some(&workflow_id("other"))).await.unwrap();
    assert_eq!(elsewhere, None, "a token is not found by another workflow");
    assert_eq!(listed(&*storage, place("w", "review")).await, Vec::<Uuid>::new());
}

async fn a_token_is_stored_once_and_comes_back(storage: Arc<dyn WorkflowStorage>) {
    let change = new_token(&review_workflow("w"), json!({"n": 1}));
    let stored = storage.insert_token(change.clone()).await.unwrap();
    assert_eq!(without_place_on_bus(&stored.token), change.token);
    let id = change.token.id;
    assert_eq!(read(&*storage, id).await.as_ref(), Some(&stored));
    let of_workflow = storage.load_token(id, Some(&workflow_id("w"))).await.unwrap();
    assert_eq!(of_workflow, storage.load_token(id, None).await.unwrap());
    let again = storage.insert_token(change).await;
    assert!(matches!(again, Err(StorageError::TokenExists { token }) if token == id), "{again:?}");
    assert_eq!(storage.list_events(None, None, ALL).await.unwrap().items.len(), 1);
}

async fn json_comes_back_as_it_was_sent(storage: Arc<dyn WorkflowStorage>) {
    let text = r#"{"z":1,"a":[1.0,0.1,1e-7,-0.0,123456789.123456789],"max":18446744073709551615,"min":-9223372036854775808,"odd":9007199254740993,"text":"\u0000\u001f\"\\ é 日本 🎈\u2028","":null,"deep":{"y":{},"b":[[]]},"t":true}"#;
    let data: serde_json::Value = serde_json::from_str(text).unwrap();
    let change = new_token(&review_workflow("w"), data.clone());
    let id = storage.insert_token(change).await.unwrap().token.id;
    let loaded = storage.load_token(id, None).await.unwrap().unwrap();
    assert_eq!(loaded.token.data.to_string(), data.to_string());
    let listed = storage.list_tokens(&TokenScope::All, None, ALL).await.unwrap();
    assert_eq!(listed.items[0].token.data.to_string(), data.to_string());
}

async fn a_commit_replaces_the_token_and_appends_its_events(storage: Arc<dyn WorkflowStorage>) {
    let stored = created(&*storage, "w").await;
    let change = fired(&review_workflow("w"), &stored, "submit");
    let after = storage.commit(stored.revision, change.clone()).await.unwrap();
    assert_eq!(without_place_on_bus(&after.token), change.token);
    assert!(after.revision > stored.revision);
    assert_eq!(read(&*storage, stored.token.id).await, Some(after.clone()));
    let done = moved(&*storage, &after, "finish").await;
    let events = storage.list_events(None, None, ALL).await.unwrap().items;
    let kinds: Vec<_> = events.iter().map(|stored| stored.event.kind).collect();
    use EventKind::{TokenCompleted, TokenCreated, TokenTransitioned};
    assert_eq!(kinds, [TokenCreated, TokenTransitioned, TokenTransitioned, TokenCompleted]);
    assert_eq!(events[1].event, change.events[0]);
    assert_eq!(events[3].event.token_version, Some(done.token.version));
}

async fn second_mover_gets_a_conflict(storage: Arc<dyn WorkflowStorage>) {
    let stored = created(&*storage, "w").await;
    let change = fired(&review_workflow("w"), &stored, "submit");
    let first = storage.commit(stored.revision, change.clone()).await.unwrap();
    let second = storage.commit(stored.revision, change).await;
    assert!(matches!(second, Err(StorageError::Conflict { .. })), "{second:?}");
    assert_eq!(read(&*storage, stored.token.id).await, Some(first));
    assert_eq!(
        storage.list_events(None, None, ALL).await.unwrap().items.len(),
        2,
        "a lost race leaves no event"
    );
}

async fn a_commit_of_a_token_that_is_not_there_is_a_conflict(storage: Arc<dyn WorkflowStorage>) {
    let there = created(&*storage, "w").await;
    let never_stored = new_token(&review_workflow("w"), json!({})).token;
    let stranger =
        StoredToken { token: std::sync::Arc::new(never_stored), revision: there.revision };
    for revision in [there.revision, Sequence(0), Sequence(u64::MAX)] {
        let outcome =
            storage.commit(revision, fired(&review_workflow("w"), &stranger, "submit")).await;
        assert!(matches!(outcome, Err(StorageError::Conflict { .. })), "{outcome:?}");
    }
    assert_eq!(listed(&*storage, TokenScope::All).await, [there.token.id]);
}

async fn fifty_racing_movers_have_one_winner(storage: Arc<dyn WorkflowStorage>) {
    for round in 0..10 {
        let stored = created(&*storage, "w").await;
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let (storage, change) =
                    (Arc::clone(&storage), fired(&review_workflow("w"), &stored, "submit"));
                let revision = stored.revision;
                tokio::spawn(async move { storage.commit(revision, change).await })
            })
            .collect();
        let mut won = 0;
        for task in tasks {
            match task.await.unwrap() {
                Ok(_) => won += 1,
                Err(error) => assert!(matches!(error, StorageError::Conflict { .. }), "{error}"),
            }
        }
        assert_eq!(won, 1, "round {round}");
        let moves = storage.token_moves(&stored.token, None, ALL).await.unwrap();
        assert_eq!(moves.items.len(), 1);
    }
    assert_eq!(listed(&*storage, place("w", "draft")).await, Vec::<Uuid>::new());
    assert_eq!(listed(&*storage, place("w", "review")).await.len(), 10);
}

async fn racing_creations_of_one_id_have_one_winner(storage: Arc<dyn WorkflowStorage>) {
    let change = new_token(&review_workflow("w"), json!({}));
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let (storage, change) = (Arc::clone(&storage), change.clone());
            tokio::spawn(async move { storage.insert_token(change).await.is_ok() })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        won += usize::from(task.await.unwrap());
    }
    assert_eq!(won, 1);
    assert_eq!(listed(&*storage, TokenScope::All).await.len(), 1);
}

/// Whatever one read has shown, no later one is older, by whichever way it reads.
async fn reads_never_go_back(storage: Arc<dyn WorkflowStorage>) {
    const MOVES: u32 = 300;
    let mut stored = created(&*storage, "w").await;
    let id = stored.token.id;
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let storage = Arc::clone(&storage);
            tokio::spawn(async move {
                let mut seen = 0;
                while seen <= MOVES {
                    let listed = storage.list_tokens(&TokenScope::All, None, ALL).await.unwrap();
                    // While it moves, the list holds it all the same, as the list is one snapshot.
                    let listed = listed.items[0].token.version;
                    let by_id = storage.load_token(id, None).await.unwrap().unwrap();
                    let by_id = by_id.token.version;
                    assert!(seen <= listed && listed <= by_id, "{seen}, {listed}, {by_id}");
                    seen = by_id;
                }
            })
        })
        .collect();
    for _ in 0..MOVES {
        let change = fired(&review_workflow("w"), &stored, "edit");
        stored = storage.commit(stored.revision, change).await.unwrap();
    }
    for reader in readers {
        reader.await.unwrap();
    }
}

async fn racing_chains_lose_no_move(storage: Arc<dyn WorkflowStorage>) {
    const MOVERS: usize = 10;
    const MOVES: usize = 20;
    let token = created(&*storage, "w").await.token;
    let tasks: Vec<_> = (0..MOVERS)
        .map(|_| {
            let (storage, id) = (Arc::clone(&storage), token.id);
            tokio::spawn(async move {
                let workflow = review_workflow("w");
                let mut made = 0;
                while made < MOVES {
                    let stored = storage.load_token(id, None).await.unwrap().unwrap();
                    match storage.commit(stored.revision, fired(&workflow, &stored, "edit")).await {
                        Ok(_) => made += 1,
                        Err(StorageError::Conflict { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let end = storage.load_token(token.id, None).await.unwrap().unwrap();
    assert_eq!(end.token.version as usize, 1 + MOVERS * MOVES);
    let moves = storage.token_moves(&token, None, ALL).await.unwrap().items;
    let versions: Vec<_> =
        moves.iter().rev().map(|stored| stored.event.token_version.unwrap()).collect();
    assert_eq!(
        versions,
        (2..=end.token.version).collect::<Vec<_>>(),
        "one event for each version, in order"
    );
}

async fn a_token_is_listed_where_it_is_and_nowhere_else(storage: Arc<dyn WorkflowStorage>) {
    let stored = created(&*storage, "w").await;
    let id = stored.token.id;
    let after = moved(&*storage, &stored, "submit").await;
    assert_eq!(listed(&*storage, place("w", "draft")).await, Vec::<Uuid>::new());
    assert_eq!(listed(&*storage, place("w", "review")).await, [id]);
    moved(&*storage, &after, "reject").await;
    assert_eq!(listed(&*storage, place("w", "draft")).await, [id]);
    assert_eq!(listed(&*storage, place("w", "review")).await, Vec::<Uuid>::new());
    assert_eq!(listed(&*storage, TokenScope::Workflow(workflow_id("w"))).await, [id]);
    assert_eq!(listed(&*storage, TokenScope::All).await, [id]);
}

async fn lists_are_in_order_of_arrival_and_of_their_scope_alone(storage: Arc<dyn WorkflowStorage>) {
    let first = created(&*storage, "a").await;
    let other = created(&*storage, "b").await;
    let second = created(&*storage, "a").await;
    let of_a = TokenScope::Workflow(workflow_id("a"));
    assert_eq!(listed(&*storage, of_a.clone()).await, [first.token.id, second.token.id]);
    moved(&*storage, &first, "edit").await;
    assert_eq!(listed(&*storage, of_a).await, [second.token.id, first.token.id], "it arrived anew");
    assert_eq!(listed(&*storage, place("a", "draft")).await, [second.token.id, first.token.id]);
    assert_eq!(
        listed(&*storage, TokenScope::All).await,
        [other.token.id, second.token.id, first.token.id]
    );
}

async fn pages_join_to_the_whole_list(storage: Arc<dyn WorkflowStorage>) {
    for n in 0..23 {
        let stored = created(&*storage, if n % 3 == 0 { "b" } else { "a" }).await;
        if n % 2 == 0 {
            moved(&*storage, &stored, "submit").await;
        }
    }
    let scopes = [TokenScope::All, TokenScope::Workflow(workflow_id("a")), place("a", "review")];
    for scope in scopes {
        let whole = storage.list_tokens(&scope, None, ALL).await.unwrap();
        assert!(!whole.more);
        for size in [1, 4, 5, 22, 23] {
            let (mut joined, mut after) = (Vec::new(), None);
            loop {
                let page = storage.list_tokens(&scope, after, rows(size)).await.unwrap();
                assert!(page.items.len() == size || !page.more);
                after = page.items.last().map(|stored| stored.revision);
                joined.extend(page.items);
                if !page.more {
                    break;
                }
            }
            assert_eq!(joined, whole.items, "{scope:?} by {size}");
        }
    }
}

async fn a_page_ends_at_its_bytes_but_holds_at_least_one_item(storage: Arc<dyn WorkflowStorage>) {
    let workflow = review_workflow("w");
    for _ in 0..5 {
        storage.insert_token(new_token(&workflow, json!("x".repeat(10_000)))).await.unwrap();
    }
    let read = |bytes| {
        let limit = PageLimit { rows: 100, bytes };
        let storage = Arc::clone(&storage);
        async move { storage.list_tokens(&TokenScope::All, None, limit).await.unwrap() }
    };
    let sizes = |page: &Page<StoredToken>| (page.items.len(), page.more);
    assert_eq!(sizes(&read(1).await), (1, true));
    assert_eq!(sizes(&read(25_000).await), (2, true));
    let whole = read(1_000_000).await;
    assert_eq!(sizes(&whole), (5, false));
    assert!((50_000..60_000).contains(&whole.bytes), "{}", whole.bytes);
}

async fn a_walk_misses_no_token_that_stays_while_others_move(storage: Arc<dyn WorkflowStorage>) {
    let mut tokens = Vec::new();
    for _ in 0..30 {
        tokens.push(created(&*storage, "w").await);
    }
    let stay: BTreeSet<_> = tokens.iter().step_by(2).map(|stored| stored.token.id).collect();
    let mut movers = tokens.into_iter().skip(1).step_by(2);
    let (mut seen, mut after) = (BTreeMap::new(), None);
    loop {
        let page = storage.list_tokens(&place("w", "draft"), after, rows(4)).await.unwrap();
        for stored in &page.items {
            *seen.entry(stored.token.id).or_insert(0) += 1;
        }
        after = page.items.last().map(|stored| stored.revision).or(after);
        if !page.more {
            break;
        }
        for (n, mover) in movers.by_ref().take(3).enumerate() {
            moved(&*storage, &mover, if n == 0 { "edit" } else { "submit" }).await;
        }
    }
    for id in stay {
        assert_eq!(seen.get(&id), Some(&1), "a token that stays is seen once");
    }
}

async fn history_is_newest_first_and_of_one_token_alone(storage: Arc<dyn WorkflowStorage>) {
    let mut stored = created(&*storage, "w").await;
    let mut bystander = created(&*storage, "w").await;
    for _ in 0..30 {
        stored = moved(&*storage, &stored, "edit").await;
        bystander = moved(&*storage, &bystander, "edit").await;
    }
    let whole = storage.token_moves(&stored.token, None, ALL).await.unwrap().items;
    let versions: Vec<_> = whole.iter().map(|stored| stored.event.token_version.unwrap()).collect();
    assert_eq!(versions, (2..=31).rev().collect::<Vec<_>>());
    assert!(whole.iter().all(|event| event.event.token_id == Some(stored.token.id)));
    let (mut joined, mut before) = (Vec::new(), None);
    loop {
        let page = storage.token_moves(&stored.token, before, rows(7)).await.unwrap();
        before = page.items.last().map(|stored| stored.sequence);
        joined.extend(page.items);
        if !page.more {
            break;
        }
    }
    assert_eq!(joined, whole);

    let others = storage.token_moves(&bystander.token, None, rows(3)).await.unwrap().items;
    let cursor = others[2].sequence;
    let refused = storage.token_moves(&stored.token, Some(cursor), rows(7)).await.unwrap_err();
    assert!(matches!(refused, StorageError::ForeignCursor { .. }), "{refused}");
    let nothing = storage.token_moves(&stored.token, Some(Sequence(u64::MAX >> 1)), ALL).await;
    assert_eq!(nothing.unwrap().items, [], "what is not there has nothing before it");
    // The event of a completion stands behind all moves.
    for transition in ["submit", "finish"] {
        stored = moved(&*storage, &stored, transition).await;
    }
    let events = storage.list_events(None, None, ALL).await.unwrap().items;
    let completed = events.last().unwrap();
    assert_eq!(completed.event.kind, EventKind::TokenCompleted);
    let moves = storage.token_moves(&stored.token, Some(completed.sequence), ALL).await.unwrap();
    assert_eq!(moves.items.len(), 32);
    let first = whole.last().unwrap().sequence;
    assert_eq!(storage.token_moves(&stored.token, Some(first), ALL).await.unwrap().items, []);
}

async fn events_are_in_one_order_with_every_change_in_it(storage: Arc<dyn WorkflowStorage>) {
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let storage = Arc::clone(&storage);
            tokio::spawn(async move {
                let mut stored = created(&*storage, if n % 2 == 0 { "a" } else { "b" }).await;
                for transition in ["submit", "reject", "submit", "finish"] {
                    stored = moved(&*storage, &stored, transition).await;
                }
                stored.token.id
            })
        })
        .collect();
    let mut ids = Vec::new();
    for task in tasks {
        ids.push(task.await.unwrap());
    }
    let events = storage.list_events(None, None, ALL).await.unwrap().items;
    assert_eq!(events.len(), 8 * 6, "a creation, four moves and a completion for each");
    assert!(events.is_sorted_by(|a, b| a.sequence < b.sequence), "no two share a sequence");
    for id in ids {
        let versions = events.iter().filter(|stored| stored.event.token_id == Some(id));
        let versions: Vec<_> = versions.map(|stored| stored.event.token_version.unwrap()).collect();
        assert_eq!(versions, [1, 2, 3, 4, 5, 5]);
    }
    let of_a = storage.list_events(Some(&workflow_id("a")), None, ALL).await.unwrap().items;
    let expected: Vec<_> =
        events.into_iter().filter(|stored| &*stored.event.workflow_id == "a").collect();
    assert_eq!(of_a, expected);
}

async fn events_after_a_sequence_join_to_all_of_them(storage: Arc<dyn WorkflowStorage>) {
    for n in 0..10 {
        let stored = created(&*storage, if n % 3 == 0 { "b" } else { "a" }).await;
        moved(&*storage, &stored, "submit").await;
    }
    for workflow in [None, Some(workflow_id("a"))] {
        let whole = storage.list_events(workflow.as_ref(), None, ALL).await.unwrap().items;
        let (mut joined, mut after) = (Vec::new(), None);
        loop {
            let page = storage.list_events(workflow.as_ref(), after, rows(3)).await.unwrap();
            after = page.items.last().map(|stored| stored.sequence);
            joined.extend(page.items);
            if !page.more {
                break;
            }
        }
        assert_eq!(joined, whole);
        let beyond =
            storage.list_events(workflow.as_ref(), Some(Sequence(u64::MAX)), ALL).await.unwrap();
        assert_eq!(beyond.items, []);
    }
}

async fn workflows_are_listed_by_id(storage: Arc<dyn WorkflowStorage>) {
    for id in ["b", "Z", "a", "0", "b-1", "b_1"] {
        insert_workflow(&*storage, id).await.unwrap();
    }
    let (mut joined, mut after) = (Vec::new(), None);
    loop {
        let page = storage.list_workflows(after.as_ref(), rows(2)).await.unwrap();
        after = page.items.last().map(|definition| definition.id.clone());
        joined.extend(page.items.into_iter().map(|definition| definition.id.to_string()));
        if !page.more {
            break;
        }
    }
    assert_eq!(joined, ["0", "Z", "a", "b", "b-1", "b_1"]);
}

/// Many small tokens close together, then far more of another workflow than is read at once.
async fn a_list_goes_on_behind_much_that_is_not_of_it(storage: Arc<dyn WorkflowStorage>) {
    const CLOSE: usize = 1_100;
    let mut creations = tokio::task::JoinSet::new();
    for _ in 0..CLOSE {
        let storage = Arc::clone(&storage);
        creations.spawn(async move { created(&*storage, "w").await });
    }
    creations.join_all().await;
    for _ in 0..12 {
        let large = new_token(&review_workflow("v"), json!("x".repeat(900_000)));
        storage.insert_token(large).await.unwrap();
    }
    let last = created(&*storage, "w").await;
    let draft = place("w", "draft");
    let page = storage.list_tokens(&draft, None, rows(CLOSE)).await.unwrap();
    assert_eq!((page.items.len(), page.more), (CLOSE, true));
    let after = page.items.last().map(|stored| stored.revision);
    let page = storage.list_tokens(&draft, after, rows(10)).await.unwrap();
    let ids: Vec<_> = page.items.iter().map(|stored| stored.token.id).collect();
    assert_eq!((ids, page.more), (vec![last.token.id], false));
}

/// 900 kB, and more moves than a token carries of its history.
async fn a_large_token_lives_long_and_hides_no_other(storage: Arc<dyn WorkflowStorage>) {
    const MOVES: usize = 60;
    let workflow = review_workflow("w");
    let before = created(&*storage, "w").await;
    let data = json!("x".repeat(900_000));
    let mut large = storage.insert_token(new_token(&workflow, data.clone())).await.unwrap();
    let after = created(&*storage, "w").await;
    for n in 0..MOVES {
        large = moved(&*storage, &large, ["submit", "reject"][n % 2]).await;
        if n % 10 == 0 {
            assert_eq!(read(&*storage, large.token.id).await.as_ref(), Some(&large));
        }
    }
    assert_eq!(large.token.version as usize, 1 + MOVES);
    assert_eq!(large.token.data, data);
    let all = [before.token.id, after.token.id, large.token.id];
    assert_eq!(listed(&*storage, place("w", "draft")).await, all);
    let moves = storage.token_moves(&large.token, None, ALL).await.unwrap();
    assert_eq!((moves.items.len(), moves.more), (MOVES, false));
}

async fn what_is_too_large_is_refused_whole(storage: Arc<dyn WorkflowStorage>) {
    let workflow = review_workflow("w");
    let outcome =
        storage.insert_token(new_token(&workflow, json!("x".repeat(RECORD_BYTES_MAX)))).await;
    assert!(
        matches!(outcome, Err(StorageError::TooLarge { bytes, bytes_max: RECORD_BYTES_MAX, .. }) if bytes > RECORD_BYTES_MAX),
        "{outcome:?}"
    );
    let fits = storage
        .insert_token(new_token(&workflow, json!("x".repeat(RECORD_BYTES_MAX - 2_000))))
        .await
        .unwrap();
    let mut change = fired(&workflow, &fits, "submit");
    change.token.data = json!("x".repeat(RECORD_BYTES_MAX));
    let outcome = storage.commit(fits.revision, change).await;
    assert!(matches!(outcome, Err(StorageError::TooLarge { .. })), "{outcome:?}");
    assert_eq!(read(&*storage, fits.token.id).await.as_ref(), Some(&fits));
    assert_eq!(storage.list_events(None, None, ALL).await.unwrap().items.len(), 1);
}

async fn a_closed_store_says_that_it_is(storage: Arc<dyn WorkflowStorage>) {
    let stored = created(&*storage, "w").await;
    assert_eq!(storage.health().await, StorageHealth::Healthy);
    storage.close().await;
    assert!(matches!(storage.health().await, StorageHealth::Unhealthy(_)));
    let read = storage.load_token(stored.token.id, None).await;
    assert!(matches!(read, Err(StorageError::Unavailable { .. })), "{read:?}");
    let write =
        storage.commit(stored.revision, fired(&review_workflow("w"), &stored, "submit")).await;
    assert!(matches!(write, Err(StorageError::Unavailable { .. })), "{write:?}");
}
