//! Whole lists, as the NATS guide's migration reads them. Requests read by page instead.

use std::collections::HashMap;

use super::{Page, PageLimit, StorageError, TokenScope, WorkflowStorage};
use crate::domain::{Token, WorkflowDefinition, WorkflowId};

/// Bytes of one list in memory: as much as a store in memory holds at most.
const LIST_BYTES_MAX: usize = 1 << 30;

/// What is read at once.
const STEP: PageLimit = PageLimit { rows: 1_000, bytes: 8 << 20 };

/// Adds up the pages of a list.
struct Total {
    what: String,
    bytes: usize,
}

impl Total {
    fn of(what: String) -> Self {
        Self { what, bytes: 0 }
    }

    fn add<T>(&mut self, page: &Page<T>) -> Result<(), StorageError> {
        self.bytes += page.bytes;
        if self.bytes > LIST_BYTES_MAX {
            let (what, bytes) = (self.what.clone(), self.bytes);
            return Err(StorageError::TooLarge { what, bytes, bytes_max: LIST_BYTES_MAX });
        }
        Ok(())
    }
}

/// All definitions, ordered by id. [`StorageError::TooLarge`] above 1 GiB.
pub(super) async fn workflows(
    storage: &dyn WorkflowStorage,
) -> Result<Vec<WorkflowDefinition>, StorageError> {
    let (mut all, mut total) = (Vec::new(), Total::of("the list of workflows".to_owned()));
    loop {
        let after = all.last().map(|last: &WorkflowDefinition| last.id.clone());
        let page = storage.list_workflows(after.as_ref(), STEP).await?;
        total.add(&page)?;
        all.extend(page.items);
        if !page.more {
            return Ok(all);
        }
    }
}

/// All tokens of a workflow, in the order of their arrival, each once.
/// [`StorageError::TooLarge`] above 1 GiB.
pub(super) async fn tokens(
    storage: &dyn WorkflowStorage,
    workflow: &WorkflowId,
) -> Result<Vec<Token>, StorageError> {
    let scope = TokenScope::Workflow(workflow.clone());
    let mut total = Total::of(format!("the list of the tokens of workflow {workflow}"));
    // A token that moves meanwhile arrives anew; what counts is how it was seen last.
    let (mut newest, mut after) = (HashMap::new(), None);
    loop {
        let page = storage.list_tokens(&scope, after, STEP).await?;
        total.add(&page)?;
        after = page.items.last().map(|stored| stored.revision).or(after);
        newest.extend(page.items.into_iter().map(|stored| (stored.token.id, stored)));
        if !page.more {
            break;
        }
    }
    let mut all: Vec<_> = newest.into_values().collect();
    all.sort_unstable_by_key(|stored| stored.revision);
    Ok(all.into_iter().map(|stored| Token::clone(&stored.token)).collect())
}
