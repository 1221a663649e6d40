//! Definitions with their conditions compiled, kept for as long as there is room.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;

use super::EngineError;
use crate::domain::condition::PARSER_STACK_BYTES;
use crate::domain::{Workflow, WorkflowId};
use crate::storage::{StorageError, WorkflowStorage, cache};

/// Bytes that kept definitions may take, as [`Workflow::memory_bytes`] estimates them.
const CACHE_BYTES_MAX: u64 = 32 << 20;

/// Bytes of a definition with the most conditions that are allowed, about.
const LARGEST_BYTES: u64 = 30 << 20;

/// Definitions that the cache is laid out for; its table grows up to the bytes above.
const CACHE_ITEMS: usize = 1_024;

/// Definitions that are compiled at once; whoever comes after waits.
static COMPILERS: Semaphore = Semaphore::const_new(2);

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
        let workflow = compile(move || Workflow::load(definition)).await?.map_err(|problems| {
            let reason = problems
                .first()
                .map_or_else(String::new, |first| format!("{}: {}", first.field, first.message));
            StorageError::Corrupt { what: format!("workflow {id}"), reason }
        })?;
        let workflow = Arc::new(workflow);
        self.remember(&workflow);
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

/// Runs a calculation that parses conditions, on a thread with the stack that their parser needs.
pub async fn compile<T: Send + 'static>(
    parse: impl FnOnce() -> T + Send + 'static,
) -> Result<T, EngineError> {
    let _permit = COMPILERS
        .acquire()
        .await
        .map_err(|error| EngineError::Defect { reason: error.to_string() })?;
    let (answer, outcome) = tokio::sync::oneshot::channel();
    let thread =
        std::thread::Builder::new().name("compiler".to_owned()).stack_size(PARSER_STACK_BYTES);
    thread
        // Whoever asked may have gone away.
        .spawn(move || drop(answer.send(parse())))
        .map_err(|error| StorageError::Unavailable {
            reason: format!("no thread to parse conditions on: {error}"),
        })?;
    outcome
        .await
        .map_err(|_| EngineError::Defect { reason: "the parser of conditions panicked".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::limits::ALL_CONDITIONS_BYTES_MAX;
    use crate::domain::{TransitionDraft, WorkflowDraft};

    #[test]
    fn a_definition_with_as_many_conditions_as_are_allowed_is_kept() {
        let condition = "token.data.amount > 1000 || input.role == 'director'";
        let transition = |n: usize| TransitionDraft {
            id: format!("t{n}"),
            from_places: vec!["a".to_owned()],
            to_place: "b".to_owned(),
            conditions: vec![condition.to_owned(); 4],
            ..TransitionDraft::default()
        };
        let count = ALL_CONDITIONS_BYTES_MAX / condition.len() / 4;
        let draft = WorkflowDraft {
            id: Some("w".to_owned()),
            name: "w".to_owned(),
            places: vec!["a".to_owned(), "b".to_owned()],
            initial_place: "a".to_owned(),
            transitions: (0..count).map(transition).collect(),
            ..WorkflowDraft::default()
        };
        let check = move || Workflow::check(draft, chrono::DateTime::UNIX_EPOCH);
        let thread = std::thread::Builder::new().stack_size(PARSER_STACK_BYTES).spawn(check);
        let workflow = Arc::new(thread.unwrap().join().unwrap().unwrap());
        assert!(workflow.memory_bytes() as u64 <= LARGEST_BYTES, "{}", workflow.memory_bytes());
        let definitions = Definitions::new(Arc::new(crate::InMemoryStorage::new()));
        definitions.remember(&workflow);
        assert!(definitions.cache.get(&workflow.definition().id).is_some());
    }
}
