//! Which workflow a token's id belongs to, and which workflows there are.
//!
//! An id that is made here ends in a hash of its workflow. The first workflow that was created with a
//! hash has it: a pointer says which one that is. A token of that workflow is found by its id alone;
//! every other token has a pointer of its own, as an id that a client chose can end in anything.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::epoch::{Epoch, Remembered};
use super::reader::Reader;
use crate::domain::{WorkflowId, workflow_hash};
use crate::storage::StorageError;
use crate::storage::nats::wire::jetstream::ApiError;
use crate::storage::nats::wire::link::Link;
use crate::storage::nats::wire::names;
use crate::storage::nats::wire::subjects;

/// Hashes of which the first workflow is kept; the pointers of others are read each time.
const FIRSTS_MAX: usize = 100_000;

/// How long a list of all workflows is used.
const LISTED_FOR: Duration = Duration::from_secs(1);

/// What is known of workflows. A definition never goes, nor does the pointer of its hash, so what is
/// known stays true for as long as the store lives.
pub struct WorkflowIndex {
    epoch: Arc<Epoch>,
    firsts: Remembered<u32, WorkflowId>,
    listed: Mutex<Listed>,
}

#[derive(Debug, Default)]
struct Listed {
    /// The ids of all, as they were listed at some time.
    all: Option<(Instant, Arc<Vec<WorkflowId>>)>,
    /// How many were answered that it may lack.
    answered: u64,
}

/// What a pointer says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pointer {
    pub workflow: WorkflowId,
    pub sequence: u64,
}

impl WorkflowIndex {
    pub fn new(epoch: Arc<Epoch>) -> Self {
        let firsts = Remembered::new(Arc::clone(&epoch), FIRSTS_MAX);
        Self { epoch, firsts, listed: Mutex::default() }
    }

    fn listed(&self) -> MutexGuard<'_, Listed> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets which workflows there are; the rest goes with its epoch.
    pub fn forget(&self) {
        let mut listed = self.listed();
        // Also for one that is listed at this moment.
        (listed.all, listed.answered) = (None, listed.answered + 1);
    }

    /// The first workflow that was created with a hash, if there is one.
    pub async fn first(
        &self,
        reader: &Reader,
        hash: u32,
    ) -> Result<Option<WorkflowId>, StorageError> {
        if let Some(first) = self.firsts.get(&hash) {
            return Ok(Some(first));
        }
        let begun = self.epoch.now();
        // That there is none is not kept: another server may create one at any time.
        let first = read_pointer(reader, &names::hash_pointer(hash)).await?;
        let first = first.map(|pointer| pointer.workflow);
        if let Some(first) = &first {
            self.firsts.insert(begun, hash, first.clone());
        }
        Ok(first)
    }

    /// The first workflow with the hash that this id ends in, if it ends in one.
    pub async fn first_of(
        &self,
        reader: &Reader,
        token: Uuid,
    ) -> Result<Option<WorkflowId>, StorageError> {
        match names::named_hash(token) {
            Some(hash) => self.first(reader, hash).await,
            None => Ok(None),
        }
    }

    /// Whether a token has a pointer, as its id does not say where to look for it.
    pub async fn has_pointer(
        &self,
        reader: &Reader,
        token: Uuid,
        workflow: &WorkflowId,
    ) -> Result<bool, StorageError> {
        if !names::id_names_workflow(token, workflow) {
            return Ok(true);
        }
        Ok(self.first(reader, workflow_hash(workflow)).await?.as_ref() != Some(workflow))
    }

    /// Notes that it is answered that there is this workflow: no list may lack it from now on.
    pub fn answered(&self, workflow: &WorkflowId) {
        let mut listed = self.listed();
        let is_listed =
            |(_, all): &(Instant, Arc<Vec<WorkflowId>>)| all.binary_search(workflow).is_ok();
        if !listed.all.as_ref().is_some_and(is_listed) {
            listed.answered += 1;
            listed.all = None;
        }
    }

    /// The ids of all workflows, in their order; those of other servers with a moment's delay.
    ///
    /// nats-server lists all or none, so the pages of one walk share a list.
    pub async fn all(&self, link: &Link) -> Result<Arc<Vec<WorkflowId>>, ApiError> {
        let answered = {
            let listed = self.listed();
            match &listed.all {
                Some((at, all)) if at.elapsed() < LISTED_FOR => return Ok(Arc::clone(all)),
                _ => listed.answered,
            }
        };
        let all = Arc::new(subjects::workflows(link).await?);
        let mut listed = self.listed();
        if listed.answered == answered {
            listed.all = Some((Instant::now(), Arc::clone(&all)));
        }
        Ok(all)
    }
}

/// The pointer of a token's id, if it has one. It may be one that nobody took further: the token need
/// not be there.
pub async fn pointer_of(reader: &Reader, token: Uuid) -> Result<Option<Pointer>, StorageError> {
    read_pointer(reader, &names::pointer(token)).await
}

async fn read_pointer(reader: &Reader, subject: &str) -> Result<Option<Pointer>, StorageError> {
    let stored = reader.last(subject).await?;
    stored
        .map(|stored| Ok(Pointer { workflow: stored.pointer()?, sequence: stored.sequence }))
        .transpose()
}
