//! Which workflows a token's id may belong to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{WorkflowId, workflow_hash};
use crate::storage::nats::wire::jetstream::ApiError;
use crate::storage::nats::wire::link::Link;
use crate::storage::nats::wire::subjects;

/// Workflows that are known by the hash of their id. Above that, tokens of the others are looked
/// for in all workflows: slower, but found all the same.
const WORKFLOWS_MAX: usize = 100_000;

/// How long a list of all workflows is used.
const LISTED_FOR: Duration = Duration::from_secs(1);

/// Workflow ids by the hash that ends the ids of their tokens. It only says where to look first,
/// so it need not be complete.
#[derive(Debug, Default)]
pub struct WorkflowIndex {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_hash: HashMap<u32, Vec<WorkflowId>>,
    count: usize,
    /// The ids of all, as they were listed at some time.
    listed: Option<(Instant, Arc<Vec<WorkflowId>>)>,
    /// How many workflows were created here.
    created: u64,
}

impl WorkflowIndex {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is room for more.
    pub fn has_room(&self) -> bool {
        self.known().count < WORKFLOWS_MAX
    }

    /// Notes that there is such a workflow.
    pub fn learn(&self, workflow: &WorkflowId) {
        let mut known = self.known();
        if known.count >= WORKFLOWS_MAX {
            return;
        }
        let of_hash = known.by_hash.entry(workflow_hash(workflow)).or_default();
        if !of_hash.contains(workflow) {
            of_hash.push(workflow.clone());
            known.count += 1;
        }
    }

    /// Notes that this workflow was created: no list may lack it from now on.
    pub fn created(&self, workflow: &WorkflowId) {
        self.learn(workflow);
        let mut known = self.known();
        known.created += 1;
        known.listed = None;
    }

    /// The ids of all workflows, in their order; those of other servers with a moment's delay.
    ///
    /// nats-server lists all or none, so the pages of one walk share a list.
    pub async fn all(&self, link: &Link) -> Result<Arc<Vec<WorkflowId>>, ApiError> {
        let created = {
            let known = self.known();
            match &known.listed {
                Some((at, listed)) if at.elapsed() < LISTED_FOR => return Ok(Arc::clone(listed)),
                _ => known.created,
            }
        };
        let listed = Arc::new(subjects::workflows(link).await?);
        let mut known = self.known();
        if known.created == created {
            known.listed = Some((Instant::now(), Arc::clone(&listed)));
        }
        Ok(listed)
    }

    /// The workflows with this hash, nearly always one.
    pub fn with_hash(&self, hash: u32) -> Vec<WorkflowId> {
        self.known().by_hash.get(&hash).cloned().unwrap_or_default()
    }
}
