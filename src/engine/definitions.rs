//! Definitions with their conditions compiled, kept for as long as there is room.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::EngineError;
use super::budget::unavailable;
use crate::domain::condition::PARSER_STACK_BYTES;
use crate::domain::{Workflow, WorkflowId};
use crate::storage::{StorageError, WorkflowStorage, cache};

/// Bytes that kept definitions may take, as [`Workflow::memory_bytes`] estimates them.
const CACHE_BYTES_MAX: u64 = 32 << 20;

/// Bytes of a definition with the most conditions that are allowed, about.
const LARGEST_BYTES: u64 = 30 << 20;

/// Definitions that the cache is laid out for; its table grows up to the bytes above.
const CACHE_ITEMS: usize = 1_024;

/// Definitions that are compiled at once, on as many threads; whoever comes after waits.
static COMPILERS: Semaphore = Semaphore::const_new(2);

/// Time that a definition waits for its turn, or for somebody else who compiles the same.
const TURN_TIME_MAX: Duration = Duration::from_secs(10);

/// The workflows of a store. A definition never changes, so what is kept is right for as long as the
/// store is the same.
pub struct Definitions {
    storage: Arc<dyn WorkflowStorage>,
    cache: Cache<WorkflowId, Arc<Workflow>, Bytes>,
    /// The life of the store that they are of.
    life: AtomicU64,
}

#[derive(Debug, Clone)]
struct Bytes;

impl Weighter<WorkflowId, Arc<Workflow>> for Bytes {
    fn weight(&self, _: &WorkflowId, workflow: &Arc<Workflow>) -> u64 {
        workflow.memory_bytes() as u64
    }
}

impl Definitions {
    pub fn new(storage: Arc<dyn WorkflowStorage>) -> Self {
        let cache = cache::bounded(CACHE_ITEMS, CACHE_BYTES_MAX, LARGEST_BYTES, Bytes);
        let life = AtomicU64::new(storage.life());
        Self { storage, cache, life }
    }

    /// The workflow with this id, if there is one.
    pub async fn get(&self, id: &WorkflowId) -> Result<Option<Arc<Workflow>>, EngineError> {
        let life = self.storage.life();
        if self.life.swap(life, Ordering::AcqRel) != life {
            self.cache.clear();
        }
        if let Some(workflow) = self.cache.get(id) {
            return Ok(Some(workflow));
        }
        let Some(definition) = self.storage.load_workflow(id).await? else { return Ok(None) };
        // Each reads it for himself: nobody waits for a store that somebody else asks, nor for what is not there.
        // Whoever comes first compiles for all who wait. If he goes away, the next one does.
        let found = timeout(TURN_TIME_MAX, self.cache.get_value_or_guard_async(id)).await;
        let place = match found.map_err(|_| busy())? {
            Ok(workflow) => return Ok(Some(workflow)),
            Err(place) => place,
        };
        let compiled = compile(move |wanted| Workflow::load(definition, wanted)).await?;
        let workflow = compiled.map_err(|problems| {
            let reason = problems
                .first()
                .map_or_else(String::new, |first| format!("{}: {}", first.field, first.message));
            StorageError::Corrupt { what: format!("workflow {id}"), reason }
        })?;
        let workflow = Arc::new(workflow);
        // Refused where it is larger than what is kept at all; then each compiles for itself.
        drop(place.insert(Arc::clone(&workflow)));
        if self.storage.life() != life {
            // It was read from a store that is no more.
            self.cache.remove(id);
        }
        Ok(Some(workflow))
    }

    /// Keeps a workflow that was just stored.
    pub fn remember(&self, workflow: &Arc<Workflow>) {
        self.cache.insert(workflow.definition().id.clone(), Arc::clone(workflow));
    }
}

/// Runs a calculation that parses conditions, on a thread with the stack that their parser needs. It is told
/// whether anybody still waits for it.
pub async fn compile<T: Send + 'static>(
    parse: impl FnOnce(&dyn Fn() -> bool) -> T + Send + 'static,
) -> Result<T, EngineError> {
    let permit = timeout(TURN_TIME_MAX, COMPILERS.acquire()).await.map_err(|_| busy())?;
    let permit = permit.map_err(|error| EngineError::Defect { reason: error.to_string() })?;
    let (answer, outcome) = tokio::sync::oneshot::channel();
    let thread =
        std::thread::Builder::new().name("compiler".to_owned()).stack_size(PARSER_STACK_BYTES);
    let parse = move || {
        // It is free when the thread is, whether anybody still waits or not.
        let _permit = permit;
        let parsed = parse(&|| !answer.is_closed());
        // Whoever asked may have gone away.
        drop(answer.send(parsed));
    };
    thread.spawn(parse).map_err(|error| StorageError::Unavailable {
        reason: format!("no thread to parse conditions on: {error}"),
    })?;
    outcome
        .await
        .map_err(|_| EngineError::Defect { reason: "the parser of conditions panicked".to_owned() })
}

fn busy() -> EngineError {
    unavailable("too many definitions are being compiled; try again later").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::limits::ALL_CONDITIONS_BYTES_MAX;
    use crate::domain::{TransitionDraft, WorkflowDraft};

    fn draft(conditions: &[&str], count: usize) -> WorkflowDraft {
        let transition = |n: usize| TransitionDraft {
            id: format!("t{n}"),
            from_places: vec!["a".to_owned()],
            to_place: "b".to_owned(),
            conditions: conditions.iter().map(ToString::to_string).collect(),
            ..TransitionDraft::default()
        };
        WorkflowDraft {
            id: Some("w".to_owned()),
            name: "w".to_owned(),
            places: vec!["a".to_owned(), "b".to_owned()],
            initial_place: "a".to_owned(),
            transitions: (0..count).map(transition).collect(),
            ..WorkflowDraft::default()
        }
    }

    fn checked(draft: WorkflowDraft) -> Workflow {
        let check = move || Workflow::check(draft, chrono::DateTime::UNIX_EPOCH);
        let thread = std::thread::Builder::new().stack_size(PARSER_STACK_BYTES).spawn(check);
        thread.unwrap().join().unwrap().unwrap()
    }

    #[test]
    fn a_definition_with_as_many_conditions_as_are_allowed_is_kept() {
        let condition = "token.data.amount > 1000 || input.role == 'director'";
        let count = ALL_CONDITIONS_BYTES_MAX / condition.len() / 4;
        let workflow = Arc::new(checked(draft(&[condition; 4], count)));
        assert!(workflow.memory_bytes() as u64 <= LARGEST_BYTES, "{}", workflow.memory_bytes());
        let definitions = Definitions::new(Arc::new(crate::InMemoryStorage::new()));
        definitions.remember(&workflow);
        assert!(definitions.cache.get(&workflow.definition().id).is_some());
    }

    #[tokio::test]
    async fn a_definition_is_compiled_once_for_all_who_wait() {
        let storage = Arc::new(crate::InMemoryStorage::new());
        let stored = checked(draft(&["next.n > 1 && input.x.matches('^a+$')"; 8], 100));
        let definition = stored.definition().clone();
        let id = definition.id.clone();
        let event = crate::domain::WorkflowEvent::workflow_created(id.clone(), chrono::Utc::now());
        storage.insert_workflow(definition, event).await.unwrap();
        let definitions = Arc::new(Definitions::new(storage));
        let ask = || {
            let (definitions, id) = (Arc::clone(&definitions), id.clone());
            tokio::spawn(async move { definitions.get(&id).await.unwrap().unwrap() })
        };
        // Who came first, and goes away, leaves it to the next.
        let gone = ask();
        tokio::task::yield_now().await;
        let others: Vec<_> = (0..20).map(|_| ask()).collect();
        gone.abort();
        let mut got = Vec::new();
        for other in others {
            got.push(other.await.unwrap());
        }
        assert!(got.iter().all(|workflow| Arc::ptr_eq(workflow, &got[0])), "one for all");
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_told_so() {
        let (told, heard) = tokio::sync::oneshot::channel();
        let waiting = tokio::spawn(compile(move |wanted| {
            while wanted() {
                std::thread::yield_now();
            }
            told.send(()).unwrap();
        }));
        tokio::task::yield_now().await;
        waiting.abort();
        heard.await.unwrap();
        // It is no definition then.
        let draft = draft(&["true"], 1);
        let checked = Workflow::check_while(&|| false, draft, chrono::DateTime::UNIX_EPOCH);
        let problems = checked.unwrap_err();
        assert!(problems[0].message.contains("nobody waits"), "{problems:?}");
    }
}
