//! Which workflows a token's id may belong to.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::domain::{WorkflowId, workflow_hash};

/// Workflows that are known by the hash of their id. Above that, tokens of the others are looked
/// for in all workflows: slower, but found all the same.
const WORKFLOWS_MAX: usize = 100_000;

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

    /// The workflows with this hash, nearly always one.
    pub fn with_hash(&self, hash: u32) -> Vec<WorkflowId> {
        self.known().by_hash.get(&hash).cloned().unwrap_or_default()
    }
}
