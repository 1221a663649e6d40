//! What can be asked.

use async_graphql::{Context, Json, Object, Result};
use serde_json::Value;

use super::budget::session;
use super::error::{answer, invalid_input};
use super::explain::TransitionExplanation;
use super::input::{given, place_id, token_id, workflow_id};
use super::rows::Rows;
use super::types::{
    Health, NatsToken, Token, TokenConnection, Transition, TransitionRecordConnection, Workflow,
    WorkflowConnection,
};
use crate::domain::WorkflowDefinition;
use crate::engine::{ReadToken, TokenPageRequest};
use crate::storage::Sequence;

/// Reads. Whatever was acknowledged before, every one of them shows.
pub struct Query;

fn page_size(first: i32) -> usize {
    // What is out of range, the engine names.
    usize::try_from(first).unwrap_or(0)
}

fn after(cursor: Option<String>) -> Result<Option<Sequence>> {
    const MAX: u64 = i64::MAX as u64 - 1;
    let Some(cursor) = cursor else { return Ok(None) };
    // As it is written, and no more than a store can have.
    match cursor.parse::<u64>() {
        Ok(sequence @ 1..=MAX) if sequence.to_string() == cursor => Ok(Some(Sequence(sequence))),
        _ => Err(invalid_input("after", "use the endCursor of the page before")),
    }
}

/// What a field answers that may be null: an error of it makes nothing else null. (The library would make the
/// whole answer null for the error of a resolver that gives `Result<Option<_>>`.)
fn nullable<F, T: From<F>>(found: Result<Option<F>>) -> Option<Result<T>> {
    found.transpose().map(|found| found.map(T::from))
}

async fn token(ctx: &Context<'_>, id: &str) -> Result<Option<ReadToken>> {
    session(ctx).token(token_id("id", id)?).await.map_err(answer)
}

async fn token_of(ctx: &Context<'_>, workflow: String, token: &str) -> Result<Option<ReadToken>> {
    let (workflow, token) = (workflow_id("workflowId", workflow)?, token_id("tokenId", token)?);
    session(ctx).token_of(&workflow, token).await.map_err(answer)
}

async fn workflow(ctx: &Context<'_>, id: String) -> Result<Option<WorkflowDefinition>> {
    session(ctx).workflow(&workflow_id("id", id)?).await.map_err(answer)
}

#[Object]
impl Query {
    /// A token by id, with where it stands in NATS. Null where there is none.
    async fn nats_token(&self, ctx: &Context<'_>, id: String) -> Option<Result<NatsToken>> {
        nullable(token(ctx, &id).await)
    }

    /// The tokens that are in a place now, oldest arrival first. RESULT_TOO_LARGE above 10,000: page with tokenConnection.
    async fn tokens_in_place(
        &self,
        ctx: &Context<'_>,
        #[graphql(name = "workflowId")] workflow: String,
        #[graphql(name = "placeId")] place: String,
    ) -> Result<Rows<NatsToken>> {
        let (workflow, place) = (workflow_id("workflowId", workflow)?, place_id("placeId", place)?);
        let tokens = session(ctx).tokens_in_place(workflow, place).await.map_err(answer)?;
        Ok(tokens.into_iter().collect())
    }

    /// A token by workflow and id. Null where the workflow has none of that id.
    async fn find_token(
        &self,
        ctx: &Context<'_>,
        #[graphql(name = "workflowId")] workflow: String,
        #[graphql(name = "tokenId")] token: String,
    ) -> Option<Result<NatsToken>> {
        nullable(token_of(ctx, workflow, &token).await)
    }

    /// A token by id. Null where there is none.
    async fn token(&self, ctx: &Context<'_>, id: String) -> Option<Result<Token>> {
        nullable(token(ctx, &id).await)
    }

    /// All tokens, of one workflow or of all. RESULT_TOO_LARGE above 10,000.
    async fn tokens(
        &self,
        ctx: &Context<'_>,
        #[graphql(name = "workflowId")] workflow: Option<String>,
    ) -> Result<Rows<Token>> {
        let workflow = workflow.map(|id| workflow_id("workflowId", id)).transpose()?;
        let tokens = session(ctx).tokens(workflow).await.map_err(answer)?;
        Ok(tokens.into_iter().collect())
    }

    /// Tokens by page, oldest arrival first; `after` is the endCursor of the page before. A page is at most 1,000, and shorter where tokens are large. A token that moves meanwhile may come again, one that stays is never missed.
    async fn token_connection(
        &self,
        ctx: &Context<'_>,
        #[graphql(name = "workflowId")] workflow: Option<String>,
        #[graphql(name = "placeId")] place: Option<String>,
        #[graphql(default = 100)] first: i32,
        #[graphql(name = "after")] cursor: Option<String>,
    ) -> Result<TokenConnection> {
        let request = TokenPageRequest {
            workflow: workflow.map(|id| workflow_id("workflowId", id)).transpose()?,
            place: place.map(|id| place_id("placeId", id)).transpose()?,
            first: page_size(first),
            after: after(cursor)?,
        };
        let page = session(ctx).token_page(request).await.map_err(answer)?;
        Ok(page.into())
    }

    /// Every transition that a token has made, newest first, by page, for as long as history is kept.
    async fn token_history(
        &self,
        ctx: &Context<'_>,
        #[graphql(name = "tokenId")] token: String,
        #[graphql(default = 50)] first: i32,
        #[graphql(name = "after")] cursor: Option<String>,
    ) -> Result<TransitionRecordConnection> {
        let (token, after) = (token_id("tokenId", &token)?, after(cursor)?);
        let page =
            session(ctx).token_history(token, page_size(first), after).await.map_err(answer)?;
        Ok(page.into())
    }

    /// The transitions that may fire from where the token is now, with this data, for this caller.
    async fn available_transitions(
        &self,
        ctx: &Context<'_>,
        #[graphql(name = "tokenId")] token: String,
        data: Option<Json<Value>>,
    ) -> Result<Rows<Transition<'_>>> {
        let token = token_id("tokenId", &token)?;
        let transitions =
            session(ctx).available_transitions(token, given(data)).await.map_err(answer)?;
        Ok(transitions.into_iter().collect())
    }

    /// Every transition that starts where the token is: may it fire with this data, and if not, all the reasons.
    async fn explain_transitions(
        &self,
        ctx: &Context<'_>,
        #[graphql(name = "tokenId")] token: String,
        data: Option<Json<Value>>,
    ) -> Result<Rows<TransitionExplanation>> {
        let token = token_id("tokenId", &token)?;
        let explained =
            session(ctx).explain_transitions(token, given(data)).await.map_err(answer)?;
        Ok(explained.into_iter().collect())
    }

    /// A workflow by id. Null where there is none.
    async fn workflow(&self, ctx: &Context<'_>, id: String) -> Option<Result<Workflow>> {
        nullable(workflow(ctx, id).await)
    }

    /// Workflows by page, by id; `workflows` is RESULT_TOO_LARGE where they are too many and names this one.
    async fn workflow_connection(
        &self,
        ctx: &Context<'_>,
        #[graphql(default = 100)] first: i32,
        after: Option<String>,
    ) -> Result<WorkflowConnection> {
        let rule = "use the endCursor of the page before";
        let after = after.map(|cursor| cursor.parse().map_err(|_| invalid_input("after", rule)));
        let page = session(ctx).workflow_page(page_size(first), after.transpose()?).await;
        let page = page.map_err(answer)?;
        Ok(page.into())
    }

    /// All workflows, ordered by id. RESULT_TOO_LARGE above 10,000: page with workflowConnection.
    async fn workflows(&self, ctx: &Context<'_>) -> Result<Rows<Workflow>> {
        let workflows = session(ctx).workflows().await.map_err(answer)?;
        Ok(workflows.into_iter().collect())
    }

    /// How the server and its store do.
    async fn health(&self, ctx: &Context<'_>) -> Result<Health> {
        Ok(session(ctx).health().await.map_err(answer)?.into())
    }
}
