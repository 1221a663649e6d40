//! What can be changed.

use async_graphql::{Context, Object, Result};

use super::budget::session;
use super::error::answer;
use super::input::{
    CreateWorkflowInstanceInput, TokenCreateInput, TransitionFireInput,
    TransitionTokenWithNatsInput, WorkflowDefinitionInput,
};
use super::progress::Progress;
use super::types::{NatsToken, Token, Workflow};
use crate::engine::EngineError;

/// Writes. An answer without an error is on disk; the fields of one request are done in their order, and those before one that fails stay.
pub struct Mutation;

#[Object]
impl Mutation {
    /// Stores a definition. The same definition again is no error and answers with the one that is there.
    async fn create_workflow(
        &self,
        ctx: &Context<'_>,
        input: WorkflowDefinitionInput,
    ) -> Result<Workflow> {
        let workflow = session(ctx).create_workflow(input.into_draft()?).await.map_err(answer)?;
        Progress::record(ctx);
        Ok(Workflow(workflow.definition().clone()))
    }

    /// Creates a token.
    async fn create_token(&self, ctx: &Context<'_>, input: TokenCreateInput) -> Result<Token> {
        let (workflow, id, request) = input.into_request()?;
        let created = session(ctx).create_token(&workflow, id, request).await.map_err(answer)?;
        Progress::record(ctx);
        Ok(created.into())
    }

    /// Moves a token.
    async fn fire_transition(
        &self,
        ctx: &Context<'_>,
        input: TransitionFireInput,
    ) -> Result<Token> {
        let (token, request) = input.into_request()?;
        let moved = session(ctx).fire(token, request).await.map_err(answer)?;
        Progress::record(ctx);
        Ok(moved.into())
    }

    /// Creates a token in the workflow's initial place and records who did it.
    async fn create_workflow_instance(
        &self,
        ctx: &Context<'_>,
        input: CreateWorkflowInstanceInput,
    ) -> Result<NatsToken> {
        let (workflow, id, request) = input.into_request()?;
        let named = |error| match error {
            // What the engine calls data has another name in this input.
            EngineError::InvalidInput { field: "data", rule } => {
                EngineError::InvalidInput { field: "initialData", rule }
            }
            other => other,
        };
        let created = session(ctx).create_token(&workflow, id, request).await;
        let created = created.map_err(|error| answer(named(error)))?;
        Progress::record(ctx);
        Ok(created.into())
    }

    /// Fires a transition; `newPlace` must be the place that the transition leads to, else PLACE_MISMATCH.
    async fn transition_token_with_nats(
        &self,
        ctx: &Context<'_>,
        input: TransitionTokenWithNatsInput,
    ) -> Result<NatsToken> {
        let (token, request) = input.into_request()?;
        let moved = session(ctx).fire(token, request).await.map_err(answer)?;
        Progress::record(ctx);
        Ok(moved.into())
    }
}
