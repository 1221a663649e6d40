//! Why something that a user asked for was not done.

use uuid::Uuid;

use crate::domain::limits::PROBLEMS_MAX;
use crate::domain::{CreateError, MoveError, PlaceId, Problem, TooCostly, WorkflowId};
use crate::storage::StorageError;

/// Why a request was not done. Nothing has changed, except where
/// [`StorageError::OutcomeUnknown`] says that it may have.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A value breaks its rule.
    #[error("{field}: {rule}")]
    InvalidInput {
        /// The field, as the client calls it.
        field: &'static str,
        /// The rule that it breaks.
        rule: String,
    },
    /// A definition is wrong.
    #[error("the workflow definition has {}, first {}: {}", count(.problems), first(.problems).0, first(.problems).1)]
    InvalidWorkflow {
        /// All that is wrong with it, at least one thing.
        problems: Vec<Problem>,
    },
    /// There is no such workflow.
    #[error("there is no workflow {workflow}")]
    WorkflowNotFound {
        /// The id that was asked for.
        workflow: WorkflowId,
    },
    /// The workflow has no such place.
    #[error("workflow {workflow} has no place {place}")]
    PlaceNotFound {
        /// The workflow.
        workflow: WorkflowId,
        /// The place that was asked for.
        place: PlaceId,
    },
    /// There is no such token.
    #[error("there is no token {token}")]
    TokenNotFound {
        /// The id that was asked for.
        token: Uuid,
    },
    /// Another definition has the id.
    #[error(
        "there is another workflow with the id {workflow}, which says something else in {}; a definition never changes, so give this one an id of its own", .differs.join(", ")
    )]
    WorkflowExists {
        /// The id.
        workflow: WorkflowId,
        /// Where the definitions differ, as paths into the one that was sent.
        differs: Vec<String>,
    },
    /// A token has the id.
    #[error(
        "there is a token {token} already, in this workflow or another one; if this is a retry of the same creation, the first try worked"
    )]
    TokenExists {
        /// The id.
        token: Uuid,
    },
    /// The domain refuses the creation of a token.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The domain refuses the move.
    #[error(transparent)]
    Move(#[from] MoveError),
    /// The budget of the request is too small for its conditions.
    #[error(transparent)]
    TooCostly(#[from] TooCostly),
    /// Others moved the token again and again in between.
    #[error(
        "token {token} was moved by others during each of {attempts} attempts; look where it is and try again"
    )]
    Contended {
        /// The token.
        token: Uuid,
        /// How often it was tried.
        attempts: usize,
    },
    /// So many wait to move the token that its turn did not come in time.
    #[error(
        "so many move token {token} that the turn of this move did not come in 10 s; look where it is and try again"
    )]
    NoTurn {
        /// The token.
        token: Uuid,
        /// How often it was tried.
        attempts: usize,
    },
    /// A list has more than an answer may hold.
    #[error(
        "there are more than {rows} rows or {bytes} bytes in {what}; ask for fewer, and read page by page: tokens with tokenConnection, workflows with workflowConnection"
    )]
    ResultTooLarge {
        /// The most rows.
        rows: usize,
        /// The most bytes, as they are in memory.
        bytes: usize,
        /// Where these bytes are.
        what: &'static str,
    },
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// This program has a defect.
    #[error("{reason}")]
    Defect {
        /// What went wrong.
        reason: String,
    },
}

fn count(problems: &[Problem]) -> String {
    match problems.len() {
        1 => "1 problem".to_owned(),
        // No more are looked for.
        PROBLEMS_MAX => format!("at least {PROBLEMS_MAX} problems"),
        some => format!("{some} problems"),
    }
}

fn first(problems: &[Problem]) -> (&str, &str) {
    problems.first().map_or(("", ""), |problem| (&problem.field, &problem.message))
}
