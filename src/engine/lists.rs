//! What is asked for by list: bounded in rows and in bytes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use uuid::Uuid;

use super::{Engine, EngineError};
use crate::domain::limits::{LIST_ROWS_MAX, PAGE_BYTES_MAX, PAGE_ROWS_MAX, RESULT_BYTES_MAX};
use crate::domain::{PlaceId, WorkflowDefinition, WorkflowId};
use crate::storage::{
    Page, PageLimit, Sequence, StorageError, StoredEvent, StoredToken, TokenScope,
};

/// Requests that read lists at once; a list is held in memory until its answer is written.
const LISTERS_MAX: usize = 8;

/// Time that a list waits for its turn.
const TURN_WAIT_MAX: Duration = Duration::from_secs(5);

/// What the lists of one request may still read, [`RESULT_BYTES_MAX`] and [`LIST_ROWS_MAX`] in all.
///
/// From its first list until it is dropped it holds one of a few places, so that not all clients
/// together fill the memory either.
#[derive(Debug)]
pub struct ReadBudget {
    places: Arc<Semaphore>,
    // Held across a read on purpose: the lists of one request take turns, each sees what is left.
    state: Mutex<BudgetState>,
}

#[derive(Debug)]
struct BudgetState {
    bytes_left: usize,
    rows_left: usize,
    place: Option<OwnedSemaphorePermit>,
}

/// The places of [`ReadBudget`]s.
pub(super) fn list_places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(LISTERS_MAX))
}

impl ReadBudget {
    async fn turn(&self) -> Result<MutexGuard<'_, BudgetState>, EngineError> {
        let mut state = self.state.lock().await;
        if state.place.is_none() {
            let busy = |reason: &str| StorageError::Unavailable { reason: reason.to_owned() };
            let place = Arc::clone(&self.places).acquire_owned();
            let place = timeout(TURN_WAIT_MAX, place)
                .await
                .map_err(|_| busy("too many lists are being read"))?;
            state.place = Some(place.map_err(|_| busy("it was closed"))?);
        }
        if state.bytes_left == 0 || state.rows_left == 0 {
            return Err(too_large());
        }
        Ok(state)
    }
}

impl BudgetState {
    fn bound(&self, limit: PageLimit) -> PageLimit {
        let PageLimit { rows, bytes } = limit;
        PageLimit { rows: rows.min(self.rows_left), bytes: bytes.min(self.bytes_left) }
    }

    /// The same for a page: its rows are not fewer than were asked for because of others.
    fn bound_page(&self, limit: PageLimit) -> Result<PageLimit, EngineError> {
        if limit.rows > self.rows_left {
            return Err(too_large());
        }
        Ok(self.bound(limit))
    }

    fn pay<T>(&mut self, page: Page<T>) -> Page<T> {
        self.bytes_left = self.bytes_left.saturating_sub(page.bytes);
        self.rows_left = self.rows_left.saturating_sub(page.items.len());
        page
    }
}

const LIST_LIMIT: PageLimit = PageLimit { rows: LIST_ROWS_MAX, bytes: RESULT_BYTES_MAX };

fn whole<T>(page: Page<T>) -> Result<Vec<T>, EngineError> {
    if page.more { Err(too_large()) } else { Ok(page.items) }
}

fn too_large() -> EngineError {
    EngineError::ResultTooLarge { rows: LIST_ROWS_MAX, bytes: RESULT_BYTES_MAX }
}

/// Which page of which tokens.
#[derive(Debug)]
pub struct TokenPageRequest {
    /// Of one workflow, or of all.
    pub workflow: Option<WorkflowId>,
    /// In one place of that workflow.
    pub place: Option<PlaceId>,
    /// Rows; the page may be shorter where tokens are large.
    pub first: usize,
    /// The revision of the last token of the page before.
    pub after: Option<Sequence>,
}

impl Engine {
    /// What the lists of one request may read.
    pub fn read_budget(&self) -> ReadBudget {
        let state =
            BudgetState { bytes_left: RESULT_BYTES_MAX, rows_left: LIST_ROWS_MAX, place: None };
        ReadBudget { places: Arc::clone(&self.list_places), state: Mutex::new(state) }
    }

    /// All tokens of a workflow, or of all workflows, oldest arrival first.
    pub async fn tokens(
        &self,
        workflow: Option<WorkflowId>,
        budget: &ReadBudget,
    ) -> Result<Vec<StoredToken>, EngineError> {
        let scope = self.scope(workflow, None).await?;
        self.all_tokens(scope, budget).await
    }

    /// The tokens that are in a place now, oldest arrival first.
    pub async fn tokens_in_place(
        &self,
        workflow: WorkflowId,
        place: PlaceId,
        budget: &ReadBudget,
    ) -> Result<Vec<StoredToken>, EngineError> {
        let scope = self.scope(Some(workflow), Some(place)).await?;
        self.all_tokens(scope, budget).await
    }

    /// A page of tokens, oldest arrival first.
    pub async fn token_page(
        &self,
        request: TokenPageRequest,
        budget: &ReadBudget,
    ) -> Result<Page<StoredToken>, EngineError> {
        let limit = page_limit(request.first)?;
        let scope = self.scope(request.workflow, request.place).await?;
        let mut turn = budget.turn().await?;
        let limit = turn.bound_page(limit)?;
        let page = self.storage.list_tokens(&scope, request.after, limit).await?;
        Ok(turn.pay(page))
    }

    /// A page of the moves of a token, newest first.
    pub async fn token_history(
        &self,
        token: Uuid,
        first: usize,
        before: Option<Sequence>,
        budget: &ReadBudget,
    ) -> Result<Page<StoredEvent>, EngineError> {
        let limit = page_limit(first)?;
        let stored = self.token_to_act_on(token).await?;
        let mut turn = budget.turn().await?;
        let limit = turn.bound_page(limit)?;
        let page = self.storage.token_moves(&stored.token, before, limit).await;
        let page = page.map_err(|error| match error {
            StorageError::ForeignCursor { .. } => EngineError::InvalidInput {
                field: "after",
                rule: format!("{error}; use the endCursor of the page before"),
            },
            error => error.into(),
        })?;
        Ok(turn.pay(page))
    }

    /// All workflows, ordered by id.
    pub async fn workflows(
        &self,
        budget: &ReadBudget,
    ) -> Result<Vec<WorkflowDefinition>, EngineError> {
        let mut turn = budget.turn().await?;
        let page = self.storage.list_workflows(None, turn.bound(LIST_LIMIT)).await?;
        whole(turn.pay(page))
    }

    async fn all_tokens(
        &self,
        scope: TokenScope,
        budget: &ReadBudget,
    ) -> Result<Vec<StoredToken>, EngineError> {
        let mut turn = budget.turn().await?;
        let page = self.storage.list_tokens(&scope, None, turn.bound(LIST_LIMIT)).await?;
        whole(turn.pay(page))
    }

    /// What a list is of; an unknown workflow or place is an error, as an empty list would hide it.
    async fn scope(
        &self,
        workflow: Option<WorkflowId>,
        place: Option<PlaceId>,
    ) -> Result<TokenScope, EngineError> {
        let Some(workflow) = workflow else {
            let rule = "name the workflow of the place in workflowId".to_owned();
            return match place {
                None => Ok(TokenScope::All),
                Some(_) => Err(EngineError::InvalidInput { field: "placeId", rule }),
            };
        };
        let definition = self.workflow_to_act_on(&workflow).await?;
        match place {
            None => Ok(TokenScope::Workflow(workflow)),
            Some(place) if definition.definition().places.contains(&place) => {
                Ok(TokenScope::Place(workflow, place))
            }
            Some(place) => Err(EngineError::PlaceNotFound { workflow, place }),
        }
    }
}

fn page_limit(rows: usize) -> Result<PageLimit, EngineError> {
    if !(1..=PAGE_ROWS_MAX).contains(&rows) {
        let rule = format!("a page has 1 to {PAGE_ROWS_MAX} rows");
        return Err(EngineError::InvalidInput { field: "first", rule });
    }
    Ok(PageLimit { rows, bytes: PAGE_BYTES_MAX })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::{NewToken, TransitionDraft, WorkflowDraft};
    use crate::storage::memory::InMemoryStorage;

    #[tokio::test]
    async fn the_lists_of_one_request_share_their_rows() {
        let engine = Engine::new(Arc::new(InMemoryStorage::new()));
        let draft = WorkflowDraft {
            id: Some("w".to_owned()),
            name: "w".to_owned(),
            description: None,
            places: vec!["a".to_owned()],
            initial_place: "a".to_owned(),
            transitions: Vec::<TransitionDraft>::new(),
        };
        let workflow = engine.create_workflow(draft).await.unwrap().definition().id.clone();
        for _ in 0..PAGE_ROWS_MAX {
            engine.create_token(&workflow, None, NewToken::default()).await.unwrap();
        }
        let budget = engine.read_budget();
        let page = |first| TokenPageRequest { workflow: None, place: None, first, after: None };
        for n in 0..LIST_ROWS_MAX / PAGE_ROWS_MAX - 1 {
            let page = engine.token_page(page(PAGE_ROWS_MAX), &budget).await.unwrap();
            assert_eq!(page.items.len(), PAGE_ROWS_MAX, "page {n}");
        }
        engine.token_page(page(1), &budget).await.unwrap();
        let too_many = engine.token_page(page(PAGE_ROWS_MAX), &budget).await.unwrap_err();
        assert!(matches!(too_many, EngineError::ResultTooLarge { .. }), "{too_many}");
        engine.token_page(page(PAGE_ROWS_MAX - 2), &budget).await.unwrap();
        // One row is left.
        let too_many = engine.tokens(None, &budget).await.unwrap_err();
        assert!(matches!(too_many, EngineError::ResultTooLarge { .. }), "{too_many}");
    }
}
