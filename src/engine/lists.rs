//! What can be asked of many things, all of them or page by page.

use uuid::Uuid;

use super::budget::too_large;
use super::{EngineError, Session};
use crate::domain::limits::{LIST_ROWS_MAX, PAGE_BYTES_MAX, PAGE_ROWS_MAX, RESULT_BYTES_MAX};
use crate::domain::{PlaceId, WorkflowDefinition, WorkflowId};
use crate::storage::{
    Page, PageLimit, Sequence, StorageError, StoredEvent, StoredToken, TokenScope,
};

const LIST_LIMIT: PageLimit = PageLimit { rows: LIST_ROWS_MAX, bytes: RESULT_BYTES_MAX };

fn whole<T>(page: Page<T>) -> Result<Vec<T>, EngineError> {
    if page.more { Err(too_large()) } else { Ok(page.items) }
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

pub async fn tokens(
    session: &Session,
    workflow: Option<WorkflowId>,
    place: Option<PlaceId>,
) -> Result<Vec<StoredToken>, EngineError> {
    let scope = scope(session, workflow, place).await?;
    let read = |limit| session.engine.storage.list_tokens(&scope, None, limit);
    whole(session.budget.list(|lists| Ok(lists.bound(LIST_LIMIT)), read).await?)
}

pub async fn token_page(
    session: &Session,
    request: TokenPageRequest,
) -> Result<Page<StoredToken>, EngineError> {
    let limit = page_limit(request.first)?;
    let scope = scope(session, request.workflow, request.place).await?;
    let read = |limit| session.engine.storage.list_tokens(&scope, request.after, limit);
    session.budget.list(|lists| lists.bound_page(limit), read).await
}

pub async fn token_history(
    session: &Session,
    token: Uuid,
    first: usize,
    before: Option<Sequence>,
) -> Result<Page<StoredEvent>, EngineError> {
    let limit = page_limit(first)?;
    let stored = session.token_to_act_on(token).await?;
    let read = |limit| session.engine.storage.token_moves(&stored.token, before, limit);
    let page = session.budget.list(|lists| lists.bound_page(limit), read).await;
    page.map_err(|error| match error {
        EngineError::Storage(error @ StorageError::ForeignCursor { .. }) => {
            EngineError::InvalidInput {
                field: "after",
                rule: format!("{error}; use the endCursor of the page before"),
            }
        }
        error => error,
    })
}

pub async fn workflows(session: &Session) -> Result<Vec<WorkflowDefinition>, EngineError> {
    let read = |limit| session.engine.storage.list_workflows(None, limit);
    whole(session.budget.list(|lists| Ok(lists.bound(LIST_LIMIT)), read).await?)
}

pub async fn workflow_page(
    session: &Session,
    first: usize,
    after: Option<WorkflowId>,
) -> Result<Page<WorkflowDefinition>, EngineError> {
    let limit = page_limit(first)?;
    let read = |limit| session.engine.storage.list_workflows(after.as_ref(), limit);
    session.budget.list(|lists| lists.bound_page(limit), read).await
}

/// What a list is of; an unknown workflow or place is an error, as an empty list would hide it.
async fn scope(
    session: &Session,
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
    let definition = session.workflow_to_act_on(&workflow).await?;
    match place {
        None => Ok(TokenScope::Workflow(workflow)),
        Some(place) if definition.definition().places.contains(&place) => {
            Ok(TokenScope::Place(workflow, place))
        }
        Some(place) => Err(EngineError::PlaceNotFound { workflow, place }),
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
    use crate::domain::{Caller, NewToken, TransitionDraft, WorkflowDraft};
    use crate::engine::Engine;
    use crate::storage::memory::InMemoryStorage;

    #[tokio::test]
    async fn the_lists_of_one_request_share_their_rows() {
        let engine = Arc::new(Engine::new(Arc::new(InMemoryStorage::new())));
        let session = engine.session(Caller::anyone());
        let draft = WorkflowDraft {
            id: Some("w".to_owned()),
            name: "w".to_owned(),
            places: vec!["a".to_owned()],
            initial_place: "a".to_owned(),
            transitions: Vec::<TransitionDraft>::new(),
            ..WorkflowDraft::default()
        };
        let workflow = session.create_workflow(draft).await.unwrap().definition().id.clone();
        for _ in 0..PAGE_ROWS_MAX {
            session.create_token(&workflow, None, NewToken::default()).await.unwrap();
        }
        let session = engine.session(Caller::anyone());
        let page = |first| TokenPageRequest { workflow: None, place: None, first, after: None };
        for n in 0..LIST_ROWS_MAX / PAGE_ROWS_MAX - 1 {
            let page = session.token_page(page(PAGE_ROWS_MAX)).await.unwrap();
            assert_eq!(page.items.len(), PAGE_ROWS_MAX, "page {n}");
        }
        session.token_page(page(1)).await.unwrap();
        let too_many = session.token_page(page(PAGE_ROWS_MAX)).await.unwrap_err();
        assert!(matches!(too_many, EngineError::ResultTooLarge { .. }), "{too_many}");
        session.token_page(page(PAGE_ROWS_MAX - 2)).await.unwrap();
        // One row is left.
        let too_many = session.tokens(None).await.unwrap_err();
        assert!(matches!(too_many, EngineError::ResultTooLarge { .. }), "{too_many}");
    }

    #[tokio::test]
    async fn what_is_refused_as_the_answer_is_too_large_is_counted_as_that() {
        let engine = Arc::new(Engine::new(Arc::new(InMemoryStorage::new())));
        let session = engine.session(Caller::anyone());
        session.charge_answer(usize::MAX / 2).await.unwrap_err();
        let refused = session.token(uuid::Uuid::nil()).await.unwrap_err();
        assert!(matches!(refused, EngineError::ResultTooLarge { .. }), "{refused}");
        let figures = engine.session(Caller::anyone()).figures().await.unwrap();
        let count = |outcome: &str| {
            let labels = format!("operation=\"token\",outcome=\"{outcome}\"");
            figures.iter().find(|figure| figure.labels == labels).unwrap().value
        };
        assert_eq!((count("refused"), count("left")), (1.0, 0.0));
    }
}
