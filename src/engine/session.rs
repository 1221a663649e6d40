//! The door: everything that is asked of the engine goes through here.

use std::sync::Arc;

use serde_json::Value;
use tracing::Instrument;
use uuid::Uuid;

use chrono::{DateTime, Utc};

use super::budget::Budget;
use super::lists::TokenPageRequest;
use super::meter::Verb;
use super::reads::{Health, ReadToken};
use super::{Engine, EngineError, lists, reads, writes};
use crate::domain::{
    Caller, Explanation, MoveRequest, NewToken, PlaceId, TransitionDefinition, Workflow,
    WorkflowDefinition, WorkflowDraft, WorkflowId,
};
use crate::storage::{Figure, Page, Sequence, StoredEvent, StoredToken};

/// One request of one caller: what it asks for shares one budget. Copies are the same session.
#[derive(Clone)]
pub struct Session {
    pub(super) engine: Arc<Engine>,
    pub(super) caller: Arc<Caller>,
    pub(super) budget: Arc<Budget>,
}

/// Somebody waits for the answer of a session for as long as this is there; then its calculations end.
#[must_use]
pub struct Waiting(Arc<Budget>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.steps().stop();
    }
}

impl Session {
    pub(super) fn new(engine: Arc<Engine>, caller: Arc<Caller>, budget: Arc<Budget>) -> Self {
        Self { engine, caller, budget }
    }

    /// What whoever waits for the answer holds on to.
    pub fn waiting(&self) -> Waiting {
        Waiting(Arc::clone(&self.budget))
    }

    /// Takes out of the budget what a part of the answer needs in memory. What is much waits for its place.
    pub async fn charge_answer(&self, bytes: usize) -> Result<(), EngineError> {
        self.budget.charge_answer(bytes).await
    }

    /// Fails if the answer is larger than it may be already: then nothing more is worth while.
    pub fn check_answer(&self) -> Result<(), EngineError> {
        self.budget.check_answer()
    }

    /// What became of the writes of a request that was not answered: UNKNOWN if one has begun.
    pub fn outcome(&self) -> &'static str {
        if self.budget.has_begun_to_write() { "UNKNOWN" } else { "NOT_DONE" }
    }

    /// Takes steps for a calculation that is not asked of the engine.
    pub fn pay_steps(&self, steps: usize) -> Result<(), EngineError> {
        self.budget.pay_steps(i64::try_from(steps).unwrap_or(i64::MAX))
    }

    /// The one function that every verb goes through, with who asks and what it may still cost.
    async fn verb<T>(
        &self,
        verb: Verb,
        work: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        let metered = self.engine.meter.begin(verb);
        let span = tracing::debug_span!("verb", name = verb.name(), caller = %self.caller.id);
        let admitted = async {
            if verb.writes() {
                self.budget.begin_to_write();
            } else {
                self.budget.check_answer()?;
            }
            let _turn = if verb.reads_one() { Some(self.budget.reads_one().await?) } else { None };
            work.await
        };
        let outcome = admitted.instrument(span).await;
        metered.end(&outcome);
        outcome
    }

    /// Checks and stores a definition; one without an id gets a new UUID.
    ///
    /// To create the same definition again is no error: the answer is the one that is there.
    pub async fn create_workflow(
        &self,
        draft: WorkflowDraft,
    ) -> Result<Arc<Workflow>, EngineError> {
        self.verb(Verb::CreateWorkflow, writes::create_workflow(self, draft)).await
    }

    /// Creates a token; with an `id` of the client's choice, at most once.
    pub async fn create_token(
        &self,
        workflow: &WorkflowId,
        id: Option<Uuid>,
        request: NewToken,
    ) -> Result<StoredToken, EngineError> {
        self.verb(Verb::CreateToken, writes::create_token(self, workflow, id, request)).await
    }

    /// Moves a token: loads it, lets the domain decide, commits, and decides anew if another move
    /// came first, a bounded number of times.
    pub async fn fire(
        &self,
        token: Uuid,
        request: MoveRequest,
    ) -> Result<StoredToken, EngineError> {
        self.verb(Verb::Fire, writes::fire(self, token, request)).await
    }

    /// The transitions that may fire from where the token is now, with this data, for this caller.
    pub async fn available_transitions(
        &self,
        token: Uuid,
        data: Option<Value>,
    ) -> Result<Vec<TransitionDefinition>, EngineError> {
        self.verb(Verb::AvailableTransitions, reads::available_transitions(self, token, data)).await
    }

    /// Every transition that starts where the token is, with all that stands in its way.
    pub async fn explain_transitions(
        &self,
        token: Uuid,
        data: Option<Value>,
    ) -> Result<Vec<Explanation>, EngineError> {
        self.verb(Verb::ExplainTransitions, reads::explain_transitions(self, token, data)).await
    }

    /// The token with this id, if there is one.
    pub async fn token(&self, id: Uuid) -> Result<Option<ReadToken>, EngineError> {
        self.verb(Verb::Token, reads::token(self, id, None)).await
    }

    /// The token with this id, if there is one in this workflow.
    pub async fn token_of(
        &self,
        workflow: &WorkflowId,
        id: Uuid,
    ) -> Result<Option<ReadToken>, EngineError> {
        self.verb(Verb::Token, reads::token(self, id, Some(workflow))).await
    }

    /// When the bus stored the message of a token, if there is a bus and the message is still there.
    pub async fn message_time(
        &self,
        stored: &StoredToken,
    ) -> Result<Option<DateTime<Utc>>, EngineError> {
        self.verb(Verb::MessageTime, reads::message_time(self, stored)).await
    }

    /// All tokens of a workflow, or of all workflows, oldest arrival first.
    pub async fn tokens(
        &self,
        workflow: Option<WorkflowId>,
    ) -> Result<Vec<StoredToken>, EngineError> {
        self.verb(Verb::Tokens, lists::tokens(self, workflow, None)).await
    }

    /// The tokens that are in a place now, oldest arrival first.
    pub async fn tokens_in_place(
        &self,
        workflow: WorkflowId,
        place: PlaceId,
    ) -> Result<Vec<StoredToken>, EngineError> {
        self.verb(Verb::Tokens, lists::tokens(self, Some(workflow), Some(place))).await
    }

    /// A page of tokens, oldest arrival first.
    pub async fn token_page(
        &self,
        request: TokenPageRequest,
    ) -> Result<Page<StoredToken>, EngineError> {
        self.verb(Verb::TokenPage, lists::token_page(self, request)).await
    }

    /// A page of the moves of a token, newest first.
    pub async fn token_history(
        &self,
        token: Uuid,
        first: usize,
        before: Option<Sequence>,
    ) -> Result<Page<StoredEvent>, EngineError> {
        self.verb(Verb::TokenHistory, lists::token_history(self, token, first, before)).await
    }

    /// The workflow with this id, if there is one.
    pub async fn workflow(
        &self,
        id: &WorkflowId,
    ) -> Result<Option<WorkflowDefinition>, EngineError> {
        self.verb(Verb::Workflow, reads::workflow(self, id)).await
    }

    /// All workflows, ordered by id.
    pub async fn workflows(&self) -> Result<Vec<WorkflowDefinition>, EngineError> {
        self.verb(Verb::Workflows, lists::workflows(self)).await
    }

    /// A page of workflows, ordered by id.
    pub async fn workflow_page(
        &self,
        first: usize,
        after: Option<WorkflowId>,
    ) -> Result<Page<WorkflowDefinition>, EngineError> {
        self.verb(Verb::WorkflowPage, lists::workflow_page(self, first, after)).await
    }

    /// How the store does.
    pub async fn health(&self) -> Result<Health, EngineError> {
        self.verb(Verb::Health, reads::health(self)).await
    }

    /// Figures for monitoring: what was asked for, and how the store does.
    pub async fn figures(&self) -> Result<Vec<Figure>, EngineError> {
        self.verb(Verb::Figures, reads::figures(self)).await
    }
}
